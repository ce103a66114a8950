"""Attacks along gradients that are drawn at random, to learn strength from, and nothing else.

How much of an attack reaches its bound, how far its changes stretch and how colours go together depends on the network
whose gradient it follows. The models at hand are few; what a random field does to a picture costs no model at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from redoubt.attacks import on_lattice, shaped
from redoubt.detection.rehearsal import Dice

_NEAR = 0.9      # of its bound: there a change counts as having reached it
_REACHED = 0.15  # of the pixels of a block: of an attack that hardly ever comes to its bound nobody can tell the bound
_FINE, _MIXED = 0.2, 0.5   # pixels; a field without grain, and how many blocks have colours that go together
_PATCHES, _MOST = 0.3, 200   # how many blocks climb a patchwork, and its squares at most
_COMMON = 4      # every so many-th block carries one pattern on all pictures, as a universal perturbation does
_SAME = 0.7      # how many are shaken by what is as smooth as the field itself: to and fro, as a gradient turns


def drawn(x: Tensor, *, blocks: int, size: int, epsilon: tuple[float, float], levels: int, seed: int
          ) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Blocks of pictures under PGD in Linf along random fields, or under one pattern that such an attack made.

    Args:
        x: pictures [N, C, S, S] in [0, 1].
        blocks, size: how many blocks, and of how many pictures each.
        epsilon: the range that epsilon is drawn from, evenly in its logarithm.
        levels: three blocks in four are rounded to this lattice.

    Yields:
        Changed pictures [size, C, S, S], those they were made from, and the epsilon that arrived: of rounded ones a
        whole number of levels.
    """
    dice, low, high = Dice(seed), math.log(epsilon[0]), math.log(epsilon[1])
    strata = torch.randperm(blocks, generator=dice.generator)
    for i, stratum in enumerate(strata.tolist()):
        clean = x[dice.rows(len(x), size).to(x.device)]
        bound = math.exp(low + (high - low) * (stratum + dice.uniform(0, 1)) / blocks)
        changed = _one_pattern(clean, bound, dice) if i % _COMMON == 0 else _reaching(clean, bound, dice)
        strength = bound
        if dice.chance(0.75):
            changed, strength = on_lattice(changed, levels), max(1, round(bound * levels)) / levels
        yield changed, clean, strength


def _one_pattern(x: Tensor, bound: float, dice: Dice) -> Tensor:
    """What such an attack does to a grey picture, put on all of them. `bound` is at most 0.5: grey ends there."""
    grey = torch.full_like(x[:1], 0.5)
    return (x + _reaching(grey, bound, dice) - grey).clamp(0, 1)


def _reaching(x: Tensor, bound: float, dice: Dice, tries: int = 20) -> Tensor:
    """An attack that comes to its bound often enough: the first of a few tries, or else the last."""
    for _ in range(tries):
        changed = _along_fields(x, bound, dice)
        if ((changed - x).abs() >= _NEAR * bound).float().mean() >= _REACHED:
            break
    return changed


def _along_fields(x: Tensor, bound: float, dice: Dice) -> Tensor:
    """PGD that climbs a fixed field, shaken in each step by another; each picture by more or less, and some pictures
    stop before the others."""
    generator, n = dice.generator, len(x)
    steps = round(dice.log_uniform(1, 20.5))
    alpha = dice.log_uniform(0.5, 3) * bound / steps
    colours = torch.randn(x.shape[1], x.shape[1], generator=generator) if dice.chance(_MIXED) else None
    width, other = (dice.log_uniform(_FINE, x.shape[-1]) for _ in range(2))
    field = _patchwork(x, dice) if dice.chance(_PATCHES) else _field(x, width, colours, generator)
    if dice.chance(0.5):
        field = field + dice.log_uniform(0.05, 5) * _field(x, dice.log_uniform(_FINE, 2), None, generator)
    shake = dice.log_uniform(0.1, 4) * (0.7 * torch.randn(n, 1, 1, 1, generator=generator)).exp().to(x.device)
    last = torch.full((n, 1, 1, 1), steps)
    if dice.chance(0.5):
        early = torch.rand(last.shape, generator=generator) < dice.uniform(0, 0.6)
        until = (torch.rand(last.shape, generator=generator) * (steps + 1)).long() * dice.chance(0.6)
        last = torch.where(early, until, last)
    if dice.chance(_SAME):
        other = width
    elif dice.chance(0.5):
        other = _FINE
    at, last = x, last.to(x.device)
    if dice.chance(0.6) or alpha * steps < bound:
        at = (x + (2 * torch.rand(x.shape, generator=generator) - 1).to(x.device) * bound).clamp(0, 1)
    else:
        last = torch.full_like(last, steps)   # without a start there is nothing to stop at
    low, high = (x - bound).clamp_min(0), (x + bound).clamp_max(1)
    for step in range(steps):
        slope = field if steps == 1 else field + shake * _field(x, other, colours, generator)
        at = torch.where(last > step, (at + alpha * slope.sign()).clamp(low, high), at)
    return at


def _field(like: Tensor, width: float, colours: Tensor | None, generator: torch.Generator) -> Tensor:
    """A random field that is smooth over some `width` pixels, its mean size 1 in each picture: [n, C, S, S].

    Args:
        like: pictures of that shape.
        colours: how channels are mixed, [C, C]; None leaves them apart.
    """
    n, channels, side = like.shape[:3]
    if width > side / 4:   # from a few points, or one
        points = max(1, round(side / width / 2))
        field = torch.randn(n, channels, points, points, generator=generator)
        field = F.interpolate(field, like.shape[2:], mode="bilinear", align_corners=True)
    else:
        field = torch.randn(like.shape, generator=generator)
        field = shaped.smooth(width)(field) if width > 0.3 else field
    if colours is not None:
        field = torch.einsum("dc,nchw->ndhw", colours, field)
    return _scaled(field).to(like.device)


def _patchwork(like: Tensor, dice: Dice) -> Tensor:
    """A field of overlapping squares of one value each, on columns, rows or an even ground, its mean size 1 in each
    picture: what a search without a gradient leaves. [n, C, S, S]"""
    n, channels, height, width = like.shape
    ground = ((height, 1), (1, width), (1, 1))[int(dice.uniform(0, 3))]
    field = torch.randn(n, channels, *ground, generator=dice.generator).expand(like.shape)
    smallest, largest = dice.log_uniform(1, 4), dice.log_uniform(4, max(4, 0.7 * width))
    down, right = torch.arange(height), torch.arange(width)
    for _ in range(round(dice.log_uniform(1, _MOST))):
        side = max(1, round(dice.log_uniform(smallest, largest)))
        top, left = torch.rand(2, n, 1, generator=dice.generator) * torch.tensor([height, width]).view(2, 1, 1)
        inside = _between(down, top, side).unsqueeze(2) & _between(right, left, side).unsqueeze(1)
        field = torch.where(inside.unsqueeze(1), torch.randn(n, channels, 1, 1, generator=dice.generator), field)
    return _scaled(field).to(like.device)


def _between(place: Tensor, start: Tensor, length: int) -> Tensor:
    """Which places [S] lie in `length` from each start [n, 1] on: [n, S]."""
    return (place >= start.floor()) & (place < start.floor() + length)


def _scaled(field: Tensor) -> Tensor:
    """Fields [n, C, S, S] with a mean size of 1 each."""
    return field / field.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-9)
