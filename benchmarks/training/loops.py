"""PGD adversarial training in four hands, on the same network, pictures and settings. Runs in the peers' environment.

Ours is `redoubt.training`. torchattacks and foolbox bring an attack each, and the loop round it is the one that their
users write; ART brings the whole trainer. Prints one JSON object: seconds a step, the four taking turns in this
process, and the accuracy of what each of them trained from the same weights.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redoubt.compute import keep_memory
from redoubt.evaluation.accuracy import predict, withstands_pgd
from redoubt.models import Architecture, build
from redoubt.threat import ThreatModel
from redoubt.training import TrainConfig, train

NAMES = ("redoubt", "torchattacks", "foolbox", "ART")


class Setting:
    """What all four share. One epoch over the pictures given, without looks at a validation split."""

    def __init__(self, given: argparse.Namespace):
        self.network, self.epsilon, self.steps = given.network, given.epsilon, given.steps
        self.batch, self.rate, self.seed = given.batch, given.learning_rate, given.seed
        self.alpha = 1.5 * self.epsilon / self.steps

    def model(self, x: Tensor) -> nn.Module:
        torch.manual_seed(self.seed)
        channels, size = x.shape[1], x.shape[-1]
        return build(Architecture(name=self.network, num_classes=10, channels=channels, size=size,
                                  mean=(float(x.mean()),) * channels, std=(float(x.std()),) * channels))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=self.rate, weight_decay=1e-4)


def redoubt(setting: Setting, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Our own `train`, with the average of the weights and the schedule that it always has."""
    config = TrainConfig(objective="pgd", threats=(ThreatModel("Linf", setting.epsilon),), steps=setting.steps,
                         epochs=1, batch_size=setting.batch, learning_rate=2 * setting.rate, seed=setting.seed)
    train(model, (x, y), (x[:1], y[:1]), config)


def looped(setting: Setting, model: nn.Module, x: Tensor, y: Tensor,
           attack: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The loop that a user of an attack library writes."""
    optimizer = setting.optimizer(model)
    for rows in torch.randperm(len(x)).split(setting.batch):
        model.eval()
        x_adv = attack(x[rows], y[rows])
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x_adv), y[rows]).backward()
        optimizer.step()


def torchattacks(setting: Setting, model: nn.Module, x: Tensor, y: Tensor) -> None:
    from torchattacks import PGD

    looped(setting, model, x, y, PGD(model, eps=setting.epsilon, alpha=setting.alpha, steps=setting.steps))


def foolbox(setting: Setting, model: nn.Module, x: Tensor, y: Tensor) -> None:
    from foolbox import PyTorchModel
    from foolbox.attacks import LinfPGD

    attack = LinfPGD(abs_stepsize=setting.alpha, steps=setting.steps)

    def perturbed(x: Tensor, y: Tensor) -> Tensor:
        return attack(PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=setting.epsilon)[1]

    looped(setting, model, x, y, perturbed)


def art(setting: Setting, model: nn.Module, x: Tensor, y: Tensor) -> None:
    from art.defences.trainer import AdversarialTrainerMadryPGD
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, setting.optimizer(model),
                                   clip_values=(0, 1), device_type="cpu")
    trainer = AdversarialTrainerMadryPGD(classifier, nb_epochs=1, batch_size=setting.batch, eps=setting.epsilon,
                                         eps_step=setting.alpha, max_iter=setting.steps, num_random_init=1)
    trainer.attack.set_params(verbose=False)
    trainer.fit(x.numpy(), np.eye(10, dtype=np.float32)[y.numpy()])


WORKS = dict(zip(NAMES, (redoubt, torchattacks, foolbox, art), strict=True))


def timed(setting: Setting, x: Tensor, y: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds a step over `x`, which is a few batches, in each round and for each name; all take turns."""
    models = {name: setting.model(x) for name in NAMES}
    took: dict[str, list[float]] = {name: [] for name in NAMES}
    for turn in range(rounds + 1):
        for name, work in WORKS.items():
            start = time.perf_counter()
            work(setting, models[name], x, y)
            if turn:   # the first is for warming up
                took[name].append((time.perf_counter() - start) / (len(x) // setting.batch))
    return took


def trained(setting: Setting, x: Tensor, y: Tensor, test: tuple[Tensor, Tensor]) -> dict[str, dict]:
    """Clean and PGD-20 accuracy after one epoch over `x`, each from the same first weights."""
    out = {}
    for name, work in WORKS.items():
        model = setting.model(x)
        torch.manual_seed(setting.seed)
        np.random.seed(setting.seed)
        work(setting, model, x, y)
        model.eval()
        clean = (predict(model, test[0]).argmax(1) == test[1]).float().mean().item()
        held = withstands_pgd(model, *test, ThreatModel("Linf", setting.epsilon),
                              generator=torch.Generator().manual_seed(setting.seed))
        out[name] = {"clean": clean, "pgd20": held.float().mean().item(), "n": len(test[0])}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path, help=".npz with x, y, x_test, y_test")
    for name, kind in (("network", str), ("epsilon", float), ("steps", int), ("batch", int), ("learning-rate", float),
                       ("seed", int), ("rounds", int), ("timed-batches", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    keep_memory()   # as our train step does; all four share the process, so all four have it
    with np.load(given.pictures) as file:
        x, y, *test = (torch.from_numpy(file[name]) for name in ("x", "y", "x_test", "y_test"))
    setting, few = Setting(given), given.timed_batches * given.batch
    result = {"seconds": timed(setting, x[:few], y[:few], given.rounds)}
    result["accuracy"] = trained(setting, x, y, tuple(test))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
