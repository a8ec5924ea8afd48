"""Arrays of more than 2**31 elements, samples and bytes, with gradients, on little memory.

    python fuzz/size.py [--folder FOLDER]

Logits and targets are sparse files, all zeros but for a few numbers at the end, so that answers
are known; gradients go into sparse files, too. Needs 10 GB of disk for the time it runs.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import fastloss

MANY = 2**31 + 11


def sparse(folder: Path, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros that take no memory and no disk until they are written."""
    return np.memmap(folder / name, dtype, "w+", shape=shape).view(np.ndarray)


def near(got: float, want: float, what: str) -> None:
    if not math.isclose(got, want, rel_tol=1e-6):
        sys.exit(f"{what}: {got!r} instead of {want!r}")


def many_elements(folder: Path) -> None:
    """Two samples of more than 2**30 classes each; the gradient over the logits."""
    classes = MANY // 2 + 1
    x = sparse(folder, "x", "f2", (2, classes))
    t = np.array([classes - 1, 3])
    x[0, -1], x[1, 0] = 25, 20
    want = [math.log1p((classes - 1) * math.exp(-25)), math.log(classes - 1 + math.exp(20))]
    loss, grad = fastloss.cross_entropy_value_and_grad(x, t, reduction="none", out=x)
    near(loss[0], want[0], "loss at the last class")
    near(loss[1], want[1], "loss of the second row")
    own = (classes - 1) / (classes - 1 + math.exp(25))
    if not math.isclose(grad[0, -1], -own, rel_tol=1e-3) or abs(grad[1, 3] + 1) > 1e-3:
        sys.exit(f"gradients {grad[0, -1]} and {grad[1, 3]}")


def many_samples(folder: Path) -> None:
    """More than 2**31 samples of one class: their targets alone are 17 GB."""
    x, t = sparse(folder, "x", "f2", (MANY, 1)), sparse(folder, "t", "i8", (MANY,))
    t[-1] = -100
    near(fastloss.cross_entropy(x, t, reduction="sum"), 0.0, "loss of one class")
    x[-2], t[-2] = 1, 0
    t[-1] = 5
    try:
        fastloss.cross_entropy_value_and_grad(x, t, out=x)
    except IndexError as error:
        if f"position {MANY - 1}" not in str(error):
            sys.exit(f"message {error}")
    else:
        sys.exit("a wrong class at the end is no error")
    if x[-2] != 1:
        sys.exit("out was written before the error")
    t[-1] = -100
    near(fastloss.nll_loss_value_and_grad(x, t, reduction="sum", out=x)[0], -1.0, "nll_loss")
    if x[-2] != -1 or x[-1] != 0 or x[0] != -1:
        sys.exit(f"gradients {x[0]}, {x[-2]}, {x[-1]}")


def many_binary(folder: Path) -> None:
    """Element-wise losses, the gradient over the logits."""
    x, t = sparse(folder, "x", "f2", (MANY,)), sparse(folder, "t", "i1", (MANY,))
    t[-1] = 1
    x[-1] = 5
    loss, grad = fastloss.binary_cross_entropy_with_logits_value_and_grad(
        x, t, reduction="sum", out=x
    )
    near(loss, (MANY - 1) * math.log(2) + math.log1p(math.exp(-5)), "sum")
    if grad[0] != 0.5 or not math.isclose(grad[-1], -1 / (1 + math.exp(5)), rel_tol=1e-3):
        sys.exit(f"gradients {grad[0]} and {grad[-1]}")


def many_classes(folder: Path) -> None:
    """Ten million classes, in rows and with the class axis first."""
    classes = 10_000_019
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3, classes)).astype(np.float32)
    t = rng.integers(0, classes, 3)
    wide = rows.astype(np.float64)
    want = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(3), t]
    for x, axis in ((rows, 1), (np.ascontiguousarray(rows.T), 0)):
        loss, grad = fastloss.cross_entropy_value_and_grad(x, t, axis=axis, reduction="none")
        for got, one in zip(loss, want, strict=True):
            near(got, one, f"loss, axis {axis}")
        grad = grad if axis else grad.T
        p = np.exp(wide[1]) / np.exp(wide[1]).sum()
        p[t[1]] -= 1
        if not np.allclose(grad[1], p, rtol=1e-5, atol=1e-30):
            sys.exit(f"gradient, axis {axis}")
    near(fastloss.score_samples(rows, t).log_prob[2], -want[2], "score_samples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the files lie; a temporary folder")
    arguments = parser.parse_args()
    for part in (many_classes, many_elements, many_samples, many_binary):
        start = time.monotonic()
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            part(Path(name))
        print(f"{part.__name__}: right, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
