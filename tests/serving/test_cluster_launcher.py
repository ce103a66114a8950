"""The launcher against the contract server: one run of several, whatever is cut, refused, deleted or slow."""

import json
from threading import Event

import pytest
from standins.api_server import ApiServer, Fault
from standins.kfp_server import KfpServer

from redoubt.cluster.claims import VOID, claim, claim_name, holder_of
from redoubt.cluster.http import Connection
from redoubt.cluster.kubernetes import Kubernetes
from redoubt.cluster.runs import Pipelines
from serving.cluster.launcher import KfpLauncher, Pinned
from serving.launcher import Result, read_step, write_request
from serving.problems import Problems

REQUEST = {"id": "r-1", "campaign": "c-1", "model_name": "digits", "norm": "Linf", "epsilon": 0.1,
           "parent_version": "1", "claim": "c-1"}
PROMOTED = Result(status="promoted", version="2", reason="better")


class Scene:
    """A launcher, both servers, and what the registry says."""

    def __init__(self, folder, **changes):
        self.api, self.kfp, self.problems = ApiServer(), KfpServer(), Problems()
        self.verdict: Result | None = None
        self.now = 0.0
        self.folder = folder
        write_request(folder, REQUEST)
        pipeline = self.kfp._keep(self.kfp.pipelines, "pipeline_id", {"name": "redoubt", "display_name": "redoubt"})
        version = self.kfp._keep(self.kfp.versions, "pipeline_version_id", {
            "pipeline_id": pipeline["pipeline_id"], "name": "v", "display_name": "v"})
        self.pinned = Pinned(pipeline=pipeline["pipeline_id"], version=version["pipeline_version_id"],
                             experiment="retraining", service_account="runner", **changes)
        self.launcher = self.another()
        self.kfp.on_run = lambda run: None

    def another(self) -> KfpLauncher:
        """A launcher as another replica has it."""
        def connect(server, what):
            return Connection("http://x", what=what, transport=server.transport(), sleep=lambda _: None)

        self.kubernetes = Kubernetes(connect(self.api, "the Kubernetes API"), "redoubt")
        return KfpLauncher(Pipelines(connect(self.kfp, "Kubeflow Pipelines")), self.kubernetes, self, self.pinned,
                           self.problems, timeout=100.0, poll=0.0, clock=lambda: self.now)

    def parameters(self, request):
        return {"epsilon": request["epsilon"], "cause": request["campaign"]}

    def judged(self, request):
        return self.verdict

    def at_once(self, *states, claims=True, **more):
        """Every run claims and goes through these states as soon as it is created."""
        def play(run):
            name = run["runtime_config"]["parameters"]["claim"]
            if claims and claim(self.kubernetes, name, run["run_id"]) != run["run_id"]:
                self.kfp.play(run["run_id"], "FAILED", step="begin", error=f"{name} is claimed by another run")
                return
            for state in states:
                self.kfp.play(run["run_id"], state, **more)
            if states[-1] == "SUCCEEDED":
                self.verdict = PROMOTED

        self.kfp.on_run = play

    def run(self, attempt=0, launcher=None):
        return (launcher or self.launcher).run(self.folder, Event(), attempt)


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path / "retrains" / "r-1")


def test_a_run_is_started_as_pinned_and_its_verdict_comes_back(scene):
    scene.at_once("RUNNING", "SUCCEEDED")
    assert scene.run() == PROMOTED
    run, = scene.kfp.runs.values()
    assert run["display_name"] == "redoubt-r-1-1"
    assert run["service_account"] == "runner"
    assert run["pipeline_version_reference"] == {"pipeline_id": scene.pinned.pipeline,
                                                 "pipeline_version_id": scene.pinned.version}
    assert run["runtime_config"]["parameters"] == {"epsilon": 0.1, "cause": "c-1", "claim": "redoubt-c-1"}


def test_the_step_it_is_at_is_noted(scene):
    scene.at_once("RUNNING", step="train")
    looks = []
    scene.judged = lambda request: looks.append(1)

    class Stop(Event):
        def wait(self, timeout=None):
            if len(scene.kfp.calls) > 8:
                self.set()

    assert scene.launcher.run(scene.folder, Stop(), 0) is None
    assert read_step(scene.folder) == "train"


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_an_end_without_success_is_a_failed_attempt_and_its_claim_void(scene, state):
    scene.at_once("RUNNING", state, step="train" if state == "FAILED" else "", error="CUDA out of memory"
                  if state == "FAILED" else "")
    result = scene.run()
    assert result.status == "failed"
    assert ("CUDA out of memory" if state == "FAILED" else "CANCELED") in result.reason
    assert holder_of(scene.kubernetes, "redoubt-c-1") not in (None, VOID)   # the run's own, which has ended
    scene.at_once("RUNNING", "SUCCEEDED")
    assert scene.run(attempt=1) == PROMOTED
    assert [run["display_name"] for run in scene.kfp.runs.values()] == ["redoubt-r-1-1", "redoubt-r-1-2"]


def test_a_run_that_never_claimed_leaves_no_claim_for_a_late_one(scene):
    scene.at_once("FAILED", claims=False, error="ImagePullBackOff")
    assert "ImagePullBackOff" in scene.run().reason
    assert holder_of(scene.kubernetes, "redoubt-c-1") == VOID


def test_another_replica_follows_the_run_that_holds_the_claim(scene):
    scene.at_once("RUNNING")
    stop = Event()
    stop.set()
    run = scene.launcher._pipelines.start(
        "redoubt-r-1-1", pipeline=scene.pinned.pipeline, version=scene.pinned.version,
        experiment=scene.launcher._pipelines.experiment("retraining"), parameters={"claim": "redoubt-c-1"})
    scene.verdict = None

    def finish(request):
        scene.kfp.play(run.id, "SUCCEEDED")
        return PROMOTED

    scene.kfp.play(run.id, "SUCCEEDED")
    scene.judged = lambda request: PROMOTED
    assert scene.run(launcher=scene.another()) == PROMOTED
    assert len(scene.kfp.runs) == 1


