"""Evaluation: what every sample got, and a loss over more batches than memory holds."""

from fastloss.evaluation.compare import LogitsComparison, compare_logits
from fastloss.evaluation.score import SampleScores, score_samples
from fastloss.evaluation.streaming import StreamingLoss

__all__ = [
    "LogitsComparison",
    "SampleScores",
    "StreamingLoss",
    "compare_logits",
    "score_samples",
]
