"""Fit a bundle's detector on its own split, calibrate it on another, measure it on a third."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from redoubt.attacks import fgsm, on_lattice, pgd
from redoubt.bundle import open_bundle
from redoubt.compute import settle_threads
from redoubt.data import Prepared
from redoubt.detection import fit
from redoubt.threat import ThreatModel

QUALITY = "detection.json"
FURTHER, MEMORY = 10_000, 200e6   # training pictures that the fit may draw from, and the bytes that they may take
EPSILONS = (0.05, 0.1, 0.15, 0.2)


def run(data: Path, model: Path, out: Path, *, fpr: float = 0.01, seed: int = 0, n: int = 200) -> dict:
    """Write the detector and `detection.json` to `out`, and return what the latter holds.

    Args:
        fpr: the chosen false-positive rate of the verdict.
        n: pictures of the gate split behind each figure; that split had no part in fitting or calibrating.
    """
    prepared, bundle = Prepared.open(data), open_bundle(model)
    settle_threads(bundle.architecture.size)
    network = bundle.model()
    count = min(FURTHER, int(MEMORY / (4 * math.prod(bundle.architecture.input_shape))))
    detector = fit(network, prepared.tensors("detector_fit"), prepared.tensors("calibration"),
                   levels=prepared.levels, further=prepared.tensors("train", count), fpr=fpr, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    detector.save(out)
    quality = measure(detector, network, *prepared.tensors("gate"), levels=prepared.levels, n=n, seed=seed)
    (out / QUALITY).write_text(json.dumps(quality, indent=1))
    return quality


def measure(detector, network, x, y, *, levels: int, n: int, seed: int) -> dict:
    """False positives on clean pictures; for FGSM and PGD-20 the share detected and the campaign's strength."""
    generator = torch.Generator().manual_seed(seed)
    clean = detector.assess(x)
    rows = []
    for name, attack in (("FGSM", fgsm), ("PGD-20", pgd)):
        for epsilon in EPSILONS:
            x_adv = on_lattice(attack(network, x[:n], y[:n], ThreatModel("Linf", epsilon), generator=generator), levels)
            verdicts = detector.assess(x_adv)
            flagged = verdicts.evidence[verdicts.is_adversarial]
            strength = detector.campaign(flagged) if len(flagged) else None
            rows.append({
                "attack": name, "epsilon": epsilon, "n": len(x_adv),
                "detected": float(verdicts.is_adversarial.float().mean()),
                "estimate": strength.estimate if strength else None,
                "low": strength.low if strength else None, "high": strength.high if strength else None,
            })
    return {"false_positives": float(clean.is_adversarial.float().mean()), "false_positives_n": len(x),
            "null_rate": detector.null_rate, "attacks": rows}
