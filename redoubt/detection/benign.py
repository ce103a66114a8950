"""Harmless changes of pictures: noise, other cameras, storage. What a detector must not take for an attack.

Each kind has one amount in [0, 1], from hardly visible to more than a careful sender would let happen.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from redoubt.attacks import on_lattice
from redoubt.detection.features import neighbours_mean

BENIGN = ("clean", "float", "gaussian", "uniform", "sign", "shot", "impulse", "brightness", "contrast", "blur",
          "jpeg", "steps", "gamma", "stripes", "coarse")
# Random, and free in size. The last two are for the model's evidence alone: pixels need no help with them.
NOISE = ("float", "gaussian", "uniform", "sign", "shot", "impulse", "stripes", "coarse", "shading", "waves")

_POINTS = (2, 3, 5, 8)   # a side, that uneven light is drawn at
# ITU-T T.81 (1992), Annex K, tables K.1 (luminance) and K.2 (chrominance): what nearly every JPEG encoder scales.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *[(99,) * 8] * 4,
)
# JFIF 1.02 (1992): Y, Cb and Cr of red, green and blue; the offset of 128 is left out, for it cancels.
_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def benign(kind: str, x: Tensor, *, levels: int, generator: torch.Generator, amount: float | None = None,
           fixed: bool = False) -> Tensor:
    """A harmless change of each picture: [n, C, S, S] -> the same shape, in [0, 1].

    Half of the changed pictures are put back on the lattice, so that neither whole levels nor fractions speak for an
    attack.

    Args:
        kind: one of `BENIGN` or `NOISE`.
        amount: how strong, for all of them, from 0 to 1 and a little beyond; drawn for each picture when not given.
        fixed: the noise has the same pattern on every picture, as a camera's own has.
    """
    if kind == "clean":
        return x

    def noise(make: Callable = torch.rand, shape=x.shape) -> Tensor:
        return make(shape, generator=generator).to(x.device)

    def pattern(make: Callable = torch.rand, shape=x.shape) -> Tensor:
        return noise(make, (1, *shape[1:])).expand(shape) if fixed else noise(make, shape)

    each = noise(shape=(len(x), 1, 1, 1)) if amount is None else torch.full((len(x), 1, 1, 1), amount).to(x)
    size, signed = 0.005 * 80**each, 2 * each - 1   # 0.005 to 0.4, evenly in the logarithm; and -1 to 1
    mean = x.mean((1, 2, 3), keepdim=True)
    out = {
        "float": lambda: x + (pattern() - 0.5) / levels,
        "gaussian": lambda: x + pattern(torch.randn) * size,
        "uniform": lambda: x + (2 * pattern() - 1) * size,
        "sign": lambda: x + pattern(torch.randn).sign() * 0.005 * 30**each,   # above 0.15 it is like one gradient step
        "shot": lambda: x + pattern(torch.randn) * size * (2 * x).sqrt(),
        "impulse": lambda: torch.where(pattern() < size, pattern().round(), x),
        "brightness": lambda: x + 0.2 * signed,
        "contrast": lambda: mean + (x - mean) * (1 + 0.4 * signed),
        "blur": lambda: x + (blur(x) - x) * (0.2 + 0.8 * each),
        "jpeg": lambda: jpeg(x, 95 - 85 * each),
        "steps": lambda: fewer_steps(x, (31 * (1 / 31) ** each).round()),
        "gamma": lambda: x ** (2.2**signed),
        "stripes": lambda: x + stripes(x, pattern) * 0.02 * 10**each,
        "coarse": lambda: x + coarse(x, pattern) * 0.02 * 10**each,
        "shading": lambda: x + shading(x, pattern) * 0.03 * 10**each,   # to where little of the picture is left
        "waves": lambda: x + waves(x, pattern) * 0.02 * 10**each,
    }[kind]().clamp(0, 1)
    if kind in ("float", "steps"):
        return out
    return torch.where(noise(shape=(len(x), 1, 1, 1)) < 0.5, on_lattice(out, levels), out)


def blur(x: Tensor) -> Tensor:
    """The mean over 3x3 neighbours, edges repeated: [N, C, S, S] -> [N, C, S, S]."""
    return neighbours_mean(F.pad(x, (1, 1, 1, 1), mode="replicate"))


def fewer_steps(x: Tensor, steps: Tensor) -> Tensor:
    """Pictures with `steps` + 1 values a pixel, [N, 1, 1, 1] of them, as a cheap converter leaves them."""
    return (x * steps).round() / steps


def stripes(x: Tensor, noise: Callable) -> Tensor:
    """Each row or, for half of the pictures, each column with an offset of its own, of size about 1: [N, 1, S, S].

    Half of them have offsets of one size and either sign, the others normal ones.
    """
    lines = noise(torch.randn, (len(x), 1, x.shape[2], 1))
    lines = torch.where(noise(shape=(len(x), 1, 1, 1)) < 0.5, lines, lines.sign()).expand(-1, -1, -1, x.shape[3])
    return torch.where(noise(shape=(len(x), 1, 1, 1)) < 0.5, lines, lines.transpose(2, 3))


def coarse(x: Tensor, noise: Callable) -> Tensor:
    """Noise of size about 1 in patches of 2x2, 3x3 or 4x4 pixels a picture, as enlarged pictures have: like x.

    Half of them are of one size and either sign, the others normal, as `stripes` are.
    """
    fine, which, size = noise(torch.randn), noise(shape=(len(x), 1, 1, 1)) * 3, x.shape[-1]
    fine = torch.where(noise(shape=(len(x), 1, 1, 1)) < 0.5, fine, fine.sign())
    sides = [fine.repeat_interleave(side, 2)[:, :, :size].repeat_interleave(side, 3)[..., :size] for side in (2, 3, 4)]
    return torch.where(which < 1, sides[0], torch.where(which < 2, sides[1], sides[2]))


def shading(x: Tensor, noise: Callable) -> Tensor:
    """Uneven light of size about 1, from one slope across the picture to a few spots of light and shade: like x.

    Half of the pictures have light of one colour.
    """
    one = (len(x), 1, 1, 1)
    which, grey, out = noise(shape=one) * len(_POINTS), noise(shape=one) < 0.5, torch.zeros_like(x)
    for i, points in enumerate(_POINTS):
        field = noise(torch.randn, (*x.shape[:2], points, points))
        field = torch.where(grey, field[:, :1], field)
        field = F.interpolate(field, x.shape[-1], mode="bicubic", align_corners=True)
        field = field / field.abs().mean((1, 2, 3), keepdim=True)
        out = torch.where((which >= i) & (which < i + 1), field, out)
    return out


def waves(x: Tensor, noise: Callable) -> Tensor:
    """A wave of size about 1 across each picture, in any direction: [N, 1, S, S].

    Along its rows and along its columns, each by itself, it changes sign with every pixel, or not at all, or, half of
    them, has a period of two pixels to half of the picture: checkers, stripes and slanting waves. Half are square.
    """
    size, one = x.shape[-1], (len(x), 1, 1, 1)
    place, turns = torch.arange(size, device=x.device), []   # of the wave in each pixel
    for _ in range(2):
        which, between = noise(shape=one), 0.5 * (4 / size) ** noise(shape=one)
        turns.append(torch.where(which < 0.3, 0.5, torch.where(which < 0.5, 0.0, between)))
    rows, columns = turns[0], torch.where(noise(shape=one) < 0.5, turns[1], -turns[1])
    rows = torch.where((rows == 0) & (columns == 0), 0.5, rows)
    # Half a phase off, a wave that changes sign with every pixel would be nothing.
    steep, phase = (rows % 0.5 == 0) & (columns % 0.5 == 0), noise(shape=one)
    phase = torch.where(steep, 0.5 * (phase < 0.5), phase)
    wave = (2 * math.pi * (rows * place.view(-1, 1) + columns * place + phase)).cos()
    wave = torch.where(noise(shape=one) < 0.5, wave, wave.sign())
    return wave / wave.abs().mean((1, 2, 3), keepdim=True)


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Pictures after JPEG: the loss alone (block transform, quantisation and back), without a file between.

    Follows ITU-T T.81 with the tables of Annex K, scaled as the Independent JPEG Group's encoder does; colour without
    subsampling. Values are rounded to 8 bits before and after, whatever the lattice of the data.

    Args:
        x: float [N, C, S, S] in [0, 1]; three channels are taken for red, green and blue.
        quality: 1 to 100 for each picture, [N, 1, 1, 1].

    Returns:
        float [N, C, S, S] in [0, 1], on multiples of 1/255.
    """
    colour, height, width = x.shape[1] == 3, x.shape[2], x.shape[3]
    turn = torch.tensor(_YCBCR, device=x.device) if colour else torch.eye(x.shape[1], device=x.device)
    planes = torch.einsum("dc,nchw->ndhw", turn, (x * 255).round() - 128)
    planes = F.pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8))   # [N, C, rows, 8, columns, 8]
    quality = quality.round()
    percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).floor()
    tables = [_LUMINANCE, _CHROMINANCE, _CHROMINANCE] if colour else [_LUMINANCE] * x.shape[1]
    tables = torch.tensor(tables, device=x.device)   # [C, 8, 8]
    steps = ((tables * percent + 50) / 100).floor().clamp(1, 255).unsqueeze(3).unsqueeze(2)   # [N, C, 1, 8, 1, 8]
    basis = _cosines().to(x.device)
    waves = torch.einsum("ui,ncaibj,vj->ncaubv", basis, blocks, basis)
    blocks = torch.einsum("ui,ncaubv,vj->ncaibj", basis, (waves / steps).round() * steps, basis)
    planes = blocks.flatten(4, 5).flatten(2, 3)[..., :height, :width]
    out = torch.einsum("cd,ndhw->nchw", torch.linalg.inv(turn), planes) + 128
    return out.round().clamp(0, 255) / 255


def _cosines() -> Tensor:
    """The orthonormal 8-point cosine basis, type II: [frequency, place]."""
    place, wave = torch.arange(8) + 0.5, torch.arange(8).unsqueeze(1)
    basis = (math.pi / 8 * place * wave).cos() / 2
    basis[0] /= math.sqrt(2)
    return basis
