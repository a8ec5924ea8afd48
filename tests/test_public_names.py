"""The public names and their signatures, which code out there relies on."""

from __future__ import annotations

import inspect

import pytest

import fastloss

SIGNATURES = {
    "cross_entropy": "(logits, target, *, weight=None, sample_weight=None, ignore_index=-100, "
    "reduction='mean', label_smoothing=0.0, axis=None)",
    "nll_loss": "(log_probs, target, *, weight=None, sample_weight=None, ignore_index=-100, "
    "reduction='mean', axis=None)",
    "binary_cross_entropy": "(probs, target, *, weight=None, reduction='mean')",
    "binary_cross_entropy_with_logits": "(logits, target, *, weight=None, pos_weight=None, "
    "reduction='mean')",
    "kl_div": "(log_probs, target, *, reduction='mean', log_target=False)",
    "sigmoid_focal_loss": "(logits, target, *, alpha=0.25, gamma=2.0, reduction='mean')",
    "linear_cross_entropy": "(input, linear_weight, target, *, linear_bias=None, weight=None, "
    "ignore_index=-100, reduction='mean', label_smoothing=0.0)",
}
OTHERS = {
    "logsumexp": "(x, axis=-1, keepdims=False)",
    "softmax": "(x, axis=-1)",
    "log_softmax": "(x, axis=-1)",
    "sigmoid": "(x)",
    "log_sigmoid": "(x)",
    "softplus": "(x)",
    "score_samples": "(logits, target, *, axis=None)",
    "set_num_threads": "(n)",
    "get_num_threads": "()",
    "show_config": "()",
}
CLASSES = (
    "CrossEntropyLoss",
    "NLLLoss",
    "BCELoss",
    "BCEWithLogitsLoss",
    "KLDivLoss",
    "SigmoidFocalLoss",
)


def signature(function) -> str:
    """The signature without annotations."""
    bare = inspect.signature(function)
    parameters = [p.replace(annotation=p.empty) for p in bare.parameters.values()]
    return str(bare.replace(parameters=parameters, return_annotation=bare.empty))


def with_out(text: str) -> str:
    return text[:-1] + ", out=None)"


@pytest.mark.parametrize("name", SIGNATURES)
def test_losses(name):
    """One signature for three functions; the two that make a gradient take `out`."""
    assert signature(getattr(fastloss, name)) == SIGNATURES[name]
    extended = SIGNATURES[name] if name == "linear_cross_entropy" else with_out(SIGNATURES[name])
    assert signature(getattr(fastloss, f"{name}_value_and_grad")) == extended
    backward = signature(getattr(fastloss, f"{name}_backward"))
    assert backward == extended.replace("(", "(grad_output, ", 1)


@pytest.mark.parametrize("name", OTHERS)
def test_functions(name):
    assert signature(getattr(fastloss, name)) == OTHERS[name]


def test_all_lists_every_public_name():
    names = {*SIGNATURES, *OTHERS, *CLASSES, "StreamingLoss"}
    names |= {f"{name}_{kind}" for name in SIGNATURES for kind in ("value_and_grad", "backward")}
    assert names <= set(fastloss.__all__)
    assert all(hasattr(fastloss, name) for name in fastloss.__all__)
