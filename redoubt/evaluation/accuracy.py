"""Accuracy, clean or under an attack, in batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def batches(x: Tensor, y: Tensor, size: int = 500):
    """Slices of `x` and `y` of at most `size` images."""
    for start in range(0, len(x), size):
        yield x[start : start + size], y[start : start + size]


def predict(model: nn.Module, x: Tensor, size: int = 500) -> Tensor:
    """Logits [N, classes] for `x` [N, C, H, W], computed in batches."""
    with torch.no_grad():
        return torch.cat([model(part) for part, _ in batches(x, x, size)])


def accuracy(
    model: nn.Module, x: Tensor, y: Tensor, *, attack: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None
) -> float:
    """The share of images whose predicted class is `y`, after `attack(model, x, y)` when one is given."""
    right = 0
    for part, labels in batches(x, y):
        part = attack(model, part, labels) if attack else part
        right += int((predict(model, part).argmax(1) == labels).sum())
    return right / len(x)
