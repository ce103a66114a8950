"""Each fault that the server promises to outlive, during load: requests lost, time to notice, time to recover."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.common import Report, prepared, table
from benchmarks.serving import servers
from benchmarks.serving.load import Load, finish, start
from redoubt.attacks import pgd
from redoubt.bundle import open_bundle
from redoubt.threat import ThreatModel

HEADER = ("fault", "answers", "lost", "p99 ms", "noticed after s", "recovered after s", "what the status said")


def faults(report: Report, work: Path) -> None:
    """One server, one fault after the other."""
    lasts = 3.0 if report.given.quick else 6.0
    digits, folder = prepared("digits"), work / "faults"
    folder.mkdir()
    servers.digits_version(folder / "v1", digits)
    registry = servers.registry_of(folder, folder / "v1")
    x, y = digits.tensors("test")
    attacked = pgd(open_bundle(folder / "v1").model(), x, y, ThreatModel("Linf", 0.2), steps=5, alpha=0.06).numpy()
    rows = []
    with servers.redoubt(work / "faults-home", f"sqlite:///{folder / 'mlflow.db'}", "benchmarks.serving.faulty",
                         all_clear_seconds=2) as running:
        place = running.home / "faults"

        def try_one(name: str, part: str, inject: Callable, lift: Callable, pictures=None) -> None:
            rows.append(_try(running, name, part, inject, lift, lasts, x.numpy() if pictures is None else pictures))

        def file(name: str) -> tuple[Callable, Callable]:
            return (place / name).touch, (place / name).unlink

        try_one("registry down", "registry", *file("registry"))
        try_one("detector raises", "detector", *file("detector"))
        try_one("disk full, during an attack", "ledger", *file("disk"), pictures=attacked)
        try_one("clock a day ahead", "", *file("clock forward"))
        try_one("clock a day back", "", *file("clock back"))
        bad = _corrupt(folder, registry)
        try_one("corrupt new model", "champion", lambda: registry.promote(bad, override="a benchmark"),
                registry.rollback)
        dying = registry.register(_copy(folder, "v3"), metrics={}, parameters={}, tags={})

        def promote_dying() -> None:
            registry.promote(dying, override="a benchmark")
            _serves(running, dying.number)
            (place / "new models fail").touch()

        try_one("new champion fails on every input", "champion", promote_dying, registry.rollback)
    report.say(table(HEADER, rows))
    report.say("digits, compact CNN with detection, 100 requests a second by timetable; a clock that jumps is nothing "
               "to notice, only to outlive; a pipeline server that is down is a launcher's failed attempt (tests)")
    report.figures["faults"] = {"columns": HEADER, "rows": rows}
    for name, answers, lost, _, noticed, recovered, _ in rows:
        report.require(answers > 0 and lost == 0, f"faults: {name}: {lost} requests were lost")
        report.require("clock" in name or noticed is not None, f"faults: {name}: the status did not show it")
        report.require(recovered is not None, f"faults: {name}: the status did not clear")


def _try(running, name: str, part: str, inject, lift, lasts: float, pictures: np.ndarray) -> list:
    requests = [running.request(np.ascontiguousarray(one), binary=False) for one in np.array_split(pictures, 100)]
    process = start(Load(host=running.host, port=running.port, requests=requests, connections=256, rate=100,
                         seconds=2 * lasts + 2, warm=0.0))
    time.sleep(1.0)
    inject()
    noticed, said = _until(running, part, True, lasts) if part else (None, "-")
    time.sleep(max(0.0, lasts - (noticed or lasts)) if part else lasts)
    lift()
    recovered, _ = _until(running, part, False, lasts + 10) if part else (0.0, "")
    outcome = finish(process)
    lost = outcome.failed + outcome.codes.get(429, 0)
    return [name, len(outcome.ok), lost, outcome.quantile(0.99), noticed, recovered, said[:60]]


def _until(running, part: str, there: bool, seconds: float) -> tuple[float | None, str]:
    """Seconds until the part is (or is no longer) at fault, and what the status says of it."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        said = running.status()["problems"].get(part)
        if (said is not None) == there:
            return time.monotonic() - began, said or ""
        time.sleep(0.05)
    return None, "nothing"


def _corrupt(folder: Path, registry):
    """A registered version one of whose files was altered afterwards."""
    version = registry.register(_copy(folder, "v2"), metrics={}, parameters={}, tags={})
    for file in folder.rglob("model.safetensors"):
        if "v1" not in file.parts and version.run_id in str(file):
            data = bytearray(file.read_bytes())
            data[-8:] = b"altered!"
            file.write_bytes(data)
    return version


def _serves(running, number: int) -> None:
    until = time.monotonic() + 20
    while running.status()["champion"]["version"] != str(number) and time.monotonic() < until:
        time.sleep(0.05)


def _copy(folder: Path, name: str):
    shutil.copytree(folder / "v1", folder / name)
    return open_bundle(folder / name)
