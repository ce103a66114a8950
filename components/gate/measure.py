"""What the gate measures: one model, and its detector, on the gate split."""

from __future__ import annotations

import torch

from redoubt.attacks import on_lattice, pgd
from redoubt.bundle import Bundle
from redoubt.compute import device, settle_threads
from redoubt.data import Prepared
from redoubt.detection import Detector
from redoubt.detection.matching import MINIMUM
from redoubt.evaluation.accuracy import correct, withstands_pgd
from redoubt.promotion.gate import Measured, Probe
from redoubt.threat import ThreatModel

STEPS = 20
PROBED = 256   # attacked pictures that a detector is tried on


def measure(
    bundle: Bundle, prepared: Prepared, threats: tuple[ThreatModel, ...], *, seed: int,
    tried: ThreatModel | None = None,
) -> Measured:
    """Correctness of one bundle on the gate split, clean and under PGD-20 for each threat model.

    Args:
        tried: attack some pictures with this for the detector, too.
    """
    settle_threads(bundle.architecture.size)
    where = device()
    model = bundle.model(where)
    x, y = (part.to(where) for part in prepared.tensors("gate"))
    clean = correct(model, x, y)
    attacked = {}
    for threat in threats:
        generator = torch.Generator(device=where).manual_seed(seed)
        attacked[threat] = withstands_pgd(model, x, y, threat, steps=STEPS, generator=generator)
    labels = y.cpu()
    recall = torch.tensor([float(clean[labels == label].float().mean()) for label in labels.unique()])
    false_positives = seen = None
    if bundle.has_detector:
        detector = Detector.load(bundle.folder, bundle.model())
        false_positives = float(detector.assess(x.cpu()).is_adversarial.float().mean())
        seen = tried and probe(detector, bundle.model(), x.cpu(), y.cpu(), tried, levels=prepared.levels, seed=seed)
    return Measured(clean=clean, attacked=attacked, recall=recall, trained_for=bundle.threats, takes=takes(bundle),
                    false_positives=false_positives, probe=seen)


def probe(detector: Detector, model, x, y, threat: ThreatModel, *, levels: int, seed: int) -> Probe:
    """Attack up to `PROBED` pictures as a sender could, rounded to what a picture holds, and ask the detector."""
    x, y = x[:PROBED], y[:PROBED]
    x_adv = on_lattice(pgd(model, x, y, threat, steps=10, generator=torch.Generator().manual_seed(seed)), levels)
    verdicts = detector.assess(x_adv)
    flagged = verdicts.evidence[verdicts.is_adversarial]
    estimate = detector.campaign(flagged).estimate if len(flagged) >= MINIMUM else None
    return Probe(threat=threat, true=float(threat.size(x_adv - x).median()), n=len(x), flagged=len(flagged),
                 estimate=estimate, needs=MINIMUM)


def takes(bundle: Bundle) -> str:
    """What a version takes and answers with, in words."""
    return f"{'x'.join(map(str, bundle.architecture.input_shape))} pixels, {len(bundle.classes)} classes: " + ", ".join(
        bundle.classes)
