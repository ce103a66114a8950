"""Our server with faults to order: a file in HOME/faults named after a fault holds for as long as it lies there.

`python -m benchmarks.serving.faulty`, configured as `python -m serving` is. What fails is what the server stands on:
the registry's calls, the ledger's statements, the detector, the clock, and every model but the first.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from pathlib import Path

import uvicorn

from redoubt.bundle import Bundle
from redoubt.detection import Detector
from redoubt.errors import RegistryError
from redoubt.registry import Registry, Version
from serving.app import create_app
from serving.ledger import Ledger
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

    transaction, assess = Ledger._transaction, Detector.assess

    def failing_transaction(self):
        if holds("disk"):
            raise sqlite3.OperationalError("database or disk is full (a fault to order)")
        return transaction(self)

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
    time.time, Ledger._transaction, Detector.assess = clock, failing_transaction, failing_assess
    registry = FaultyRegistry(settings.tracking_uri, settings.model_name)
    registry.faults = faults
    uvicorn.run(create_app(settings, registry=registry), port=settings.port, log_level="warning")


if __name__ == "__main__":
    sys.exit(main())
