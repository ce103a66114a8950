"""Attacks that leave pixels alone: those near black and white, flat places, all but a window, all but a scattering.

Who fears to be seen changes a picture where nobody looks. An attack on some pixels is one on a model that does not see
the others: attacks that ask about all pictures at once, in their order, can be run on it as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FLAT = 1e-5   # squared spread: 0.8 of a level of 255
Mask = Callable[[Tensor], Tensor]   # pictures [N, C, S, S] to 1 where they may be changed, else 0; broadcastable


def within(mask: Mask, attack: Callable, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """`attack(model, x, y)` that changes `x` only where `mask(x)` lets it: [N, C, S, S] to the same shape."""
    free = mask(x)
    return torch.where(free > 0, attack(_Within(model, x, free), x, y), x)


def inside(margin: float) -> Mask:
    """Pixels further than `margin` from black and from white."""
    return lambda x: ((x > margin) & (x < 1 - margin)).to(x.dtype)


def busy(share: float) -> Mask:
    """The `share` of each picture's pixels round which it varies most, by the spread of five by five; none flat."""

    def mask(x: Tensor) -> Tensor:
        grey = F.pad(x.mean(1, keepdim=True), (2, 2, 2, 2), mode="replicate")
        spread = F.avg_pool2d(grey.square(), 5, 1) - F.avg_pool2d(grey, 5, 1).square()
        least = spread.flatten(1).quantile(1 - share, dim=1).view(-1, 1, 1, 1)
        return ((spread >= least) & (spread > _FLAT)).to(x.dtype)

    return mask


def window(top: float, left: float, height: float, width: float) -> Mask:
    """A rectangle, its corner and its sides as shares of the picture's; at least one pixel."""

    def mask(x: Tensor) -> Tensor:
        rows, columns = x.shape[2:]
        free = torch.zeros_like(x[:1, :1])
        row, column = min(int(top * rows), rows - 1), min(int(left * columns), columns - 1)
        free[..., row : row + max(1, round(height * rows)), column : column + max(1, round(width * columns))] = 1
        return free

    return mask


def scattered(share: float, seed: int) -> Mask:
    """Pixels drawn at random, the same of each picture."""

    def mask(x: Tensor) -> Tensor:
        drawn = torch.rand(x.shape[2:], generator=torch.Generator().manual_seed(seed))
        return (drawn < share).to(x).view(1, 1, *x.shape[2:])

    return mask


class _Within(nn.Module):
    def __init__(self, model: nn.Module, x: Tensor, free: Tensor):
        super().__init__()
        self.model, self.x, self.free = model, x, free

    def forward(self, at: Tensor) -> Tensor:
        return self.model(self.x + self.free * (at - self.x))
