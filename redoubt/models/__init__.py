"""Architectures by name, each with its normalisation inside: a model takes pixels in [0, 1] and returns logits."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from redoubt.errors import InvalidInput, one_of
from redoubt.models.compact import CompactCNN
from redoubt.models.preact import PreActResNet18
from redoubt.models.strided import StridedCNN
from redoubt.models.torchvision import PREFIX, TorchvisionNetwork
from redoubt.models.wide import WideResNet
from redoubt.names import is_torchvision

BODIES = {"compact-cnn": CompactCNN, "strided-cnn": StridedCNN, "preactresnet-18": PreActResNet18,
          "wideresnet-28-10": WideResNet}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """All that is needed to build a network before its weights are read.

    Attributes:
        name: a key of `BODIES`, or `torchvision:` and the name of one of its classification networks.
        num_classes: how many logits, at least 2.
        channels: 1 for grey, 3 for colour.
        size: height and width in pixels, at least 8.
        mean, std: per-channel statistics of the training pixels in [0, 1].
    """

    name: str
    num_classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not is_torchvision(self.name):
            one_of(self.name, (*BODIES, f"{PREFIX}NAME"), "architecture")
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if self.num_classes < 2 or self.channels < 1 or self.size < 8:
            raise InvalidInput(
                f"a model needs at least 2 classes, 1 channel and 8x8 pixels, not {self.num_classes} classes, "
                f"{self.channels} channels and {self.size}x{self.size}"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise InvalidInput(f"mean and std need {self.channels} values each")
        if not all(map(math.isfinite, self.mean + self.std)) or min(self.std) <= 0:
            raise InvalidInput(f"mean and std must be finite and every std above 0, not {self.mean} and {self.std}")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one input."""
        return self.channels, self.size, self.size

    def to_json(self) -> dict:
        return asdict(self)


class Classifier(nn.Module):
    """Normalisation and a body. Input [N, C, H, W] in [0, 1], output logits [N, num_classes]."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        shape = (1, architecture.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(architecture.mean).view(shape))
        self.register_buffer("std", torch.tensor(architecture.std).view(shape))
        shape = {"channels": architecture.channels, "size": architecture.size, "num_classes": architecture.num_classes}
        if is_torchvision(architecture.name):
            self.body = TorchvisionNetwork(architecture.name.removeprefix(PREFIX), **shape)
        else:
            self.body = BODIES[architecture.name](**shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.std)


def build(architecture: Architecture) -> Classifier:
    """A fresh network with randomly initialised weights, drawn from torch's global generator."""
    return Classifier(architecture)


__all__ = ["BODIES", "Architecture", "Classifier", "build"]
