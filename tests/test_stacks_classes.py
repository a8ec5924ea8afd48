"""Every function over classes works on a small stack: 128 KiB as on musl, OpenMP's on 64 KiB.

Each case is a process of its own, since what it guards against is a crash. test_stacks.py does the
same for the element-wise functions.

Layout: a) what is called, b) the tests.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from helpers import FLOATS, HALVES

# ---- a) what is called -----------------------------------------------------------------------

# Runs in the process, for one element type.
SCRIPT = """
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
        for options in ({}, {"top_k": min(classes, 20), "temperature": 2.0}, {"top_k": classes}):
            call(fastloss.score_samples, x, t, axis=axis, **options)
        call(fastloss.brier_score, x, t, axis=axis)
        call(fastloss.calibration_error, x, t, axis=axis)
    rows = rng.standard_normal((samples, 8)).astype(dtype)
    layer = rng.standard_normal((classes, 8)).astype(dtype)
    for options in ({}, {**weights, **changed}, {"label_smoothing": 0.1}):
        loss("linear_cross_entropy", rows, layer, t, **options)

done = []


def run():
    for one in calls:
        one()
    done.append(len(calls))


threading.stack_size(stack)
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(*done)
"""


def check(level, dtype, stack, threads, **environment):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, dtype, str(stack), str(threads)],
        cwd=os.path.dirname(__file__),
        env={
            **os.environ,
            # BLAS has threads, and stacks, of its own.
            "OPENBLAS_NUM_THREADS": "1",
            "FASTLOSS_ISA": level,
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    assert int(done.stdout) > 0


# ---- b) the tests ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
def test_a_thread_with_128_kib(fl, dtype):
    check(fl._kernels.level, dtype, 128 * 1024, 1)


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
def test_openmp_threads_with_64_kib(fl, dtype):
    check(fl._kernels.level, dtype, 128 * 1024, 3, OMP_STACKSIZE="64k")
