"""What a call over classes takes: no more threads than there is work, and memory or a MemoryError.

Each test is a process of its own: threads stay, and limits of memory are the process's.

Layout: a) threads, b) memory.
"""

from __future__ import annotations

import pytest

from test_workers import needs_linux, needs_openmp, run

# ---- a) threads ------------------------------------------------------------------------------


@needs_linux
@needs_openmp
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_no_more_threads_than_samples(tmp_path, samples):
    """A sample is the least that a thread can do: more threads, and their scratch, are in vain."""
    run(
        tmp_path,
        f"""
        x, t = np.zeros(({samples}, 100_000), np.float32), np.zeros({samples}, int)
        p = np.full_like(x, 1e-5)
        fastloss.set_num_threads(4)
        before = threads()
        for work in (
            lambda: fastloss.cross_entropy(x, t),
            lambda: fastloss.cross_entropy_value_and_grad(x, t),
            lambda: fastloss.cross_entropy(x, t, temperature=2.0),
            lambda: fastloss.cross_entropy(x, p),
            lambda: fastloss.softmax_focal_loss(x, t),
            lambda: fastloss.nll_loss(x, t),
            lambda: fastloss.softmax(x, axis=1),
            lambda: fastloss.logsumexp(x, axis=1),
            lambda: fastloss.score_samples(x, t),
            lambda: fastloss.compare_logits(x, p, t),
            lambda: fastloss.distillation_loss_value_and_grad(x, p),
        ):
            work()
            # The pool keeps the threads of the largest call.
            assert threads() - before <= {samples} - 1
        fastloss.cross_entropy(np.zeros((8, 100_000), np.float32), np.zeros(8, int))
        assert threads() - before == 3  # as many as were asked for, where there is work
        """,
    )


@needs_linux
@needs_openmp
def test_many_threads_for_little_work(tmp_path):
    """Small samples are dealt out by the tens of thousands of elements: two items, two threads."""
    run(
        tmp_path,
        """
        fastloss.set_num_threads(4)
        before = threads()
        x = np.zeros((13_000, 10), np.float32)
        loss, grad = fastloss.cross_entropy_value_and_grad(x, np.zeros(13_000, int))
        assert threads() - before == 1
        assert abs(loss - np.log(10)) < 1e-6
        """,
    )


# ---- b) memory -------------------------------------------------------------------------------

MEMORY = """\
import resource

def with_room(nbytes, work):
    # What `work` returns, or None for a MemoryError, where the process may grow by nbytes.
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + nbytes, resource.RLIM_INFINITY))
    try:
        return work()
    except MemoryError:
        return None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""

# Large blocks are mappings, which a limit meets every time, and there is no arena of another thread
# with room left in it.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}

CALLS = {
    "long rows": "value_and_grad(x, t, out=out)",
    "probabilities": "value_and_grad(x, p, out=out)",
    "temperature": "value_and_grad(x, t, temperature=2.0, softcap=9.0, out=out)",
    "heavy": "value_and_grad(x, t, sample_weight=[1.0, 1e20, 1.0, 1.0], out=out)",
    "focal": "fastloss.softmax_focal_loss_value_and_grad(x, t, out=out)",
}


@needs_linux
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CALLS)
def test_failed_allocation(tmp_path, name, threads, dtype):
    """MemoryError, `out` as it was, and the next call is right; with each room a little larger."""
    out = run(
        tmp_path,
        f"""
        fastloss.set_num_threads({threads})
        value_and_grad = fastloss.cross_entropy_value_and_grad
        call()  # the threads are there from now on
        x = np.random.default_rng(0).standard_normal((4, 200_000)).astype({dtype!r})
        t, p = np.arange(4), np.full(x.shape, 5e-6, np.float32)
        out = np.full_like(x, 7)
        work = lambda: {CALLS[name]}
        answers, failed = [], 0
        for room in range(0, 24 << 20, 768 << 10):
            out[...] = 7
            answer = with_room(room, work)
            if answer is None:
                failed += 1
                assert (out == 7).all(), room
            else:
                answers.append((answer[0], out.copy()))
        out[...] = 7
        loss, grad = work()
        for one, other in answers:
            assert one == loss and (other == grad).all()
        print(failed, len(answers))
        """,
        MEMORY,
        **MALLOC,
    )
    failed, fine = map(int, out.split())
    assert failed
    assert fine


@needs_linux
def test_failed_allocation_of_results(tmp_path):
    """Functions that make their own results: a MemoryError as well, and nothing is leaked."""
    run(
        tmp_path,
        """
        x, t = np.zeros((4, 200_000)), np.arange(4)
        for work in (
            lambda: fastloss.cross_entropy_value_and_grad(x, t),
            lambda: fastloss.softmax(x, axis=1),
            lambda: fastloss.log_softmax(x, axis=1),
            lambda: fastloss.nll_loss_value_and_grad(x, t),
        ):
            assert with_room(1 << 20, work) is None
            want = work()
            before = int(open("/proc/self/statm").read().split()[0])
            for _ in range(50):
                assert with_room(1 << 20, work) is None
            assert int(open("/proc/self/statm").read().split()[0]) - before < 2000  # pages
        """,
        MEMORY,
        **MALLOC,
        OMP_NUM_THREADS="1",
    )
