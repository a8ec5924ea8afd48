"""Coverage-guided fuzzing of whole calls and of the file readers, from raw bytes.

    pip install atheris
    python fuzz/coverage.py calls -max_total_time=60 [CORPUS]
    python fuzz/coverage.py npy -max_total_time=60 [CORPUS]

Targets: ``calls``, and a reader each: ``npy``, ``npz``, ``safetensors``, ``parquet``, ``arrow``,
``arrows``. Arguments after the target are libFuzzer's. Coverage is that of
the Python code: argument checks and readers; fuzz/calls.py is for the kernels.

A find is any exception but the promised ones, a warning or a crash. libFuzzer then leaves a file
``crash-…`` and says so; the same command with that file as last argument repeats it.
"""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["fastloss"]):
    import fastloss
    from fastloss._scoring import InputError, readers, scorer

import ml_dtypes
import numpy as np

import files

DTYPES = ["f4", "f8", "f2", ml_dtypes.bfloat16, "i1", "i4", "i8", "u8", "?", "c8", "O", "U1", ">f4"]
LOSSES = [
    "cross_entropy", "nll_loss", "softmax_focal_loss", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "sigmoid_focal_loss", "kl_div", "distillation_loss",
]  # fmt: skip
OTHERS = [
    "softmax", "log_softmax", "logsumexp", "sigmoid", "softplus", "log_sigmoid", "score_samples",
    "cross_entropy_grad_and_hess", "sigmoid_focal_loss_grad_and_hess", "linear_cross_entropy",
    "linear_cross_entropy_value_and_grad", "softmax_focal_loss_grad_and_hess",
    "binary_cross_entropy_with_logits_grad_and_hess", "compare_logits", "brier_score",
    "calibration_error", "fit_temperature",
]  # fmt: skip
NAMES = [loss + suffix for loss in LOSSES for suffix in ("", "_value_and_grad", "_backward")]
NAMES += OTHERS
#: Arguments that are given by position.
PLACES = ("target", "logits", "input", "linear_weight", "teacher_logits", "other")
#: Functions of logits and of class indices.
SCORES = ("score_samples", "brier_score", "calibration_error", "fit_temperature")


def array(data: atheris.FuzzedDataProvider, shape: tuple[int, ...] | None = None) -> Any:
    """An array of raw bytes, in any form."""
    if shape is None or data.ConsumeIntInRange(0, 7) == 0:
        ndim = data.ConsumeIntInRange(0, 3)
        shape = tuple(data.ConsumeIntInRange(0, 9) for _ in range(ndim))
    dtype = np.dtype(DTYPES[data.ConsumeIntInRange(0, len(DTYPES) - 1)])
    size = int(np.prod(shape, dtype=int))
    if dtype.hasobject:
        return np.full(shape, data.ConsumeInt(8), object)
    raw = data.ConsumeBytes(size * dtype.itemsize).ljust(size * dtype.itemsize, b"\0")
    if dtype.kind == "U":
        return np.full(shape, "a")
    room = np.zeros(len(raw) + 8, np.uint8)
    shift = data.ConsumeIntInRange(0, 8)
    room[shift : shift + len(raw)] = np.frombuffer(raw, np.uint8)
    a = room[shift : shift + len(raw)].view(dtype).reshape(shape)
    way = data.ConsumeIntInRange(0, 4)
    if way == 1 and a.ndim:
        return a[::-1]
    if way == 2:
        return np.asfortranarray(a)
    if way == 3 and dtype.kind == "i":
        return a % 4
    return a.tolist() if way == 4 and dtype.kind in "fi" else a


def number(data: atheris.FuzzedDataProvider) -> Any:
    way = data.ConsumeIntInRange(0, 4)
    if way == 0:
        return data.ConsumeIntInRange(-3, 6)
    if way == 1:
        return data.ConsumeInt(16)
    if way == 2:
        return data.ConsumeRegularFloat()
    return data.ConsumeFloat() if way == 3 else None


