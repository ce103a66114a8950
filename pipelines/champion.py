"""What people do to the champion: promote a version, roll back, look at what happened so far."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from pipelines.console import make_console
from pipelines.show import no_versions
from redoubt.bundle import Bundle
from redoubt.errors import ArtifactError, InvalidInput, RedoubtError, Refused
from redoubt.promotion.page import describe
from redoubt.promotion.policy import Policy
from redoubt.promotion.record import GateDecision
from redoubt.registry import CHAMPION, Registry, Version

console = make_console()


def promote_version(registry: Registry, number: str, override: str, policy: Policy, *, again: bool = False) -> None:
    """Judge a version, unless its record still holds, and make it champion.

    Raises:
        Refused: when the gate refuses it and no reason for an override is given, or when its files do not verify.
        Overtaken: when another version becomes champion at the same time.
    """
    version, champion = registry.version(number), registry.champion()
    if champion is not None and champion.number == version.number and champion.sanctioned:
        console.print(f"version {version.number} is {CHAMPION} already", highlight=False)
        return
    reason = verdict(registry, version, champion, policy, again=again)
    if reason and not override:
        raise Refused(f'version {version.number} may not become champion: {reason}. To promote it all the same, give '
                      'a reason: --override "..."')
    registry.promote(version, over=champion, override=override if reason else "")
    registry.describe(version, describe(registry.version(version.number)))
    beside = f", against the gate: {escape(reason)}" if reason else ""
    console.print(f"version {version.number} is {CHAMPION}{beside}", highlight=False, soft_wrap=True)


def verdict(
    registry: Registry, version: Version, champion: Version | None, policy: Policy, *, again: bool
) -> str:
    """Why the gate refuses a version; empty when it passes it.

    Raises:
        Refused: when its files do not verify. No override mends that: serving would not load it.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            bundle = registry.fetch(version, Path(folder) / "version")
        except ArtifactError as error:
            raise Refused(f"version {version.number} may not become champion, whatever the reason: {error}") from None
        if holds(version, champion, policy) and not again:
            return "" if version.passed else version.decision["reason"]
        try:
            decision = judge_here(registry, bundle, version, policy, Path(folder) / "data")
        except (RedoubtError, KeyError) as error:
            why = f"its manifest does not say {error}" if isinstance(error, KeyError) else str(error)
            return f"the gate has not judged it against the present champion and cannot do so here: {why}"
    return "" if decision.passed else decision.reason


def holds(version: Version, champion: Version | None, policy: Policy) -> bool:
    """Whether a version's record was made against the present champion and under this policy."""
    record = version.decision
    if record is None or record.get("champion") != (champion.number if champion else None):
        return False
    now, then = json.loads(policy.text()), dict(record.get("policy") or {})
    return {**then, "promotion": None} == {**now, "promotion": None}


def judge_here(registry: Registry, bundle: Bundle, version: Version, policy: Policy, folder: Path) -> GateDecision:
    """Prepare the data that a version was trained with and let the gate judge it; the record is stored."""
    data, parameters = bundle.manifest["data"], bundle.manifest["parameters"]
    from components.gate.step import run
    from components.prepare_data.step import run as prepare_data

    with console.status("the gate measures version and champion"):
        prepare_data(folder, **data["request"], data_checksum=data["checksum"])
        return run(folder, model_name=registry.model_name, tracking_uri=registry.tracking_uri, version=version.number,
                   objective=bundle.manifest["objective"], norm=parameters["norm"], epsilon=parameters["epsilon"],
                   seed=parameters["seed"], policy=policy, promote=False)


def roll_back(registry: Registry, why: str) -> None:
    """Put the champion before this one back, and say what a further rollback would do."""
    version = registry.rollback(why=why)
    console.print(f"version {version.number} is champion again", highlight=False)
    further, withdrawn = registry.behind()
    console.print(f"a further rollback goes to version {further[-1]}" if further else "nothing stands behind it",
                  highlight=False)
    if withdrawn:
        console.print(f"rolled back from, until promoted again: {', '.join(map(str, sorted(withdrawn)))}",
                      highlight=False)


def history_table(registry: Registry) -> None:
    """Print every change of champion."""
    changes, champion = registry.history(), registry.champion()
    if not changes and champion is None:
        if not registry.versions():
            raise InvalidInput(no_versions(registry))
        console.print(f"{registry.model_name} has had no champion yet", highlight=False)
        return
    table = Table("when", "champion", "before", "how", "by", "why", title=registry.model_name)
    for change in changes:
        table.add_row(change.at, str(change.version or "?"), str(change.over or ""),
                      change.how + ("" if change.done else " (not carried out)"), escape(change.by), escape(change.why))
    console.print(table)
    named = champion.number if champion else None
    if not changes or changes[-1].version != named:
        console.print(f"since then the alias was set by hand: it names {f'version {named}' if named else 'no version'}",
                      highlight=False)
