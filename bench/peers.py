"""The competitors: how a user of each library writes each loss, alone and with its gradient.

A peer turns a problem (``problems.py``) into two calls without arguments, everything converted and
allocated beforehand: ``forward`` returns the mean loss, ``value_and_grad`` the loss and its
gradient with respect to the first argument (of a linear layer also to its weights). The second is
None where there is no gradient, or where the library makes none. A peer that lacks a loss leaves it
out. Each library is imported by its own peer only, and a missing one is skipped.

1. a class for each library;
2. ``available``, the peers that are installed, and ``disagreement``, which compares their answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from problems import (
    ALPHA,
    GAMMA,
    LOSSES,
    SMOOTHING,
    SOFTCAP,
    TEMPERATURE,
    Z_LOSS,
    Call,
    Problem,
    own_calls,
)

Calls = tuple[Call, Call | None]


@dataclass
class Peer:
    """A library. ``calls`` looks the loss up among the methods, by its name."""

    key: str = ""
    title: str = ""
    threads: int = 1
    modules: dict[str, Any] = field(default_factory=dict)

    def load(self) -> None:
        """Import the library; an ImportError means that the peer is skipped."""

    def calls(self, case: Problem) -> Calls | None:
        """``(forward, value_and_grad)``, or None for a loss that the library lacks."""
        # Soft targets are the same code as hard ones.
        method = getattr(self, case.loss.removesuffix("_soft"), None)
        return method(case) if method else None


class Fastloss(Peer):
    """fastloss, what is as large as the input written to an array that the caller keeps."""

    reuse = True

    def load(self) -> None:
        import fastloss

        fastloss.set_num_threads(self.threads)
        self.modules["fastloss"] = fastloss

    def calls(self, case: Problem) -> Calls | None:
        out, loss = None, LOSSES[case.loss]
        if self.reuse and (loss.gradient or loss.alike):
            out = np.empty_like(case.x)
            out.fill(0)  # faults the pages in
        try:
            return own_calls(self.modules["fastloss"], case, out)
        except LookupError:
            return None


class FastlossNewArray(Fastloss):
    """fastloss without ``out=``: a new array each call."""

    reuse = False


class ThreeLines(Peer):
    """The linear layer by hand around fastloss: a matmul, the loss in place, two matmuls."""

    def load(self) -> None:
        import fastloss

        self.modules["fastloss"] = fastloss

    def linear_cross_entropy(self, case: Problem) -> Calls:
        library = self.modules["fastloss"]
        x, layer, target = case.arguments

        def value_and_grad() -> Any:
            logits = x @ layer.T
            loss, grad = library.cross_entropy_value_and_grad(logits, target, out=logits)
            return loss, (grad @ layer, grad.T @ x)

        return lambda: library.cross_entropy(x @ layer.T, target), value_and_grad


class Numpy(Peer):
    """NumPy by hand, in place where that is the natural way to write it."""

    def _log_softmax(self, x: np.ndarray) -> np.ndarray:
        z: np.ndarray = x - x.max(axis=1, keepdims=True)
        z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
        return z

    def cross_entropy(self, case: Problem) -> Calls:
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

    def _with_options(self, case: Problem) -> Calls:
        """Class or sample weights, temperature, softcap or z-loss."""
        picked = np.expand_dims(case.target, 1)
        samples = case.target.size
        if "weight" in case.options:
            weight = case.options["weight"][case.target]
        else:
            weight = case.options.get("sample_weight")
        temperature, cap = case.options.get("temperature"), case.options.get("softcap")
        z_loss = case.options.get("z_loss")

        def parts() -> tuple[Any, ...]:
            x = case.x
            if temperature:
                x = x / temperature
            bent = np.tanh(x / cap) if cap else None
            if cap:
                x = cap * bent
            top = x.max(axis=1, keepdims=True)
            z = x - top
            at_target = np.take_along_axis(z, picked, 1)
            z = np.exp(z, out=z)
            total = z.sum(axis=1, keepdims=True)
            loss = (np.log(total) - at_target)[:, 0]
            lse = (top + np.log(total))[:, 0] if z_loss else None
            if z_loss:
                loss += z_loss * lse**2
            if weight is None:
                return loss.mean(), z, total, bent, lse
            return (weight * loss).sum() / weight.sum(), z, total, bent, lse

        def value_and_grad() -> Any:
            loss, grad, total, bent, lse = parts()
            grad /= total
            hit = np.take_along_axis(grad, picked, 1)
            if z_loss:
                grad *= 1 + 2 * z_loss * lse[:, None]
                hit = np.take_along_axis(grad, picked, 1)
            np.put_along_axis(grad, picked, hit - 1, 1)
            if cap:
                grad *= 1 - bent**2
            if temperature:
                grad /= temperature
            grad *= 1 / samples if weight is None else (weight / weight.sum())[:, None]
            return loss, grad

        return lambda: parts()[0], value_and_grad

    cross_entropy_weight = cross_entropy_sample_weight = _with_options
    cross_entropy_temperature = cross_entropy_softcap = cross_entropy_z_loss = _with_options

    def softmax_focal_loss(self, case: Problem) -> Calls:
        x, picked = case.x, np.expand_dims(case.target, 1)

        def parts() -> tuple[Any, Any, Any]:
            z = self._log_softmax(x)
            nll = -np.take_along_axis(z, picked, 1)
            return z, nll, -np.expm1(-nll)

        def forward() -> Any:
            _, nll, wrong = parts()
            return (wrong**GAMMA * nll).mean()

        def value_and_grad() -> Any:
            z, nll, wrong = parts()
            right = np.exp(-nll)
            slope = wrong**GAMMA + GAMMA * wrong ** (GAMMA - 1) * right * nll
            grad = np.exp(z, out=z)
            np.put_along_axis(grad, picked, -wrong, 1)
            grad *= slope / case.target.size
            return (wrong**GAMMA * nll).mean(), grad

        return forward, value_and_grad

    def distillation_loss(self, case: Problem) -> Calls:
        x, teacher = case.x, case.target
        square = TEMPERATURE**2

        def parts() -> tuple[Any, Any, Any]:
            mine = self._log_softmax(x / TEMPERATURE)
            theirs = self._log_softmax(teacher / TEMPERATURE)
            goal = np.exp(theirs)
            return (goal * (theirs - mine)).sum() / len(x) * square, mine, goal

        def value_and_grad() -> Any:
            loss, grad, goal = parts()
            grad = np.exp(grad, out=grad)
            grad -= goal
            grad *= TEMPERATURE / len(x)
            return loss, grad

        return lambda: parts()[0], value_and_grad

    def linear_cross_entropy(self, case: Problem) -> Calls:
        x, layer, target = case.arguments
        picked = target[:, None]

        def parts() -> tuple[Any, Any]:
            z = self._log_softmax(x @ layer.T)
            return -np.take_along_axis(z, picked, 1).mean(), z

        def value_and_grad() -> Any:
            loss, z = parts()
            grad = np.exp(z, out=z)
            np.put_along_axis(grad, picked, np.take_along_axis(grad, picked, 1) - 1, 1)
            grad /= len(x)
            return loss, (grad @ layer, grad.T @ x)

        return lambda: parts()[0], value_and_grad

    def logsumexp(self, case: Problem) -> Calls:
        x = case.x

        def forward() -> Any:
            top = x.max(axis=1, keepdims=True)
            return np.log(np.exp(x - top).sum(axis=1)) + top[:, 0]

        return forward, None

    def softmax(self, case: Problem) -> Calls:
        x = case.x

        def forward() -> Any:
            z = x - x.max(axis=1, keepdims=True)
            z = np.exp(z, out=z)
            z /= z.sum(axis=1, keepdims=True)
            return z

        return forward, None

    def log_softmax(self, case: Problem) -> Calls:
        return lambda: self._log_softmax(case.x), None

    def score_samples(self, case: Problem) -> Calls:
        x, picked = case.x, np.expand_dims(case.target, 1)

        def forward() -> Any:
            z = self._log_softmax(x)
            predicted = z.argmax(axis=1)
            return (
                np.take_along_axis(z, picked, 1)[:, 0],
                predicted,
                np.take_along_axis(z, predicted[:, None], 1)[:, 0],
                -(np.exp(z) * z).sum(axis=1),
            )

        return forward, None

    def cross_entropy_smoothing(self, case: Problem) -> Calls:
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

    def cross_entropy_probabilities(self, case: Problem) -> Calls:
        x, target = case.x, case.target
        samples = x.size // x.shape[1]

        def value_and_grad() -> Any:
            z = self._log_softmax(x)
            value = -(target * z).sum() / samples
            grad = np.exp(z, out=z)
            grad *= target.sum(axis=1, keepdims=True)
            grad -= target
            grad /= samples
            return value, grad

        return lambda: -(target * self._log_softmax(x)).sum() / samples, value_and_grad

    def nll_loss(self, case: Problem) -> Calls:
        x, picked = case.x, np.expand_dims(case.target, 1)
        samples = case.target.size

        def value_and_grad() -> Any:
            grad = np.zeros_like(x)
            np.put_along_axis(grad, picked, -1 / samples, 1)
            return -np.take_along_axis(x, picked, 1).mean(), grad

        return lambda: -np.take_along_axis(x, picked, 1).mean(), value_and_grad

    def binary_cross_entropy(self, case: Problem) -> Calls:
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

    def binary_cross_entropy_with_logits(self, case: Problem) -> Calls:
        x, target = case.x, case.target

        def forward() -> Any:
            return (np.maximum(x, 0) - x * target + np.log1p(np.exp(-np.abs(x)))).mean()

        def value_and_grad() -> Any:
            grad = 1 / (1 + np.exp(-x))
            grad -= target
            grad /= x.size
            return forward(), grad

        return forward, value_and_grad

    def binary_cross_entropy_with_logits_weight(self, case: Problem) -> Calls:
        x, target, weight = case.x, case.target, case.options["weight"]

        def forward() -> Any:
            loss = np.maximum(x, 0) - x * target + np.log1p(np.exp(-np.abs(x)))
            return (weight * loss).mean()

        def value_and_grad() -> Any:
            grad = 1 / (1 + np.exp(-x))
            grad -= target
            grad *= weight
            grad /= x.size
            return forward(), grad

        return forward, value_and_grad

    def binary_cross_entropy_with_logits_pos_weight(self, case: Problem) -> Calls:
        x, target, pos_weight = case.x, case.target, case.options["pos_weight"]

        def forward() -> Any:
            both = 1 + (pos_weight - 1) * target
            softplus = np.log1p(np.exp(-np.abs(x))) + np.maximum(-x, 0)
            return ((1 - target) * x + both * softplus).mean()

        def value_and_grad() -> Any:
            both = 1 + (pos_weight - 1) * target
            grad = (1 - target) - both / (1 + np.exp(x))
            grad /= x.size
            return forward(), grad

        return forward, value_and_grad

    def kl_div(self, case: Problem) -> Calls:
        x, target = case.x, case.target

        def forward() -> Any:
            return (target * (np.log(target) - x)).sum() / len(x)

        return forward, lambda: (forward(), -target / len(x))

    def sigmoid_focal_loss(self, case: Problem) -> Calls:
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

    def cross_entropy(self, case: Problem) -> Calls:
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

    def cross_entropy_probabilities(self, case: Problem) -> Calls:
        log_softmax = self.modules["special"].log_softmax
        x, target = case.x, case.target
        samples = x.size // x.shape[1]

        def value_and_grad() -> Any:
            log_probs = log_softmax(x, axis=1)
            value = -(target * log_probs).sum() / samples
            grad = np.exp(log_probs, out=log_probs)
            grad *= target.sum(axis=1, keepdims=True)
            grad -= target
            grad /= samples
            return value, grad

        return lambda: -(target * log_softmax(x, axis=1)).sum() / samples, value_and_grad

    def binary_cross_entropy(self, case: Problem) -> Calls:
        special = self.modules["special"]
        p, target = case.x, case.target

        def forward() -> Any:
            return -(special.xlogy(target, p) + special.xlog1py(1 - target, -p)).mean()

        def value_and_grad() -> Any:
            grad = (p - target) / np.maximum(p * (1 - p), 1e-12)
            grad /= p.size
            return forward(), grad

        return forward, value_and_grad

    def binary_cross_entropy_with_logits(self, case: Problem) -> Calls:
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

    def kl_div(self, case: Problem) -> Calls:
        special = self.modules["special"]
        x, target = case.x, case.target

        def forward() -> Any:
            return (special.xlogy(target, target) - target * x).sum() / len(x)

        return forward, lambda: (forward(), -target / len(x))

    def sigmoid_focal_loss(self, case: Problem) -> Calls:
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

    def logsumexp(self, case: Problem) -> Calls:
        special, x = self.modules["special"], case.x
        return lambda: special.logsumexp(x, axis=1), None

    def softmax(self, case: Problem) -> Calls:
        special, x = self.modules["special"], case.x
        return lambda: special.softmax(x, axis=1), None

    def log_softmax(self, case: Problem) -> Calls:
        special, x = self.modules["special"], case.x
        return lambda: special.log_softmax(x, axis=1), None


class ScikitLearn(Peer):
    """scikit-learn's Cython losses under its linear models and boosting (a private module).

    They are handed their outputs, and weights of 1/N so that the gradient is the mean's. They take
    two-dimensional logits of float32 or float64 alone.
    """

    def load(self) -> None:
        from sklearn._loss import HalfBinomialLoss, HalfMultinomialLoss
        from sklearn.utils.extmath import softmax

        self.modules.update(
            binomial=HalfBinomialLoss, multinomial=HalfMultinomialLoss, softmax=softmax
        )

    def _calls(self, loss: Any, case: Problem) -> Calls:
        x, target = case.x, case.target.astype(case.x.dtype)
        value, grad = np.empty(len(x), dtype=x.dtype), np.empty_like(x)
        weights = case.options.get("sample_weight", np.ones(len(x), dtype=x.dtype))
        weights = weights / weights.sum()
        keywords = {"y_true": target, "raw_prediction": x, "n_threads": self.threads}
        if "sample_weight" in case.options:
            keywords["sample_weight"] = weights

        def forward() -> Any:
            answer = loss.loss(**keywords, loss_out=value)
            return answer.sum() if "sample_weight" in keywords else answer.mean()

        def value_and_grad() -> Any:
            loss.loss_gradient(
                **{**keywords, "sample_weight": weights}, loss_out=value, gradient_out=grad
            )
            return value.sum(), grad

        return forward, value_and_grad

    def cross_entropy(self, case: Problem) -> Calls | None:
        if case.x.ndim != 2:
            return None
        return self._calls(self.modules["multinomial"](n_classes=case.x.shape[1]), case)

    cross_entropy_sample_weight = cross_entropy

    def softmax(self, case: Problem) -> Calls | None:
        if case.x.ndim != 2:
            return None
        softmax, x = self.modules["softmax"], case.x
        return lambda: softmax(x), None

    def binary_cross_entropy_with_logits(self, case: Problem) -> Calls | None:
        if case.x.ndim != 1:
            return None
        return self._calls(self.modules["binomial"](), case)


class Torch(Peer):
    """PyTorch eager: a function of torch.nn.functional, and ``backward`` for the gradient."""

    compiled = False

    def load(self) -> None:
        import torch

        torch.set_num_threads(self.threads)
        self.modules["torch"] = torch

    def _function(self, case: Problem) -> Callable[..., Any]:
        """The loss of ``(x, target)``, for a linear layer of ``(x, layer, target)``."""
        torch = self.modules["torch"]
        functional = torch.nn.functional
        options = {
            key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for key, value in case.options.items()
        }
        ce = functional.cross_entropy

        def sample_weight(x: Any, target: Any) -> Any:
            weight = options["sample_weight"]
            return (ce(x, target, reduction="none") * weight).sum() / weight.sum()

        def z_loss(x: Any, target: Any) -> Any:
            return ce(x, target) + Z_LOSS * x.logsumexp(1).square().mean()

        def sigmoid_focal(x: Any, target: Any) -> Any:
            # PyTorch has none; this is the formula as its users write it.
            p = x.sigmoid()
            bce = functional.binary_cross_entropy_with_logits(x, target, reduction="none")
            wrong = p * (1 - target) + (1 - p) * target
            balance = ALPHA * target + (1 - ALPHA) * (1 - target)
            return (balance * wrong**GAMMA * bce).mean()

        def softmax_focal(x: Any, target: Any) -> Any:
            nll = ce(x, target, reduction="none")
            return ((1 - torch.exp(-nll)) ** GAMMA * nll).mean()

        def distillation(x: Any, teacher: Any) -> Any:
            goal = functional.log_softmax(teacher / TEMPERATURE, 1)
            mine = functional.log_softmax(x / TEMPERATURE, 1)
            square = TEMPERATURE**2
            return functional.kl_div(mine, goal, reduction="batchmean", log_target=True) * square

        def linear(x: Any, layer: Any, target: Any) -> Any:
            fused = getattr(functional, "linear_cross_entropy", None)
            if fused is not None:
                return fused(x, layer, target)
            return ce(functional.linear(x, layer), target)

        def scores(x: Any, target: Any) -> Any:
            z = functional.log_softmax(x, 1)
            best, predicted = z.max(1)
            hit = z.gather(1, target[:, None])[:, 0]
            return hit, predicted, best, -(z.exp() * z).sum(1)

        written = {
            "cross_entropy_sample_weight": sample_weight,
            "cross_entropy_temperature": lambda x, target: ce(x / TEMPERATURE, target),
            "cross_entropy_softcap": lambda x, target: ce(
                SOFTCAP * torch.tanh(x / SOFTCAP), target
            ),
            "cross_entropy_z_loss": z_loss,
            "sigmoid_focal_loss": sigmoid_focal,
            "softmax_focal_loss": softmax_focal,
            "distillation_loss": distillation,
            "linear_cross_entropy": linear,
            "score_samples": scores,
            "logsumexp": lambda x: torch.logsumexp(x, 1),
            "softmax": lambda x: functional.softmax(x, 1),
            "log_softmax": lambda x: functional.log_softmax(x, 1),
        }
        if case.loss in written:
            return written[case.loss]
        function = getattr(functional, LOSSES[case.loss].function)
        return lambda x, target: function(x, target, **options)

    def calls(self, case: Problem) -> Calls | None:
        torch = self.modules["torch"]
        function = self._function(case)
        if self.compiled:
            torch._dynamo.reset()
            function = torch.compile(function, dynamic=False)
        given = [torch.from_numpy(array) for array in case.arguments]
        # Gradients are asked for with respect to the input, and to a layer's weights.
        count = 1 if case.linear_weight is None else 2
        leaves = [
            torch.from_numpy(array).requires_grad_() if number < count else torch.from_numpy(array)
            for number, array in enumerate(case.arguments)
        ]

        def forward() -> Any:
            with torch.no_grad():
                return function(*given)

        def value_and_grad() -> Any:
            for leaf in leaves[:count]:
                leaf.grad = None
            loss = function(*leaves)
            loss.backward()
            grads = tuple(leaf.grad for leaf in leaves[:count])
            return loss.detach(), grads[0] if count == 1 else grads

        return forward, value_and_grad if LOSSES[case.loss].gradient else None


class FastlossTorch(Torch):
    """fastloss.torch: PyTorch's functions on its tensors, computed by fastloss."""

    # Of fastloss.torch's functions and their options; whatever else is composed of PyTorch's.
    own = (
        "cross_entropy", "cross_entropy_weight", "cross_entropy_smoothing",
        "cross_entropy_probabilities", "nll_loss", "binary_cross_entropy",
        "binary_cross_entropy_soft", "binary_cross_entropy_with_logits",
        "binary_cross_entropy_with_logits_soft", "binary_cross_entropy_with_logits_weight",
        "binary_cross_entropy_with_logits_pos_weight", "kl_div", "linear_cross_entropy",
    )  # fmt: skip

    def load(self) -> None:
        super().load()
        import fastloss.torch

        self.modules["fastloss.torch"] = fastloss.torch

    def _function(self, case: Problem) -> Callable[..., Any]:
        torch = self.modules["torch"]
        function = getattr(self.modules["fastloss.torch"], LOSSES[case.loss].function)
        options = {
            key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for key, value in case.options.items()
        }
        return lambda *given: function(*given, **options)

    def calls(self, case: Problem) -> Calls | None:
        return super().calls(case) if case.loss in self.own else None


