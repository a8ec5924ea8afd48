"""Boost trees with losses that LightGBM does not have, and see what each gains.

Four experiments: class weights, soft labels, the focal loss where positives are rare, and label
smoothing against wrong labels. Each trains with every loss on the same data and settings, judges
samples held out after every round, and repeats that on other data. LightGBM grows the trees, and
fastloss makes the objectives.

    pip install 'fastloss[lightgbm]' scikit-learn
    python examples/boosting.py                      # all four, 5 seeds, 100 rounds
    python examples/boosting.py noise --seeds 20
    python examples/boosting.py --plot curves.png    # needs matplotlib
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import lightgbm
import numpy as np
from sklearn.datasets import make_classification
from sklearn.metrics import average_precision_score, balanced_accuracy_score, log_loss

import fastloss
from fastloss import boosting

Array = np.ndarray
SETTINGS = {
    "learning_rate": 0.1, "num_leaves": 15, "max_bin": 63, "num_threads": 1, "metric": "None",
    "verbosity": -1,
}  # fmt: skip


@dataclass
class Experiment:
    """Data for a seed, the losses to compare, and what is measured of the held-out samples."""

    title: str
    measure: str
    #: seed -> features, labels to train with, features held out, their labels
    data: Callable[[int], tuple[Array, Array, Array, Array]]
    #: labels to train with -> criteria by name, or criteria with labels of their own
    losses: Callable[[Array], dict[str, tuple[object, Array]]]
    #: labels, probabilities (N, C) -> a number
    judge: Callable[[Array, Array], float]
    classes: int
    better: str


def halves(x: Array, y: Array) -> tuple[Array, Array, Array, Array]:
    n = len(x) // 2
    return x[:n], y[:n], x[n:], y[n:]


# ---- class weights ---------------------------------------------------------------------------


def rare_classes(seed: int) -> tuple[Array, Array, Array, Array]:
    """Three classes: 90 %, 8 % and 2 % of the samples."""
    x, y = make_classification(
        6000, 12, n_informative=6, n_classes=3, weights=[0.9, 0.08], class_sep=0.8, flip_y=0.01,
        random_state=seed,
    )  # fmt: skip
    return halves(x, y)


def weighted(y: Array) -> dict[str, tuple[object, Array]]:
    balanced = len(y) / (3 * np.bincount(y, minlength=3))
    return {
        "plain": (fastloss.CrossEntropyLoss(), y),
        "weights 1/frequency": (fastloss.CrossEntropyLoss(weight=balanced), y),
        "their square roots": (fastloss.CrossEntropyLoss(weight=np.sqrt(balanced)), y),
    }


# ---- soft labels -----------------------------------------------------------------------------


def voted(seed: int) -> tuple[Array, Array, Array, Array]:
    """Five people label each sample; the closer a case, the more they differ.

    The labels are the shares of their votes. Held-out samples are judged by one true label each.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4000, 8))
    p = fastloss.sigmoid(1.5 * x[:, 0] + x[:, 1] * x[:, 2] - 0.5)
    votes = rng.binomial(5, p) / 5
    x, votes, x_test, _ = halves(x, votes)
    return x, votes, x_test, (rng.random(2000) < p[2000:]).astype(int)


def soft(votes: Array) -> dict[str, tuple[object, Array]]:
    criterion = fastloss.BCEWithLogitsLoss()
    one = (np.random.default_rng(0).random(len(votes)) < votes).astype(float)
    return {
        "one person's label": (criterion, one),
        "the majority's": (criterion, (votes > 0.5).astype(float)),
        "shares of votes": (criterion, votes),
    }


# ---- focal loss ------------------------------------------------------------------------------


def rare_positives(seed: int) -> tuple[Array, Array, Array, Array]:
    """One sample in fifty is positive."""
    x, y = make_classification(
        8000, 20, n_informative=6, weights=[0.98], flip_y=0.005, random_state=seed
    )
    return halves(x, y)


def focused(y: Array) -> dict[str, tuple[object, Array]]:
    return {
        "binary cross-entropy": (fastloss.BCEWithLogitsLoss(), y),
        "with pos_weight=10": (fastloss.BCEWithLogitsLoss(pos_weight=10), y),
        "focal loss": (fastloss.SigmoidFocalLoss(gamma=1.0, alpha=0.75), y),
    }


# ---- wrong labels ----------------------------------------------------------------------------


def wrong_labels(seed: int) -> tuple[Array, Array, Array, Array]:
    """Five classes; three training labels in ten are drawn anew, those held out are right."""
    rng = np.random.default_rng(seed)
    x, y = make_classification(
        6000, 12, n_informative=8, n_classes=5, class_sep=1.2, flip_y=0, random_state=seed
    )
    x, y, x_test, y_test = halves(x, y)
    y = np.where(rng.random(len(y)) < 0.3, rng.integers(0, 5, len(y)), y)
    return x, y, x_test, y_test


