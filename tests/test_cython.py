"""fastloss.cython: rows from Cython, from Numba and through pointers to C functions.

A package of its own is built against the fastloss that the tests import, as a user would build it:
against the installed one, unless PYTHONPATH names another. It gives the same numbers as mpmath at
every instruction-set level.

Layout: a) the functions by their addresses, b) a package that cimports them, c) Numba.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import mpmath
import numpy as np
import pytest

import fastloss
import oracle
from fastloss import _kernels

LIMIT = 4.0  # ulp
NAMES = ("logsumexp_row", "softmax_row", "cross_entropy_row", "cross_entropy_grad_row")
NAMES += ("bce_with_logits_block",)
CTYPES = {"float32": ctypes.c_float, "float64": ctypes.c_double}
#: What each function takes beside its row: a size, an index, a number, or another array.
ARGUMENTS = {
    "logsumexp_row": "n",
    "softmax_row": "na",
    "cross_entropy_row": "nn",
    "cross_entropy_grad_row": "nnda",
    "bce_with_logits_block": "andaa",
}


# ---- a) the functions by their addresses -----------------------------------------------------

capsule_name = ctypes.pythonapi.PyCapsule_GetName
capsule_name.restype, capsule_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype = ctypes.c_void_p
capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def function(module, name: str, dtype: str):
    """A C function of a module's table, to be called with arrays."""
    kinds = {"n": ctypes.c_ssize_t, "d": ctypes.c_double, "a": ctypes.c_void_p}
    capsule = module.__pyx_capi__[f"{name}_{dtype}"]
    result = None if name == "softmax_row" else ctypes.c_double
    made = ctypes.CFUNCTYPE(result, ctypes.c_void_p, *(kinds[k] for k in ARGUMENTS[name]))
    call = made(capsule_pointer(capsule, capsule_name(capsule)))

    def with_arrays(*arguments):
        return call(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))

    return with_arrays


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


def rows(dtype: str) -> list[tuple[np.ndarray, int]]:
    """Rows of several lengths and scales, each with a target: likely, unlikely, any."""
    rng = np.random.default_rng(0)
    made = []
    for classes in (1, 2, 3, 15, 16, 17, 63, 64, 65, 130, 1000):
        for scale in (0.1, 3.0, 30.0):
            x = (rng.standard_normal(classes) * scale).astype(dtype)
            for target in {int(x.argmax()), int(x.argmin()), int(rng.integers(classes))}:
                made.append((x, target))
    far = np.array([5000.0, 4999.0, 4990.0], dtype)  # the maximum is subtracted
    return [*made, (far, 0), (far, 2), (-far, 1), (np.array([700.0, -900.0], dtype), 1)]


def worst(got, want, dtype: str) -> float:
    """Largest error in ulp, of what is a normal number in the type."""
    exact = oracle.as_exact(want)
    size = np.abs(exact.high)
    normal = (size > np.finfo(dtype).tiny) & (size < np.finfo(dtype).max)
    error = oracle.ulp_error(np.asarray(got).astype(dtype), exact)
    assert np.isfinite(got).all()
    return float(np.max(error, initial=0.0, where=normal))


def exact_logsumexp(x):
    with mpmath.workprec(oracle.PRECISION):
        m = max(mpmath.mpf(float(v)) for v in x)
        return m + mpmath.log(mpmath.fsum(mpmath.exp(mpmath.mpf(float(v)) - m) for v in x))


def test_rows_are_exact(fl, dtype):
    single = fl._kernels.single
    logsumexp, softmax, loss, grad = (function(single, name, dtype) for name in NAMES[:4])
    for x, target in rows(dtype):
        n = len(x)
        p, _, _ = oracle.exact_softmax_parts(x)
        want, slope = oracle.exact_cross_entropy(x, target)
        assert worst([loss(x, n, target)], [want], dtype) <= LIMIT
        assert worst([logsumexp(x, n)], [exact_logsumexp(x)], dtype) <= LIMIT
        out = np.full(n, 7, dtype)
        softmax(x, n, out)
        assert worst(out, p, dtype) <= LIMIT
        out = np.full(n, 7, dtype)
        assert worst([grad(x, n, target, 1.0, out)], [want], dtype) <= LIMIT
        assert worst(out, slope, dtype) <= LIMIT


def test_what_is_written_may_be_the_row(fl, dtype):
    single = fl._kernels.single
    for x, target in rows(dtype):
        for name, arguments in (
            ("softmax_row", ()),
            ("cross_entropy_grad_row", (target, 0.5)),
        ):
            call = function(single, name, dtype)
            out, mine = np.empty_like(x), x.copy()
            call(x, len(x), *arguments, out)
            call(mine, len(x), *arguments, mine)
            np.testing.assert_array_equal(mine, out)


