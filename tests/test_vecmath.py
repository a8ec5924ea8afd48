"""exp, log and log1p of the kernels within their errors, at every level.

Layout: a) the errors that are promised, b) random arguments over the whole valid range, and the
places where such functions err, against mpmath, c) numbers in two parts, d) every float there is,
against float64, in some five minutes on two cores: `pytest -m slow` runs it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import mpmath
import numpy as np
import pytest

import fastloss
import oracle
from conftest import LEVELS, load_level
from helpers import FLOATS

SOURCE = Path(fastloss.__file__).parent / "_kernels" / "vecmath.pxd"
COUNT = 3000

# ---- a) what is promised ---------------------------------------------------------------------

#: The largest error in ulp, for float32 and for float64.
LIMITS = {
    "exp_scaled": (1.5, 1.5),
    "exp_negative": (1.5, 1.5),
    "log_normal": (1.0, 1.0),
    "log_positive": (1.01, 1.0),
    "log1p": (1.5, 1.0),
    "log1p_positive": (1.5, 1.5),
    "log1p_unit": (1.5, 1.5),
    "exp_by_table": (1.0, 1.0),
}


def limit(function: str, dtype: str) -> float:
    return LIMITS[function][dtype == "float64"]


@pytest.mark.parametrize("function", LIMITS)
def test_the_source_states_the_same(function):
    """In its docstring: "at most N ulp", or "at most N ulp (float: M)"."""
    docstring = re.search(
        rf'cdef inline (?:real|double|void) {function}\(.*?"""(.*?)"""',
        SOURCE.read_text(),
        re.DOTALL,
    )
    assert docstring, f"vecmath.pxd has no documented {function}"
    found = re.search(r"at most ([\d.]+) ulp(?: \(float: ([\d.]+)\))?", docstring[1])
    assert found, f"{function} states no error: {docstring[1]!r}"
    assert (float(found[2] or found[1]), float(found[1])) == LIMITS[function]


# ---- b) chosen arguments ---------------------------------------------------------------------


@cache
def exact(function, arguments: tuple[float, ...], scale: int = 0) -> oracle.Exact:
    with mpmath.workprec(oracle.PRECISION):
        return oracle.as_exact([mpmath.ldexp(function(mpmath.mpf(x)), -scale) for x in arguments])


def call(fl, name, x, m=0.0):
    x = np.ascontiguousarray(x)
    out = np.empty_like(x)
    kind = fl._kernels.elements.TYPES[x.dtype.name]
    exponent = fl._kernels.vecmath.over_array(name, kind, x, out, x.size, m)
    return out, exponent


def check(fl, name, function, x, m=0.0):
    got, exponent = call(fl, name, x, m)
    want = exact(function, tuple(x.tolist()), exponent)
    error = oracle.ulp_error(got, want)
    worst = int(error.argmax())
    assert error[worst] <= limit(name, x.dtype.name), (
        f"{name}({x[worst]!r}) is {error[worst]:.3f} ulp off"
    )


def magnitudes(dtype, low, high, seed) -> np.ndarray:
    """Positive numbers, uniform in their logarithm."""
    rng = np.random.default_rng(seed)
    return np.exp2(rng.uniform(np.log2(low), np.log2(high), COUNT)).astype(dtype)


def halves_of_log2(dtype, low, high) -> np.ndarray:
    """Multiples of ln(2)/2 and their neighbours: where exp changes its power of two."""
    steps = np.arange(np.ceil(low / np.log(2) * 2), high / np.log(2) * 2) / 2
    x = np.random.default_rng(0).choice(steps, min(steps.size, 300), False) * np.log(2)
    x = x.astype(dtype)
    return np.concatenate(
        [np.nextafter(x, -np.inf, dtype=dtype), x, np.nextafter(x, np.inf, dtype=dtype)]
    )


LEAST = {"float32": -87.0, "float64": -708.0}  # of exp, normal numbers
SUBNORMAL = {"float32": -103.9, "float64": -745.1}


@pytest.mark.parametrize("dtype", FLOATS)
def test_exp_negative(fl, dtype):
    rng = np.random.default_rng(1)
    x = np.concatenate(
        [
            rng.uniform(SUBNORMAL[dtype], 0.0, COUNT),
            rng.uniform(-1.0, 0.0, COUNT),
            halves_of_log2(dtype, SUBNORMAL[dtype], 0.0),
            -magnitudes(dtype, 1e-30, 1.0, 2),
            [0.0, -0.0],
        ]
    ).astype(dtype)
    check(fl, "exp_negative", mpmath.exp, x[x <= 0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_exp_negative_at_the_ends(fl, dtype):
    x = np.array([0.0, -0.0, -1e4, -1e30, -np.inf, np.nan], dtype)
    got, _ = call(fl, "exp_negative", x)
    np.testing.assert_array_equal(got, [1, 1, 0, 0, 0, np.nan])


#: The exponential of a row, and its form with a table: float32 alone, on levels that have one.
SCALED = [
    ("exp_scaled", "float32"),
    ("exp_scaled", "float64"),
    ("exp_by_table", "float32"),
]


def check_scaled(fl, name, x, m):
    # Without a table it is exp_scaled that is called, whose bound then holds.
    table = fl._kernels.vecmath.EXP_LANES > 0
    check(fl, name if table else "exp_scaled", mpmath.exp, x, m)


@pytest.mark.parametrize(("name", "dtype"), SCALED)
@pytest.mark.parametrize("m", [0.0, 0.3, -0.4, 17.0, -90.0, 333.3, -999.0, 1000.0])
def test_exp_scaled(fl, name, dtype, m):
    """Terms of a row with maximum m, down to what is no normal number relative to it."""
    m = float(np.dtype(dtype).type(m))
    rng = np.random.default_rng(3)
    span = -LEAST[dtype] + 20.0
    x = np.concatenate(
        [rng.uniform(m - span, m, COUNT), rng.uniform(m - 1.0, m, COUNT // 4), [m]]
    ).astype(dtype)
    x = np.concatenate([x, halves_of_log2(dtype, m - span, m)])
    check_scaled(fl, name, x[x <= m], m)


@pytest.mark.parametrize(("name", "dtype"), SCALED)
@pytest.mark.parametrize("m", [0.0, 500.0, -1000.0])
def test_exp_scaled_at_the_ends(fl, name, dtype, m):
    """Far below the maximum: exactly 0. NaN stays NaN."""
    x = np.array([m - 2000.0, -1e30, -np.inf, np.nan], dtype)
    got, _ = call(fl, name, x, m)
    np.testing.assert_array_equal(got, [0, 0, 0, np.nan])


def near_one(dtype) -> np.ndarray:
    one = np.dtype(dtype).type(1)
    gaps = magnitudes(dtype, 1e-12, 0.5, 4)
    return np.concatenate([one - gaps, one + gaps, [one]]).astype(dtype)


def log(x):
    """mpmath's log, with 0 as the exact answer for 1 (whose ulp is that of 0)."""
    return mpmath.log(x)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["log_normal", "log_positive"])
