import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from serving_support import CHILD, wait_until

from serving.launcher import ChildProcessLauncher, read_step, take_result, tidy, write_request


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "a home" / "retrains" / "r-1"
    write_request(folder, {"id": "r-1", "norm": "Linf", "epsilon": 0.1})
    return folder


def plan(folder: Path, words: str) -> None:
    (folder.parent.parent / "plan.txt").write_text(words)


def runs(folder: Path) -> list[str]:
    file = folder.parent.parent / "runs.txt"
    return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def launcher() -> ChildProcessLauncher:
    return ChildProcessLauncher([sys.executable, str(CHILD)], poll=0.02, grace=2)


@pytest.mark.parametrize("status", ["promoted", "refused", "failed"])
def test_a_run_and_its_result(folder, launcher, status):
    plan(folder, status)
    result = launcher.run(folder, threading.Event())
    assert (result.status, result.version, result.reason) == (status, "2", "by script for Linf 0.1")
    assert len(runs(folder)) == 1
    assert read_step(folder) == "train"


def test_a_finished_run_is_not_repeated_and_a_failed_one_is(folder, launcher):
    plan(folder, "failed promoted")
    stop = threading.Event()
    assert [launcher.run(folder, stop).status for _ in range(3)] == ["failed", "promoted", "promoted"]
    assert len(runs(folder)) == 2


def test_a_crash_is_a_failure_with_its_last_words(folder, launcher):
    plan(folder, "crash")
    result = launcher.run(folder, threading.Event())
    assert result.status == "failed"
    assert "exit code 7" in result.reason
    assert "the disk is on fire" in result.reason


def test_a_command_that_does_not_exist(folder):
    result = ChildProcessLauncher(["/no/such/python"]).run(folder, threading.Event())
    assert result.status == "failed"
    assert "cannot be started" in result.reason


def test_a_run_that_takes_too_long_is_ended(folder):
    plan(folder, "hang")
    launcher = ChildProcessLauncher([sys.executable, str(CHILD)], poll=0.02, timeout=0.4)
    assert "longer than 0.4 s" in launcher.run(folder, threading.Event()).reason
    pid = int(runs(folder)[0].split()[1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_stopping_ends_the_whole_process_group_and_leaves_the_request_owed(folder, tmp_path):
    script = tmp_path / "family.sh"
    script.write_text('#!/bin/sh\nsleep 60 & echo $! > "$1/grandchild"\nwait\n')
    stop = threading.Event()
    answers = []
    launcher = ChildProcessLauncher(["/bin/sh", str(script)], poll=0.02)
    thread = threading.Thread(target=lambda: answers.append(launcher.run(folder, stop)))
    thread.start()
    grandchild = int(wait_until(lambda: (folder / "grandchild").exists() and (folder / "grandchild").read_text()))
    stop.set()
    thread.join(5)
    assert answers == [None]
    wait_until(lambda: not alive(grandchild), what="the grandchild's end")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_run_that_outlived_its_server_is_waited_for(folder, launcher):
    plan(folder, "slow")
    orphan = subprocess.Popen([sys.executable, str(CHILD), str(folder)])
    wait_until(lambda: runs(folder))
    assert launcher.run(folder, threading.Event()).status == "promoted"
    assert len(runs(folder)) == 1
    orphan.wait()


def test_a_run_that_outlived_its_server_and_died_is_a_failure(folder, launcher):
    plan(folder, "hang")
    orphan = subprocess.Popen([sys.executable, str(CHILD), str(folder)])
    wait_until(lambda: runs(folder))
    threading.Timer(0.2, orphan.kill).start()
    assert "ended without a result" in launcher.run(folder, threading.Event()).reason
    orphan.wait()


def test_a_lock_that_is_never_let_go(folder):
    launcher = ChildProcessLauncher(["/bin/false"], poll=0.02, timeout=0.2)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another run holds its lock" in launcher.run(folder, threading.Event()).reason


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "great"}', '{"version": 3}'])
def test_an_unreadable_result_is_a_failure(folder, text):
    (folder / "result.json").write_text(text)
    assert "cannot be read" in take_result(folder).reason
    assert take_result(folder) is None   # set aside, so that the next attempt may run


def test_a_request_is_written_once(folder):
    write_request(folder, {"id": "another"})
    assert json.loads((folder / "request.json").read_text())["id"] == "r-1"


def test_no_step_without_words(folder):
    assert read_step(folder) is None
    (folder / "progress.jsonl").write_text('{"at": 1, "step": "train"}\n{"at": 2, "st')
    assert read_step(folder) is None


def test_a_run_at_work_keeps_its_folders(folder):
    (folder / "parent").mkdir()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tidy(folder)
        assert (folder / "parent").exists()
    tidy(folder)
    assert not (folder / "parent").exists()
    tidy(folder / "no such folder")
