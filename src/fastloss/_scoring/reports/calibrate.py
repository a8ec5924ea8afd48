"""The report of `fastloss calibrate`."""

from __future__ import annotations

from typing import Any

from fastloss._scoring import plural
from fastloss._scoring.groups import ratio
from fastloss._scoring.layout import Layout
from fastloss._scoring.reports.common import (
    Report,
    described,
    number,
    run_time,
    runs_on,
    source_label,
    throughput,
)
from fastloss._scoring.tempering import Fit, Pass


def as_json(fit: Fit, layout: Layout, ignore_index: int, seconds: float) -> dict[str, Any]:
    """The report as JSON types; what is NaN or infinite becomes null."""
    before, after = fit.before, fit.after
    return {
        "temperature": fit.temperature,
        "loss": number(after.loss),
        "loss_before": number(before.loss),
        "calibration_error": number(after.calibration.error),
        "calibration_error_before": number(before.calibration.error),
        "calibration_error_equal_mass": number(after.calibration.equal_mass_error),
        "calibration_error_equal_mass_before": number(before.calibration.equal_mass_error),
        "steps": fit.steps,
        "samples": after.samples,
        "ignored": after.ignored,
        "non_finite": after.non_finite,
        "classes": layout.classes,
        "accuracy": number(ratio(after.correct, after.counted)),
        "mean_confidence": number(after.calibration.mean_confidence),
        "mean_confidence_before": number(before.calibration.mean_confidence),
        "calibration": _bins(after),
        "calibration_before": _bins(before),
        "seconds": seconds,
        "settings": {
            "logits": layout.logits.label,
            "targets": source_label(layout.targets),
            "shape": list(layout.logits.shape),
            "dtype": str(layout.logits.dtype),
            "ignore_index": ignore_index,
            "axis": layout.class_axis,
            "shift": layout.shift,
            **run_time(),
        },
    }


def _bins(found: Pass) -> list[dict[str, Any]]:
    return [
        {"samples": int(n), "confidence": float(believed), "accuracy": float(share)}
        for n, believed, share in zip(*found.calibration.bins(), strict=True)
    ]


def as_text(fit: Fit, layout: Layout, seconds: float) -> str:
    """The report for people."""
    before, after, report = fit.before, fit.after, Report()
    targets = layout.targets
    ignored = f" ({after.ignored:,} ignored)" if after.ignored else ""
    reads = fit.steps + 2
    report.facts(
        [
            ("logits", described(layout.logits)),
            ("targets", None if targets is None else described(targets)),
            ("samples", f"{after.samples:,}{ignored}"),
            ("classes", f"{layout.classes:,}"),
            ("accuracy", f"{ratio(after.correct, after.counted):.2%}, at any temperature"),
            ("temperature", f"{fit.temperature:.6g}, in {plural(fit.steps, 'step')}"),
            (
                "throughput",
                throughput(after.samples * reads, layout.logits_bytes * reads, seconds),
            ),
            ("runs on", runs_on()),
        ],
        f"{plural(after.non_finite, 'sample')} not finite" if after.non_finite else None,
    )
    report.table(
        "what the temperature does",
        ("", "before", "after"),
        [
            ("mean loss", f"{before.loss:.6g}", f"{after.loss:.6g}"),
            *(
                (name, f"{was:.2%}", f"{now:.2%}")
                for name, was, now in (
                    (
                        "mean confidence",
                        before.calibration.mean_confidence,
                        after.calibration.mean_confidence,
                    ),
                    (
                        "calibration error, bins of equal width",
                        before.calibration.error,
                        after.calibration.error,
                    ),
                    (
                        "calibration error, bins of equal counts",
                        before.calibration.equal_mass_error,
                        after.calibration.equal_mass_error,
                    ),
                )
            ),
        ],
        left=(0,),
    )
    return str(report)
