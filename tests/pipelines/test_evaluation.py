"""`redoubt evaluate`, `report` and `compare` on a real registry: what is kept with a version, and what is refused."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from components.evaluate.step import run as evaluate_step
from components.register.step import run as register_step
from pipelines import evaluation
from pipelines.cli import app
from redoubt.bundle import write_bundle
from redoubt.errors import InvalidInput, RegistryError
from redoubt.evaluation import robustness
from redoubt.registry import Registry
from redoubt.threat import ThreatModel


@pytest.fixture(scope="module")
def home(tmp_path_factory, digits, robust_digits_model):
    """A home folder with one version, made by the steps of the pipeline."""
    home = tmp_path_factory.mktemp("home")
    request = {"dataset": "digits", "data_dir": "", "image_size": 0, "limit": 0, "split_seed": 0}
    training = {"epochs": 20, "best_epoch": 18, "seconds": 9.0, "device": "cpu", "batch_size": 64, "history": [],
                "start": None, "start_given_up": "", "warm_start": False}
    parameters = {"seed": 0, "norm": "Linf", "epsilon": 0.1, "objective": "pgd"}
    data = {"splits": digits.metadata["splits"], "dataset": "digits", "checksum": digits.checksum, "request": request}
    write_bundle(home / "model", robust_digits_model, classes=digits.classes, threats=(ThreatModel("Linf", 0.1),),
                 objective="pgd", parameters=parameters, data=data, training=training)
    evaluate_step(digits.folder, home / "model", home / "evaluation", limit=60, curve_n=30)
    (home / "detector").mkdir()
    (home / "detector" / "detection.json").write_text('{"attacks": []}')
    register_step(home / "model", home / "evaluation", home / "detector", home / "out", model_name="redoubt",
                  tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    return home


@pytest.fixture(scope="module")
def registry(home):
    return Registry(f"sqlite:///{home / 'mlflow.db'}", "redoubt")


@pytest.fixture(scope="module")
def mlflow_run(home, registry):
    from mlflow import MlflowClient

    return MlflowClient(registry.tracking_uri), registry.version(1).run_id


def test_registering_keeps_metrics_figures_and_lineage(mlflow_run, digits):
    client, run_id = mlflow_run
    run = client.get_run(run_id)
    assert 0 < run.data.metrics["worst_case_accuracy_Linf_0.1"] < run.data.metrics["clean_accuracy"]
    assert run.data.metrics["checks_fail"] == 0
    assert {f.path for f in client.list_artifacts(run_id, "figures")} >= {"figures/reliability.png"}
    used = {(i.dataset.name, i.tags[0].value, i.dataset.digest) for i in run.inputs.dataset_inputs}
    assert used == {(f"digits-{split}", context, digits.metadata["splits"][split]["sha256"][:36])
                    for split, context in (("train", "training"), ("test", "evaluation"))}


def test_a_version_is_evaluated_again_and_the_report_stays_with_it(home, registry, mlflow_run, tmp_path):
    page = evaluation.evaluate_version(registry, "1", "quick", home, limit=80, seed=1)
    assert page.is_file()
    assert not (page.parent / "state").exists() or not list((page.parent / "state").rglob("*.json"))
    client, run_id = mlflow_run
    assert client.get_run(run_id).data.metrics["quick/evaluated_images"] == 80
    assert registry.version(1).tags["evaluated_images"] == "80"
    html, facts = evaluation.write_report(registry, "1", tmp_path / "r.html")
    assert html.read_text() == page.read_text()
    assert json.loads(facts.read_text())["n"] == 80


def test_fewer_pictures_change_neither_what_is_quoted_nor_the_report(home, registry, mlflow_run, tmp_path, capsys):
    evaluation.evaluate_version(registry, "1", "quick", home, limit=90, seed=1)
    (client, run_id), before = mlflow_run, registry.version(1).tags
    assert before["evaluated_images"] == "90"
    evaluation.evaluate_version(registry, "1", "quick", home, limit=30, seed=1)
    assert registry.version(1).tags == before
    on_run = client.get_run(run_id).data
    assert on_run.metrics["quick/evaluated_images"] == 90
    assert "of 90 pictures, this one of 30" in capsys.readouterr().out
    assert json.loads(evaluation.write_report(registry, "1", tmp_path / "r.html")[1].read_text())["n"] == 90
    for name in ("robust_accuracy", "robust_accuracies", "evaluated_images", "suite"):
        assert on_run.tags[f"redoubt.{name}"] == before[name], "version and run alike"


def test_an_evaluation_is_not_forgotten_before_the_registry_has_it(home, registry, monkeypatch):
    def down(*_, **__):
        raise RegistryError("the registry is down")

    with monkeypatch.context() as patched, pytest.raises(RegistryError, match="the registry is down"):
        patched.setattr(Registry, "record", down)
        evaluation.evaluate_version(registry, "1", "quick", home, limit=95, seed=5)
    state = home / "evaluations" / "redoubt-1-quick" / "state"
    assert list(state.rglob("*.json"))
    with monkeypatch.context() as patched:
        patched.setattr(robustness, "withstands", lambda *_: pytest.fail("it was attacked again"))
        evaluation.evaluate_version(registry, "1", "quick", home, limit=95, seed=5)
    assert not list(state.rglob("*.json"))
    assert registry.artifacts(registry.version(1), "evaluations/quick/state", home / "none") is None


def test_two_versions_are_compared(home, registry, tmp_path, capsys):
    page = evaluation.compare_versions(registry, ("1", "1"), tmp_path / "c.html")
    assert "version 1" in page.read_text()
    assert "Clean accuracy" in capsys.readouterr().out


def test_what_is_not_there_is_named(home, registry, tmp_path):
    with pytest.raises(InvalidInput, match="no report of the suite 'full': `redoubt evaluate 1 --suite full`"):
        evaluation.write_report(registry, "1", tmp_path / "r.html", "full")
    with pytest.raises(InvalidInput, match="unknown suite"):
        evaluation.write_report(registry, "1", tmp_path / "r.html", "thorough")
    with pytest.raises(InvalidInput, match="there is 1"):
        evaluation.evaluate_version(registry, "7", "quick", home, limit=10, seed=0)
    with pytest.raises(InvalidInput, match="unknown suite"):
        evaluation.evaluate_version(registry, "1", "thorough", home, limit=10, seed=0)


@pytest.mark.parametrize("out, message", [
    ("report.json", r"the facts go to a \.json beside it: name it .*report\.html"),
    ("", "is a folder: name the file, such as"),
    (".", "is a folder"),
    ("file/report.html", "cannot be written"),
    ("beside/report.html", r"report\.json cannot be written \(Is a directory"),
], ids=["the facts' own name", "empty", "a folder", "below a file", "a folder where the facts go"])
def test_a_report_that_cannot_be_written_there_ends_in_a_sentence(home, registry, tmp_path, monkeypatch, out, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "beside" / "report.json").mkdir(parents=True)
    with pytest.raises(InvalidInput, match=message):
        evaluation.write_report(registry, "1", Path(out))
    if "beside" not in out:
        with pytest.raises(InvalidInput, match=message.split(":")[0]):
            evaluation.compare_versions(registry, ("1", "1"), Path(out))


@pytest.mark.parametrize("command", ["evaluate", "report", "compare"])
def test_the_commands_explain_themselves(command):
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"})
    assert shown.exit_code == 0
    assert "VERSION" in shown.output or "V1" in shown.output
