"""A sweep over epsilon: compiled, submitted, and its reports side by side."""

import json

import pytest
import yaml
from standins.kfp_server import KfpServer
from typer.testing import CliRunner

from components.compare import step
from pipelines.cli import app
from pipelines.cluster.package import package
from pipelines.cluster.place import placing
from pipelines.cluster.settings import ClusterSettings
from pipelines.sweep import define, read_epsilons
from redoubt.errors import ArtifactError, InvalidInput

IMAGE = f"registry/redoubt/steps@sha256:{'a' * 64}"


def test_each_epsilon_is_trained_and_measured_in_a_loop_and_compared_after_it():
    settings = ClusterSettings(image=IMAGE, pipeline="redoubt-sweep", gpus_per_node=1)
    spec, platform = yaml.safe_load_all(package(settings, lambda chosen: define(placing(chosen))).content)
    loop = spec["root"]["dag"]["tasks"]["for-loop-1"]
    assert loop["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--epsilons"}
    assert set(spec["components"]["comp-for-loop-1"]["dag"]["tasks"]) == {"train", "evaluate"}
    assert spec["root"]["dag"]["tasks"]["compare"]["dependentTasks"] == ["for-loop-1"]
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert all(executor["securityContext"]["runAsNonRoot"] for executor in executors.values())


def test_a_sweep_is_submitted_under_a_pipeline_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("REDOUBT_CLUSTER", raising=False)
    server = KfpServer()
    server.on_run = lambda run: server.play(run["run_id"], "SUCCEEDED")
    with server.listening() as url:
        done = CliRunner().invoke(app, ["sweep", "--endpoint", url, "--image", IMAGE, "--epsilons", "2/255,4/255"])
    assert done.exit_code == 0, (done.output, done.exception)
    run, = server.runs.values()
    assert run["runtime_config"]["parameters"]["epsilons"] == pytest.approx([2 / 255, 4 / 255])
    assert [row["name"] for row in server.pipelines.values()] == ["redoubt-sweep"]


@pytest.mark.parametrize("text", ["", "0.1", "0.1,0.1", "0.1,big", "2/255,4"])
def test_what_is_no_list_of_epsilons(text):
    with pytest.raises(InvalidInput):
        read_epsilons(text, "Linf")


def report(epsilon: float, clean: float, robust: float) -> dict:
    return {"threats": [["L2", 9.0], ["Linf", epsilon]], "clean_accuracy": clean, "n": 100, "suite": "quick",
            "dataset": "digits", "worst_case": [{"norm": "Linf", "epsilon": epsilon, "accuracy": robust}],
            "attacks": [{"label": "PGD <20>", "norm": "Linf", "epsilon": epsilon, "accuracy": robust}]}


def test_the_reports_are_put_side_by_side_by_epsilon(tmp_path):
    folders = []
    for epsilon, clean, robust in ((0.2, 0.7, 0.5), (0.05, 0.9, 0.8)):
        folders.append(tmp_path / str(epsilon))
        folders[-1].mkdir()
        (folders[-1] / "report.json").write_text(json.dumps(report(epsilon, clean, robust)))
    rows = step.run(folders, tmp_path / "page.html", tmp_path / "table.md")
    assert [(row["trained"], row["clean"], row["robust"]) for row in rows] == [(0.05, 0.9, 0.8), (0.2, 0.7, 0.5)]
    assert "| Linf 0.05 | 90.0 % | 80.0 % |" in (tmp_path / "table.md").read_text()
    page = (tmp_path / "page.html").read_text()
    assert "PGD &lt;20&gt;" in page and "<svg" in page


def test_an_evaluation_without_report_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        step.run([tmp_path], tmp_path / "page.html", tmp_path / "table.md")
