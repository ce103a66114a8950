"""The pipeline's train step: what it passes on and what it writes down."""

import json
import re

import pytest
import torch

from components import context
from components.context import PROGRESS
from components.train import step, work
from redoubt.data import Prepared, load_source, prepare
from redoubt.errors import InvalidInput
from redoubt.registry import Registry
from redoubt.training import loop

QUICK = {"epochs": 1, "steps": 1}


@pytest.fixture
def configs(monkeypatch):
    """The settings that `train` was called with, in order."""
    seen, real = [], work.train

    def watch(model, data, validation, config, **keywords):
        seen.append((config, keywords))
        return real(model, data, validation, config, **keywords)

    monkeypatch.setattr(work, "train", watch)
    return seen


def test_plugins_are_passed_on_and_written_down(digits, tmp_path, configs):
    text = '{"label_smoothing": 0.1, "patience": 3}'
    bundle = step.run(digits.folder, tmp_path / "m", plugins=text, **QUICK)
    assert configs[0][0].plugins.to_json() == {"label_smoothing": 0.1, "patience": 3}
    assert bundle.manifest["parameters"]["plugins"] == text
    assert bundle.manifest["training"]["plugins"] == {"label_smoothing": 0.1, "patience": 3}


def test_crops_that_would_miss_the_pictures_are_refused(digits, tmp_path):
    with pytest.raises(InvalidInput, match="pads with 8 pixels, and pictures have 8 a side"):
        step.run(digits.folder, tmp_path / "m", plugins='{"crop": 8}', **QUICK)
    step.run(digits.folder, tmp_path / "m", plugins='{"crop": 7}', **QUICK)


def test_its_rows_pass_through_the_steps_own_report(digits, tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRESS, str(tmp_path / "progress.jsonl"))
    with context.step("train") as progress:
        step.run(digits.folder, tmp_path / "m", progress=progress, **QUICK)
    rows = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == ["train"] * 3
    assert (rows[1]["epoch"], rows[1]["updates"]) == (1, 10)


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
    assert child.manifest["training"]["warm_start"]
    assert child.manifest["training"]["start"] == {
        "version": "", "weights_sha256": parent.manifest["files"]["model.safetensors"], "threats": [],
        "objective": "standard"}
    assert parent.manifest["training"]["start"] is None and not parent.manifest["training"]["warm_start"]
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


@pytest.fixture(scope="module")
def registered(digits, tmp_path_factory):
    """A registry that holds one undefended version, and that version's bundle."""
    folder = tmp_path_factory.mktemp("registry")
    bundle = step.run(digits.folder, folder / "parent", objective="standard", epochs=4)
    registry = Registry(f"sqlite:///{folder / 'mlflow.db'}", "digits")
    registry.promote(registry.register(bundle, metrics={}, parameters={}, tags={}), override="a test")
    return registry, bundle


def retrain(digits, out, registry, **changes):
    notes = []
    made = step.run(digits.folder, out, model_name=registry.model_name, tracking_uri=registry.tracking_uri,
                    progress=lambda row: notes.append(row.get("note", "")), **{"parent": 1, **QUICK, **changes})
    return made, [note for note in notes if note]


@pytest.mark.parametrize("named", [{}, {"start": "models:/digits/1", "parent": 0},
                                   {"start": "models:/digits@champion", "parent": 0}], ids=str)
def test_a_retraining_run_begins_with_its_parent(digits, tmp_path, configs, registered, named):
    registry, parent = registered
    child, notes = retrain(digits, tmp_path / "m", registry, **named)
    weights = parent.model().state_dict()
    assert all(torch.equal(configs[0][1]["start"][name], value) for name, value in weights.items())
    assert child.manifest["training"]["start"]["version"] == "digits/1"
    assert notes == ["warm start from digits/1"]