class TorchCompiled(Torch):
    """PyTorch under torch.compile, forward and backward; compiled in the warm-up."""

    compiled = True


class Optax(Peer):
    """optax's losses under jax.jit, or jax.numpy where optax has no such loss."""

    # What optax sums over the last axis, not over axis 1.
    flat = ("cross_entropy_smoothing", "cross_entropy_probabilities", "kl_div")

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
        options = {
            key: numpy.asarray(value) if isinstance(value, np.ndarray) else value
            for key, value in case.options.items()
        }

        def each(x: Any, target: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(x, target, axis=1)

        def weighted(x: Any, target: Any) -> Any:
            weight = options["weight"][target] if "weight" in options else options["sample_weight"]
            return (weight * each(x, target)).sum() / weight.sum()

        def z_loss(x: Any, target: Any) -> Any:
            return (each(x, target) + Z_LOSS * jax.nn.logsumexp(x, axis=1) ** 2).mean()

        def softmax_focal(x: Any, target: Any) -> Any:
            nll = each(x, target)
            return ((1 - numpy.exp(-nll)) ** GAMMA * nll).mean()

        def distillation(x: Any, teacher: Any) -> Any:
            goal = jax.nn.log_softmax(teacher / TEMPERATURE, axis=1)
            mine = jax.nn.log_softmax(x / TEMPERATURE, axis=1)
            return (numpy.exp(goal) * (goal - mine)).sum() / len(x) * TEMPERATURE**2

        def pos_weight(x: Any, target: Any) -> Any:
            hit, miss = jax.nn.softplus(-x), jax.nn.softplus(x)
            return (options["pos_weight"] * target * hit + (1 - target) * miss).mean()

        def scores(x: Any, target: Any) -> Any:
            z = jax.nn.log_softmax(x, axis=1)
            hit = numpy.take_along_axis(z, target[:, None], 1)[:, 0]
            return hit, z.argmax(axis=1), z.max(axis=1), -(numpy.exp(z) * z).sum(axis=1)

        def smoothing(x: Any, target: Any) -> Any:
            soft = optax.smooth_labels(jax.nn.one_hot(target, classes, dtype=x.dtype), SMOOTHING)
            return optax.softmax_cross_entropy(x, soft).mean()

        def bce(p: Any, target: Any) -> Any:
            hit, miss = numpy.maximum(numpy.log(p), -100), numpy.maximum(numpy.log1p(-p), -100)
            return -(target * hit + (1 - target) * miss).mean()

        return {
            "cross_entropy": lambda x, t: each(x, t).mean(),
            "cross_entropy_weight": weighted,
            "cross_entropy_sample_weight": weighted,
            "cross_entropy_temperature": lambda x, t: each(x / TEMPERATURE, t).mean(),
            "cross_entropy_softcap": lambda x, t: each(SOFTCAP * numpy.tanh(x / SOFTCAP), t).mean(),
            "cross_entropy_z_loss": z_loss,
            "softmax_focal_loss": softmax_focal,
            "distillation_loss": distillation,
            "linear_cross_entropy": lambda x, layer, t: each(x @ layer.T, t).mean(),
            "binary_cross_entropy_with_logits_weight": lambda x, t: (
                options["weight"] * optax.sigmoid_binary_cross_entropy(x, t)
            ).mean(),
            "binary_cross_entropy_with_logits_pos_weight": pos_weight,
            "logsumexp": lambda x: jax.nn.logsumexp(x, axis=1),
            "softmax": lambda x: jax.nn.softmax(x, axis=1),
            "log_softmax": lambda x: jax.nn.log_softmax(x, axis=1),
            "score_samples": scores,
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
        }[case.loss.removesuffix("_soft")]

    def calls(self, case: Problem) -> Calls | None:
        jax = self.modules["jax"]
        if case.x.ndim > 2 and case.loss in self.flat:
            return None
        function = self._function(case)
        given = [jax.numpy.asarray(array) for array in case.arguments]
        wait = jax.block_until_ready
        forward = jax.jit(function)
        if not LOSSES[case.loss].gradient:
            return lambda: wait(forward(*given)), None
        which = 0 if case.linear_weight is None else (0, 1)
        both = jax.jit(jax.value_and_grad(function, argnums=which))
        return lambda: wait(forward(*given)), lambda: wait(both(*given))


class Onnx(Peer):
    """ONNX Runtime on the processor, a model of one operator; it runs models and has no gradient.

    Input and result are bound to arrays that the caller keeps, as its users do for speed.
    """

    def load(self) -> None:
        import onnx
        import onnxruntime

        self.modules.update(onnx=onnx, runtime=onnxruntime)

    def _calls(self, operator: str, case: Problem, *more: np.ndarray, **attributes: Any) -> Calls:
        onnx, runtime = self.modules["onnx"], self.modules["runtime"]
        given = {f"in{number}": array for number, array in enumerate((case.x, *more))}

        def value(name: str, array: np.ndarray) -> Any:
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            return onnx.helper.make_tensor_value_info(name, kind, array.shape)

        one_number = operator.endswith("Loss")
        result = np.empty((), case.x.dtype) if one_number else np.empty_like(case.x)
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(operator, list(given), ["out"], **attributes)],
            operator,
            [value(name, array) for name, array in given.items()],
            [value("out", result)],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
        model.ir_version = 8  # that of this operator set: older runtimes read it as well
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        kept = [runtime.OrtValue.ortvalue_from_numpy(array) for array in given.values()]
        for name, array in zip(given, kept, strict=True):
            binding.bind_ortvalue_input(name, array)
        outcome = runtime.OrtValue.ortvalue_from_numpy(result)
        binding.bind_ortvalue_output("out", outcome)

        def forward() -> Any:
            session.run_with_iobinding(binding)
            return outcome.numpy()

        return forward, None

    def cross_entropy(self, case: Problem) -> Calls:
        return self._calls("SoftmaxCrossEntropyLoss", case, case.target)

    def cross_entropy_weight(self, case: Problem) -> Calls:
        return self._calls("SoftmaxCrossEntropyLoss", case, case.target, case.options["weight"])

    def nll_loss(self, case: Problem) -> Calls:
        return self._calls("NegativeLogLikelihoodLoss", case, case.target)

    def softmax(self, case: Problem) -> Calls:
        return self._calls("Softmax", case, axis=1)

    def log_softmax(self, case: Problem) -> Calls:
        return self._calls("LogSoftmax", case, axis=1)


