"""What must not start a retraining run, and what must not hide: harmless changes, and attacks of two strengths.

Fashion-MNIST's test file, changed in ways that nobody means ill with. For each change: the share flagged, whether a
campaign of 64 and of 256 flagged inputs is recognised as harmless, and whether it would start a retraining run. Then
campaigns of PGD-20 in which a strong attack (0.2) hides among weak decoys (0.05), and epsilon drawn for each input:
the matched epsilon must answer the strong part. An undefended champion, and one that was trained at 0.1.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.common import Report, arguments, prepared, table
from benchmarks.strength import COVERED, attacked, champion
from redoubt.data import Prepared
from redoubt.detection import Detector, FitConfig, decide, fit, match
from redoubt.detection.benign import fewer_steps, jpeg
from redoubt.threat import ThreatModel

PICTURES = 1500
SIZES = (64, 256)
WEAK, STRONG = 0.05, 0.2
MIXTURES = ((64, 0.5), (64, 0.25), (128, 0.2), (256, 0.5), (256, 0.2), (512, 0.2))   # inputs, share of strong ones
HEADER = ("champion", "change", "flagged", "harmless 64", "harmless 256", "retrain 64", "retrain 256")
MIXED = ("champion", "campaign", "n", "estimate", "low", "matched", "answered")


def changes(x: torch.Tensor, levels: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Name to changed pictures, [N, C, S, S] in [0, 1], on the lattice."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    n, size = len(x), x.shape[-1]
    every = torch.ones(n, 1, 1, 1)
    out = {f"JPEG quality {quality}": jpeg(x, quality * every) for quality in (90, 75, 40, 10)}
    out |= {f"{bits} bits a pixel": fewer_steps(x, (2**bits - 1) * every) for bits in (4, 3, 2)}
    out |= {f"gamma {power}": x**power for power in (0.5, 0.7, 1.5, 2.0)}
    out |= {
        "row offsets 0.08": x + 0.08 * normal(n, 1, size, 1),
        "column offsets 0.08": x + 0.08 * normal(n, 1, 1, size),
        "rows +-0.1, fixed": x + 0.1 * normal(1, 1, size, 1).sign(),
        "columns +-0.1, fixed": x + 0.1 * normal(1, 1, 1, size).sign(),
    }
    out |= {f"gaussian noise {sigma}": x + sigma * normal(*x.shape) for sigma in (0.05, 0.1, 0.2, 0.4)}
    out |= {f"sign noise {sigma}": x + sigma * normal(*x.shape).sign() for sigma in (0.03, 0.1, 0.2)}
    out |= {
        "brightness +0.1": x + 0.1, "half as bright": x / 2,
        "resized by way of 20": F.interpolate(F.interpolate(x, 20, mode="bilinear"), size, mode="bilinear"),
    }
    return {name: (picture.clamp(0, 1) * levels).round() / levels for name, picture in out.items()}


def harmless(report: Report, name: str, detector: Detector, x, covered, levels: int) -> None:
    """Flagged share and judgement of each change."""
    rows = []
    for change, pictures in changes(x, levels, torch.Generator().manual_seed(report.given.seed)).items():
        verdicts = detector.assess(pictures)
        evidence = verdicts.evidence[verdicts.is_adversarial]
        strengths = [detector.campaign(evidence[:size]) if len(evidence) >= size else None for size in SIZES]
        retrains = [strength is not None and decide(strength, covered).retrain for strength in strengths]
        rows.append((name, change, verdicts.is_adversarial.float().mean().item(),
                     *["-" if strength is None else "yes" if strength.harmless else "no" for strength in strengths],
                     *["RETRAIN" if retrain else "no" for retrain in retrains]))
        report.require(not any(retrains), f"{name}: {change} would start a retraining run")
    report.say(f"\n{table(HEADER, rows)}\n'-': fewer flagged inputs than that in {len(x)}\n")
    report.figures[f"{name} changes"] = {"columns": HEADER, "rows": rows}


def mixed(report: Report, name: str, model, detector: Detector, data: Prepared, pictures: int) -> None:
    """Campaigns of two strengths, and of a strength drawn for each input."""
    generator = torch.Generator().manual_seed(report.given.seed)
    x, y = data.tensors("test", pictures)
    seen = {epsilon: flagged(detector, attacked(model, x, y, "pgd", epsilon, data.levels, report.given.seed))
            for epsilon in (WEAK, STRONG)}
    rows = []
    for n, share in MIXTURES:
        strong = round(share * n)
        parts = [pick(seen[WEAK], n - strong, generator), pick(seen[STRONG], strong, generator)]
        rows.append((name, f"{WEAK} with {share:.0%} of {STRONG}", *judged(detector, torch.cat(parts), STRONG)))
    # Evenly in (0, STRONG], a picture at a time: every sixteenth of the range is a batch of its own.
    drawn = [flagged(detector, attacked(model, x[i::16], y[i::16], "pgd", STRONG * (i + 1) / 16, data.levels, i))
             for i in range(16)]
    for n in (64, 256):
        rows.append((name, f"even in (0, {STRONG}]", *judged(detector, pick(torch.cat(drawn), n, generator), 0.15)))
    report.say(f"{table(MIXED, rows)}\n")
    report.figures[f"{name} mixtures"] = {"columns": MIXED, "rows": rows}
    for row in rows:
        report.require(row[-1] == "yes", f"{name}: {row[1]}, n = {row[2]}: matched {row[-2]:.3g}")


def flagged(detector: Detector, x: torch.Tensor) -> torch.Tensor:
    verdicts = detector.assess(x)
    return verdicts.evidence[verdicts.is_adversarial]


def pick(evidence: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    return evidence[torch.randperm(len(evidence), generator=generator)[:n]]


def judged(detector: Detector, evidence: torch.Tensor, asked: float) -> tuple:
    """(n, estimate, low, matched, whether what is matched reaches what is asked for)."""
    strength = detector.campaign(evidence)
    matched = match(strength)
    fine = matched >= asked and not strength.harmless and strength.norm == "Linf"
    return len(evidence), strength.estimate, strength.low, matched, "yes" if fine else "no"


def main() -> int:
    args = arguments(__doc__, prepared={"type": Path, "help": "a prepared folder, instead of the source"})
    report = Report(args, "Harmless changes and mixed campaigns, Fashion-MNIST, compact-cnn")
    data = Prepared.open(args.prepared) if args.prepared else prepared("fashion-mnist", args.data_dir)
    x, _ = data.tensors("test")
    robust = (ThreatModel("Linf", COVERED),)
    for name, covered in (("undefended", ()),) if args.quick else (("undefended", ()), ("robust", robust)):
        model = champion(data, covered, args)
        detector = fit(model, data.tensors("detector_fit"), data.tensors("calibration"), levels=data.levels,
                       seed=args.seed, config=FitConfig(blocks=480) if args.quick else None)
        harmless(report, name, detector, x[-(PICTURES // 3 if args.quick else PICTURES):], covered, data.levels)
        mixed(report, name, model, detector, data, 480)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
