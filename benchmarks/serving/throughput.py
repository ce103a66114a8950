"""Requests a second and latency beside MLServer and KServe, JSON and binary, with detection on and off."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Report, table
from benchmarks.serving import servers
from benchmarks.serving.load import Load, run
from redoubt.bundle import open_bundle

MODELS = {"compact-cnn": (1, 28), "preactresnet-18": (3, 32)}
CONNECTIONS = 8
HEADER = ("model", "batch", "body", "server", "requests/s", "p50 ms", "p99 ms", "CPU ms", "x MLServer", "x KServe",
          "CPU, x MLServer", "CPU, x KServe")


def throughput(report: Report, work: Path) -> None:
    """Every combination, side by side: each server is measured in turn, with the others stopped."""
    seconds = report.given.seconds or (2.0 if report.given.quick else 6.0)
    models = ["compact-cnn"] if report.given.quick else list(MODELS)
    rows, figures = [], {}
    for architecture in models:
        channels, size = MODELS[architecture]
        bundle = work / architecture
        servers.random_version(bundle, architecture, channels, size, report.given.seed)
        registry = work / f"{architecture}-registry"
        registry.mkdir()
        servers.registry_of(registry, bundle)
        for name, server in _servers(report, work, registry, bundle, architecture).items():
            with server as running:
                _agrees(report, running, bundle, name, channels, size)
                for batch in (1, 32):
                    for binary in (False, True):
                        found = _measure(running, channels, size, batch, binary, seconds, report.given.seed)
                        body = "binary tensors" if binary else "JSON"
                        if found is not None:
                            figures[architecture, batch, binary, name] = found
                            report.say(f"  {name}, {architecture}, batch {batch}, {body}: {found[0]:.4g} requests/s, "
                                       f"p99 {found[2]:.3g} ms, CPU {found[3]:.3g} ms")
                        elif name.startswith("redoubt"):
                            report.require(False, f"{name} failed: {architecture}, batch {batch}, {body}")
                        else:
                            report.say(f"{name} does not answer {body}: {architecture}, batch {batch}")
    for key, (rate, middle, high, spent) in sorted(figures.items(), key=str):
        architecture, batch, binary, name = key
        against = [figures.get((architecture, batch, binary, peer)) for peer in ("MLServer", "KServe")]
        ours = name.startswith("redoubt")
        rows.append([architecture, batch, "binary" if binary else "JSON", name, rate, middle, high, spent,
                     *(f"{rate / peer[0]:.2f}" if peer and ours else "-" for peer in against),
                     *(f"{peer[3] / spent:.2f}" if peer and ours else "-" for peer in against)])
        if name.startswith("redoubt"):
            _judge(report, architecture, batch, binary, name, (rate, high), against)
    report.say(table(HEADER, rows))
    report.say(f"closed loop, {CONNECTIONS} connections from another process on the same cores, {seconds:g} s each, "
               "FP32, one torch thread; random weights; servers in turn, never at the same time. CPU: what the "
               "server's threads compute for a request, which other work on the machine changes least")
    _overhead(report, figures)
    report.figures["throughput"] = {"columns": HEADER, "rows": rows}


def _servers(report, work, registry, bundle, architecture) -> dict[str, AbstractContextManager]:
    uri = f"sqlite:///{registry / 'mlflow.db'}"
    found = {
        "redoubt": servers.redoubt(work / f"{architecture}-on", uri),
        "redoubt, no detection": servers.redoubt(work / f"{architecture}-off", uri, detection="false"),
    }
    for name, option, start in (
        ("MLServer", "mlserver_python", servers.mlserver), ("KServe", "kserve_python", servers.kserve),
    ):
        python = getattr(report.given, option)
        if python and Path(python).exists():
            found[name] = start(Path(python), bundle, work / f"{architecture}-{name}")
        else:
            report.say(f"{name} is not measured: --{option.replace('_', '-')} names no interpreter that has it")
    return found


def _inputs(channels: int, size: int, batch: int, seed: int, count: int = 16) -> list[np.ndarray]:
    """Pictures of 256 levels, each request its own."""
    random = np.random.default_rng(seed)
    return [(random.integers(0, 256, (batch, channels, size, size)) / np.float32(255)).astype(np.float32)
            for _ in range(count)]


def _measure(running, channels, size, batch, binary, seconds, seed) -> tuple[float, float, float, float] | None:
    """Requests a second, median and 99th percentile in ms, and the processor's ms for one request in the server; None
    for a server that does not speak this."""
    requests = [running.request(x, binary=binary) for x in _inputs(channels, size, batch, seed)]
    before = running.processor_seconds()
    outcome = run(Load(host=running.host, port=running.port, requests=requests, connections=CONNECTIONS,
                       seconds=seconds + 1, warm=1.0))
    if outcome.failed or not outcome.ok:
        return None
    spent = (running.processor_seconds() - before) / (len(outcome.ok) * (seconds + 1) / outcome.seconds)
    return outcome.rate, outcome.quantile(0.5), outcome.quantile(0.99), spent * 1e3


def _agrees(report: Report, running, bundle: Path, name: str, channels: int, size: int) -> None:
    """The server's classes against the model's own, on 500 pictures."""
    import httpx

    x = _inputs(channels, size, 500, report.given.seed, count=1)[0]
    model, same = open_bundle(bundle).model(), 0
    with torch.inference_mode():
        expected = torch.cat([model(part) for part in torch.from_numpy(x).split(100)]).argmax(1).numpy()
    for start in range(0, 500, 50):
        body = {"inputs": [{"name": "input", "shape": [50, channels, size, size], "datatype": "FP32",
                            "data": x[start:start + 50].ravel().tolist()}]}
        answer = httpx.post(running.url + running.path, json=body, timeout=60, trust_env=False).json()
        labels = next(output["data"] for output in answer["outputs"] if output["name"] == "label")
        same += int((np.array(labels).ravel() == expected[start:start + 50]).sum())
    report.require(same >= 499.5, f"{name}: only {same} of 500 classes agree with the model's own")


def _judge(report: Report, architecture, batch, binary, name, ours, against) -> None:
    detects = name == "redoubt"
    if architecture == "compact-cnn" and not detects:
        return   # the claim is about detection on
    factor = 1.0 if detects and architecture == "preactresnet-18" else 1.5
    for peer, theirs in zip(("MLServer", "KServe"), against, strict=True):
        if theirs is None:
            continue
        what = f"{architecture}, batch {batch}, {'binary' if binary else 'JSON'}, {name}"
        ratio = ours[0] / theirs[0]
        report.require(ratio >= factor, f"{what}: {ratio:.2f} x {peer}, at least {factor} x is wanted")
        report.require(ours[1] <= theirs[2], f"{what}: p99 {ours[1]:.3g} ms, {peer} has {theirs[2]:.3g} ms")


def _overhead(report: Report, figures: dict) -> None:
    for (architecture, batch, binary, name), (rate, *_) in sorted(figures.items(), key=str):
        if name != "redoubt":
            continue
        factor = figures[architecture, batch, binary, "redoubt, no detection"][0] / rate
        body = "binary" if binary else "JSON"
        report.say(f"detection costs {factor:.2f} x: {architecture}, batch {batch}, {body}")
        if architecture == "preactresnet-18":
            report.require(factor <= 1.5, f"detection costs {factor:.2f} x ({architecture}, batch {batch}, {body})")
