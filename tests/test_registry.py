"""The registry on a real MLflow with SQLite, in a folder with a space in its name."""

import pytest

from redoubt.bundle import write_bundle
from redoubt.errors import ArtifactError, InvalidInput, RegistryError
from redoubt.registry import Registry
from redoubt.threat import ThreatModel


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("a home")


@pytest.fixture
def registry(home, request):
    return Registry(f"sqlite:///{home / 'mlflow.db'}", request.node.name[:60].replace("[", "-").replace("]", ""))


@pytest.fixture
def bundle(digits_model, tmp_path):
    return write_bundle(tmp_path / "bundle", digits_model, classes=list("0123456789"),
                        threats=[ThreatModel("Linf", 0.1)], objective="pgd")


def register(registry, bundle, **tags):
    return registry.register(bundle, metrics={"clean": 0.9, "broken": float("nan")}, parameters={"seed": 1}, tags=tags)


def test_nothing_is_there_at_first(registry):
    assert registry.champion() is None
    assert registry.versions() == []
    with pytest.raises(InvalidInput, match="no previous_champion"):
        registry.rollback()


def test_register_promote_roll_back(registry, bundle):
    first = register(registry, bundle, cause="manual")
    assert first.aliases == ("challenger",)
    assert first.threats == (ThreatModel("Linf", 0.1),)
    assert first.tags["cause"] == "manual"
    registry.promote(first)
    assert registry.champion().aliases == ("champion",)
    second = register(registry, bundle)
    registry.promote(second)
    assert {v.number: v.aliases for v in registry.versions()} == {2: ("champion",), 1: ("previous_champion",)}
    assert registry.rollback().number == 1
    assert registry.champion().number == 1
    assert registry.by_alias("previous_champion").number == 2


def test_promoting_the_champion_again_changes_nothing(registry, bundle):
    first, second = register(registry, bundle), register(registry, bundle)
    registry.promote(first)
    registry.promote(second)
    registry.promote(registry.champion())
    assert registry.by_alias("previous_champion").number == first.number


def test_promoting_over_a_champion_that_is_no_longer_one(registry, bundle):
    first, second, third = (register(registry, bundle) for _ in range(3))
    assert registry.promote(first, over=None)
    registry.promote(second)
    assert not registry.promote(third, over=first)
    assert registry.champion().number == second.number
    assert registry.promote(third, over=registry.champion())


def test_fetch_verifies_and_leaves_nothing_half_done(registry, bundle, tmp_path):
    version = register(registry, bundle)
    fetched = registry.fetch(version, tmp_path / "here")
    assert fetched.manifest == bundle.manifest
    (tmp_path / "bundle" / "model.safetensors").write_bytes(b"something else")
    broken = register(registry, bundle)
    with pytest.raises(ArtifactError, match="sha256"):
        registry.fetch(broken, tmp_path / "here")
    assert registry.fetch(version, tmp_path / "here").manifest == bundle.manifest
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".fetch")] == []


@pytest.mark.parametrize("number, message", [("7", "has no version 7: there is none"), ("two", "whole number")],
                         ids=["seven", "two"])
def test_a_version_that_does_not_exist(registry, number, message):
    with pytest.raises(InvalidInput, match=message):
        registry.version(number)


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "it's", "..", "x" * 200])
def test_names_that_mlflow_would_misread(name):
    with pytest.raises(InvalidInput, match="model name"):
        Registry("sqlite:///nowhere.db", name)


def test_a_registry_that_cannot_be_reached_says_so():
    with pytest.raises(RegistryError, match=r"http://127\.0\.0\.1:9 could not read aliases"):
        Registry("http://127.0.0.1:9", "m").champion()


def test_the_decision_record_comes_back(registry, bundle):
    version = register(registry, bundle)
    assert registry.version(version.number).decision is None
    registry.tag(version, decision='{"promoted": false, "reason": "worse"}')
    assert registry.version(version.number).decision == {"promoted": False, "reason": "worse"}
