"""What the command prints: a run's progress, tables of versions, the gate's decision."""

from __future__ import annotations

import getpass
import json
import shutil
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from pipelines import local
from pipelines.home import new_folder
from pipelines.parameters import RunParameters
from redoubt.errors import Refused
from redoubt.registry import CHAMPION, Registry, Version

REFUSED = 3   # exit code of a run whose version the gate refused
console = Console()


def follow_run(parameters: RunParameters, home: Path) -> int:
    """Run the pipeline here with a progress display. Returns the command's exit code."""
    folder = new_folder(home / "runs", parameters.dataset.split(":")[0])
    process = local.start(parameters, folder)
    step = TextColumn("{task.description}", table_column=Column(min_width=12, no_wrap=True))
    columns = (SpinnerColumn(), step, BarColumn(20), TimeElapsedColumn(),
               TextColumn("{task.fields[detail]}"))
    with Progress(*columns, console=console) as progress:
        tasks = {name: progress.add_task(name, total=1, start=False, detail="", visible=False) for name in local.STEPS}

        def event(row: dict) -> None:
            task = tasks[row["step"]]
            if row.get("state") == "running":
                progress.start_task(task)
                progress.update(task, visible=True, total=None)
            elif "state" in row:
                progress.update(task, total=1, completed=1, detail=row.get("reason", row["state"]))
                progress.stop_task(task)
            else:
                progress.update(task, detail=epoch_line(row))

        result = local.follow(process, folder, event)
    colour = {"promoted": "green", "refused": "yellow", "failed": "red"}[result.status]
    which = f"version {result.version}, " if result.version else ""
    console.print(f"[bold {colour}]{result.status}[/]: {which}{result.reason}", highlight=False)
    console.print(f"log: {folder / 'run.log'}", highlight=False, soft_wrap=True)
    shutil.rmtree(folder / "artifacts", ignore_errors=True) if result.status != "failed" else None
    mistake = any(row.get("mistake") for row in local.read_progress(folder))
    return {"promoted": 0, "refused": REFUSED, "failed": 2 if mistake else 1}[result.status]


def epoch_line(row: dict) -> str:
    """One epoch's figures in a few words, or one row of an evaluation, or what a step has to say."""
    if "note" in row:
        return row["note"]
    if "part" in row:
        return f"AutoAttack, {row['part']} {row['batch']}/{row['of']}: {row['accuracy']:.3f}"
    if "epsilon" in row:
        return f"{row['label']}, {row['norm']} {row['epsilon']:.4g}: {row['accuracy']:.3f}"
    facts = [f"{key.replace('_accuracy', '')} {row[key]:.3f}"
             for key in ("loss", "clean_accuracy", "robust_accuracy") if key in row]
    rate = f", {row['images_per_second']:.0f} images/s" if "images_per_second" in row else ""
    return f"epoch {row['epoch']}: {', '.join(facts)}{rate}"


def versions_table(registry: Registry) -> None:
    """Print all versions."""
    versions = registry.versions()
    if not versions:
        console.print(f"no versions of {registry.model_name!r} yet: `redoubt run` makes the first")
        return
    header = ("version", "alias", "trained for", "clean", "under attack", "gate", "cause")
    table = Table(*header, title=registry.model_name)
    for version in versions:
        decision = version.decision
        table.add_row(
            str(version.number), "\n".join(version.aliases), "\n".join(map(str, version.threats)) or "nothing",
            version.tags.get("clean_accuracy", ""), _robust(version),
            "not judged" if decision is None else "passed" if decision["promoted"] else "refused",
            version.tags.get("cause", ""),
        )
    console.print(table)


def _robust(version: Version) -> str:
    figures = json.loads(version.tags.get("robust_accuracy", "{}"))
    return "\n".join(f"{value:.4f} {attack.split()[0]}" for attack, value in figures.items())


def version_page(version: Version) -> None:
    """Print one version and the gate's decision on it."""
    console.print(f"[bold]{version.name} version {version.number}[/] {', '.join(version.aliases)}", highlight=False)
    facts = version.tags | {
        "threats": ", ".join(map(str, version.threats)) or "none",
        "robust_accuracy": _robust(version).replace("\n", ", "),
        "override": " by ".join(json.loads(version.tags.get("override", "{}")).values()),
    }
    for key, value in sorted(facts.items()):
        if key not in ("decision", "promoted") and value:
            console.print(f"  {key.replace('_', ' '):16} {value}", highlight=False, soft_wrap=True)
    decision = version.decision
    if decision is None:
        console.print("the gate has not judged it")
        return
    table = Table("rule", "value", "limit", "verdict", title=f"gate, {decision['attack']}, n {decision['n']}")
    for rule in decision["rules"]:
        table.add_row(rule["rule"], rule["value"], rule["limit"], "pass" if rule["passed"] else "[red]FAIL[/]")
    console.print(table)


def promote_version(registry: Registry, number: str, override: str) -> None:
    """Make a version champion.

    Raises:
        Refused: when the gate refused it, or never judged it, and no reason for an override is given.
    """
    version = registry.version(number)
    decision = version.decision
    if not (decision and decision["promoted"]):
        if not override.strip():
            why = decision["reason"] if decision else "the gate has not judged it"
            raise Refused(f"version {number} may not become champion: {why}. "
                               'To promote it all the same, give a reason: --override "..."')
        registry.tag(version, override=json.dumps({"reason": override.strip(), "by": getpass.getuser()}))
    registry.promote(version)
    console.print(f"version {version.number} is {CHAMPION}")
