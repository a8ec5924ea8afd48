"""Boost trees on an imbalanced set: the plain loss, one with weights, and the focal loss.

LightGBM grows the trees, and fastloss makes the objectives. All three train with the same settings
and are judged by samples held out.

    pip install 'fastloss[lightgbm]' scikit-learn
    python examples/boosting.py                  # 100 rounds
    python examples/boosting.py --rounds 20
"""

import argparse

import lightgbm
import numpy as np
from sklearn.datasets import make_classification
from sklearn.metrics import average_precision_score

import fastloss
from fastloss import boosting

Array = np.ndarray
Criterion = fastloss.BCEWithLogitsLoss | fastloss.SigmoidFocalLoss
SETTINGS = {"learning_rate": 0.1, "num_leaves": 15, "verbosity": -1, "seed": 0}


def train(criterion: Criterion, x: Array, y: Array, test: Array, rounds: int) -> Array:
    """Boost from the best constant, and return the probabilities of the held-out samples."""
    start = boosting.init_score(criterion, y)
    dataset = lightgbm.Dataset(x, y, init_score=np.full(len(y), start))
    parameters = {**SETTINGS, "objective": boosting.lightgbm(criterion)}
    model = lightgbm.train(parameters, dataset, rounds)
    return boosting.predict_proba(criterion, model.predict(test, raw_score=True) + start)


def imbalanced(rounds: int) -> dict[str, float]:
    """Average precision where one sample in fifty is positive."""
    x, y = make_classification(
        8000, 20, n_informative=6, weights=[0.98], flip_y=0.005, random_state=0
    )
    criterions = {
        "binary cross-entropy": fastloss.BCEWithLogitsLoss(),
        "with pos_weight=10": fastloss.BCEWithLogitsLoss(pos_weight=10),
        "focal loss": fastloss.SigmoidFocalLoss(gamma=1.0, alpha=0.75),
    }
    return {
        name: float(
            average_precision_score(
                y[4000:], train(criterion, x[:4000], y[:4000], x[4000:], rounds)[:, 1]
            )
        )
        for name, criterion in criterions.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Boost trees with losses of fastloss.")
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    print("imbalanced set: average precision, higher is better")
    for name, value in imbalanced(rounds).items():
        print(f"  {name:22} {value:.3f}")


if __name__ == "__main__":
    main()
