"""How well an attack's strength is measured, on Fashion-MNIST's test file, which fitting never saw.

For FGSM and PGD-20 (random start, alpha 2.5 epsilon / steps), ten seeds each, epsilon is drawn evenly from 0.05 to 0.2,
adversarial pictures are rounded to 8 bits and sent until 64 were flagged. Printed for each campaign: the true epsilon,
the estimate with its one-sided 99 % bounds, and the matched epsilon, which should be 1 to 1.25 times the true one.
Beside it: share detected, inputs until the alarm, and the clean test file, which must raise none: five times over, and
1,000,000 inputs drawn from it with replacement, which is a simulation.
Without --quick, a champion trained at 0.1 is measured too: attacks within 0.1 must not seem stronger than that.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from benchmarks.common import Report, arguments, prepared, table
from redoubt.attacks import fgsm, on_lattice, pgd
from redoubt.data import Prepared
from redoubt.detection import Detector, FitConfig, Monitor, decide, fit, match
from redoubt.models import Architecture, build
from redoubt.threat import ThreatModel
from redoubt.training import TrainConfig, train

ATTACKS = ("fgsm", "pgd")
FLAGGED = 64
COVERED = 0.1   # what the robust champion is trained against
HEADER = ("champion", "attack", "seed", "true", "estimate", "low", "high", "matched", "ratio", "inside")


def champion(data: Prepared, threats: tuple[ThreatModel, ...], args) -> torch.nn.Module:
    """A compact CNN, undefended or trained against `threats`, briefly: what matters is its detector."""
    torch.manual_seed(args.seed)
    card = data.metadata
    model = build(Architecture(name="compact-cnn", num_classes=len(data.classes), channels=card["shape"][0],
                               size=card["shape"][1], mean=card["mean"], std=card["std"]))
    config = TrainConfig(objective="pgd" if threats else "standard", threats=threats, epochs=1 if args.quick else 2,
                         steps=4, seed=args.seed)
    return train(model, data.tensors("train"), data.tensors("validation"), config).model


def attacked(model, x, y, name: str, epsilon: float, levels: int, seed: int) -> torch.Tensor:
    threat, generator = ThreatModel("Linf", epsilon), torch.Generator().manual_seed(seed)
    x_adv = fgsm(model, x, y, threat) if name == "fgsm" else pgd(model, x, y, threat, generator=generator)
    return on_lattice(x_adv, levels)


def campaign(model, detector: Detector, test, name: str, seed: int, highest: float, levels: int):
    """(true epsilon, strength or None, share detected, inputs until the alarm or None) of one campaign."""
    draw = torch.Generator().manual_seed(1000 * ATTACKS.index(name) + seed)
    epsilon = 0.05 + (highest - 0.05) * torch.rand((), generator=draw).item()
    rows = torch.randperm(len(test[0]), generator=draw)[: 2 * FLAGGED]
    x_adv = attacked(model, test[0][rows], test[1][rows], name, epsilon, levels, seed)
    verdicts, monitor = detector.assess(x_adv), Monitor(detector.null_rate)
    alarms = [monitor.update(bool(one)) for one in verdicts.is_adversarial]
    evidence = verdicts.evidence[verdicts.is_adversarial][:FLAGGED]
    strength = detector.campaign(evidence) if len(evidence) == FLAGGED else None
    until = alarms.index(True) + 1 if any(alarms) else None
    return epsilon, strength, verdicts.is_adversarial.float().mean().item(), until


def clean_alarms(detector: Detector, x: torch.Tensor, drawn: int, seed: int) -> tuple[float, list[bool]]:
    """The share of clean inputs flagged, and whether there is an alarm: all five times over, and `drawn` of them."""
    flagged = torch.cat([detector.assess(part).is_adversarial for part in x.split(256)])
    rows = torch.randint(len(flagged), (drawn,), generator=torch.Generator().manual_seed(seed))
    traffic = (flagged.tolist() * 5, flagged[rows].tolist())
    return flagged.float().mean().item(), [Monitor(detector.null_rate).update(verdicts) for verdicts in traffic]


def measure(report: Report, name: str, model, data: Prepared, covered: tuple[ThreatModel, ...], seeds: int) -> None:
    """Fit, run the campaigns, print the table and note what falls short."""
    args, start = report.given, time.perf_counter()
    config = FitConfig(blocks=480, score_steps=600, noise=32) if args.quick else None
    detector = fit(model, data.tensors("detector_fit"), data.tensors("calibration"), levels=data.levels,
                   seed=args.seed, config=config)
    seconds, test = time.perf_counter() - start, data.tensors("test")
    highest = COVERED if covered else 0.2
    rows, shares, waits, climbs = [], [], [], 0
    for attack in ATTACKS:
        for seed in range(seeds):
            true, strength, share, until = campaign(model, detector, test, attack, seed, highest, data.levels)
            shares.append(share)
            waits.append(until)
            if strength is None:
                rows.append((name, attack, seed, true, *["-"] * 5, "no"))
                continue
            matched = match(strength)
            climbs += decide(strength, covered).retrain and bool(covered)
            inside = 1 <= matched / true <= 1.25 and strength.norm == "Linf" and not strength.harmless
            rows.append((name, attack, seed, true, strength.estimate, strength.low, strength.high, matched,
                         matched / true, "yes" if inside else "no"))
    drawn = 100_000 if args.quick else 1_000_000
    flagged, alarms = clean_alarms(detector, test[0], drawn, args.seed)
    alarm = any(alarms)
    inside, slowest = sum(row[-1] == "yes" for row in rows), max(w or 10**6 for w in waits)
    report.say(f"\n{table(HEADER, rows)}\n")
    report.say(f"{name}: {inside} of {len(rows)} inside [1, 1.25] x true, n = {FLAGGED} flagged inputs each; "
               f"detected {min(shares):.3f} or more; alarm after {slowest} inputs or fewer")
    report.say(f"{name}: clean test file: {flagged:.4f} flagged (null rate {detector.null_rate:.4f}), five times over "
               f"and {drawn:,} drawn from it: {'AN ALARM' if alarm else 'no alarm'}; needless retrains {climbs}; "
               f"fitted in {seconds:.1f} s {detector.settings.fitted['seconds']}")
    report.figures[name] = {
        "columns": HEADER, "campaigns": rows, "inside": inside, "detected_least": min(shares), "alarm_slowest": slowest,
        "clean_flagged": flagged, "clean_alarm": alarm, "needless_retrains": climbs, "fit_seconds": round(seconds, 1),
    }
    report.require(inside >= 0.8 * len(rows), f"{name}: {inside} of {len(rows)} inside, at least 80 % are asked for")
    report.require(min(shares) >= 0.95, f"{name}: only {min(shares):.3f} detected in one campaign, 0.95 is asked for")
    report.require(slowest <= 20, f"{name}: an alarm took {slowest} inputs, at most 20 are allowed")
    report.require(not alarm, f"{name}: clean inputs raised an alarm")
    report.require(not climbs, f"{name}: {climbs} attacks within the covered epsilon would start a retrain")


def main() -> int:
    args = arguments(__doc__, prepared={"type": Path, "help": "a prepared folder, instead of the source"})
    report = Report(args, "Strength of 64 flagged inputs, Fashion-MNIST, compact-cnn")
    data = Prepared.open(args.prepared) if args.prepared else prepared("fashion-mnist", args.data_dir)
    measure(report, "undefended", champion(data, (), args), data, (), seeds=5 if args.quick else 10)
    if not args.quick:
        covered = (ThreatModel("Linf", COVERED),)
        measure(report, "robust", champion(data, covered, args), data, covered, seeds=10)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
