"""What the fuzzers of whole calls share: random arrays in many forms, and two comparisons.

Layout: a) a package whose calls are counted, b) the same numbers in another form, c) the same
bits, d) within so many ulp of exact numbers, e) a loss once more, in other ways, f) arguments that
must be errors, g) arrays that overlap `out`.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from guarded import guarded

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

inf, nan = np.inf, np.nan
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
Generator = np.random.Generator


class Found(AssertionError):
    """A call that is not as promised."""


# ---- a) calls that are counted ---------------------------------------------------------------

calls: Counter[str] = Counter()


class Package:
    """fastloss on one level; each call of a public function is counted."""

    def __init__(self, package: ModuleType, level: str):
        self.package, self.level = package, level

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.package, name)
        if isinstance(function, type):
            return function

        def counted(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **options)

        setattr(self, name, counted)
        return counted

    def use_threads(self, number: int) -> None:
        """Use so many threads, however little there is to do."""
        self.package.special._threads.for_work = lambda elements: number


def threads_of(rng: Generator) -> int:
    """Mostly one: starting more takes longer than most calls."""
    return int(rng.choice([2, 3, 7])) if rng.random() < 0.06 else 1


# ---- b) the same numbers in another form -----------------------------------------------------


def another_form(rng: Generator, a: np.ndarray) -> np.ndarray:
    """The same numbers, laid out in another way."""
    way = rng.integers(9)
    if way == 0 and a.ndim:
        return np.repeat(a, 2, axis=-1)[..., ::2]
    if way == 1 and a.ndim > 1:
        return np.asfortranarray(a)
    if way == 2 and a.dtype != BFLOAT16:
        room = np.empty(a.nbytes + 1, np.uint8)
        b = room[1:].view(a.dtype).reshape(a.shape)
        b[...] = a
        return b
    if way == 3 and a.dtype != BFLOAT16:
        return a.astype(a.dtype.newbyteorder())
    if way == 4 and a.ndim:
        return np.ascontiguousarray(a[::-1])[::-1]
    if way == 5:
        b = a.copy()
        b.setflags(write=False)
        return b
    if way == 6 and a.size and a.ndim and a.tobytes() == a.flat[0].tobytes() * a.size:
        return np.broadcast_to(a.flat[0], a.shape)
    if way == 7 and a.size:
        return guarded(a, at_end=bool(rng.random() < 0.7))
    return a.copy()


def as_option(rng: Generator, value: np.ndarray, typed: bool = False) -> Any:
    """The same weights, as a caller may have them: a list, another type, without leading axes.

    `typed` keeps the type: where the arithmetic depends on that of the weights.
    """
    while value.ndim and value.shape[0] == 1 and value.ndim > 1 and rng.random() < 0.3:
        value = value[0]
    way = rng.integers(6)
    if way == 0 and 0 < value.size < 200 and value.dtype == np.float64:
        return value.tolist()
    if way <= 2 and not typed:
        kinds = ["f4", "f2", "i8", ">i2", "u1", "?", ">f8", "g", BFLOAT16]
        kept = np.dtype(kinds[rng.integers(len(kinds))])
        with np.errstate(all="ignore"):
            other = value.astype(kept)
        if np.array_equal(other.astype(value.dtype), value):
            return other
    return another_form(rng, value)


def as_listed(x: np.ndarray) -> Any:
    """Logits of float64 as a list, or as integers if that is what they are; others as they are."""
    if x.dtype != np.float64 or not 0 < x.size < 400:
        return x
    whole = np.isfinite(x) & (x == np.round(x)) & (np.abs(x) < 2**31)
    if (whole & ~((x == 0) & np.signbit(x))).all():
        return x.astype(np.int32)
    return x.tolist()


def in_a_room(rng: Generator, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """An array like `x` with other memory around it: the memory, the array, and where it is."""
    room = np.full(x.size + 8, 3, x.dtype)
    shift = int(rng.integers(9))
    return room, room[shift : shift + x.size].reshape(x.shape), shift


def untouched(room: np.ndarray, shift: int, size: int, what: str) -> None:
    if (room[:shift] != 3).any() or (room[shift + size :] != 3).any():
        raise Found(f"{what}: written beside out")


def weights_of(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Weights of at least 0, of many sizes."""
    way = rng.integers(9)
    if way <= 3:
        w = rng.uniform(0.5, 2.0, shape)
    elif way == 4:
        w = np.where(rng.random(shape) < 0.3, 0.0, rng.uniform(0.5, 2.0, shape))
    elif way == 5:
        w = 10.0 ** rng.uniform(-8, 8, shape)
    elif way == 6:
        w = np.where(
            rng.random(shape) < 0.2, 10.0 ** rng.uniform(9, 25), rng.uniform(0.5, 2, shape)
        )
    elif way == 7:
        return np.asarray(rng.integers(0, 4, shape))
    else:
        w = np.full(shape, 10.0 ** rng.uniform(-12, 12))
    return np.asarray(w)


