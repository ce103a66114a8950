"""The robustness report: accuracy, clean and under a suite's attacks, over a curve of epsilons, with intervals, and the
checks that doubt it.

What a suite is lives in `suites`, what is doubted in `sanity`; the report as a page lives in `redoubt.report`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from redoubt.errors import InvalidInput
from redoubt.evaluation import probes
from redoubt.evaluation.accuracy import eval_mode, predict
from redoubt.evaluation.calibration import calibration
from redoubt.evaluation.intervals import wilson
from redoubt.evaluation.sanity import Claim, claim_holds, in_order
from redoubt.evaluation.store import Store, fingerprint, pack, unpack
from redoubt.evaluation.suites import (
    SUITES,
    Setting,
    attack_label,
    check_suite,
    on_curve,
    other_norms,
    withstands,
)
from redoubt.threat import ThreatModel, cover, parse_epsilon

FORMAT = 2
UNDEFENDED_GRID = (0.05, 0.1, 0.2)   # Linf, for a model that was trained against nothing
MULTIPLES = (0.5, 1.5)               # of each norm's largest epsilon (itself always added), for one that was
SANITY_N = 128                       # images that the sanity checks look at


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    classes: Sequence[str],
    threats: Iterable[ThreatModel],
    levels: int,
    suite: str = "quick",
    attacks: Sequence[str] | None = None,
    epsilons: Iterable[float] | None = None,
    curve_n: int = 1000,
    sanity_n: int = SANITY_N,
    seed: int = 0,
    surrogate: nn.Module | None = None,
    claim: Claim | None = None,
    state: Path | str | None = None,
    progress: Callable[[dict], None] | None = None,
) -> dict:
    """Measure a model, clean and under white-box attacks, and doubt the result.

    Args:
        x, y: pixels [N, C, H, W] in [0, 1] and labels [N]; they are moved to the model's device.
        classes: the names of the labels 0, 1, ...
        threats: what the model was trained against; each is attacked on all N images.
        levels: the largest stored pixel value (255, or 16 for the digits), recorded beside the figures. The
            attacks are not rounded to this lattice: they are the stronger for it.
        suite: `quick`, `standard` or `full`, see `redoubt.evaluation.suites`.
        attacks: names of attacks instead of the suite's.
        epsilons: the curve, in each norm of `threats` (Linf when there is none). By default 0.5, 1 and 1.5 times
            each norm's largest epsilon, or `UNDEFENDED_GRID`. Zero (clean) and the threats are always added.
        curve_n: the curve uses this many images, drawn by `seed`; a point that is a threat uses all. Attacks that are
            too dear for a curve meet the threats alone.
        sanity_n: images that the sanity checks look at; 0 leaves the checks out.
        seed: fixes the drawn images and the attacks' random starts, each row by itself.
        surrogate: another model of the same task, for attacks by transfer; without one they are left out.
        claim: what the model's own record says of it, if it has one.
        state: a folder for what is finished, so that a killed evaluation goes on there. Whoever has written the
            report down empties it: `redoubt.evaluation.store.forget`.
        progress: called with each finished row of `attacks`, and with {part, batch, of, accuracy} after each batch of
            AutoAttack.

    Returns:
        JSON values, described by `report.schema.json`. `attacks` holds rows {attack, label, norm, epsilon, n, accuracy,
        low, high}, `robust` for each threat the row of the attack that left the least accuracy, `worst_case` the
        images that withstood all of them, by class; low and high are 95 % Wilson bounds.

    Raises:
        InvalidInput: for no images, labels that do not fit, an unknown suite or attack, a model of another shape or
            number of classes, or an epsilon that is no epsilon.
    """
    start = time.perf_counter()
    names = SUITES[check_suite(suite)] if attacks is None else attacks
    check_input(x, y, classes, names, curve_n)
    device = next((parameter.device for parameter in model.parameters()), x.device)
    x, y, threats = x.to(device), y.to(device), cover(threats)
    names = tuple(name for name in names if name != "transfer" or surrogate is not None)
    given_training = probes.behaves_otherwise_in_training(model)
    with eval_mode(model):
        logits = _logits(model, x, classes)
        key = fingerprint(model, x, y, seed=seed, format=FORMAT, curve_n=curve_n)
        run = _Run(model=model, x=x, y=y, classes=classes, store=Store(state, key), surrogate=surrogate, seed=seed,
                   right=logits.argmax(1) == y.cpu(), drawn=_drawn(len(x), curve_n, seed), progress=progress)
        for name in names:
            for norm, epsilon in _points(threats, epsilons):
                if on_curve(name) or epsilon == 0 or ThreatModel(norm, epsilon) in threats:
                    run.row(name, norm, epsilon, full=epsilon == 0 or ThreatModel(norm, epsilon) in threats)
        if suite == "full" and attacks is None:
            for threat in other_norms(threats, x.shape[1:]):
                run.row("pgd", threat.norm, threat.epsilon, full=True)
        checks = run.checks(threats, sanity_n, given_training, claim) if sanity_n else []
    return {
        "format": FORMAT, "suite": suite if attacks is None else "custom",
        "n": len(x), **{f"clean_{key}": value for key, value in _share(run.right).items() if key != "n"},
        **_by_class(logits.argmax(1), y.cpu(), classes),
        "attacks": run.rows,
        "robust": [_strongest(run.rows, threat) for threat in threats],
        "worst_case": [run.worst_case(threat) for threat in threats],
        "checks": [check.to_json() for check in checks],
        "calibration": calibration(logits, y.cpu()),
        "cost": run.cost,
        "threats": [[threat.norm, threat.epsilon] for threat in threats],
        "levels": levels,
        "seed": seed,
        "seconds": time.perf_counter() - start,
    }


@dataclass(kw_only=True)
class _Run:
    """One evaluation under way: what it is given, and the rows so far."""

    model: nn.Module
    x: Tensor
    y: Tensor
    classes: Sequence[str]
    store: Store
    surrogate: nn.Module | None
    seed: int
    right: Tensor
    drawn: Tensor
    progress: Callable[[dict], None] | None
    rows: list[dict] = field(default_factory=list)
    cost: list[dict] = field(default_factory=list)
    stood: dict[tuple[str, str, float], Tensor] = field(default_factory=dict)

    def row(self, name: str, norm: str, epsilon: float, *, full: bool) -> None:
        """Attack, or take up what an earlier process found, and add the row; `full` takes all images."""
        row = {"attack": name, "label": attack_label(name, len(self.classes)), "norm": norm, "epsilon": epsilon}
        if epsilon == 0:
            stood = self.right
        else:
            found = self.store.recall(f"{name}-{norm}-{epsilon:.8g}-{full}",
                                      lambda: self._attack(name, ThreatModel(norm, epsilon), full))
            stood = unpack(found["stood"])
            self.cost.append(row | {"n": len(stood), "seconds": found["seconds"],
                                    "images_per_second": len(stood) / max(found["seconds"], 1e-9)})
        if full and epsilon:
            self.stood[name, norm, epsilon] = stood
        row |= _share(stood)
        self.rows.append(row)
        if self.progress:
            self.progress(row)

    def _attack(self, name: str, threat: ThreatModel, full: bool) -> dict:
        start, device = time.perf_counter(), self.x.device
        x, y = (self.x, self.y) if full else (self.x[self.drawn.to(device)], self.y[self.drawn.to(device)])
        setting = Setting(seed=self.seed, surrogate=self.surrogate, progress=self.progress,
                          state=self.store.path(f"autoattack-state-{threat.norm}-{threat.epsilon:.8g}"))
        stood = withstands(name, self.model, x, y, threat, setting)
        return {"stood": pack(stood), "seconds": time.perf_counter() - start}

    def worst_case(self, threat: ThreatModel) -> dict:
        """The images that withstood every attack within the threat model, all together and by class."""
        found = {name: stood for (name, *ball), stood in self.stood.items() if ball == [threat.norm, threat.epsilon]}
        stood = torch.stack(list(found.values())).all(0)
        rows = _class_rows(stood, self.y.cpu(), self.classes)
        return {"norm": threat.norm, "epsilon": threat.epsilon, **_share(stood), "per_class": rows,
                "attacks": [attack_label(name, len(self.classes)) for name in found], "worst_class": _worst(rows)}

    def checks(self, threats: Sequence[ThreatModel], n: int, given_training: int,
               claim: Claim | None) -> list:
        """The sanity checks, on `n` images drawn by the seed."""
        rows = _drawn(len(self.x), n, self.seed + 1).to(self.x.device)
        curves: dict[str, dict[str, list]] = {}
        for row in sorted(self.rows, key=lambda row: row["epsilon"]):
            if on_curve(row["attack"]):
                points = curves.setdefault(row["norm"], {}).setdefault(row["label"], [])
                points.append((row["epsilon"], round(row["accuracy"] * row["n"]), row["n"]))
        sample = probes.Sample(model=self.model, x=self.x[rows], y=self.y[rows], seed=self.seed,
                               surrogate=self.surrogate)
        start = time.perf_counter()
        found = [self.stood["pgd", threat.norm, threat.epsilon].float().mean().item() for threat in threats
                 if ("pgd", threat.norm, threat.epsilon) in self.stood]
        checks = probes.run_checks(sample, threats or (ThreatModel("Linf", UNDEFENDED_GRID[1]),), curves,
                                   given_training=given_training)
        checks.append(claim_holds(claim, self.right.float().mean().item(), min(found, default=None), len(self.x)))
        seconds = time.perf_counter() - start
        self.cost.append({"attack": "checks", "label": "sanity checks", "norm": "", "epsilon": 0.0, "n": len(rows),
                          "seconds": seconds, "images_per_second": len(rows) / max(seconds, 1e-9)})
        return in_order(checks)


def _logits(model: nn.Module, x: Tensor, classes: Sequence[str]) -> Tensor:
    try:
        logits = predict(model, x).cpu()
    except RuntimeError as error:
        if "size" in str(error) or "shape" in str(error) or "channels" in str(error):
            raise InvalidInput(f"the model does not take pictures of shape {tuple(x.shape[1:])}: "
                               f"{str(error).splitlines()[0]}") from error
        raise
    if logits.dim() != 2 or logits.shape[1] != len(classes):
        raise InvalidInput(f"the model has {logits.shape[-1]} outputs, but there are {len(classes)} classes")
    return logits


def _drawn(total: int, n: int, seed: int) -> Tensor:
    """`n` of `total` rows, drawn by the seed, in order."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:n].sort().values


