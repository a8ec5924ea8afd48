"""The competitors: how a user of each library writes each loss, alone and with its gradient.

``problem`` makes the input of one loss; a peer turns it into two calls without arguments,
everything converted and allocated beforehand: ``forward`` returns the mean loss, ``value_and_grad``
the loss and its gradient with respect to the first argument. A peer that lacks a loss leaves it
out. Each library is imported by its own peer only, and a missing one is skipped.

1. ``Problem`` and the losses' inputs;
2. a class for each library;
3. ``available``, the peers that are installed, and ``disagreement``, which compares their answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Call = Callable[[], Any]
SMOOTHING = 0.1
ALPHA, GAMMA = 0.25, 2.0

LOSSES = {
    "cross_entropy": "cross-entropy",
    "cross_entropy_smoothing": "cross-entropy, label smoothing",
    "cross_entropy_probabilities": "cross-entropy, probability targets",
    "nll_loss": "negative log-likelihood",
    "binary_cross_entropy": "BCE of probabilities",
    "binary_cross_entropy_with_logits": "BCE with logits",
    "kl_div": "KL divergence",
    "sigmoid_focal_loss": "sigmoid focal loss",
}


@dataclass(frozen=True)
class Problem:
    """One loss on one input: the mean over the batch (KL: over the first axis) is asked for."""

    loss: str
    x: np.ndarray
    target: np.ndarray

    @property
    def options(self) -> dict[str, Any]:
        """What fastloss and PyTorch need besides input and target."""
        if self.loss == "cross_entropy_smoothing":
            return {"label_smoothing": SMOOTHING}
        if self.loss == "kl_div":
            return {"reduction": "batchmean"}
        return {}


def problem(loss: str, shape: tuple[int, ...], dtype: str = "float32") -> Problem:
    """Logits of scale 3, with targets of the kind that the loss takes; the class axis is 1."""
    random = np.random.default_rng(len(loss) + sum(shape))
    x: np.ndarray = random.standard_normal(shape, dtype="float32")
    x *= 3
    target: np.ndarray
    if loss in ("binary_cross_entropy", "binary_cross_entropy_with_logits", "sigmoid_focal_loss"):
        target = (random.random(shape, dtype="float32") < 0.5).astype("float32")
        if loss == "binary_cross_entropy":
            x = 1 / (1 + np.exp(-x))
    else:
        if loss in ("nll_loss", "kl_div"):
            x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
        if loss in ("cross_entropy_probabilities", "kl_div"):
            target = 1 - random.random(shape, dtype="float32")  # above 0, for the logarithm
            target /= target.sum(axis=1, keepdims=True)
        else:
            target = random.integers(shape[1], size=(shape[0], *shape[2:]))
    if target.dtype == "float32":
        target = target.astype(dtype)
    return Problem(loss, x.astype(dtype), target)


@dataclass
class Peer:
    """A library. ``calls`` looks the loss up among the methods, by its name."""

    key: str = ""
    title: str = ""
    threads: int = 1
    modules: dict[str, Any] = field(default_factory=dict)

    def load(self) -> None:
        """Import the library; an ImportError means that the peer is skipped."""

    def calls(self, case: Problem) -> tuple[Call, Call] | None:
        """``(forward, value_and_grad)``, or None for a loss that the library lacks."""
        method = getattr(self, case.loss, None)
        return method(case) if method else None


class Fastloss(Peer):
    """fastloss, the gradient written to an array that the caller keeps."""

    reuse = True

    def load(self) -> None:
        import fastloss

        fastloss.set_num_threads(self.threads)
        self.modules["fastloss"] = fastloss

    def calls(self, case: Problem) -> tuple[Call, Call] | None:
        name = case.loss
        if name.startswith("cross_entropy"):
            name = "cross_entropy"
        library = self.modules["fastloss"]
        forward = getattr(library, name, None)
        both = getattr(library, f"{name}_value_and_grad", None)
        if forward is None or both is None:
            return None
        x, target, options = case.x, case.target, case.options
        if not self.reuse:
            return lambda: forward(x, target, **options), lambda: both(x, target, **options)
        out = np.zeros_like(x)
        return (
            lambda: forward(x, target, **options),
            lambda: both(x, target, out=out, **options),
        )


class FastlossNewArray(Fastloss):
    """fastloss without ``out=``: a new gradient array each call."""

    reuse = False


class Numpy(Peer):
    """NumPy by hand, in place where that is the natural way to write it."""

    def _log_softmax(self, x: np.ndarray) -> np.ndarray:
        z: np.ndarray = x - x.max(axis=1, keepdims=True)
        z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
        return z

    def cross_entropy(self, case: Problem) -> tuple[Call, Call]:
        x, target = case.x, case.target
        picked = np.expand_dims(target, 1)
        samples = target.size

        def forward() -> Any:
            z = x - x.max(axis=1, keepdims=True)
            at_target = np.take_along_axis(z, picked, 1)
            total = np.exp(z, out=z).sum(axis=1, keepdims=True)
            return (np.log(total) - at_target).mean()

        def value_and_grad() -> Any:
            z = x - x.max(axis=1, keepdims=True)
            at_target = np.take_along_axis(z, picked, 1)
            grad = np.exp(z, out=z)
            total = grad.sum(axis=1, keepdims=True)
            grad /= total
            np.put_along_axis(grad, picked, np.take_along_axis(grad, picked, 1) - 1, 1)
            grad /= samples
            return (np.log(total) - at_target).mean(), grad

        return forward, value_and_grad

    def cross_entropy_smoothing(self, case: Problem) -> tuple[Call, Call]:
        x, picked, samples = case.x, np.expand_dims(case.target, 1), case.target.size

        def loss(z: np.ndarray) -> Any:
            hard = np.take_along_axis(z, picked, 1).mean()
            return -(1 - SMOOTHING) * hard - SMOOTHING * z.mean()

        def value_and_grad() -> Any:
            z = self._log_softmax(x)
            value = loss(z)
            grad = np.exp(z, out=z)
            grad -= SMOOTHING / x.shape[1]
            np.put_along_axis(
                grad, picked, np.take_along_axis(grad, picked, 1) - (1 - SMOOTHING), 1
            )
            grad /= samples
            return value, grad

        return lambda: loss(self._log_softmax(x)), value_and_grad

    def cross_entropy_probabilities(self, case: Problem) -> tuple[Call, Call]:
        x, target = case.x, case.target

        def value_and_grad() -> Any:
            z = self._log_softmax(x)
            value = -(target * z).sum() / len(x)
            grad = np.exp(z, out=z)
            grad *= target.sum(axis=1, keepdims=True)
            grad -= target
            grad /= len(x)
            return value, grad

        return lambda: -(target * self._log_softmax(x)).sum() / len(x), value_and_grad

    def nll_loss(self, case: Problem) -> tuple[Call, Call]:
        x, picked = case.x, np.expand_dims(case.target, 1)
        samples = case.target.size

        def value_and_grad() -> Any:
            grad = np.zeros_like(x)
            np.put_along_axis(grad, picked, -1 / samples, 1)
            return -np.take_along_axis(x, picked, 1).mean(), grad

        return lambda: -np.take_along_axis(x, picked, 1).mean(), value_and_grad

    def binary_cross_entropy(self, case: Problem) -> tuple[Call, Call]:
        p, target = case.x, case.target

        def forward() -> Any:
            with np.errstate(divide="ignore"):
                loss = target * np.maximum(np.log(p), -100)
                loss += (1 - target) * np.maximum(np.log1p(-p), -100)
            return -loss.mean()

        def value_and_grad() -> Any:
            grad = (p - target) / np.maximum(p * (1 - p), 1e-12)
            grad /= p.size
            return forward(), grad

        return forward, value_and_grad

    def binary_cross_entropy_with_logits(self, case: Problem) -> tuple[Call, Call]:
        x, target = case.x, case.target

        def forward() -> Any:
            return (np.maximum(x, 0) - x * target + np.log1p(np.exp(-np.abs(x)))).mean()

        def value_and_grad() -> Any:
            grad = 1 / (1 + np.exp(-x))
            grad -= target
            grad /= x.size
            return forward(), grad

        return forward, value_and_grad

    def kl_div(self, case: Problem) -> tuple[Call, Call]:
        x, target = case.x, case.target

        def forward() -> Any:
            return (target * (np.log(target) - x)).sum() / len(x)

        return forward, lambda: (forward(), -target / len(x))

    def sigmoid_focal_loss(self, case: Problem) -> tuple[Call, Call]:
        x, target = case.x, case.target

        def parts() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            sign = 2 * target - 1
            signed = sign * x  # the logit of the true label
            wrong = 1 / (1 + np.exp(signed))
            balance = ALPHA * target + (1 - ALPHA) * (1 - target)
            return sign, wrong, balance, -np.log1p(-wrong)

        def forward() -> Any:
            _, wrong, balance, nll = parts()
            return (balance * wrong**GAMMA * nll).mean()

        def value_and_grad() -> Any:
            sign, wrong, balance, nll = parts()
            scaled = balance * wrong**GAMMA
            grad = -sign * scaled * (GAMMA * (1 - wrong) * nll + wrong) / x.size
            return (scaled * nll).mean(), grad

        return forward, value_and_grad


class Scipy(Peer):
    """scipy.special's log_softmax, expit and their kin, joined by NumPy."""

    def load(self) -> None:
        import scipy.special

        self.modules["special"] = scipy.special

    def cross_entropy(self, case: Problem) -> tuple[Call, Call]:
        log_softmax = self.modules["special"].log_softmax
        x, picked, samples = case.x, np.expand_dims(case.target, 1), case.target.size

        def value_and_grad() -> Any:
            log_probs = log_softmax(x, axis=1)
            value = -np.take_along_axis(log_probs, picked, 1).mean()
            grad = np.exp(log_probs, out=log_probs)
            np.put_along_axis(grad, picked, np.take_along_axis(grad, picked, 1) - 1, 1)
            grad /= samples
            return value, grad

        return (
            lambda: -np.take_along_axis(log_softmax(x, axis=1), picked, 1).mean(),
            value_and_grad,
        )

    def cross_entropy_probabilities(self, case: Problem) -> tuple[Call, Call]:
        log_softmax = self.modules["special"].log_softmax
        x, target = case.x, case.target

        def value_and_grad() -> Any:
            log_probs = log_softmax(x, axis=1)
            value = -(target * log_probs).sum() / len(x)
            grad = np.exp(log_probs, out=log_probs)
            grad *= target.sum(axis=1, keepdims=True)
            grad -= target
            grad /= len(x)
            return value, grad

        return lambda: -(target * log_softmax(x, axis=1)).sum() / len(x), value_and_grad

    def binary_cross_entropy(self, case: Problem) -> tuple[Call, Call]:
        special = self.modules["special"]
        p, target = case.x, case.target

        def forward() -> Any:
            return -(special.xlogy(target, p) + special.xlog1py(1 - target, -p)).mean()

        def value_and_grad() -> Any:
            grad = (p - target) / np.maximum(p * (1 - p), 1e-12)
            grad /= p.size
            return forward(), grad

        return forward, value_and_grad

    def binary_cross_entropy_with_logits(self, case: Problem) -> tuple[Call, Call]:
        special = self.modules["special"]
        x, target = case.x, case.target

        def forward() -> Any:
            return -(special.log_expit(x) - (1 - target) * x).mean()

        def value_and_grad() -> Any:
            grad = special.expit(x)
            grad -= target
            grad /= x.size
            return forward(), grad

        return forward, value_and_grad

    def kl_div(self, case: Problem) -> tuple[Call, Call]:
        special = self.modules["special"]
        x, target = case.x, case.target

        def forward() -> Any:
            return (special.xlogy(target, target) - target * x).sum() / len(x)

        return forward, lambda: (forward(), -target / len(x))

    def sigmoid_focal_loss(self, case: Problem) -> tuple[Call, Call]:
        special = self.modules["special"]
        x, target = case.x, case.target

        def value_and_grad() -> Any:
            sign = 2 * target - 1
            signed = sign * x
            wrong = special.expit(-signed)
            nll = -special.log_expit(signed)
            scaled = (ALPHA * target + (1 - ALPHA) * (1 - target)) * wrong**GAMMA
            grad = -sign * scaled * (GAMMA * (1 - wrong) * nll + wrong) / x.size
            return (scaled * nll).mean(), grad

        def forward() -> Any:
            signed = (2 * target - 1) * x
            scaled = (ALPHA * target + (1 - ALPHA) * (1 - target)) * special.expit(-signed) ** GAMMA
            return -(scaled * special.log_expit(signed)).mean()

        return forward, value_and_grad


