"""The same bits, however the work is spread: over OpenMP threads, or over Python's own."""

from __future__ import annotations

import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastloss
from helpers import dtype_of, logits

THREADS = (1, 2, 3, 7)


@pytest.fixture(autouse=True)
def _keep_thread_count():
    yield
    fastloss.set_num_threads(before)


before = fastloss.get_num_threads()


def calls(dtype):
    """Calls of every threaded kernel, each with enough work for several threads."""
    rng = np.random.default_rng(0)

    def problem(shape, axis=1):
        x = logits(rng, shape, dtype)
        samples = shape[:axis] + shape[axis + 1 :]
        return x, rng.integers(0, shape[axis], samples)

    few, few_target = problem((60_000, 10))
    rows, rows_target = problem((3_000, 200))
    long, long_target = problem((40, 20_000))
    image, image_target = problem((4, 7, 120, 130))
    soft = rng.random(rows.shape).astype(dtype_of(dtype))
    flat, unit = few.ravel(), rng.random(few.size).astype(dtype_of(dtype))
    weight = rng.uniform(0.5, 2.0, 10)

    def of(name, *arguments, **options):
        def call():
            loss, grad = getattr(fastloss, f"{name}_value_and_grad")(*arguments, **options)
            alone = getattr(fastloss, name)(*arguments, **options)
            return [np.asarray(loss), grad, np.asarray(alone)]

        return call

    return {
        "few classes": of("cross_entropy", few, few_target),
        "weights": of("cross_entropy", few, few_target, weight=weight, ignore_index=3),
        "sample weights": of(
            "cross_entropy", few, few_target, sample_weight=rng.random(few_target.shape)
        ),
        "none": of("cross_entropy", few, few_target, reduction="none"),
        "rows": of("cross_entropy", rows, rows_target, reduction="sum"),
        "smoothing": of("cross_entropy", rows, rows_target, label_smoothing=0.1),
        "probabilities": of("cross_entropy", rows, soft),
        "long rows": of("cross_entropy", long, long_target),
        "image": of("cross_entropy", image, image_target),
        "nll": of("nll_loss", image, image_target),
        "bce": of("binary_cross_entropy", unit, unit[::-1].copy()),
        "bce of yes and no": of("binary_cross_entropy", unit, (flat > 0).astype(flat.dtype)),
        "bce with logits, yes and no": of("binary_cross_entropy_with_logits", flat, unit > 0.5),
        "bce with logits": of("binary_cross_entropy_with_logits", flat, unit),
        "bce with pos_weight": of(
            "binary_cross_entropy_with_logits", few, unit.reshape(few.shape), pos_weight=weight
        ),
        "kl": of("kl_div", flat, unit),
        "focal": of("sigmoid_focal_loss", flat, unit),
        "softmax": lambda: [fastloss.softmax(rows, axis=1), fastloss.log_softmax(image, axis=1)],
        "logsumexp": lambda: [fastloss.logsumexp(long, axis=1)],
        "scores": lambda: list(fastloss.score_samples(rows, rows_target, top_k=7)),
        "scores of few classes": lambda: list(fastloss.score_samples(few, few_target, top_k=2)),
        "scores of long rows": lambda: list(fastloss.score_samples(long, long_target, top_k=20)),
        "scores of an image": lambda: list(fastloss.score_samples(image, image_target, top_k=3)),
        "scores at a temperature": lambda: list(
            fastloss.score_samples(rows, rows_target, temperature=2.0)
        ),
        "brier": lambda: [
            fastloss.brier_score(x, t, reduction="none")
            for x, t in ((few, few_target), (rows, rows_target), (long, long_target))
        ],
    }


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_same_bits_for_any_number_of_threads(dtype):
    for name, call in calls(dtype).items():
        fastloss.set_num_threads(THREADS[0])
        want = call()
        for threads in THREADS[1:]:
            fastloss.set_num_threads(threads)
            for _ in range(2):  # dynamic schedules differ from run to run
                for got, one in zip(call(), want, strict=True):
                    np.testing.assert_array_equal(got, one, err_msg=f"{name}, {threads} threads")


@pytest.mark.parametrize("kind", ["index", "smoothed", "probabilities", "focal"])
@pytest.mark.parametrize("factor", [1e-36, 1e-20, 1e-13, 1e-11, 1e-9, 1.0, 1e9, 1e11, 1e30])
@pytest.mark.parametrize("classes", [10, 100, 9000])
def test_same_bits_for_a_sample_alone(fl, classes, factor, kind):
    """Whatever lies beside it: other scales, maxima far off, and weights of another size."""
    rng = np.random.default_rng(classes)
    n = 70 if classes <= 100 else 6
    x = rng.standard_normal((n, classes)) * rng.choice([0.01, 0.1, 1.0, 10.0], (n, 1))
    x += rng.choice([0.0, 30.0, -30.0], (n, 1))
    x = x.astype(np.float32)
    target = rng.integers(0, classes, n)
    options, name = {"reduction": "none"}, "cross_entropy"
    if kind == "smoothed":
        options["label_smoothing"] = 0.1
    elif kind == "probabilities":
        target = rng.random(x.shape).astype(np.float32)
        target[::3] *= np.float32(1e-20)
    elif kind == "focal":
        name = "softmax_focal_loss"
    weights = np.full(n, factor)
    weights[::2] = 1.0
    evaluate = getattr(fl, f"{name}_value_and_grad")
    loss, gradient = evaluate(x, target, sample_weight=weights, **options)
    for turned in (False, True):
        if turned:
            # Class axis first, and there a part of the samples: one alone would be a row.
            options["axis"] = 0
            target = np.ascontiguousarray(target.T)
            loss, gradient = evaluate(
                np.ascontiguousarray(x.T), target, sample_weight=weights, **options
            )
        for i in range(n):
            part = [i, i] if turned else [i]
            rows = np.ascontiguousarray(x[part].T) if turned else x[part]
            t = np.ascontiguousarray(target[..., part]) if turned else target[part]
            one, g = evaluate(rows, t, sample_weight=weights[part], **options)
            assert one[0] == loss[i]
            want = gradient[:, part] if turned else gradient[part]
            np.testing.assert_array_equal(g, want)


