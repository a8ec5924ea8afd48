"""logsumexp, softmax and log_softmax beside SciPy's.

Layout: a) SciPy's own tests, with the functions of this package; b) answers to random arguments.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fastloss

# Older versions have other tests, of what SciPy itself answers otherwise since.
pytest.importorskip("scipy", minversion="1.17")

special = pytest.importorskip("scipy.special")

# ---- a) SciPy's own tests --------------------------------------------------------------------
# A pytest of its own runs the file that the installed SciPy brings.  A plugin puts our functions in
# the place of SciPy's once the file is imported, leaves out what `LEFT_OUT` names, and reports.

TESTS = "scipy.special.tests.test_logsumexp"
FUNCTIONS = ("logsumexp", "softmax", "log_softmax")

#: What of the file is no test of ours: a pattern of test names, and why.
LEFT_OUT = {
    r"complex|j[)\]]|gh21610|gh21709": "complex numbers",
    r"test_wrap_radians": "the phase of complex numbers, by a private function of SciPy",
}
#: How many tests are left of SciPy 1.17's 407; a later version may have more.
LEAST = 59

PLUGIN = """
import functools, json, os, re

import fastloss

functions = os.environ["FUNCTIONS"].split()
left_out = json.loads(os.environ["LEFT_OUT"])
calls = dict.fromkeys(functions, 0)
passed, others = [], {}


def counted(name):
    function = getattr(fastloss, name)

    @functools.wraps(function)
    def call(*arguments, **options):
        calls[name] += 1
        return function(*arguments, **options)

    return call


def pytest_collection_modifyitems(config, items):
    for name in functions:
        for module in {item.module for item in items}:
            assert hasattr(module, name)
            setattr(module, name, counted(name))
    out = [item for item in items if any(re.search(p, item.name) for p in left_out)]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed and not hasattr(report, "wasxfail"):
        passed.append(report.nodeid)
    elif not report.passed or hasattr(report, "wasxfail"):
        others[report.nodeid] = f"{report.outcome} in {report.when}"


def pytest_sessionfinish():
    with open(os.environ["REPORT"], "w") as file:
        json.dump({"passed": passed, "others": others, "calls": calls}, file)
