"""What the command prints: a run's progress, tables of versions, the gate's decision."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from pipelines import local
from pipelines.console import make_console
from pipelines.home import home_folder, new_folder
from pipelines.parameters import RunParameters
from redoubt.errors import InvalidInput, RedoubtError, Refused
from redoubt.promotion.page import robust_summary
from redoubt.promotion.record import FAIL
from redoubt.registry import Registry, Version

console = make_console()


def follow_run(parameters: RunParameters, home: Path) -> int:
    """Run the pipeline here with a progress display. Returns the command's exit code."""
    folder = new_folder(home / "runs", parameters.dataset.split(":")[0])
    process = local.start(parameters, folder)
    step = TextColumn("{task.description}", table_column=Column(min_width=12, no_wrap=True))
    columns = (SpinnerColumn(), step, BarColumn(20), TimeElapsedColumn(),
               TextColumn("{task.fields[detail]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks = {name: progress.add_task(name, total=1, start=False, detail="", visible=False) for name in local.STEPS}

        def event(row: dict) -> None:
            if not console.is_terminal:
                console.print(plain_line(row), highlight=False, markup=False)
                return
            task = tasks[row["step"]]
            if row.get("state") == "running":
                progress.start_task(task)
                progress.update(task, visible=True, total=None)
            elif "state" in row:
                progress.update(task, total=1, completed=1, detail=row.get("reason", row["state"]))
                progress.stop_task(task)
            else:
                progress.update(task, detail=epoch_line(row), **_share(row))

        result = local.follow(process, folder, event)
    colour = {"promoted": "green", "waiting": "cyan", "refused": "yellow", "failed": "red"}[result.status]
    which = f"version {result.version}, " if result.version else ""
    console.print(f"[bold {colour}]{result.status}[/]: {which}{escape(result.reason)}", highlight=False)
    for line in what_next(result, parameters, home):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"log: {folder / 'run.log'}", highlight=False, soft_wrap=True)
    shutil.rmtree(folder / "artifacts", ignore_errors=True) if result.status != "failed" else None
    mistake = any(row.get("mistake") for row in local.read_progress(folder))
    return {"promoted": 0, "waiting": 0, "refused": Refused.exit_code, "failed": 2 if mistake else 1}[result.status]


def what_next(result: local.RunResult, parameters: RunParameters, home: Path) -> list[str]:
    """How the version does, and the command that comes next; nothing for a run that failed."""
    if not result.version:
        return []
    name, number, lines = parameters.model_name, result.version, []
    with contextlib.suppress(RedoubtError):   # the run has said how it ended, whether or not the registry still answers
        version = Registry(parameters.tracking_uri, name).version(number)
        robust = _robust(version).replace("\n", ", ")
        lines.append(f"accuracy: {version.tags['clean_accuracy']} clean" + (f", {robust}" if robust else ""))
    where = "" if home == home_folder(make=False) else f" --home {shlex.quote(str(home))}"
    return lines + {
        "promoted": [f"to serve it: redoubt serve --model {name}{where}",
                     f"its report: redoubt report {number} --model {name}{where}"],
        "waiting": [f"to make it champion: redoubt promote {name} {number}{where}"],
        "refused": [f"rule by rule: redoubt models show {name} {number}{where}"],
    }.get(result.status, [])


def plain_line(row: dict) -> str:
    """An event for a file or a pipe, one line each."""
    return f"{row['step']}: {row.get('reason', row['state']) if 'state' in row else epoch_line(row)}"


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
    left = f", {row['seconds_left']:.0f} s left" if "seconds_left" in row else ""
    return f"epoch {row['epoch']}: {', '.join(facts)}{rate}{left}"


def _share(row: dict) -> dict:
    """How far the bar is, from what a step says of its time; nothing where it does not say."""
    if "seconds_left" not in row:
        return {}
    return {"completed": row["seconds"], "total": row["seconds"] + row["seconds_left"]}


def versions_table(registry: Registry) -> None:
    """Print all versions.

    Raises:
        InvalidInput: when there is none; it names the models that there are.
    """
    versions = registry.versions()
    if not versions:
        raise InvalidInput(no_versions(registry))
    withdrawn = registry.behind()[1]
    header = ("version", "alias", "trained for", "clean", "under attack", "gate", "cause")
    table = Table(*header, title=registry.model_name)
    for version in versions:
        table.add_row(
            str(version.number), "\n".join(version.aliases), "\n".join(map(str, version.threats)) or "nothing",
            version.tags.get("clean_accuracy", ""), _robust(version),
            "rolled back" if version.number in withdrawn else version.standing,
            version.tags.get("cause", ""),
        )
    console.print(table)


def no_versions(registry: Registry) -> str:
    """What to say of a model without a version: its name may be mistyped."""
    others = [name for name in registry.models() if name != registry.model_name]
    return (f"no versions of {registry.model_name!r} yet: "
            + (f"there is {', '.join(others)} (--model)" if others
               else f"`redoubt run --model {registry.model_name}` makes the first"))


def _robust(version: Version) -> str:
    return "\n".join(f"{value:.4f} {attack.split()[0]}" for attack, value in robust_summary(version.tags).items())


def version_page(version: Version) -> None:
    """Print one version and the gate's decision on it."""
    console.print(f"[bold]{version.name} version {version.number}[/] {', '.join(version.aliases)}", highlight=False)
    override = version.override or {}
    facts = version.tags | {
        "threats": ", ".join(map(str, version.threats)) or "none", "gate": version.standing,
        "robust_accuracies": _robust(version).replace("\n", ", "),
        "override": " by ".join(override[key] for key in ("reason", "by") if key in override),
    }
    for key, value in sorted(facts.items()):
        if key != "decision" and value:
            console.print(f"  {key.replace('_', ' '):18} {escape(value)}", highlight=False, soft_wrap=True)
    decision = version.decision
    if decision is None:
        console.print("the gate has not judged it")
        return
    against = f"champion version {decision['champion']}" if decision.get("champion") else "no champion"
    table = Table("rule", "value", "limit", "verdict",
                  title=f"gate, {decision['attack']}, n {decision['n']}, against {against}")
    for rule in decision["rules"]:
        failed = rule["verdict"] == FAIL
        table.add_row(*(escape(rule[key]) for key in ("rule", "value", "limit")),
                      "[red]FAIL[/]" if failed else rule["verdict"])
    console.print(table)


