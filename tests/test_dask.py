"""fastloss.dask: the answers of fastloss on NumPy arrays, however the arrays are cut.

Layout: a) chunks, options and shapes, on dask's own threads, b) laziness and the graph, c) wrong
arguments, d) a cluster of processes, one of which is killed, e) scores, comparisons and metrics of
saved logits, f) functions made from specifications.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dask.array")
ml_dtypes = pytest.importorskip("ml_dtypes")

import dask
import dask.array as da

import fastloss
import fastloss.dask
from fastloss import StreamingMetrics
from fastloss.dask._evaluation import _merged

REDUCTIONS = ("mean", "sum", "none")


def both(name, x, t, chunked_x, chunked_t, **options):
    """Hold loss and value_and_grad of the chunked arrays to those of the NumPy arrays."""
    lazy = getattr(fastloss.dask, name)(chunked_x, chunked_t, **options)
    lazy_loss, lazy_grad = getattr(fastloss.dask, f"{name}_value_and_grad")(
        chunked_x, chunked_t, **options
    )
    loss, fused_loss, grad = dask.compute(lazy, lazy_loss, lazy_grad)
    plain = {
        key: getattr(value, "compute", lambda value=value: value)()
        for key, value in options.items()
    }
    want_loss, want_grad = getattr(fastloss, f"{name}_value_and_grad")(x, t, **plain)
    for promised, got, want in (
        (lazy, loss, want_loss),
        (lazy_loss, fused_loss, want_loss),
        (lazy_grad, grad, want_grad),
    ):
        want = np.asarray(want)
        assert promised.dtype == got.dtype == want.dtype
        assert len(promised.shape) == want.ndim
        assert all(m == n or np.isnan(m) for m, n in zip(promised.shape, want.shape, strict=True))
        assert np.shape(got) == want.shape
        tolerance = 4 * float(ml_dtypes.finfo(want.dtype).eps)
        np.testing.assert_allclose(
            np.asarray(got, np.float64), want.astype(np.float64), rtol=tolerance, atol=1e-30
        )


@pytest.fixture
def rng():
    return np.random.default_rng(12)


# ---- a) chunks, options and shapes -----------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("chunks", [60, 7, ((1, 0, 9, 50),)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight": np.linspace(0, 2, 5), "ignore_index": 3},
        {"label_smoothing": 0.1, "sample_weight": np.linspace(0.5, 1, 60)},
        {
            "weight": da.linspace(1, 2, 5, chunks=2),
            "sample_weight": da.linspace(0, 1, 60, chunks=11),
        },
        {"sample_weight": [0.5]},
        {"sample_weight": da.full(1, 0.5, chunks=((0, 1, 0),))},
    ],
    ids=["plain", "weight", "smoothing", "dask-weights", "one-weight", "one-weight-in-three"],
)
def test_cross_entropy_however_it_is_cut(rng, reduction, chunks, options):
    x = rng.standard_normal((60, 5)).astype(np.float32)
    t = rng.integers(0, 5, 60)
    t[[4, 31]] = options.get("ignore_index", -100)
    chunked = da.from_array(x, chunks=(*(chunks if isinstance(chunks, tuple) else (chunks,)), 5))
    both(
        "cross_entropy", x, t, chunked, da.from_array(t, chunks=13), reduction=reduction, **options
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nll_loss(rng, reduction):
    x = fastloss.log_softmax(rng.standard_normal((40, 6)), axis=1)
    t = rng.integers(0, 6, 40).astype(np.uint8)
    both(
        "nll_loss", x, t, da.from_array(x, chunks=(9, 6)), t,
        reduction=reduction, weight=np.arange(6.0), ignore_index=2, sample_weight=rng.random(40),
    )  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight": np.linspace(0, 1, 30)[:, None], "pos_weight": da.linspace(1, 3, 8, chunks=3)},
        {"pos_weight": 2.5},
    ],
    ids=["plain", "weights", "number"],
)
def test_binary_cross_entropy_with_logits(rng, reduction, options):
    x, t = rng.standard_normal((30, 8)), rng.random((30, 8)).astype(np.float32)
    both(
        "binary_cross_entropy_with_logits", x, t,
        da.from_array(x, chunks=(7, 3)), da.from_array(t, chunks=(10, 8)),
        reduction=reduction, **options,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_class_probabilities(rng, reduction, weighted):
    x = rng.standard_normal((20, 4, 3)).astype(np.float32)
    p = rng.dirichlet(np.ones(4), (20, 3)).transpose(0, 2, 1)
    options = {"sample_weight": rng.random((20, 1)), "weight": np.arange(4)} if weighted else {}
    both(
        "cross_entropy", x, p, da.from_array(x, chunks=(6, 4, 2)),
        da.from_array(p, chunks=(20, 4, 1)), reduction=reduction, label_smoothing=0.2, **options,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("shape", "axis"), [((5,), None), ((9, 5, 4, 3), None), ((9, 4, 5), -1)])
def test_shapes(rng, reduction, shape, axis):
    x = rng.standard_normal(shape)
    t = np.asarray(rng.integers(0, 5, [n for n in shape if n != 5]))
    chunked = da.from_array(x, chunks=tuple(5 if n == 5 else 2 for n in shape))
    both(
        "cross_entropy", x, t, chunked, t, reduction=reduction, axis=axis,
        sample_weight=rng.random(t.shape[-1:]),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_sample(name, reduction):
    x = np.empty((0, 3), np.float32)
    t = np.empty(0, np.int64) if name == "cross_entropy" else x
    both(name, x, t, da.from_array(x), da.from_array(t), reduction=reduction)


def test_all_samples_ignored(rng):
    x, t = rng.standard_normal((8, 3)), np.full(8, -100)
    both("cross_entropy", x, t, da.from_array(x, chunks=(3, 3)), t)


def test_one_number():
    both("binary_cross_entropy_with_logits", 0.3, 1, da.from_array(np.array(0.3)), 1)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.int32])
def test_other_types(rng, dtype):
    x, t = (rng.standard_normal((12, 3)) * 4).astype(dtype), rng.integers(0, 3, 12)
    both("cross_entropy", x, t, da.from_array(x, chunks=(5, 3)), t)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_unknown_chunk_sizes(rng, reduction):
    """A boolean index leaves dask without the sizes; the chunks still correspond."""
    x, t = rng.standard_normal((30, 4)), rng.integers(0, 4, 30)
    keep = rng.random(30) < 0.5
    lazy_keep = da.from_array(keep, chunks=8)
    chunked_x = da.from_array(x, chunks=(8, 4))[lazy_keep]
    chunked_t = da.from_array(t, chunks=8)[lazy_keep]
    assert np.isnan(chunked_x.shape[0])
    both("cross_entropy", x[keep], t[keep], chunked_x, chunked_t, reduction=reduction)
    b = (x > 0) * 1
    both(
        "binary_cross_entropy_with_logits", x[keep], b[keep],
        chunked_x, da.from_array(b, chunks=(8, 4))[lazy_keep], reduction=reduction,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_unknown_chunk_sizes_and_ignored_elements(rng, reduction):
    """The denominator is counted where the chunks are."""
    x, t = rng.standard_normal((30, 4)), rng.integers(-1, 2, (30, 4))
    keep = rng.random(30) < 0.5
    lazy_keep = da.from_array(keep, chunks=8)
    for name in ("binary_cross_entropy_with_logits", "sigmoid_focal_loss"):
        both(
            name, x[keep], t[keep], da.from_array(x, chunks=(8, 4))[lazy_keep],
            da.from_array(t, chunks=(8, 4))[lazy_keep],
            reduction=reduction, ignore_index=-1, sample_weight=rng.random(4),
        )  # fmt: skip


@pytest.mark.parametrize("rows", [12, 0])
def test_batchmean_divides_by_all_rows(rng, rows):
    """However both axes are cut."""
    x = fastloss.log_softmax(rng.standard_normal((rows, 6)))
    t = rng.random((rows, 6))
    both("kl_div", x, t, da.from_array(x, chunks=(5, 4)), t, reduction="batchmean")


def test_batchmean_of_unknown_rows():
    x = da.from_array(np.zeros((6, 2)), chunks=(3, 2))
    x = x[da.from_array(np.arange(6) > 1, chunks=3)]
    with pytest.raises(ValueError, match=r"log_probs\.compute_chunk_sizes"):
        fastloss.dask.kl_div(x, x, reduction="batchmean")


@pytest.mark.parametrize("alpha", [0.3, None, -1, [0.1, 0.5, 0.9], da.linspace(0, 1, 3, chunks=2)])
def test_alpha(rng, alpha):
    x, t = rng.standard_normal((9, 3)), rng.random((9, 3))
    both("sigmoid_focal_loss", x, t, da.from_array(x, chunks=(4, 2)), t, alpha=alpha)


def test_numpy_logits(rng):
    x, t = rng.standard_normal((10, 3)), rng.integers(0, 3, 10)
    both("cross_entropy", x, t, x, t)


# ---- b) laziness and the graph ---------------------------------------------------------------


def test_nothing_runs_before_compute_and_each_chunk_once(tmp_path):
    """Loss and gradient come from one pass: each chunk of logits is made, and scored, once."""
    log = tmp_path / "log"

    def chunk(block_id):
        with log.open("a") as file:
            file.write(f"{block_id[0]}\n")
        return np.full((4, 3), float(block_id[0]))

    x = da.map_blocks(chunk, chunks=((4,) * 5, (3,)), dtype=float, meta=np.empty((0, 0)))
    lazy = fastloss.dask.cross_entropy_value_and_grad(x, np.zeros(20, int))
    assert not log.exists()
    loss, grad = dask.compute(*lazy)
    assert sorted(log.read_text().split()) == list("01234")
    np.testing.assert_allclose(loss, np.log(3))
    np.testing.assert_allclose(grad[:, 0], -2 / 3 / 20)


def test_totals_merge_as_a_tree():
    """No task takes the totals of all chunks at once."""
    x = da.zeros((4096, 2), chunks=(4, 2))
    loss = fastloss.dask.cross_entropy(x, da.zeros(4096, dtype=int, chunks=4))
    graph = loss.dask
    widest = max(len(graph.dependencies.get(key, ())) for key in graph.dependencies)
    inputs = [
        len(task.dependencies) for task in dict(graph).values() if hasattr(task, "dependencies")
    ]
    assert widest < 10  # layers
    assert max(inputs) <= 64
    np.testing.assert_allclose(loss.compute(), np.log(2))


def test_same_graph_same_name(rng):
    """Equal arguments give equal keys, so that dask shares the work."""
    x, t = da.from_array(rng.standard_normal((8, 3)), chunks=(4, 3)), np.arange(8) % 3
    assert fastloss.dask.cross_entropy(x, t).name == fastloss.dask.cross_entropy(x, t).name
    other = fastloss.dask.cross_entropy(x, t, label_smoothing=0.5)
    assert other.name != fastloss.dask.cross_entropy(x, t).name


def test_graph_pickles(rng):
    x, t = rng.standard_normal((8, 3)), np.arange(8) % 3
    lazy = fastloss.dask.cross_entropy(da.from_array(x, chunks=(4, 3)), t)
    np.testing.assert_allclose(
        pickle.loads(pickle.dumps(lazy)).compute(), fastloss.cross_entropy(x, t), rtol=1e-15
    )


def test_chunks_take_one_thread_each(monkeypatch):
    """Dask uses the processors already; a number that somebody chose is left as it is."""
    from fastloss import _threads

    seen = []
    number = _threads.for_work

    def spy(elements):
        seen.append(number(1 << 20))
        return number(elements)

    monkeypatch.setattr(_threads, "for_work", spy)
    monkeypatch.setattr(_threads, "_from_environment", False)
    monkeypatch.setattr(_threads, "_chosen", None)
    before = fastloss.get_num_threads()
    lazy = fastloss.dask.cross_entropy(da.zeros((8, 2), chunks=(2, 2)), np.zeros(8, int))
    seen.clear()
    lazy.compute(scheduler="synchronous")
    assert seen == [1] * 4
    assert fastloss.get_num_threads() == before
    monkeypatch.setattr(_threads, "_chosen", 3)
    seen.clear()
    lazy.compute(scheduler="threads")
    assert seen == [3] * 4


# ---- c) wrong arguments ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("suffix", ["", "_value_and_grad"])
def test_chunked_class_axis(name, suffix):
    x, t = da.zeros((6, 4), chunks=(3, 2)), np.zeros(6, int)
    with pytest.raises(
        ValueError, match=r"one chunk along the class axis 1, got chunks \(2, 2\).*rechunk"
    ):
        getattr(fastloss.dask, name + suffix)(x, t)


def test_chunked_class_axis_of_probabilities():
    x = da.zeros((6, 4), chunks=(3, 4))
    with pytest.raises(
        ValueError, match=r"target must have one chunk.*target\.rechunk\(\{1: -1\}\)"
    ):
        fastloss.dask.cross_entropy(x, x.rechunk((3, 2)))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"t": np.zeros(5, int)}, ValueError, r"\(5,\) does not fit logits of shape \(6, 4\)"),
        ({"t": np.zeros((6, 3))}, ValueError, r"\(6, 3\) does not fit"),
        ({"t": np.zeros(6)}, TypeError, "target is float64: class indices must be integers"),
        ({"t": np.zeros((6, 4), bool)}, TypeError, "got dtype bool"),
        ({"x": da.zeros((6, 4), dtype=complex)}, TypeError, "complex"),
        ({"weight": np.ones(3)}, ValueError, r"shape \(4,\), got \(3,\)"),
        ({"weight": ["a"] * 4}, TypeError, "weight"),
        ({"sample_weight": np.ones((6, 6))}, ValueError, r"broadcast to the samples"),
        ({"sample_weight": np.ones(4)}, ValueError, r"shape \(6,\), got \(4,\)"),
        ({"reduction": "average"}, ValueError, "'average'"),
        ({"label_smoothing": 1.5}, ValueError, "1.5"),
        ({"ignore_index": 0.5}, TypeError, "0.5"),
        ({"axis": 2}, ValueError, "axis 2 is out of range"),
        ({"t": np.zeros((6, 4)), "ignore_index": 1}, ValueError, "ignore_index=1"),
    ],
)
def test_wrong_arguments_raise_at_once(change, error, text):
    arguments = {"x": da.zeros((6, 4), chunks=(2, 4)), "t": np.zeros(6, int)} | change
    x, t = arguments.pop("x"), arguments.pop("t")
    with pytest.raises(error, match=text):
        fastloss.dask.cross_entropy_value_and_grad(x, t, **arguments)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"t": np.zeros(4)}, ValueError, r"shape of logits, \(6, 4\), got \(4,\)"),
        ({"t": np.full((6, 4), "a")}, TypeError, "target"),
        ({"weight": np.ones((2, 6, 4))}, ValueError, r"weight must broadcast to logits"),
        ({"pos_weight": np.ones(6)}, ValueError, r"shape \(6, 4\), got \(6,\)"),
        ({"pos_weight": 1j}, TypeError, "pos_weight"),
        ({"reduction": "batchmean"}, ValueError, "batchmean"),
    ],
)
def test_wrong_arguments_of_bce_raise_at_once(change, error, text):
    x = da.zeros((6, 4), chunks=(2, 4))
    arguments = {"t": np.zeros((6, 4))} | change
    with pytest.raises(error, match=text):
        fastloss.dask.binary_cross_entropy_with_logits(x, arguments.pop("t"), **arguments)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("wrong", [-1, 4])
def test_wrong_index_names_its_chunk(reduction, wrong):
    t = np.zeros(6, int)
    t[5] = wrong
    x = da.zeros((6, 4), chunks=(2, 4))
    text = rf": target holds class {wrong} at position 1, outside \[0, 4\)"
    chunk = r"in chunk \(2, 0\) of the logits"
    with pytest.raises(IndexError, match=chunk + text):
        fastloss.dask.cross_entropy(x, t, reduction=reduction).compute()
    # The denominator of a mean is taken from the target alone.
    chunk = r"in chunk \(2,\) of the target" if reduction == "mean" else chunk
    with pytest.raises(IndexError, match=chunk + text):
        fastloss.dask.cross_entropy_value_and_grad(x, t, reduction=reduction)[1].compute()


def test_wrong_number_names_its_chunk():
    probs = np.full((6, 4), 0.5)
    probs[5, 1] = 1.5
    x = da.from_array(probs, chunks=(2, 4))
    with pytest.raises(
        ValueError, match=r"in chunk \(2, 0\) of the probs: probs must lie in \[0, 1\]"
    ):
        fastloss.dask.binary_cross_entropy(x, np.ones((6, 4))).compute()


# ---- d) a cluster ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "30s"}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def source(block_id, *, rows, classes, log=None, pause=0.0):
    """A chunk of logits made on the worker: the same whenever and wherever it is made."""
    if log is not None:
        Path(log, f"{block_id[0]}-{time.time_ns()}-{os.getpid()}").touch()
        time.sleep(pause)
    rng = np.random.default_rng(block_id[0])
    return rng.standard_normal((rows, classes)).astype(np.float32)


def test_on_a_cluster(client, rng):
    x, t = rng.standard_normal((3000, 11)).astype(np.float32), rng.integers(0, 11, 3000)
    chunked_x, chunked_t = da.from_array(x, chunks=(450, 11)), da.from_array(t, chunks=700)
    for reduction in REDUCTIONS:
        both(
            "cross_entropy", x, t, chunked_x, chunked_t, reduction=reduction,
            weight=np.linspace(1, 2, 11), label_smoothing=0.1,
        )  # fmt: skip
    b = rng.random((3000, 11))
    both("binary_cross_entropy_with_logits", x, b, chunked_x, da.from_array(b, chunks=(999, 5)))


def test_a_killed_worker_loses_nothing(client, tmp_path):
    chunks, rows, classes = 48, 500, 10
    x = da.map_blocks(
        source, rows=rows, classes=classes, log=str(tmp_path), pause=0.1,
        chunks=((rows,) * chunks, (classes,)), dtype=np.float32, meta=np.empty((0, 0), np.float32),
    )  # fmt: skip
    t = np.arange(chunks * rows) % classes
    weight = np.linspace(1, 2, classes)
    before = client.run(os.getpid)
    lazy = fastloss.dask.cross_entropy_value_and_grad(x, t, weight=weight)
    loss, grad = client.compute(list(lazy))
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < chunks // 2:  # in the middle of the job
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert loss.status == "pending"
    victim = next(iter(before.values()))
    os.kill(victim, signal.SIGKILL)
    loss, grad = loss.result(timeout=60), grad.result(timeout=60)

    made = [path.name.split("-") for path in tmp_path.iterdir()]
    assert str(victim) in {pid for _, _, pid in made}, "the killed worker had no part in the job"
    assert len(made) > chunks, "what the killed worker held had to be made again"
    whole = np.concatenate([source((i,), rows=rows, classes=classes) for i in range(chunks)])
    want_loss, want_grad = fastloss.cross_entropy_value_and_grad(whole, t, weight=weight)
    np.testing.assert_allclose(loss, want_loss, rtol=4e-7)
    np.testing.assert_allclose(grad, want_grad, rtol=4e-7)


# ---- e) saved logits -------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [60, 7, ((1, 0, 9, 50),)])
@pytest.mark.parametrize("top_k", [0, 3])
def test_scores_however_they_are_cut(rng, chunks, top_k):
    x, t = rng.standard_normal((60, 5)).astype(np.float32), rng.integers(0, 5, 60)
    t[7] = -100
    want = fastloss.score_samples(x, t, top_k=top_k, temperature=1.5)
    rows = chunks if isinstance(chunks, int) else chunks[0]
    found = fastloss.dask.score_samples(
        da.from_array(x, chunks=(rows, 5)), da.from_array(t, chunks=13), top_k=top_k,
        temperature=1.5,
    )  # fmt: skip
    assert type(found) is type(want)
    for name, lazy, values in zip(want._fields, found, want, strict=True):
        if values is None:
            assert lazy is None, name
            continue
        assert lazy.dtype == values.dtype, name
        assert lazy.shape == values.shape, name
        np.testing.assert_array_equal(lazy.compute(), values, err_msg=name)


@pytest.mark.parametrize(("shape", "axis"), [((5,), None), ((9, 5, 4, 3), None), ((9, 4, 5), -1)])
def test_comparison_of_any_shape(rng, shape, axis):
    x, y = rng.standard_normal((2, *shape))
    axis_of = fastloss._arrays.class_axis(axis, len(shape), "logits")
    t = rng.integers(0, 5, shape[:axis_of] + shape[axis_of + 1 :])
    chunks = tuple(n if i == axis_of else 2 for i, n in enumerate(shape))
    lazy_x = da.from_array(x, chunks=chunks)
    lazy_y = da.from_array(y.astype(np.float16), chunks={axis_of: -1})
    for target in (None, t):
        want = fastloss.compare_logits(x, y.astype(np.float16), target, axis=axis)
        found = fastloss.dask.compare_logits(lazy_x, lazy_y, target, axis=axis)
        for name, lazy, values in zip(want._fields, found, want, strict=True):
            if values is None:
                assert lazy is None, name
                continue
            assert lazy.dtype == values.dtype, name
            np.testing.assert_allclose(lazy.compute(), values, rtol=1e-13, err_msg=name)


def test_one_pass_for_all_scores_of_a_chunk(tmp_path):
    chunks, rows, classes = 6, 20, 5
    x = da.map_blocks(
        source, rows=rows, classes=classes, log=str(tmp_path),
        chunks=((rows,) * chunks, (classes,)), dtype=np.float32, meta=np.empty((0, 0), np.float32),
    )  # fmt: skip
    scores = fastloss.dask.score_samples(x, np.zeros(chunks * rows, int))
    found = fastloss.dask.compare_logits(x, x + 1)
    metrics = fastloss.dask.streaming_metrics(x, np.zeros(chunks * rows, int))
    assert not list(tmp_path.iterdir())
    dask.compute(scores.log_prob, scores.rank, found.kl, found.predicted)
    assert len(list(tmp_path.iterdir())) == chunks
    metrics.compute()
    assert len(list(tmp_path.iterdir())) == 2 * chunks


def grouped(x, t, group, weight=None, **options):
    """Metrics of each group by one call of NumPy's functions each."""
    found = {}
    for name in np.unique(group).tolist():
        part = np.broadcast_to(group, t.shape) == name
        part_of = None if weight is None else np.broadcast_to(weight, t.shape)[part]
        rows = np.moveaxis(x, 1, -1)[part]
        found[name] = StreamingMetrics(**options).update(rows, t[part], part_of)
    return found


