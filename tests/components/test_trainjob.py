"""A TrainJob: what is asked for, how it is followed, and that it goes with whoever made it."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from standins.api_server import ApiServer, Fault

from components.train import trainjob
from components.train.trainjob import BEAT, LEFT, Nodes, content, follow, run, shared
from redoubt.cluster.errors import Forbidden
from redoubt.cluster.http import Connection
from redoubt.cluster.kubernetes import Kubernetes
from redoubt.errors import RedoubtError

ROOT = Path(__file__).parents[2]
CRDS = os.environ.get("REDOUBT_CRDS", "")
NODES = Nodes(nodes=2, gpus=4, image="i@sha256:" + "a" * 64, claim="shared", path="/data", shared_memory="8Gi",
              node_selector={"pool": "gpu"}, tolerations=({"key": "gpu", "operator": "Exists"},),
              service_account="redoubt-steps", image_pull_secrets=("pull",))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(trainjob, "POLL_SECONDS", 0.0)
    return ApiServer()


@pytest.fixture
def kubernetes(server):
    return Kubernetes(Connection("http://api", what="the Kubernetes API", transport=server.transport(),
                                 sleep=lambda _: None), "redoubt")


def end(server, condition: str, message: str = "done"):
    """The operator ends every TrainJob at its second look."""
    def look(call):
        if call.verb == "get" and call.resource == "trainjobs" and server.get("trainjobs", call.name):
            server.get("trainjobs", call.name)["status"] = {"conditions": [
                {"type": condition, "status": "True", "reason": "Jobs", "message": message}]}
        return False

    server.faults.append(Fault(500, matches=look))


@pytest.mark.skipif(not CRDS, reason="REDOUBT_CRDS names no folder with the operators' resource definitions")
def test_it_fits_the_resource_definition():
    import jsonschema

    def strict(schema):
        """Unknown fields are refused wherever fields are named."""
        if isinstance(schema, dict):
            if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
                schema.setdefault("additionalProperties", False)
            if schema.get("x-kubernetes-int-or-string"):
                schema.pop("type", None)
            for value in schema.values():
                strict(value)
        elif isinstance(schema, list):
            for value in schema:
                strict(value)
        return schema

    definition = yaml.safe_load((Path(CRDS) / "trainer.kubeflow.org_trainjobs.yaml").read_text())
    version = next(one for one in definition["spec"]["versions"] if one["name"] == "v1alpha1")
    schema = strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    jsonschema.validate(content(NODES, Path("/data/job")), schema)


def test_each_node_asks_for_its_gpus_and_starts_as_many_processes():
    spec = content(NODES, Path("/data/job"))
    assert (spec["trainer"]["numNodes"], spec["trainer"]["numProcPerNode"]) == (2, 4)
    assert spec["trainer"]["resourcesPerNode"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": "4"}
    assert spec["trainer"]["command"][0] == "python3"   # torch's scripts are not on the image's path
    template = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"][
        "spec"]["template"]
    assert template["metadata"]["labels"] == {"sidecar.istio.io/inject": "false"}
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} == {"/data", "/dev/shm"}
    assert Nodes(**json.loads(NODES.to_json())).nodes == 2


@pytest.mark.parametrize("condition, fails", [("Complete", False), ("Failed", True)])
def test_it_is_followed_to_its_end_and_removed(server, kubernetes, condition, fails):
    end(server, condition, "exit code 1")
    server.put("pods", "node-0", {"metadata": {"labels": {
        "jobset.sigs.k8s.io/jobset-name": "job", "jobset.sigs.k8s.io/replicatedjob-name": "node",
        "batch.kubernetes.io/job-completion-index": "0"}}})
    server.logs["node-0"] = "2026-11-20T10:00:00Z epoch 1\n2026-11-20T10:00:01Z epoch 2\n"
    said = []
    ask = lambda: follow(kubernetes, "job", content(NODES, Path("/data")), say=said.append,   # noqa: E731
                         tell=lambda: None, poll=0)
    if fails:
        with pytest.raises(RedoubtError, match="exit code 1"):
            ask()
    else:
        ask()
    assert [line for line in said if line.startswith("epoch")] == ["epoch 1", "epoch 2"]
    assert server.all("trainjobs") == []


def test_one_of_a_killed_attempt_is_replaced(server, kubernetes, monkeypatch):
    monkeypatch.setattr(trainjob.time, "sleep", lambda _: None)
    kubernetes.create(trainjob.TRAIN_JOB, "job", {"spec": {"old": True}})
    end(server, "Complete")
    follow(kubernetes, "job", content(NODES, Path("/data")), say=print, tell=lambda: None, poll=0)
    assert sum(call.verb == "create" for call in server.calls) == 3


def test_one_that_is_deleted_under_us_is_a_failure(server, kubernetes):
    def vanish(_):
        server.objects.pop(("trainjobs", "redoubt", "job"), None)

    with pytest.raises(RedoubtError, match="was deleted while it was followed"):
        follow(kubernetes, "job", content(NODES, Path("/data")), say=print, tell=lambda: None, poll=1, sleep=vanish)


def test_whoever_is_ended_takes_it_along(server, kubernetes):
    def canceled(_):
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        follow(kubernetes, "job", content(NODES, Path("/data")), say=print, tell=lambda: None, poll=1, sleep=canceled)
    assert server.all("trainjobs") == []


def test_an_api_that_stumbles_is_waited_for(server, kubernetes):
    server.faults.append(Fault(503, times=6, matches=lambda call: (call.verb, call.resource) == ("get", "trainjobs")))
    end(server, "Complete")
    follow(kubernetes, "job", content(NODES, Path("/data")), say=print, tell=lambda: None, poll=0)


def test_without_permission_nothing_is_left(server, kubernetes):
    server.rules = [("get", "", "pods", None)]
    with pytest.raises(Forbidden):
        follow(kubernetes, "job", content(NODES, Path("/data")), say=print, tell=lambda: None, poll=0)


@dataclass
class Work:
    """As much of the train step's work as travels."""

    data: Path
    out: Path

    def to_json(self) -> dict:
        return {"data": str(self.data), "out": str(self.out), "start": {"folder": ""}, "checkpoint": ""}