"""


@pytest.mark.skipif(find_spec(TESTS) is None, reason="this SciPy was installed without its tests")
def test_scipys_own_tests_pass(tmp_path):
    """Those of real numbers, in NumPy arrays: SciPy's other array libraries stay off."""
    (tmp_path / "in_their_place.py").write_text(PLUGIN)
    # Neither this project's settings nor those of a folder that SciPy happens to lie in.
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    report = tmp_path / "report.json"
    source = Path(fastloss.__file__).parents[1]
    search = [str(tmp_path), str(source), os.environ.get("PYTHONPATH", "")]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "in_their_place"]
        + ["-c", "pytest.ini", "--pyargs", TESTS],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "SCIPY_ARRAY_API"}
        | {
            "PYTHONPATH": os.pathsep.join(part for part in search if part),
            "PYTEST_ADDOPTS": "",
            "FUNCTIONS": " ".join(FUNCTIONS),
            "LEFT_OUT": json.dumps(list(LEFT_OUT)),
            "REPORT": str(report),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert report.is_file(), process.stdout + process.stderr
    found = json.loads(report.read_text())
    assert found["others"] == {}, process.stdout
    assert process.returncode == 0, process.stdout + process.stderr
    assert len(found["passed"]) >= LEAST
    assert min(found["calls"].values()) > 0


# ---- b) answers to random arguments ----------------------------------------------------------

AXES = [None, 0, 1, 2, -1, (0, 2), (1, 2), (2, 0, 1), ()]


def arguments(rng, dtype, special_values):
    """An array, and weights that broadcast with it."""
    a = (rng.standard_normal((3, 4, 5)) * rng.choice([0.1, 3.0, 50.0])).astype(dtype)
    b = rng.standard_normal(rng.choice([1, 4]) * 5).reshape(-1, 5).astype(dtype)
    b[rng.random(b.shape) < 0.2] = 0
    if special_values:
        for value in (np.inf, -np.inf, np.nan):
            a[rng.random(a.shape) < 0.05] = value
        b[rng.random(b.shape) < 0.05] = np.nan
    return a, b


def same(got, want, rtol, atol=0.0):
    assert type(got) is type(want)
    assert got.dtype == want.dtype and got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def check_logsumexp(a, axis, b, keepdims):
    """Logarithm and sign as SciPy has them, to 20 ulp of what each logarithm is made of."""
    got, sign = fastloss.logsumexp(a, axis, b, keepdims, True)
    want, want_sign = special.logsumexp(a, axis, b, keepdims, True)
    assert got.dtype == sign.dtype == want.dtype and got.shape == sign.shape == want.shape
    known = np.ones(want.shape, bool)
    if b is not None:
        # Documented: a weight of 0 drops its term.  SciPy gives NaN where that is not finite, and
        # the result isn't.
        dropped = ((b == 0) & ~np.isfinite(np.exp(a))).any(axis=axis, keepdims=keepdims)
        known = ~(dropped & np.isnan(want))
    np.testing.assert_array_equal(sign[known], want_sign[known])
    # Where terms of both signs cancel, SciPy's sum loses digits, too.
    weights = np.ones(1) if b is None else np.abs(b)
    terms = np.where(weights == 0, 0, weights * np.exp(a.astype(np.float64)))
    size = np.log(terms.sum(axis=axis, keepdims=keepdims))
    unit = 20 * np.finfo(a.dtype).eps
    finite = known & np.isfinite(want)
    error = np.abs(got[finite] - want[finite])
    assert (error <= unit * (np.abs(want) + 1 + np.exp(size - want))[finite]).all()
    np.testing.assert_array_equal(got[known & ~finite], want[known & ~finite])
    alone = fastloss.logsumexp(a, axis, b, keepdims)
    np.testing.assert_array_equal(alone, np.where(sign < 0, np.nan, got))
    # SciPy gives -inf, not NaN, where a negative sum underflows; 80 is the logarithm of no such.
    normal = known & (np.abs(want) < 80)
    scipys = special.logsumexp(a, axis, b, keepdims)
    np.testing.assert_array_equal(np.isnan(alone[normal]), np.isnan(scipys[normal]))


# What SciPy, and NumPy in this test, make of infinities and NaN.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("special_values", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", AXES)
def test_answers(axis, dtype, special_values):
    rng = np.random.default_rng(0)
    unit, least = np.finfo(dtype).eps, np.finfo(dtype).tiny
    for _ in range(20):
        a, b = arguments(rng, dtype, special_values)
        # SciPy's error is that of the differences in the exponents, which reach 400.
        same(fastloss.softmax(a, axis), special.softmax(a, axis), 400 * unit, least)
        want = special.log_softmax(a, axis)
        if special_values:
            # Documented: a +inf makes all of its sample NaN.
            hidden = np.isposinf(a).any(axis=axis, keepdims=True)
            want[np.broadcast_to(hidden, a.shape)] = np.nan
        same(fastloss.log_softmax(a, axis), want, 20 * unit, 20 * unit)
        for weights, keepdims in itertools.product((None, b, b[0]), (False, True)):
            check_logsumexp(a, axis, weights, keepdims)


@pytest.mark.parametrize("left", [2, 2.5, [2, 1], [2.5, 1.0], np.float32(2), np.int32(2), (True,)])
@pytest.mark.parametrize(
    "right", [1, 1.5, [1, 1], [1.5, 1.0], np.float32(2), np.ones(2, "f4"), np.ones(1, "i8")]
)
def test_types_of_results(left, right):
    same(fastloss.logsumexp(left, b=right), special.logsumexp(left, b=right), 1e-6)
    same(fastloss.logsumexp(right, b=left), special.logsumexp(right, b=left), 1e-6)
    same(fastloss.logsumexp(left), special.logsumexp(left), 1e-6)
    if not isinstance(left, tuple):  # whose booleans SciPy can't subtract
        same(fastloss.softmax(left), special.softmax(left), 1e-6)
        same(fastloss.log_softmax(left), special.log_softmax(left), 1e-6)