class Numba(Peer):
    """Loops that Numba compiles, one over the samples, parallel where there are threads."""

    def load(self) -> None:
        import numba

        numba.set_num_threads(self.threads)
        self.modules["numba"] = numba

    def _compiled(self, function: Callable[..., Any]) -> Any:
        return self.modules["numba"].njit(parallel=self.threads > 1)(function)

    def _rows(self) -> Any:
        """``(shifted exponentials' sum, maximum)`` of a row."""

        def row_sum(row: Any) -> Any:
            top = row[0]
            for number in row:
                top = max(top, number)
            total = np.float32(0)
            for number in row:
                total += np.exp(number - top)
            return total, top

        return self.modules["numba"].njit(row_sum)

    def cross_entropy(self, case: Problem) -> Calls | None:
        if case.x.ndim != 2:
            return None
        x, target, out = case.x, case.target, np.zeros_like(case.x)
        row_sum, span = self._rows(), self.modules["numba"].prange

        def loss(x: Any, target: Any) -> Any:
            whole = 0.0
            for i in span(x.shape[0]):
                total, top = row_sum(x[i])
                whole += np.log(total) + top - x[i, target[i]]
            return whole / x.shape[0]

        def both(x: Any, target: Any, out: Any) -> Any:
            whole = 0.0
            for i in span(x.shape[0]):
                total, top = row_sum(x[i])
                whole += np.log(total) + top - x[i, target[i]]
                scale = 1 / (total * x.shape[0])
                for j in range(x.shape[1]):
                    out[i, j] = np.exp(x[i, j] - top) * scale
                out[i, target[i]] -= 1 / x.shape[0]
            return whole / x.shape[0]

        forward, backward = self._compiled(loss), self._compiled(both)
        return lambda: forward(x, target), lambda: (backward(x, target, out), out)

    def cross_entropy_probabilities(self, case: Problem) -> Calls | None:
        if case.x.ndim != 2:
            return None
        x, target, out = case.x, case.target, np.zeros_like(case.x)
        row_sum, span = self._rows(), self.modules["numba"].prange

        def loss(x: Any, target: Any) -> Any:
            whole = 0.0
            for i in span(x.shape[0]):
                total, top = row_sum(x[i])
                high = np.log(total) + top
                for j in range(x.shape[1]):
                    whole += target[i, j] * (high - x[i, j])
            return whole / x.shape[0]

        def both(x: Any, target: Any, out: Any) -> Any:
            whole = 0.0
            for i in span(x.shape[0]):
                total, top = row_sum(x[i])
                high, mass = np.log(total) + top, np.float32(0)
                for j in range(x.shape[1]):
                    whole += target[i, j] * (high - x[i, j])
                    mass += target[i, j]
                for j in range(x.shape[1]):
                    p = np.exp(x[i, j] - high)
                    out[i, j] = (mass * p - target[i, j]) / x.shape[0]
            return whole / x.shape[0]

        forward, backward = self._compiled(loss), self._compiled(both)
        return lambda: forward(x, target), lambda: (backward(x, target, out), out)

    def binary_cross_entropy_with_logits(self, case: Problem) -> Calls | None:
        if case.x.ndim != 1:
            return None
        x, target, out = case.x, case.target, np.zeros_like(case.x)
        span = self.modules["numba"].prange

        def loss(x: Any, target: Any) -> Any:
            whole = 0.0
            for i in span(x.size):
                whole += max(x[i], 0) - x[i] * target[i] + np.log1p(np.exp(-abs(x[i])))
            return whole / x.size

        def both(x: Any, target: Any, out: Any) -> Any:
            whole = 0.0
            for i in span(x.size):
                small = np.exp(-abs(x[i]))
                whole += max(x[i], 0) - x[i] * target[i] + np.log1p(small)
                p = 1 / (1 + small) if x[i] >= 0 else small / (1 + small)
                out[i] = (p - target[i]) / x.size
            return whole / x.size

        forward, backward = self._compiled(loss), self._compiled(both)
        return lambda: forward(x, target), lambda: (backward(x, target, out), out)

    def kl_div(self, case: Problem) -> Calls | None:
        if case.x.ndim != 2:
            return None
        x, target, out = case.x, case.target, np.zeros_like(case.x)
        span = self.modules["numba"].prange

        def loss(x: Any, target: Any) -> Any:
            whole = 0.0
            for i in span(x.shape[0]):
                for j in range(x.shape[1]):
                    if target[i, j] > 0:
                        whole += target[i, j] * (np.log(target[i, j]) - x[i, j])
            return whole / x.shape[0]

        def both(x: Any, target: Any, out: Any) -> Any:
            whole = 0.0
            for i in span(x.shape[0]):
                for j in range(x.shape[1]):
                    if target[i, j] > 0:
                        whole += target[i, j] * (np.log(target[i, j]) - x[i, j])
                    out[i, j] = -target[i, j] / x.shape[0]
            return whole / x.shape[0]

        forward, backward = self._compiled(loss), self._compiled(both)
        return lambda: forward(x, target), lambda: (backward(x, target, out), out)

    def logsumexp(self, case: Problem) -> Calls | None:
        if case.x.ndim != 2:
            return None
        x, row_sum, span = case.x, self._rows(), self.modules["numba"].prange

        def every(x: Any) -> Any:
            out = np.empty(x.shape[0], x.dtype)
            for i in span(x.shape[0]):
                total, top = row_sum(x[i])
                out[i] = np.log(total) + top
            return out

        forward = self._compiled(every)
        return lambda: forward(x), None

    def softmax(self, case: Problem) -> Calls | None:
        if case.x.ndim != 2:
            return None
        x, row_sum, span = case.x, self._rows(), self.modules["numba"].prange

        def every(x: Any) -> Any:
            out = np.empty_like(x)
            for i in span(x.shape[0]):
                total, top = row_sum(x[i])
                for j in range(x.shape[1]):
                    out[i, j] = np.exp(x[i, j] - top) / total
            return out

        forward = self._compiled(every)
        return lambda: forward(x), None