@pytest.mark.parametrize("chunks", [60, 7, 1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("names", [[3, 1, 2], ["prose", "code", "law"], [0.5, -1.0, 2.0]])
def test_metrics_by_group_to_the_last_bit(rng, names, weighted, chunks):
    x, t = rng.standard_normal((60, 5)).astype(np.float32), rng.integers(0, 5, 60)
    t[::7] = -100
    group = rng.choice(names, 60)
    weight = rng.uniform(0, 2, 60) if weighted else None
    found = fastloss.dask.streaming_metrics(
        da.from_array(x, chunks=(chunks, 5)), da.from_array(t, chunks=11), group,
        sample_weight=weight, top_k=2,
    ).compute()  # fmt: skip
    want = grouped(x, t, group, weight, top_k=2)
    assert list(found) == sorted(names)
    assert {name: one.compute() for name, one in found.items()} == {
        name: one.compute() for name, one in want.items()
    }
    whole = fastloss.dask.streaming_metrics(
        da.from_array(x, chunks=(chunks, 5)), t, sample_weight=weight, top_k=2
    ).compute()
    assert whole.compute() == StreamingMetrics(top_k=2).update(x, t, weight).compute()
    # Dask may use what it has merged again.
    assert whole.samples == sum(one.samples for one in found.values())


def test_groups_broadcast_to_the_samples(rng):
    """Tokens (B, V, T), and a document for each row of them."""
    x, t = rng.standard_normal((6, 5, 8)), rng.integers(0, 5, (6, 8))
    document = np.array([[4], [4], [2], [2], [2], [7]])
    found = fastloss.dask.streaming_metrics(
        da.from_array(x, chunks=(2, 5, 3)), t, document
    ).compute()
    want = grouped(x, t, document)
    assert list(found) == [2, 4, 7]
    for name, metrics in found.items():
        np.testing.assert_allclose(metrics.compute(), want[name].compute(), rtol=1e-13)


def test_metrics_of_no_sample():
    lazy = da.from_array(np.empty((0, 3)), chunks=(5, 3))
    assert fastloss.dask.streaming_metrics(lazy, np.empty(0, int)).compute().samples == 0
    assert fastloss.dask.streaming_metrics(lazy, np.empty(0, int), np.empty(0)).compute() == {}


def test_distillation_of_integers_and_of_two_types(rng):
    x, teacher = rng.standard_normal((20, 4)).astype(np.float32), rng.integers(-3, 3, (20, 4))
    lazy = da.from_array(x, chunks=(7, 4))
    loss = fastloss.dask.distillation_loss(lazy, da.from_array(teacher, chunks=(3, 4)))
    assert loss.dtype == np.float64
    np.testing.assert_allclose(loss.compute(), fastloss.distillation_loss(x, teacher), rtol=1e-14)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda f, x: f.score_samples(x, np.zeros(3, int)), ValueError, "target of shape"),
        (lambda f, x: f.score_samples(x, np.zeros(4)), TypeError, "class indices"),
        (
            lambda f, x: f.score_samples(x.rechunk((4, 1)), np.zeros(4, int)),
            ValueError,
            "one chunk",
        ),
        (lambda f, x: f.score_samples(x, np.zeros(4, int), top_k=9), ValueError, "top_k"),
        (lambda f, x: f.compare_logits(x, np.zeros((4, 2))), ValueError, "other must have"),
        (lambda f, x: f.compare_logits(x, x, temperature=0), ValueError, "temperature"),
        (lambda f, x: f.distillation_loss(x, np.zeros((3, 3))), ValueError, "teacher_logits"),
        (lambda f, x: f.distillation_loss(x, x, direction="up"), ValueError, "direction"),
        (lambda f, x: f.streaming_metrics(x, np.zeros(4, int), [1, 2]), ValueError, "group must"),
        (lambda f, x: f.streaming_metrics(x, np.zeros(4, int), top_k=0), ValueError, "top_k"),
    ],
)
def test_wrong_arguments_of_scores_raise_at_once(call, error, text):
    with pytest.raises(error, match=text):
        call(fastloss.dask, da.zeros((4, 3), chunks=(2, 3)))


