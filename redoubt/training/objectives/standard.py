"""Ordinary training: an undefended model."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

Attack = Callable[..., Tensor]   # (x, y, rows=slice(None)) -> x_adv


def surprise(logits: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each image, [N]."""
    return F.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)


def standard(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, lam: float, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy on clean inputs."""
    return surprise(model(x), y, smoothing)
