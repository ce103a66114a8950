"""Measure champion and challenger on the gate split, judge, and promote or refuse."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from redoubt.bundle import Bundle
from redoubt.compute import device, settle_threads
from redoubt.data import Prepared
from redoubt.detection import Detector
from redoubt.evaluation.accuracy import correct, withstands_pgd
from redoubt.promotion import GateDecision, Measured, Policy, judge
from redoubt.registry import Registry
from redoubt.threat import ThreatModel, cover


def run(
    data: Path, *, model_name: str, tracking_uri: str, version: int, objective: str, norm: str, epsilon: float,
    seed: int = 0, policy: Policy | None = None,
) -> GateDecision:
    """Judge `version` against the champion; promote it if every rule passes. The record is stored with the version.

    Args:
        objective, norm, epsilon: what the run was asked for; with `standard` no threat model is requested.
    """
    registry = Registry(tracking_uri, model_name)
    challenger, champion = registry.version(version), registry.champion()
    prepared = Prepared.open(data)
    requested = None if objective == "standard" else ThreatModel(norm, epsilon)
    threats = cover(challenger.threats, champion.threats if champion else ())
    requested = next((threat for threat in threats if requested and threat.norm == requested.norm), requested)
    with tempfile.TemporaryDirectory() as folder:
        measured = [
            measure(registry.fetch(which, Path(folder) / str(which.number)), prepared, threats, seed=seed)
            if which else None for which in (challenger, champion)
        ]
    decision = judge(measured[0], measured[1], requested, policy=policy)
    record = decision.to_json() | {"champion": champion.number if champion else None, "seed": seed}
    registry.tag(challenger, decision=json.dumps(record), promoted=str(decision.promoted).lower())
    if decision.promoted:
        registry.promote(challenger)
    return decision


def measure(bundle: Bundle, prepared: Prepared, threats: tuple[ThreatModel, ...], *, seed: int) -> Measured:
    """Correctness of one bundle on the gate split, clean and under PGD-20 for each threat model."""
    settle_threads(bundle.architecture.size)
    where = device()
    model = bundle.model(where)
    x, y = (part.to(where) for part in prepared.tensors("gate"))
    clean = correct(model, x, y)
    attacked = {}
    for threat in threats:
        generator = torch.Generator(device=where).manual_seed(seed)
        attacked[threat] = withstands_pgd(model, x, y, threat, steps=20, generator=generator)
    labels = y.cpu()
    recall = torch.tensor([float(clean[labels == label].float().mean()) for label in labels.unique()])
    false_positives = None
    if bundle.has_detector:
        detector = Detector.load(bundle.folder, bundle.model())
        false_positives = float(detector.assess(x.cpu()).is_adversarial.float().mean())
    return Measured(clean=clean, attacked=attacked, recall=recall, trained_for=bundle.threats,
                    false_positives=false_positives)
