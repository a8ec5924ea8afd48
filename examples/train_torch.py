"""Train the same small PyTorch net twice: with fastloss's loss, and with PyTorch's.

The net learns to correct the digit classifier whose logits come with the package: ten logits in,
ten logits out.  Both runs start from the same weights and see the same batches, so they go the same
way; the one line in which they differ is the criterion.

    pip install 'fastloss[torch]'
    python examples/train_torch.py                  # 40 epochs, a few seconds
    python examples/train_torch.py --epochs 5
"""

import argparse
import time
from typing import NamedTuple

import torch

import fastloss.torch
from fastloss.data import load_digits_logits


class Result(NamedTuple):
    """How a run ended."""

    loss: float  # on the training images
    accuracy: float  # on the images held out
    seconds: float


def train(criterion: torch.nn.Module, epochs: int, batch: int = 64) -> Result:
    """Train a net with this criterion, from the same start each time."""
    # Data: the last fifth is held out.
    logits, labels = load_digits_logits()
    x, target = torch.from_numpy(logits), torch.from_numpy(labels).long()
    cut = len(x) * 4 // 5
    # Model.
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(10, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    # Training.
    start = time.perf_counter()
    for _ in range(epochs):
        order = torch.randperm(cut)
        for part in order.split(batch):
            optimizer.zero_grad()
            loss = criterion(net(x[part]), target[part])
            loss.backward()
            optimizer.step()
    seconds = time.perf_counter() - start
    # Outcome.
    with torch.no_grad():
        loss = criterion(net(x[:cut]), target[:cut])
        right = net(x[cut:]).argmax(1) == target[cut:]
    return Result(loss.item(), right.float().mean().item(), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    epochs = parser.parse_args().epochs
    print(f"{'':10}{'loss':>10}{'accuracy':>10}{'seconds':>10}")
    for name, library in (("fastloss", fastloss.torch), ("PyTorch", torch.nn)):
        result = train(library.CrossEntropyLoss(label_smoothing=0.05), epochs)
        print(f"{name:10}{result.loss:10.4f}{result.accuracy:10.4f}{result.seconds:10.1f}")


if __name__ == "__main__":
    main()
