"""Wide residual networks (Zagoruyko & Komodakis 2016, arXiv 1605.07146), the field's larger standard."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from redoubt.models.preact import Block


class WideResNet(nn.Module):
    """Three stages of `(depth - 4) / 6` pre-activation blocks, `width` times 16, 32 and 64 channels. From 8 pixels."""

    def __init__(self, *, channels: int, size: int, num_classes: int, depth: int = 28, width: int = 10):
        super().__init__()
        inputs, blocks = 16, []
        self.stem = nn.Conv2d(channels, inputs, 3, padding=1, bias=False)
        for stage in range(3):
            outputs = 16 * width * 2**stage
            for i in range((depth - 4) // 6):
                blocks.append(Block(inputs, outputs, 2 if stage and i == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))
