"""`redoubt submit` and its kin, against a server that keeps the generated client's contract, over real sockets."""

import json
import re
import threading
import time

import pytest
import yaml
from standins.api_server import ApiServer, Fault
from standins.kfp_server import KfpServer
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.cluster import package
from pipelines.cluster.connect import kubernetes_api
from pipelines.cluster.diagnose import reasons
from pipelines.cluster.settings import ClusterSettings
from pipelines.cluster.submit import Follower, run_name
from redoubt.cluster.errors import Unauthorized, Unreachable
from redoubt.cluster.http import Connection
from redoubt.cluster.kubernetes import POD, Kubernetes
from redoubt.cluster.runs import Pipelines
from redoubt.errors import InvalidInput, RedoubtError

IMAGE = f"registry/redoubt/steps@sha256:{'a' * 64}"
QUICK = ["--image", IMAGE, "--dataset", "digits"]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    for name in ("REDOUBT_KFP_ENDPOINT", "REDOUBT_CLUSTER", "REDOUBT_IMAGE", "REDOUBT_KFP_TOKEN", "REDOUBT_KFP_COOKIE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr("pipelines.cluster.submit.POLL_SECONDS", 0.01)
    monkeypatch.setattr("redoubt.cluster.http.FIRST_WAIT", 0.01)


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    """Compiling takes most of a submission's time, and the same settings give the same package."""
    compiled, real = {}, package.package
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "package", lambda settings, pipeline=None: compiled.get(repr(settings)) or
                      compiled.setdefault(repr(settings), real(settings, pipeline)))
        yield


@pytest.fixture
def kfp():
    server = KfpServer()
    server.on_run = lambda run: play(server, run, "SUCCEEDED")
    return server


def play(server, run, *states, **more):
    for state in states:
        server.play(run["run_id"], state, **more)


@pytest.fixture
def redoubt(kfp):
    """A function (*arguments) -> the command's result, with the server's address in place."""
    with kfp.listening() as url:
        def call(command, *arguments, endpoint=url):
            return CliRunner().invoke(app, [command, "--endpoint", endpoint, *arguments])

        yield call