@pytest.mark.parametrize("status", [0, 500, 503, 429], ids=["cut", "500", "503", "429"])
@pytest.mark.parametrize("done", [True, False], ids=["carried out", "not carried out"])
def test_a_lost_answer_does_not_make_a_second_run(scene, status, done):
    scene.at_once("RUNNING", "SUCCEEDED")
    scene.kfp.faults.append(Fault(status, matches=lambda call: call.resource == "run_service_create_run", done=done))
    assert scene.run() == PROMOTED
    assert len(scene.kfp.runs) == 1
    assert str(scene.problems) == ""


def test_a_second_run_that_slipped_in_ends_and_the_first_counts(scene):
    """A replica that woke late has started a run of the same name; it fails at its claim."""
    scene.at_once("RUNNING", "SUCCEEDED")
    assert scene.run() == PROMOTED
    first = next(iter(scene.kfp.runs))
    scene.verdict = None
    late = scene.launcher._pipelines.start(
        "redoubt-r-1-1", pipeline=scene.pinned.pipeline, version=scene.pinned.version,
        experiment=scene.launcher._pipelines.experiment("retraining"), parameters={"claim": "redoubt-c-1"})
    assert scene.kfp.runs[late.id]["state"] == "FAILED"
    scene.verdict = PROMOTED
    assert scene.run(launcher=scene.another()) == PROMOTED
    assert holder_of(scene.kubernetes, "redoubt-c-1") == first
    assert len(scene.kfp.runs) == 2


def test_a_run_deleted_under_us_is_a_failed_attempt(scene):
    def vanish(run):
        claim(scene.kubernetes, "redoubt-c-1", run["run_id"])
        del scene.kfp.runs[run["run_id"]]

    scene.kfp.on_run = vanish
    assert "was deleted on the server" in scene.run().reason


@pytest.mark.parametrize("status, says", [(401, "get a fresh one"), (403, "forbids"), (400, "refuses")])
def test_a_refusal_is_a_failed_attempt_in_one_line(scene, status, says):
    scene.kfp.faults.append(Fault(status, matches=lambda call: call.resource == "run_service_create_run"))
    result = scene.run()
    assert result.status == "failed"
    assert says in result.reason
    assert "\n" not in result.reason
    assert scene.kfp.runs == {}
    assert holder_of(scene.kubernetes, "redoubt-c-1") == VOID


def test_a_refusal_while_a_run_is_alive_is_no_failure(scene):
    """A token that expired for a minute: the run goes on, and so does whoever follows it."""
    scene.at_once("RUNNING")
    looks = []

    def turn(call):
        looks.append(call.resource)
        return call.resource == "run_service_get_run" and len(looks) < 6

    scene.kfp.faults.append(Fault(401, times=3, matches=turn))
    real = scene.kfp._run_service_get_run

    def get(names, **more):
        scene.kfp.play(names["run_id"], "SUCCEEDED")
        scene.verdict = PROMOTED
        return real(names=names, **more)

    scene.kfp._run_service_get_run = get
    assert scene.run() == PROMOTED
    assert len(scene.kfp.runs) == 1


def test_a_run_that_takes_too_long_is_terminated_and_its_end_awaited(scene):
    def start(run):
        claim(scene.kubernetes, "redoubt-c-1", run["run_id"])
        scene.kfp.play(run["run_id"], "RUNNING")
        scene.now = 101.0

    scene.kfp.on_run = start
    real = scene.kfp._run_service_get_run
    states = []

    def get(names, **more):
        states.append(scene.kfp.runs[names["run_id"]]["state"])
        if len(states) > 2 and states[-1] == "CANCELING":
            scene.kfp.play(names["run_id"], "CANCELED")
        return real(names=names, **more)

    scene.kfp._run_service_get_run = get
    assert "longer than 100 s and was terminated" in scene.run().reason
    assert "CANCELING" in states


def test_success_without_a_verdict_is_a_failure_that_says_so(scene):
    scene.at_once("RUNNING", "SUCCEEDED")
    scene.judged = lambda request: None
    assert "the registry holds no version that the gate judged" in scene.run().reason


def test_a_campaigns_second_request_does_not_meet_the_claims_of_its_first(scene):
    """Whose three attempts failed for good, and hold or voided a claim each."""
    scene.at_once("RUNNING", "FAILED", step="train")
    for attempt in range(3):
        assert scene.run(attempt=attempt).status == "failed"
    scene.folder = scene.folder.with_name("r-2")
    write_request(scene.folder, REQUEST | {"id": "r-2", "claim": "c-1.2"})
    scene.at_once("RUNNING", "SUCCEEDED")
    assert scene.run() == PROMOTED
    assert len(scene.kfp.runs) == 4


def test_an_attempt_killed_after_the_gate_is_not_repeated(scene):
    scene.verdict = PROMOTED
    assert scene.run(attempt=1) == PROMOTED
    assert scene.kfp.runs == {}


@pytest.mark.parametrize("cause, attempt, name", [
    ("c-20261120-101112-abcdef", 0, "redoubt-c-20261120-101112-abcdef"),
    ("c-20261120-101112-abcdef.2", 2, "redoubt-c-20261120-101112-abcdef.2-3"),
])
def test_a_claim_is_named_after_its_campaign(cause, attempt, name):
    assert claim_name(cause, attempt) == name


def test_the_request_file_is_what_the_launcher_reads(scene):
    assert json.loads((scene.folder / "request.json").read_text()) == REQUEST
