"""Servers to measure, each in a process of its own: ours, and the peers in environments of theirs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch

from redoubt.bundle import Bundle, open_bundle, seal, write_bundle
from redoubt.data import Prepared
from redoubt.detection import FitConfig, fit
from redoubt.detection.bounds import SIZES
from redoubt.detection.detector import Detector
from redoubt.detection.features import feature_count
from redoubt.detection.networks import Scorer, StrengthNet
from redoubt.detection.scoring import doubt
from redoubt.detection.settings import Settings
from redoubt.detection.witness import Witness
from redoubt.models import Architecture, build
from redoubt.registry import Registry
from redoubt.threat import ThreatModel
from redoubt.training import TrainConfig, train

ROOT = Path(__file__).parents[2]
NAME = "bench"
PEERS = Path(__file__).parents[1] / "peers"


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        pid: its process.
        path: of the infer endpoint.
        tensor: name of the model's input.
    """

    host: str
    port: int
    pid: int
    path: str = f"/v2/models/{NAME}/infer"
    tensor: str = "input"
    home: Path | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=20, trust_env=False)

    def post(self, path: str, body: dict) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=20, trust_env=False)

    def status(self) -> dict:
        return self.get("/status").json()

    def memory(self) -> float:
        """Resident memory in MiB."""
        fields = Path(f"/proc/{self.pid}/status").read_text().split("VmRSS:")[1].split()
        return int(fields[0]) / 1024

    def processor_seconds(self) -> float:
        """What it has computed so far, in all its threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def request(self, x: np.ndarray, *, binary: bool) -> bytes:
        """A whole HTTP request that asks about x, float32 [N, C, H, W]."""
        tensor = {"name": self.tensor, "shape": list(x.shape), "datatype": "FP32"}
        head = f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\n"
        if not binary:
            body = json.dumps({"inputs": [tensor | {"data": x.ravel().tolist()}]}).encode()
            return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        tensor["parameters"] = {"binary_data_size": x.nbytes}
        text = json.dumps({"parameters": {"binary_data_output": True}, "inputs": [tensor]}).encode()
        head += f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(text)}\r\n"
        return f"{head}Content-Length: {len(text) + x.nbytes}\r\n\r\n".encode() + text + x.tobytes()


def random_version(folder: Path, architecture: str, channels: int, size: int, seed: int) -> Bundle:
    """A version with random weights and a random detector that flags nothing, and doubts as many random pictures as a
    fitted one doubts clean ones: for figures of speed of clean traffic, where what a model has learned does not matter.
    """
    torch.manual_seed(seed)
    shape = Architecture(
        name=architecture, num_classes=10, channels=channels, size=size, mean=(0.3,) * channels, std=(0.4,) * channels
    )
    model = build(shape).eval()
    write_bundle(folder, model, classes=[str(n) for n in range(10)], threats=())
    scorer = Scorer(channels).eval()
    doubt(scorer, model, torch.rand(1000, channels, size, size), 0.01)
    Detector(model, scorer, StrengthNet(feature_count(channels)), Witness(), Settings(
        channels=channels, levels=255, fpr=0.01, threshold=1e3, null_rate=0.02, calibrated_on=1000,
        chances=[1.0, 1.0, 0.0], l2_logit=0.0, harmless_logit=0.0, attack_logit=0.0, apart=[1.0, 1.0],
        quantiles=[[[[[-2.0, 2.0]] * 2] * len(SIZES)] * 2] * 2, single=[[-1.0, 1.0]] * 2, own_odds=[0.0, 0.0],
        lowest=[0.01, 0.1], highest=[0.3, 3.0], asks=True, fitted={},
    )).save(folder)
    return seal(folder)


def digits_version(folder: Path, digits: Prepared, threats: Sequence[ThreatModel] = (), seed: int = 0) -> Bundle:
    """A version of the digits with a detector that works, fitted on little to be quick."""
    torch.manual_seed(seed)
    model = build(Architecture(name="compact-cnn", num_classes=10, channels=1, size=8,
                               mean=digits.metadata["mean"], std=digits.metadata["std"]))
    config = TrainConfig(objective="standard", threats=(), epochs=12, batch_size=64, seed=seed, average=0.9)
    model = train(model, digits.tensors("train"), digits.tensors("validation"), config).model
    write_bundle(folder, model, classes=[str(n) for n in range(10)], threats=threats, data=digits.metadata,
                 parameters={"objective": "standard"})
    fit(model, digits.tensors("detector_fit"), digits.tensors("calibration"), levels=16, seed=seed,
        config=FitConfig(blocks=96, strength_steps=150, score_steps=200)).save(folder)
    return seal(folder)


def registry_of(folder: Path, *versions: Path) -> Registry:
    """An MLflow registry in `folder` with these versions; the first is the champion."""
    return fill(Registry(f"sqlite:///{folder / 'mlflow.db'}", NAME), *versions)


def fill(registry: Registry, *versions: Path) -> Registry:
    """Register these versions; the first is the champion."""
    made = [registry.register(open_bundle(one), metrics={}, parameters={}, tags={}) for one in versions]
    registry.promote(made[0], override="a benchmark")
    return registry


def name_champion(registry: Registry, number: int) -> None:
    """Move the alias alone, to a version that may be champion: a person's click in MLflow's page. The decision and its
    record belong to the promotion, which is another process's work."""
    from mlflow import MlflowClient

    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    client.set_registered_model_alias(registry.model_name, "champion", str(number))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def redoubt(home: Path, tracking_uri: str, module: str = "serving", **settings) -> Iterator[Running]:
    """Our server, until the block ends.

    Args:
        module: what is started: another one may be the server with faults to order.
    """
    port = free_port()
    environment = os.environ | {
        "REDOUBT_HOME": str(home), "REDOUBT_MODEL_NAME": NAME, "REDOUBT_PORT": str(port), "REDOUBT_POLL_SECONDS": "0.5",
        "REDOUBT_TRACKING_URI": tracking_uri, "REDOUBT_RETRAIN": "false", "OMP_NUM_THREADS": "1",
    } | {f"REDOUBT_{name.upper()}": str(value) for name, value in settings.items()}
    with _process([sys.executable, "-m", module], environment, home / "server.log") as process:
        _wait(process, f"http://127.0.0.1:{port}/v2/health/ready")
        yield Running("127.0.0.1", port, process.pid, home=home)