ELEMENTWISE = {
    "binary_cross_entropy_with_logits": ({}, {"pos_weight": 3.0}, {"weight": 0.7}),
    "binary_cross_entropy": ({}, {"weight": 0.7}),
    "kl_div": ({}, {"sample_weight": 0.7}, {"log_target": True}),
    "sigmoid_focal_loss": ({}, {"gamma": 1.5, "alpha": None}, {"sample_weight": 0.7}),
}


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_same_bits_for_an_element_beside_others(fl, name, dtype, reduction):
    """A neighbour that a float does not do for, or with a soft target, or none at all."""
    rng = np.random.default_rng(0)
    n = 1300
    x = rng.standard_normal(n) * rng.choice([0.1, 1.0, 8.0], n)
    target = np.where(rng.random(n) < 0.5, rng.integers(0, 2, n), rng.random(n))
    unusual = [(np.nan, 0.5), (300.0, 0.3), (-300.0, 1e-7), (1e-7, 1e-7)]
    if name == "binary_cross_entropy":
        x = 1 / (1 + np.exp(-x))
        unusual = [(1e-7, 0.3), (0.0, 1.0), (1.0, 1e-7), (6e-8, 0.0)]
    evaluate = getattr(fl, f"{name}_value_and_grad")
    for options in ELEMENTWISE[name]:
        t = np.log(target + 1e-3) if "log_target" in options else target
        x, t = x.astype(dtype), t.astype(dtype)
        loss, gradient = evaluate(x, t, reduction=reduction, **options)
        for odd in unusual:
            others, goals = x.copy(), t.copy()
            others[::100], goals[::100] = odd
            kept = np.arange(n) % 100 != 0
            got, slopes = evaluate(others, goals, reduction=reduction, **options)
            np.testing.assert_array_equal(slopes[kept], gradient[kept])
            if reduction == "none":
                np.testing.assert_array_equal(got[kept], loss[kept])
        for part in (slice(3, 4), slice(5, 75), slice(500, 1200)):
            got, slopes = evaluate(x[part], t[part], reduction=reduction, **options)
            np.testing.assert_array_equal(slopes, gradient[part])
            if reduction == "none":
                np.testing.assert_array_equal(got, loss[part])


def test_same_bits_on_every_call():
    fastloss.set_num_threads(2)
    for name, call in calls("float32").items():
        first = call()
        for got, one in zip(call(), first, strict=True):
            np.testing.assert_array_equal(got, one, err_msg=name)


@pytest.mark.parametrize("threads", [1, 3])
def test_concurrent_calls(threads):
    """Many Python threads at once, each with its own calls in its own order."""
    fastloss.set_num_threads(threads)
    table = calls("float32")
    want = {name: call() for name, call in table.items()}
    names = sorted(table)
    barrier = threading.Barrier(4)

    def work(seed):
        order = np.random.default_rng(seed).permutation(names)
        barrier.wait(timeout=60)
        for name in order:
            for got, one in zip(table[str(name)](), want[str(name)], strict=True):
                np.testing.assert_array_equal(got, one, err_msg=str(name))
        return len(order)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [len(names)] * 4


def test_the_gil_is_released():
    """Another Python thread goes on while a kernel runs.

    With a switch interval of hours no thread is ever asked to give the GIL up: the other one,
    once woken, can only run while a kernel has given it up by itself.
    """
    fastloss.set_num_threads(1)
    x, target = np.zeros((1, 10_000_000), np.float32), np.zeros(1, np.int64)
    interval = sys.getswitchinterval()

    def other_thread_ran_during_a_call():
        wake, ran = threading.Event(), []

        def other():
            wake.wait()
            ran.append(True)

        thread = threading.Thread(target=other)
        thread.start()
        sys.setswitchinterval(10_000.0)
        try:
            wake.set()
            fastloss.cross_entropy(x, target)
            return bool(ran)
        finally:
            sys.setswitchinterval(interval)
            thread.join()

    # A busy machine may not find a core for the other thread within one short call.
    assert any(other_thread_ran_during_a_call() for _ in range(50))


def test_set_num_threads(capsys):
    for n in (1, 2, 5):
        fastloss.set_num_threads(n)
        assert fastloss.get_num_threads() == n
        fastloss.show_config()
        assert re.search(rf"^threads +{n}$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2", None])
def test_set_num_threads_refuses(bad):
    with pytest.raises((TypeError, ValueError), match="threads"):
        fastloss.set_num_threads(bad)
    assert fastloss.get_num_threads() == before