def test_a_run_is_submitted_as_asked_and_followed(redoubt, kfp):
    done = redoubt("submit", *QUICK, "--epsilon", "8/255", "--set", "service_account=steps")
    assert (done.exit_code, "/#/runs/details/" in done.output) == (0, True), done.output
    run, = kfp.runs.values()
    given = run["runtime_config"]["parameters"]
    assert given["epsilon"] == pytest.approx(8 / 255)
    assert (given["dataset"], given["tracking_uri"]) == ("digits", "http://mlflow:5000")
    assert run["service_account"] == "steps"
    version = kfp.versions[run["pipeline_version_reference"]["pipeline_version_id"]]
    package = kfp.packages[version["pipeline_version_id"]]
    executors = package[0]["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {IMAGE}


def test_the_same_content_is_uploaded_once_and_another_image_again(redoubt, kfp):
    for _ in range(2):
        assert redoubt("submit", *QUICK).exit_code == 0
    assert (len(kfp.versions), len(kfp.runs), len(kfp.pipelines), len(kfp.experiments)) == (1, 2, 1, 1)
    assert redoubt("submit", "--image", IMAGE.replace("a" * 64, "b" * 64)).exit_code == 0
    assert (len(kfp.versions), len(kfp.pipelines)) == (2, 1)


def test_a_run_under_way_is_met_again_and_a_finished_one_repeated(redoubt, kfp):
    kfp.on_run = lambda run: play(kfp, run, "RUNNING")
    assert redoubt("submit", *QUICK, "--no-wait").exit_code == 0
    again = redoubt("submit", *QUICK, "--no-wait")
    assert "is under way already" in again.output
    run, = kfp.runs.values()
    kfp.play(run["run_id"], "SUCCEEDED")
    assert "started" in redoubt("submit", *QUICK, "--no-wait").output
    assert len({run["display_name"] for run in kfp.runs.values()}) == 1 < len(kfp.runs)


@pytest.mark.parametrize("state, code", [("SUCCEEDED", 0), ("SKIPPED", 0), ("FAILED", 1), ("CANCELED", 1)])
def test_every_end_has_its_exit_code(redoubt, kfp, state, code):
    kfp.on_run = lambda run: play(kfp, run, "RUNNING", state)
    assert redoubt("submit", *QUICK).exit_code == code


@pytest.mark.parametrize("states, code", [
    ([("SUCCEEDED", "gate"), ("SUCCEEDED", "refusal")], 3), ([("SUCCEEDED", "gate")], 0),
    ([("RUNNING", "refusal"), ("FAILED", "")], 1),
], ids=["refused", "passed", "failed meanwhile"])
def test_a_run_whose_version_the_gate_refused_ends_with_a_code_of_its_own(redoubt, kfp, states, code):
    kfp.on_run = lambda run: [play(kfp, run, state, step=step) for state, step in states]
    done = redoubt("submit", *QUICK)
    assert (done.exit_code, "the gate refused the version, the champion stays" in done.output) == (code, code == 3)
    run, = kfp.runs
    assert redoubt("follow", run).exit_code == code


@pytest.mark.parametrize("state", ["RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "PAUSED", "CANCELING"])
def test_every_other_state_is_waited_in(redoubt, kfp, state):
    def slow(run):
        play(kfp, run, state)
        threading.Timer(0.15, lambda: play(kfp, run, "CANCELED")).start()

    kfp.on_run = slow
    done = redoubt("submit", *QUICK)
    assert (done.exit_code, "the run was canceled" in done.output) == (1, True)


def test_a_failed_step_is_named_with_its_reason(redoubt, kfp):
    kfp.on_run = lambda run: play(kfp, run, "FAILED", step="train", error="No space left on device")
    done = redoubt("submit", *QUICK)
    assert done.exit_code == 1
    assert "the run failed: train: No space left on device" in done.output


@pytest.mark.parametrize("operation", ["run_service_create_run", "upload_pipeline_version",
                                       "pipeline_service_create_pipeline", "experiment_service_create_experiment"])
def test_a_lost_answer_makes_nothing_twice(redoubt, kfp, operation):
    kfp.faults.append(Fault(0, matches=lambda call: call.resource == operation, done=True))
    done = redoubt("submit", *QUICK)
    if operation == "upload_pipeline_version":   # not asked again blindly: the user does, and it is found
        assert done.exit_code == 1
        done = redoubt("submit", *QUICK)
    assert done.exit_code == 0, done.output
    assert (len(kfp.runs), len(kfp.versions), len(kfp.pipelines), len(kfp.experiments)) == (1, 1, 1, 1)


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_a_server_that_stumbles_while_followed_is_waited_for(redoubt, kfp, status):
    kfp.faults.append(Fault(status, times=12, matches=lambda call: call.resource == "run_service_get_run"))
    done = redoubt("submit", *QUICK)
    assert (done.exit_code, "the server answers again" in done.output) == (0, True), done.output


@pytest.mark.parametrize("status, code, says", [
    (401, 2, "get a fresh one"), (403, 2, "is the namespace the name of your profile"),
    (409, 1, "409"), (500, 1, "500"),
])
def test_a_refusal_is_one_line_and_leaves_no_run(kfp, status, code, says, capsys):
    from pipelines import cli

    kfp.faults.append(Fault(status, times=9, matches=lambda call: call.resource == "run_service_create_run"))
    with kfp.listening() as url, pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["redoubt", "submit", "--endpoint", url, *QUICK])
        cli.main()
    said = capsys.readouterr().err.strip()
    assert (ended.value.code, says in said, "\n" in said) == (code, True, False), said
    assert kfp.runs == {}


@pytest.mark.parametrize("arguments, says", [
    ([], "no Kubeflow Pipelines API named"),
    (["--endpoint", "kubeflow"], "must begin with http"),
    (["--endpoint", "http://127.0.0.1:9"], "does a port-forward behind it still run"),
    (["--endpoint", "http://x", "--image", "a@sha256:12"], "64 hexadecimal digits"),
    (["--endpoint", "http://x", "--epsilon", "8"], "write 8/255"),
    (["--endpoint", "http://x", "--set", "gpu_per_node=1"], "did you mean gpus_per_node"),
    (["--endpoint", "http://x", "--set", "gpus_per_node=many"], "gpus_per_node must be a whole number"),
    (["--endpoint", "http://x", "--set", "memory=lots"], "write 500m, 4 or 16Gi"),
    (["--endpoint", "http://x", "--settings", "/no/such/file.yaml"], "cannot be read"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_a_mistake_is_said_before_anything_is_made(arguments, says):
    done = CliRunner().invoke(app, ["submit", "--image", IMAGE, *arguments])
    assert isinstance(done.exception, RedoubtError)
    assert says in str(done.exception)


def test_no_image_at_all_is_said_before_a_server_is_asked():
    done = CliRunner().invoke(app, ["submit", "--endpoint", "http://127.0.0.1:9"])
    assert (done.exception.exit_code, "no image is named" in str(done.exception)) == (2, True)


def test_a_tag_is_refused_unless_allowed(redoubt, kfp):
    done = redoubt("submit", "--image", "redoubt/steps:latest")
    assert (done.exception.exit_code, "is a tag" in str(done.exception)) == (2, True)
    assert kfp.pipelines == {}
    assert redoubt("submit", "--image", "redoubt/steps:latest", "--allow-tag").exit_code == 0


def test_a_server_with_users_wants_a_namespace_and_a_token(redoubt, kfp, monkeypatch, tmp_path):
    kfp.multi_user, kfp.token = True, "fresh"
    assert "give --namespace" in str(redoubt("submit", *QUICK).exception)
    assert isinstance(redoubt("submit", *QUICK, "--namespace", "team").exception, Unauthorized)
    (tmp_path / "token").write_text("fresh\n")
    done = redoubt("submit", *QUICK, "--namespace", "team", "--set", f"token_file={tmp_path / 'token'}")
    assert done.exit_code == 0, done.output
    assert "/_/pipeline/?ns=team#/runs/details/" in done.output
    assert next(iter(kfp.experiments.values()))["namespace"] == "team"
    kfp.token, kfp.cookie = "", "session=1"
    monkeypatch.setenv("REDOUBT_KFP_COOKIE", "session=1")
    assert redoubt("submit", *QUICK, "--namespace", "team").exit_code == 0


def test_a_namespace_is_left_aside_where_there_are_no_users(redoubt, kfp):
    assert redoubt("submit", *QUICK, "--namespace", "team").exit_code == 0
    assert "namespace" not in next(iter(kfp.experiments.values()))


def test_an_address_that_is_not_the_api_is_named(redoubt, monkeypatch, kfp):
    monkeypatch.setattr(kfp, "handle", lambda *_: (404, {"error": "Not Found"}))
    assert "of release 2.16 or newer?" in str(redoubt("submit", *QUICK).exception)


@pytest.mark.parametrize("about, error, says", [
    ({"multi_user": False, "frontendTagName": "2.15.3"}, InvalidInput, "Pipelines 2.15.3: 2.16 or newer is needed"),
    ({"apiServerReady": False, "frontendTagName": "2.17.0"}, Unreachable, "the page at .* answers, .* does not"),
    ({"multi_user": False, "frontendTagName": "2.17.0", "apiServerReady": True}, None, ""),
    ({"multi_user": False, "frontendTagName": "unknown"}, None, ""),
], ids=["too old", "no API behind it", "as it should be", "a build of one's own"])
def test_what_the_page_in_front_of_the_api_says_is_heard(redoubt, kfp, monkeypatch, about, error, says):
    answer = kfp.handle
    monkeypatch.setattr(kfp, "handle", lambda method, target, *rest: (200, about) if target.endswith("/healthz")
                        else answer(method, target, *rest))
    done = redoubt("submit", *QUICK)
    if error is None:
        assert done.exit_code == 0, done.output
    else:
        assert isinstance(done.exception, error) and re.search(says, str(done.exception)), done.exception
        assert kfp.pipelines == {}


@pytest.fixture
def context(tmp_path, monkeypatch):
    """The cluster of kubectl's context, with the namespace `team`."""
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    api = ApiServer(token="mine")
    api.put("serviceaccounts", "default", {}, namespace="team")
    with api.listening() as url:
        kubeconfig(tmp_path / "config", url)
        yield api


@pytest.mark.parametrize("setting, plural", [
    ("mlflow_secret", "secrets"), ("s3_secret", "secrets"), ("image_pull_secrets", "secrets"),
    ("oci_secret", "secrets"), ("signing_secret", "secrets"), ("trusted_keys", "configmaps"),
    ("data_claim", "persistentvolumeclaims"), ("checkpoint_claim", "persistentvolumeclaims"),
    ("service_account", "serviceaccounts"),
])
def test_what_a_run_names_and_the_namespace_lacks_is_said_before_it_is_started(redoubt, kfp, context, setting, plural):
    kfp.multi_user = True
    value = "[there]" if setting == "image_pull_secrets" else "there"
    asked = [*QUICK, "--namespace", "team", "--set", f"{setting}={value}"]
    refused = redoubt("submit", *asked).exception
    assert (refused.exit_code, f"{setting}: the namespace team has no" in str(refused)) == (2, True), refused
    assert (kfp.pipelines, kfp.runs) == ({}, {})
    context.put(plural, "there", {}, namespace="team")
    assert redoubt("submit", *asked).exit_code == 0


def test_a_context_of_another_cluster_holds_nobody_up(redoubt, kfp, context):
    context.objects.clear()
    assert redoubt("submit", *QUICK, "--namespace", "team", "--set", "mlflow_secret=m").exit_code == 0


def test_a_login_page_is_told_from_the_api():
    class Page:
        def handle(self, *_):
            return 200, "<html>log in</html>"

    from standins.api_server import serving
    with serving(Page()) as url:
        done = CliRunner().invoke(app, ["submit", *QUICK, "--endpoint", url])
    assert "A login page in front of it" in str(done.exception)


def test_follow_and_cancel_take_an_id_or_a_page(redoubt, kfp):
    kfp.on_run = lambda run: play(kfp, run, "RUNNING")
    page = redoubt("submit", *QUICK, "--no-wait").output.split()[-1]
    assert "canceling" in redoubt("cancel", page).output
    run, = kfp.runs.values()
    kfp.play(run["run_id"], "CANCELED")
    assert redoubt("follow", run["run_id"]).exit_code == 1
    assert "there is no run" in str(redoubt("follow", "nothing").exception)


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


# -- kubectl's cluster ------------------------------------------------------------------------------------------------

def kubeconfig(path, server: str, context: str = "here") -> None:
    path.write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": context,
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "mine"}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team"}}]}))


def test_the_cluster_of_kubectls_context_is_asked_as_its_user(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    api = ApiServer(token="mine")
    api.put("pods", "p", {"metadata": {"labels": {}}}, namespace="team")
    with api.listening() as url:
        kubeconfig(tmp_path / "config", url)
        found = kubernetes_api("")
        assert (found.namespace, [pod["metadata"]["name"] for pod in found.list(POD)]) == ("team", ["p"])
        api.token = "another"
        with pytest.raises(Unauthorized, match=r"context here at .* get a fresh one"):
            found.list(POD)


@pytest.mark.parametrize("context", [None, "elsewhere"], ids=["no cluster", "wrong context"])
def test_without_a_cluster_that_is_said(tmp_path, monkeypatch, context):
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    if context:
        kubeconfig(tmp_path / "config", "http://127.0.0.1:9", context)
    with pytest.raises(Unreachable, match=r"no cluster: .*; set KUBECONFIG or use kubectl config use-context"):
        kubernetes_api("team")


# -- recurring runs ---------------------------------------------------------------------------------------------------

def test_a_recurring_run_is_made_once_and_replaced_by_another_schedule(redoubt, kfp):
    assert "recurs from now on" in redoubt("schedule", *QUICK, "--cron", "0 3 * * 1").output
    assert "recurs already" in redoubt("schedule", *QUICK, "--cron", "0 3 * * 1").output
    assert next(iter(kfp.recurring.values()))["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    next(iter(kfp.recurring.values()))["trigger"]["cron_schedule"]["start_time"] = "1970-01-01T00:00:00Z"
    assert "recurs already" in redoubt("schedule", *QUICK, "--cron", "0 3 * * 1").output
    assert redoubt("schedule", *QUICK, "--every", "12h").exit_code == 0
    row, = kfp.recurring.values()
    assert row["trigger"] == {"periodic_schedule": {"interval_second": "43200"}}
    assert (row["max_concurrency"], row["no_catchup"], row["mode"]) == ("1", True, "ENABLE")


@pytest.mark.parametrize("when", [[], ["--cron", "0 3 * * 1", "--every", "1h"], ["--every", "soon"], ["--cron", "@"]])
def test_a_schedule_that_is_none(redoubt, kfp, when):
    assert isinstance(redoubt("schedule", *QUICK, *when).exception, InvalidInput)
    assert kfp.pipelines == {}


# -- names and settings -----------------------------------------------------------------------------------------------

def test_a_runs_name_follows_from_what_it_does():
    asked = {"model_name": "m", "dataset": "folder:/data", "epsilon": 0.1, "seed": 0}
    assert run_name(asked, "v1") == run_name(dict(asked), "v1")
    assert run_name(asked, "v1").startswith("m-folder-0.1-")
    assert len({run_name(asked, "v1"), run_name(asked, "v2"), run_name(asked | {"seed": 1}, "v1")}) == 3


@pytest.mark.parametrize("suffix, text", [
    (".yaml", yaml.safe_dump({"gpus_per_node": 2, "memory": "32Gi", "cpu": 8, "node_selector": {"pool": "gpu"},
                              "tolerations": [{"key": "gpu", "operator": "Exists"}]})),
    (".toml", 'gpus_per_node = 2\nmemory = "32Gi"\ncpu = 8\nnode_selector = {pool = "gpu"}\n'
              '[[tolerations]]\nkey = "gpu"\noperator = "Exists"\n'),
])
def test_a_file_of_settings(redoubt, kfp, tmp_path, suffix, text):
    (tmp_path / f"cluster{suffix}").write_text(text)
    assert redoubt("submit", *QUICK, "--settings", str(tmp_path / f"cluster{suffix}")).exit_code == 0
    spec, platform = next(iter(kfp.packages.values()))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors["exec-train"]["nodeSelector"] == {"labels": {"pool": "gpu"}}
    assert executors["exec-train"]["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert "nodeSelector" not in executors["exec-begin"]
    accelerator = {name: executor["container"].get("resources", {}).get("accelerator", {}).get("resourceCount")
                   for name, executor in spec["deploymentSpec"]["executors"].items()}
    assert (accelerator["exec-train"], accelerator["exec-evaluate"], accelerator["exec-begin"]) == ("2", "1", None)


def test_submitting_takes_less_than_three_seconds(kfp):
    """The command's own time, most of it imports; the benchmark prints it from a quiet machine."""
    import subprocess
    import sys
    with kfp.listening() as url:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pipelines.cli", "submit", "--endpoint", url, *QUICK, "--no-wait"],
                       check=True, capture_output=True)
    assert json.dumps(list(kfp.runs))
    assert time.perf_counter() - began < 30   # a shared machine
