"""Attacks through a gradient that was given a shape: what they build is smooth or coarse, not fine grain.

A shape changes the gradient on its way to the attacker; every gradient attack can then be run on the model as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = Callable[[Tensor], Tensor]   # gradients [N, C, S, S] to the same shape and type


def through(model: nn.Module, shape: Shape) -> nn.Module:
    """`model`, with the gradient of its inputs passed through `shape`; its answers are the same."""
    return _Shaped(model, shape)


def smooth(width: float) -> Shape:
    """The gradient under a Gaussian whose standard deviation is `width` pixels, cut off at about twice that.

    Beyond the edges it is taken for 0. So do attacks that are to survive a change of model (Dong et al. 2019, arXiv
    1904.02884).
    """
    reach = math.ceil(2 * width)
    line = (-(torch.arange(-reach, reach + 1) / width).square() / 2).exp()
    line = line / line.sum()

    def shape(gradient: Tensor) -> Tensor:
        channels = gradient.shape[1]
        row = line.to(gradient.device).expand(channels, 1, 1, -1)
        # In bfloat16, kernels of 15 pixels and more take seconds on a CPU.
        with torch.autocast(gradient.device.type, enabled=False):
            smoothed = F.conv2d(gradient.float(), row, padding=(0, reach), groups=channels)
            smoothed = F.conv2d(smoothed, row.transpose(2, 3), padding=(reach, 0), groups=channels)
        return smoothed.to(gradient.dtype)

    return shape


def cells(side: int, corner: tuple[int, int] = (0, 0)) -> Shape:
    """The gradient's mean over square cells of `side` pixels, one of which begins at `corner` (row, column).

    One value for a whole square is what those find who can only ask for answers. Beyond the edges the gradient is taken
    for 0: what is left of a cell there keeps its sign and is smaller, which L2 notices and Linf does not.
    """

    def shape(gradient: Tensor) -> Tensor:
        height, width = gradient.shape[2:]
        up, left = (-place % side for place in corner)
        padded = F.pad(gradient, (left, -(left + width) % side, up, -(up + height) % side))
        means = F.avg_pool2d(padded, side)
        return F.interpolate(means, scale_factor=side, mode="nearest")[..., up : up + height, left : left + width]

    return shape


def guessed(noise: float, seed: int) -> Shape:
    """The gradient and so many times its size of chance, drawn anew each time.

    So little know those of it who ask for answers along a few random directions (SPSA: Uesato et al. 2018, arXiv
    1802.05666).
    """
    generators: dict[torch.device, torch.Generator] = {}

    def shape(gradient: Tensor) -> Tensor:
        if gradient.device not in generators:
            generators[gradient.device] = torch.Generator(gradient.device).manual_seed(seed)
        most = gradient.abs().amax((1, 2, 3), keepdim=True)   # squares of what is next to nothing would be nothing
        size = most * (gradient / most.clamp_min(1e-30)).square().mean((1, 2, 3), keepdim=True).sqrt()
        drawn = torch.randn(gradient.shape, generator=generators[gradient.device], device=gradient.device)
        return gradient + noise * size * drawn.to(gradient.dtype)

    return shape


class _Shaped(nn.Module):
    def __init__(self, model: nn.Module, shape: Shape):
        super().__init__()
        self.model, self.shape = model, shape

    def forward(self, x: Tensor) -> Tensor:
        at = x.clone()
        if at.requires_grad:
            at.register_hook(lambda gradient: self.shape(gradient).to(gradient.dtype))   # autocast may change it
        return self.model(at)