class ScikitLearn(Peer):
    """scikit-learn's Cython losses under its linear models and boosting (a private module).

    They are handed their outputs, and weights of 1/N so that the gradient is the mean's. They take
    two-dimensional logits of float32 or float64 alone.
    """

    def load(self) -> None:
        from sklearn._loss import HalfBinomialLoss, HalfMultinomialLoss

        self.modules.update(binomial=HalfBinomialLoss, multinomial=HalfMultinomialLoss)

    def _calls(self, loss: Any, case: Problem) -> tuple[Call, Call]:
        x, target = case.x, case.target.astype(case.x.dtype)
        value, grad = np.empty(len(x), dtype=x.dtype), np.empty_like(x)
        weights = np.full(len(x), 1 / len(x), dtype=x.dtype)
        keywords = {"y_true": target, "raw_prediction": x, "n_threads": self.threads}

        def forward() -> Any:
            return loss.loss(**keywords, loss_out=value).mean()

        def value_and_grad() -> Any:
            loss.loss_gradient(**keywords, sample_weight=weights, loss_out=value, gradient_out=grad)
            return value.sum(), grad

        return forward, value_and_grad

    def cross_entropy(self, case: Problem) -> tuple[Call, Call] | None:
        if case.x.ndim != 2:
            return None
        return self._calls(self.modules["multinomial"](n_classes=case.x.shape[1]), case)

    def binary_cross_entropy_with_logits(self, case: Problem) -> tuple[Call, Call]:
        return self._calls(self.modules["binomial"](), case)