def smoothed(y: Array) -> dict[str, tuple[object, Array]]:
    return {
        "plain": (fastloss.CrossEntropyLoss(), y),
        "smoothing 0.1": (fastloss.CrossEntropyLoss(label_smoothing=0.1), y),
        "smoothing 0.3": (fastloss.CrossEntropyLoss(label_smoothing=0.3), y),
    }


def cross_entropy(y: Array, p: Array) -> float:
    return float(log_loss(y, p, labels=np.arange(p.shape[1])))


def ranking(y: Array, p: Array) -> float:
    return float(average_precision_score(y, p[:, 1]))


def balance(y: Array, p: Array) -> float:
    return float(balanced_accuracy_score(y, p.argmax(axis=1)))


EXPERIMENTS = {
    "weights": Experiment(
        "Class weights", "balanced accuracy", rare_classes, weighted, balance, 3, "higher"
    ),
    "soft": Experiment("Soft labels", "log-loss", voted, soft, cross_entropy, 1, "lower"),
    "focal": Experiment(
        "Focal loss", "average precision", rare_positives, focused, ranking, 1, "higher"
    ),
    "noise": Experiment(
        "Wrong labels", "log-loss", wrong_labels, smoothed, cross_entropy, 5, "lower"
    ),
}


def curve(
    experiment: Experiment, criterion, x: Array, y: Array, x_test: Array, y_test: Array, rounds: int
) -> list[float]:
    """Boost from the best constant; return the measure of the held-out samples after each round."""
    start = boosting.init_score(criterion, y)
    shape = (len(y),) if experiment.classes == 1 else (len(y), 1)
    dataset = lightgbm.Dataset(x, y, init_score=np.tile(start, shape))
    objective = boosting.lightgbm(criterion)
    parameters = {**SETTINGS, "objective": "none", "num_class": experiment.classes}
    model = lightgbm.Booster(parameters, dataset)
    values, raw = [], 0.0
    for i in range(rounds):
        model.update(fobj=objective)
        raw = raw + model.predict(x_test, raw_score=True, start_iteration=i, num_iteration=1)
        values.append(experiment.judge(y_test, boosting.predict_proba(criterion, raw + start)))
    return values


def run(name: str, *, rounds: int = 100, seeds: int = 5) -> dict[str, Array]:
    """Curves (seeds, rounds) of each loss of an experiment."""
    experiment = EXPERIMENTS[name]
    curves: dict[str, list[list[float]]] = {}
    for seed in range(seeds):
        x, y, x_test, y_test = experiment.data(seed)
        for loss, (criterion, labels) in experiment.losses(y).items():
            values = curve(experiment, criterion, x, labels, x_test, y_test, rounds)
            curves.setdefault(loss, []).append(values)
    return {loss: np.array(values) for loss, values in curves.items()}


def report(name: str, curves: dict[str, Array]) -> None:
    """The measure after the last round and at its best, and how the seeds compare with the first.

    The best round is that of each seed's own curve: what early stopping would find at most.
    """
    experiment = EXPERIMENTS[name]
    best = np.max if experiment.better == "higher" else np.min
    print(f"{experiment.title}: {experiment.measure}, {experiment.better} is better")
    first = None
    for loss, values in curves.items():
        last, top = values[:, -1], best(values, axis=1)
        first = last if first is None else first
        wins = (last > first) if experiment.better == "higher" else (last < first)
        print(
            f"  {loss:22} last {last.mean():.3f} ± {last.std():.3f}   best {top.mean():.3f}"
            f"   ahead in {wins.sum()} of {len(last)}"
        )


def draw(path: str, everything: dict[str, dict[str, Array]]) -> None:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(everything), figsize=(4.5 * len(everything), 3.5))
    for axes, (name, curves) in zip(np.atleast_1d(panels), everything.items(), strict=True):
        for loss, values in curves.items():
            axes.plot(np.arange(1, values.shape[1] + 1), values.mean(axis=0), label=loss)
        experiment = EXPERIMENTS[name]
        axes.set(title=experiment.title, xlabel="round", ylabel=experiment.measure)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description="Boost trees with losses of fastloss.")
    parser.add_argument("names", nargs="*", metavar="experiment", help=", ".join(EXPERIMENTS))
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plot", metavar="FILE", help="draw the curves")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(EXPERIMENTS)
    if unknown:
        parser.error(
            f"no experiment {', '.join(sorted(unknown))}: there are {', '.join(EXPERIMENTS)}"
        )
    everything = {}
    for name in arguments.names or EXPERIMENTS:
        everything[name] = run(name, rounds=arguments.rounds, seeds=arguments.seeds)
        report(name, everything[name])
    if arguments.plot:
        draw(arguments.plot, everything)


if __name__ == "__main__":
    main()