def test_data_go_out_and_the_bundle_and_progress_come_back(server, kubernetes, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.json").write_text("{}")
    (tmp_path / "volume").mkdir()
    nodes, rows = Nodes(nodes=2, image="i", claim="shared", path=str(tmp_path / "volume")), []
    beats = []

    def node():
        """What the first process does on the volume."""
        while not (found := list((tmp_path / "volume" / ".redoubt").glob("*/work.json"))):
            pass
        work = json.loads(found[0].read_text())
        assert (Path(work["data"]) / "metadata.json").exists()
        Path(work["out"]).mkdir()
        (Path(work["out"]) / "weights").write_text("trained")
        began, deadline = (found[0].parent / BEAT).read_text(), time.monotonic() + 30
        while (found[0].parent / BEAT).read_text() in (began, "") and time.monotonic() < deadline:
            time.sleep(0.01)
        beats.append((found[0].parent / BEAT).read_text() != began)
        (found[0].parent / "events.jsonl").write_text('{"epoch": 1}\n{"pulse": 3, "values": {"loss": 1}}\n')
        end(server, "Complete")

    thread = threading.Thread(target=node)
    thread.start()
    run(Work(tmp_path / "data", tmp_path / "out"), nodes, rows.append, lambda step, values: rows.append((step, values)),
        kubernetes)
    thread.join()
    assert (tmp_path / "out" / "weights").read_text() == "trained"
    assert rows == [{"epoch": 1}, (3, {"loss": 1})]
    assert beats == [True]
    assert list((tmp_path / "volume" / ".redoubt").iterdir()) == []


def test_a_volume_that_cannot_be_used_is_named():
    with pytest.raises(RedoubtError, match="is it ReadWriteMany"), \
            shared(Nodes(nodes=2, image="i", claim="shared", path="/proc/none"), "job"):
        pass


LONELY = """
import sys
from pathlib import Path
from components.train import together
together._end_without_beat(Path(sys.argv[1]), silence=0.6, every=0.05)
"""


def test_a_node_whose_step_is_gone_ends(tmp_path):
    """A canceled run's pod may end before its TrainJob is removed, and stays: nothing else would free the GPUs."""
    (tmp_path / BEAT).write_text("0")
    node = subprocess.Popen([sys.executable, "-c", LONELY, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for beat in range(1, 200):   # longer than the import of torch
        (tmp_path / BEAT).write_text(str(beat))
        time.sleep(0.05)
        if beat > 100:
            assert node.poll() is None, "it ended while the step lived"
    said, _ = node.communicate(timeout=30)
    assert node.returncode == 143 and "not been heard of" in said
    assert (tmp_path / LEFT).exists()


def test_a_node_that_its_job_starts_again_ends_at_once(tmp_path, monkeypatch):
    from components.train.together import main

    monkeypatch.setenv("RANK", "0")
    (tmp_path / LEFT).touch()
    assert main(tmp_path) == 143


@pytest.mark.slow
def test_a_model_is_trained_by_the_nodes_of_a_train_job(kubernetes, server, digits, tmp_path, monkeypatch):
    """The step, its volume and torchrun for real; the operator is a thread that starts what the TrainJob asks for."""
    from components.train.step import run as train_step

    (tmp_path / "volume").mkdir()
    monkeypatch.setenv(trainjob.NODES, Nodes(nodes=1, image="i", claim="c", path=str(tmp_path / "volume")).to_json())
    monkeypatch.setattr(Kubernetes, "in_cluster", lambda *_, **__: kubernetes)

    def operate():
        while not (jobs := server.all("trainjobs")):
            time.sleep(0.1)
        trainer = jobs[0]["spec"]["trainer"]
        run, work = trainer["command"][1:3], trainer["command"][3:]
        code = subprocess.run([sys.executable, *run, "--standalone", "--nproc-per-node=2", *work, *trainer["args"]],
                              cwd=ROOT).returncode
        end(server, "Failed" if code else "Complete", f"exit code {code}")

    thread = threading.Thread(target=operate)
    thread.start()
    rows = []
    bundle = train_step(digits.folder, tmp_path / "out", objective="standard", epochs=2, progress=rows.append)
    thread.join()
    assert bundle.manifest["training"]["epochs"] == 2
    assert [row["epoch"] for row in rows if "epoch" in row][-1] == 2
    assert list((tmp_path / "volume" / ".redoubt").iterdir()) == []
