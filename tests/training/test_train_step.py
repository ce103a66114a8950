"""The pipeline's train step: what it passes on and what it writes down."""

import pytest
import torch

from components.train import step
from redoubt.data import Prepared
from redoubt.errors import ArtifactError, InvalidInput
from redoubt.training import loop

QUICK = {"epochs": 1, "steps": 1}


@pytest.fixture
def configs(monkeypatch):
    """The settings that `train` was called with, in order."""
    seen, real = [], step.train

    def watch(model, data, validation, config, **keywords):
        seen.append((config, keywords))
        return real(model, data, validation, config, **keywords)

    monkeypatch.setattr(step, "train", watch)
    return seen


def test_plugins_are_passed_on_and_written_down(digits, tmp_path, configs):
    text = '{"label_smoothing": 0.1, "patience": 3}'
    bundle = step.run(digits.folder, tmp_path / "m", plugins=text, **QUICK)
    assert configs[0][0].plugins.to_json() == {"label_smoothing": 0.1, "patience": 3}
    assert bundle.manifest["parameters"]["plugins"] == text
    assert bundle.manifest["training"]["plugins"] == {"label_smoothing": 0.1, "patience": 3}


@pytest.mark.parametrize(("dataset", "asked", "flip", "crop"), [
    ("digits", "{}", False, 0), ("cifar10", "{}", True, 4), ("cifar10", '{"flip": false}', False, 4)])
def test_only_cifar_is_augmented_unasked(digits, tmp_path, configs, monkeypatch, dataset, asked, flip, crop):
    metadata = digits.metadata | {"dataset": dataset}
    monkeypatch.setattr(step.Prepared, "open", lambda folder: Prepared(digits.folder, metadata))
    step.run(digits.folder, tmp_path / "m", plugins=asked, **QUICK)
    assert (configs[0][0].plugins.flip, configs[0][0].plugins.crop) == (flip, crop)


class Killed(BaseException):
    pass


def test_a_second_attempt_goes_on_where_the_first_was_killed(digits, tmp_path, monkeypatch):
    whole = step.run(digits.folder, tmp_path / "whole", epochs=3, steps=1)
    monkeypatch.setenv(step.CHECKPOINTS, str(tmp_path / "kept"))
    looks, look, due = [], loop.validate, loop.Keeper.due

    def killed_at_the_second_look(state, *rest):
        looks.append(state.epoch)
        if len(looks) == 2:
            raise Killed
        return look(state, *rest)

    monkeypatch.setattr(loop, "validate", killed_at_the_second_look)
    monkeypatch.setattr(loop.Keeper, "due", lambda keeper: keeper.state.step % 5 == 0)
    with pytest.raises(Killed):
        step.run(digits.folder, tmp_path / "m", epochs=3, steps=1)
    assert len(list((tmp_path / "kept").iterdir())) == 1
    monkeypatch.setattr(loop.Keeper, "due", due)
    again = step.run(digits.folder, tmp_path / "m", epochs=3, steps=1)
    assert looks == [1, 2, 2, 3]
    assert not list((tmp_path / "kept").iterdir()), "a finished run needs none"
    first, second = whole.model().state_dict(), again.model().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_warm_start_begins_with_the_parent_and_says_so(digits, tmp_path, configs):
    parent = step.run(digits.folder, tmp_path / "parent", objective="standard", epochs=4)
    child = step.run(digits.folder, tmp_path / "child", start=str(parent.folder), **QUICK)
    weights = parent.model().state_dict()
    assert all(torch.equal(configs[1][1]["start"][name], value) for name, value in weights.items())
    assert child.manifest["training"]["start"] == {
        "weights_sha256": parent.manifest["files"]["model.safetensors"], "threats": [], "objective": "standard"}
    assert parent.manifest["training"]["start"] is None
    assert "start" not in child.manifest["parameters"], "a later run must not inherit it"
    cold = step.run(digits.folder, tmp_path / "cold", **QUICK)
    loss = [bundle.manifest["training"]["history"][0]["loss"] for bundle in (child, cold)]
    assert loss[0] < 0.7 * loss[1]


def test_a_warm_start_keeps_the_parents_normalisation_and_a_checkpoint_of_its_own(
        digits, tmp_path, configs, monkeypatch):
    monkeypatch.setenv(step.CHECKPOINTS, str(tmp_path / "kept"))
    parent = step.run(digits.folder, tmp_path / "parent", **QUICK)
    metadata = digits.metadata | {"mean": [0.5]}
    monkeypatch.setattr(step.Prepared, "open", lambda folder: Prepared(digits.folder, metadata))
    child = step.run(digits.folder, tmp_path / "child", start=str(parent.folder), **QUICK)
    assert child.architecture.mean == parent.architecture.mean != (0.5,)
    assert configs[0][1]["checkpoint"] != configs[1][1]["checkpoint"]


def test_a_start_that_does_not_fit_is_refused(digits, tmp_path):
    parent = step.run(digits.folder, tmp_path / "parent", **QUICK)
    with pytest.raises(InvalidInput, match=r"cannot be the start: it is compact-cnn for.*this run preactresnet-18"):
        step.run(digits.folder, tmp_path / "child", start=str(parent.folder), architecture="preactresnet-18", **QUICK)
    with pytest.raises(ArtifactError, match="cannot be read"):
        step.run(digits.folder, tmp_path / "child", start=str(tmp_path), **QUICK)
    with pytest.raises(InvalidInput, match="weights to start with are of another architecture"):
        loop.train(parent.model(), *[digits.tensors("validation", 64)] * 2, loop.TrainConfig(objective="standard"),
                   start={"body": torch.zeros(1)})
