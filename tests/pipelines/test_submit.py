"""`redoubt submit` and its kin, against a server that keeps the generated client's contract, over real sockets."""

import json
import re
import threading
import time
from dataclasses import replace

import pytest
import yaml
from standins.api_server import ApiServer, Fault
from standins.kfp_server import KfpServer
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.cluster import package
from pipelines.cluster.connect import kubernetes_api
from pipelines.cluster.submit import run_name
from redoubt.cluster.errors import Unauthorized, Unreachable
from redoubt.cluster.kubernetes import POD
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

    def once(settings, pipeline=None):
        key = repr(replace(settings, endpoint=""))   # each test's server listens on another port
        return compiled.get(key) or compiled.setdefault(key, real(settings, pipeline))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "package", once)
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


def test_a_port_forward_is_not_looked_for_behind_the_environments_proxy(redoubt, kfp, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")   # where nobody listens
    assert redoubt("submit", *QUICK, "--no-wait").exit_code == 0


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