def test_scale(fl, dtype):
    """The gradient alone is scaled, by tiny numbers too."""
    grad = function(fl._kernels.single, "cross_entropy_grad_row", dtype)
    x = np.linspace(-2, 2, 20).astype(dtype)
    plain, scaled = np.empty_like(x), np.empty_like(x)
    loss = grad(x, 20, 3, 1.0, plain)
    for scale in (2.5, -1.0, 1e-12, 1e-30):
        assert grad(x, 20, 3, scale, scaled) == loss
        np.testing.assert_allclose(scaled, plain * scale, rtol=4 * np.finfo(dtype).eps)
    grad(x, 20, 3, 0.0, scaled)
    assert (scaled == 0).all()


def test_edges(fl, dtype):
    single = fl._kernels.single
    logsumexp, softmax, loss, grad = (function(single, name, dtype) for name in NAMES[:4])
    inf, nan = np.inf, np.nan
    row = np.array([0.0, -inf, 1.0], dtype)
    assert loss(row, 3, 1) == inf
    out = np.empty(3, dtype)
    assert grad(row, 3, 0, 1.0, out) == pytest.approx(np.log1p(np.e)) and out[1] == 0
    assert logsumexp(row, 0) == -inf
    assert logsumexp(np.array([-inf, -inf], dtype), 2) == -inf
    assert logsumexp(np.array([1.0, inf], dtype), 2) == inf
    assert np.isnan(logsumexp(np.array([nan, inf], dtype), 2))
    for bad in ([nan, 0.0, 1.0], [inf, 0.0, 1.0], [-inf, -inf, -inf]):
        x = np.array(bad, dtype)
        softmax(x, 3, out)
        assert np.isnan(out).all() and np.isnan(loss(x, 3, 0))
    for target in (-1, 3, 2**40, -(2**40)):
        assert np.isnan(loss(row, 3, target))
        out[:] = 0
        assert np.isnan(grad(row, 3, target, 1.0, out)) and np.isnan(out).all()


def test_block_of_binary_losses(fl, dtype):
    block = function(fl._kernels.single, "bce_with_logits_block", dtype)
    x = np.linspace(-30, 30, 300).astype(dtype)
    t = (np.arange(300) % 2).astype(dtype)
    losses, grad = np.empty_like(x), np.empty_like(x)
    total = block(x, t, 300, 1.0, losses, grad)
    with mpmath.workprec(oracle.PRECISION):
        want = [oracle.exact_softplus(-v if u else v) for v, u in zip(x, t, strict=True)]
        slope = [-oracle.exact_sigmoid(-v) if u else oracle.exact_sigmoid(v)
                 for v, u in zip(x, t, strict=True)]  # fmt: skip
        exact_total = mpmath.fsum(want)
    assert worst(losses, want, dtype) <= LIMIT
    assert worst(grad, slope, dtype) <= LIMIT
    assert worst([total], [exact_total], dtype) <= LIMIT
    # Without places for them, and over the logits.
    assert block(x, t, 300, 1.0, None, None) == total
    mine = x.copy()
    assert block(mine, t, 300, 2.0, None, mine) == total
    np.testing.assert_array_equal(mine, 2 * grad)
    soft = np.linspace(0, 1, 300).astype(dtype)
    want = oracle.binary_cross_entropy_with_logits(x, soft).losses.sum()
    assert block(x, soft, 300, 1.0, None, None) == pytest.approx(want, rel=1e-6)
    assert block(x, t, 0, 1.0, None, None) == 0


# ---- b) a package that cimports them ---------------------------------------------------------

SOURCE = """
from fastloss.cython cimport (
    bce_with_logits_block, cross_entropy_grad_row, cross_entropy_row, logsumexp_row, real,
    softmax_row,
)

def losses(const real[:, ::1] x, const Py_ssize_t[::1] target, double[::1] out):
    cdef Py_ssize_t i
    with nogil:
        for i in range(x.shape[0]):
            out[i] = cross_entropy_row(&x[i, 0], x.shape[1], target[i])

def gradients(const real[:, ::1] x, const Py_ssize_t[::1] target, real[:, ::1] out):
    cdef Py_ssize_t i
    cdef double total = 0
    with nogil:
        for i in range(x.shape[0]):
            total += cross_entropy_grad_row(&x[i, 0], x.shape[1], target[i], 0.5, &out[i, 0])
    return total

def probabilities(const real[:, ::1] x, real[:, ::1] out):
    cdef Py_ssize_t i
    cdef double total = 0
    for i in range(x.shape[0]):
        softmax_row(&x[i, 0], x.shape[1], &out[i, 0])
        total += logsumexp_row(&x[i, 0], x.shape[1])
    return total

def binary(const real[::1] x, const real[::1] t, real[::1] grad):
    return bce_with_logits_block(&x[0], &t[0], x.shape[0], 1.0, <real *>NULL, &grad[0])
"""

