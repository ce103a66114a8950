"""The challenger beside the champion: measured on live traffic, and never part of an answer."""

from pathlib import Path

import pytest
import torch
from serving_support import FolderRegistry, wait_until

from redoubt.bundle import write_bundle
from redoubt.models import Architecture, build


class WithChallenger(FolderRegistry):
    challenger: int | None = 2

    def by_alias(self, alias: str):
        assert alias == "challenger"
        if self.challenger is None:
            return None
        champion, self.number = self.number, self.challenger
        try:
            return self.champion()
        finally:
            self.number = champion


@pytest.fixture
def two(untrained, tmp_path) -> WithChallenger:
    """Version 1 serves, version 2 has other weights."""
    torch.manual_seed(9)
    other = build(Architecture(name="compact-cnn", num_classes=10, channels=1, size=8, mean=(0.3,), std=(0.4,))).eval()
    write_bundle(tmp_path / "v2", other, classes=[f"digit {n}" for n in range(10)], threats=())
    return WithChallenger({1: untrained, 2: tmp_path / "v2"}, 1)


def test_it_is_measured_and_never_answers(live, two):
    running = live(two, shadow_share=1.0)
    wait_until(lambda: running.status()["challenger"], what="the challenger")
    x = torch.rand(40, 1, 8, 8)
    answer = running.infer(x).json()
    assert answer["model_version"] == "1"
    found = wait_until(lambda: (row := running.status()["challenger"]) and row["inputs"] == 40 and row)
    expected = running.server.shadow._loaded.probabilities(x).argmax(1)
    same = (torch.tensor(answer["outputs"][0]["data"]) == expected).float().mean().item()
    assert found["agreement"] == pytest.approx(same)
    assert (found["version"], found["errors"]) == ("2", 0)
    assert found["times_as_slow"] > 0
    two.challenger = None
    wait_until(lambda: running.status()["challenger"] is None)
    assert list((running.server.settings.home / "challenger" / "digits").iterdir()) == []


def test_a_challenger_that_fails_harms_nobody(live, two, monkeypatch):
    running = live(two, shadow_share=1.0, accelerate=False)
    loaded = wait_until(lambda: running.server.shadow._loaded, what="the challenger")
    monkeypatch.setattr(loaded.model, "forward", lambda x: 1 / 0)
    assert running.infer(torch.zeros(1, 1, 8, 8)).status_code == 200
    wait_until(lambda: running.status()["challenger"]["errors"] == 1)


def test_one_that_cannot_be_loaded_is_said_and_left_alone(live, two):
    (Path(two.folders[2]) / "model.safetensors").write_bytes(b"x")
    running = live(two, shadow_share=1.0)
    wait_until(lambda: "challenger" in running.status()["problems"])
    assert running.infer(torch.zeros(1, 1, 8, 8)).status_code == 200


def test_the_share_is_kept(live, two):
    running = live(two, shadow_share=0.25)
    wait_until(lambda: running.status()["challenger"])
    for _ in range(16):
        running.infer(torch.zeros(1, 1, 8, 8))
    wait_until(lambda: running.status()["challenger"]["inputs"] == 4)
