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

SAME = 0.03   # mean cosine between the details of two pictures, from which on they share a pattern
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


def alike(sketches: Tensor) -> float:
    """The mean cosine between the details of any two of the pictures behind the sketches [n, SKETCH]; 0 for one.

    Where a share q of them carries one pattern, and the others nothing in common, it is q squared of the pattern's.
    """
    n, total = len(sketches), sketches.sum(0)
    return ((total @ total - sketches.square().sum()) / max(1, n * (n - 1))).item()


@lru_cache(maxsize=8)
def _drawn(size: int) -> tuple[Tensor, Tensor]:
    """An order of so many pixels, and a sign for each of them; always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(size, generator=generator), torch.randint(2, (size,), generator=generator) * 2.0 - 1
