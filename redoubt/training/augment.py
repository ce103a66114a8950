"""Augmentation on the device that trains: random flips, and crops of a padded picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from redoubt.training.plugins import Plugins


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Every picture's own random choices: whether to flip ([N] bool) and where to cut ([N, 2], rows and columns)."""

    flip: Tensor | None
    offset: Tensor | None

    def slice(self, rows: slice) -> Draws:
        return Draws(flip=None if self.flip is None else self.flip[rows],
                     offset=None if self.offset is None else self.offset[rows])


def draw(plugins: Plugins, n: int, generator: torch.Generator) -> Draws:
    """Choices for `n` pictures. What is off draws nothing, so that it changes no other random number."""
    device = generator.device
    flip = torch.rand(n, generator=generator, device=device) < 0.5 if plugins.flip else None
    offset = None
    if plugins.crop:
        offset = torch.randint(2 * plugins.crop + 1, (n, 2), generator=generator, device=device)
    return Draws(flip=flip, offset=offset)


def augment(x: Tensor, draws: Draws, crop: int) -> Tensor:
    """Pictures [N, C, H, W], flipped and cropped as `draws` says; a new tensor, or `x` itself when nothing is on."""
    if draws.flip is not None:
        x = torch.where(draws.flip.view(-1, 1, 1, 1), x.flip(3), x)
    if draws.offset is not None:
        n, height, width = len(x), x.shape[2], x.shape[3]
        padded = F.pad(x, (crop,) * 4)
        top = draws.offset[:, :1] + torch.arange(height, device=x.device)
        left = draws.offset[:, 1:] + torch.arange(width, device=x.device)
        picture = torch.arange(n, device=x.device).view(n, 1, 1)
        x = padded.permute(0, 2, 3, 1)[picture, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2)
    return x
