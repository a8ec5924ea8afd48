"""Whole training steps in PyTorch, with its own cross-entropy and with that of ``fastloss.torch``.

A step clears the gradients, runs the model, takes the loss, goes backward and updates the
parameters by SGD. Only the loss differs: what a step gains is the loss's share of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple


class Step(NamedTuple):
    """A training step: its title, the shape of its logits, and the call of each library."""

    title: str
    shape: tuple[int, int]
    calls: dict[str, Callable[[], Any]]


def steps(threads: int) -> list[Step]:
    """The steps, none where PyTorch is missing.

    An MLP of the size that fits handwritten digits, 64 pixels and 10 classes; and the last layers
    of a small language model, 512 tokens over a vocabulary of 32,000.
    """
    try:
        import torch

        import fastloss.torch
    except ImportError:
        return []
    torch.set_num_threads(threads)
    nn = torch.nn
    random = torch.Generator().manual_seed(0)

    def step(title: str, model: Any, rows: int, features: int, classes: int) -> Step:
        x = torch.randn((rows, features), generator=random)
        target = torch.randint(classes, (rows,), generator=random)
        calls = {}
        for key, library in (("torch", nn.functional), ("fastloss-torch", fastloss.torch)):
            own = copy.deepcopy(model)
            optimizer = torch.optim.SGD(own.parameters(), lr=1e-3)

            def call(own: Any = own, optimizer: Any = optimizer, library: Any = library) -> Any:
                optimizer.zero_grad()
                loss = library.cross_entropy(own(x), target)
                loss.backward()
                optimizer.step()
                return loss.detach()

            calls[key] = call
        return Step(title, (rows, classes), calls)

    mlp = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    head = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 32_000))
    return [
        step("MLP on digits", mlp, 64, 64, 10),
        step("language model's head", head, 512, 256, 32_000),
    ]
