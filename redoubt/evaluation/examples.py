"""A few images before and after an attack, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from redoubt.attacks import get_attack
from redoubt.evaluation.accuracy import eval_mode, predict
from redoubt.evaluation.robustness import check_input
from redoubt.evaluation.suites import attack_label
from redoubt.threat import ThreatModel


def examples(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    classes: Sequence[str],
    attack: str = "pgd",
    n: int = 6,
    seed: int = 0,
) -> list[dict]:
    """A few images before and after an attack, drawn at random, classes as different as possible, none left out
    for having withstood it.

    Returns:
        For each image a dict of `clean`, `adversarial` and `perturbation` (float32 arrays [C, H, W] in [0, 1]; the
        perturbation is amplified so that its largest change fills the range, 0.5 meaning none), `amplified` (that
        factor), `label`, `predicted`, `predicted_adversarial` (class names), `confidence` and
        `confidence_adversarial` (softmax of the predicted class), `attack` (its label), `norm`, `epsilon`.

    Raises:
        InvalidInput: as `evaluate`.
    """
    check_input(x, y, classes, (attack,), 1)
    get_attack(attack)
    device = next((parameter.device for parameter in model.parameters()), x.device)
    chosen = _one_of_each(y, n, seed)
    x, y = x[chosen].to(device), y[chosen].to(device)
    with eval_mode(model):
        generator = torch.Generator(device=device).manual_seed(seed)
        x_adv = get_attack(attack)(model, x, y, threat, generator=generator)
        (sure, before), (sure_adv, after) = (predict(model, part).softmax(1).max(1) for part in (x, x_adv))
    shown = []
    for i in range(len(x)):
        delta = (x_adv[i] - x[i]).cpu()
        change = float(delta.abs().max())
        factor = 0.5 / change if change > 0 else 1.0
        shown.append({
            "clean": x[i].cpu().numpy(), "adversarial": x_adv[i].cpu().numpy(),
            "perturbation": (0.5 + factor * delta).clamp(0, 1).numpy(), "amplified": factor,
            "label": str(classes[y[i]]), "predicted": str(classes[before[i]]), "confidence": float(sure[i]),
            "predicted_adversarial": str(classes[after[i]]), "confidence_adversarial": float(sure_adv[i]),
            "attack": attack_label(attack), "norm": threat.norm, "epsilon": threat.epsilon,
        })
    return shown


def _one_of_each(y: Tensor, n: int, seed: int) -> Tensor:
    """Rows of `n` random images: every class once before any comes twice."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    seen: dict[int, int] = {}
    rank = []
    for label in y.cpu()[order].tolist():
        rank.append(seen.get(label, 0))
        seen[label] = rank[-1] + 1
    return order[torch.tensor(rank).argsort(stable=True)][:n].to(y.device)
