"""The registry on a real MLflow with SQLite, in a folder with a space in its name."""

import os
import time

import pytest

from redoubt.bundle import write_bundle
from redoubt.errors import ArtifactError, InvalidInput, Overtaken, Refused, RegistryError
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


def promote(registry, version, **how):
    return registry.promote(version, **{"override": "a test", **how})


def test_nothing_is_there_at_first(registry):
    assert registry.champion() is None
    assert registry.versions() == registry.history() == []
    with pytest.raises(InvalidInput, match="has no version"):
        registry.rollback()


def test_register_promote_roll_back(registry, bundle):
    first = register(registry, bundle, cause="manual")
    assert first.aliases == ("challenger",)
    assert first.threats == (ThreatModel("Linf", 0.1),)
    assert first.tags["cause"] == "manual"
    promote(registry, first)
    assert registry.champion().aliases == ("champion",)
    second = register(registry, bundle)
    promote(registry, second)
    assert {v.number: v.aliases for v in registry.versions()} == {2: ("champion",), 1: ("previous_champion",)}
    assert registry.rollback().number == 1
    assert registry.champion().number == 1
    assert registry.by_alias("previous_champion") is None
    with pytest.raises(InvalidInput, match=r"no previous_champion.*rolled back from: 2"):
        registry.rollback()
    assert registry.champion().number == 1


def test_only_what_was_sanctioned_is_promoted(registry, bundle):
    version = register(registry, bundle)
    with pytest.raises(Refused, match="the gate has not judged it"):
        registry.promote(version)
    registry.tag(version, decision='{"passed": false, "reason": "worse"}')
    with pytest.raises(Refused, match="worse"):
        registry.promote(version)
    assert registry.champion() is None
    registry.promote(version, override="an emergency", by="ann@here")
    again = registry.version("champion")
    assert again.sanctioned
    assert (again.override["reason"], again.override["by"]) == ("an emergency", "ann@here")
    assert [(c.version, c.how, c.by, c.why) for c in registry.history()] == [
        (1, "override", "ann@here", "an emergency")]


def test_promoting_the_champion_again_changes_nothing(registry, bundle):
    first, second = register(registry, bundle), register(registry, bundle)
    promote(registry, first)
    promote(registry, second)
    assert promote(registry, registry.champion()) is None
    assert registry.by_alias("previous_champion").number == first.number


def test_promoting_over_a_champion_that_is_no_longer_one(registry, bundle):
    first, second, third = (register(registry, bundle) for _ in range(3))
    assert promote(registry, first, over=None)
    promote(registry, second, by="ann@there")
    with pytest.raises(Overtaken, match=r"version 2 became champion over version 1 at .*ann@there.*against version 1"):
        promote(registry, third, over=first)
    assert registry.champion().number == second.number
    assert promote(registry, third, over=registry.champion())


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


@pytest.mark.parametrize("number, message", [
    ("7", "has no version 7: there is none"), ("two", "whole number or one of champion"), ("champion", "no champion"),
    ("latest", "'latest' is reserved by MLflow"), ("v2", "'v2' is reserved by MLflow.* such as 2"),
    ("V12", "reserved by MLflow"), ("", "whole number"),
], ids=["seven", "two", "champion", "latest", "v2", "V12", "empty"])
def test_a_version_that_does_not_exist(registry, number, message):
    with pytest.raises(InvalidInput, match=message):
        registry.version(number)


@pytest.mark.parametrize("name", ["", "a/b", "champion", "a:b", "it's", "..", "x" * 200])
def test_names_that_mlflow_would_misread(name):
    with pytest.raises(InvalidInput, match="model name"):
        Registry("sqlite:///nowhere.db", name)


def test_a_registry_that_cannot_be_reached_says_so():
    with pytest.raises(RegistryError, match=r"http://127\.0\.0\.1:9 could not read aliases"):
        Registry("http://127.0.0.1:9", "m").champion()


def test_the_decision_record_comes_back(registry, bundle):
    version = register(registry, bundle)
    assert registry.version(version.number).decision is None
    registry.tag(version, decision='{"passed": false, "reason": "worse"}', gate="refused")
    again = registry.version(version.number)
    assert again.decision == {"passed": False, "reason": "worse"}
    assert (again.passed, again.sanctioned, again.standing) == (False, False, "refused")


def test_a_registry_that_cannot_be_reached_promotes_nothing_and_says_so_soon(registry, bundle):
    promote(registry, register(registry, bundle))
    second = register(registry, bundle)
    gone = Registry("http://127.0.0.1:9", registry.model_name)
    began = time.monotonic()
    for change in (lambda: promote(gone, second), gone.rollback, gone.history):
        with pytest.raises(RegistryError, match=r"http://127\.0\.0\.1:9 could not"):
            change()
    assert time.monotonic() - began < 20
    assert (registry.champion().number, len(registry.history())) == (1, 1)


def test_mlflow_is_told_to_unpickle_nothing(registry, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    registry.versions()
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_versions_and_their_runs_are_searched_by_tags(registry, bundle):
    register(registry, bundle, norm="Linf", epsilon="0.1")
    register(registry, bundle, norm="L2", epsilon="1")
    with registry._mlflow("search") as client:
        found = client.search_model_versions(f"name = '{registry.model_name}' and tags.`redoubt.norm` = 'L2'")
        runs = client.search_runs([registry._experiment(client)], "tags.`redoubt.epsilon` = '0.1'")
    assert [version.version for version in found] == [2]
    assert len(runs) == 1
