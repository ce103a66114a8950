"""Accuracy, clean or under an attack, in batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Perturb = Callable[[nn.Module, Tensor, Tensor], Tensor]


def batches(x: Tensor, y: Tensor, size: int = 128):
    """Slices of `x` and `y` of at most `size` images."""
    for start in range(0, len(x), size):
        yield x[start : start + size], y[start : start + size]


def predict(model: nn.Module, x: Tensor, size: int = 128) -> Tensor:
    """Logits [N, classes] for `x` [N, C, H, W], computed in batches."""
    with torch.no_grad():
        return torch.cat([model(part) for part, _ in batches(x, x, size)])


def correct(model: nn.Module, x: Tensor, y: Tensor, *, attack: Perturb | None = None) -> Tensor:
    """Whether each image is predicted as `y`, after `attack(model, x, y)` when one is given: bool [N], on the CPU."""
    right = []
    for part, labels in batches(x, y):
        part = attack(model, part, labels) if attack else part
        right.append((predict(model, part).argmax(1) == labels).cpu())
    return torch.cat(right)


def accuracy(model: nn.Module, x: Tensor, y: Tensor, *, attack: Perturb | None = None) -> float:
    """The share of images whose predicted class is `y`, after `attack(model, x, y)` when one is given."""
    return int(correct(model, x, y, attack=attack).sum()) / len(x)


@contextmanager
def eval_mode(model: nn.Module):
    """Put `model` into eval mode; afterwards every module has the mode that it had, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