@pytest.mark.parametrize("changes, epochs", [
    ({"epochs": 8}, 4), ({"epochs": 8, "from_scratch": True}, 8), ({"epochs": 0}, 40),
    ({"epochs": 8, "parent": 0, "start": "models:/digits/1"}, 8),
    ({"epochs": 0, "parent": 0, "start": "models:/digits/1"}, 40), ({"epochs": 0, "parent": 0}, 80),
], ids=str)
def test_a_warm_start_is_a_fine_tuning_unless_weights_and_epochs_were_asked_for(
        digits, tmp_path, configs, registered, monkeypatch, changes, epochs):
    monkeypatch.setattr(work, "write_bundle", lambda *args, **card: None)
    monkeypatch.setattr(step, "open_bundle", lambda folder: None)

    def stop(model, data, validation, config, **keywords):
        configs.append((config, keywords))
        return loop.TrainResult(model=model)

    monkeypatch.setattr(work, "train", stop)
    retrain(digits, tmp_path / "m", registered[0], **{"steps": 5, **changes})
    config, keywords = configs[-1]
    assert config.epochs == epochs
    whole = epochs in (8, 80)
    assert (config.steps, config.batch_size, config.learning_rate) == ((5, 83, 3e-3) if whole else (2, 41, 6e-3))
    assert (keywords["start"] is None) == (bool(changes.get("from_scratch")) or (changes.get("parent") == 0
                                           and "start" not in changes))


@pytest.mark.parametrize("changes, reason", [
    ({"architecture": "preactresnet-18"}, "it is compact-cnn for .* this run preactresnet-18"),
    ({"parent": 7}, "digits has no version 7"),
], ids=["architecture", "version"])
def test_a_retraining_run_whose_parent_does_not_fit_says_so_and_begins_anew(
        digits, tmp_path, registered, changes, reason):
    made, notes = retrain(digits, tmp_path / "m", registered[0], **changes)
    assert made.manifest["training"]["start"] is None
    assert re.search(reason, made.manifest["training"]["start_given_up"])
    assert notes == [f"from random weights, not the parent's: {made.manifest['training']['start_given_up']}"]


def test_classes_that_the_parent_does_not_know_make_a_retraining_run_begin_anew(
        digits, tmp_path, registered, monkeypatch):
    metadata = digits.metadata | {"classes": [*digits.classes[:9], "X"]}
    monkeypatch.setattr(step.Prepared, "open", lambda folder: Prepared(digits.folder, metadata))
    made, _ = retrain(digits, tmp_path / "m", registered[0])
    assert "10 classes" in made.manifest["training"]["start_given_up"]


@pytest.mark.parametrize("every, heard", [(0.0, 2), (60.0, 0)])
def test_whoever_watches_hears_of_training_between_two_looks_but_not_of_every_step(monkeypatch, every, heard):
    monkeypatch.setattr(step, "SAY_SECONDS", every)
    rows, values = [], {"epoch": 1, "loss": 0.5, "learning_rate": 0.1, "seconds": 3.0, "seconds_left": 7.0}
    with step.tracked("", "", "train", {}, "", rows.append) as (_, pulse, tracker):
        pulse(10, values)
        pulse(20, values)
    assert tracker is None
    assert rows == heard * [{"epoch": 1, "loss": 0.5, "seconds": 3.0, "seconds_left": 7.0}]


def test_a_start_that_knows_the_test_pictures_is_refused(registered, tmp_path):
    other = prepare(load_source("digits"), tmp_path / "data", seed=1)
    with pytest.raises(InvalidInput, match=r"trained on split 0 of digits.*take the same split seed"):
        step.run(other.folder, tmp_path / "child", start=str(registered[1].folder), **QUICK)


def test_a_start_that_was_asked_for_and_does_not_fit_is_refused(digits, tmp_path, registered):
    registry, parent = registered
    with pytest.raises(InvalidInput, match=r"cannot be the start: it is compact-cnn for.*this run preactresnet-18"):
        step.run(digits.folder, tmp_path / "child", start=str(parent.folder), architecture="preactresnet-18", **QUICK)
    with pytest.raises(InvalidInput, match="no bundle's folder: write one, models:/NAME/VERSION"):
        step.run(digits.folder, tmp_path / "child", start=str(tmp_path), **QUICK)
    for start, reason in (("models:/digits", "write models:/NAME/VERSION"), ("models:/digits/9", "no version 9"),
                          ("models:/digits@best", "no alias 'best'")):
        with pytest.raises(InvalidInput, match=reason):
            retrain(digits, tmp_path / "child", registry, start=start)
    with pytest.raises(InvalidInput, match="no tracking URI"):
        step.run(digits.folder, tmp_path / "child", start="models:/digits/1", **QUICK)
    with pytest.raises(InvalidInput, match="weights to start with are of another architecture"):
        loop.train(parent.model(), *[digits.tensors("validation", 64)] * 2, loop.TrainConfig(objective="standard"),
                   start={"body": torch.zeros(1)})
