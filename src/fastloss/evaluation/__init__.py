"""Evaluation: what every sample got, and a loss over more batches than memory holds."""

from fastloss.evaluation.calibration import (
    CalibrationBins,
    CalibrationError,
    brier_score,
    calibration_error,
)
from fastloss.evaluation.compare import LogitsComparison, compare_logits
from fastloss.evaluation.metrics import Metrics, StreamingMetrics
from fastloss.evaluation.score import SampleScores, score_samples
from fastloss.evaluation.streaming import StreamingLoss
from fastloss.evaluation.temperature import TemperatureFit, fit_temperature

__all__ = [
    "CalibrationBins",
    "CalibrationError",
    "LogitsComparison",
    "Metrics",
    "SampleScores",
    "StreamingLoss",
    "StreamingMetrics",
    "TemperatureFit",
    "brier_score",
    "calibration_error",
    "compare_logits",
    "fit_temperature",
    "score_samples",
]


def __dir__() -> list[str]:
    return __all__