SETUP = """
from setuptools import Extension, setup
from Cython.Build import cythonize

setup(
    name="rows_of_mine",
    version="1",
    packages=[],
    ext_modules=cythonize([Extension("rows_of_mine", ["rows_of_mine.pyx"])], language_level=3),
)
"""

CALL = """
import json, sys
import numpy as np
import fastloss
import rows_of_mine as mine

found = {"level": fastloss._kernels.level, "fastloss": fastloss.__file__}
for dtype in ("float32", "float64"):
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((40, 23)) * 4).astype(dtype)
    t = rng.integers(0, 23, 40)
    losses, out, p = np.empty(40), np.empty_like(x), np.empty_like(x)
    mine.losses(x, t, losses)
    total = mine.gradients(x, t, out)
    sums = mine.probabilities(x, p)
    flat, slope = x.ravel(), np.empty(x.size, dtype)
    binary = mine.binary(flat, (flat > 1).astype(dtype), slope)
    found[dtype] = [losses.tolist(), out.tolist(), total, p.tolist(), sums, binary, slope.tolist()]
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with a package that was built against the installed fastloss by its users' tools."""
    for module in ("Cython", "setuptools"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if os.name == "posix" and shutil.which(compiler) is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("external")
    (folder / "rows_of_mine.pyx").write_text(SOURCE)
    (folder / "setup.py").write_text(SETUP)
    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=folder, env={**os.environ, "CFLAGS": "-O1"}, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.parametrize("level", _kernels.LEVELS)
def test_a_package_of_ones_own(package, level):
    if level not in _kernels.supported:
        pytest.skip(f"no {level} here")
    called = subprocess.run(
        [sys.executable, "-c", CALL], cwd=package, capture_output=True, text=True, timeout=120,
        check=False, env={**os.environ, "FASTLOSS_ISA": level},
    )  # fmt: skip
    assert called.returncode == 0, called.stderr
    found = json.loads(called.stdout)
    assert found.pop("level") == level
    assert found.pop("fastloss") == fastloss.__file__
    for dtype, (losses, gradients, total, p, sums, binary, slope) in found.items():
        rng = np.random.default_rng(5)
        x = (rng.standard_normal((40, 23)) * 4).astype(dtype)
        t = rng.integers(0, 23, 40)
        exact = [oracle.exact_cross_entropy(row, int(k)) for row, k in zip(x, t, strict=True)]
        assert worst(losses, [loss for loss, _ in exact], dtype) <= LIMIT
        assert worst(2 * np.array(gradients), [grad for _, grad in exact], dtype) <= LIMIT
        tolerance = 4 * float(np.finfo(dtype).eps) + 1e-13  # the oracle has its own
        np.testing.assert_allclose(p, oracle.softmax(x), rtol=tolerance)
        assert total == pytest.approx(sum(losses), rel=1e-12)
        assert sums == pytest.approx(oracle.logsumexp(x).sum(), rel=tolerance)
        flat = x.ravel()
        reference = oracle.binary_cross_entropy_with_logits(flat, flat > 1)
        assert binary == pytest.approx(reference.losses.sum(), rel=tolerance)
        np.testing.assert_allclose(slope, reference.gradients, rtol=tolerance)


def test_the_declarations_are_installed():
    """Both halves of what a `cimport` needs lie beside each other."""
    spec = importlib.util.find_spec("fastloss.cython")
    assert spec is not None and spec.origin is not None
    declared = Path(spec.origin).with_name("cython.pxd").read_text()
    module = importlib.import_module("fastloss.cython")
    for name in NAMES:
        assert f" {name}(" in declared
        for dtype in CTYPES:
            assert f" {name}_{dtype}(" in declared
            assert f"{name}_{dtype}" in module.__pyx_capi__


def test_the_modules_functions_are_those_of_the_level(dtype):
    """What other modules find passes on to the chosen level."""
    module = importlib.import_module("fastloss.cython")
    for x, target in rows(dtype)[::7]:
        values = []
        for of in (module, _kernels.single):
            out = np.empty_like(x)
            loss = function(of, "cross_entropy_grad_row", dtype)(x, len(x), target, 1.0, out)
            values.append((loss, *out))
        np.testing.assert_array_equal(*values)


# ---- c) Numba --------------------------------------------------------------------------------


def test_numba():
    numba = pytest.importorskip("numba")
    from numba.extending import get_cython_function_address

    address = get_cython_function_address("fastloss.cython", "cross_entropy_row_float64")
    kind = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t)
    cross_entropy_row = kind(address)

    @numba.njit
    def mean_loss(x, target):
        total = 0.0
        for i in range(x.shape[0]):
            total += cross_entropy_row(x[i].ctypes, x.shape[1], target[i])
        return total / x.shape[0]

    rng = np.random.default_rng(1)
    x, target = rng.standard_normal((50, 9)) * 3, rng.integers(0, 9, 50)
    want = oracle.cross_entropy(x, target).loss()
    assert mean_loss(x, target) == pytest.approx(want, rel=1e-14)