class Torch(Peer):
    """PyTorch eager: a function of torch.nn.functional, and ``backward`` for the gradient."""

    compiled = False

    def load(self) -> None:
        import torch

        torch.set_num_threads(self.threads)
        self.modules["torch"] = torch

    def _function(self, case: Problem) -> Callable[..., Any]:
        functional = self.modules["torch"].nn.functional
        options = case.options
        if case.loss == "sigmoid_focal_loss":
            # PyTorch has none; this is the formula as its users write it.
            def focal(x: Any, target: Any) -> Any:
                p = x.sigmoid()
                bce = functional.binary_cross_entropy_with_logits(x, target, reduction="none")
                wrong = p * (1 - target) + (1 - p) * target
                balance = ALPHA * target + (1 - ALPHA) * (1 - target)
                return (balance * wrong**GAMMA * bce).mean()

            return focal
        name = "cross_entropy" if case.loss.startswith("cross_entropy") else case.loss
        function = getattr(functional, name)
        return lambda x, target: function(x, target, **options)

    def calls(self, case: Problem) -> tuple[Call, Call]:
        torch = self.modules["torch"]
        function = self._function(case)
        if self.compiled:
            torch._dynamo.reset()
            function = torch.compile(function, dynamic=False)
        x, target = torch.from_numpy(case.x), torch.from_numpy(case.target)
        leaf = torch.from_numpy(case.x).requires_grad_()

        def forward() -> Any:
            with torch.no_grad():
                return function(x, target)

        def value_and_grad() -> Any:
            leaf.grad = None
            loss = function(leaf, target)
            loss.backward()
            return loss.detach(), leaf.grad

        return forward, value_and_grad


