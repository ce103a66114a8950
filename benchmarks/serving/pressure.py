"""Overload, swaps under load, and a long run of mixed traffic."""

from __future__ import annotations

import time
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from benchmarks.common import Report, prepared, table
from benchmarks.serving import servers
from benchmarks.serving.load import Load, Outcome, finish, run, start
from redoubt.attacks import pgd
from redoubt.bundle import open_bundle
from redoubt.threat import ThreatModel

DEADLINE = 2.0


def _capacity(running, requests: list[bytes], seconds: float, connections: int = 16) -> float:
    """Requests a second that it answers to connections that never pause."""
    return run(
        Load(host=running.host, port=running.port, requests=requests, connections=connections, seconds=seconds)
    ).rate


def _alone(running, requests: list[bytes]) -> Outcome:
    """Two seconds of one request after the other."""
    return run(Load(host=running.host, port=running.port, requests=requests, connections=1, seconds=2.5))


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
    """Five times what it can do, on a timetable; then quiet, and a look at how soon it is itself again.

    The peak is taken before and after, with as many connections as keep every batch full, and the mean of both counts:
    no machine is equally quick for long. What the server computes for an answer, all refusals included, says the same
    without the machine's moods.
    """
    seconds = 6.0 if report.given.quick else 60.0
    uri, inputs = _slow_home(report, work, "overload")
    with servers.redoubt(work / "overload-home", uri, request_timeout_seconds=DEADLINE, queue_inputs=128,
                         max_in_flight=64) as running:
        requests = [running.request(x, binary=True) for x in inputs]
        full = 2 * 64 // len(inputs[0])   # one batch computes, the next waits
        before, cost = _costed(running, requests, seconds / 6, full)
        alone, idle = _alone(running, requests), running.memory()
        spent = running.processor_seconds()
        process = start(Load(host=running.host, port=running.port, requests=requests, connections=512,
                             rate=5 * before, seconds=seconds, warm=1.0))
        most = idle
        ends = time.monotonic() + seconds   # reading its pipe is what ends it, so its time is counted here
        while time.monotonic() < ends:
            most = max(most, running.memory())
            time.sleep(0.25)
        outcome = finish(process)
        burdened = _each(running.processor_seconds() - spent, outcome, seconds)
        time.sleep(2.0)
        after = _alone(running, requests)
        peak = (before + _costed(running, requests, seconds / 6, full)[0]) / 2
        refused = outcome.codes.get(429, 0)
    queue = (128 * inputs[0][0].nbytes + 64 * len(requests[0])) / 2**20
    growth = most / (idle + queue) - 1
    rows = [[peak, outcome.rate, outcome.rate / peak, cost, burdened, outcome.quantile(0.5), outcome.quantile(0.99),
             outcome.quantile(1.0), refused, outcome.failed, outcome.late, idle, most, f"{growth:.1%}",
             alone.quantile(0.5), after.quantile(0.5)]]
    header = ("peak/s", "goodput/s", "share", "CPU ms", "CPU ms, overload", "p50 ms", "p99 ms", "longest ms", "429",
              "other", "unsent", "idle MiB", "most MiB", "beyond queue", "alone p50 ms", "alone after")
    report.say(table(header, rows))
    report.say(f"PreActResNet-18 with detection, 4 inputs a request, offered 5 x peak for {seconds:g} s; deadline "
               f"{DEADLINE:g} s; latency from when a request was due; unsent: no connection of 512 was free; CPU: of "
               f"the server for an answer, refusals included; idle: after the peak; codes {outcome.codes}")
    report.figures["overload"] = {"columns": header, "rows": rows}
    report.require(outcome.rate >= 0.9 * peak,
                   f"overload: goodput is {outcome.rate / peak:.0%} of the peak, 90 % wanted")
    report.require(outcome.quantile(1.0) <= DEADLINE * 1e3,
                   f"overload: an answer took {outcome.quantile(1.0):.0f} ms, beyond the deadline")
    report.require(growth <= 0.1, f"overload: memory grew {growth:.0%} beyond idle and queue, 10 % allowed")
    report.require(outcome.failed == 0, f"overload: {outcome.failed} answers are neither 200 nor 429: {outcome.codes}")
    report.require(set(after.codes) == {200} and after.quantile(0.5) <= 1.5 * alone.quantile(0.5),
                   f"overload: not recovered after 2 s: {after.quantile(0.5):.0f} ms, {alone.quantile(0.5):.0f} ms "
                   f"before; {after.codes}")


def _costed(running, requests: list[bytes], seconds: float, connections: int) -> tuple[float, float]:
    """Answers a second at the peak, and the milliseconds that the server computes for one."""
    spent = running.processor_seconds()
    outcome = run(
        Load(host=running.host, port=running.port, requests=requests, connections=connections, seconds=seconds)
    )
    return outcome.rate, _each(running.processor_seconds() - spent, outcome, seconds)


