"""Ways to have a retraining run carried out. Here: a child process; `serving/cluster/launcher.py` has the cluster's."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

log = logging.getLogger("redoubt.serving")

REQUEST, RESULT, PROGRESS, LOCK, LOG = "request.json", "result.json", "progress.jsonl", "lock", "run.log"
LEFTOVERS = ("parent", "artifacts")   # folders that a run works in and nobody reads afterwards
STATUSES = ("promoted", "refused", "waiting", "failed")


@dataclass(frozen=True, kw_only=True)
class Result:
    """How one run ended.

    Attributes:
        status: `promoted`, `refused` (by the gate), `waiting` (passed by the gate, for a person) or `failed`.
        version: the version that it registered, if any.
        reason: in words.
    """

    status: str
    version: str | None = None
    reason: str | None = None


class Launcher(Protocol):
    """Carries out one retraining request at a time."""

    def run(self, folder: Path, stop: Event, attempt: int = 0) -> Result | None:
        """Start or find the run that `folder/request.json` describes, and follow it to its end.

        Called again for the same request after a restart, or by another replica, it must not cause a second run
        beside a living one, nor after a finished one. Blocks; called in a thread of its own.

        Args:
            attempt: how many runs for this request failed before.

        Returns:
            How it ended; None when `stop` was set before, and the request is still owed.
        """
        ...


class ChildProcessLauncher:
    """Runs `command FOLDER` as a child with a process group of its own.

    The child holds an exclusive flock on `FOLDER/lock` while it lives and leaves `result.json`. One that outlived its
    server is found by that lock and waited for.

    Args:
        command: the command without the folder.
        timeout: seconds that one attempt may take before its process group is killed.
        grace: seconds between SIGTERM and SIGKILL.
        poll: seconds between two looks at a child.
    """

    def __init__(self, command: Sequence[str], *, timeout: float = 6 * 3600.0, grace: float = 10.0, poll: float = 0.2):
        self.command, self.timeout, self.grace, self.poll = list(command), timeout, grace, poll

    def run(self, folder: Path, stop: Event, attempt: int = 0) -> Result | None:
        deadline = time.monotonic() + self.timeout
        reason = ""
        while not stop.is_set():
            found = take_result(folder)
            if found is not None:
                return found
            if _locked(folder):
                reason = reason or "a run from before ended without a result"
                if time.monotonic() > deadline:
                    return Result(status="failed", reason=f"another run holds its lock since {self.timeout:g} s")
                stop.wait(self.poll)
            elif reason and not (folder / RESULT).exists():
                return Result(status="failed", reason=reason)
            elif not reason:
                reason = self._run_child(folder, stop, deadline)
        found = take_result(folder)   # finished in the last moment; a failure now only says that it was stopped
        return found if found is not None and found.status != "failed" else None

    def _run_child(self, folder: Path, stop: Event, deadline: float) -> str:
        """Start a child and wait for its end; what to say should there be no result."""
        try:
            with (folder / LOG).open("ab") as output:
                child = subprocess.Popen(
                    [*self.command, str(folder)], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            return f"{self.command[0]} cannot be started: {error}"
        log.info("retraining run started: process %d in %s", child.pid, folder)
        while not _has_ended(child):
            stopped = stop.wait(self.poll)
            if stopped or time.monotonic() > deadline:
                self._end(child)
                return f"it took longer than {self.timeout:g} s and was ended"
        code = _sweep(child)
        return f"ended with exit code {code} and no result: {_last_line(folder / LOG)}"

    def _end(self, child: subprocess.Popen) -> None:
        _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + self.grace
        while not _has_ended(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        _sweep(child)


def write_request(folder: Path, request: dict) -> None:
    """Create a request's folder, its file complete or absent. Does nothing when it is there."""
    if (folder / REQUEST).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (REQUEST + ".new")
    temporary.write_text(json.dumps(request, indent=1))
    temporary.replace(folder / REQUEST)


def write_step(folder: Path, step: str, **more) -> None:
    """Note what a run that is carried out elsewhere is at, as a child would."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / PROGRESS).open("a") as file:
        file.write(json.dumps({"at": time.time(), "step": step, "state": "running", **more}) + "\n")


def take_result(folder: Path) -> Result | None:
    """The result in `folder`; None while there is none. A failed one is set aside so that the next attempt may run."""
    file = folder / RESULT
    try:
        found = json.loads(file.read_text())
        status, version = found["status"], found.get("version")
        if status not in STATUSES:
            raise ValueError(f"status {status!r}")
        result = Result(status=status, version=None if version is None else str(version), reason=found.get("reason"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        result = Result(status="failed", reason=f"{RESULT} cannot be read: {error}")
    if result.status == "failed":
        file.replace(folder / f"result-{time.time_ns()}.json")
    return result


def read_step(folder: Path) -> str | None:
    """The step in the newest event that a run has written; None when it says nothing."""
    try:
        with (folder / PROGRESS).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            return json.loads(file.read().splitlines()[-1])["step"]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def tidy(folder: Path) -> None:
    """Remove the weights and data that a finished request leaves behind, unless a run is still at work there."""
    if not _locked(folder):
        for name in LEFTOVERS:
            shutil.rmtree(folder / name, ignore_errors=True)


def _locked(folder: Path) -> bool:
    """Whether a run holds the folder's lock."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _has_ended(child: subprocess.Popen) -> bool:
    """Whether it has ended. It is not reaped, so its id cannot pass to a stranger before the group is swept."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _sweep(child: subprocess.Popen) -> int:
    """Kill what is left of the child's process group, reap the child, return its exit code."""
    _signal_group(child, signal.SIGKILL)
    return child.wait()


def _signal_group(child: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)   # a session leader's group carries its own id


def _last_line(file: Path) -> str:
    try:
        lines = file.read_text(errors="replace")[-4000:].strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:500] if lines else "it wrote nothing"
