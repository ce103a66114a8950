"""The robustness report: accuracy, clean and under named attacks, over a curve of epsilons, with intervals.

What an attack is lives in `redoubt.attacks`; how the report looks as a page lives in `redoubt.report`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from redoubt.attacks import get_attack
from redoubt.errors import InvalidInput
from redoubt.evaluation.accuracy import correct, eval_mode, predict, withstands_pgd
from redoubt.evaluation.intervals import wilson
from redoubt.threat import ThreatModel, cover, parse_epsilon

UNDEFENDED_GRID = (0.05, 0.1, 0.2)   # Linf, for a model that was trained against nothing
MULTIPLES = (0.5, 1.5)               # of each norm's largest epsilon (itself always added), for one that was
_TITLES = {"fgsm": "FGSM", "pgd": "PGD", "momentum": "Momentum PGD"}


def attack_label(name: str) -> str:
    """An attack as a reader knows it, its default number of steps included: `PGD-20`.

    Raises:
        InvalidInput: for an unknown attack, naming the valid ones.
    """
    steps = inspect.signature(get_attack(name)).parameters.get("steps")
    title = _TITLES.get(name, name)
    return f"{title}-{steps.default}" if steps else title


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    classes: Sequence[str],
    threats: Iterable[ThreatModel],
    levels: int,
    attacks: Sequence[str] = ("fgsm", "pgd"),
    epsilons: Iterable[float] | None = None,
    curve_n: int = 1000,
    seed: int = 0,
    progress: Callable[[dict], None] | None = None,
) -> dict:
    """Measure a model, clean and under white-box attacks.

    Args:
        x, y: pixels [N, C, H, W] in [0, 1] and labels [N]; they are moved to the model's device.
        classes: the names of the labels 0, 1, ...
        threats: what the model was trained against; each is attacked on all N images.
        levels: the largest stored pixel value (255, or 16 for the digits), recorded beside the figures. The
            attacks are not rounded to this lattice: they are the stronger for it.
        attacks: names from `redoubt.attacks.ATTACKS`, with their default settings. Under `pgd` an image counts as
            fooled when any iterate fools the model.
        epsilons: the curve, in each norm of `threats` (Linf when there is none). By default 0.5, 1 and 1.5 times
            each norm's largest epsilon, or `UNDEFENDED_GRID`. Zero (clean) and the threats are always added.
        curve_n: the curve uses this many images, drawn by `seed`; a point that is a threat uses all.
        seed: fixes the drawn images and the attacks' random starts, each row by itself.
        progress: called with each finished row of `attacks`.

    Returns:
        JSON values. `attacks` holds rows {attack, label, norm, epsilon, n, accuracy, low, high}, `robust` for each
        threat the row of the attack that left the least accuracy; low and high are 95 % Wilson bounds.

    Raises:
        InvalidInput: for no images, labels that do not fit, an unknown attack, or an epsilon that is no epsilon.
    """
    start = time.perf_counter()
    _check(x, y, classes, attacks, curve_n)
    device = next((parameter.device for parameter in model.parameters()), x.device)
    x, y, threats = x.to(device), y.to(device), cover(threats)
    points = _points(threats, epsilons)
    drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:curve_n].sort().values.to(device)
    rows = []
    with eval_mode(model):
        logits = predict(model, x).cpu()
        if logits.shape[1] != len(classes):
            raise InvalidInput(f"the model has {logits.shape[1]} outputs, but there are {len(classes)} classes")
        predicted = logits.argmax(1)
        clean = _share(int((predicted == y.cpu()).sum()), len(x))
        for name in attacks:
            for norm, epsilon in points:
                row = {"attack": name, "label": attack_label(name), "norm": norm, "epsilon": epsilon}
                if epsilon == 0:
                    row |= clean
                else:
                    threat = ThreatModel(norm, epsilon)
                    part = (x, y) if threat in threats else (x[drawn], y[drawn])
                    row |= _under_attack(model, *part, threat, name, seed)
                rows.append(row)
                if progress:
                    progress(row)
    return {
        "n": len(x),
        "clean_accuracy": clean["accuracy"],
        "clean_low": clean["low"],
        "clean_high": clean["high"],
        **_by_class(predicted, y.cpu(), classes),
        "attacks": rows,
        "robust": [_strongest(rows, threat) for threat in threats],
        "threats": [[threat.norm, threat.epsilon] for threat in threats],
        "levels": levels,
        "seed": seed,
        "seconds": time.perf_counter() - start,
    }


def _check(x: Tensor, y: Tensor, classes: Sequence[str], attacks: Sequence[str], curve_n: int) -> None:
    if isinstance(attacks, str) or not attacks:
        raise InvalidInput(f"attacks must be a list of names with at least one in it, not {attacks!r}")
    for name in attacks:
        get_attack(name)
    if x.dim() != 4 or len(x) == 0 or y.shape != (len(x),):
        raise InvalidInput(f"need pictures [N, C, H, W] and labels [N], N >= 1, not {tuple(x.shape)}, {tuple(y.shape)}")
    if int(y.min()) < 0 or int(y.max()) >= len(classes):
        raise InvalidInput(f"labels must be 0 to {len(classes) - 1}, one for each class")
    if curve_n < 1:
        raise InvalidInput(f"curve_n must be at least 1, not {curve_n}")


def _points(threats: tuple[ThreatModel, ...], epsilons: Iterable[float] | None) -> list[tuple[str, float]]:
    """The (norm, epsilon) pairs to evaluate, sorted, epsilon 0 included."""
    given = None if epsilons is None else [float(epsilon) for epsilon in epsilons]
    points = set()
    for norm in sorted({threat.norm for threat in threats} or {"Linf"}):
        own = [threat.epsilon for threat in threats if threat.norm == norm]
        grid = given
        if grid is None:
            top = 1.0 if norm == "Linf" else float("inf")
            grid = [min(float(f"{times * max(own):.6g}"), top) for times in MULTIPLES] if own else UNDEFENDED_GRID
        points |= {(norm, 0.0)}
        points |= {(norm, parse_epsilon(epsilon, norm=norm)) for epsilon in (*grid, *own) if epsilon != 0}
    return sorted(points)


def _under_attack(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, name: str, seed: int) -> dict:
    attack, generator = get_attack(name), torch.Generator(device=x.device).manual_seed(seed)
    if name == "pgd":
        right = withstands_pgd(model, x, y, threat, generator=generator)
    else:
        right = correct(model, x, y, attack=lambda model, x, y: attack(model, x, y, threat, generator=generator))
    return _share(int(right.sum()), len(x))


def _share(right: int, n: int) -> dict:
    low, high = wilson(right, n)
    return {"n": n, "accuracy": right / n, "low": low, "high": high}


def _by_class(predicted: Tensor, y: Tensor, classes: Sequence[str]) -> dict:
    """Rows per class, the worst of them, and the confusion matrix (true class by row, predicted by column)."""
    size = len(classes)
    confusion = torch.bincount(y * size + predicted, minlength=size * size).view(size, size)
    rows = []
    for label, name in enumerate(classes):
        n = int(confusion[label].sum())
        share = _share(int(confusion[label, label]), n) if n else {"n": 0, "accuracy": None, "low": None, "high": None}
        rows.append({"class": str(name), **share})
    worst = min((row for row in rows if row["n"]), key=lambda row: row["accuracy"])
    return {"per_class": rows, "worst_class": worst, "confusion": confusion.tolist()}


def _strongest(rows: list[dict], threat: ThreatModel) -> dict:
    same = [row for row in rows if (row["norm"], row["epsilon"]) == (threat.norm, threat.epsilon)]
    return dict(min(same, key=lambda row: row["accuracy"]))


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
    _check(x, y, classes, (attack,), 1)
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
