"""PreActResNet-18 (He et al. 2016, arXiv 1603.05027), in the form that adversarial-training papers use for 32x32."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Norm, ReLU, convolution, twice; the shortcut starts behind the first activation."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        residual = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(F.relu(self.norm2(self.conv1(active)))) + residual


class PreActResNet18(nn.Module):
    """Four stages of two blocks, 64 to 512 channels, global average pooling. Any size from 8 pixels."""

    def __init__(self, *, channels: int, size: int, num_classes: int):
        super().__init__()
        self.stem = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        widths, blocks = [64, 64, 128, 256, 512], []
        for stage, (inputs, outputs) in enumerate(pairwise(widths)):
            blocks += [Block(inputs, outputs, 1 if stage == 0 else 2), Block(outputs, outputs, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(512)
        self.head = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(features.mean((2, 3)))