class NumExpr(Peer):
    """NumExpr: whole expressions block by block; it sums, but knows no maximum over an axis."""

    def load(self) -> None:
        import numexpr

        numexpr.set_num_threads(self.threads)
        self.modules["numexpr"] = numexpr

    def _calls(self, case: Problem, loss: str, grad: str, over: int, **names: Any) -> Calls:
        evaluate = self.modules["numexpr"].evaluate
        out = np.zeros_like(case.x)
        known = {"x": case.x, "t": case.target, "n": np.float32(over), **names}

        def forward() -> Any:
            return evaluate(f"sum({loss})", local_dict=known) / over

        def value_and_grad() -> Any:
            value = forward()
            return value, evaluate(f"({grad}) / n", local_dict=known, out=out, casting="same_kind")

        return forward, value_and_grad

    def cross_entropy(self, case: Problem) -> Calls | None:
        if case.x.ndim != 2:
            return None
        evaluate = self.modules["numexpr"].evaluate
        x, picked, out = case.x, case.target[:, None], np.zeros_like(case.x)

        def parts() -> tuple[Any, Any]:
            top = x.max(axis=1, keepdims=True)
            total = evaluate("sum(exp(x - top), axis=1)", local_dict={"x": x, "top": top})
            high = (np.log(total) + top[:, 0])[:, None]
            return (high - np.take_along_axis(x, picked, 1)).mean(), high

        def value_and_grad() -> Any:
            loss, high = parts()
            known = {"x": x, "high": high, "n": np.float32(len(x))}
            evaluate("exp(x - high) / n", local_dict=known, out=out, casting="same_kind")
            hit = np.take_along_axis(out, picked, 1)
            np.put_along_axis(out, picked, hit - 1 / len(x), 1)
            return loss, out

        return lambda: parts()[0], value_and_grad

    def binary_cross_entropy_with_logits(self, case: Problem) -> Calls:
        loss = "where(x > 0, x, 0 * x) - x * t + log1p(exp(-abs(x)))"
        return self._calls(case, loss, "1 / (1 + exp(-x)) - t", case.x.size)

    def kl_div(self, case: Problem) -> Calls:
        return self._calls(case, "t * (log(t) - x)", "-t", len(case.x))

    def sigmoid_focal_loss(self, case: Problem) -> Calls:
        # With two as the exponent, which its users write as a square.
        signed = "(2 * t - 1) * x"
        wrong = f"(1 / (1 + exp({signed})))"
        scaled = f"(a * t + (1 - a) * (1 - t)) * {wrong}**2"
        nll = f"log1p(exp(-({signed})))"
        grad = f"(1 - 2 * t) * {scaled} * (2 * (1 - {wrong}) * {nll} + {wrong})"
        return self._calls(case, f"{scaled} * {nll}", grad, case.x.size, a=np.float32(ALPHA))


