"""A run that is followed: what is said while it goes on, and why it does not, read from pods, events and workflow."""

import threading

import pytest
from standins.api_server import ApiServer
from standins.kfp_server import KfpServer

from pipelines.cluster.diagnose import reasons
from pipelines.cluster.settings import ClusterSettings
from pipelines.cluster.submit import Follower
from redoubt.cluster.http import Connection
from redoubt.cluster.kubernetes import Kubernetes
from redoubt.cluster.runs import Pipelines
from redoubt.errors import RedoubtError


@pytest.fixture
def kfp():
    return KfpServer()


def follower(kfp, said, **changes):
    connection = Connection("http://x", what="Kubeflow Pipelines", transport=kfp.transport(), sleep=lambda _: None)
    return Follower(api=Pipelines(connection), settings=ClusterSettings(**changes), say=said.append, poll=0.0)


@pytest.fixture
def running(kfp):
    """A run that runs."""
    kfp._keep(kfp.runs, "run_id", {"display_name": "r", "state_history": [], "run_details": {"task_details": []}})
    run, = kfp.runs.values()
    kfp.play(run["run_id"], "RUNNING")
    return run


def test_a_run_deleted_while_it_is_followed(kfp, running):
    del kfp.runs[running["run_id"]]
    with pytest.raises(RedoubtError, match="was deleted on the server while it was followed"):
        follower(kfp, []).to_the_end(running["run_id"])


def test_a_run_without_end_is_not_waited_for_for_ever(kfp, running):
    with pytest.raises(RedoubtError, match="did not end within"):
        follower(kfp, [], run_hours=1e-7).to_the_end(running["run_id"])


def test_a_gpu_that_is_never_scheduled_is_said_with_the_schedulers_reason(kfp, running):
    api = ApiServer()
    api.put("pods", "train-pod", {
        "metadata": {"labels": {"pipeline/runid": running["run_id"]}},
        "status": {"phase": "Pending", "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}]}})
    said = []
    one = follower(kfp, said, pending_minutes=0.001)
    one.kubernetes = Kubernetes(Connection("http://k", what="k", transport=api.transport()), "redoubt")
    threading.Timer(0.3, lambda: kfp.play(running["run_id"], "CANCELED")).start()
    assert one.to_the_end(running["run_id"]) == 1
    line = next(line for line in said if "Insufficient" in line)
    assert line.startswith("train-pod: Unschedulable: 0/3 nodes are available")
    assert "ask for less" in line


def test_a_step_that_works_for_hours_is_not_said_to_be_stuck(kfp, running):
    said, ticks = [], iter(range(0, 36_000, 600))
    kfp.play(running["run_id"], "RUNNING", step="train")
    one = follower(kfp, said)
    one.clock = lambda: next(ticks)
    one.sleep = lambda _: kfp.play(running["run_id"], "SUCCEEDED") if len(kfp.calls) > 20 else None
    assert one.to_the_end(running["run_id"]) == 0
    assert not [line for line in said if "nothing has moved" in line]


@pytest.mark.parametrize("status, says", [
    ({"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}]},
     "check image and image_pull_secrets"),
    ({"containerStatuses": [{"state": {"waiting": {
        "reason": "CreateContainerConfigError", "message": 'secret "mlflow" not found'}}}]}, "check mlflow_secret"),
    ({"containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled"}}}]}, "raise memory"),
    ({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                      "message": 'persistentvolumeclaim "data" not found'}]}, "check data_claim"),
    ({"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."}, "raise memory"),
], ids=["missing image", "missing secret", "out of memory", "missing claim", "evicted"])
def test_what_kubelet_and_scheduler_say_becomes_a_line(status, says):
    api = ApiServer()
    api.put("pods", "p", {"metadata": {"labels": {"pipeline/runid": "1"}}, "status": status})
    line, = reasons(Kubernetes(Connection("http://k", what="k", transport=api.transport()), "redoubt"), "1")
    assert says in line


@pytest.mark.parametrize("labels, message, says", [
    ({"workflows.argoproj.io/workflow": "w"}, 'MountVolume.SetUp failed for volume "kube-api-access": secret '
     '"team.service-account-token" not found', "ACCOUNT.service-account-token of service_account"),
    ({"pipeline/runid": "1"}, 'MountVolume.SetUp failed for volume "key": secret "key" not found', "signing_secret"),
    ({"pipeline/runid": "1"}, "Multi-Attach error for volume \"pvc-1\"", "check data_claim and checkpoint_claim"),
], ids=["the agent's token", "a missing secret", "a volume that another node has"])
def test_a_pod_that_cannot_mount_is_explained_by_its_events(labels, message, says):
    """Its status says ContainerCreating and no more."""
    api = ApiServer()
    api.put("workflows", "w", {"metadata": {"labels": {"pipeline/runid": "1"}}, "status": {}})
    api.put("pods", "p", {"metadata": {"labels": labels}, "status": {
        "phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}})
    api.put("events", "p.1", {"involvedObject": {"name": "p"}, "reason": "FailedMount", "message": message})
    api.put("events", "q.1", {"involvedObject": {"name": "q"}, "reason": "FailedMount", "message": "another's"})
    line, = reasons(Kubernetes(Connection("http://k", what="k", transport=api.transport()), "redoubt"), "1")
    assert line.startswith(f"p: FailedMount: {message}") and says in line


def test_a_failed_step_is_heard_from_its_own_log():
    api = ApiServer()
    api.put("pods", "train-pod", {"metadata": {"labels": {"pipeline/runid": "1"}}, "status": {"phase": "Failed"}})
    api.logs["train-pod"] = "2026-11-20T10:00:00Z x\n2026-11-20T10:00:01Z redoubt: error: train: the volume is full\n"
    assert reasons(Kubernetes(Connection("http://k", what="k", transport=api.transport()), "redoubt"), "1") == [
        "train-pod: train: the volume is full"]


def test_a_quota_that_is_used_up_is_read_from_the_workflow():
    api = ApiServer()
    api.put("workflows", "w", {"metadata": {"labels": {"pipeline/runid": "1"}}, "status": {"nodes": {"n": {
        "displayName": "train", "phase": "Pending", "message": 'pods "x" is forbidden: exceeded quota: gpus'}}}})
    line, = reasons(Kubernetes(Connection("http://k", what="k", transport=api.transport()), "redoubt"), "1")
    assert line.startswith("train: ")
    assert "quota is used up" in line


def test_without_permission_to_look_that_is_said():
    api = ApiServer(rules=[])
    line, = reasons(Kubernetes(Connection("http://k", what="k", transport=api.transport()), "redoubt"), "1")
    assert "cannot be looked at" in line