def test_wrong_index_of_scores_names_its_chunk():
    x, t = da.zeros((4, 3), chunks=(2, 3)), np.array([0, 0, 0, 3])
    for lazy in (
        fastloss.dask.score_samples(x, t).log_prob,
        fastloss.dask.compare_logits(x, x, t).kl,
        fastloss.dask.streaming_metrics(x, t),
    ):
        with pytest.raises(IndexError, match=r"in chunk \(1, 0\) of the logits: .* class 3"):
            lazy.compute()


def test_scores_on_a_cluster(client, rng):
    x, t = rng.standard_normal((3000, 11)).astype(np.float32), rng.integers(0, 11, 3000)
    lazy, group = da.from_array(x, chunks=(450, 11)), np.arange(3000) % 4
    scores = fastloss.dask.score_samples(lazy, t)
    found = fastloss.dask.compare_logits(lazy, da.from_array(x.astype(np.float16), chunks=500), t)
    log_prob, kl, metrics = dask.compute(
        scores.log_prob, found.kl, fastloss.dask.streaming_metrics(lazy, t, group)
    )
    np.testing.assert_array_equal(log_prob, fastloss.score_samples(x, t).log_prob)
    np.testing.assert_array_equal(kl, fastloss.compare_logits(x, x.astype(np.float16), t).kl)
    want = grouped(x, t, group)
    assert {n: one.compute() for n, one in metrics.items()} == {
        n: one.compute() for n, one in want.items()
    }


