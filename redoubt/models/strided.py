"""A convolutional network that halves the picture in its very first layer: more channels for the same time."""

from __future__ import annotations

import math

from torch import Tensor, nn


class StridedCNN(nn.Module):
    """Strided convolutions, the first 5x5 and the others 3x3, then two dense layers. Any square size from 8 pixels.

    Small networks are short of capacity for adversarial training. A layer's time on a processor follows the area of its
    map more than its channels, and pooling a map throws away three quarters of what was paid for: without large maps,
    64 and 128 channels take the time of the compact network's 16 and 32. Figures: docs/training.md.
    """

    def __init__(self, *, channels: int, size: int, num_classes: int, width: int = 64, hidden: int = 256):
        super().__init__()
        halvings = max(2, math.ceil(math.log2(size / 8)))   # ends at a map of 2x2 to 8x8
        layers: list[nn.Module] = []
        for level in range(halvings):
            out, kernel = width * 2 ** min(level, 3), 3 if level else 5
            layers += [nn.Conv2d(channels, out, kernel, stride=2, padding=kernel // 2), nn.ReLU()]
            channels, size = out, (size + 1) // 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * size * size, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