class TorchCompiled(Torch):
    """PyTorch under torch.compile, forward and backward; compiled in the warm-up."""

    compiled = True


class Optax(Peer):
    """optax's losses under jax.jit, or jax.numpy where optax has no such loss."""

    def load(self) -> None:
        # XLA reports every slow compilation on standard error otherwise.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import jax
        import optax

        # Calls are waited for one by one: handing them to another thread would only cost time.
        settings: Any = jax.config
        settings.update("jax_platforms", "cpu")
        settings.update("jax_cpu_enable_async_dispatch", False)
        self.modules.update(jax=jax, optax=optax)

    def _function(self, case: Problem) -> Callable[..., Any]:
        jax, optax = self.modules["jax"], self.modules["optax"]
        numpy = jax.numpy
        classes = case.x.shape[1] if case.x.ndim > 1 else 1

        def smoothing(x: Any, target: Any) -> Any:
            soft = optax.smooth_labels(jax.nn.one_hot(target, classes, dtype=x.dtype), SMOOTHING)
            return optax.softmax_cross_entropy(x, soft).mean()

        def bce(p: Any, target: Any) -> Any:
            hit, miss = numpy.maximum(numpy.log(p), -100), numpy.maximum(numpy.log1p(-p), -100)
            return -(target * hit + (1 - target) * miss).mean()

        return {
            "cross_entropy": lambda x, t: optax.softmax_cross_entropy_with_integer_labels(
                x, t, axis=1
            ).mean(),
            "cross_entropy_smoothing": smoothing,
            "cross_entropy_probabilities": lambda x, t: optax.softmax_cross_entropy(x, t).mean(),
            "nll_loss": lambda x, t: -numpy.take_along_axis(x, t[:, None], 1).mean(),
            "binary_cross_entropy": bce,
            "binary_cross_entropy_with_logits": lambda x, t: optax.sigmoid_binary_cross_entropy(
                x, t
            ).mean(),
            "kl_div": lambda x, t: optax.kl_divergence(x, t).mean(),
            "sigmoid_focal_loss": lambda x, t: optax.sigmoid_focal_loss(
                x, t, alpha=ALPHA, gamma=GAMMA
            ).mean(),
        }[case.loss]

    def calls(self, case: Problem) -> tuple[Call, Call]:
        jax = self.modules["jax"]
        function = self._function(case)
        forward, both = jax.jit(function), jax.jit(jax.value_and_grad(function))
        x, target = jax.numpy.asarray(case.x), jax.numpy.asarray(case.target)
        wait = jax.block_until_ready
        return lambda: wait(forward(x, target)), lambda: wait(both(x, target))


