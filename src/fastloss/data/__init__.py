"""A small real data set that is part of the package: logits of handwritten digits.

`digits.npz` holds two arrays: ``logits`` (1797, 10), float32, and ``labels`` (1797,), uint8. The
logits are those of a multinomial logistic regression on scikit-learn's copy of the UCI handwritten
digits; every image was scored by a model that had not seen it (ten-fold cross-validation).
`examples/make_digits_logits.py` creates the file.
"""

from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

__all__ = ["load_digits_logits"]


def __dir__() -> list[str]:
    return __all__


def load_digits_logits() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return held-out logits of a digit classifier, and the correct digits.

    .. versionadded:: 0.1.0

    Returns
    -------
    logits : ndarray of shape (1797, 10), float32
        One row for each image, one column for each digit.
    labels : ndarray of shape (1797,), uint8
        The correct digit of each image.

    See Also
    --------
    fastloss.score_samples : scores such logits sample by sample.

    Notes
    -----
    The images are the test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
    Digits", UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49 (CC BY 4.0).

    Examples
    --------
    >>> from fastloss.data import load_digits_logits
    >>> logits, labels = load_digits_logits()
    >>> logits.shape, labels.shape
    ((1797, 10), (1797,))
    >>> round(float((logits.argmax(axis=1) == labels).mean()), 2)
    0.97
    """
    path = files(__name__) / "digits.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return arrays["logits"], arrays["labels"]
