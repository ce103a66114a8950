"""PGD adversarial training (Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

from torch import Tensor, nn

from redoubt.training.objectives.standard import Attack, surprise


def pgd(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, lam: float, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy on adversarial inputs alone."""
    return surprise(model(attack(x, y)), y, smoothing)