def test_log(fl, dtype, name):
    info = np.finfo(dtype)
    edge = np.sqrt(np.float64(2.0)) * np.exp2(np.arange(-100, 100, 7.0))
    x = np.concatenate(
        [magnitudes(dtype, float(info.tiny), 1e38, 5), near_one(dtype), edge, edge / 2]
    )
    x = np.concatenate([x, [info.tiny, info.max]]).astype(dtype)
    check(fl, name, log, x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_log_of_subnormal_numbers(fl, dtype):
    info = np.finfo(dtype)
    x = np.linspace(0, float(info.tiny), 300)[1:].astype(dtype)
    x = np.concatenate([x, [info.smallest_subnormal]]).astype(dtype)
    check(fl, "log_positive", log, x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_log_at_the_ends(fl, dtype):
    got, _ = call(fl, "log_positive", np.array([0.0, -0.0, 1.0, np.inf, np.nan], dtype))
    np.testing.assert_array_equal(got, [-np.inf, -np.inf, 0.0, np.inf, np.nan])


@pytest.mark.parametrize("dtype", FLOATS)
def test_log1p(fl, dtype):
    x = magnitudes(dtype, 1e-37, 1e37, 6)
    small = magnitudes(dtype, 1e-37, 0.999, 7)
    dense = np.random.default_rng(8).uniform(-0.9, 3.0, COUNT)
    check(fl, "log1p", mpmath.log1p, np.concatenate([x, -small, dense]).astype(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_log1p_at_the_ends(fl, dtype):
    got, _ = call(fl, "log1p", np.array([-1.0, 0.0, np.inf, np.nan], dtype))
    np.testing.assert_array_equal(got, [-np.inf, 0.0, np.inf, np.nan])


def test_log1p_positive(fl):
    x = np.concatenate(
        [magnitudes("float64", 1e-307, 1e300, 11), magnitudes("float64", 0.1, 9, 12)]
    )
    edge = np.sqrt(2.0) * np.exp2(np.arange(0.0, 990.0, 7.0)) - 1.0
    edge = np.concatenate([np.nextafter(edge, 0.0), edge, np.nextafter(edge, np.inf)])
    check(fl, "log1p_positive", mpmath.log1p, np.concatenate([x, edge, [0.0, 1.0, 1e300]]))
    assert np.isnan(call(fl, "log1p_positive", np.array([np.nan]))[0]).all()


def test_log1p_wide(fl):
    x = np.concatenate(
        [magnitudes("float64", 1e-300, 1e300, 18), magnitudes("float64", 0.1, 9, 19)]
    )
    edge = np.sqrt(2.0) * np.exp2(np.arange(0.0, 990.0, 7.0)) - 1.0
    x = np.concatenate([x, np.nextafter(edge, 0.0), edge, np.nextafter(edge, np.inf), [0.0]])
    got, _ = call(fl, "log1p_wide", x)
    want = np.log1p(x)
    assert (np.abs(got - want) <= 2.0**-26 * want).all()
    assert np.isnan(call(fl, "log1p_wide", np.array([np.nan]))[0]).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_log1p_unit(fl, dtype):
    dense = np.random.default_rng(9).uniform(0.0, 1.0, COUNT)
    edge = np.sqrt(2.0) - 1.0 + np.linspace(-1e-6, 1e-6, 101)
    x = np.concatenate([magnitudes(dtype, 1e-37, 1.0, 10), dense, edge, [0.0, 1.0]]).astype(dtype)
    check(fl, "log1p_unit", mpmath.log1p, x)


# ---- c) numbers in two parts -----------------------------------------------------------------


def pair_error(fl, name, function, x) -> np.ndarray:
    """|high + low - exact|, and the exact values."""
    (high, _), (low, _) = call(fl, name, x), call(fl, f"{name}_low", x)
    with mpmath.workprec(oracle.PRECISION):
        exact = [function(mpmath.mpf(float(v))) for v in x]
        off = [
            abs(mpmath.mpf(h) + mpmath.mpf(v) - e) for h, v, e in zip(high, low, exact, strict=True)
        ]
        return np.array([float(v) for v in off]), np.abs([float(v) for v in exact])


def test_exp_pair(fl):
    x = -np.concatenate([magnitudes("float64", 1e-18, 1.0, 13), np.linspace(0.0, 640.0, COUNT)])
    x = np.concatenate([x, halves_of_log2("float64", -640.0, 0.0)])
    x = x[x <= 0]
    error, exact = pair_error(fl, "exp_pair", mpmath.exp, x)
    assert (error <= 2.0**-54 * exact).all()


def test_log_pair(fl):
    x = np.concatenate([magnitudes("float64", 1e-307, 1e300, 14), near_one("float64")])
    x = np.concatenate([x, np.linspace(0.3, 3.0, COUNT), [5e-324, 1e-310]])
    error, exact = pair_error(fl, "log_pair", mpmath.log, x)
    # Beside 1 the logarithm is as exact as it is small.
    assert (error <= np.minimum(2.0**-57, 2.0**-54 * exact) + 2.0**-70 * exact).all()


def test_exp_pair32(fl):
    """Of a float, with more digits than one has."""
    x = np.concatenate([np.linspace(-80.0, 0.0, COUNT), halves_of_log2("float32", -80.0, 0.0)])
    x = np.concatenate([x, -magnitudes("float32", 1e-30, 1.0, 15), [0.0]])
    x = x[x <= 0].astype(np.float32).astype(np.float64)
    got, _ = call(fl, "exp_pair32", x)
    want = np.exp(x)
    assert (np.abs(got - want) <= 2.0**-25 * want).all()
    got, _ = call(fl, "exp_pair32", np.array([-np.inf, -1e30, np.nan]))
    np.testing.assert_array_equal(got, [0.0, 0.0, np.nan])


# ---- d) every float --------------------------------------------------------------------------
#
# The functions of one group share the exact values: float64's, which NumPy has from the C library.
# That is within an ulp of a float64, 2e-9 of a float's; ten numbers of each block are held to long
# double, where that is wider, so that nobody has to believe it.

#: Floats that are worked on at once, few enough for the cache; and by one piece of work.
BLOCK, SPAN = 1 << 13, 1 << 22
#: By the sign bit, both halves of all floats.
POSITIVE, NEGATIVE = range(0, 1 << 31, SPAN), range(1 << 31, 1 << 32, SPAN)

#: What is exact, the floats it is asked for, and the functions that are to have it.
GROUPS = {
    "exp": (np.exp, [NEGATIVE], ["exp_negative", "exp_scaled"]),
    "log": (np.log, [POSITIVE], ["log_normal", "log_positive"]),
    "log1p": (np.log1p, [POSITIVE, NEGATIVE], ["log1p", "log1p_unit"]),
}
#: Where a function is valid: what comes before and after has tests above.
VALID = {
    "exp_negative": lambda x: x <= 0,
    "exp_scaled": lambda x: (x <= 0) & (x > -120),
    "log_normal": lambda x: (x >= np.finfo(np.float32).tiny) & (x < np.inf),
    "log_positive": lambda x: x > 0,
    "log1p": lambda x: x > -1,
    "log1p_unit": lambda x: (x >= 0) & (x <= 1),
}


def floats(start: int) -> np.ndarray:
    return np.arange(start, start + BLOCK, dtype=np.uint64).astype(np.uint32).view(np.float32)


def starts(halves: list[range]) -> Iterator[int]:
    for half in halves:
        yield from half


def worst_of_block(packages, function, names, start) -> dict[tuple[str, str], tuple[float, float]]:
    """The largest error of each function on each level in one block, and its argument."""
    x = floats(start)
    found = {}
    want = function(x.astype(np.float64))
    some = (start // BLOCK * np.arange(1, 11)) % BLOCK
    exact = function(x[some].astype(np.longdouble))
    near = np.abs(want[some] - exact) <= np.spacing(np.abs(want[some]))
    assert (near | ~np.isfinite(exact) | (np.abs(exact) < 1e-300)).all()
    for name in names:
        valid = VALID[name](x)
        if not valid.any():
            continue
        everywhere = bool(valid.all())
        exact_here = unit = None
        for fl in packages:
            got, exponent = call(fl, name, x)
            if exact_here is None:
                exact_here = np.ldexp(want, -exponent) if exponent else want
                unit = np.spacing(np.abs(exact_here.astype(np.float32)))
            error = np.abs(got - exact_here) / unit
            if not everywhere or np.isinf(got).any():
                error[~valid | (got == exact_here)] = 0.0
            i = int(error.argmax())  # of a NaN, if there is one
            largest = float(error[i])
            found[fl._kernels.level, name] = largest if largest == largest else np.inf, float(x[i])
    return found


def worst_of_span(packages, function, names, start) -> dict[tuple[str, str], tuple[float, float]]:
    worst: dict[tuple[str, str], tuple[float, float]] = {}
    with np.errstate(all="ignore"):
        for block in range(start, start + SPAN, BLOCK):
            for key, one in worst_of_block(packages, function, names, block).items():
                worst[key] = max(worst.get(key, one), one)
    return worst


@pytest.fixture(scope="module")
def packages():
    """Every level that this processor has: the exact values are the same for all."""
    found = []
    for level in LEVELS:
        try:
            found.append(load_level(level))
        except ImportError:
            continue  # test_levels.py fails where a level is missing that ought to be there
    return found


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_every_float(packages, group):
    """All of them, where the functions are valid: exp is for numbers up to 0 alone."""
    function, halves, names = GROUPS[group]
    worst: dict[tuple[str, str], tuple[float, float]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        work = (
            pool.submit(worst_of_span, packages, function, names, start) for start in starts(halves)
        )
        for done in list(work):
            for key, one in done.result().items():
                worst[key] = max(worst.get(key, one), one)
    assert set(worst) == {(fl._kernels.level, name) for fl in packages for name in names}
    for (level, name), (error, x) in worst.items():
        print(f"{name} on {level}: at most {error:.3f} ulp off, at {x!r}")
        assert error <= limit(name, "float32"), f"{name}({x!r}) on {level}"
