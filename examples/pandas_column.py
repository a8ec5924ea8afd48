"""Score a pandas frame: the loss of every row, as one more column.

Logits lie in a column per class, as `DataFrame(model.decision_function(X))` gives them, labels
beside them. The losses become a column like any other, here to find the images whose label the
classifier believes least.

    pip install fastloss pandas
    python examples/pandas_column.py
"""

import numpy as np
import pandas as pd

import fastloss
from fastloss.data import load_digits_logits


def losses(frame: pd.DataFrame, classes: list[str], label: str) -> pd.Series:
    """The loss of each row, from its logits in the columns ``classes`` and its ``label``.

    A row without a label gets the loss 0.
    """
    target = frame[label].fillna(-100).to_numpy(np.int64)
    logits = frame[classes].to_numpy(np.float32)
    values = fastloss.cross_entropy(logits, target, ignore_index=-100, reduction="none")
    return pd.Series(values, index=frame.index, name="loss")


def main() -> pd.DataFrame:
    logits, labels = load_digits_logits()
    classes = [f"logit {digit}" for digit in range(10)]
    frame = pd.DataFrame(logits, columns=classes).assign(label=labels)
    frame["loss"] = losses(frame, classes, "label")
    frame["predicted"] = logits.argmax(axis=1)
    doubtful = frame.nlargest(5, "loss")[["label", "predicted", "loss"]]
    print(doubtful)
    return doubtful


if __name__ == "__main__":
    main()
