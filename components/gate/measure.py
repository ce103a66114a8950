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
from redoubt.evaluation.overlap import fresh
from redoubt.promotion.gate import Measured, Probe
from redoubt.threat import ThreatModel

STEPS = 20
PROBED = 256   # attacked pictures that a detector is tried on


def pictures(prepared: Prepared) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The gate split's pictures (float [N, C, H, W] in [0, 1]) and labels [N] without those that are pixel for pixel
    training pictures, too, and how many these were."""
    x, y = prepared.tensors("gate")
    new = torch.from_numpy(fresh(prepared.arrays("gate")[0], prepared.arrays("train")[0]))
    return x[new], y[new], int((~new).sum())


def measure(
    bundle: Bundle, x: torch.Tensor, y: torch.Tensor, threats: tuple[ThreatModel, ...], *, levels: int,
    seed: int, tried: ThreatModel | None = None,
) -> Measured:
    """Correctness of one bundle on the gate's pictures, clean and under PGD-20 for each threat model.

    Args:
        x, y: float [N, C, H, W] in [0, 1] and labels [N].
        levels: the largest stored value of a pixel, for attacked pictures that must be ones that could be sent.
        tried: the attack to try the detector on, besides clean pictures. None leaves the detector alone, as with a
            champion: all that counts there is that it has one, be it of a format that this release cannot read.

    Raises:
        ArtifactError: when the detector that is to be tried cannot be read.
    """
    settle_threads(bundle.architecture.size)
    where = device()
    model = bundle.model(where)
    x, y = x.to(where), y.to(where)
    clean = correct(model, x, y)
    attacked = {}
    for threat in threats:
        generator = torch.Generator(device=where).manual_seed(seed)
        attacked[threat] = withstands_pgd(model, x, y, threat, steps=STEPS, generator=generator)
    labels = y.cpu()
    recall = torch.tensor([float(clean[labels == label].float().mean()) for label in labels.unique()])
    false_positives = seen = None
    if bundle.has_detector and tried is not None:
        detector = Detector.load(bundle.folder, bundle.model())
        false_positives = float(detector.assess(x.cpu()).is_adversarial.float().mean())
        seen = probe(detector, bundle.model(), x.cpu(), y.cpu(), tried, levels=levels, seed=seed)
    return Measured(clean=clean, attacked=attacked, recall=recall, trained_for=bundle.threats, takes=takes(bundle),
                    guarded=bundle.has_detector, false_positives=false_positives, probe=seen)


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
