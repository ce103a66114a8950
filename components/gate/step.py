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
from redoubt.errors import RegistryError
from redoubt.evaluation.accuracy import correct, withstands_pgd
from redoubt.promotion import GateDecision, Measured, Policy, Rule, judge
from redoubt.registry import Registry, Version
from redoubt.threat import ThreatModel

ROUNDS = 3   # a champion that changes while the gate measures is measured against again


def run(
    data: Path, *, model_name: str, tracking_uri: str, version: int, objective: str, norm: str, epsilon: float,
    seed: int = 0, policy: Policy | None = None,
) -> GateDecision:
    """Judge `version` against the champion; promote it if every rule passes. The record is stored with the version.

    Args:
        objective, norm, epsilon: what the run was asked for; with `standard` no threat model is requested.
    """
    registry, prepared = Registry(tracking_uri, model_name), Prepared.open(data)
    challenger = registry.version(version)
    asked = None if objective == "standard" else ThreatModel(norm, epsilon)
    requested = next((threat for threat in challenger.threats if asked and threat.norm == asked.norm), asked)
    for _ in range(ROUNDS):
        champion = registry.champion()
        decision = compare(registry, challenger, champion, prepared, requested, seed=seed, policy=policy)
        record = decision.to_json() | {"champion": champion.number if champion else None, "seed": seed}
        registry.tag(challenger, decision=json.dumps(record), promoted=str(decision.promoted).lower())
        if not decision.promoted or registry.promote(challenger, over=champion):
            return decision
    raise RegistryError(f"the champion of {model_name} changed {ROUNDS} times while version {version} was judged")


def compare(
    registry: Registry, challenger: Version, champion: Version | None, prepared: Prepared,
    requested: ThreatModel | None, *, seed: int, policy: Policy | None,
) -> GateDecision:
    """Measure both on the gate split, on every threat model that either was trained for, and judge.

    A champion of other data is refused as a measure: its training pictures may be among the gate's.
    """
    with tempfile.TemporaryDirectory() as folder:
        bundles = [registry.fetch(which, Path(folder) / str(which.number)) if which else None
                   for which in (challenger, champion)]
        fpr = Detector.load(bundles[0].folder, bundles[0].model()).settings.fpr if bundles[0].has_detector else 0.01
        if bundles[1] is not None and (why := incomparable(bundles[0], bundles[1], prepared)):
            return GateDecision(promoted=False, rules=(why,), n=0, attack="none")
        threats = tuple(sorted({*challenger.threats, *(champion.threats if champion else ())}))
        measured = [bundle and measure(bundle, prepared, threats, seed=seed) for bundle in bundles]
    return judge(measured[0], measured[1], requested, fpr=fpr, policy=policy)


def incomparable(challenger: Bundle, champion: Bundle, prepared: Prepared) -> Rule | None:
    """The rule that keeps two versions from being compared on this data; None when they can be."""
    if takes(challenger) != takes(champion):
        return Rule(rule="inputs and classes", value=takes(challenger), limit=f"the champion's, {takes(champion)}: "
                    "serve another kind of picture under another model name", passed=False)
    theirs = champion.manifest["data"]["checksum"]
    if theirs != prepared.checksum:
        why = ("on other data its training pictures may be among the gate's. Use the same data and split seed, "
               "another model name, or promote with an override")
        return Rule(rule="data and split", value=prepared.checksum[:12], limit=f"the champion's, {theirs[:12]}: {why}",
                    passed=False)
    return None


def takes(bundle: Bundle) -> str:
    """What a version takes and answers with, in words."""
    return f"{'x'.join(map(str, bundle.architecture.input_shape))} pixels, {len(bundle.classes)} classes: " + ", ".join(
        bundle.classes)


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
    return Measured(clean=clean, attacked=attacked, recall=recall, trained_for=bundle.threats, takes=takes(bundle),
                    false_positives=false_positives)
