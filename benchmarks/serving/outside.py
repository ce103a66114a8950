"""What a server stands on, to be taken away: MLflow in a process of its own, and stand-ins for the Kubernetes API and
Kubeflow Pipelines that keep their contracts (those of the tests)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.serving.servers import ROOT, free_port

sys.path[:0] = [str(ROOT / "tests")]
from standins.api_server import ApiServer, Fault, serving  # noqa: E402
from standins.kfp_server import KfpServer  # noqa: E402

_FOR_EVER = 10**9   # calls


class Mlflow:
    """A tracking server with its files in `folder`: registry, runs and artifacts under one address."""

    def __init__(self, folder: Path):
        self._folder, self._port = folder, free_port()
        self._process: subprocess.Popen | None = None
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Begin to answer; returns once it does."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port),
                 "--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}",
                 "--artifacts-destination", str(self._folder / "artifacts")],
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )
        until = time.monotonic() + 120
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"MLflow did not start: see {self._folder / 'log'}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End it at once: nobody listens any more."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def hang(self) -> None:
        """Take connections and say nothing."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def wake(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            return httpx.get(self.uri + "/health", timeout=2, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def mlflow(folder: Path) -> Iterator[Mlflow]:
    """An MLflow that answers, until the block ends."""
    made = Mlflow(folder)
    made.start()
    try:
        yield made
    finally:
        made.kill()


@dataclass(frozen=True)
class Cluster:
    """A cluster's two APIs.

    Attributes:
        settings: of a server that keeps its ledger there and retrains there.
    """

    kubernetes: ApiServer
    pipelines: KfpServer
    settings: dict[str, str]

    def cut(self, server: ApiServer | KfpServer) -> None:
        """From now on every connection to it breaks."""
        server.faults.append(Fault(0, times=_FOR_EVER))

    def mend(self, server: ApiServer | KfpServer) -> None:
        server.faults.clear()


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Both APIs, at addresses of their own, until the block ends."""
    kubernetes, pipelines = ApiServer(), KfpServer()
    pipeline = pipelines._keep(pipelines.pipelines, "pipeline_id", {"name": "p", "display_name": "p"})["pipeline_id"]
    version = pipelines._keep(pipelines.versions, "pipeline_version_id", {
        "pipeline_id": pipeline, "name": "v", "display_name": "v"})["pipeline_version_id"]
    with serving(kubernetes) as api, serving(pipelines) as kfp:
        yield Cluster(kubernetes, pipelines, {
            "ledger": "kubernetes", "launcher": "kfp", "replica": "bench", "bench_kubernetes": api, "kfp_endpoint": kfp,
            "kfp_pipeline": pipeline, "kfp_version": version, "kfp_poll_seconds": "0.5",
        })
