"""Every function works on a small stack: 128 KiB as on musl, and OpenMP's threads on 64 KiB.

Each case is a process of its own, since what it guards against is a crash.

Layout: a) what is called, b) the small stack, c) OpenMP's threads on small stacks, d) no memory
for the scratch that lies on the heap instead.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from helpers import FLOATS, HALVES

# ---- a) what is called -----------------------------------------------------------------------

# Runs in the process; `calls` is a list of the calls to be made, for one element type.
PREPARE = """
import sys
import threading

import numpy as np

import fastloss
from helpers import dtype_of

dtype, stack, threads = dtype_of(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
fastloss.set_num_threads(threads)
# Small work would stay on the calling thread.
fastloss.special._threads.for_work = lambda elements: threads
rng = np.random.default_rng(0)
calls = []
"""

ELEMENTS = """
for count in (100, 140_000):
    x = rng.standard_normal(count).astype(dtype)
    p = rng.random(count).astype(dtype)
    for target in (rng.integers(0, 2, count), p.astype(np.float64)):
        weights = {"sample_weight": rng.random(count)}
        labels = {**weights, "ignore_index": -1}
        for reduction in ("mean", "none"):
            for name, arrays, options in [
                ("binary_cross_entropy", (p, target), {}),
                ("binary_cross_entropy", (p, target), weights),
                ("binary_cross_entropy_with_logits", (x, target), {}),
                ("binary_cross_entropy_with_logits", (x, target), {**labels, "pos_weight": 2.0}),
                ("sigmoid_focal_loss", (x, target), {}),
                ("sigmoid_focal_loss", (x, target), {**labels, "gamma": 1.5, "alpha": p}),
                ("kl_div", (-p, target), weights),
                ("kl_div", (-p, -p), {"log_target": True}),
            ]:
                options = {**options, "reduction": reduction}
                for suffix in ("", "_value_and_grad"):
                    function = getattr(fastloss, name + suffix)
                    calls.append(lambda f=function, a=arrays, o=options: f(*a, **o))
                back = getattr(fastloss, name + "_backward")
                upstream = 1.0 if reduction == "mean" else np.ones(count)
                calls.append(lambda f=back, u=upstream, a=arrays, o=options: f(u, *a, **o))
    for name in ("sigmoid", "log_sigmoid", "softplus"):
        calls.append(lambda f=getattr(fastloss, name), x=x: f(x))
"""

CLASSES = """
def call(function, *arrays, **options):
    calls.append(lambda: function(*arrays, **options))


def loss(name, *arrays, **options):
    # Forward, and with the gradient, written beside the logits and over them.
    call(getattr(fastloss, name), *arrays, **options)
    call(getattr(fastloss, name + "_value_and_grad"), *arrays, **options)
    if "linear" not in name:
        copy = arrays[0].copy()
        call(getattr(fastloss, name + "_value_and_grad"), copy, *arrays[1:], **options, out=copy)


for classes, samples in (10, 700), (100, 140), (1000, 70), (20_000, 3):
    for axis in (1, 0):
        shape = (samples, classes) if axis else (classes, samples)
        x = rng.standard_normal(shape).astype(dtype)
        t = rng.integers(0, classes, samples)
        p = rng.random(shape).astype(np.float32)
        weights = {"weight": rng.random(classes) + 0.5, "sample_weight": rng.random(samples)}
        huge = {"sample_weight": np.full(samples, 1e20)}
        changed = {"temperature": 0.7, "softcap": 5.0, "z_loss": 0.01}
        for options in ({}, weights, huge, changed, {**changed, **weights, "reduction": "none"}):
            options = {**options, "axis": axis}
            loss("cross_entropy", x, t, **options)
            loss("cross_entropy", x, t, label_smoothing=0.1, **options)
            loss("cross_entropy", x, p, **options)
            loss("cross_entropy", x, p.astype(np.float64), **options)
        for gamma in (0.0, 1.5, 2.0):
            loss("softmax_focal_loss", x, t, gamma=gamma, axis=axis)
        loss("nll_loss", x, t, axis=axis, **weights)
        for function in (fastloss.logsumexp, fastloss.softmax, fastloss.log_softmax):
            call(function, x, axis=axis)
        for other in (x * 2, p):
            call(fastloss.compare_logits, x, other, t, axis=axis, temperature=0.7)
            for direction in ("forward", "reverse"):
                loss("distillation_loss", x, other, direction=direction, axis=axis)
        for options in ({}, {"top_k": min(classes, 20), "temperature": 2.0}, {"top_k": classes}):
            call(fastloss.score_samples, x, t, axis=axis, **options)
        call(fastloss.brier_score, x, t, axis=axis)
        call(fastloss.calibration_error, x, t, axis=axis)
    rows = rng.standard_normal((samples, 8)).astype(dtype)
    layer = rng.standard_normal((classes, 8)).astype(dtype)
    for options in ({}, {**weights, **changed}, {"label_smoothing": 0.1}):
        loss("linear_cross_entropy", rows, layer, t, **options)
"""

RUN = """
done = []

def run():
    for call in calls:
        call()
    done.append(len(calls))

threading.stack_size(stack)
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(*done)
"""

FAMILIES = {"elements": ELEMENTS, "classes": CLASSES}


def check(family, dtype, stack, threads, **environment):
    code = PREPARE + FAMILIES[family] + RUN
    done = subprocess.run(
        [sys.executable, "-c", code, dtype, str(stack), str(threads)],
        cwd=os.path.dirname(__file__),
        # BLAS has threads, and stacks, of its own.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    assert int(done.stdout) > 0


# ---- b) the small stack ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_thread_with_128_kib(fl, family, dtype):
    level = fl._kernels.level
    check(family, dtype, 128 * 1024, 1, FASTLOSS_ISA=level)


# ---- c) OpenMP's threads on small stacks -----------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("family", FAMILIES)
def test_openmp_threads_with_64_kib(fl, family, dtype):
    level = fl._kernels.level
    check(family, dtype, 128 * 1024, 3, FASTLOSS_ISA=level, OMP_STACKSIZE="64k")


# ---- d) no memory ----------------------------------------------------------------------------

# Takes what the address space has left in pieces smaller than the scratch of a call.
NO_MEMORY = """
import ctypes
import resource

import numpy as np

import fastloss

x, out = np.zeros(200_000, np.float32), np.full(200_000, 7, np.float32)
function = fastloss.binary_cross_entropy_with_logits_value_and_grad
function(x, x)
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
with open("/proc/self/status") as status:
    size = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
while malloc(ctypes.c_size_t(20_000)):
    pass
try:
    function(x, x, out=out)
except MemoryError:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (out == 7).all()
    function(x, x, out=out)
    assert (out == np.float32(0.5 / x.size)).all()
    print("MemoryError")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits and reads its memory as Linux does")
def test_no_memory_for_scratch(fl):
    done = subprocess.run(
        [sys.executable, "-c", NO_MEMORY],
        env={**os.environ, "FASTLOSS_ISA": fl._kernels.level},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "MemoryError\n"