def options(data: atheris.FuzzedDataProvider, name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    known = fastloss.__dict__[name].__code__
    names = known.co_varnames[: known.co_argcount + known.co_kwonlyargcount]
    given: dict[str, Any] = {}
    for option in names[1:]:
        if option in PLACES or data.ConsumeBool():
            continue
        if option in ("reduction",):
            given[option] = ["none", "sum", "mean", "batchmean", "x"][data.ConsumeIntInRange(0, 4)]
        elif option in ("direction", "strategy"):
            words = ["forward", "reverse", "uniform", "quantile"]
            given[option] = words[data.ConsumeIntInRange(0, 3)]
        elif option == "axis":
            given[option] = data.ConsumeIntInRange(-3, 3)
        elif option in ("weight", "sample_weight", "pos_weight", "alpha", "b", "linear_bias"):
            sizes = [shape, shape[1:], shape[1:2], shape[:1], ()]
            given[option] = array(data, sizes[data.ConsumeIntInRange(0, 4)])
        elif option == "out":
            given[option] = array(data, shape)
        elif option in ("keepdims", "return_sign", "log_target"):
            given[option] = data.ConsumeBool()
        else:
            given[option] = number(data)
    return given


def one_call(raw: bytes) -> None:
    data = atheris.FuzzedDataProvider(raw)
    name = NAMES[data.ConsumeIntInRange(0, len(NAMES) - 1)]
    x = array(data)
    shape = np.shape(x)
    axis_last = data.ConsumeBool()
    rest = shape[:-1] if axis_last else shape[:1] + shape[2:]
    arrays = [x]
    if name.startswith("linear"):
        arrays = [x, array(data, (5, *shape[-1:])), array(data, shape[:-1])]
    elif name.startswith(("distillation", "compare")):
        arrays.append(array(data, shape))
    elif name in NAMES[: -len(OTHERS)] or name.endswith("hess") or name in SCORES:
        arrays.append(array(data, rest if data.ConsumeBool() else shape))
    if name.endswith("_backward"):
        arrays.insert(0, array(data, rest if data.ConsumeBool() else ()))
    given = options(data, name, shape)
    if axis_last and "axis" in (getattr(fastloss, name).__kwdefaults__ or {}):
        given.setdefault("axis", -1)
    try:
        getattr(fastloss, name)(*arrays, **given)
    except (TypeError, ValueError, IndexError) as error:
        if not str(error):
            raise AssertionError("an error without a message") from error


def reader(suffix: str, folder: Path) -> Any:
    np.save(folder / "targets.npy", np.arange(files.ROWS) % files.CLASSES)
    scorer.BLOCK_BYTES = 9 * files.CLASSES * 4
    path = folder / f"case{suffix}"

    def one_file(raw: bytes) -> None:
        path.write_bytes(raw[1:])
        files.score(path, folder / "targets.npy", random.Random(raw[:1]))

    return one_file


def seeds(target: str, folder: Path) -> None:
    """A corpus to start from: files that are valid, or calls of every function."""
    if target != "calls":
        for i, content in enumerate(files.valid_files().get(f".{target}", [])):
            for first in range(6):  # which chooses the options
                (folder / f"valid-{i}-{first}").write_bytes(bytes([first]) + content)
        return
    rng = random.Random(0)
    for i in range(400):
        (folder / f"call-{i}").write_bytes(rng.randbytes(rng.choice([30, 100, 300, 1000])))


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    target = sys.argv.pop(1)
    warnings.simplefilter("error")
    np.seterr(all="ignore")
    fastloss.set_num_threads(1)
    assert InputError is not None and readers is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = folder / "corpus"
        start.mkdir()
        seeds(target, start)
        one = one_call if target == "calls" else reader(f".{target}", folder)
        arguments = (
            sys.argv[:1]
            + ["-timeout=60", "-rss_limit_mb=4096", "-len_control=0", "-max_len=16384"]
            + sys.argv[1:]
        )
        if not any(not a.startswith("-") for a in sys.argv[1:]):
            arguments.append(str(start))
        atheris.Setup(arguments, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
