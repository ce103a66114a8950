"""Looking at the validation split: which weights are better, and whether single-step training has failed."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from redoubt.attacks import fgsm
from redoubt.evaluation.accuracy import accuracy, withstands_pgd
from redoubt.training.config import TrainConfig
from redoubt.training.distributed import World
from redoubt.training.state import State

STEPS = 10   # of the PGD that compares epochs


def validate(state: State, data: tuple[Tensor, Tensor], world: World) -> tuple[dict, nn.Module]:
    """The better of averaged and raw weights, by `robust_accuracy`, then `clean_accuracy`: its row and its model.

    The row's `weights` says which. Both meet the same random starts. The averaged weights win a tie.
    """
    candidates = {"raw": state.model} if state.average is None else {"average": state.average, "raw": state.model}
    rows = {name: world.agree(measure(model, data, state.config)) for name, model in candidates.items()}
    name = max(rows, key=lambda name: (rows[name].get("robust_accuracy", 0.0), rows[name]["clean_accuracy"]))
    return rows[name] | {"weights": name}, candidates[name]


def measure(model: nn.Module, data: tuple[Tensor, Tensor], config: TrainConfig) -> dict:
    """Clean accuracy; with threat models also robust accuracy (PGD-10, the worst of them), and for `fast` accuracy
    under FGSM, whose distance from it gives catastrophic overfitting away.
    """
    model.eval()
    row = {"clean_accuracy": accuracy(model, *data)}
    if not config.threats:
        return row
    # Its own generator: looking more or less often must not change what the training steps draw.
    generator = torch.Generator(device=data[0].device).manual_seed(config.seed)
    stood = [withstands_pgd(model, *data, threat, steps=STEPS, generator=generator) for threat in config.threats]
    row["robust_accuracy"] = min(float(part.float().mean()) for part in stood)
    if config.objective == "fast":
        row["single_step_accuracy"] = min(accuracy(model, *data, attack=partial(fgsm, threat=threat))
                                          for threat in config.threats)
    return row
