"""Accuracy, clean or under an attack, in batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from redoubt.attacks.gradient import ascent, cross_entropy, default_alpha, logits_and_gradient
from redoubt.threat import ThreatModel

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


def withstands_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 20,
    restarts: int = 1,
    alpha: float | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Whether each image is classified as `y` clean, at PGD's random start and after every one of its steps.

    Stricter than looking at the last iterate only, and cheaper: a fooled image leaves the batch, as in AutoAttack
    (Croce & Hein 2020, arXiv 2003.01690).

    Args:
        restarts: random starts; only what stood until then meets the next.
        alpha: step length; by default `default_alpha`.
        loss: what is climbed: `cross_entropy` or `margin` of `redoubt.attacks.gradient`.

    Returns:
        bool [N], on the CPU.
    """
    alpha, stood = alpha or default_alpha(threat, steps), []
    for part, labels in batches(x, y):
        right = predict(model, part).argmax(1) == labels
        alive = right.nonzero()[:, 0]
        for _ in range(restarts):
            alive = _climb_once(model, part, labels, alive, threat, steps, alpha, loss, generator)
        stood.append(torch.zeros_like(right).index_fill_(0, alive, True).cpu())
    return torch.cat(stood)


def _climb_once(model, x, y, alive, threat, steps, alpha, loss, generator) -> Tensor:
    """Which rows of `alive` are right after every step from one random start."""
    x_adv = (x + threat.sample(x, generator)).clamp(0, 1)
    for step in range(steps + 1):
        if not len(alive):
            break
        here, now = x[alive], x_adv[alive]
        if step == steps:
            return alive[predict(model, now).argmax(1) == y[alive]]
        logits, gradient = logits_and_gradient(model, now, y[alive], loss)
        keep = logits.argmax(1) == y[alive]
        alive = alive[keep]
        x_adv[alive] = ascent(here[keep], threat, alpha)(now[keep], gradient[keep])
    return alive


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
