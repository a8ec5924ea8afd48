"""Fast, exact classification losses and their gradients for NumPy arrays."""

import importlib as _importlib
import typing as _typing

from fastloss._config import show_config
from fastloss._threads import get_num_threads, set_num_threads
from fastloss._version import __version__ as __version__
from fastloss.losses.binary import (
    binary_cross_entropy,
    binary_cross_entropy_backward,
    binary_cross_entropy_value_and_grad,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_backward,
    binary_cross_entropy_with_logits_value_and_grad,
    sigmoid_focal_loss,
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_value_and_grad,
)
from fastloss.losses.categorical import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_value_and_grad,
    nll_loss,
    nll_loss_backward,
    nll_loss_value_and_grad,
    softmax_focal_loss,
    softmax_focal_loss_backward,
    softmax_focal_loss_value_and_grad,
)
from fastloss.losses.divergence import kl_div, kl_div_backward, kl_div_value_and_grad

if _typing.TYPE_CHECKING:
    from fastloss.evaluation import (
        CalibrationBins,
        CalibrationError,
        LogitsComparison,
        Metrics,
        SampleScores,
        StreamingLoss,
        StreamingMetrics,
        TemperatureFit,
        brier_score,
        calibration_error,
        compare_logits,
        fit_temperature,
        score_samples,
    )
    from fastloss.losses.criteria import (
        BCELoss,
        BCEWithLogitsLoss,
        CrossEntropyLoss,
        DistillationLoss,
        KLDivLoss,
        NLLLoss,
        SigmoidFocalLoss,
        SoftmaxFocalLoss,
    )
    from fastloss.losses.distillation import (
        distillation_loss,
        distillation_loss_backward,
        distillation_loss_value_and_grad,
    )
    from fastloss.losses.linear import (
        LinearGradients,
        linear_cross_entropy,
        linear_cross_entropy_backward,
        linear_cross_entropy_value_and_grad,
    )
    from fastloss.losses.second_order import (
        binary_cross_entropy_with_logits_grad_and_hess,
        cross_entropy_grad_and_hess,
        sigmoid_focal_loss_grad_and_hess,
        softmax_focal_loss_grad_and_hess,
    )
    from fastloss.special import log_sigmoid, log_softmax, logsumexp, sigmoid, softmax, softplus
else:
    # Imported when one of the names is first asked for: all of it together would double the time
    # that `import fastloss` takes.
    _MODULES = {
        "evaluation": "CalibrationBins CalibrationError LogitsComparison Metrics SampleScores"
        " StreamingLoss StreamingMetrics TemperatureFit brier_score calibration_error"
        " compare_logits fit_temperature score_samples",
        "losses.criteria": "BCELoss BCEWithLogitsLoss CrossEntropyLoss DistillationLoss KLDivLoss"
        " NLLLoss SigmoidFocalLoss SoftmaxFocalLoss",
        "losses.distillation": "distillation_loss distillation_loss_backward"
        " distillation_loss_value_and_grad",
        "losses.linear": "LinearGradients linear_cross_entropy linear_cross_entropy_backward"
        " linear_cross_entropy_value_and_grad",
        "losses.second_order": "binary_cross_entropy_with_logits_grad_and_hess"
        " cross_entropy_grad_and_hess sigmoid_focal_loss_grad_and_hess"
        " softmax_focal_loss_grad_and_hess",
        "special": "log_sigmoid log_softmax logsumexp sigmoid softmax softplus",
    }
    _MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

    def __getattr__(name: str) -> object:
        """Import what is asked for, or say what has to be imported before it is there."""
        if name in _MODULE_OF:
            module = _importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
            globals()[name] = found = getattr(module, name)
            return found
        if name in ("evaluation", "special"):
            return _importlib.import_module(f"{__name__}.{name}")
        if name in ("boosting", "dask", "data", "torch"):
            raise AttributeError(f"fastloss.{name} is a separate module: import fastloss.{name}")
        raise AttributeError(f"module 'fastloss' has no attribute {name!r}")


__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CalibrationBins",
    "CalibrationError",
    "CrossEntropyLoss",
    "DistillationLoss",
    "KLDivLoss",
    "LinearGradients",
    "LogitsComparison",
    "Metrics",
    "NLLLoss",
    "SampleScores",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "StreamingLoss",
    "StreamingMetrics",
    "TemperatureFit",
    "binary_cross_entropy",
    "binary_cross_entropy_backward",
    "binary_cross_entropy_value_and_grad",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_backward",
    "binary_cross_entropy_with_logits_grad_and_hess",
    "binary_cross_entropy_with_logits_value_and_grad",
    "brier_score",
    "calibration_error",
    "compare_logits",
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_grad_and_hess",
    "cross_entropy_value_and_grad",
    "distillation_loss",
    "distillation_loss_backward",
    "distillation_loss_value_and_grad",
    "fit_temperature",
    "get_num_threads",
    "kl_div",
    "kl_div_backward",
    "kl_div_value_and_grad",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "linear_cross_entropy_value_and_grad",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "nll_loss",
    "nll_loss_backward",
    "nll_loss_value_and_grad",
    "score_samples",
    "set_num_threads",
    "show_config",
    "sigmoid",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_grad_and_hess",
    "sigmoid_focal_loss_value_and_grad",
    "softmax",
    "softmax_focal_loss",
    "softmax_focal_loss_backward",
    "softmax_focal_loss_grad_and_hess",
    "softmax_focal_loss_value_and_grad",
    "softplus",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
