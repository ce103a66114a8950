"""Our server with faults to order: a file in HOME/faults named after a fault holds for as long as it lies there.

`python -m benchmarks.serving.faulty`, configured as `python -m serving` is. What fails is the registry's calls, the
detector, the clock, and every model but the first. Full disks and servers that are down are the benchmark's to arrange,
outside this process. REDOUBT_BENCH_KUBERNETES is the address of a stand-in for the cluster's API.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import uvicorn

from redoubt.bundle import Bundle
from redoubt.cluster.http import Connection
from redoubt.cluster.kubernetes import Kubernetes
from redoubt.detection import Detector
from redoubt.errors import RegistryError
from redoubt.registry import Registry, Version
from serving.__main__ import KEEP_ALIVE
from serving.app import create_app
from serving.model import LoadedModel
from serving.settings import load_settings

_real_time = time.time


class FaultyRegistry(Registry):
    """Does not answer while the fault `registry` lasts."""

    faults: Path

    def champion(self) -> Version | None:
        self._check()
        return super().champion()

    def fetch(self, version: Version, folder: Path) -> Bundle:
        self._check()
        return super().fetch(version, folder)

    def _check(self) -> None:
        if (self.faults / "registry").exists():
            raise RegistryError("the registry cannot be reached (a fault to order)")


def main() -> None:
    settings = load_settings([])
    faults = settings.home / "faults"
    faults.mkdir(parents=True, exist_ok=True)

    def holds(name: str) -> bool:
        return (faults / name).exists()

    def clock() -> float:
        return _real_time() + (86_400 if holds("clock forward") else -86_400 if holds("clock back") else 0)

    assess = Detector.assess

    def failing_assess(self, *given):
        if holds("detector"):
            raise RuntimeError("a fault to order")
        return assess(self, *given)

    probabilities = LoadedModel.probabilities

    def failing_probabilities(self, x):
        if holds("new models fail") and self.version != "1":
            raise RuntimeError("a fault to order")
        return probabilities(self, x)

    LoadedModel.probabilities = failing_probabilities
    time.time, Detector.assess = clock, failing_assess
    if address := os.environ.get("REDOUBT_BENCH_KUBERNETES"):
        Kubernetes.in_cluster = classmethod(lambda cls, *_, **__: cls(
            Connection(address, what="the Kubernetes API"), "redoubt"))
    registry = FaultyRegistry(settings.tracking_uri, settings.model_name)
    registry.faults = faults
    uvicorn.run(create_app(settings, registry=registry), port=settings.port, log_level="warning",
                timeout_keep_alive=KEEP_ALIVE)


if __name__ == "__main__":
    sys.exit(main())