PEERS: tuple[tuple[type[Peer], str, str], ...] = (
    (Fastloss, "fastloss", "fastloss"),
    (FastlossNewArray, "fastloss-new-array", "new array"),
    (FastlossTorch, "fastloss-torch", "fastloss.torch"),
    (Numpy, "numpy", "NumPy by hand"),
    (Scipy, "scipy", "SciPy"),
    (ScikitLearn, "scikit-learn", "scikit-learn"),
    (Torch, "torch", "PyTorch"),
    (TorchCompiled, "torch-compile", "torch.compile"),
    (Optax, "optax", "optax, jit"),
    (Onnx, "onnxruntime", "ONNX Runtime"),
    (Numba, "numba", "Numba"),
    (NumExpr, "numexpr", "NumExpr"),
    (ThreeLines, "three-lines", "three lines"),
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
    """How far an answer is from the reference's: the largest of its parts' relative errors.

    An array's error is relative to its largest entry. Of a tuple of arrays such as that of
    ``score_samples`` the first counts, which everybody has.
    """
    if isinstance(answer, tuple):
        pairs = list(zip(answer, reference, strict=False))
        if np.ndim(pairs[0][0]) > 0:  # scores
            return disagreement(*pairs[0])
        return max(
            disagreement(mine[0], theirs[0])
            if isinstance(mine, tuple)
            else disagreement(mine, theirs)
            for mine, theirs in pairs
        )
    expected = np.asarray(reference, dtype=np.float64)
    apart = np.abs(np.asarray(answer, dtype=np.float64) - expected).max()
    return float(apart / max(np.abs(expected).max(), 1e-30))
