"""StreamingLoss: a stream of batches gives what one call over all of them gives.

Layout: a) agreement with one call, b) order, merging and pickling, c) counts, d) perplexity, e)
edge cases and errors.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import pickle
import random
from fractions import Fraction

import numpy as np
import pytest

import fastloss
from fastloss import StreamingLoss

RNG = np.random.default_rng(7)
SAMPLES, CLASSES = 2000, 12
LOGITS = (RNG.standard_normal((SAMPLES, CLASSES)) * 4).astype(np.float32)
TARGET = RNG.integers(0, CLASSES, SAMPLES)
TARGET[::9] = -100
UNIT = RNG.random((SAMPLES, CLASSES)).astype(np.float32)
WEIGHT = RNG.uniform(0.1, 3.0, CLASSES).astype(np.float32)

# criterion, input, target
CASES = {
    "cross-entropy": (fastloss.CrossEntropyLoss(), LOGITS, TARGET),
    "cross-entropy, options": (
        fastloss.CrossEntropyLoss(weight=WEIGHT, ignore_index=3, label_smoothing=0.2),
        LOGITS,
        np.abs(TARGET) % CLASSES,
    ),
    "softmax options": (
        fastloss.CrossEntropyLoss(temperature=2.0, softcap=20.0, z_loss=1e-3),
        LOGITS,
        TARGET,
    ),
    "softmax focal": (fastloss.SoftmaxFocalLoss(alpha=WEIGHT), LOGITS, TARGET),
    "sigmoid focal": (fastloss.SigmoidFocalLoss(), LOGITS, UNIT),
    "probabilities": (fastloss.CrossEntropyLoss(), LOGITS, UNIT),
    "sum": (fastloss.CrossEntropyLoss(reduction="sum"), LOGITS, TARGET),
    "nll": (fastloss.NLLLoss(weight=WEIGHT), LOGITS, TARGET),
    "bce": (fastloss.BCELoss(), UNIT, UNIT[::-1]),
    "bce with logits": (fastloss.BCEWithLogitsLoss(pos_weight=WEIGHT), LOGITS, UNIT),
    "distillation": (fastloss.DistillationLoss(temperature=2.0), LOGITS, UNIT * 8),
    "kl, batchmean": (fastloss.KLDivLoss(reduction="batchmean"), LOGITS, UNIT),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def uneven_batches(x, t, sizes=(1, 700, 3, 64, 0, 1000, 231, 1)):
    for stop, size in zip(itertools.accumulate(sizes), sizes, strict=True):
        yield x[stop - size : stop], t[stop - size : stop]


def streamed(criterion, batches) -> StreamingLoss:
    loss = StreamingLoss(criterion)
    for x, t in batches:
        loss.update(x, t)
    return loss


# ---- a) agreement with one call --------------------------------------------------------------


def test_agrees_with_one_call(case):
    criterion, x, t = case
    loss = streamed(criterion, uneven_batches(x, t))
    # The criterion's own answer is rounded to float32.
    assert loss.compute() == pytest.approx(float(criterion(x, t)), rel=2**-23)


def test_within_an_ulp_of_one_call_for_each_batch(case):
    criterion, x, t = case
    batches = list(uneven_batches(x, t))
    whole = streamed(criterion, [(x, t)])
    parts = streamed(criterion, batches)
    for name in ("sum", "weight"):
        one, many = getattr(whole, name), getattr(parts, name)
        assert abs(one - many) <= len(batches) * math.ulp(one)


def test_the_mean_is_no_mean_of_means():
    criterion = fastloss.CrossEntropyLoss()
    target = np.array([0, -100, -100, -100, 1])
    logits = LOGITS[:5]
    loss = streamed(criterion, [(logits[:4], target[:4]), (logits[4:], target[4:])])
    kept = LOGITS[[0, 4]]
    assert loss.compute() == pytest.approx(float(criterion(kept, np.array([0, 1]))), rel=2**-23)
    assert loss.perplexity == math.exp(loss.mean)


# ---- b) order, merging and pickling ----------------------------------------------------------


def test_any_order_of_updates_and_merges_gives_the_same_bits(case):
    criterion, x, t = case
    batches = [(x[i : i + 20], t[i : i + 20]) for i in range(0, SAMPLES, 20)]
    whole = streamed(criterion, batches)
    for seed in range(5):
        rng = random.Random(seed)
        shuffled = rng.sample(batches, len(batches))
        cuts = sorted(rng.sample(range(len(batches)), 6))
        workers = [
            streamed(criterion, shuffled[a:b])
            for a, b in itertools.pairwise([0, *cuts, len(batches)])
        ]
        while len(workers) > 1:  # as a tree, in any order
            one = workers.pop(rng.randrange(len(workers)))
            workers[rng.randrange(len(workers))].merge(one)
        assert state(workers[0]) == state(whole)
        assert workers[0].compute() == whole.compute()


def summed(values, reduction="sum") -> StreamingLoss:
    """A stream whose batches have these losses: -log_probs, one sample each."""
    loss = StreamingLoss(fastloss.NLLLoss(reduction=reduction))
    for value in values:
        loss.update([[-float(value)]], [0])
    return loss


def state(loss: StreamingLoss) -> bytes:
    """All that an accumulator holds, as bytes."""
    return pickle.dumps(loss)


HARD = [1e16, 1.0, 1e-9, 3.7e5, 1e16, 1e-300, 2.0**-60, -1e16, 5e-324, 1e308, -1e308] * 20


def test_sums_are_exact():
    values = random.Random(0).sample(HARD, len(HARD))
    assert summed(values).compute() == float(sum(map(Fraction, values)))
    assert sum(values) != summed(values).compute()
    mean = sum(map(Fraction, values)) / len(values)
    assert summed(values, "mean").compute() == float(mean)


def test_the_state_does_not_depend_on_the_order():
    whole = summed(HARD)
    for seed in range(5):
        rng = random.Random(seed)
        shuffled = rng.sample(HARD, len(HARD))
        cut = rng.randrange(len(HARD))
        first, second = summed(shuffled[:cut]), summed(shuffled[cut:])
        one, two = first, second
        assert state(one.merge(two)) == state(whole)


def test_sums_beyond_the_largest_number():
    assert summed([1e308, 1e308, -1e308, -1e308, 3.0]).compute() == 3.0
    assert summed([1e308] * 3).compute() == math.inf
    assert summed([-1e308] * 3).compute() == -math.inf
    assert summed([1e308] * 3, "mean").compute() == 1e308


@pytest.mark.parametrize(
    ("values", "total"),
    [
        ([1.0, math.inf, -3.0], math.inf),
        ([-math.inf, 2.0], -math.inf),
        ([math.inf, 1.0, -math.inf], math.nan),
        ([math.inf, math.nan], math.nan),
        ([math.nan, 1e308, 1e308], math.nan),
    ],
)
def test_infinities_and_nan_in_any_order(values, total):
    for order in itertools.permutations(values):
        for cut in range(len(order) + 1):
            loss = summed(order[:cut]).merge(summed(order[cut:]))
            np.testing.assert_equal(loss.compute(), total)


def test_pickles_with_all_that_it_has_seen(case):
    criterion, x, t = case
    loss = streamed(criterion, uneven_batches(x, t))
    again = pickle.loads(pickle.dumps(loss))
    assert (again.sum, again.weight, again.samples, again.batches) == (
        loss.sum,
        loss.weight,
        loss.samples,
        loss.batches,
    )
    assert (
        again.merge(loss).compute() == (2 if criterion.reduction == "sum" else 1) * loss.compute()
    )


def _work(bounds):
    start, stop = bounds
    return StreamingLoss(fastloss.CrossEntropyLoss()).update(LOGITS[start:stop], TARGET[start:stop])


def test_workers_in_other_processes():
    parts = [(0, 500), (500, 600), (600, 2000)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        loss = StreamingLoss(fastloss.CrossEntropyLoss())
        for part in pool.map_async(_work, parts).get(timeout=120):
            loss.merge(part)
    assert loss.batches == 3
    assert (
        loss.compute()
        == streamed(loss.criterion, [(LOGITS[a:b], TARGET[a:b]) for a, b in parts]).compute()
    )


# ---- c) counts -------------------------------------------------------------------------------


def test_counts():
    loss = StreamingLoss(fastloss.CrossEntropyLoss(weight=WEIGHT))
    loss.update(LOGITS, TARGET)
    counted = TARGET[TARGET >= 0]
    assert (loss.samples, loss.batches) == (SAMPLES, 1)
    assert loss.weight == pytest.approx(WEIGHT[counted].sum(dtype=np.float64), rel=1e-12)
    assert StreamingLoss(fastloss.CrossEntropyLoss()).update(LOGITS, TARGET).weight == counted.size
    assert StreamingLoss(fastloss.CrossEntropyLoss()).update(LOGITS, UNIT).samples == SAMPLES
    assert StreamingLoss(fastloss.CrossEntropyLoss()).update(LOGITS[0], TARGET[1]).samples == 1
    binary = StreamingLoss(fastloss.BCEWithLogitsLoss()).update(LOGITS, UNIT)
    assert binary.samples == binary.weight == LOGITS.size
    segments = np.zeros((2, 5, 4, 3), np.float32)
    maps = StreamingLoss(fastloss.CrossEntropyLoss()).update(segments, np.zeros((2, 4, 3), int))
    assert maps.samples == 24
    assert maps.mean == pytest.approx(math.log(5))


def test_axis_and_sample_weight():
    """Classes last, weights for each token: what one call over all tokens gives."""
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((6, 7, 11))
    target, weight = rng.integers(0, 11, (6, 7)), rng.uniform(0, 2, (6, 7))
    criterion = fastloss.CrossEntropyLoss(axis=-1)
    loss = StreamingLoss(criterion)
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        loss.update(logits[part], target[part], weight[part])
    assert (loss.samples, loss.batches) == (42, 3)
    assert loss.weight == pytest.approx(weight.sum(), rel=1e-14)
    whole = fastloss.cross_entropy(logits, target, sample_weight=weight, axis=-1)
    assert loss.compute() == pytest.approx(float(whole), rel=1e-14)
    assert StreamingLoss(criterion).update(logits, rng.random((6, 7, 11))).samples == 42


def test_ignored_elements_do_not_count():
    target = np.array([[1, 0, -1], [-1, 1, 1]])
    loss = StreamingLoss(fastloss.BCEWithLogitsLoss(ignore_index=-1)).update(LOGITS[:2, :3], target)
    assert (loss.samples, loss.weight) == (6, 4.0)
    weights = np.array([[1.0, 2.0, 4.0]])
    assert loss.reset().update(LOGITS[:2, :3], target, weights).weight == 3.0 + 6.0


def test_reset_forgets():
    loss = StreamingLoss(fastloss.CrossEntropyLoss()).update(LOGITS, TARGET)
    loss.reset()
    assert (loss.sum, loss.weight, loss.samples, loss.batches) == (0.0, 0.0, 0, 0)
    loss.update(LOGITS[:3], TARGET[1:4])
    assert loss.samples == 3


def test_repr_tells_the_state():
    loss = StreamingLoss(fastloss.CrossEntropyLoss()).update(LOGITS, TARGET)
    assert "CrossEntropyLoss" in repr(loss)
    assert f"{SAMPLES} samples in 1 batches" in repr(loss)


# ---- d) perplexity ---------------------------------------------------------------------------


def log_probs(logits, target, temperature=1.0, softcap=None):
    """log p(target) of the samples not ignored, in float64."""
    z = np.asarray(logits, np.float64)
    if softcap is not None:
        z = softcap * np.tanh(z / softcap)
    z = z / temperature
    z = z - z.max(axis=1, keepdims=True)
    z = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    kept = target != -100
    return z[kept, target[kept]]


@pytest.mark.parametrize(
    ("criterion", "model"),
    [
        (fastloss.CrossEntropyLoss(), {}),
        (fastloss.CrossEntropyLoss(reduction="sum"), {}),
        (fastloss.CrossEntropyLoss(weight=WEIGHT), {}),
        (fastloss.CrossEntropyLoss(label_smoothing=0.3), {}),
        (fastloss.CrossEntropyLoss(z_loss=0.1), {}),
        (fastloss.CrossEntropyLoss(temperature=2.5), {"temperature": 2.5}),
        (fastloss.CrossEntropyLoss(softcap=3.0, weight=WEIGHT), {"softcap": 3.0}),
        (fastloss.SoftmaxFocalLoss(alpha=WEIGHT), {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_perplexity_is_the_models(criterion, model, weighted):
    weights = np.random.default_rng(3).uniform(0, 2, SAMPLES)
    loss = StreamingLoss(criterion)
    for part in (slice(0, 700), slice(700, SAMPLES)):
        loss.update(LOGITS[part], TARGET[part], weights[part] if weighted else None)
    expected = math.exp(-log_probs(LOGITS, TARGET, **model).mean())
    assert loss.perplexity == pytest.approx(expected, rel=1e-6)


def test_perplexity_of_weighted_log_probabilities():
    x = fastloss.log_softmax(LOGITS.astype(np.float64), axis=1)
    loss = StreamingLoss(fastloss.NLLLoss(weight=WEIGHT)).update(x, TARGET)
    assert loss.perplexity == pytest.approx(math.exp(-log_probs(LOGITS, TARGET).mean()), rel=1e-12)


@pytest.mark.parametrize(
    "criterion",
    [
        fastloss.BCELoss(),
        fastloss.BCEWithLogitsLoss(),
        fastloss.SigmoidFocalLoss(),
        fastloss.KLDivLoss(),
    ],
    ids=str,
)
def test_no_perplexity_without_classes(criterion):
    loss = StreamingLoss(criterion).update(UNIT, UNIT)
    assert not hasattr(loss, "perplexity")
    with pytest.raises(AttributeError, match=f"{type(criterion).__name__} has no perplexity"):
        _ = loss.perplexity


def test_no_perplexity_of_probabilities():
    loss = StreamingLoss(fastloss.CrossEntropyLoss()).update(LOGITS, UNIT).update(LOGITS, TARGET)
    with pytest.raises(ValueError, match="probabilities, which 1 of 2 batches"):
        _ = loss.perplexity
    other = StreamingLoss(fastloss.CrossEntropyLoss()).update(LOGITS, TARGET).merge(loss)
    with pytest.raises(ValueError, match="1 of 3 batches"):
        _ = other.perplexity
    assert other.reset().update(LOGITS, TARGET).perplexity > 1


# ---- e) edge cases and errors ----------------------------------------------------------------


def test_nothing_yet_is_nan():
    loss = StreamingLoss(fastloss.CrossEntropyLoss())
    assert math.isnan(loss.compute())
    assert math.isnan(loss.perplexity)
    assert StreamingLoss(fastloss.CrossEntropyLoss(reduction="sum")).compute() == 0.0
    loss.update(LOGITS[:1], np.array([-100]))
    assert math.isnan(loss.compute())


def test_infinite_and_nan_losses_stay():
    row = np.array([[0.0, -np.inf]], np.float32)
    loss = StreamingLoss(fastloss.CrossEntropyLoss())
    loss.update(LOGITS, TARGET).update(row, np.array([1])).update(LOGITS, TARGET)
    assert loss.compute() == math.inf
    assert loss.perplexity == math.inf
    other = StreamingLoss(fastloss.CrossEntropyLoss()).update(row * np.nan, np.array([0]))
    assert math.isnan(loss.merge(other).compute())


def test_perplexity_overflows_to_infinity():
    loss = StreamingLoss(fastloss.CrossEntropyLoss())
    assert loss.update(np.array([[0.0, 1e5]]), np.array([0])).perplexity == math.inf


def test_a_rejected_batch_changes_nothing():
    loss = StreamingLoss(fastloss.CrossEntropyLoss()).update(LOGITS, TARGET)
    before = repr(loss)
    with pytest.raises(IndexError, match="12"):
        loss.update(LOGITS[:2], np.array([0, 12]))
    with pytest.raises(ValueError, match="shape"):
        loss.update(LOGITS[:2], np.array([0, 1, 2]))
    assert repr(loss) == before


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_mean_without_weight_is_nan(smoothing):
    """Smoothing leaves a loss where the target's weight is 0; its mean divides by nothing."""
    criterion = fastloss.CrossEntropyLoss(weight=[0.0, 1.0], label_smoothing=smoothing)
    x, t = np.array([[1.0, 2.0]]), np.array([0])
    assert math.isnan(criterion(x, t))
    assert math.isnan(StreamingLoss(criterion).update(x, t).compute())


