"""How well attacks are noticed and measured that the detector never rehearsed, and what noise is taken for.

Fashion-MNIST and 32x32 colour patches of photographs (`photo-patches`), each with an undefended champion and one that
was trained against Linf 0.1 (8/255). The first n test pictures under AutoPGD, Square, momentum iterative, universal
perturbation, Carlini & Wagner L2 and DeepFool of the Adversarial Robustness Toolbox, and under PGD transferred from a
network of another kind; all rounded to 8 bits. What an attack left unchanged is not counted. Other datasets, such as
`--datasets npz:FILE`, are measured in the same way: what to expect of the detector on pictures of one's own.

Printed for each: the champion's accuracy under it, AUROC against the clean test split, the share detected at a false-
positive rate of 1 % in the test split and at the detector's own threshold, and how often the 90 % interval of a single
flagged input holds the epsilon that arrived in whole levels (87 % asked of attacks that nobody rehearsed). Then, over
campaigns of 64 flagged inputs drawn with replacement: estimate over true (median), the share whose matched epsilon is
1 to 1.25 times the true one, the logarithm of the wealth that the model's evidence wins with 64 inputs, and the share
that would start a retraining run. Minimum-norm attacks have no epsilon: the 95th percentile of their lengths stands
for it. Then fresh attacks of the kinds that were rehearsed, whose 90 % intervals are to hold 87 to 93 % between them.
Finished cells are kept below results/detection. `--quick` trains and fits on little, and is not held to matches and
intervals.
"""

from __future__ import annotations

import json
import math
import sys
import time

import torch
from torch import Tensor

from benchmarks.cells import code_key
from benchmarks.common import Report, arguments, table
from benchmarks.noise import changes
from benchmarks.rehearsed import holds, measured, rehearsed
from benchmarks.unseen import EPSILONS, GRADIENT, L2, LINF, RESULTS, Subject, adversarial, digest, subjects
from redoubt.detection import Detector, FitConfig, decide, fit, match
from redoubt.errors import InvalidInput

CODE = ("redoubt/attacks", "redoubt/detection", "redoubt/threat.py")   # what fits and judges
LESSER = FitConfig(blocks=160, score_steps=160, strength_steps=600, noise=32)   # the quick version's detector
CAMPAIGN = 64   # inputs
FEWER = 5       # campaigns under an attack for each one that is four times as large, or under a harmless change
ATTACK_HEADER = ("champion", "attack", "epsilon", "n", "accuracy", "AUROC", "at 1 %", "flagged", "inside 90 %",
                 "est/true", "1-1.25", "wealth 64", "retrains 64", "256")
SEEN_HEADER = ("champion", "rehearsed kind", "flagged", "inside 90 %")
NOISE_HEADER = ("champion", "change", "accuracy", "flagged", "wealth 64", "retrains 64", "retrains 256")


def fitted(of: Subject, seed: int, *, quick: bool = False) -> Detector:
    """The subject's detector, fitted as the pipeline does and kept for the same code, weights and data.

    Args:
        quick: a lesser one, fitted in half a minute.
    """
    folder = RESULTS / "detectors" / f"{of.slug}-{seed}-{digest(of.key, code_key(*CODE), *([LESSER] if quick else []))}"
    if not (folder / "detector.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        fit(of.model, of.data.tensors("detector_fit"), of.data.tensors("calibration"), levels=of.data.levels, seed=seed,
            further=of.data.tensors("train", 4_000 if quick else 10_000), config=LESSER if quick else None).save(folder)
    return Detector.load(folder, of.model)


def auroc(clean: Tensor, attacked: Tensor) -> float:
    """The probability that an attacked input scores higher than a clean one; ties count half (Mann & Whitney 1947)."""
    ordered = clean.sort().values
    below, upto = torch.searchsorted(ordered, attacked), torch.searchsorted(ordered, attacked, right=True)
    return ((below + upto).double() / 2 / len(clean)).mean().item()


