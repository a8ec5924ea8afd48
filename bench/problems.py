"""The losses that are timed, and the inputs they are timed on.

``LOSSES`` names every loss with its options, ``problem`` makes the input of one of them, and
``own_calls`` turns that into two calls of fastloss. Nothing here imports a library but NumPy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

Call = Callable[[], Any]
Shape = tuple[int, ...]

SMOOTHING = 0.1
ALPHA, GAMMA = 0.25, 2.0
TEMPERATURE, SOFTCAP, Z_LOSS = 2.0, 30.0, 1e-4


class Loss(NamedTuple):
    """A loss as it is timed.

    ``given`` says what the first argument is (logits, log_probs or probs; hidden for the input of
    a linear layer), ``target`` what the second is (classes, probabilities, hard, soft or none),
    ``arrays`` the options that are arrays. ``gradient`` is False where there is none to ask for;
    ``alike`` says that the answer is an array like the first argument.
    """

    title: str
    function: str
    given: str = "logits"
    target: str = "classes"
    options: Mapping[str, Any] = {}
    arrays: tuple[str, ...] = ()
    gradient: bool = True
    alike: bool = False


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss("cross-entropy", "cross_entropy"),
    "cross_entropy_weight": Loss(
        "cross-entropy, class weights", "cross_entropy", arrays=("weight",)
    ),
    "cross_entropy_sample_weight": Loss(
        "cross-entropy, sample weights", "cross_entropy", arrays=("sample_weight",)
    ),
    "cross_entropy_smoothing": Loss(
        "cross-entropy, label smoothing", "cross_entropy", options={"label_smoothing": SMOOTHING}
    ),
    "cross_entropy_probabilities": Loss(
        "cross-entropy, probability targets", "cross_entropy", target="probabilities"
    ),
    "cross_entropy_temperature": Loss(
        "cross-entropy, temperature", "cross_entropy", options={"temperature": TEMPERATURE}
    ),
    "cross_entropy_softcap": Loss(
        "cross-entropy, softcap", "cross_entropy", options={"softcap": SOFTCAP}
    ),
    "cross_entropy_z_loss": Loss(
        "cross-entropy, z-loss", "cross_entropy", options={"z_loss": Z_LOSS}
    ),
    "nll_loss": Loss("negative log-likelihood", "nll_loss", given="log_probs"),
    "binary_cross_entropy": Loss(
        "BCE of probabilities", "binary_cross_entropy", given="probs", target="hard"
    ),
    "binary_cross_entropy_soft": Loss(
        "BCE of probabilities, soft targets", "binary_cross_entropy", given="probs", target="soft"
    ),
    "binary_cross_entropy_with_logits": Loss(
        "BCE with logits", "binary_cross_entropy_with_logits", target="hard"
    ),
    "binary_cross_entropy_with_logits_soft": Loss(
        "BCE with logits, soft targets", "binary_cross_entropy_with_logits", target="soft"
    ),
    "binary_cross_entropy_with_logits_weight": Loss(
        "BCE with logits, weights",
        "binary_cross_entropy_with_logits",
        target="hard",
        arrays=("element_weight",),
    ),
    "binary_cross_entropy_with_logits_pos_weight": Loss(
        "BCE with logits, pos_weight",
        "binary_cross_entropy_with_logits",
        target="hard",
        arrays=("pos_weight",),
    ),
    "kl_div": Loss(
        "KL divergence",
        "kl_div",
        given="log_probs",
        target="probabilities",
        options={"reduction": "batchmean"},
    ),
    "sigmoid_focal_loss": Loss("sigmoid focal loss", "sigmoid_focal_loss", target="hard"),
    "softmax_focal_loss": Loss(
        "softmax focal loss", "softmax_focal_loss", options={"gamma": GAMMA}
    ),
    "distillation_loss": Loss(
        "distillation",
        "distillation_loss",
        target="logits",
        options={"temperature": TEMPERATURE},
    ),
    "linear_cross_entropy": Loss(
        "linear layer and cross-entropy", "linear_cross_entropy", given="hidden"
    ),
    "logsumexp": Loss("logsumexp", "logsumexp", target="none", options={"axis": 1}, gradient=False),
    "softmax": Loss(
        "softmax", "softmax", target="none", options={"axis": 1}, gradient=False, alike=True
    ),
    "log_softmax": Loss(
        "log-softmax", "log_softmax", target="none", options={"axis": 1}, gradient=False, alike=True
    ),
    "score_samples": Loss("score_samples", "score_samples", gradient=False),
}


@dataclass(frozen=True)
class Problem:
    """One loss on one input: the mean over the batch (KL: over the first axis) is asked for.

    ``linear_weight`` is the layer of ``linear_cross_entropy``, of shape (classes, features).
    """

    loss: str
    x: np.ndarray
    target: np.ndarray | None
    options: dict[str, Any] = field(default_factory=dict)
    linear_weight: np.ndarray | None = None

    @property
    def arguments(self) -> tuple[np.ndarray, ...]:
        """What stands before the options, in the order of the signature."""
        given = (self.x, self.linear_weight, self.target)
        return tuple(array for array in given if array is not None)


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _spread(random: np.random.Generator, shape: Shape, uniform: bool = False) -> np.ndarray:
    """Random float32 numbers; beyond 16 million they repeat, which costs no call less memory."""
    size = int(np.prod(shape))
    draw = random.random if uniform else random.standard_normal
    # An odd block, so that rows of a power of two do not repeat soon.
    block = draw(min(size, 2**24 - 1), dtype="float32")
    return np.resize(block, size).reshape(shape) if size > block.size else block.reshape(shape)


def problem(loss: str, shape: Shape, dtype: str = "float32") -> Problem:
    """Logits of scale 3, with targets of the kind that the loss takes; the class axis is 1.

    The shape of ``linear_cross_entropy`` is samples, features, classes.
    """
    kind = LOSSES[loss]
    wanted = _dtype(dtype)
    random = np.random.default_rng(len(loss) + sum(shape))
    if kind.given == "hidden":
        samples, features, classes = shape
        hidden = _spread(random, (samples, features))
        layer = _spread(random, (classes, features)) * np.float32(3 / features**0.5)
        target = random.integers(classes, size=samples)
        return Problem(loss, hidden.astype(wanted), target, {}, layer.astype(wanted))
    x = _spread(random, shape)
    x *= 3
    if kind.given == "probs":
        x = 1 / (1 + np.exp(-x))
    elif kind.given == "log_probs":
        x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    made: np.ndarray | None = None
    if kind.target == "classes":
        made = random.integers(shape[1], size=(shape[0], *shape[2:]))
    elif kind.target in ("hard", "soft"):
        made = _spread(random, shape, uniform=True)
        made = (made if kind.target == "soft" else (made < 0.5)).astype(wanted)
    elif kind.target == "logits":
        made = (_spread(random, shape) * np.float32(3)).astype(wanted)
    elif kind.target == "probabilities":
        made = 1 - _spread(random, shape, uniform=True)  # above 0, for the logarithm
        made /= made.sum(axis=1, keepdims=True)
        made = made.astype(wanted)
    options = dict(kind.options)
    for name in kind.arrays:
        # A weight for each class; of binary losses one for each element or each last place.
        extent: Shape = (shape[1],) if name == "weight" else shape[-1:]
        if name == "element_weight":
            extent = shape
        elif name == "sample_weight":
            extent = (shape[0], *shape[2:])
        values = (_spread(random, extent, uniform=True) + np.float32(0.5)).astype(wanted)
        options["weight" if name == "element_weight" else name] = values
    return Problem(loss, x.astype(wanted, copy=False), made, options)


def own_calls(
    library: ModuleType, case: Problem, out: np.ndarray | None = None
) -> tuple[Call, Call | None]:
    """``(forward, value_and_grad)`` of a build of fastloss, the second None where there is none.

    The gradient, or the answer that is as large, goes to ``out`` where it is given and the function
    takes it.

    Raises
    ------
    LookupError
        If this build lacks the function or one of the options.
    """
    kind = LOSSES[case.loss]
    names = [kind.function] + [f"{kind.function}_value_and_grad"] * kind.gradient
    found = [_function(library, name, case.options) for name in names]
    given, options = case.arguments, case.options
    forward, writer = found[0], found[-1]
    more = dict(options)
    if out is not None and "out" in inspect.signature(writer).parameters:
        more["out"] = out

    def write() -> Any:
        return writer(*given, **more)

    if kind.alike:
        return write, None
    return lambda: forward(*given, **options), write if kind.gradient else None


def _function(library: ModuleType, name: str, options: Iterable[str]) -> Callable[..., Any]:
    function = getattr(library, name, None)
    if function is None:
        raise LookupError(f"no {name}")
    lacking = set(options) - set(inspect.signature(function).parameters)
    if lacking:
        raise LookupError(f"{name} takes no {', '.join(sorted(lacking))}")
    return function
