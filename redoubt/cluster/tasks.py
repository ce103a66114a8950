"""The steps of a run, read out of what Kubeflow Pipelines lists.

The server lists the nodes of its Argo workflow, in no order and without their reasons: the workflow itself, `root`, and
for each step NAME its driver `NAME-driver`, a node NAME, and below that `executor` and, for each try, `executor(0)`.
What is behind a failed dependency is listed, too. A step that the cache answers has succeeded at once, its executor
skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

DRIVER = "-driver"
_FRAME = re.compile(r"root|(for-loop|condition|exit-handler)-.*")   # groups of steps, which have drivers as well
_TRY = re.compile(r"executor(\([0-9]+\))?")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One step of a run as the server tells it.

    Attributes:
        state: as of a run; SKIPPED where the cache answered.
        error: the server's words; empty where there are none.
    """

    name: str
    state: str
    error: str = ""
    started: str = ""


def steps(rows: list[dict]) -> tuple[Task, ...]:
    """The steps that have begun, in the order of their beginnings. One whose driver failed has failed.

    A server without drivers lists its steps alone.
    """
    drivers: dict[str, set[str]] = {}
    for row in rows:
        name = row.get("display_name", "")
        if name.endswith(DRIVER) and not _FRAME.fullmatch(name.removesuffix(DRIVER)):
            drivers.setdefault(name.removesuffix(DRIVER), set()).add(state_of(row))
    alone = not any(row.get("display_name", "").endswith(DRIVER) for row in rows)
    skipped = [row for row in rows if row.get("display_name") == "executor" and state_of(row) == "SKIPPED"]
    found = []
    for row in rows:
        name = row.get("display_name", "")
        if name.removesuffix(DRIVER) in drivers and name.endswith(DRIVER) and state_of(row) == "FAILED":
            found.append(_task(row, name.removesuffix(DRIVER), "FAILED"))
        elif state_of(row) and ("SUCCEEDED" in drivers.get(name, ()) or
                                (alone and not _FRAME.fullmatch(name) and not _TRY.fullmatch(name))):
            found.append(_task(row, name, "SKIPPED" if _cached(row, skipped) else state_of(row)))
    return tuple(sorted(found, key=lambda task: task.started))


def at_work(rows: list[dict]) -> bool:
    """Whether a step's pod runs. The step itself is said to, too, while its pod waits for a node."""
    tries = [row for row in rows if re.fullmatch(r"executor\([0-9]+\)", row.get("display_name", ""))]
    pods = tries or [row for row in rows if row.get("display_name") == "executor"]
    return any(state_of(row) == "RUNNING" for row in pods)


def state_of(row: dict) -> str:
    """A run's or a node's state; empty where it has none."""
    state = row.get("state") or ""
    return "" if state == "RUNTIME_STATE_UNSPECIFIED" else state


def message(row: dict) -> str:
    """What the server says is wrong."""
    return ((row.get("error") or {}).get("message") or "").strip()


def _task(row: dict, name: str, state: str) -> Task:
    return Task(name=name.replace("-", "_"), state=state, error=message(row), started=row.get("start_time") or "")


def _cached(row: dict, skipped: list[dict]) -> bool:
    """Whether a step was over at once and an executor was skipped meanwhile: the server does not say whose it was."""
    begin, end = _time(row, "start_time"), _time(row, "end_time")
    if state_of(row) != "SUCCEEDED" or begin is None or end is None or (end - begin).total_seconds() > 1:
        return False
    return any((at := _time(one, "start_time")) is not None and begin <= at <= end for one in skipped)


def _time(row: dict, key: str) -> datetime | None:
    try:
        return datetime.fromisoformat(row.get(key) or "")
    except ValueError:
        return None
