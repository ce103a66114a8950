"""Overload, swaps under load, and a long run of mixed traffic."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from benchmarks.common import Report, prepared, table
from benchmarks.serving import servers
from benchmarks.serving.load import Load, Outcome, finish, run, start
from redoubt.attacks import pgd
from redoubt.bundle import open_bundle
from redoubt.threat import ThreatModel

DEADLINE = 2.0


def _capacity(running, requests: list[bytes], seconds: float) -> float:
    """Requests a second that it answers to 16 connections that never pause."""
    return run(Load(host=running.host, port=running.port, requests=requests, connections=16, seconds=seconds)).rate


def _slow_home(report: Report, work: Path, name: str) -> tuple[str, list[np.ndarray]]:
    """A registry with a model whose computing is what limits it, and inputs for it."""
    folder = work / name
    folder.mkdir()
    servers.random_version(folder / "model", "preactresnet-18", 3, 32, report.given.seed)
    servers.registry_of(folder, folder / "model")
    random = np.random.default_rng(report.given.seed)
    inputs = [(random.integers(0, 256, (4, 3, 32, 32)) / np.float32(255)).astype(np.float32) for _ in range(8)]
    return f"sqlite:///{folder / 'mlflow.db'}", inputs


def overload(report: Report, work: Path) -> None:
    """Five times what it can do, on a timetable; then quiet, and a look at how soon it is itself again."""
    seconds = 6.0 if report.given.quick else 60.0
    uri, inputs = _slow_home(report, work, "overload")
    with servers.redoubt(work / "overload-home", uri, request_timeout_seconds=DEADLINE, queue_inputs=128,
                         max_in_flight=64) as running:
        requests = [running.request(x, binary=True) for x in inputs]
        peak = _capacity(running, requests, seconds / 3)
        calm = running.memory()
        process = start(Load(host=running.host, port=running.port, requests=requests, connections=512,
                             rate=5 * peak, seconds=seconds, warm=1.0))
        most = calm
        ends = time.monotonic() + seconds   # reading its pipe is what ends it, so its time is counted here
        while time.monotonic() < ends:
            most = max(most, running.memory())
            time.sleep(0.25)
        outcome = finish(process)
        time.sleep(2.0)
        after = run(Load(host=running.host, port=running.port, requests=requests, connections=1, seconds=2.0))
        refused = outcome.codes.get(429, 0)
    queue = (128 * inputs[0][0].nbytes + 64 * len(requests[0])) / 2**20
    growth = most / (calm + queue) - 1
    rows = [[peak, outcome.rate, outcome.rate / peak, outcome.quantile(0.5), outcome.quantile(0.99), refused,
             outcome.failed, outcome.late, calm, most, f"{growth:.1%}", after.quantile(0.5)]]
    header = ("peak/s", "goodput/s", "share", "p50 ms", "p99 ms", "429", "other", "unsent", "calm MiB", "most MiB",
              "beyond queue", "p50 after, ms")
    report.say(table(header, rows))
    report.say(f"PreActResNet-18 with detection, 4 inputs a request, offered 5 x peak for {seconds:g} s; deadline "
               f"{DEADLINE:g} s; latency from when a request was due; unsent: no connection of 512 was free")
    report.figures["overload"] = {"columns": header, "rows": rows}
    report.require(outcome.rate >= 0.9 * peak,
                   f"overload: goodput is {outcome.rate / peak:.0%} of the peak, 90 % wanted")
    report.require(outcome.quantile(0.999) <= DEADLINE * 1e3,
                   f"overload: p99.9 is {outcome.quantile(0.999):.0f} ms, beyond the deadline")
    report.require(growth <= 0.1, f"overload: memory grew {growth:.0%} beyond idle and queue, 10 % allowed")
    report.require(outcome.failed == 0, f"overload: {outcome.failed} answers are neither 200 nor 429: {outcome.codes}")
    report.require(after.rate > 0 and not after.codes.get(429), f"overload: not recovered after 2 s: {after.codes}")


def swap(report: Report, work: Path) -> None:
    """Champions change twenty times while requests come at 80 % of what the server can do.

    Three versions take turns, so that each is neither the one that serves nor the one before, which is still warm:
    every swap fetches, verifies, loads and warms. "While swapping" is from the look at the registry until a quarter of
    a second after the swap, "usual" the time between, both in the same stretch: no machine is equally busy for long.
    """
    swaps, every = (4 if report.given.quick else 20), 2.0
    folder = work / "swap"
    folder.mkdir()
    for number in (1, 2, 3):
        servers.random_version(folder / f"v{number}", "compact-cnn", 1, 28, report.given.seed + number)
    registry = servers.registry_of(folder, *(folder / f"v{number}" for number in (1, 2, 3)))
    for number in (2, 3, 1):   # each may serve; what is left for later is the alias
        registry.promote(registry.version(number), override="a benchmark")
    random = np.random.default_rng(report.given.seed)
    inputs = [(random.integers(0, 256, (1, 1, 28, 28)) / np.float32(255)).astype(np.float32) for _ in range(16)]
    with servers.redoubt(work / "swap-home", f"sqlite:///{folder / 'mlflow.db'}", poll_seconds=0.3) as running:
        requests = [running.request(x, binary=False) for x in inputs]
        rate = 0.8 * _capacity(running, requests, 4.0)
        process = start(Load(host=running.host, port=running.port, requests=requests, connections=64, rate=rate,
                             seconds=(swaps + 1) * every + 2))
        begun = time.time()
        time.sleep(2 + every)
        for number in range(swaps):
            servers.name_champion(registry, (number + 1) % 3 + 1)
            time.sleep(every)
        outcome = finish(process)
        done = [row for row in running.status()["swaps"] if row["at"] > begun]
    spans = [(row["at"] - row["seconds"] - outcome.began_at, row["at"] + 0.25 - outcome.began_at) for row in done]

    def swapping(at: float) -> bool:
        return any(since <= at < until for since, until in spans)

    usual, during = outcome.quantile(0.99, lambda at: at > 1 and not swapping(at)), outcome.quantile(0.99, swapping)
    rows = [[len(done), rate, outcome.failed + outcome.codes.get(429, 0), usual, during, during / usual,
             max(row["seconds"] for row in done) if done else float("nan"), len(outcome.versions)]]
    header = ("swaps", "requests/s", "failed", "usual p99 ms", "p99 while swapping", "ratio", "longest swap s",
              "versions")
    report.say(table(header, rows))
    report.say("compact CNN 28x28 with detection, JSON, one input a request, timetable at 80 % of the capacity")
    report.figures["swap"] = {"columns": header, "rows": rows}
    report.require(len(done) == swaps, f"swap: {len(done)} of {swaps} swaps took place")
    report.require(rows[0][2] == 0, f"swap: {rows[0][2]} requests failed: {outcome.codes}")
    report.require(during <= 2 * usual, f"swap: p99 while swapping is {during / usual:.2f} x the usual, 2 x allowed")


def soak(report: Report, work: Path) -> None:
    """Clean traffic with campaigns now and then; memory is compared between the first and the last third."""
    seconds = report.given.soak_seconds or (20 if report.given.quick else 1800)
    digits, folder = prepared("digits"), work / "soak"
    folder.mkdir()
    servers.digits_version(folder / "v1", digits)
    servers.registry_of(folder, folder / "v1")
    clean, y = digits.tensors("test")
    attacked = pgd(open_bundle(folder / "v1").model(), clean, y, ThreatModel("Linf", 0.2), steps=5, alpha=0.06)
    memory, total, bad = [], 0, Outcome()
    with servers.redoubt(work / "soak-home", f"sqlite:///{folder / 'mlflow.db'}", quarantine="true",
                         quarantine_count=200, all_clear_seconds=5) as running:
        until, step = time.monotonic() + seconds, max(2.0, seconds / 60)
        kinds = [(clean, False), (clean, True), (attacked, False), (clean, True)]
        for number in range(10**6):
            if time.monotonic() >= until:
                break
            x, binary = kinds[number % len(kinds)]
            noise = np.random.default_rng(number).integers(0, 2, x.shape) / np.float32(255)
            x = np.clip(x.numpy() + noise, 0, 1).astype(np.float32)   # never the same picture twice
            requests = [running.request(part, binary=binary) for part in np.array_split(x, 24)]
            outcome = run(Load(host=running.host, port=running.port, requests=requests, connections=4, rate=60,
                               seconds=step, warm=0.0))
            total += len(outcome.ok)
            for code, count in outcome.codes.items():
                bad.codes[code] = bad.codes.get(code, 0) + count
            memory.append(running.memory())
        campaigns = len(running.status()["campaigns"])
    third = max(1, len(memory) // 3)
    early, late = float(np.median(memory[third:2 * third] or memory)), float(np.median(memory[-third:]))
    header = ("seconds", "answers", "failed", "campaigns", "MiB, middle third", "MiB, last third", "growth")
    rows = [[seconds, total, bad.failed, campaigns, early, late, f"{late / early - 1:.2%}"]]
    report.say(table(header, rows))
    report.figures["soak"] = {"columns": header, "rows": rows, "memory": memory}
    report.require(late <= 1.03 * early, f"soak: memory grew by {late / early - 1:.1%}, 3 % allowed")
    report.require(bad.failed == 0, f"soak: {bad.failed} requests failed: {bad.codes}")
    report.require(campaigns > 0, "soak: no campaign was noticed: the traffic is not what it should be")
