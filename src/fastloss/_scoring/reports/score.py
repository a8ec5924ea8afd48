"""The report of `fastloss score`."""

from __future__ import annotations

import math
from typing import Any

from fastloss._scoring import plural
from fastloss._scoring.distributions import LEAST_SAMPLES, MOST_CLASSES, LogHistogram
from fastloss._scoring.quantiles import RELATIVE_ERROR
from fastloss._scoring.reports.common import (
    Report,
    described,
    digits,
    group_name,
    number,
    percent,
    place,
    probability,
    run_time,
    runs_on,
    source_label,
    throughput,
)
from fastloss._scoring.scorer import NONE
from fastloss._scoring.totals import GroupScore, Summary

QUANTILES = (("median", 0.5), ("p90", 0.9), ("p99", 0.99))


def as_json(summary: Summary, seconds: float) -> dict[str, Any]:
    """The report as JSON types; what is NaN or infinite becomes null."""
    job = summary.job
    options = job.options
    binary = job.class_axis is None
    ranks = summary.ranks
    counts, confidence, right = summary.calibration.bins()
    return {
        "samples": summary.samples,
        "ignored": summary.ignored,
        "non_finite": summary.non_finite,
        "classes": job.classes,
        "mean_loss": number(summary.mean_loss),
        "perplexity": number(summary.perplexity),
        "accuracy": number(summary.accuracy),
        "top5_accuracy": number(summary.top5_accuracy),
        "calibration_error": number(summary.calibration.error),
        "calibration_error_equal_mass": number(summary.calibration.equal_mass_error),
        "brier_score": number(summary.brier_score),
        "mean_confidence": number(summary.calibration.mean_confidence),
        "rank": None
        if binary
        else {
            "mean": number(ranks.mean),
            **{name: ranks.quantile(share) for name, share in QUANTILES},
            "max": ranks.quantile(1),
            "mean_reciprocal": number(ranks.mean_reciprocal),
        },
        "loss_quantiles": {
            "min": number(summary.quantiles.quantile(0)),
            **{name: number(summary.quantiles.quantile(share)) for name, share in QUANTILES},
            "max": number(summary.quantiles.quantile(1)),
            "relative_error": 0.0 if summary.quantiles.exact else RELATIVE_ERROR,
        },
        "loss_histogram": _histogram(summary.losses),
        "classes_by_loss": classes_by_loss(summary),
        "calibration": [
            {"samples": int(n), "confidence": float(believed), "accuracy": float(share)}
            for n, believed, share in zip(counts, confidence, right, strict=True)
        ],
        "groups": [group_json(group) for group in summary.group_scores()],
        "seconds": seconds,
        "hardest": [
            {
                "sample": hard.sample,
                "loss": number(hard.loss),
                "target": number(hard.target),
                "predicted": None if hard.predicted == NONE else hard.predicted,
                "log_prob": number(hard.log_prob),
                "rank": None if hard.rank == NONE else hard.rank,
            }
            for hard in summary.hardest
        ],
        "settings": {
            "logits": job.logits.label,
            "targets": job.targets.label,
            "shape": list(job.logits.shape),
            "dtype": str(job.logits.dtype),
            "loss": options.loss,
            "weight": source_label(options.weight),
            "sample_weight": source_label(options.sample_weight),
            "pos_weight": source_label(options.pos_weight),
            "ignore_index": None if binary else options.ignore_index,
            "label_smoothing": options.label_smoothing,
            "axis": job.class_axis,
            "shift": options.shift,
            "group_by": source_label(options.groups),
            **run_time(),
        },
    }


def _histogram(losses: LogHistogram) -> dict[str, Any]:
    counts, edges = losses.bars()
    below = int(losses.counts.sum() - counts.sum())
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "below": below,
        "zero": losses.not_positive,
    }


def classes_by_loss(summary: Summary) -> list[dict[str, Any]]:
    """The classes that the plot shows: of enough samples, the hardest first."""
    classes, means = summary.by_class.means()
    return [
        {"class": int(label), "samples": int(summary.by_class.counts[label]), "mean_loss": mean}
        for label, mean in zip(classes[:MOST_CLASSES], means[:MOST_CLASSES].tolist(), strict=True)
    ]


def group_json(group: GroupScore) -> dict[str, Any]:
    return {
        "group": group.group,
        "samples": group.samples,
        "mean_loss": number(group.mean_loss),
        "perplexity": number(group.perplexity),
        "accuracy": number(group.accuracy),
    }