def campaigns(evidence: Tensor, size: int, count: int, seed: int):
    """`count` campaigns of `size` rows drawn with replacement; none from fewer than a quarter as many rows."""
    generator = torch.Generator().manual_seed(seed)
    if len(evidence) >= size // 4:
        for _ in range(count):
            yield evidence[torch.randint(len(evidence), (size,), generator=generator)]


def attack_cell(of: Subject, detector: Detector, clean: Tensor, attack: str, epsilon, args) -> dict:
    """The figures of one attack at one epsilon."""
    return judged(of, detector, clean, *adversarial(of, attack, epsilon, args.n, args.seed), epsilon, args,
                  norm="L2" if attack in L2 else "Linf")


def judged(of: Subject, detector: Detector, clean: Tensor, x_adv: Tensor, rows: Tensor, epsilon, args, *,
           norm: str) -> dict:
    """The figures of an attack's pictures, made from so many `rows` of the first n test pictures.

    Args:
        clean: the scores of the clean test split.
        epsilon: None of an attack that has none: then the 95th percentile of the lengths stands for it.
    """
    x, y = of.data.tensors("test", args.n)
    if len(rows) < 10:
        return {"n": len(rows), "norm": norm}
    verdicts = detector.assess(x_adv)
    with torch.no_grad():
        accuracy = (of.model(x_adv).argmax(1) == y[rows]).float().mean().item()
    change = (x_adv - x[rows]).flatten(1)
    true = epsilon or change.norm(dim=1, p=2 if norm == "L2" else math.inf).quantile(0.95).item()
    # Intervals are of what arrived: 0.03 in whole levels is 8 / 255.
    most = round(change.abs().max().item() * of.data.levels) / of.data.levels
    arrived = most if norm == "Linf" else true
    flagged = verdicts.is_adversarial   # the others have no interval
    inside = holds(verdicts, arrived)[flagged].float().mean().item() if norm == "Linf" and flagged.any() else None
    out = {
        "n": len(rows), "norm": norm, "true": true, "arrived": arrived, "accuracy": accuracy,
        "auroc": auroc(clean, verdicts.score),
        "at_1_percent": (verdicts.score > clean.quantile(0.99)).double().mean().item(),   # in float32 19 / 20 < 0.95
        "flagged": flagged.float().mean().item(), "inside_90_percent": inside,
        "wealth": wealth(detector, verdicts),
    }
    drawn = campaigns(verdicts.evidence[flagged], CAMPAIGN, args.campaigns, args.seed)
    strengths = [detector.campaign(evidence) for evidence in drawn]
    named = [strength for strength in strengths if strength.norm == norm]
    if strengths:
        ratios = torch.tensor([match(strength) / true for strength in named])
        estimates = torch.tensor([strength.estimate / true for strength in named])
        out |= {
            "estimate": estimates.median().item() if named else None, "right_norm": len(named) / len(strengths),
            "matched": ((ratios >= 1) & (ratios <= 1.25)).sum().item() / len(strengths),
            "interval_98_percent": sum(holds(one, arrived) for one in named) / len(strengths),
            "retrains": sum(decide(one, of.covered).retrain for one in strengths) / len(strengths),
        }
        more = [detector.campaign(rows) for rows in campaigns(
            verdicts.evidence[flagged], 4 * CAMPAIGN, max(1, args.campaigns // FEWER), args.seed)]
        out["retrains_256"] = sum(decide(one, of.covered).retrain for one in more) / len(more) if more else None
    return out


def wealth(detector: Detector, verdicts) -> float:
    """Logarithm of what a bet on 64 flagged inputs wins on average; from 4.6 on a campaign is an attack."""
    evidence = verdicts.evidence[verdicts.is_adversarial]
    return CAMPAIGN * detector.wealth(evidence) / len(evidence) if len(evidence) else 0.0


def noise_cell(of: Subject, detector: Detector, x: Tensor, y: Tensor, args) -> dict:
    """What becomes of harmlessly changed pictures."""
    verdicts = detector.assess(x)
    with torch.no_grad():
        out = {"accuracy": (of.model(x).argmax(1) == y).float().mean().item(),
               "flagged": verdicts.is_adversarial.float().mean().item(), "wealth": wealth(detector, verdicts)}
    evidence = verdicts.evidence[verdicts.is_adversarial]
    for size in (CAMPAIGN, 4 * CAMPAIGN):
        decisions = [decide(detector.campaign(rows), of.covered)
                     for rows in campaigns(evidence, size, max(1, args.campaigns // FEWER), args.seed)]
        out[f"retrains_{size}"] = sum(one.retrain for one in decisions) / len(decisions) if decisions else None
    return out


def kept(name: str, key: str, make) -> dict:
    """What `make` gives, or gave in an earlier call with the same key."""
    file = RESULTS / "cells" / f"{name}-{key}.json"
    if not file.is_file():
        value = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".new").write_text(json.dumps(value))
        file.with_suffix(".new").replace(file)
    return json.loads(file.read_text())


def measure(report: Report, of: Subject, args) -> None:
    """All cells of one champion."""
    began, detector = time.perf_counter(), fitted(of, args.seed, quick=args.quick)
    seconds = time.perf_counter() - began
    clean = detector.assess(of.data.tensors("test")[0])
    key = digest(of.key, code_key(*CODE, "benchmarks/detection.py"), args.n, args.campaigns, args.seed, args.quick)
    share = clean.is_adversarial.float().mean().item()
    report.say(f"\n{of.name}: {share:.4f} of {len(clean.score)} clean test pictures flagged "
               f"(null rate {detector.null_rate:.4f}); detector fitted or read in {seconds:.0f} s "
               f"{detector.settings.fitted['seconds']}")
    rows = []
    cases = [(attack, epsilon) for attack in LINF for epsilon in of.epsilons] + [(name, None) for name in L2]
    if args.quick:
        cases = [(attack, epsilon) for attack in GRADIENT for epsilon in of.epsilons[1:3]]
    for attack, epsilon in cases:
        cell = kept(f"{of.slug}-{attack}-{epsilon or 0:.4f}", key,
                    lambda case=(attack, epsilon): attack_cell(of, detector, clean.score, *case, args))
        rows.append(attack_row(of, attack, epsilon, cell))
        require(report, of, attack, epsilon, cell, strict=not args.quick)
        report.figures.setdefault("attacks", []).append(
            {"champion": of.name, "attack": attack, "epsilon": epsilon, **cell})
    report.say(f"\n{table(ATTACK_HEADER, rows)}")
    if not args.quick:
        seen(report, of, detector, key, args)
    noise(report, of, detector, key, args)


def attack_row(of: Subject, attack: str, epsilon, cell: dict) -> list:
    names = ("accuracy", "auroc", "at_1_percent", "flagged", "inside_90_percent", "estimate", "matched", "wealth",
             "retrains", "retrains_256")
    cells = [cell.get(name) for name in names]
    shown = f"{epsilon:.4f}" if epsilon else f"{cell.get('norm', '')} {cell.get('true', 0):.3g}"
    return [of.name, attack, shown, cell["n"], *["-" if one is None else f"{one:.3f}" for one in cells]]


def seen(report: Report, of: Subject, detector: Detector, key: str, args) -> None:
    """The table of the kinds that strength was learned from."""
    cell = kept(f"{of.slug}-rehearsed", digest(key, code_key("benchmarks/rehearsed.py")),
                lambda: measured(detector, rehearsed(of, detector, 160, args.seed + 500)))
    shown = {kind: "-" if share is None else f"{share:.3f}" for kind, share in cell["inside"].items()}
    report.say(f"\n{table(SEEN_HEADER, [[of.name, kind, cell['flagged'][kind], shown[kind]] for kind in shown])}")
    coverage = cell["coverage"] or 0.0   # none: nothing was flagged
    report.say(f"all kinds: {coverage:.3f} inside 90 %; of {cell['campaigns']} campaigns of 16 to 32 inputs "
               f"{cell['held'] or 0.0:.3f} inside 98 %")
    report.figures.setdefault("seen", []).append({"champion": of.name, **cell})
    report.require(bool(of.covered) or 0.87 <= coverage <= 0.93,
                   f"{of.name}: the 90 % interval of an input under rehearsed kinds holds {coverage:.3f}, "
                   "not 0.87 to 0.93")


def noise(report: Report, of: Subject, detector: Detector, key: str, args) -> None:
    """The table of harmless changes."""
    x, y = of.data.tensors("test", args.n)
    rows = []
    made = changes(x, of.data.levels, torch.Generator().manual_seed(args.seed))
    for change, pictures in list(made.items())[:: 5 if args.quick else 1]:
        cell = kept(f"{of.slug}-{change.replace(' ', '-')}", key,
                    lambda pictures=pictures: noise_cell(of, detector, pictures, y, args))
        shown = ["-" if one is None else f"{one:.3f}" for one in cell.values()]
        rows.append([of.name, change, *shown])
        report.figures.setdefault("noise", []).append({"champion": of.name, "change": change, **cell})
        report.require(not any(cell[name] for name in cell if name.startswith("retrains")),
                       f"{of.name}: {change} would start a retraining run")
    report.say(f"\n{table(NOISE_HEADER, rows)}\n'-': too few were flagged for a campaign")


def require(report: Report, of: Subject, attack: str, epsilon, cell: dict, *, strict: bool) -> None:
    """Note each figure that falls short, where the attack costs the undefended champion half of its accuracy.

    Args:
        strict: matches and intervals, too; those of a detector that was fitted in half a minute are wide.
    """
    if of.covered or "auroc" not in cell or cell["accuracy"] > 0.5:
        return
    name = f"{of.name}: {attack}{f' at {epsilon:.4f}' if epsilon else ''}"
    least = 0.99 if attack in GRADIENT else 0.95
    report.require(cell["auroc"] >= least, f"{name}: AUROC {cell['auroc']:.3f}, {least} is asked for")
    if attack in GRADIENT:
        report.require(cell["at_1_percent"] >= 0.95, f"{name}: {cell['at_1_percent']:.3f} detected at 1 %, not 0.95")
    if attack in LINF and "matched" in cell:
        estimate = cell["estimate"] or 0.0   # none: no campaign was told to be in Linf
        report.require(0.9 <= estimate <= 1.1, f"{name}: estimate over true {estimate:.3f}, not 0.9 to 1.1")
        report.require(not strict or cell["matched"] >= 0.99,
                       f"{name}: {cell['matched']:.3f} matched in 1 to 1.25, not 0.99")
        report.require(not strict or cell["inside_90_percent"] >= 0.87,
                       f"{name}: the 90 % interval of an input holds {cell['inside_90_percent']:.3f}, not 0.87")


def main() -> int:
    args = arguments(
        __doc__,
        n={"type": int, "default": 300, "help": "test pictures attacked (default 300)"},
        campaigns={"type": int, "default": 1000, "help": "campaigns of 64 inputs drawn for each attack; one for every "
                   f"{FEWER} of them of 256 inputs, and of harmless changes (default 1000)"},
        datasets={"nargs": "+", "metavar": "DATASET",
                  "help": f"any that training takes, your own among them (default {' '.join(EPSILONS)})"},
        champions={"nargs": "+", "default": ["undefended", "robust"], "choices": ["undefended", "robust"]},
    )
    if args.quick:
        args.n, args.campaigns, args.champions = 64, 50, ["undefended"]
        args.datasets = args.datasets or ["fashion-mnist"]
    report = Report(args, f"Detection of attacks that were not rehearsed, compact-cnn, n = {args.n} a cell")
    try:
        for of in subjects(args.datasets or list(EPSILONS), args.champions, args.seed, args.data_dir, quick=args.quick):
            measure(report, of, args)
    except InvalidInput as error:   # such as pictures on which no attack shows
        print(f"error: {error}", file=sys.stderr)
        return 2
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
