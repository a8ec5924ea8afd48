"""StreamingLoss: a stream of batches gives what one call over all of them gives.

Layout: a) agreement with one call, b) order, merging and pickling, c) counts, d) edge cases and
errors.
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
    "probabilities": (fastloss.CrossEntropyLoss(), LOGITS, UNIT),
    "sum": (fastloss.CrossEntropyLoss(reduction="sum"), LOGITS, TARGET),
    "nll": (fastloss.NLLLoss(weight=WEIGHT), LOGITS, TARGET),
    "bce": (fastloss.BCELoss(), UNIT, UNIT[::-1]),
    "bce with logits": (fastloss.BCEWithLogitsLoss(pos_weight=WEIGHT), LOGITS, UNIT),
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
        assert workers[0].compute() == whole.compute()
        assert (workers[0].samples, workers[0].batches) == (whole.samples, whole.batches)


class Summed:
    """A criterion whose totals are given: to feed the sums hard numbers."""

    reduction = "sum"

    def _totals(self, x, t):
        return float(x[0]), float(t[0])


def test_sums_are_compensated():
    values = [1e16, 1.0, 1e-9, 3.7e5, 1e16, 1e-300, 2.0**-60] * 1000
    random.Random(0).shuffle(values)
    loss = StreamingLoss(Summed())
    for value in values:
        loss.update([value], [1.0])
    assert loss.compute() == float(sum(map(Fraction, values)))
    assert sum(values) != loss.compute()


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


# ---- d) edge cases and errors ----------------------------------------------------------------


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
