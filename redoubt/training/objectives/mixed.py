"""Clean and adversarial inputs together (the weighted form of Goodfellow et al. 2015, arXiv 1412.6572)."""

from __future__ import annotations

from torch import Tensor, nn

from redoubt.training.objectives.standard import Attack, surprise


def mixed(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, lam: float, smoothing: float = 0.0) -> Tensor:
    """Clean plus `lam` times adversarial cross-entropy."""
    return surprise(model(x), y, smoothing) + lam * surprise(model(attack(x, y)), y, smoothing)
