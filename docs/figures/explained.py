"""The figures of "Losses explained".

Run it to draw them again: python docs/figures/explained.py.
"""

from __future__ import annotations

import numpy as np
from style import BLUE, GREEN, GREY, RED, main, panel

import fastloss

# The forecast of a day's weather: what happens, and what a model says.
WEATHER = ["sun", "cloud", "rain", "snow"]
TRUTH = np.array([0.5, 0.25, 0.125, 0.125])
MODEL = np.array([0.25, 0.25, 0.25, 0.25])


def self_information():
    axes = panel("Self-information: −log p", "probability p", "nats")
    p = np.linspace(0.002, 1, 500)
    axes.plot(p, -np.log(p), color=RED)
    for x in (0.125, 0.25, 0.5, 1.0):
        axes.plot(x, -np.log(x), "o", color=RED)
        axes.annotate(
            f"p = {x:g}: {-np.log(x) + 0:.3f}", (x, -np.log(x)), (7, 5), textcoords="offset points"
        )
    axes.set(xlim=(0, 1.28), ylim=(0, 6), xticks=[0, 0.25, 0.5, 0.75, 1])
    return axes


def entropy_of_a_coin():
    axes = panel("Entropy of a coin: highest when fair", "probability of heads", "nats")
    p = np.linspace(1e-6, 1 - 1e-6, 400)
    axes.plot(p, -p * np.log(p) - (1 - p) * np.log(1 - p), color=BLUE)
    axes.annotate(
        "log 2 = 0.693", (0.5, np.log(2)), (0, 5), textcoords="offset points", ha="center"
    )
    axes.set(xlim=(0, 1), ylim=(0, 0.8))
    return axes


def two_distributions():
    axes = panel("What happens (P), and what the model says (Q)", "", "probability")
    at = np.arange(4)
    axes.bar(at - 0.2, TRUTH, 0.38, color=BLUE, label="P")
    axes.bar(at + 0.2, MODEL, 0.38, color=RED, label="Q")
    axes.set_xticks(at, WEATHER)
    axes.grid(visible=False, axis="x")
    axes.legend()
    return axes


def decomposition():
    axes = panel("H(P, Q) = H(P) + D(P‖Q)", "nats", "")
    own = float(-(TRUTH * np.log(TRUTH)).sum())
    both = float(fastloss.cross_entropy(np.log(MODEL)[None], TRUTH[None]))
    axes.barh(1, both, color=GREY)
    axes.barh(0, own, color=BLUE)
    axes.barh(0, both - own, left=own, color=RED)
    style = {"ha": "center", "va": "center", "color": "white"}
    axes.text(both / 2, 1, f"cross-entropy {both:.3f}", style)
    axes.text(own / 2, 0, f"entropy {own:.3f}", style)
    axes.annotate(
        f"relative entropy {both - own:.3f}",
        (both, -0.4),
        (0, -14),
        textcoords="offset points",
        ha="right",
    )
    axes.set(yticks=[], ylim=(-0.85, 1.6), xlim=(0, 1.45))
    axes.grid(visible=False)
    return axes


def cross_entropy_loss():
    axes = panel("Cross-entropy, logits (x, 0, 0)", "logit x of the target", "nats")
    x = np.linspace(-6, 6, 400)
    logits = np.stack([x, np.zeros_like(x), np.zeros_like(x)], axis=1)
    target = np.zeros(len(x), int)
    loss = fastloss.cross_entropy(logits, target, reduction="none")
    _, grad = fastloss.cross_entropy_value_and_grad(logits, target, reduction="sum")
    axes.plot(x, loss, color=RED, label="loss")
    axes.plot(x, grad[:, 0], color=BLUE, label="gradient, target")
    axes.plot(x, grad[:, 1], color=GREEN, ls="--", label="gradient, another class")
    axes.set(xlim=(-6, 6), ylim=(-1.5, 7))
    axes.legend()
    return axes


def nll_loss():
    axes = panel("NLL: minus the log-probability", "log-probability of the target", "nats")
    x = np.linspace(-6, 0, 200)
    loss, grad = fastloss.nll_loss_value_and_grad(
        np.stack([x, np.zeros_like(x)], axis=1), np.zeros(len(x), int), reduction="none"
    )
    axes.plot(x, loss, color=RED, label="loss")
    axes.plot(x, grad[:, 0], color=BLUE, label="gradient")
    axes.set(xlim=(-6, 0), ylim=(-1.5, 7))
    axes.legend()
    return axes


def bce_loss():
    axes = panel("BCE of a probability", "probability p", "nats")
    p = np.linspace(0.002, 0.998, 500)
    for target, colour in ((1.0, RED), (0.0, BLUE)):
        loss = fastloss.binary_cross_entropy(p, np.full_like(p, target), reduction="none")
        axes.plot(p, loss, color=colour, label=f"target {target:.0f}")
    axes.set(xlim=(0, 1), ylim=(0, 7))
    axes.legend(loc="upper center")
    return axes


def bce_with_logits_loss():
    axes = panel("BCE with logits", "logit x", "nats")
    x = np.linspace(-6, 6, 400)
    for target, colour in ((1.0, RED), (0.0, BLUE)):
        loss, grad = fastloss.binary_cross_entropy_with_logits_value_and_grad(
            x, np.full_like(x, target), reduction="none"
        )
        axes.plot(x, loss, color=colour, label=f"target {target:.0f}: loss")
        axes.plot(x, grad, color=colour, ls="--", label="its gradient")
    axes.set(xlim=(-6, 6), ylim=(-1.5, 7))
    axes.legend(loc="upper center", ncols=2, columnspacing=1)
    return axes


def pos_weight():
    axes = panel("pos_weight: a dearer miss", "logit x, target 1", "nats")
    x = np.linspace(-6, 6, 400)
    for weight, colour in ((1.0, GREY), (3.0, RED)):
        loss = fastloss.binary_cross_entropy_with_logits(
            x, np.ones_like(x), pos_weight=weight, reduction="none"
        )
        axes.plot(x, loss, color=colour, label=f"pos_weight {weight:.0f}")
    axes.set(xlim=(-6, 6), ylim=(0, 18))
    axes.legend()
    return axes


def focal():
    axes = panel("Focal loss: easy samples count less", "probability of the target", "nats")
    p = np.linspace(0.002, 0.998, 500)
    x = np.log(p / (1 - p))
    for gamma, colour in ((0.0, GREY), (1.0, BLUE), (2.0, RED)):
        loss = fastloss.sigmoid_focal_loss(
            x, np.ones_like(x), alpha=None, gamma=gamma, reduction="none"
        )
        axes.plot(p, loss, color=colour, label=f"γ = {gamma:.0f}")
    axes.set(xlim=(0, 1), ylim=(0, 4))
    axes.legend()
    return axes


FIGURES = {
    "self-information": self_information,
    "entropy": entropy_of_a_coin,
    "two-distributions": two_distributions,
    "decomposition": decomposition,
    "cross-entropy": cross_entropy_loss,
    "nll": nll_loss,
    "bce": bce_loss,
    "bce-with-logits": bce_with_logits_loss,
    "pos-weight": pos_weight,
    "focal": focal,
}

if __name__ == "__main__":
    main(FIGURES)