def check_input(x: Tensor, y: Tensor, classes: Sequence[str], attacks: Sequence[str], curve_n: int = 1) -> None:
    """Raise InvalidInput for images, labels or attacks that cannot be evaluated."""
    if isinstance(attacks, str) or not attacks:
        raise InvalidInput(f"attacks must be a list of names with at least one in it, not {attacks!r}")
    for name in attacks:
        attack_label(name)
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


def _share(stood: Tensor) -> dict:
    right, n = int(stood.sum()), len(stood)
    low, high = wilson(right, n)
    return {"n": n, "accuracy": right / n, "low": low, "high": high}


def _by_class(predicted: Tensor, y: Tensor, classes: Sequence[str]) -> dict:
    """Rows per class, the worst of them, and the confusion matrix (true class by row, predicted by column)."""
    size = len(classes)
    confusion = torch.bincount(y * size + predicted, minlength=size * size).view(size, size)
    rows = _class_rows(predicted == y, y, classes)
    return {"per_class": rows, "worst_class": _worst(rows), "confusion": confusion.tolist()}


def _class_rows(stood: Tensor, y: Tensor, classes: Sequence[str]) -> list[dict]:
    nothing = {"n": 0, "accuracy": None, "low": None, "high": None}
    own = [stood[y == label] for label in range(len(classes))]
    return [{"class": str(name), **(_share(part) if len(part) else nothing)}
            for name, part in zip(classes, own, strict=True)]


def _worst(rows: list[dict]) -> dict:
    return min((row for row in rows if row["n"]), key=lambda row: row["accuracy"])


def _strongest(rows: list[dict], threat: ThreatModel) -> dict:
    same = [row for row in rows if (row["norm"], row["epsilon"]) == (threat.norm, threat.epsilon)]
    return dict(min(same, key=lambda row: (row["accuracy"], row["attack"] != "autoattack")))
