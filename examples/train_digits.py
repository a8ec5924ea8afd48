"""Train two small networks in NumPy, with fastloss for the loss and its gradient.

Data, model, loss, optimizer, train: the five parts of every training script, in that order. A
two-class net (has the digit a closed loop, as 0, 6, 8 and 9 have?) learns with `BCEWithLogitsLoss`,
a ten-class net with `CrossEntropyLoss`; the one call `criterion.value_and_grad(logits, target)`
gives the loss and the gradient that `Network.backward` starts from. Prints the accuracy on held-out
images and draws the loss curves.

    pip install 'fastloss[plot]' scikit-learn
    python examples/train_digits.py                  # 60 epochs, a few seconds, train_digits.png
    python examples/train_digits.py --epochs 3 --plot curves.png
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import fastloss

Array = np.ndarray


# Data ---------------------------------------------------------------------------------------------


@dataclass
class Split:
    """Images as rows of 64 pixels in [0, 1], and the digit that each one shows."""

    pixels: Array
    digits: Array


def load_split(held_out: float = 0.2, seed: int = 0) -> tuple[Split, Split]:
    """Shuffle the 1,797 digits and set ``held_out`` of them aside: ``(training, held_out)``."""
    pixels, digits = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(digits))
    cut = round(len(digits) * (1 - held_out))
    train, test = order[:cut], order[cut:]
    return Split(pixels[train], digits[train]), Split(pixels[test], digits[test])


def batches(count: int, size: int, rng: np.random.Generator) -> Iterator[Array]:
    """The indices 0 to ``count - 1`` in random order, ``size`` at a time."""
    order = rng.permutation(count)
    for start in range(0, count, size):
        yield order[start : start + size]


# Model --------------------------------------------------------------------------------------------


class Network:
    """Two linear layers with a ReLU between them; the output is logits."""

    def __init__(self, inputs: int, hidden: int, outputs: int, rng: np.random.Generator):
        def he_normal(rows: int, columns: int) -> Array:
            return rng.normal(0, np.sqrt(2 / rows), (rows, columns)).astype(np.float32)

        self.parameters = [
            he_normal(inputs, hidden),
            np.zeros(hidden, np.float32),
            he_normal(hidden, outputs),
            np.zeros(outputs, np.float32),
        ]

    def forward(self, x: Array) -> Array:
        """Return the logits, and keep what `backward` needs."""
        w1, b1, w2, b2 = self.parameters
        self._x = x
        self._hidden = np.maximum(x @ w1 + b1, 0)
        return self._hidden @ w2 + b2

    def backward(self, grad_logits: Array) -> list[Array]:
        """Return the gradient of each parameter, given the gradient of the logits."""
        w2 = self.parameters[2]
        grad_hidden = (grad_logits @ w2.T) * (self._hidden > 0)
        return [
            self._x.T @ grad_hidden,
            grad_hidden.sum(axis=0),
            self._hidden.T @ grad_logits,
            grad_logits.sum(axis=0),
        ]


# Loss ---------------------------------------------------------------------------------------------


@dataclass
class Task:
    """What the two nets differ in: outputs, loss, target and how logits become an answer."""

    name: str
    outputs: int
    criterion: fastloss.BCEWithLogitsLoss | fastloss.CrossEntropyLoss
    target: Callable[[Array], Array]
    answer: Callable[[Array], Array]


TASKS = [
    Task(
        name="closed loop or not (BCE with logits)",
        outputs=1,
        criterion=fastloss.BCEWithLogitsLoss(),
        target=lambda digits: np.isin(digits, (0, 6, 8, 9)).astype(np.float32)[:, None],
        answer=lambda logits: (logits > 0).astype(np.float32),
    ),
    Task(
        name="which digit (cross-entropy)",
        outputs=10,
        criterion=fastloss.CrossEntropyLoss(),
        target=lambda digits: digits,
        answer=lambda logits: logits.argmax(axis=1),
    ),
]


# Optimizer ----------------------------------------------------------------------------------------


class Adam:
    """Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1."""

    def __init__(self, parameters: list[Array], rate: float = 3e-3):
        self.parameters = parameters
        self.rate = rate
        self.steps = 0
        self.mean = [np.zeros_like(p) for p in parameters]
        self.square = [np.zeros_like(p) for p in parameters]

    def step(self, gradients: list[Array], beta1: float = 0.9, beta2: float = 0.999) -> None:
        """Move the parameters, in place, against their gradients."""
        self.steps += 1
        correct1, correct2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        for p, g, m, v in zip(self.parameters, gradients, self.mean, self.square, strict=True):
            m += (1 - beta1) * (g - m)
            v += (1 - beta2) * (g * g - v)
            p -= self.rate * (m / correct1) / (np.sqrt(v / correct2) + 1e-8)


# Train --------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A task's curves, a point for each epoch, and its accuracy on held-out images at the end."""

    task: Task
    train_loss: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    accuracy: float = 0.0


def train(task: Task, epochs: int = 60, batch_size: int = 32, seed: int = 0) -> Run:
    """Train a net; an epoch's training loss is the mean over its batches as they came."""
    rng = np.random.default_rng(seed)
    training, held_out = load_split()
    target, test_target = task.target(training.digits), task.target(held_out.digits)
    net = Network(64, 64, task.outputs, rng)
    optimizer = Adam(net.parameters)
    run = Run(task)
    for _ in range(epochs):
        total = 0.0
        for rows in batches(len(target), batch_size, rng):
            logits = net.forward(training.pixels[rows])
            loss, grad = task.criterion.value_and_grad(logits, target[rows])
            optimizer.step(net.backward(grad))
            total += float(loss) * len(rows)
        logits = net.forward(held_out.pixels)
        run.train_loss.append(total / len(target))
        run.test_loss.append(float(task.criterion(logits, test_target)))
        run.accuracy = float((task.answer(logits) == test_target).mean())
    return run


def draw(runs: list[Run], path: Path) -> None:
    """Draw each run's training and held-out loss over the epochs."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(runs), figsize=(11, 4.2), layout="constrained")
    for panel, run in zip(panels, runs, strict=True):
        epochs = np.arange(1, len(run.train_loss) + 1)
        for curve, label, colour in (
            (run.train_loss, "training", "tab:blue"),
            (run.test_loss, "held out", "tab:orange"),
        ):
            panel.plot(epochs, curve, color=colour)
            panel.annotate(
                label,
                (epochs[-1], curve[-1]),
                xytext=(5, 0),
                textcoords="offset points",
                color=colour,
                va="center",
            )
        panel.set(
            title=f"{run.task.name}: {run.accuracy:.1%} right",
            xlabel="epoch",
            ylabel="mean loss (nats)",
            yscale="log",
        )
        panel.margins(x=0.05)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train two digit classifiers with fastloss.")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--plot", type=Path, default=Path("train_digits.png"), metavar="FILE")
    options = parser.parse_args()
    runs = []
    for task in TASKS:
        run = train(task, options.epochs)
        print(
            f"{task.name}: loss {run.train_loss[-1]:.4f} in training, {run.test_loss[-1]:.4f} "
            f"held out, {run.accuracy:.2%} of held-out images right"
        )
        runs.append(run)
    draw(runs, options.plot)
    print(f"loss curves: {options.plot}")


if __name__ == "__main__":
    main()