@contextmanager
def mlserver(python: Path, bundle: Path, folder: Path) -> Iterator[Running]:
    """MLServer with the same weights, without detection, in this process's number of workers: none beside its own."""
    folder.mkdir(parents=True)
    port = free_port()
    (folder / "settings.json").write_text(json.dumps({
        "host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port(),
        "parallel_workers": 0, "debug": False,
    }))
    (folder / "model-settings.json").write_text(json.dumps({
        "name": NAME, "implementation": "mlserver_model.Peer", "parameters": {"uri": str(bundle)},
    }))
    environment = _peer_environment()
    command = [python, "-m", "mlserver.cli.main", "start", str(folder)]
    with _process(command, environment, folder / "log") as process:
        _wait(process, f"http://127.0.0.1:{port}/v2/models/{NAME}/ready")
        yield Running("127.0.0.1", port, process.pid)


@contextmanager
def kserve(python: Path, bundle: Path, folder: Path) -> Iterator[Running]:
    """KServe's Python server with the same weights, without detection."""
    folder.mkdir(parents=True)
    port = free_port()
    command = [python, str(PEERS / "kserve_model.py"), "--http_port", str(port), "--enable_grpc", "False",
               "--model_dir", str(bundle), "--model_name", NAME, "--workers", "1"]
    with _process(command, _peer_environment(), folder / "log") as process:
        _wait(process, f"http://127.0.0.1:{port}/v2/models/{NAME}/ready")
        yield Running("127.0.0.1", port, process.pid)


def _peer_environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{PEERS}", "OMP_NUM_THREADS": "1"}


@contextmanager
def _process(command: list, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(part) for part in command], cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen, url: str, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            if httpx.get(url, timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"{url} did not become ready: see the log of {process.args}")
