"""Calls with many threads, and many threads that call: for ThreadSanitizer to watch.

    python fuzz/threads.py [--rounds 3]

All functions, on work that is dealt out to OpenMP's threads, from one Python thread and from four
at once. Results are compared, so that it is a test by itself, too.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import fastloss


def works() -> list:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 300)).astype(np.float32)
    long = rng.standard_normal((5, 20_000)).astype(np.float16)
    t, labels, w = rng.integers(0, 300, 400), rng.integers(0, 2, x.shape), rng.random(300)
    p = rng.random(x.shape).astype(np.float32)
    f = fastloss
    return [
        lambda: f.cross_entropy_value_and_grad(x, t, weight=w, reduction="none"),
        lambda: f.cross_entropy_value_and_grad(x, p),
        lambda: f.cross_entropy_value_and_grad(x.T.copy(), t, axis=0, label_smoothing=0.1),
        lambda: f.cross_entropy_value_and_grad(x, t, temperature=0.7, softcap=9.0, z_loss=0.1),
        lambda: f.cross_entropy_value_and_grad(x, t, sample_weight=np.full(400, 1e20)),
        lambda: f.cross_entropy_value_and_grad(long, np.arange(5)),
        lambda: f.cross_entropy_grad_and_hess(x, t),
        lambda: f.softmax_focal_loss_value_and_grad(x, t),
        lambda: f.nll_loss_value_and_grad(x, t),
        lambda: (f.softmax(x, axis=1), f.log_softmax(x, axis=0), f.logsumexp(x, axis=1)),
        lambda: f.softmax_focal_loss_grad_and_hess(x, t),
        lambda: tuple(f.score_samples(x, t, top_k=9)),
        lambda: tuple(f.score_samples(long, np.arange(5), softcap=9.0, top_k=99)),
        lambda: (f.brier_score(x, t), f.calibration_error(x, t).expected),
        lambda: tuple(f.compare_logits(x, p, t)),
        lambda: f.distillation_loss_value_and_grad(x, p, reduction="none"),
        lambda: f.distillation_loss_value_and_grad(long, long[::-1], direction="reverse"),
        lambda: f.binary_cross_entropy_with_logits_value_and_grad(x, labels, pos_weight=w),
        lambda: f.binary_cross_entropy_value_and_grad(p, p),
        lambda: f.sigmoid_focal_loss_value_and_grad(x.astype(float), labels),
        lambda: f.kl_div_value_and_grad(x, p, reduction="none"),
        lambda: (f.sigmoid(x), f.softplus(x)),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    fastloss.special._threads.SMALL = 1000
    calls = works()
    fastloss.set_num_threads(1)
    want = [[np.array(part) for part in call()] for call in calls]
    wrong = 0

    def check(number: int) -> int:
        order = np.random.default_rng(number).permutation(len(calls))
        return sum(
            not all(map(np.array_equal, map(np.asarray, calls[i]()), want[i])) for i in order
        )

    for threads in (2, 4):
        fastloss.set_num_threads(threads)
        wrong += sum(check(number) for number in range(arguments.rounds))
        with ThreadPoolExecutor(4) as pool:
            wrong += sum(pool.map(check, range(4 * arguments.rounds)))
    print(f"{2 * 5 * arguments.rounds * len(calls)} calls with threads, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
