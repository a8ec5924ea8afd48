"""The report of `fastloss compare`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastloss._scoring import InputError, plural
from fastloss._scoring.comparison import Comparison, GroupComparison, Interval
from fastloss._scoring.distributions import MOST_CLASSES
from fastloss._scoring.groups import exp, ratio
from fastloss._scoring.quantiles import RELATIVE_ERROR
from fastloss._scoring.reports.common import (
    Report,
    described,
    group_name,
    number,
    place,
    probability,
    run_time,
    runs_on,
    source_label,
    throughput,
)

QUANTILES = (("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0))
CHANGES = (("min", 0.0), ("p01", 0.01), ("median", 0.5), ("p99", 0.99), ("max", 1.0))


def as_json(comparison: Comparison, seconds: float) -> dict[str, Any]:
    """The report as JSON types; what is NaN or infinite becomes null."""
    job, n = comparison.job, comparison.compared
    loss_a, loss_b = ratio(comparison.loss_a, n), ratio(comparison.loss_b, n)
    difference = comparison.mean_loss_difference
    with_targets: dict[str, Any] = dict.fromkeys(
        (
            *("mean_loss_a", "mean_loss_b", "mean_loss_difference", "perplexity_a"),
            *("perplexity_b", "accuracy_a", "accuracy_b", "target_probability_change"),
            *("worse", "better"),
        )
    )
    if job.has_targets:
        change = comparison.probability_change
        with_targets = {
            "mean_loss_a": number(loss_a),
            "mean_loss_b": number(loss_b),
            "mean_loss_difference": {
                "value": number(difference.value),
                "low": number(difference.low),
                "high": number(difference.high),
                "confidence": 0.95,
                "unit": comparison.unit,
            },
            "perplexity_a": number(exp(loss_a)),
            "perplexity_b": number(exp(loss_b)),
            "accuracy_a": number(ratio(comparison.right_a, n)),
            "accuracy_b": number(ratio(comparison.right_b, n)),
            "target_probability_change": {
                "mean": number(ratio(comparison.probability_change_sum, n)),
                "rms": number(math.sqrt(ratio(comparison.square_sum, n))),
                **{name: number(change.quantile(share)) for name, share in CHANGES},
            },
            "worse": number(ratio(comparison.worse, n)),
            "better": number(ratio(comparison.better, n)),
        }
    by, parts = comparison.where_worse()
    return {
        "samples": comparison.samples,
        "ignored": comparison.ignored,
        "non_finite": comparison.non_finite,
        "classes": job.layout.classes,
        **with_targets,
        "kl": {
            "mean": number(comparison.mean_kl),
            **{name: number(comparison.kl.quantile(share)) for name, share in QUANTILES},
            "relative_error": 0.0 if comparison.kl.exact else RELATIVE_ERROR,
        },
        "reverse_kl": {"mean": number(comparison.mean_reverse_kl)},
        "same_prediction": number(comparison.same_prediction),
        "where_worse": {
            "by": by,
            "parts": [
                {by: name, "samples": samples, "mean_loss_difference": number(value)}
                for name, samples, value in _ends(parts)
            ]
            if job.has_targets
            else [],
        },
        "groups": [group_json(group) for group in comparison.group_comparisons()],
        "most_changed": [
            {
                "sample": changed.sample,
                "kl": number(changed.kl),
                "target": changed.target,
                "log_prob_a": number(changed.log_prob_a),
                "log_prob_b": number(changed.log_prob_b),
            }
            for changed in comparison.changed
        ],
        "seconds": seconds,
        "settings": {
            "a": job.layout.logits.label,
            "b": job.other.label,
            "targets": source_label(job.layout.targets),
            "shape": list(job.layout.logits.shape),
            "dtype_a": str(job.layout.logits.dtype),
            "dtype_b": str(job.other.dtype),
            "ignore_index": job.ignore_index,
            "axis": job.layout.class_axis,
            "shift": job.layout.shift,
            "group_by": source_label(job.groups),
            **run_time(),
        },
    }


def _ends(parts: list[tuple[str, int, float]]) -> list[tuple[str, int, float]]:
    """The parts where B is worst, and those where it is best."""
    half = MOST_CLASSES // 2
    return parts if len(parts) <= MOST_CLASSES else parts[:half] + parts[-half:]


def group_json(group: GroupComparison) -> dict[str, Any]:
    """A group as JSON types."""
    return {
        "group": group.group,
        "samples": group.samples,
        "mean_loss_a": number(group.mean_loss_a),
        "mean_loss_b": number(group.mean_loss_b),
        "mean_loss_difference": number(group.mean_loss_difference),
        "mean_kl": number(group.mean_kl),
        "same_prediction": number(group.same_prediction),
    }


# Limits -------------------------------------------------------------------------------------------

_LIMITS: dict[str, Callable[[Comparison], float]] = {
    "kl": lambda c: c.mean_kl,
    "kl.mean": lambda c: c.mean_kl,
    "kl.median": lambda c: c.kl.quantile(0.5),
    "kl.p90": lambda c: c.kl.quantile(0.9),
    "kl.p99": lambda c: c.kl.quantile(0.99),
    "kl.p999": lambda c: c.kl.quantile(0.999),
    "kl.max": lambda c: c.kl.quantile(1),
    "reverse_kl": lambda c: c.mean_reverse_kl,
    "different": lambda c: 1 - c.same_prediction,
    "mean_loss_difference": lambda c: c.mean_loss_difference.value,
    "mean_loss_difference.high": lambda c: c.mean_loss_difference.high,
}


def parse_limits(texts: list[str], has_targets: bool) -> dict[str, float]:
    """Names and numbers of ``NAME=NUMBER``."""
    limits = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if name not in _LIMITS or math.isnan(limit):
            raise InputError(
                f"--fail-above {text}: expected NAME=NUMBER with one of {', '.join(_LIMITS)}"
            )
        if name.startswith("mean_loss") and not has_targets:
            raise InputError(f"--fail-above {text}: needs TARGETS")
        limits[name] = limit
    return limits


def above(comparison: Comparison, limits: dict[str, float]) -> list[str]:
    """What lies above its limit, in words; what is unknown does, too."""
    found = []
    for name, limit in limits.items():
        value = _LIMITS[name](comparison)
        if math.isnan(value):
            found.append(f"{name} is unknown")
        elif value > limit:
            found.append(f"{name} is {value:.6g}, above {limit:g}")
    if limits and comparison.non_finite:
        found.append(f"{plural(comparison.non_finite, 'sample')} not finite")
    return found


# For people ---------------------------------------------------------------------------------------


def _signed(value: float) -> str:
    return f"{value:+.4g}"


def _difference(interval: Interval, unit: str, units: int) -> str:
    if math.isnan(interval.low):
        return f"{_signed(interval.value)} (too few {unit}s for an interval)"
    verdict = "no significant difference"
    if interval.low > 0:
        verdict = "B is worse"
    elif interval.high < 0:
        verdict = "B is better"
    elif interval.low == interval.high == 0:
        verdict = "no difference"
    return (
        f"{_signed(interval.value)}, 95% interval {_signed(interval.low)} to "
        f"{_signed(interval.high)} over {plural(units, unit)}: {verdict}"
    )


def as_text(comparison: Comparison, seconds: float) -> str:
    """The report for people."""
    job, report, n = comparison.job, Report(), comparison.compared
    ignored = f" ({comparison.ignored:,} ignored)" if comparison.ignored else ""
    facts: list[tuple[str, str | None]] = [
        ("A", described(job.layout.logits)),
        ("B", described(job.other)),
        ("targets", None if job.layout.targets is None else described(job.layout.targets)),
        ("samples", f"{comparison.samples:,}{ignored}"),
        ("classes", f"{job.layout.classes:,}"),
    ]
    if job.has_targets:
        loss_a, loss_b = ratio(comparison.loss_a, n), ratio(comparison.loss_b, n)
        units = n
        if job.groups is not None:
            units = sum(1 for _, sums in comparison.groups if sums[0])
        change = comparison.probability_change
        facts += [
            ("mean loss", f"A {loss_a:.6g}, B {loss_b:.6g}"),
            ("B minus A", _difference(comparison.mean_loss_difference, comparison.unit, units)),
            ("perplexity", f"A {exp(loss_a):.6g}, B {exp(loss_b):.6g}"),
            (
                "accuracy",
                f"A {ratio(comparison.right_a, n):.2%}, B {ratio(comparison.right_b, n):.2%}",
            ),
            (
                "target's probability",
                f"mean change {_signed(ratio(comparison.probability_change_sum, n))}, "
                f"root mean square {math.sqrt(ratio(comparison.square_sum, n)):.3g}, "
                f"98% between {_signed(change.quantile(0.01))} and "
                f"{_signed(change.quantile(0.99))}",
            ),
            (
                "losses",
                f"larger in B {ratio(comparison.worse, n):.2%}, "
                f"smaller {ratio(comparison.better, n):.2%}",
            ),
        ]
    quantiles = ", ".join(
        f"{name} {comparison.kl.quantile(share):.3g}"
        for name, share in (("median", 0.5), ("90%", 0.9), ("99%", 0.99), ("99.9%", 0.999))
    )
    bound = "" if comparison.kl.exact else f" (quantiles to {RELATIVE_ERROR:.2%})"
    facts += [
        ("KL(A ‖ B)", f"mean {comparison.mean_kl:.4g}; {quantiles}, max "
         f"{comparison.kl.quantile(1):.3g}{bound}"),
        ("KL(B ‖ A)", f"mean {comparison.mean_reverse_kl:.4g}"),
        ("same prediction", f"{comparison.same_prediction:.4%}"),
        ("throughput", throughput(comparison.samples, job.logits_bytes, seconds)),
        ("runs on", runs_on()),
    ]  # fmt: skip
    warning = f"{plural(comparison.non_finite, 'sample')} not finite"
    report.facts(facts, warning if comparison.non_finite else None)
    _tables(report, comparison)
    return str(report)


def _tables(report: Report, comparison: Comparison) -> None:
    job, top = comparison.job, comparison.top
    names = ["sample", "KL(A ‖ B)"]
    if job.has_targets:
        names += ["target", "probability by A", "by B"]
    report.table(
        "samples that changed most",
        names,
        [
            [
                place(changed.sample, job.layout.target_shape),
                f"{changed.kl:.4g}",
                *(
                    []
                    if changed.target is None
                    else [
                        str(changed.target),
                        probability(changed.log_prob_a),
                        probability(changed.log_prob_b),
                    ]
                ),
            ]
            for changed in comparison.changed
        ],
    )
    by, parts = comparison.where_worse()
    parts = [part for part in parts if part[2] > 0][:top] if job.has_targets else []
    report.table(
        f"where B is worse, by {by}",
        (by, "samples", "loss of B minus A"),
        [(group_name(name), f"{samples:,}", _signed(value)) for name, samples, value in parts],
        left=(0,),
    )
    if not job.has_targets:
        groups = sorted(comparison.group_comparisons(), key=lambda group: -group.mean_kl)
        report.table(
            "groups that changed most",
            ("group", "samples", "mean KL", "same prediction"),
            [
                (
                    group_name(group.group),
                    f"{group.samples:,}",
                    f"{group.mean_kl:.4g}",
                    f"{group.same_prediction:.2%}",
                )
                for group in groups[:top]
            ],
            left=(0,),
        )
