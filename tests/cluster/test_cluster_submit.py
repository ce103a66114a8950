"""`redoubt submit` against a real Kubeflow Pipelines server: followed, canceled, and answered from the cache."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys

import pytest
from cluster_support import until

from pipelines.cluster.connect import pipelines_api
from pipelines.cluster.settings import load

MINUTES = 60
FROM_CACHE = {"SKIPPED", "CACHED"}


@pytest.fixture(scope="module")
def settings(images):
    if not os.environ.get("REDOUBT_KFP_ENDPOINT"):
        pytest.skip("REDOUBT_KFP_ENDPOINT names no Kubeflow Pipelines API")
    return load(image=images["redoubt/steps"], allow_tag=True,
                namespace=os.environ.get("REDOUBT_KFP_NAMESPACE", ""))


@pytest.fixture(scope="module")
def api(settings):
    return pipelines_api(settings)


@pytest.fixture(scope="module")
def model() -> str:
    """A registered model of this session's own, so that its cache begins empty."""
    return f"test-{secrets.token_hex(3)}"


def redoubt(command: str, *arguments: str, settings, minutes: float = 30) -> subprocess.CompletedProcess:
    """Run the command as a person would."""
    fixed = ["--namespace", settings.namespace] if settings.namespace else []
    if command == "submit":
        fixed += ["--image", settings.image, "--allow-tag", "--dataset", "digits", "--objective", "standard",
                  "--epochs", "2", "--set", "retries=0", "--set", "cpu=250m"]   # small nodes have not two free
        if os.environ.get("REDOUBT_RUN_TRACKING_URI"):
            fixed += ["--tracking-uri", os.environ["REDOUBT_RUN_TRACKING_URI"]]
    return subprocess.run([sys.executable, "-m", "pipelines.cli", command, *fixed, *arguments], capture_output=True,
                          text=True, timeout=minutes * MINUTES)


def run_id(done: subprocess.CompletedProcess) -> str:
    found = re.search(r"#/runs/details/(\S+)", done.stdout)
    assert found, f"no run was started: {done.stdout}\n{done.stderr}"
    return found[1]


def test_a_run_is_followed_and_said_again_it_comes_from_the_cache(api, settings, model):
    seed = str(secrets.randbelow(10**6))
    first = redoubt("submit", "--model", model, "--seed", seed, settings=settings)
    states = {task.name: task.state for task in api.run(run_id(first)).tasks}
    assert states.get("train") == "SUCCEEDED", f"{first.stdout}\n{first.stderr}\n{states}"
    again = redoubt("submit", "--model", model, "--seed", seed, settings=settings)
    assert run_id(again) != run_id(first)
    assert "version" in again.stdout and "found" in again.stdout
    states = {task.name: task.state for task in api.run(run_id(again)).tasks}
    assert {states[name] for name in ("prepare_data", "train", "evaluate", "fit_detector")} <= FROM_CACHE, states
    assert states["begin"] == "SUCCEEDED"
    other = redoubt("submit", "--model", model, "--seed", str(int(seed) + 1), settings=settings)
    states = {task.name: task.state for task in api.run(run_id(other)).tasks}
    assert states["prepare_data"] in FROM_CACHE and states["train"] == "SUCCEEDED", states


def test_a_run_whose_version_the_gate_refuses_exits_with_three(api, settings, model, tmp_path):
    if not os.environ.get("REDOUBT_RUN_TRACKING_URI"):
        pytest.skip("REDOUBT_RUN_TRACKING_URI names no MLflow for the run's pods")
    policy = tmp_path / "policy.yaml"
    policy.write_text("bootstrap_accuracy: 0.999")
    done = redoubt("submit", "--model", f"{model}-refused", "--policy", str(policy), settings=settings)
    assert done.returncode == 3, f"{done.stdout}\n{done.stderr}"
    assert {task.name: task.state for task in api.run(run_id(done)).tasks}["refusal"] == "SUCCEEDED"
    enough = ("--epochs", "12")   # after two a class is never recognised
    passed = redoubt("submit", "--model", f"{model}-passed", *enough, settings=settings)
    assert passed.returncode == 0, f"{passed.stdout}\n{passed.stderr}"
    assert "refusal" not in {task.name for task in api.run(run_id(passed)).tasks}


def test_a_run_is_met_again_and_canceled(api, settings, model):
    started = redoubt("submit", "--model", model, "--seed", "999999", "--no-wait", settings=settings)
    assert started.returncode == 0, started.stderr
    again = redoubt("submit", "--model", model, "--seed", "999999", "--no-wait", settings=settings)
    assert "is under way already" in again.stdout
    assert run_id(again) == run_id(started)
    assert redoubt("cancel", run_id(started), settings=settings).returncode == 0
    followed = redoubt("follow", run_id(started), settings=settings, minutes=10)
    assert followed.returncode == 1
    until(lambda: api.run(run_id(started)).ended, 300, "the run's end")


def test_a_run_that_does_not_exist_is_one_line(settings):
    done = redoubt("follow", "00000000-0000-0000-0000-000000000000", settings=settings)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_a_recurring_run_is_made_and_removed(api, settings, model):
    done = redoubt("schedule", "--model", model, "--image", settings.image, "--allow-tag", "--dataset", "digits",
                   "--cron", "0 3 29 2 *", settings=settings)
    assert done.returncode == 0, done.stderr
    row, = api.recurring(api.experiment(model))
    api.unschedule(row["recurring_run_id"])
    assert api.recurring(api.experiment(model)) == []