PEERS: tuple[tuple[type[Peer], str, str], ...] = (
    (Fastloss, "fastloss", "fastloss"),
    (FastlossNewArray, "fastloss-new-array", "new array"),
    (Numpy, "numpy", "NumPy by hand"),
    (Scipy, "scipy", "SciPy"),
    (ScikitLearn, "scikit-learn", "scikit-learn"),
    (Torch, "torch", "PyTorch"),
    (TorchCompiled, "torch-compile", "torch.compile"),
    (Optax, "optax", "optax, jit"),
)
TITLES = {key: title for _, key, title in PEERS}


def available(
    threads: int, wanted: list[str] | None, missing: Callable[[str, str], None]
) -> list[Peer]:
    """The peers among ``wanted`` (None: all) that are installed; ``missing`` hears of the rest."""
    found = []
    for kind, key, title in PEERS:
        if wanted is not None and key not in wanted:
            continue
        peer = kind(key, title, threads)
        try:
            peer.load()
        except ImportError as error:
            missing(title, str(error).splitlines()[0])
        else:
            found.append(peer)
    return found


def disagreement(answer: Any, reference: Any) -> float:
    """How far ``(loss, grad)`` is from the reference's: the larger of two relative errors.

    The gradient's error is relative to its largest entry.
    """
    (loss, grad), (expected, expected_grad) = answer, reference
    worst = abs(float(loss) - float(expected)) / max(abs(float(expected)), 1e-30)
    scale = float(np.abs(expected_grad).max())
    difference = float(np.abs(np.asarray(grad) - expected_grad).max())
    return max(worst, difference / max(scale, 1e-30))