def test_batchmean_needs_a_batch():
    loss = StreamingLoss(fastloss.KLDivLoss(reduction="batchmean"))
    with pytest.raises(ValueError, match=r"batchmean.*0-d"):
        loss.update(np.float64(-1.0), np.float64(0.5))


def test_reduction_none_is_refused():
    with pytest.raises(ValueError, match="'none'"):
        StreamingLoss(fastloss.CrossEntropyLoss(reduction="none"))


def test_what_is_no_criterion_is_refused():
    with pytest.raises(TypeError, match="criterion"):
        StreamingLoss(fastloss.cross_entropy)


def test_merge_refuses_other_options():
    loss = StreamingLoss(fastloss.CrossEntropyLoss())
    with pytest.raises(ValueError, match="label_smoothing"):
        loss.merge(StreamingLoss(fastloss.CrossEntropyLoss(label_smoothing=0.1)))
    with pytest.raises(TypeError, match="float"):
        loss.merge(1.0)
    # Weights that differ where a repr of a long array leaves out.
    one, two = np.ones(5000), np.ones(5000)
    two[2500] = 2
    with pytest.raises(ValueError, match="merge"):
        StreamingLoss(fastloss.CrossEntropyLoss(weight=one)).merge(
            StreamingLoss(fastloss.CrossEntropyLoss(weight=two))
        )
