"""The figures of the how-to pages. Run it to draw them again: python docs/figures/howto.py.

Each repeats, for a picture, what the code on its page does.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from sklearn.datasets import load_digits, load_iris
from sklearn.tree import DecisionTreeRegressor
from style import BLUE, GREEN, GREY, INK, RED, main, panel

import fastloss
from fastloss.data import load_digits_logits


def iris():
    flowers = load_iris()
    petals, species = flowers.data[:, 2:], flowers.target
    mean = petals.mean(axis=0)
    x = np.column_stack([petals - mean, np.ones(len(petals))])

    def objective(flat):
        loss, grad = fastloss.cross_entropy_value_and_grad(x @ flat.reshape(3, 3), species)
        slopes = flat.reshape(3, 3) * np.array([[1.0], [1.0], [0.0]])
        return loss + 5e-4 * (slopes**2).sum(), (x.T @ grad + 1e-3 * slopes).ravel()

    weights = minimize(objective, np.zeros(9), jac=True, method="L-BFGS-B").x.reshape(3, 3)
    axes = panel("Iris: three classes, two lines", "petal length (cm)", "petal width (cm)")
    for kind, (colour, mark) in enumerate(((BLUE, "o"), (GREEN, "^"), (RED, "s"))):
        axes.plot(
            *petals[species == kind].T, mark, color=colour, ms=4, label=flowers.target_names[kind]
        )
    length = np.linspace(0.8, 7.1, 50)
    for one, other in ((0, 1), (1, 2)):
        a, b, c = weights[:, one] - weights[:, other]
        axes.plot(length, mean[1] - (a * (length - mean[0]) + c) / b, color=INK, lw=1)
    axes.set(xlim=(0.8, 7.1), ylim=(0, 2.8))
    axes.legend(loc="upper left")
    return axes


def mlp():
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(digits))
    train, test = order[:1437], order[1437:]
    scale = np.sqrt(2 / 64)
    parameters = [
        rng.normal(0, scale, (64, 64)).astype(np.float32),
        np.zeros(64, np.float32),
        rng.normal(0, scale, (64, 10)).astype(np.float32),
        np.zeros(10, np.float32),
    ]
    velocity = [np.zeros_like(p) for p in parameters]
    criterion = fastloss.CrossEntropyLoss()

    def forward(x):
        w1, b1, w2, b2 = parameters
        hidden = np.maximum(x @ w1 + b1, 0)
        return hidden, hidden @ w2 + b2

    seen, held_out = [], []
    for _ in range(30):
        order = rng.permutation(train)
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            hidden, logits = forward(images[rows])
            _, grad = criterion.value_and_grad(logits, digits[rows])
            back = (grad @ parameters[2].T) * (hidden > 0)
            gradients = [images[rows].T @ back, back.sum(axis=0), hidden.T @ grad, grad.sum(axis=0)]
            for p, v, g in zip(parameters, velocity, gradients, strict=True):
                v *= 0.9
                v -= 0.1 * g
                p += v
        seen.append(criterion(forward(images[train])[1], digits[train]))
        held_out.append(criterion(forward(images[test])[1], digits[test]))
    axes = panel("Digits: loss over 30 epochs", "epoch", "mean loss (nats)")
    epochs = np.arange(1, 31)
    axes.plot(epochs, seen, color=BLUE, label="training")
    axes.plot(epochs, held_out, color=RED, label="held out")
    axes.set(yscale="log", xlim=(1, 30), ylim=(1e-4, 2))
    axes.set_yticks([1e-4, 1e-3, 1e-2, 0.1, 1], ["0.0001", "0.001", "0.01", "0.1", "1"])
    axes.minorticks_off()
    axes.legend(loc="lower left")
    return axes


def imbalance():
    rng = np.random.default_rng(0)
    y = (rng.random(20_000) < 0.02).astype(float)
    x = rng.normal(size=20_000) + 2 * y

    def fit(loss, **options):
        def objective(w):
            value, grad = loss(w[0] * x + w[1], y, **options)
            return value, [grad @ x, grad.sum()]

        return minimize(objective, np.zeros(2), jac=True, tol=1e-9).x

    bce = fastloss.binary_cross_entropy_with_logits_value_and_grad
    focal = fastloss.sigmoid_focal_loss_value_and_grad
    axes = panel("One positive in fifty", "x", "probability of the positive class", height=3.1)
    at = np.linspace(-2, 6, 300)
    ratio = (1 - y).sum() / y.sum()
    for weights, colour, label in (
        (fit(bce), BLUE, "BCE"),
        (fit(bce, pos_weight=ratio), RED, "BCE, pos_weight"),
        (fit(focal, alpha=0.5, gamma=2.0), GREEN, "focal, γ = 2"),
    ):
        axes.plot(at, fastloss.sigmoid(weights[0] * at + weights[1]), color=colour, label=label)
    axes.axhline(0.5, color=INK, lw=0.8, ls=":")
    axes.set(xlim=(-2, 6), ylim=(0, 1))
    axes.legend(loc="upper left")
    return axes


def label_noise():
    logits, labels = load_digits_logits()
    rng = np.random.default_rng(0)
    wrong = rng.random(len(labels)) < 0.05
    noisy = np.where(wrong, (labels + rng.integers(1, 10, len(labels))) % 10, labels)
    losses = fastloss.cross_entropy(logits, noisy, reduction="none")
    axes = panel("5 % of the labels made wrong", "loss of the sample (nats)", "samples")
    bins = np.geomspace(1e-6, 30, 40)
    axes.hist(losses[~wrong], bins, color=GREY, label="label kept")
    axes.hist(losses[wrong], bins, color=RED, label="label made wrong")
    axes.set(xscale="log", xlim=(1e-6, 30))
    axes.set_xticks([1e-6, 1e-4, 1e-2, 1], ["1e-6", "0.0001", "0.01", "1"])
    axes.minorticks_off()
    axes.legend(loc="upper left")
    return axes


def _sure_logits():
    logits, labels = load_digits_logits()
    return 5 * logits, labels


def temperature():
    logits, labels = _sure_logits()
    axes = panel("Loss over the temperature", "temperature T", "mean loss (nats)")
    grid = np.geomspace(0.5, 12, 60)
    for part, colour, label in (
        (slice(0, 900), BLUE, "samples to fit T on"),
        (slice(900, None), RED, "samples to report on"),
    ):
        losses = [fastloss.cross_entropy(logits[part] / t, labels[part]) for t in grid]
        axes.plot(grid, losses, color=colour, label=label)
    axes.set(xscale="log", xlim=(0.5, 12), ylim=(0, None))
    axes.set_xticks([0.5, 1, 2.5, 5, 10], ["0.5", "1", "2.5", "5", "10"])
    axes.minorticks_off()
    axes.legend(loc="upper right")
    return axes


def reliability():
    logits, labels = _sure_logits()
    axes = panel("Accuracy over confidence", "confidence", "share that is right")
    axes.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=":")
    for t, colour, label in ((1.0, GREY, "before"), (2.5, RED, "after, T = 2.5")):
        probabilities = fastloss.softmax(logits / t, axis=1)
        confidence = probabilities.max(axis=1)
        right = probabilities.argmax(axis=1) == labels
        # Bins of equally many samples among those that the model is not quite sure of.
        unsure = np.flatnonzero(confidence < 0.99)
        parts = np.array_split(unsure[np.argsort(confidence[unsure])], 6)
        axes.plot(
            [confidence[part].mean() for part in parts],
            [right[part].mean() for part in parts],
            "o-",
            color=colour,
            label=label,
        )
    axes.set(xlim=(0.3, 1), ylim=(0.3, 1.02))
    axes.legend(loc="upper left")
    return axes


# The first sentences of "Pride and Prejudice", by Jane Austen, 1813.
TEXT = (
    "it is a truth universally acknowledged that a single man in possession of a good fortune must "
    "be in want of a wife however little known the feelings or views of such a man may be on his "
    "first entering a neighbourhood this truth is so well fixed in the minds of the surrounding "
    "families that he is considered as the rightful property of some one or other of their "
    "daughters my dear mr bennet said his lady to him one day have you heard that netherfield park "
    "is let at last mr bennet replied that he had not but it is returned she for mrs long has just "
    "been here and she told me all about it mr bennet made no answer do not you want to know who "
    "has taken it cried his wife impatiently you want to tell me and i have no objection to "
    "hearing it this was invitation enough"
)


def context():
    """Perplexity of an n-gram model of characters that has read all of the text before."""
    letters = sorted(set(TEXT))
    codes = np.array([letters.index(letter) for letter in TEXT])
    perplexities = []
    for longest in range(4):
        counts: dict[tuple[int, ...], np.ndarray] = {}
        rows = []
        for at, code in enumerate(codes):
            share = np.full(len(letters), 1 / len(letters))
            for length in range(min(longest, at) + 1):
                seen = counts.setdefault(tuple(codes[at - length : at]), np.zeros(len(letters)))
                share = (seen + 8 * share) / (seen.sum() + 8)
            rows.append(np.log(share))
            for length in range(min(longest, at) + 1):
                counts[tuple(codes[at - length : at])][code] += 1
        half = len(codes) // 2
        perplexities.append(np.exp(fastloss.cross_entropy(np.array(rows)[half:], codes[half:])))
    axes = panel("A small model of characters", "characters of context", "perplexity")
    axes.bar(range(4), perplexities, 0.6, color=RED)
    for at, value in enumerate(perplexities):
        axes.annotate(f"{value:.1f}", (at, value), (0, 3), textcoords="offset points", ha="center")
    axes.set(xticks=range(4), ylim=(0, 1.15 * max(perplexities)))
    axes.grid(visible=False, axis="x")
    return axes


def boosting():
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    train, test = order[:1437], order[1437:]
    logits = np.zeros((len(digits), 10))
    seen, held_out = [], []
    for _ in range(40):
        grad = fastloss.cross_entropy_value_and_grad(logits[train], digits[train], reduction="sum")[
            1
        ]
        tree = DecisionTreeRegressor(max_depth=4, random_state=0).fit(images[train], -grad)
        logits += 2.0 * tree.predict(images)
        seen.append(fastloss.cross_entropy(logits[train], digits[train]))
        held_out.append(fastloss.cross_entropy(logits[test], digits[test]))
    axes = panel("Boosted trees on digits", "trees", "mean loss (nats)")
    trees = np.arange(1, 41)
    axes.plot(trees, seen, color=BLUE, label="training")
    axes.plot(trees, held_out, color=RED, label="held out")
    axes.set(xlim=(1, 40), ylim=(0, None))
    axes.legend()
    return axes


def distillation():
    """Accuracy of a linear student that has seen 60 images, over the temperature."""
    images, digits = load_digits(return_X_y=True)
    images = np.column_stack([images / 16, np.ones(len(images))]).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(digits))
    train, few, test = order[:1200], order[:60], order[1200:]
    rng = np.random.default_rng(0)
    first, second = (
        rng.normal(0, np.sqrt(2 / a), (a, b)).astype(np.float32) for a, b in ((65, 64), (64, 10))
    )
    for _ in range(300):
        hidden = np.maximum(images[train] @ first, 0)
        grad = fastloss.cross_entropy_value_and_grad(hidden @ second, digits[train])[1]
        back = (grad @ second.T) * (hidden > 0)
        first -= images[train].T @ back
        second -= hidden.T @ grad
    teacher = np.maximum(images @ first, 0) @ second

    def learn(criterion, target, rate):
        weights = np.zeros((65, 10), np.float32)
        velocity = np.zeros_like(weights)
        for _ in range(400):
            grad = criterion.value_and_grad(images[few] @ weights, target)[1]
            velocity = 0.9 * velocity - rate * images[few].T @ grad
            weights += velocity
        return 100 * ((images[test] @ weights).argmax(axis=1) == digits[test]).mean()

    temperatures = [1, 2, 3, 4, 6, 8, 12, 16]
    axes = panel("A student of 60 images", "temperature T", "held-out accuracy (%)")
    axes.axhline(100 * (teacher[test].argmax(axis=1) == digits[test]).mean(), color=GREY, lw=1)
    axes.text(1.05, 96.9, "teacher, 1,200 images", color=INK, fontsize=9)
    axes.plot(
        temperatures,
        [learn(fastloss.DistillationLoss(temperature=t), teacher[few], 0.1) for t in temperatures],
        "o-",
        color=BLUE,
        label="from the teacher's logits",
    )
    labels = learn(fastloss.CrossEntropyLoss(), digits[few], 0.5)
    axes.plot([1, 16], [labels, labels], color=RED, label="from the labels")
    axes.set(xscale="log", xlim=(0.95, 17), ylim=(84, 98))
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.minorticks_off()
    axes.legend(loc="lower right")
    return axes


def by_digit():
    logits, labels = load_digits_logits()
    losses = fastloss.cross_entropy(logits, labels, reduction="none")
    means = np.array([losses[labels == digit].mean() for digit in range(10)])
    axes = panel("Mean loss by digit", "digit", "mean loss (nats)")
    colours = [RED if mean == means.max() else BLUE for mean in means]
    axes.bar(range(10), means, color=colours, width=0.7)
    axes.axhline(losses.mean(), color=INK, lw=1, ls="--")
    axes.annotate("mean", (-0.5, losses.mean()), (0, 3), textcoords="offset points")
    axes.set(xticks=range(10), xlim=(-0.6, 9.6))
    axes.grid(axis="x", visible=False)
    return axes


def half_precision():
    logits, _ = load_digits_logits()
    kl = fastloss.compare_logits(logits, logits.astype(np.float16)).kl
    axes = panel("What half precision changed", "KL divergence of the sample (nats)", "samples")
    axes.hist(kl, np.geomspace(1e-12, 1e-5, 36), color=BLUE)
    axes.set(xscale="log", xlim=(1e-12, 1e-5))
    axes.set_xticks([1e-12, 1e-10, 1e-8, 1e-6], ["1e-12", "1e-10", "1e-8", "1e-6"])
    axes.minorticks_off()
    return axes


def streaming():
    logits, labels = load_digits_logits()
    ends = [7, 20, 50, 120, 250, 500, 1000, 1797]
    total = fastloss.StreamingLoss(fastloss.CrossEntropyLoss())
    exact, means = [], []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        total.update(logits[start:end], labels[start:end])
        exact.append(total.compute())
        means.append(fastloss.cross_entropy(logits[start:end], labels[start:end]))
    batches = np.arange(1, len(ends) + 1)
    axes = panel("Loss after batches of growing size", "batches", "mean loss (nats)")
    axes.plot(batches, np.cumsum(means) / batches, "o-", color=GREY, ms=4, label="mean of means")
    axes.plot(batches, exact, "o-", color=RED, ms=4, label="StreamingLoss")
    axes.axhline(fastloss.cross_entropy(logits, labels), color=INK, lw=1, ls="--")
    axes.annotate(
        "all at once", (1, fastloss.cross_entropy(logits, labels)), (0, -4),
        textcoords="offset points", va="top",
    )  # fmt: skip
    axes.set(ylim=(0, None), xticks=batches)
    axes.legend(loc="upper right")
    return axes


FIGURES = {
    "distillation": distillation,
    "boosting": boosting,
    "iris": iris,
    "mlp": mlp,
    "imbalance": imbalance,
    "label-noise": label_noise,
    "temperature": temperature,
    "reliability": reliability,
    "context": context,
    "by-digit": by_digit,
    "half-precision": half_precision,
    "streaming": streaming,
}

if __name__ == "__main__":
    main(FIGURES)
