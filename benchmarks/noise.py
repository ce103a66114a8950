"""Harmless changes at severities that people may send, for benchmarks: none of them may start a retraining run.

They are made here, not by the code that the detector learns from.
"""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIZES = (0.05, 0.1, 0.2, 0.4)   # of noise, in the pixel range


def changes(x: Tensor, levels: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Name to changed pictures, [N, C, S, S] in [0, 1], on the lattice."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    n, channels, size = x.shape[:3]
    out, place = {}, torch.arange(size)
    for sigma in SIZES:
        out[f"gaussian {sigma}"] = x + sigma * normal(*x.shape)
        out[f"sign {sigma}"] = x + sigma * normal(*x.shape).sign()
        out[f"uniform {sigma}"] = x + sigma * (2 * torch.rand(x.shape, generator=generator) - 1)
        out[f"shot {sigma}"] = torch.poisson(x / sigma**2, generator=generator) * sigma**2
        out[f"rows {sigma}"] = x + sigma * normal(n, 1, size, 1)
        out[f"columns fixed {sigma}"] = x + sigma * normal(1, 1, 1, size).sign()
        out[f"checkers {sigma}"] = x + sigma * ((place + place.view(-1, 1)) % 2 * 2 - 1)
        out[f"coarse sign {sigma}"] = x + sigma * F.interpolate(normal(n, channels, size // 2, size // 2).sign(), size)
        out[f"fixed pattern {sigma}"] = x + sigma * normal(1, *x.shape[1:]).sign()
    out |= {f"salt and pepper {share}": _impulse(x, share, generator) for share in (0.02, 0.1, 0.3)}
    out |= {f"jpeg {quality}": _jpeg(x, quality) for quality in (90, 75, 50, 10)}
    out |= {f"brightness {by:+}": x + by for by in (-0.2, 0.1, 0.2)}
    out |= {f"contrast {by}": (x - 0.5) * by + 0.5 for by in (0.5, 0.75, 1.3)}
    out |= {f"gamma {by}": x**by for by in (0.5, 1.5)}
    out |= {f"blur {by}": F.avg_pool2d(F.pad(x, [by // 2] * 4, mode="replicate"), by, stride=1) for by in (3, 5)}
    out["resized"] = F.interpolate(F.interpolate(x, round(0.7 * size), mode="bilinear"), size, mode="bilinear")
    out["7 levels"] = (x * 7).round() / 7
    for sigma in SIZES:
        for name, count in ((f"uneven light {sigma}", n), (f"uneven light fixed {sigma}", 1)):
            light = F.interpolate(normal(count, channels, 4, 4), size, mode="bilinear", align_corners=True)
            out[name] = x + sigma * light / light.abs().mean((1, 2, 3), keepdim=True)
    return {name: (picture.clamp(0, 1) * levels).round() / levels for name, picture in out.items()}


def _impulse(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(x.shape, generator=generator)
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn > 1 - share / 2, 1.0, x))


def _jpeg(x: Tensor, quality: int) -> Tensor:
    """Through a real encoder, chroma subsampling included."""
    from PIL import Image

    out = []
    for picture in (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(picture if picture.shape[2] == 3 else picture[..., 0]).save(file, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(file)))
    pictures = torch.from_numpy(np.stack(out)).float() / 255
    return pictures.permute(0, 3, 1, 2) if pictures.dim() == 4 else pictures.unsqueeze(1)