def as_text(summary: Summary, seconds: float) -> str:
    """The report for people."""
    job, report = summary.job, Report()
    ignored = f" ({summary.ignored:,} ignored)" if summary.ignored else ""
    accuracy = percent(summary.accuracy)
    if accuracy is not None and not math.isnan(summary.top5_accuracy) and job.classes > 5:
        accuracy += f"; target among the first five: {summary.top5_accuracy:.2%}"
    report.facts(
        [
            ("logits", described(job.logits)),
            ("targets", described(job.targets)),
            ("loss", job.options.loss),
            ("samples", f"{summary.samples:,}{ignored}"),
            ("classes", f"{job.classes:,}"),
            ("mean loss", f"{summary.mean_loss:.6g}"),
            ("spread", _spread(summary)),
            ("perplexity", digits(summary.perplexity)),
            ("accuracy", accuracy),
            ("target's rank", _ranks(summary)),
            ("calibration error", _calibration(summary)),
            ("Brier score", digits(summary.brier_score, 4)),
            ("throughput", throughput(summary.samples, job.logits_bytes, seconds)),
            ("runs on", runs_on()),
        ],
        f"{plural(summary.non_finite, 'sample')} not finite" if summary.non_finite else None,
    )
    report.table(
        "hardest samples",
        ("sample", "loss", "target", "its probability", "predicted", "its probability"),
        [
            (
                place(hard.sample, job.layout.target_shape),
                f"{hard.loss:.5g}",
                f"{hard.target:g}",
                probability(hard.log_prob),
                "none" if hard.predicted == NONE else str(hard.predicted),
                probability(hard.predicted_log_prob),
            )
            for hard in summary.hardest
        ],
    )
    if not summary.top:
        return str(report)
    _tables(report, summary)
    return str(report)


def _tables(report: Report, summary: Summary) -> None:
    groups = sorted(summary.group_scores(), key=lambda group: -_or_less(group.mean_loss))
    shown = min(summary.top, len(groups))
    report.table(
        f"groups, hardest first: {shown} of {len(groups):,}",
        ("group", "samples", "mean loss", "perplexity", "accuracy"),
        [
            (
                group_name(group.group),
                f"{group.samples:,}",
                f"{group.mean_loss:.5g}",
                digits(group.perplexity, 5) or "",
                percent(group.accuracy) or "",
            )
            for group in groups[:shown]
        ],
        left=(0,),
    )
    classes, means = summary.by_class.means()
    met = int((summary.by_class.counts > 0).sum())
    shown = min(summary.top, len(classes))
    few = met - len(classes)
    report.table(
        f"classes, hardest first: {shown} of {met:,}"
        + (f" ({few:,} with fewer than {LEAST_SAMPLES} samples left out)" if few else ""),
        ("class", "samples", "mean loss"),
        [
            (str(label), f"{summary.by_class.counts[label]:,}", f"{mean:.5g}")
            for label, mean in zip(classes[:shown], means[:shown], strict=True)
        ],
    )
    report.table(
        "calibration",
        ("confidence", "accuracy", "samples"),
        [
            (f"{believed:.2%}", f"{share:.2%}", f"{n:,}")
            for n, believed, share in zip(*summary.calibration.bins(), strict=True)
        ],
    )


def _or_less(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _spread(summary: Summary) -> str | None:
    if not summary.quantiles.count:
        return None
    median, most, nearly = (summary.quantiles.quantile(share) for _, share in QUANTILES)
    return f"median {median:.3g}, 90% below {most:.3g}, 99% below {nearly:.3g}"


def _ranks(summary: Summary) -> str | None:
    ranks = summary.ranks
    if summary.job.class_axis is None or ranks.quantile(1) is None:
        return None
    return (
        f"mean {ranks.mean:.3g}, median {ranks.quantile(0.5)}, 90% within {ranks.quantile(0.9)}, "
        f"worst {ranks.quantile(1):,} (0 is the most likely class)"
    )


def _calibration(summary: Summary) -> str | None:
    error = percent(summary.calibration.error)
    if error is None:
        return None
    return (
        f"{error} in 15 bins of equal width, {summary.calibration.equal_mass_error:.2%} in bins of "
        f"equal counts; mean confidence {summary.calibration.mean_confidence:.2%}"
    )
