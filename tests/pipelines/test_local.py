"""Runs on this machine: their folder, their progress, and how they fail."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest

from components.context import PROGRESS, report, step
from pipelines import local
from pipelines.local import RunResult, failure, read_progress, read_result, write_json
from pipelines.parameters import RunParameters
from redoubt.bundle import write_bundle
from redoubt.retraining import already_judged
from redoubt.threat import ThreatModel


def test_progress_of_a_half_written_line_waits(tmp_path):
    (tmp_path / "progress.jsonl").write_text('{"step": "train", "state": "running"}\n{"step": "tr')
    assert read_progress(tmp_path) == [{"step": "train", "state": "running"}]
    assert read_progress(tmp_path / "nowhere") == []


def test_a_step_reports_itself_and_its_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(PROGRESS, str(tmp_path / "progress.jsonl"))
    with pytest.raises(ValueError), step("train") as event:
        event({"epoch": 1})
        raise ValueError("the loss is gone")
    states = [(row["step"], row.get("state"), row.get("epoch")) for row in read_progress(tmp_path)]
    assert states == [("train", "running", None), ("train", None, 1), ("train", "failed", None)]
    assert failure(tmp_path) == "train: the loss is gone"
    assert "redoubt: error: train: the loss is gone" in capsys.readouterr().out


@pytest.mark.parametrize("number, says", [
    (errno.ENOSPC, "the volume is full"), (errno.EACCES, "a volume must be open to the user that steps run as"),
    (errno.EROFS, "may not"),
])
def test_a_volume_that_cannot_be_written_is_said_with_what_to_do(tmp_path, capsys, number, says):
    with pytest.raises(OSError), step("train"):
        raise OSError(number, os.strerror(number), "/checkpoints/a")
    assert says in capsys.readouterr().out


def test_without_a_progress_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(PROGRESS, raising=False)
    monkeypatch.chdir(tmp_path)
    report(step="train", state="running")
    assert list(tmp_path.iterdir()) == []


def test_the_reason_of_a_failure_is_found_in_the_log(tmp_path):
    (tmp_path / "run.log").write_text("much\nredoubt: error: gate: no champion\nTraceback\n")
    assert failure(tmp_path) == "gate: no champion"


def test_a_result_is_written_whole(tmp_path):
    write_json(tmp_path / "result.json", {"status": "refused", "version": 2, "reason": "worse"})
    assert read_result(tmp_path) == RunResult(status="refused", version=2, reason="worse")
    assert read_result(tmp_path / "nowhere") is None


def test_a_corrupt_data_file_fails_the_run_with_its_reason(tmp_path):
    """Through kfp's local runner for real: the first step fails, and the run says why in one line."""
    (tmp_path / "bad.npz").write_bytes(b"not an archive")
    folder = tmp_path / "a run"
    process = local.start(RunParameters(dataset=f"npz:{tmp_path / 'bad.npz'}", tracking_uri="sqlite:///x.db"), folder)
    result = local.follow(process, folder)
    assert result.status == "failed"
    assert result.reason.startswith("prepare_data: ")
    assert "bad.npz is no .npz file" in result.reason


def run_request(folder):
    return subprocess.run([sys.executable, "-m", "pipelines.retrain", str(folder)], capture_output=True, text=True,
                          timeout=300)


def test_a_request_with_a_result_is_not_run_again(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"status": "promoted", "version": 2, "reason": ""}))
    done = run_request(tmp_path)
    assert done.returncode == 0
    assert not (tmp_path / "progress.jsonl").exists()


def test_a_request_that_another_run_holds_is_left_alone(tmp_path):
    import fcntl

    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_request(tmp_path).returncode == 3
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("request_json, reason", [
    ("{", "JSONDecodeError"),
    (json.dumps({"tracking_uri": "sqlite:///{}/m.db", "model_name": "m", "parent_version": 4}), "has no version 4"),
], ids=["torn", "no parent"])
def test_a_request_that_cannot_be_answered_ends_with_its_reason(tmp_path, request_json, reason):
    (tmp_path / "request.json").write_text(request_json.replace("{}", str(tmp_path)))
    assert run_request(tmp_path).returncode == 1
    result = read_result(tmp_path)
    assert result.status == "failed"
    assert reason in result.reason


def register(registry, model, folder, *, cause, epsilon=0.1, **decision):
    bundle = write_bundle(folder, model, classes=list("0123456789"), threats=[ThreatModel("Linf", epsilon)])
    version = registry.register(bundle, metrics={}, parameters={}, tags={"cause": cause})
    if decision:
        registry.tag(version, decision=json.dumps({"reason": "so", "champion": None, **decision}))
    return version


@pytest.mark.parametrize("cause, epsilon, decision, status", [
    ("c1", 0.1, {"passed": True}, "promoted"),
    ("c1", 0.1, {"passed": False}, "refused"),
    ("c1", 0.1, {}, None),
    ("another", 0.1, {"passed": True}, None),
    ("c1", 0.05, {"passed": False}, None),
], ids=["promoted", "refused", "not judged", "another campaign", "the strength rose"])
def test_a_run_killed_after_the_gate_is_not_trained_again(
    registry, digits_model, tmp_path, cause, epsilon, decision, status
):
    register(registry, digits_model, tmp_path / "b", cause=cause, epsilon=epsilon, **decision)
    done = already_judged(registry, ThreatModel("Linf", 0.1), "c1")
    assert (done and done.status) == status
    assert (registry.champion() is not None) == (status == "promoted"), "the promotion that was owed is carried out"


def test_an_owed_promotion_does_not_overturn_a_newer_champion(registry, digits_model, tmp_path):
    register(registry, digits_model, tmp_path / "a", cause="c1", passed=True)
    newer = register(registry, digits_model, tmp_path / "b", cause="manual")
    registry.promote(newer, override="a test")
    assert already_judged(registry, ThreatModel("Linf", 0.1), "c1").status == "refused"
    assert registry.champion().number == newer.number


def test_a_follower_that_is_told_to_end_ends_the_run(tmp_path):
    """As Ctrl-C and SIGTERM do: neither the run nor the step that it is in goes on alone."""
    process = local.start(RunParameters(tracking_uri=f"sqlite:///{tmp_path / 'm.db'}"), tmp_path / "run")

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local.follow(process, tmp_path / "run", stop)
    assert process.poll() is not None
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def test_a_python_below_a_folder_with_a_space_is_quoted():
    before, expected = sys.executable, "'/a b/python'"
    sys.executable = "/a b/python"
    try:
        with local.shell_safe_python():
            assert sys.executable == expected
        assert sys.executable == "/a b/python"
    finally:
        sys.executable = before
