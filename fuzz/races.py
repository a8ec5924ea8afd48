"""Calls whose arrays other threads overwrite meanwhile.

    python fuzz/races.py --seconds 60

Two threads call, three write anything into logits, targets, weights and log-probabilities, right up
to a page that may not be touched on either side. A result may then be any number, and a call may
end in the errors that its arguments deserve at some moment; the process must not, nothing but `out`
may be written, and once the writers rest the answers are right. Prints how many calls there were.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter

import numpy as np

import fastloss
from guarded import guarded

ROWS, CLASSES = 300, 257


class Arrays:
    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.x = guarded(rng.standard_normal((ROWS, CLASSES)).astype(np.float32))
        self.half = guarded(rng.standard_normal((ROWS, CLASSES)).astype(np.float16))
        self.p = guarded(rng.random((ROWS, CLASSES)).astype(np.float32))
        self.t = guarded(rng.integers(0, CLASSES, ROWS))
        self.labels = guarded(rng.integers(0, 2, (ROWS, CLASSES)))
        self.weight = guarded(rng.uniform(0.5, 2, CLASSES))
        self.shares = guarded(rng.uniform(0.5, 2, ROWS))
        self.all = [v for v in vars(self).values() if isinstance(v, np.ndarray)]
        self.before = [a.copy() for a in self.all]

    def restore(self) -> None:
        for a, b in zip(self.all, self.before, strict=True):
            a[...] = b


def works(a: Arrays) -> list:
    out = guarded(np.zeros((ROWS, CLASSES), np.float32))
    w = {"weight": a.weight, "sample_weight": a.shares}
    turned = a.x.reshape(CLASSES, ROWS)
    f = fastloss
    return [
        lambda: f.cross_entropy(a.x, a.t, reduction="none", **w),
        lambda: f.cross_entropy_value_and_grad(a.x, a.t, out=out, **w),
        lambda: f.cross_entropy_value_and_grad(a.x, a.t, label_smoothing=0.1, out=out),
        lambda: f.cross_entropy_value_and_grad(a.x, a.p, out=out, **w),
        lambda: f.cross_entropy_value_and_grad(a.half, a.t, temperature=0.7, softcap=9.0),
        lambda: f.cross_entropy_value_and_grad(turned, a.t, axis=0, out=out.reshape(turned.shape)),
        lambda: f.cross_entropy_grad_and_hess(a.x, a.t, **w),
        lambda: f.nll_loss_value_and_grad(a.x, a.t, out=out, **w),
        lambda: f.softmax_focal_loss_value_and_grad(a.x, a.t, alpha=a.weight, out=out),
        lambda: f.softmax_focal_loss_grad_and_hess(a.x, a.t, alpha=a.weight),
        lambda: f.score_samples(a.half, a.t),
        lambda: f.score_samples(a.x, a.t, top_k=5),
        lambda: f.score_samples(turned, a.t, top_k=64, softcap=9.0, axis=0),
        lambda: f.brier_score(a.x, a.t),
        lambda: f.calibration_error(a.half, a.t),
        lambda: f.compare_logits(a.x, a.half, a.t),
        lambda: f.compare_logits(turned, turned, a.t, axis=0),
        lambda: f.distillation_loss_value_and_grad(a.x, a.p, sample_weight=a.shares, out=out),
        lambda: f.distillation_loss_value_and_grad(a.half, a.x, direction="reverse"),
        lambda: f.softmax(a.x, axis=1, out=out),
        lambda: f.logsumexp(turned, axis=0),
        lambda: f.binary_cross_entropy_with_logits_value_and_grad(
            a.x, a.labels, pos_weight=a.weight, ignore_index=-1, out=out
        ),
        lambda: f.binary_cross_entropy_value_and_grad(a.p, a.labels, out=out),
        lambda: f.sigmoid_focal_loss_value_and_grad(a.x, a.labels, alpha=a.p, out=out),
        lambda: f.kl_div_value_and_grad(a.x, a.p, out=out),
        lambda: f.linear_cross_entropy_value_and_grad(a.x, a.p, a.t),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    fastloss.set_num_threads(2)
    fastloss.special._threads.SMALL = 1000
    a = Arrays(arguments.seed)
    want = [[part.copy() for part in _parts(work())] for work in works(a)]
    counts: Counter[str] = Counter()
    stop, finds = threading.Event(), []

    def write(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not stop.is_set():
            target = a.all[rng.integers(len(a.all))]
            raw = target.reshape(-1)
            start = int(rng.integers(raw.size))
            part = raw[start : start + int(rng.integers(1, 5000))]
            way = rng.integers(4)
            if way == 0:
                part.view(np.uint8)[...] = rng.integers(0, 256, part.nbytes, dtype=np.uint8)
            elif way == 1 and raw.dtype.kind == "i":
                part[...] = rng.choice([-1, CLASSES, 2**62, -(2**63), 2**31])
            elif way == 2 and raw.dtype.kind == "f":
                part[...] = rng.choice([np.nan, np.inf, -np.inf, 6e4, -6e4])
            else:
                part[...] = a.before[[b is target for b in a.all].index(True)].reshape(-1)[
                    start : start + part.size
                ]
            counts["writes"] += 1

    def call(seed: int) -> None:
        rng = np.random.default_rng(seed)
        mine = works(a)
        while not stop.is_set():
            i = int(rng.integers(len(mine)))
            try:
                mine[i]()
                counts["calls"] += 1
            except (ValueError, IndexError):
                counts["refused"] += 1
            except Exception as error:
                finds.append(repr(error))
                return

    with np.errstate(all="ignore"):
        threads = [threading.Thread(target=call, args=(n,)) for n in (1, 2)]
        threads += [threading.Thread(target=write, args=(n,)) for n in (3, 4, 5)]
        for thread in threads:
            thread.start()
        time.sleep(arguments.seconds)
        stop.set()
        for thread in threads:
            thread.join()
    a.restore()
    for i, (work, before) in enumerate(zip(works(a), want, strict=True)):
        for got, one in zip(_parts(work()), before, strict=True):
            if not np.array_equal(got, one, equal_nan=True):
                finds.append(f"call {i} is not right afterwards")
    print(f"{dict(counts)}, {len(finds)} finds", *finds[:5], sep="\n")
    return int(bool(finds))


def _parts(result: object) -> list:
    if isinstance(result, tuple):
        return [part for one in result for part in _parts(one)]
    return [] if result is None else [np.asarray(result)]


if __name__ == "__main__":
    sys.exit(main())