def test_merging_metrics_leaves_the_chunks_as_they_are():
    """Dask may keep the result of a task and use it again."""
    x, t = np.eye(3), np.arange(3)
    parts = [{"a": StreamingMetrics().update(x, t)}, {"a": StreamingMetrics().update(x[:2], t[:2])}]
    for _ in range(2):
        assert _merged(parts)["a"].samples == 5
    assert [part["a"].samples for part in parts] == [3, 2]


# ---- f) functions made from specifications ---------------------------------------------------


def test_wrong_calls_name_the_function_and_the_argument():
    x, t = da.zeros((4, 3), chunks=(2, 3)), np.zeros(4, int)
    with pytest.raises(TypeError, match=r"cross_entropy\(\) missing .* 'target'"):
        fastloss.dask.cross_entropy(x)
    with pytest.raises(TypeError, match=r"kl_div_value_and_grad\(\) too many positional"):
        fastloss.dask.kl_div_value_and_grad(x, x, "sum")
    with pytest.raises(TypeError, match=r"cross_entropy\(\) has no argument 'dim': .* 'axis'"):
        fastloss.dask.cross_entropy(x, t, dim=1)
    with pytest.raises(TypeError, match=r"got an unexpected keyword argument 'out'"):
        fastloss.dask.cross_entropy_value_and_grad(x, t, out=None)


def test_teacher_of_integers_is_a_teacher():
    """Integers are logits there, of float64, not class indices."""
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    teacher = np.arange(18, dtype=np.int16).reshape(6, 3) % 4
    both("distillation_loss", x, teacher, da.from_array(x, chunks=(4, 3)), teacher)
    weight = np.arange(6.0)
    both(
        "distillation_loss", x, teacher, da.from_array(x, chunks=(4, 3)), teacher,
        sample_weight=da.from_array(weight, chunks=2),
    )  # fmt: skip


def test_functions_pickle_by_their_public_name():
    for name in fastloss.dask.__all__:
        function = getattr(fastloss.dask, name)
        assert pickle.loads(pickle.dumps(function)) is function
