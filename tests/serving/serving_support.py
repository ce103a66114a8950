"""Helpers that the serving tests import by name."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import torch

from redoubt.bundle import Bundle, open_bundle
from redoubt.detection import Strength, Verdicts
from redoubt.errors import InvalidInput, RegistryError
from redoubt.registry import Version
from redoubt.threat import ThreatModel
from serving.ledger import SqliteLedger
from serving.model import LoadedModel
from serving.problems import Problems
from serving.security import KeyStore, new_key
from serving.watch import Watch

CHILD = Path(__file__).with_name("child.py")


def wait_until(condition, seconds: float = 10.0, what: str = "the condition"):
    """Poll until `condition()` is true and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.02)
    return value


def keyed(home, **names) -> dict[str, str]:
    """A key for each name, with the roles given."""
    store, tokens = KeyStore(home / "keys.json"), {}
    for name, roles in names.items():
        tokens[name], entry = new_key(name, tuple(roles.split()))
        store.add(entry)
    return tokens


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@dataclass
class FolderRegistry:
    """Versions as folders and one alias in memory: the follower's view of a registry, without MLflow's seconds."""

    folders: dict[int, Path] = field(default_factory=dict)
    number: int | None = None
    name: str = "a"
    down: bool = False
    decision: str = '{"passed": true}'
    fetches: list[float] = field(default_factory=list)

    def champion(self) -> Version | None:
        if self.down:
            raise RegistryError("the registry is down for the test")
        if self.number is None:
            return None
        source = str(self.folders[self.number])
        return Version(
            name="digits", number=self.number, run_id=f"{self.name}{self.number:032}", source=source,
            created=datetime.now(UTC), tags={"decision": self.decision} if self.decision else {},
        )

    def rollback(self, *, why: str = "") -> Version:
        if self.number == min(self.folders):
            raise InvalidInput("there is no champion before this one")
        self.number, self.why = min(self.folders), why
        return self.champion()

    def fetch(self, version: Version, folder: Path) -> Bundle:
        self.fetches.append(time.monotonic())
        open_bundle(Path(version.source))
        shutil.copytree(version.source, folder, dirs_exist_ok=True)
        return open_bundle(folder)


@dataclass
class Scripted:
    """A detector whose campaigns measure `epsilon`."""

    null_rate: float = 0.02
    epsilon: float = 0.1
    norm: str = "Linf"
    harmless: bool = False
    seen: int = 0

    def strengths(self, evidence):
        return torch.full((len(evidence),), self.epsilon)

    def campaign(self, evidence):
        self.seen, e = len(evidence), self.epsilon
        return Strength(
            norm=self.norm, estimate=e, low=0.95 * e, high=1.05 * e, n=len(evidence), harmless=self.harmless
        )


def model(version: str, *threats: ThreatModel, detector=None) -> LoadedModel:
    bundle = SimpleNamespace(threats=threats, architecture=SimpleNamespace(input_shape=(1, 8, 8)))
    return LoadedModel(version=version, bundle=bundle, model=None, detector=detector or Scripted())


class Scene:
    """A watch, its ledger, and traffic as a string: `c` clean, `a` attacked, each input different from the rest."""

    def __init__(self, settings):
        self.ledger = SqliteLedger(settings.home / "ledger.db")
        self.asked = []
        self.problems = Problems()
        self.watch = Watch(settings, self.ledger, self.problems, lambda: self.asked.append(1))
        self.sent = 0

    def serve(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.watch.on_model(loaded)

    def send(self, traffic: str, same: bool = False) -> None:
        x = torch.zeros(len(traffic), 1, 8, 8)
        for row in x:
            self.sent += not same
            row[0, 0, 0], row[0, 0, 1] = self.sent % 251 / 251, self.sent // 251 / 251
        flags = torch.tensor([letter == "a" for letter in traffic])
        none = torch.zeros(len(x))
        verdicts = Verdicts(score=none, probability=none, is_adversarial=flags, strength=none, low=none, high=none,
                            evidence=torch.zeros(len(x), 4))
        self.watch.observe(self.loaded, x, verdicts)

    @property
    def campaigns(self) -> list[dict]:
        return self.watch.campaigns_status()

    @property
    def campaign(self) -> dict:
        return self.campaigns[0]

    def finish(self, state: str, version: str | None = None, ago: float = 0.0) -> None:
        request, at = self.ledger.requests()[0], time.time() - ago
        self.ledger.update_request(request, state=state, version=version, reason="as scripted", finished_at=at)
        self.watch.refresh()
