"""A run's parameters are checked before anything starts, and a retraining run covers what it must."""

import inspect

import pytest

from components.gate.component import gate
from pipelines import parameters as rooms
from pipelines.parameters import RunParameters, retraining
from redoubt.data.sources import NAMED
from redoubt.errors import InvalidInput
from redoubt.models import BODIES
from redoubt.threat import ThreatModel, load_threats
from redoubt.training import OBJECTIVES


@pytest.mark.parametrize("changes, message", [
    ({"dataset": "imagenet"}, "unknown dataset 'imagenet'.*digits.*fashion-mnist.*npz:PATH"),
    ({"architecture": "vgg"}, "unknown architecture 'vgg'.*compact-cnn, preactresnet-18"),
    ({"objective": "magic"}, "unknown objective 'magic'.*blend, fast, half, mixed, pgd, standard, trades"),
    ({"norm": "L1"}, "unknown norm 'L1'.*L2, Linf"),
    ({"epsilon": 0}, "above 0"),
    ({"epsilon": -0.1}, "above 0"),
    ({"epsilon": 8}, "pixels lie in"),
    ({"epsilon": "much"}, "not a number"),
    ({"epsilon": float("nan")}, "finite"),
    ({"also": "Linf 0.1"}, "must be JSON"),
    ({"epochs": -1}, "epochs"),
    ({"steps": 0}, "steps"),
    ({"lam": 0}, "lam"),
    ({"lam": float("inf")}, "lam"),
    ({"limit": 10}, "limit must be 0 for all or at least 400"),
    ({"test_limit": 1}, "test_limit must be 0 for all or at least 50"),
    ({"image_size": 16}, "those of digits have their size"),
    ({"image_size": 16, "dataset": "npz:/x.npz"}, "resizes the pictures of a folder"),
    ({"seed": 2**40}, "seeds must be below"),
    ({"model_name": "it's"}, "model name"),
    ({"model_name": "a/b"}, "model name"),
    ({"fpr": 0.5}, "fpr"),
    ({"start": "models:/m/1", "from_scratch": True}, "take one"),
    ({"policy": "levle: 1"}, "unknown key levle"),
    ({"policy": "level: 7"}, "level must be a number above 0 and at most 0.5"),
    ({"plugins": '{"smoothing": 1}'}, "unknown plug-in smoothing: valid ones are class_adaptive"),
], ids=lambda value: str(value)[:30] if isinstance(value, dict) else "")
def test_bad_values_are_refused(changes, message):
    with pytest.raises(InvalidInput, match=message):
        RunParameters(**changes)


def test_names_agree_with_the_domain():
    """The names are repeated in the pipeline's room so that checking them does not load torch."""
    assert set(rooms.ARCHITECTURES) == set(BODIES)
    assert set(rooms.OBJECTIVES) == set(OBJECTIVES)
    assert set(rooms.DATASETS) == set(NAMED)


def test_the_pipeline_takes_exactly_these_parameters():
    from pipelines.chain import pipeline

    assert set(pipeline.component_spec.inputs) == set(RunParameters().to_json())
    defaults = {name: spec.default for name, spec in pipeline.component_spec.inputs.items()}
    ours = RunParameters().to_json()
    assert {k: v for k, v in defaults.items() if k != "tracking_uri"} == {
        k: v for k, v in ours.items() if k != "tracking_uri"}
    assert gate is not None


def test_json_round_trip_and_unknown_keys():
    asked = RunParameters(epsilon="8/255", dataset="mnist")
    assert RunParameters.from_json(asked.to_json()) == asked
    with pytest.raises(InvalidInput, match="unknown run parameters: colour"):
        RunParameters.from_json({"colour": "red"})


def manifest(objective="standard", threats=(), epochs=3):
    return {
        "threats": [list(t) for t in threats],
        "parameters": {"architecture": "compact-cnn", "objective": objective, "norm": "Linf", "epsilon": 0.1,
                       "epochs": epochs, "steps": 5, "lam": 1.0, "seed": 4, "precision": "auto"},
        "data": {"request": {"dataset": "fashion-mnist", "data_dir": "", "image_size": 0, "limit": 0, "split_seed": 2},
                 "checksum": "abc"},
    }


def test_an_undefended_parent_gets_adversarial_training():
    asked = retraining(manifest(), ThreatModel("Linf", 0.11), parent=1, cause="c1", model_name="m", tracking_uri="u")
    assert (asked.objective, asked.epochs, asked.epsilon) == ("blend", 0, 0.11)
    assert (asked.dataset, asked.seed, asked.parent, asked.cause) == ("fashion-mnist", 4, 1, "c1")
    assert (asked.split_seed, asked.data_checksum) == (2, "abc"), "it must meet the data that its parent met"


def test_a_robust_parent_keeps_its_recipe_and_its_threats():
    parent = manifest("mixed", [("L2", 1.0), ("Linf", 0.05)])
    asked = retraining(parent, ThreatModel("Linf", 0.11), parent=2, cause="c", model_name="m", tracking_uri="u")
    assert (asked.objective, asked.epochs) == ("mixed", 3)
    assert load_threats(asked.also) == (ThreatModel("L2", 1.0), ThreatModel("Linf", 0.05))


def test_retraining_fine_tunes_its_parent_unless_told_otherwise():
    where = {"parent": 2, "cause": "c", "model_name": "m", "tracking_uri": "u"}
    asked = retraining(manifest("mixed"), ThreatModel("Linf", 0.11), **where)
    assert (asked.parent, asked.start, asked.from_scratch) == (2, "", False)
    assert retraining(manifest("mixed"), ThreatModel("Linf", 0.11), from_scratch=True, **where).from_scratch
    few = manifest("mixed")
    few["data"]["splits"] = {"train": {"n": 833}}
    assert retraining(few, ThreatModel("Linf", 0.11), from_scratch=False, **where).from_scratch


def test_every_component_signature_is_one_that_kfp_compiles():
    for value in inspect.signature(gate.python_func).parameters.values():
        assert not isinstance(value.annotation, str), "kfp cannot read postponed annotations"
