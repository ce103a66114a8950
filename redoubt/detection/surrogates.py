"""Stand-ins for a model: what an attacker trains who cannot reach the model itself."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redoubt.compute import side_by_side


def fit_surrogates(model: nn.Module, x: Tensor, *, seed: int, epochs: int = 8) -> tuple[nn.Module, ...]:
    """Small networks that copy the model's answers on `x`: attackers who have no access to the model itself.

    One strides and cuts off, the other averages and bends softly; their gradients differ in kind.
    """
    channels, wide = x.shape[1], 48 * math.ceil(x.shape[2] / 4) ** 2
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        target = torch.cat([model(part) for part in x.split(256)]).softmax(1)
        nets = [
            nn.Sequential(
                nn.Conv2d(channels, 24, 5, stride=2, padding=2), nn.ReLU(),
                nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(wide, target.shape[1])),
            nn.Sequential(
                nn.Conv2d(channels, 24, 3, padding=1), nn.GELU(), nn.AvgPool2d(2, ceil_mode=True),
                nn.Conv2d(24, 48, 3, padding=1), nn.GELU(), nn.AvgPool2d(2, ceil_mode=True), nn.Flatten(),
                nn.Linear(wide, target.shape[1])),
        ]
    nets = [net.to(x.device, memory_format=torch.channels_last) for net in nets]
    return tuple(side_by_side((partial(_copied, net, x, target, seed, epochs) for net in nets), x.device))


def _copied(net: nn.Module, x: Tensor, target: Tensor, seed: int, epochs: int) -> nn.Module:
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).to(x.device).split(64):
            loss = F.cross_entropy(net(x[rows] - 0.5), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return _Centred(net).eval().requires_grad_(False)


class _Centred(nn.Module):
    """Pixels in [0, 1] to a network that wants them round zero."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - 0.5)
