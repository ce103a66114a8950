"""A small convolutional network for small pictures: quick enough to train adversarially on two cores."""

from __future__ import annotations

import math

from torch import Tensor, nn


class CompactCNN(nn.Module):
    """Two 3x3 convolutions with pooling, then two dense layers. Any square size from 8 pixels."""

    def __init__(self, *, channels: int, size: int, num_classes: int, width: int = 16, hidden: int = 128):
        super().__init__()
        halvings = max(2, math.ceil(math.log2(size / 8)) + 1)   # ends at a map of 2x2 to 8x8
        layers: list[nn.Module] = []
        for level in range(halvings):
            out = width * 2 ** min(level, 3)
            # Pooled first, then rectified: the same numbers as the other way round, for a quarter of the work.
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
            channels, size = out, size // 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * size * size, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
