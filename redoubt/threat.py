"""Threat models: which perturbations an attacker may use.

A threat model is a norm and an epsilon in pixel space, where a pixel lies in [0, 1]. A model version carries a set of
them. Within one norm the larger ball contains the smaller, so a set is kept in its shortest form: one epsilon a norm.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redoubt.errors import InvalidInput, one_of

if TYPE_CHECKING:   # torch takes seconds to import, and whoever only reads or compares threat models does not need it
    import torch
    from torch import Tensor

NORMS = ("L2", "Linf")


def parse_epsilon(text: str | float, *, norm: str = "Linf") -> float:
    """Read an epsilon written as `0.1` or `8/255`.

    Raises:
        InvalidInput: for anything but a positive finite number, and for more than 1 in Linf.
    """
    try:
        if isinstance(text, str) and "/" in text:
            top, bottom = text.split("/")
            value = float(top) / float(bottom)
        else:
            value = float(text)
    except (TypeError, ValueError, ZeroDivisionError):
        raise InvalidInput(f"epsilon {text!r} is not a number: write it as 0.1 or 8/255") from None
    if not math.isfinite(value) or value <= 0:
        raise InvalidInput(f"epsilon must be a finite number above 0, not {text}")
    if norm == "Linf" and value > 1:
        raise InvalidInput(f"epsilon {text} is above 1: pixels lie in [0, 1], so write 8/255 rather than 8")
    return value


@dataclass(frozen=True, order=True, slots=True)
class ThreatModel:
    """All perturbations delta with ||delta|| <= epsilon.

    Attributes:
        norm: `Linf` (largest change of a pixel) or `L2` (Euclidean length over all pixels of one image).
        epsilon: the bound, in units of the [0, 1] pixel range.
    """

    norm: str
    epsilon: float

    def __post_init__(self) -> None:
        one_of(self.norm, NORMS, "norm")
        object.__setattr__(self, "epsilon", parse_epsilon(self.epsilon, norm=self.norm))

    def __str__(self) -> str:
        return f"{self.norm} {self.epsilon:.4g}"

    def project(self, delta: Tensor, scale: Tensor | None = None) -> Tensor:
        """The nearest perturbation inside the ball. `delta` is [N, ...]; so is the result.

        `scale` ([N]) gives each image a ball of that multiple of epsilon, here and in `sample`.
        """
        import torch

        if self.norm == "Linf":
            if scale is None:
                return delta.clamp(-self.epsilon, self.epsilon)
            bound = self.epsilon * _rows(scale, delta)
            return torch.minimum(torch.maximum(delta, -bound), bound)
        length = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
        epsilon = self.epsilon if scale is None else self.epsilon * scale
        return delta * _rows(torch.clamp(epsilon / length, max=1.0), delta)

    def size(self, delta: Tensor) -> Tensor:
        """The norm of each perturbation: [N, ...] -> [N]."""
        flat = delta.flatten(1)
        return flat.abs().amax(1) if self.norm == "Linf" else flat.norm(dim=1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The unit step that increases a linear loss most: [N, ...] -> [N, ...]."""
        import torch

        if self.norm == "Linf":
            return gradient.sign()
        # A sure model's gradients are so small that their squares are 0: scale by the largest entry first.
        largest = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        gradient = gradient / _rows(largest, gradient)
        return gradient / _rows(gradient.flatten(1).norm(dim=1).clamp_min(1e-12), gradient)

    def sample(
        self, like: Tensor, generator: torch.Generator | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """Perturbations drawn uniformly from the ball, shaped as `like` ([N, ...])."""
        import torch

        if scale is not None:
            return self.sample(like, generator) * _rows(scale, like)
        if self.norm == "Linf":
            noise = torch.empty(like.shape, device=like.device, dtype=like.dtype)
            return noise.uniform_(-self.epsilon, self.epsilon, generator=generator)
        direction = torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
        radius = torch.rand(len(like), generator=generator, device=like.device, dtype=like.dtype)
        radius = radius ** (1 / like[0].numel())
        return self.steepest(direction) * _rows(radius, like) * self.epsilon


def _rows(per_image: Tensor, like: Tensor) -> Tensor:
    return per_image.view(-1, *[1] * (like.dim() - 1))


def cover(*sets: Iterable[ThreatModel]) -> tuple[ThreatModel, ...]:
    """The smallest set of threat models that contains every given one: the largest epsilon for each norm, sorted."""
    largest: dict[str, float] = {}
    for threat in (threat for threats in sets for threat in threats):
        largest[threat.norm] = max(threat.epsilon, largest.get(threat.norm, 0.0))
    return tuple(ThreatModel(norm, largest[norm]) for norm in sorted(largest))


def covers(threats: Iterable[ThreatModel], threat: ThreatModel) -> bool:
    """Whether one of `threats` contains every perturbation of `threat`."""
    return any(have.norm == threat.norm and have.epsilon >= threat.epsilon for have in threats)


def covered_epsilon(threats: Iterable[ThreatModel], norm: str) -> float:
    """The largest epsilon that the set covers in `norm`; 0.0 when it covers none."""
    return max((threat.epsilon for threat in threats if threat.norm == norm), default=0.0)


def dump_threats(threats: Iterable[ThreatModel]) -> str:
    """The set as one line of JSON, the form in which it travels between steps."""
    return json.dumps([[threat.norm, threat.epsilon] for threat in cover(threats)])


def load_threats(text: str) -> tuple[ThreatModel, ...]:
    """Read what `dump_threats` wrote.

    Raises:
        InvalidInput: when the text is not a JSON list of [norm, epsilon] pairs.
    """
    try:
        entries = json.loads(text)
        if not isinstance(entries, list):
            raise ValueError("no list")
        pairs = [(norm, epsilon) for norm, epsilon in entries]
    except (TypeError, ValueError):
        raise InvalidInput(f'threats must be JSON such as [["Linf", 0.1]], not {text!r}') from None
    return cover(ThreatModel(norm, epsilon) for norm, epsilon in pairs)
