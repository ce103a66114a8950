"""The challenger beside the champion: measured on live traffic, and never part of an answer."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
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
    fetched = running.server.settings.home / "challenger" / "digits"
    wait_until(lambda: not list(fetched.iterdir()), what="its files to go")   # they are removed once nobody computes


def counted(running) -> dict:
    """Compared inputs by (classes, verdicts)."""
    found = text_string_to_metric_families(running.client.get("/metrics").text)
    rows = [row for family in found for row in family.samples if row.name == "redoubt_challenger_inputs_total"]
    return {(row.labels["classes"], row.labels["verdicts"]): row.value for row in rows if row.value}


def test_decisions_are_compared_and_counted(live, make_bundle, other_model):
    registry = WithChallenger({1: make_bundle(), 2: make_bundle(model=other_model)}, 1)
    running = live(registry, shadow_share=1.0)
    shadow = running.server.shadow
    wait_until(lambda: running.status()["challenger"], what="the challenger")
    detector = shadow._loaded.detector
    detector.settings = replace(detector.settings, threshold=-1e3)   # flags everything; the champion's does not
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    outputs = {row["name"]: torch.tensor(row["data"]) for row in running.infer(x).json()["outputs"]}
    found = wait_until(lambda: (row := running.status()["challenger"]) and row["inputs"] == 40 and row)
    flagged = outputs["is_adversarial"].float().mean().item()
    assert found["flagged"] == 1 and found["champion_flagged"] == found["verdict_agreement"] == pytest.approx(flagged)
    counts = counted(running)
    assert sum(counts.values()) == 40
    same = (outputs["label"] == shadow._loaded.probabilities(x).argmax(1)).sum().item()
    assert sum(count for (classes, _), count in counts.items() if classes == "same") == same
    assert sum(count for (_, verdicts), count in counts.items() if verdicts == "same") == round(40 * flagged)


def test_without_a_detector_on_both_sides_only_classes_are_compared(live, two):
    running = live(two, shadow_share=1.0)
    wait_until(lambda: running.status()["challenger"])
    running.infer(torch.zeros(3, 1, 8, 8))
    wait_until(lambda: running.status()["challenger"]["inputs"] == 3)
    assert running.status()["challenger"]["verdict_agreement"] is None
    assert {verdicts for _, verdicts in counted(running)} == {"none"}


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
