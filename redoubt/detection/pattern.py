"""Whether many pictures carry one pattern: a sensor's own noise, a bad cable, or one perturbation for all.

No single picture can tell. Over a campaign, what is random on each picture cancels, however strong it is, and so does
what follows each picture's own gradient; what is the same on all of them does not.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from redoubt.detection.benign import blur
from redoubt.detection.networks import SKETCH

SAME = 0.04   # an input shares a pattern whose detail has this mean cosine with the others' or more
COMMON = 4    # directions that the details of clean pictures lie along, which say nothing of a pattern
_LOUD = 0.1   # no pixel counts for more, or a few edges would be all of a picture's detail


@torch.no_grad()
def sketch(x: Tensor) -> Tensor:
    """A few numbers whose inner products are, but for chance, the cosines between the details of two pictures.

    Each pixel is added to one of `SKETCH` sums, or subtracted (Charikar, Chen and Farach-Colton 2002).

    Args:
        x: float [N, C, S, S] in [0, 1].

    Returns:
        [N, SKETCH]; zeros for a picture without detail.
    """
    detail = F.normalize((x - blur(x)).clamp(-_LOUD, _LOUD).flatten(1))
    order, signs = (drawn.to(x.device) for drawn in _drawn(detail.shape[1]))
    mixed = (detail * signs)[:, order]
    return F.pad(mixed, (0, -mixed.shape[1] % SKETCH)).unflatten(1, (SKETCH, -1)).sum(2)


def common(sketches: Tensor) -> Tensor:
    """The directions that clean pictures have in common, orthonormal: sketches [N, SKETCH] to [COMMON, SKETCH].

    Pictures that are aligned, of faces or garments, have outlines in common, too.
    """
    return torch.linalg.eigh(sketches.T @ sketches).eigenvectors[:, -COMMON:].T.contiguous()


def agreement(sketches: Tensor) -> Tensor:
    """The mean cosine between the detail of each picture and those of the others, but for chance.

    Of n inputs of which a share q carries one pattern, these have q times the cosine that two of them have, and the
    others have 0, give or take 0.18 / sqrt(n) each.

    Args:
        sketches: [n, SKETCH], less what is `common`.

    Returns:
        [n]; 0 for one alone.
    """
    others = sketches.sum(0) - sketches
    return (sketches * others).sum(1) / max(1, len(sketches) - 1)


@lru_cache(maxsize=8)
def _drawn(size: int) -> tuple[Tensor, Tensor]:
    """An order of so many pixels, and a sign for each of them; always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(size, generator=generator), torch.randint(2, (size,), generator=generator) * 2.0 - 1
