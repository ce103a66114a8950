"""What a detector learns attacks from: rehearsals against its own model. Harmless changes are in `benign.py`.

Attacks come in blocks. A block is a few dozen pictures under one kind of attack with one epsilon and one setting: what
a campaign looks like from the receiving end. The training traffic never enters; pictures are those given to `fit`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redoubt.attacks import fgsm, momentum_pgd, on_lattice, pgd
from redoubt.threat import ThreatModel
from redoubt.training.loop import use_bfloat16

KINDS = ("fgsm", "step", "pgd", "climb", "momentum", "transfer")


@dataclass(frozen=True, kw_only=True)
class Block:
    """Pictures under one attack.

    Attributes:
        x: adversarial inputs, float [n, C, S, S] in [0, 1].
        clean: the pictures that they were made from.
        threat: norm and epsilon that the attacker was given.
        kind: one of `KINDS`.
    """

    x: Tensor
    clean: Tensor
    threat: ThreatModel
    kind: str


class Dice:
    """Random choices from one seeded generator, so that a rehearsal can be repeated."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def chance(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability

    def rows(self, total: int, n: int) -> Tensor:
        """`n` different row numbers below `total`; with repeats only when there are too few."""
        if n > total:
            return torch.randint(total, (n,), generator=self.generator)
        return torch.randperm(total, generator=self.generator)[:n]


def rehearse(
    model: nn.Module, surrogate: nn.Module, x: Tensor, y: Tensor, *, blocks: int, size: int, levels: int,
    norm: str, epsilon: tuple[float, float], seed: int,
) -> Iterator[Block]:
    """Attack blocks, the kinds taking turns and each setting drawn at random.

    Args:
        model, surrogate: in eval mode; `transfer` asks the surrogate alone.
        x, y: pictures [N, C, S, S] in [0, 1] and labels [N] to attack, on the model's device.
        blocks, size: how many blocks, and of how many pictures each.
        levels: three blocks in four are rounded to this lattice, as a sent picture would be.
        norm, epsilon: the norm and the range that epsilon is drawn from, evenly in its logarithm.
    """
    dice = Dice(seed)
    low, high = math.log(epsilon[0]), math.log(epsilon[1])
    # Even coverage beats independent draws with so few blocks: one stratum of epsilon a block, in random order.
    strata = torch.randperm(blocks, generator=dice.generator)
    precision = torch.autocast(x.device.type, torch.bfloat16, enabled=use_bfloat16("auto", x.device))
    for i in range(blocks):
        kind = KINDS[i % len(KINDS)]
        value = math.exp(low + (high - low) * (strata[i].item() + dice.uniform(0, 1)) / blocks)
        threat = ThreatModel(norm, value)
        rows = dice.rows(len(x), size).to(x.device)
        with precision:
            x_adv = _attack(kind, model, surrogate, x[rows], y[rows], threat, dice)
        if dice.chance(0.75):
            x_adv = on_lattice(x_adv, levels)
        yield Block(x=x_adv.float(), clean=x[rows], threat=threat, kind=kind)


def _attack(kind: str, model, surrogate, x: Tensor, y: Tensor, threat: ThreatModel, dice: Dice) -> Tensor:
    """One attack with its own setting drawn; steps lie in 1..20 and step lengths in 0.5..3 epsilon / steps."""
    noise = torch.Generator(x.device).manual_seed(int(dice.uniform(0, 2**31)))
    if kind == "transfer":
        model, kind = surrogate, ("fgsm", "pgd", "momentum")[int(dice.uniform(0, 3))]
    if kind == "fgsm":
        return fgsm(model, x, y, threat)
    if kind == "step":
        return pgd(model, x, y, threat, steps=1, alpha=dice.uniform(0.75, 1.5) * threat.epsilon, generator=noise)
    if kind == "momentum":
        steps, start = round(dice.log_uniform(3, 15)), dice.chance(0.3)
        alpha = dice.uniform(1, 1.5) * threat.epsilon / steps
        return momentum_pgd(model, x, y, threat, steps=steps, alpha=alpha, random_start=start, generator=noise)
    low, high = (7, 20.5) if kind == "climb" else (2, 10)
    steps = round(dice.log_uniform(low, high))
    alpha = dice.log_uniform(0.5, 3) * threat.epsilon / steps
    start = dice.chance(0.7) or alpha * steps < threat.epsilon
    return pgd(model, x, y, threat, steps=steps, alpha=alpha, random_start=start, generator=noise)


def fit_surrogate(model: nn.Module, x: Tensor, *, seed: int, epochs: int = 12) -> nn.Module:
    """A small network that copies the model's answers on `x`: the attacker who has no access to the model itself."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        target = torch.cat([model(part) for part in x.split(256)]).softmax(1)
        net = nn.Sequential(
            nn.Conv2d(x.shape[1], 24, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(48 * math.ceil(x.shape[2] / 4) ** 2, target.shape[1]),
        ).to(x.device, memory_format=torch.channels_last)
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