def class_indices(rng: Generator, target: np.ndarray) -> np.ndarray:
    """The same classes in any integer type that holds them."""
    kinds = ["i8", "i4", ">i4", "i2", "i1", "u1", "u2", ">u8", "u8"]
    kept = np.dtype(str(rng.choice(kinds)))
    info = np.iinfo(kept)
    fits = not target.size or (info.min <= target.min() and target.max() <= info.max)
    return target.astype(kept) if fits else target


# ---- c) the same bits ------------------------------------------------------------------------


def same(got: Any, want: Any, what: str) -> None:
    """The same bits, but for those of a NaN."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        raise Found(f"{what}: {got.dtype}{got.shape} instead of {want.dtype}{want.shape}")
    if got.tobytes() == want.tobytes():
        return
    a, b = (np.ascontiguousarray(x).reshape(-1).view(f"u{got.dtype.itemsize}") for x in (got, want))
    differ = a != b
    if got.dtype.kind not in "iub":
        differ &= ~(np.isnan(got.astype(float)) & np.isnan(want.astype(float))).reshape(-1)
    if differ.any():
        i = int(np.flatnonzero(differ)[0])
        raise Found(
            f"{what}: {differ.sum()} of {a.size} differ, first at {i}: {got.reshape(-1)[i]!r}"
            f" and {want.reshape(-1)[i]!r}"
        )


# ---- d) exact numbers ------------------------------------------------------------------------

worst: dict[tuple[str, ...], tuple[float, str]] = {}
EXACT = np.longdouble


def exact(a: Any) -> np.ndarray:
    """Numbers of any type as long double."""
    return np.asarray(a).astype(np.float64).astype(EXACT)


def hold(
    got: Any, want: Any, size: Any, limit: float, what: str, key: tuple[str, ...], label: str,
    lost: Any = 0.0,
):  # fmt: skip
    """|got − want| at most `limit` ulp of `size`, in the type of `got`; halves are rounded.

    `lost`: how large a number may be that is lost before a weight is multiplied with it.
    """
    got, want, size = np.asarray(got), np.asarray(want), np.asarray(size)
    if got.shape != want.shape:
        raise Found(f"{what}: shape {got.shape} instead of {want.shape}")
    if not got.size:
        return
    dtype = got.dtype
    half = dtype.itemsize == 2
    unit = np.dtype(np.float32) if half else dtype
    info = np.finfo(unit)
    with np.errstate(all="ignore"):
        magnitude, size = np.abs(want).astype(np.float64), size.astype(np.float64)
        known = np.where(np.isfinite(size), np.maximum(magnitude, size), magnitude)
        # A term may be too large for the type where the result is not.
        beyond = known > float(info.max)
        known = np.clip(known, float(info.smallest_normal), float(np.finfo(np.float64).max) / 2)
        scale = np.ldexp(float(info.eps), np.frexp(known)[1] - 1)
        error = np.abs(exact(got) - want).astype(np.float64)
        allowed = limit * scale + np.asarray(lost).astype(np.float64)
        if half:
            allowed = allowed + _half_an_ulp(magnitude, dtype)
        fine = error <= allowed
        if not fine.all():
            value, top = got.astype(np.float64), float(ml_dtypes.finfo(dtype).max)
            eps = float(ml_dtypes.finfo(dtype).eps)
            allowed = np.where(np.isnan(allowed), 0, allowed)
            fine |= np.isnan(value) & np.isnan(want)
            fine |= (
                np.isinf(value)
                & ((np.sign(value) == np.sign(want)) | (allowed > 2 * magnitude))
                & (magnitude + allowed > top * (1 - eps))
            )
            # Terms that overflow.
            fine |= beyond & ~np.isnan(want) & ~np.isfinite(value)
            # Numbers below the normal ones.
            least = float(info.smallest_normal)
            fine |= (magnitude < least) & (np.abs(value) < 2 * least)
    if not fine.all():
        i = int(np.flatnonzero(~fine.reshape(-1))[0])
        with np.errstate(all="ignore"):
            off = float((error / scale).reshape(-1)[i])
        at = np.unravel_index(i, got.shape)
        raise Found(
            f"{what}: {(~fine).sum()} of {got.size} wrong, first at {tuple(map(int, at))}:"
            f" {got.reshape(-1)[i]!r}, exact {want.reshape(-1)[i]!r}, {off:.3g} ulp of"
            f" {np.broadcast_to(size, got.shape).reshape(-1)[i]!r}, allowed {limit}"
        )
    if not half:
        with np.errstate(all="ignore"):
            more = np.maximum(error - np.asarray(lost).astype(np.float64), 0)
            ulps = np.where(magnitude >= info.smallest_normal, more / scale, 0)
        most_off = float(np.where(np.isfinite(ulps), ulps, 0).max())
        name = (*key, dtype.name)
        if most_off > worst.get(name, (0.0, ""))[0]:
            worst[name] = (most_off, label)


def _half_an_ulp(magnitude: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """What rounding to a half may take."""
    info = ml_dtypes.finfo(dtype)
    power = np.ldexp(1.0, np.frexp(np.maximum(magnitude, 1e-300))[1] - 1)
    return 0.5001 * np.maximum(float(info.eps) * power, float(info.smallest_subnormal))


# ---- e) a loss once more ---------------------------------------------------------------------

#: In how many ways.
WAYS = 11


def call_again(
    way: int, rng: Generator, x: np.ndarray, form: tuple[Any, Any], functions: tuple[Any, ...],
    results: dict[str, Any], sample_weight: Any, given: dict[str, Any],
) -> None:  # fmt: skip
    """A loss in one of `WAYS`, of arguments in another form: the bits of `results`."""
    value, fused, back, second, criterion = functions
    if way == 0:
        reduction = str(rng.choice(["none", "sum", "mean"]))
        same(value(*form, reduction=reduction, **given), results[reduction], reduction)
    elif way == 1:
        got, g = fused(*form, reduction="sum", **given)
        same(got, results["sum"], "sum with gradient")
        same(g, results["gradient"], "gradient of the sum")
    elif way == 2:
        upstream = another_form(rng, results["upstream"])
        got = back(upstream, *form, reduction="none", **given)
        same(got, results["backward"], "backward in another form")
    elif way == 3:
        room, out, shift = in_a_room(rng, x)
        out[...] = x
        reduction = str(rng.choice(["none", "sum"]))
        got, g = fused(out, form[1], reduction=reduction, out=out, **given)
        same(got, results[reduction], f"{reduction} in place")
        same(g, results["gradient"], "gradient in place")
        untouched(room, shift, x.size, "in place")
    elif way == 4:
        room, out, shift = in_a_room(rng, x)
        back(results["scalar"], *form, reduction="mean", out=out, **given)
        same(out, results["mean gradient"], "gradient of the mean in out")
        untouched(room, shift, x.size, "backward")
    elif way == 5:
        got, g = criterion.value_and_grad(*form, sample_weight)
        same(got, results["none"], "losses of the criterion")
        same(g, results["gradient"], "gradient of the criterion")
    elif way == 6:
        got, g = fused(*form, reduction="mean", **given)
        same(got, results["mean"], "mean with gradient")
        want = back(1.0, x, form[1], reduction="mean", **given)
        same(g, want, "gradient of the mean in one pass and in two")
    elif way == 7:
        room, out, shift = in_a_room(rng, x)
        out[...] = x
        back(results["upstream"], out, form[1], reduction="none", out=out, **given)
        same(out, results["backward"], "backward in place")
        untouched(room, shift, x.size, "backward in place")
    elif way == 8:
        options = {**criterion._options, "reduction": "mean"}
        again = copy.deepcopy(type(criterion)(**options))
        same(again(*form, sample_weight), results["mean"], "mean of a copied criterion")
        got = again.backward(results["scalar"], *form, sample_weight)
        same(got, results["mean gradient"], "backward of a copied criterion")
    elif way == 9:
        target = np.asarray(form[1])
        listed = target.dtype in (np.float64, np.int64) and 0 < target.size < 400
        plain = target.tolist() if listed else target
        got, g = fused(as_listed(x), plain, reduction="none", **given)
        same(got, results["none"], "losses of a list")
        same(g, results["gradient"], "gradient of a list")
    elif way == 10 and second is not None and "hess" in results:
        # Column-major logits are read in place, as those of another axis: other bits.
        logits = np.asarray(form[0], order="C")
        g, h = criterion.grad_and_hess(logits, form[1], sample_weight)
        same(g, results["first"], "first derivatives of the criterion")
        same(h, results["hess"], "second derivatives of the criterion")


# ---- f) errors -------------------------------------------------------------------------------

PROMISED = (TypeError, ValueError, IndexError)


def refused(call: Any, what: str, out: np.ndarray | None = None) -> str:
    """The message of the promised error that the call must end in, and `out` as it was."""
    before = None if out is None else out.tobytes()
    try:
        call()
    except PROMISED as error:
        text = str(error)
        if not text or len(text) > 600:
            raise Found(f"{what}: a message of {len(text)} characters") from None
    else:
        raise Found(f"{what} is no error")
    if out is not None and out.tobytes() != before:
        raise Found(f"{what}: out was written before the error")
    return text


def wrong_options(rng: Generator, name: str) -> dict[str, Any]:
    """One option that no loss takes."""
    cases: list[tuple[str, list[Any]]] = [
        ("reduction", ["average", None, 3, np.zeros(3)]),
        ("ignore_index", [1.5, 2**63, "1", 10**30]),
        ("sample_weight", ["a", 1j, np.zeros((3, 3, 3, 3, 3)), object(), [None]]),
        ("nonsense", [1]),
    ]
    if "cross_entropy" in name and "binary" not in name:
        cases += [
            ("label_smoothing", [-0.1, 1.1, nan, inf, "0.1", 10**400, None]),
            ("temperature", [0.0, -1.0, nan, inf, None, 1j]),
            ("softcap", [0.0, -1.0, nan, inf, "1"]),
            ("z_loss", [-1.0, nan, inf, None]),
            ("weight", [np.zeros((2, 99_999)), "a", 1j, [[1.0]]]),
        ]
    if "focal" in name:
        cases += [("gamma", [-1.0, nan, inf, None, 10**400, "2"])]
    if "sigmoid_focal" in name:
        cases += [("alpha", [1.5, -0.5, nan, [2.0], "a"])]
    if name in ("distillation_loss", "compare_logits", "score_samples", "brier_score",
                "calibration_error"):  # fmt: skip
        cases += [("temperature", [0.0, -1.0, nan, inf, None, 1j])]
    if name in ("score_samples", "brier_score", "calibration_error"):
        cases += [("softcap", [0.0, -1.0, nan, inf, "1"])]
    if name == "score_samples":
        cases += [("top_k", [-1, 1.5, 10**30, None])]
    if name == "distillation_loss":
        cases += [("direction", ["back", None, 3])]
    if name in ("cross_entropy", "distillation_loss", "compare_logits") or (
        "softmax_focal" in name or "nll" in name
    ):
        cases += [("axis", [9, -9, 1.0, "1", 2**70])]
    option, values = cases[rng.integers(len(cases))]
    return {option: values[rng.integers(len(values))]}


def wrong_array(rng: Generator, x: np.ndarray) -> Any:
    """An array that is no logits."""
    x = np.asarray(x)  # of a scalar, astype(object) makes a float
    way = rng.integers(7)
    if way == 0 or (way == 4 and not x.size):
        return x.astype(np.float64).astype(complex)
    if way == 1:
        return x.astype(object)
    if way == 2:
        return np.full(x.shape, "a")
    if way == 3:
        return np.zeros(x.shape, "M8[s]")
    if way == 4:
        return np.ma.masked_array(x.astype(np.float64), mask=np.ones(x.shape, bool))
    if way == 5:
        return [[1.0, 2.0], [3.0]]
    return np.zeros(x.shape, [("a", "f4")])


def wrong_output(rng: Generator, x: np.ndarray) -> Any:
    """What is no `out` for the gradient of `x`."""
    way = rng.integers(7)
    if way == 0:
        return np.empty(x.shape, np.float64 if x.dtype != np.float64 else np.float32)
    if way == 1:
        return np.empty((*x.shape, 1), x.dtype)
    if way == 2:
        out = np.zeros(x.shape, x.dtype)
        out.setflags(write=False)
        return out
    if way == 3 and x.ndim and x.shape[-1] > 1 and x.size:
        return np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)[..., ::2]
    if way == 4 and x.size and x.dtype != BFLOAT16:
        return np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    if way == 5:
        return np.zeros(x.shape, x.dtype).tolist() if x.ndim else 1.0
    return "out" if way == 6 else (np.zeros(x.shape, x.dtype),) * 2


# ---- g) arrays that overlap `out` ------------------------------------------------------------


def overlapping(
    rng: Generator, out: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Memory, and in it an array like `out` and a copy of `other` that overlaps it."""
    step = max(out.dtype.itemsize, other.dtype.itemsize)
    # How far `other` begins behind `out`.
    least, most = -((other.nbytes - 1) // step), (out.nbytes - 1) // step
    apart = step * int(rng.integers(least, most + 1))
    if rng.random() < 0.3:
        apart = 0
    start = max(-apart, 0)
    room = np.zeros(max(start + out.nbytes, start + apart + other.nbytes) + 16, np.uint8)
    mine = room[start : start + out.nbytes].view(out.dtype).reshape(out.shape)
    theirs = room[start + apart : start + apart + other.nbytes].view(other.dtype)
    theirs = theirs.reshape(other.shape)
    theirs[...] = other
    return room, mine, theirs


def right_or_refused(call: Any, room: np.ndarray, check: Any, what: str) -> None:
    """A call whose `out` overlaps another argument is right, or is refused before it writes."""
    before = room.tobytes()
    try:
        result = call()
    except ValueError as error:
        if "overlap" not in str(error):
            raise Found(f"{what}: message {error}") from None
        if room.tobytes() != before:
            raise Found(f"{what}: out was written before the error") from None
        return
    check(result)


def overlaps(
    rng: Generator, x: np.ndarray, target: np.ndarray, functions: tuple[Any, ...],
    results: dict[str, Any], options: dict[str, Any],
) -> None:  # fmt: skip
    """`out` over the target, a weight, the upstream gradient or the other `out`."""
    _, fused, back, second, _ = functions
    if not x.size:
        return
    arrays = {"target": target, "upstream": results["upstream"]}
    arrays |= {name: value for name, value in options.items() if isinstance(value, np.ndarray)}
    names = [name for name, value in arrays.items() if value.size]
    name = names[rng.integers(len(names))]
    room, out, other = overlapping(rng, x, arrays[name])
    what = f"out over {name}"
    if name == "upstream":
        right_or_refused(
            lambda: back(other, x, target, reduction="none", out=out, **options), room,
            lambda g: same(g, results["backward"], what), what,
        )  # fmt: skip
    else:
        t = other if name == "target" else target
        kept = {**options, name: other} if name in options else options
        right_or_refused(
            lambda: fused(x, t, reduction="none", out=out, **kept), room,
            lambda found: [same(found[0], results["none"], what),
                           same(found[1], results["gradient"], what)], what,
        )  # fmt: skip
    if second is None or "hess" not in results:
        return
    room, out, other = overlapping(rng, x, x)
    right_or_refused(
        lambda: second(x, target, out=(out, other), **options), room,
        lambda found: [same(found[0], results["first"], "grad over hess"),
                       same(found[1], results["hess"], "hess over grad")], "hess over grad",
    )  # fmt: skip
    room, out, other = overlapping(rng, x, x)
    apart = np.empty_like(x)
    pair = (out, apart) if rng.random() < 0.5 else (apart, out)
    right_or_refused(
        lambda: second(other, target, out=pair, **options), room,
        lambda found: [same(found[0], results["first"], "first over x"),
                       same(found[1], results["hess"], "hess over x")], "derivatives over x",
    )  # fmt: skip