def _each(spent: float, outcome: Outcome, seconds: float) -> float:
    """Milliseconds of the processor for one answer; the warm-up's answers are not among those counted."""
    return spent * 1e3 / (len(outcome.ok) * seconds / outcome.seconds) if outcome.ok else float("nan")


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


SOAK_RATE, SOAK_INPUTS = 40, 12   # requests a second, pictures in each


def soak(report: Report, work: Path) -> None:
    """Clean traffic with a campaign every minute; memory is compared between the second and the last third.

    No picture comes twice, so what is remembered of inputs and answers (65,536 and 100,000) is full before memory is
    first looked at. JSON and binary bodies take turns; labels, a PNG and a look at status and metrics come with
    every step.
    """
    seconds = report.given.soak_seconds or (30 if report.given.quick else 1800)
    digits, folder = prepared("digits"), work / "soak"
    folder.mkdir()
    servers.digits_version(folder / "v1", digits)
    servers.registry_of(folder, folder / "v1")
    clean, y = digits.tensors("test")
    attacked = pgd(open_bundle(folder / "v1").model(), clean, y, ThreatModel("Linf", 0.2), steps=5, alpha=0.06)
    kinds = [(clean, False), (clean, True), (clean, False), (attacked, True)]
    memory, codes, answers, late = [], {}, 0, 0
    with servers.redoubt(work / "soak-home", f"sqlite:///{folder / 'mlflow.db'}", quarantine="true",
                         quarantine_count=200, all_clear_seconds=5) as running:
        began, step, number = time.monotonic(), seconds / 120, 0
        while time.monotonic() < began + seconds:
            x, binary = kinds[number % len(kinds)]
            requests = _never_twice(running, x.numpy(), binary, number, round(step * SOAK_RATE))
            outcome = run(Load(host=running.host, port=running.port, requests=requests, connections=8, rate=SOAK_RATE,
                               seconds=step, warm=0.0))
            answers, late, number = answers + len(outcome.ok), late + outcome.late, number + 1
            for code, count in outcome.codes.items():
                codes[code] = codes.get(code, 0) + count
            _others(running, x.numpy()[:SOAK_INPUTS], y[:SOAK_INPUTS].tolist(), number)
            memory.append((time.monotonic() - began, running.memory()))
        status = running.status()
    campaigns, distinct = len(status["campaigns"]), status["monitor"]["distinct"]
    second, last = (np.median([mib for at, mib in memory if since <= at / memory[-1][0] <= until])
                    for since, until in ((1 / 3, 2 / 3), (2 / 3, 1)))
    failed = sum(count for code, count in codes.items() if code != 200)
    header = ("seconds", "answers", "distinct inputs", "failed", "unsent", "campaigns", "MiB, first step",
              "MiB, second third", "MiB, last third", "growth")
    rows = [[seconds, answers, distinct, failed, late, campaigns, memory[0][1], float(second), float(last),
             f"{last / second - 1:.2%}"]]
    report.say(table(header, rows))
    report.figures["soak"] = {"columns": header, "rows": rows, "memory": memory}
    report.require(last <= 1.03 * second, f"soak: memory grew by {last / second - 1:.1%}, 3 % allowed")
    report.require(failed == 0, f"soak: {failed} requests failed: {codes}")
    report.require(campaigns > 0, "soak: no campaign was noticed: the traffic is not what it should be")


def _never_twice(running, x: np.ndarray, binary: bool, number: int, count: int) -> list[bytes]:
    """So many requests about pictures of x, each with a noise of its own of one level in 255."""
    random, found = np.random.default_rng(number), []
    for _ in range(count):
        part = x[random.integers(0, len(x), SOAK_INPUTS)]
        noise = random.integers(0, 2, part.shape) / np.float32(255)
        found.append(running.request(np.clip(part + noise, 0, 1).astype(np.float32), binary=binary))
    return found


def _others(running, x: np.ndarray, labels: list[int], number: int) -> None:
    """What else clients ask: a request under a name of its own and the labels for it, a picture, how things stand."""
    named = {"id": f"soak-{number}", "inputs": [{"name": "input", "shape": list(x.shape), "datatype": "FP32",
                                                 "data": x.ravel().tolist()}]}
    running.post(running.path, named).raise_for_status()
    running.post(f"/v2/models/{servers.NAME}/feedback",
                 {"feedback": [{"request_id": f"soak-{number}", "labels": labels}]}).raise_for_status()
    picture = BytesIO()
    Image.fromarray((x[number % len(x), 0] * 255).astype(np.uint8)).save(picture, "PNG")
    url = f"{running.url}/v2/models/{servers.NAME}/image"
    httpx.post(url, content=picture.getvalue(), timeout=20, trust_env=False).raise_for_status()
    for path in ("/status", "/metrics"):
        running.get(path).raise_for_status()
