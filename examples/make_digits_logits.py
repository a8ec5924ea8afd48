"""Make the logits that the package carries: src/fastloss/data/digits.npz.

The classifier is a multinomial logistic regression on scikit-learn's handwritten digits (1,797
images of 8 x 8 pixels). Ten-fold cross-validation: the logits of every image come from a model that
was trained without it, so their losses are held-out losses.

    pip install scikit-learn
    python examples/make_digits_logits.py            # writes into the source tree
    python examples/make_digits_logits.py FILE.npz   # or elsewhere
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from threadpoolctl import threadpool_limits

PACKAGED = Path(__file__).resolve().parents[1] / "src" / "fastloss" / "data" / "digits.npz"


def held_out_logits() -> tuple[np.ndarray, np.ndarray]:
    """Return ``(logits, labels)``: float32 of shape (1797, 10) and uint8 of shape (1797,)."""
    pixels, labels = load_digits(return_X_y=True)
    # One thread: matrices this small only make threads wait for each other.
    with threadpool_limits(1):
        # For a multinomial model the decision function is the logits: its softmax is predict_proba.
        logits = cross_val_predict(
            LogisticRegression(C=1.0, max_iter=1000),
            pixels / 16,
            labels,
            cv=StratifiedKFold(n_splits=10, shuffle=True, random_state=0),
            method="decision_function",
        )
    return logits.astype(np.float32), labels.astype(np.uint8)


def main(path: Path = PACKAGED) -> None:
    logits, labels = held_out_logits()
    np.savez(path, logits=logits, labels=labels)
    accuracy = (logits.argmax(axis=1) == labels).mean()
    print(f"{path}: {len(labels)} images, held-out accuracy {accuracy:.2%}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
