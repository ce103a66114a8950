"""What serving asks a cluster for fits the pipeline that was uploaded, parameter by parameter."""

from threading import Event

import pytest
from standins.api_server import ApiServer
from standins.kfp_server import KfpServer

from components.begin import step as begin
from components.prepare_data.step import run as prepare
from components.train.step import run as train
from pipelines.cluster.package import package
from pipelines.cluster.settings import ClusterSettings
from pipelines.cluster.submit import ensure_version
from pipelines.parameters import RunParameters
from redoubt.cluster.http import Connection
from redoubt.cluster.kubernetes import Kubernetes
from redoubt.cluster.runs import Pipelines
from redoubt.registry import Registry
from serving.cluster.answers import RegistryAnswers
from serving.cluster.launcher import KfpLauncher, Pinned
from serving.launcher import write_request
from serving.problems import Problems

SETTINGS = ClusterSettings(image=f"registry/redoubt/steps@sha256:{'a' * 64}")


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> str:
    """A registry whose champion was made by the steps themselves."""
    folder = tmp_path_factory.mktemp("parent")
    prepare(folder / "data", dataset="digits")
    bundle = train(folder / "data", folder / "bundle", objective="standard", epochs=1)
    registry = Registry(f"sqlite:///{folder / 'mlflow.db'}", "digits")
    registry.promote(registry.register(bundle, metrics={}, parameters={}, tags={}), override="a test")
    return registry.tracking_uri


def test_a_retrain_is_taken_by_the_uploaded_pipeline_and_claims_its_campaign(parent, tmp_path, monkeypatch):
    api, kfp = ApiServer(), KfpServer()
    kubernetes = Kubernetes(Connection("http://k", what="k", transport=api.transport()), "redoubt")
    pipelines = Pipelines(Connection("http://p", what="p", transport=kfp.transport()))
    version = ensure_version(pipelines, SETTINGS, package(SETTINGS))
    monkeypatch.setattr(Kubernetes, "in_cluster", lambda *_, **__: kubernetes)
    asked = {}

    def carry_out(run):
        asked.update(run["runtime_config"]["parameters"])
        begin.run(dataset=asked["dataset"], data_dir=asked["data_dir"], claim=asked["claim"], run=run["run_id"])
        kfp.play(run["run_id"], "FAILED", step="gate", error="by script")

    kfp.on_run = carry_out
    folder = tmp_path / "r-1"
    write_request(folder, {"id": "r-1", "campaign": "c-1", "claim": "c-1", "model_name": "digits",
                           "parent_version": "1", "norm": "Linf", "epsilon": 0.1})
    launcher = KfpLauncher(pipelines, kubernetes, RegistryAnswers(parent, "http://mlflow:5000"), Pinned(
        pipeline=version.pipeline, version=version.version, experiment="retraining"), Problems(), poll=0.0)
    result = launcher.run(folder, Event(), 0)
    assert result.reason.endswith("gate: by script"), result
    run, = kfp.runs.values()
    assert api.get("leases", "redoubt-c-1")["spec"]["holderIdentity"] == run["run_id"]
    checked = RunParameters.from_json(asked)
    assert (checked.cause, checked.parent, checked.tracking_uri, checked.objective, checked.dataset) == (
        "c-1", 1, "http://mlflow:5000", "blend", "digits")
