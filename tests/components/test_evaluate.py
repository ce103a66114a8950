"""The evaluate step: one report that fits its schema, and what cannot be evaluated is refused before work begins."""

import json
import os
from importlib import resources

import jsonschema
import numpy as np
import pytest

from components.evaluate.step import CHECKPOINTS, EXAMPLES, REPORT, run
from redoubt.bundle import write_bundle
from redoubt.data import prepare
from redoubt.data.sources import Source
from redoubt.errors import InvalidInput
from redoubt.report.facts import checks_markdown, metric_values
from redoubt.threat import ThreatModel


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, robust_digits_model, digits):
    return written(tmp_path_factory.mktemp("evaluate") / "bundle", robust_digits_model, digits, claimed=0.75)


def written(folder, model, digits, *, claimed):
    """A bundle whose record says that `claimed` withstood the attack in training."""
    history = [{"epoch": i, "clean_accuracy": 0.98, "robust_accuracy": 0.1} for i in (6, 12, 18, 20)]
    history[2]["robust_accuracy"] = claimed
    training = {"epochs": 30, "seconds": 9.0, "device": "cpu", "batch_size": 64, "history": history, "best_epoch": 18}
    return write_bundle(folder, model, classes=digits.classes, threats=(ThreatModel("Linf", 0.1),), objective="pgd",
                        parameters={"seed": 0}, data={"splits": digits.metadata["splits"]}, training=training)


@pytest.fixture(scope="module")
def report(bundle, digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated")
    found = run(digits.folder, bundle.folder, out, epsilon=0.1, limit=120, curve_n=60)
    assert found == json.loads((out / REPORT).read_text())
    assert len(json.loads((out / EXAMPLES).read_text())) == 6
    return found


def test_the_report_fits_its_schema(report):
    schema = json.loads(resources.files("redoubt.evaluation").joinpath("report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(report)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(report | {"clean_accuracy": 1.2})


def test_an_honest_model_passes_every_check(report):
    assert [check["verdict"] for check in report["checks"] if check["check"] != "few_classes"] == ["pass"] * 10


def test_a_model_that_is_fitted_to_one_attack_is_found_by_what_it_claims(robust_digits_model, digits, tmp_path):
    bundle = written(tmp_path / "bundle", robust_digits_model, digits, claimed=1.0)
    report = run(digits.folder, bundle.folder, tmp_path / "out", epsilon=0.1, limit=120, curve_n=60)
    assert [check["check"] for check in report["checks"] if check["verdict"] == "fail"] == ["claim_holds"]
    numbers = next(check["numbers"] for check in report["checks"] if check["check"] == "claim_holds")
    pgd = next(row for row in report["attacks"] if row["attack"] == "pgd" and row["epsilon"] == 0.1)
    assert numbers == {"claimed": 1.0, "claimed_clean": 0.98, "found": pytest.approx(pgd["accuracy"]), "n": 120,
                       "claimed_n": digits.metadata["splits"]["validation"]["n"],
                       "found_clean": pytest.approx(report["clean_accuracy"])}


def test_the_report_counts_what_it_says(report, digits):
    assert report["n"] == 120
    assert (report["defended"], report["split"], report["twins_left_out"]) == (True, "test", 0)
    worst = report["worst_case"][0]
    assert worst["accuracy"] <= report["robust"][0]["accuracy"] <= report["clean_accuracy"]
    assert worst["worst_class"]["accuracy"] == min(r["accuracy"] for r in worst["per_class"] if r["n"])
    assert report["training"]["epochs"] == 20, "of 30, stopped early, looked at four times"
    assert report["training"]["times_standard"] > 0
    assert len(report["corruptions"]["rows"]) == 25
    assert 0.5 < report["imperceptibility"]["ssim"]["mean"] < 1


def test_metrics_are_finite_and_named_as_trackers_want(report):
    values = metric_values(report | {"seconds": float("inf"), "training": {"times_standard": None}})
    assert "evaluation_seconds" not in values
    assert "training_cost_times_standard" not in values
    assert values["accuracy_PGD-20_Linf_0.1"] == report["robust"][0]["accuracy"]
    assert not any(set(name) & set(" :()%") for name in values)


def test_a_check_becomes_one_row_of_the_table(report):
    table = checks_markdown({"checks": [report["checks"][0] | {"verdict": "fail", "detail": "a | b"}]})
    assert "| FAIL | a \\| b |" in table


def odd(digits, *, shape=(1, 8, 8), classes=None, test=None):
    """Data like the digits, of another shape, other names, or with given test pictures."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 17, (900, *shape), dtype=np.uint8)
    labels = np.arange(900) % 10
    chosen = images[:0] if test is None else test(images)
    return Source(name="odd", train_images=images, train_labels=labels, levels=16,
                  test_images=chosen if len(chosen) else rng.integers(0, 17, (100, *shape), dtype=np.uint8),
                  test_labels=np.arange(len(chosen) or 100) % 10, classes=classes or tuple(digits.classes))


@pytest.mark.parametrize("changes, message", [
    ({"shape": (1, 9, 9)}, "takes pictures of 1x8x8, those of odd are 1x9x9"),
    ({"classes": tuple("abcdefghij")}, "classes are 0, 1"),
    ({"test": lambda images: images[:100]}, "evaluation pictures were trained on"),
], ids=["shape", "classes", "overlap"])
def test_data_that_does_not_fit_the_model_is_refused(bundle, digits, tmp_path, changes, message):
    prepared = prepare(odd(digits, **changes), tmp_path / "data", seed=0)
    with pytest.raises(InvalidInput, match=message):
        run(prepared.folder, bundle.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_suite_is_refused_by_name(bundle, digits, tmp_path):
    with pytest.raises(InvalidInput, match="unknown suite 'thorough': valid ones are full, quick, standard"):
        run(digits.folder, bundle.folder, tmp_path / "out", suite="thorough")


def test_what_is_finished_outlives_the_step_whose_upload_may_still_fail(bundle, digits, tmp_path, monkeypatch):
    """And what is another run's, on a volume that they share, is left alone unless nobody has touched it for a week."""
    monkeypatch.setenv(CHECKPOINTS, str(tmp_path))
    anothers, forgotten = tmp_path / "evaluation" / ("a" * 24), tmp_path / "evaluation" / ("b" * 24)
    for folder in (anothers, forgotten):
        folder.mkdir(parents=True)
        (folder / "pgd.json").write_text("{}")
    for path in (forgotten / "pgd.json", forgotten):
        os.utime(path, (0, 0))
    asked = {"epsilon": 0.1, "limit": 60, "curve_n": 30}
    first = run(digits.folder, bundle.folder, tmp_path / "out", **asked)
    own, = set((tmp_path / "evaluation").iterdir()) - {anothers}
    parts = {file: file.stat().st_mtime_ns for file in own.iterdir()}
    assert parts and (anothers / "pgd.json").exists() and not forgotten.exists()
    again = run(digits.folder, bundle.folder, tmp_path / "again", **asked)
    assert {file: file.stat().st_mtime_ns for file in own.iterdir()} == parts, "read, not measured again"
    assert again["attacks"] == first["attacks"]
