"""Measure champion and challenger on the gate split, judge, and promote, refuse or wait. The record is kept."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from components.gate.measure import STEPS, measure, pictures, takes
from redoubt.bundle import Bundle
from redoubt.data import Prepared
from redoubt.detection import Detector
from redoubt.errors import ArtifactError, Overtaken
from redoubt.names import REPORT
from redoubt.promotion.checks import sanity_rules
from redoubt.promotion.gate import judge
from redoubt.promotion.page import describe
from redoubt.promotion.policy import Policy, read_policy
from redoubt.promotion.record import GateDecision, Rule, rule
from redoubt.registry import Registry, Version
from redoubt.threat import ThreatModel

ROUNDS = 3   # a champion that changes while the gate measures is measured against again
LOWERED = "deescalation"   # the cause of a run that was asked to cover less than the champion
_ATTACK = f"PGD-{STEPS}"


def run(
    data: Path, *, model_name: str, tracking_uri: str, version: int, objective: str, norm: str, epsilon: float,
    seed: int = 0, policy: str | Policy = "", promote: bool = True,
) -> GateDecision:
    """Judge `version` against the champion and do what the policy says. The record is stored with the version.

    Args:
        objective, norm, epsilon: what the run was asked for; with `standard` no threat model is requested.
        policy: a policy, or its text; empty takes the defaults.
        promote: False only judges, and stores the record.

    Raises:
        Overtaken: when the champion changes faster than it can be measured against.
    """
    policy = read_policy(policy) if isinstance(policy, str) else policy
    registry, prepared = Registry(tracking_uri, model_name), Prepared.open(data)
    challenger, asked = registry.version(version), ThreatModel(norm, epsilon)
    for turn in range(ROUNDS):
        champion = registry.champion()
        if champion is not None and champion.number == challenger.number and challenger.passed:
            return GateDecision.from_json(challenger.decision, promoted=True)   # the step ran before and was ended
        decision = compare(registry, challenger, champion, prepared, asked, clean_run=objective == "standard",
                           seed=seed, policy=policy)
        decision = replace(decision, waiting=decision.passed and policy.promotion == "ask")
        keep(registry, challenger, champion, decision, policy, seed)   # serving follows no version without a record
        if not decision.passed or decision.waiting or not promote:
            return decision
        try:
            registry.promote(challenger, over=champion, by="the gate")
        except Overtaken:
            if turn == ROUNDS - 1:
                raise
            continue
        registry.describe(challenger, describe(registry.version(challenger.number)))
        return replace(decision, promoted=True)
    raise AssertionError("unreachable")


def keep(
    registry: Registry, challenger: Version, champion: Version | None, decision: GateDecision, policy: Policy, seed: int
) -> None:
    """Store the record with the version: as tags for programs and as a text for MLflow's page."""
    record = decision.to_json() | {
        "champion": champion.number if champion else None, "seed": seed, "policy": json.loads(policy.text()),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    words = "waiting for a person" if decision.waiting else "passed" if decision.passed else "refused"
    registry.judged(challenger, record, words)
    registry.describe(challenger, describe(registry.version(challenger.number)))


def compare(
    registry: Registry, challenger: Version, champion: Version | None, prepared: Prepared, asked: ThreatModel, *,
    clean_run: bool, seed: int, policy: Policy,
) -> GateDecision:
    """Fetch both, measure them on every threat model that either was trained for, and judge.

    A champion of other data is refused as a measure: its training pictures may be among the gate's.
    """
    requested = None if clean_run else next((t for t in challenger.threats if t.norm == asked.norm), asked)
    lowered = challenger.tags.get("cause") == LOWERED and champion is not None
    with tempfile.TemporaryDirectory() as folder:
        rules, bundles = [], []
        for who, which in (("", challenger), ("the champion's ", champion)):
            line, bundle = artifacts(registry, which, Path(folder), who) if which else (None, None)
            rules += [line] * bool(line and (line.failed or not who))
            bundles.append(bundle)
        if not any(line.failed for line in rules) and bundles[1] is not None:
            rules += incomparable(*bundles, prepared)
        if any(line.failed for line in rules):
            return GateDecision(rules=(*rules, _not_measured()), n=0, attack=_ATTACK)
        fpr = Detector.load(bundles[0].folder, bundles[0].model()).settings.fpr if bundles[0].has_detector else 0.01
        threats = tuple(sorted({*challenger.threats, *(champion.threats if champion else ())}))
        x, y, twins = pictures(prepared)
        rules.append(_left_out(twins, len(y)))
        if rules[-1].failed:
            return GateDecision(rules=(*rules, _not_measured()), n=len(y), attack=_ATTACK)
        how = {"levels": prepared.levels, "seed": seed}
        measured = [measure(bundles[0], x, y, threats, tried=requested or asked, **how),
                    bundles[1] and measure(bundles[1], x, y, threats, **how)]
        sane = sanity_rules(_report(bundles[0]), policy)
    found = judge(*measured, requested, attack=_ATTACK, fpr=fpr, policy=policy, lowered=lowered)
    return replace(found, rules=(*rules, *found.rules, *sane))


def artifacts(registry: Registry, version: Version, folder: Path, whose: str) -> tuple[Rule, Bundle | None]:
    """Fetch a version and verify its files."""
    name = f"{whose}artifacts, sha256 of each file" + ", and signature" * bool(registry.trusted)
    try:
        bundle = registry.fetch(version, folder / str(version.number))
    except ArtifactError as error:
        return rule(name, str(error).replace(str(folder), ""), "as in the manifest", False), None
    return rule(name, f"{len(bundle.manifest['files'])} files", "as in the manifest", True), bundle


def incomparable(challenger: Bundle, champion: Bundle, prepared: Prepared) -> list[Rule]:
    """The rules that keep two versions from being compared on this data; empty when they can be."""
    rules = []
    if takes(challenger) != takes(champion):
        rules.append(rule("inputs and classes", takes(challenger), f"the champion's, {takes(champion)}: serve another "
                          "kind of picture under another model name", False))
    theirs = champion.manifest.get("data", {}).get("checksum", "")
    if theirs != prepared.checksum and not rules:
        why = ("on other data its training pictures may be among the gate's. Use the same data and split seed, "
               "another model name, or promote with an override")
        rules.append(rule("data and split", prepared.checksum[:12], f"the champion's, {theirs[:12]}: {why}", False))
    return rules


def _left_out(twins: int, left: int) -> Rule:
    """Pictures that a version was trained on say nothing of new ones: they are left out, and counted here."""
    return rule("gate's pictures that were trained on", f"{twins} of {twins + left}", "left out; fewer than half",
                twins < left)


def _not_measured() -> Rule:
    return rule("accuracy, classes, detector", "not measured", "what stands above", None)


def _report(bundle: Bundle) -> dict | None:
    """The version's report; None unless its manifest lists it: only what it lists was verified."""
    if REPORT not in bundle.manifest["files"]:
        return None
    try:
        return json.loads((bundle.folder / REPORT).read_text())
    except (OSError, ValueError):
        return None
