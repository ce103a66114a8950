"""Each fault that the server promises to outlive, during load: requests lost, time to notice, time to recover.

A server by itself, then one that keeps its ledger in a cluster and its registry in an MLflow of its own. Nothing is
pretended that can be done: the disk is full for every write of the process, MLflow is killed, and put to sleep.
"""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.common import Report, prepared, table
from benchmarks.serving import outside, servers
from benchmarks.serving.load import Load, finish, start
from redoubt.attacks import pgd
from redoubt.bundle import open_bundle
from redoubt.registry import Registry
from redoubt.threat import ThreatModel

HEADER = ("fault", "answers", "lost", "unsent", "p99 ms", "noticed after s", "recovered after s",
          "what the status said")
CLOCK = "clock"


def faults(report: Report, work: Path) -> None:
    """Two servers, one fault after the other."""
    lasts = 3.0 if report.given.quick else 6.0
    digits, folder = prepared("digits"), work / "faults"
    folder.mkdir()
    servers.digits_version(folder / "v1", digits)
    x, y = digits.tensors("test")
    attacked = pgd(open_bundle(folder / "v1").model(), x, y, ThreatModel("Linf", 0.2), steps=5, alpha=0.06).numpy()
    rows = _alone(report, folder, work, x.numpy(), attacked, lasts)
    rows += _in_a_cluster(report, folder, work, x.numpy(), attacked, lasts)
    report.say(table(HEADER, rows))
    report.say("digits, compact CNN with detection, 100 requests a second by timetable, three inputs each; unsent: no "
               "connection of 256 was free; a clock that jumps is nothing to notice, only to outlive; looks at "
               "registry and runs every 0.5 s")
    report.figures["faults"] = {"columns": HEADER, "rows": rows}
    for name, answers, lost, _, _, noticed, recovered, _ in rows:
        report.require(answers > 0 and lost == 0, f"faults: {name}: {lost} requests were lost")
        report.require(CLOCK in name or noticed is not None, f"faults: {name}: the status did not show it")
        report.require(CLOCK in name or recovered is not None, f"faults: {name}: the status did not clear")


def _alone(report: Report, folder: Path, work: Path, x: np.ndarray, attacked: np.ndarray, lasts: float) -> list[list]:
    registry, rows = servers.registry_of(folder, folder / "v1"), []
    with servers.redoubt(work / "faults-home", registry.tracking_uri, "benchmarks.serving.faulty", quarantine="true",
                         all_clear_seconds=2) as running:
        place = running.home / "faults"

        def try_one(name: str, part: str, inject: Callable, lift: Callable, pictures: np.ndarray = x) -> None:
            rows.append(_try(report, running, name, part, inject, lift, lasts, pictures))

        def file(name: str) -> tuple[Callable, Callable]:
            return (place / name).touch, (place / name).unlink

        try_one("registry down", "registry", *file("registry"))
        try_one("detector raises", "detector", *file("detector"))
        try_one("disk full, during an attack", "ledger", *_full_disk(running.pid), pictures=attacked)
        report.require(len(running.status()["campaigns"]) > 0, "faults: the attack on a full disk left no campaign")
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
    return rows


def _in_a_cluster(
    report: Report, folder: Path, work: Path, x: np.ndarray, attacked: np.ndarray, lasts: float,
) -> list[list]:
    rows = []
    with outside.mlflow(work / "faults-mlflow") as mlflow, outside.cluster() as cluster:
        servers.fill(Registry(mlflow.uri, servers.NAME), folder / "v1")
        with servers.redoubt(work / "faults-replica", mlflow.uri, "benchmarks.serving.faulty", retrain="true",
                             lease_seconds=3, **cluster.settings) as running:

            def try_one(name: str, part: str, inject: Callable, lift: Callable, times: int, pictures=x) -> None:
                rows.append(_try(report, running, name, part, inject, lift, times * lasts, pictures))

            try_one("tracking store killed", "registry", mlflow.kill, mlflow.start, 2)
            try_one("tracking store hangs", "registry", mlflow.hang, mlflow.wake, 5)
            try_one("Kubernetes API down", "leadership", lambda: cluster.cut(cluster.kubernetes),
                    lambda: cluster.mend(cluster.kubernetes), 3)
            try_one("pipeline server down, during an attack", "launcher", lambda: cluster.cut(cluster.pipelines),
                    lambda: cluster.mend(cluster.pipelines), 3, attacked)
            _until_started(cluster, 10.0)
        report.require(len(cluster.pipelines.runs) == 1,
                       f"faults: {len(cluster.pipelines.runs)} retraining runs were started, one was owed")
    return rows


def _until_started(cluster: outside.Cluster, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not cluster.pipelines.runs and time.monotonic() < until:
        time.sleep(0.05)


def _full_disk(pid: int) -> tuple[Callable, Callable]:
    """Have every write of the process to a file fail, and have none fail any more."""
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most))

    return lambda: limit(0), lambda: limit(most)


def _try(
    report: Report, running, name: str, part: str, inject: Callable, lift: Callable, lasts: float, pictures: np.ndarray,
) -> list:
    requests = [running.request(np.ascontiguousarray(one), binary=False) for one in np.array_split(pictures, 100)]
    process = start(Load(host=running.host, port=running.port, requests=requests, connections=256, rate=100,
                         seconds=2 * lasts + 2, warm=0.0))
    time.sleep(1.0)
    began = time.monotonic()
    inject()
    noticed, said = _until(running, part, True, lasts) if part else (None, "-")
    time.sleep(max(0.0, began + lasts - time.monotonic()))
    lift()
    recovered, _ = _until(running, part, False, lasts + 10) if part else (None, "")
    outcome = finish(process)
    lost = outcome.failed + outcome.codes.get(429, 0)
    report.say(f"  {name}: {lost} of {sum(outcome.codes.values())} lost; {outcome.codes}")
    return [name, len(outcome.ok), lost, outcome.late, outcome.quantile(0.99), noticed, recovered, said[:80]]


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
