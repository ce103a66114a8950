"""Models whose robustness is a sham, planted for `benchmarks.evaluation`, and honest ones beside them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redoubt.attacks import fgsm, pgd
from redoubt.data import Prepared
from redoubt.evaluation.accuracy import accuracy
from redoubt.evaluation.sanity import Claim
from redoubt.models import Architecture, build
from redoubt.threat import ThreatModel
from redoubt.training import TrainConfig, train

SMALL, LARGE = ThreatModel("Linf", 0.1), ThreatModel("Linf", 0.3)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A model, the threat model that it claims to withstand, and whether it is honest.

    Attributes:
        claim: its maker's account: of an honest one what `train` reported (validation split), of an overfitted one its
            accuracy under its own attack (test split).
    """

    name: str
    model: nn.Module
    threat: ThreatModel
    honest: bool
    claim: Claim | None


class Front(nn.Module):
    """A model behind something that changes its inputs."""

    def __init__(self, change: Callable[[Tensor], Tensor], model: nn.Module):
        super().__init__()
        self.change, self.model = change, model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.change(x))


class AlwaysTraining(nn.Module):
    """A model that nobody can put into eval mode: batch norm looks at the batch."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = copy.deepcopy(model)
        self.train()

    def train(self, mode: bool = True) -> AlwaysTraining:
        return super().train(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def fresh(prepared: Prepared, seed: int) -> nn.Module:
    """An untrained compact CNN for the data."""
    torch.manual_seed(seed)
    channels, size, _ = prepared.metadata["shape"]
    return build(Architecture(name="compact-cnn", num_classes=len(prepared.classes), channels=channels, size=size,
                              mean=prepared.metadata["mean"], std=prepared.metadata["std"]))


Claimed = tuple[nn.Module, Claim | None]


def trained(prepared: Prepared, objective: str, threats=(), *, seed=0, epochs: int = 20, **settings) -> Claimed:
    """A compact CNN trained as the pipeline would, and what its training reported."""
    config = TrainConfig(objective=objective, threats=threats, epochs=epochs, batch_size=64, seed=seed, average=0.9,
                         **settings)
    validation = prepared.tensors("validation")
    result = train(fresh(prepared, seed), prepared.tensors("train"), validation, config)
    best = next(row for row in result.history if row["epoch"] == result.best_epoch)
    claim = Claim(attacked=best.get("robust_accuracy", 0.0), clean=best["clean_accuracy"], n=len(validation[0]))
    return result.model.eval(), claim if threats else None


def overfitted(prepared: Prepared, attack: Callable, *, seed: int, epochs: int) -> Claimed:
    """A compact CNN trained on one weak attack alone, with nobody watching; and its accuracy under that attack."""
    model, generator = fresh(prepared, seed), torch.Generator().manual_seed(seed)
    x, y = prepared.tensors("train")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(32):
            x_adv = attack(model.eval(), x[rows], y[rows])
            optimizer.zero_grad()
            F.cross_entropy(model.train()(x_adv), y[rows]).backward()
            optimizer.step()
    test = prepared.tensors("test")
    return model.eval(), Claim(attacked=accuracy(model, *test, attack=attack), clean=accuracy(model, *test),
                               n=len(test[0]))


def planted(prepared: Prepared, seed: int = 0) -> list[Planted]:
    """Five kinds of fraud (gradients are masked in two ways) and honest models of four kinds."""
    undefended = trained(prepared, "standard", seed=seed, epochs=12)
    robust = trained(prepared, "pgd", (SMALL,), seed=seed, learning_rate=5e-3)
    ball = ThreatModel("L2", 0.8)
    noise = torch.Generator().manual_seed(seed)

    def single(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return fgsm(model, x, y, LARGE)

    def twice(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return pgd(model, x, y, LARGE, steps=2, alpha=LARGE.epsilon, random_start=False)

    def fraud(name: str, found: Claimed, threat: ThreatModel = SMALL) -> Planted:
        return Planted(name=name, model=found[0], claim=found[1], threat=threat, honest=False)

    def honest(name: str, found: Claimed, threat: ThreatModel = SMALL) -> Planted:
        return Planted(name=name, model=found[0], claim=found[1], threat=threat, honest=True)

    def behind(change: Callable[[Tensor], Tensor]) -> Claimed:
        return Front(change, undefended[0]).eval(), None

    return [
        fraud("masked: quantising front", behind(lambda x: (x * 6).round() / 6)),
        fraud("masked: saturating front", behind(lambda x: torch.sigmoid(400 * (x - 0.5)))),
        fraud("randomised", behind(lambda x: x + 0.2 * torch.randn(x.shape, generator=noise))),
        fraud("evaluated in training mode", (AlwaysTraining(robust[0]), robust[1])),
        fraud("single-step, catastrophically overfitted", overfitted(prepared, single, seed=seed, epochs=40), LARGE),
        fraud("overfitted to its attack (two steps)", overfitted(prepared, twice, seed=seed, epochs=120), LARGE),
        honest("undefended", undefended),
        honest("PGD-trained", robust),
        honest("TRADES-trained", trained(prepared, "trades", (SMALL,), seed=seed, lam=6.0, learning_rate=5e-3)),
        honest("PGD-trained, L2", trained(prepared, "pgd", (ball,), seed=seed, learning_rate=5e-3), ball),
        honest("PGD-trained, wide ball", trained(prepared, "pgd", (LARGE,), seed=seed, learning_rate=5e-3), LARGE),
    ]
