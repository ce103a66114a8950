"""The gate's step on real versions: what can be compared, what is recorded, who becomes champion."""

import json
import shutil

import pytest
import torch

from components.gate.step import run
from components.prepare_data.step import run as prepare_data
from redoubt.bundle import write_bundle
from redoubt.data import Prepared
from redoubt.errors import ArtifactError
from redoubt.models import Architecture, build
from redoubt.registry import Registry
from redoubt.threat import ThreatModel

THREAT = ThreatModel("Linf", 0.1)


@pytest.fixture
def registry(tmp_path):
    return Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", "m")


def register(registry, model, folder, digits, threats=(), classes="0123456789", checksum=None):
    shutil.rmtree(folder, ignore_errors=True)
    data = {"dataset": "digits", "checksum": checksum or digits.checksum}
    bundle = write_bundle(folder, model, classes=list(classes), threats=threats, data=data)
    return registry.register(bundle, metrics={}, parameters={}, tags={})


def judge(registry, version, digits, objective="pgd", epsilon=0.1):
    return run(digits.folder, model_name="m", tracking_uri=registry.tracking_uri, version=version.number,
               objective=objective, norm="Linf", epsilon=epsilon)


def test_undefended_then_robust_then_nothing_better(registry, digits, digits_model, robust_digits_model, tmp_path):
    first = register(registry, digits_model, tmp_path / "b", digits)
    assert judge(registry, first, digits, "standard").promoted
    second = register(registry, robust_digits_model, tmp_path / "b", digits, [THREAT])
    decision = judge(registry, second, digits)
    assert decision.promoted, decision.reason
    assert registry.champion().number == second.number
    assert json.loads(registry.version(2).tags["decision"])["champion"] == 1
    third = register(registry, robust_digits_model, tmp_path / "b", digits, [THREAT])
    decision = judge(registry, third, digits)
    assert not decision.promoted
    assert "better" in decision.reason
    assert registry.champion().number == second.number
    assert registry.by_alias("challenger").number == third.number


def test_an_undefended_model_does_not_replace_a_robust_one(
    registry, digits, digits_model, robust_digits_model, tmp_path
):
    registry.promote(register(registry, robust_digits_model, tmp_path / "b", digits, [THREAT]))
    decision = judge(registry, register(registry, digits_model, tmp_path / "b", digits), digits, "standard")
    assert "champion's Linf 0.1" in decision.reason


def test_a_champion_of_another_shape_or_other_data_is_no_measure(registry, digits, digits_model, tmp_path):
    torch.manual_seed(0)
    larger = build(Architecture(name="compact-cnn", num_classes=10, channels=1, size=28, mean=(0.1,), std=(0.3,)))
    registry.promote(register(registry, larger, tmp_path / "b", digits))
    challenger = register(registry, digits_model, tmp_path / "b", digits)
    assert "1x28x28" in judge(registry, challenger, digits, "standard").reason
    registry.promote(register(registry, digits_model, tmp_path / "b", digits, checksum="0" * 64))
    assert "training pictures may be among the gate's" in judge(registry, challenger, digits, "standard").reason


def test_data_that_changed_since_the_parent_is_refused(tmp_path, digits):
    metadata = prepare_data(tmp_path / "a", dataset="digits", data_checksum=digits.checksum)
    assert metadata["checksum"] == digits.checksum
    with pytest.raises(ArtifactError, match="digits has changed"):
        prepare_data(tmp_path / "b", dataset="digits", split_seed=1, data_checksum=digits.checksum)
    assert Prepared.open(tmp_path / "a").metadata["request"]["split_seed"] == 0
