"""Whether memory grows with the number of calls: of all functions, right and wrong ones.

    python fuzz/leaks.py --count 200000

The slope is taken over the second half of the calls. Growth of more than 96 KiB is a find: that is
an object of 64 bytes for each call of one kind.
"""

from __future__ import annotations

import argparse
import gc
import sys

import numpy as np

import fastloss
from fastloss import CrossEntropyLoss, StreamingLoss, StreamingMetrics


def resident() -> int:
    """Bytes of memory that the process has for itself."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith("Private"))


def works() -> list:
    rng = np.random.default_rng(0)
    x, p = rng.standard_normal((20, 33)).astype(np.float32), rng.random((20, 33))
    t, labels, w = rng.integers(0, 33, 20), rng.integers(0, 2, (20, 33)), rng.random(33)
    out = np.empty_like(x)
    bad = np.full(20, 99)
    f = fastloss
    losses = [
        ("cross_entropy", (x, t), {"weight": w}),
        ("cross_entropy", (x, p), {"label_smoothing": 0.1}),
        ("cross_entropy", (x.astype(np.float16), t), {"temperature": 0.5, "z_loss": 0.1}),
        ("nll_loss", (x, t), {"weight": w}),
        ("softmax_focal_loss", (x.astype(float), t), {"alpha": w}),
        ("binary_cross_entropy", (p, labels), {"weight": w}),
        ("binary_cross_entropy_with_logits", (x, labels), {"pos_weight": w}),
        ("sigmoid_focal_loss", (x, p), {"alpha": p}),
        ("kl_div", (x, p), {"log_target": True}),
        ("linear_cross_entropy", (x, x, np.arange(20)), {"linear_bias": x[:, 0]}),
        ("distillation_loss", (x, x.astype(np.float16)), {"temperature": 2.0}),
        ("distillation_loss", (x, p), {"direction": "reverse", "sample_weight": p[:, 0]}),
    ]
    calls = []
    for name, arrays, options in losses:
        for reduction in ("none", "mean"):
            kept = {**options, "reduction": reduction}
            value = getattr(f, name)
            fused = getattr(f, f"{name}_value_and_grad")
            calls.append(lambda g=value, a=arrays, o=kept: g(*a, **o))
            calls.append(lambda g=fused, a=arrays, o=kept: g(*a, **o))
    calls += [
        lambda: f.cross_entropy_value_and_grad(x, t, out=out),
        lambda: f.cross_entropy_grad_and_hess(x, t),
        lambda: f.binary_cross_entropy_with_logits_grad_and_hess(x, labels),
        lambda: f.cross_entropy_backward(2.0, x, t),
        lambda: f.softmax(x.T, axis=0),
        lambda: f.logsumexp(x, (0, 1), w, return_sign=True),
        lambda: f.sigmoid(x),
        lambda: f.score_samples(x, t),
        lambda: f.score_samples(x, t, top_k=3, temperature=2.0, softcap=9.0),
        lambda: f.softmax_focal_loss_grad_and_hess(x, t, alpha=w),
        lambda: f.sigmoid_focal_loss_grad_and_hess(x, labels),
        lambda: f.compare_logits(x, p, t),
        lambda: f.brier_score(x, t, sample_weight=p[:, 0]),
        lambda: f.calibration_error(x, t, strategy="quantile"),
        lambda: f.fit_temperature(x, t),
        lambda: StreamingLoss(CrossEntropyLoss()).update(x, t).compute(),
        lambda: StreamingMetrics().update(x, t).compute(),
        # Each way to be wrong.
        lambda: f.cross_entropy(x, bad),
        lambda: f.cross_entropy_value_and_grad(x, bad, out=out),
        lambda: f.cross_entropy(x, t, temperature=-1),
        lambda: f.cross_entropy_value_and_grad(out, t, out=out[::-1]),
        lambda: f.cross_entropy_value_and_grad(x[:-1], t[:-1], out=x[1:]),
        lambda: f.binary_cross_entropy_value_and_grad(p + 1, labels),
        lambda: f.distillation_loss_value_and_grad(x, x[:3], out=out),
        lambda: f.distillation_loss_value_and_grad(x, out, out=out),
        lambda: f.compare_logits(x, x, bad),
        lambda: f.score_samples(x, t, top_k=99),
        lambda: StreamingMetrics().update(x, bad),
        lambda: f.fit_temperature(x, x.argmax(axis=1)),
        lambda: f.sigmoid("a"),
        lambda: f.softmax(x, axis=7),
    ]
    return calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200_000)
    arguments = parser.parse_args()
    calls = works()
    rounds = arguments.count // len(calls)
    refused, half = 0, 0
    for number in range(rounds):
        for call in calls:
            try:
                call()
            except (TypeError, ValueError, IndexError):
                refused += 1
        if number == rounds // 2:
            gc.collect()
            half = resident()
    gc.collect()
    made = (rounds - rounds // 2 - 1) * len(calls)
    growth = resident() - half
    print(
        f"{rounds * len(calls):,} calls, {refused:,} refused: {growth:+,} bytes over the last"
        f" {made:,}, {growth / max(made, 1):+.3f} a call"
    )
    return int(growth > 96 << 10)


if __name__ == "__main__":
    sys.exit(main())
