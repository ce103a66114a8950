"""Run the pipeline on this machine, through Kubeflow Pipelines' own local runner.

A run has a folder: parameters.json goes in; progress.jsonl, run.log and artifacts/ grow; result.json comes last.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from components.context import CHECKPOINTS, MARK, PROGRESS
from pipelines.parameters import RunParameters
from redoubt.errors import RedoubtError

STEPS = ("begin", "prepare_data", "train", "evaluate", "fit_detector", "register", "gate")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended, with the version and the reason: `promoted`, `refused` by the gate, `waiting` for a person
    after the gate passed it, or `failed`."""

    status: str
    version: int | None = None
    reason: str = ""


def start(parameters: RunParameters | dict, folder: Path, module: str = "pipelines.local") -> subprocess.Popen:
    """Start a run in a process of its own, which writes everything to `folder`.

    Args:
        module: whose `main(folder)` it is; the pipeline for one model by default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "parameters.json", parameters if isinstance(parameters, dict) else parameters.to_json())
    with (folder / "run.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", module, str(folder)], stdout=log,
                                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)


def follow(process: subprocess.Popen, folder: Path, event: Callable[[dict], None] = lambda row: None) -> RunResult:
    """Wait for a run that `start` began, passing on its progress events as they come."""
    seen = 0
    try:
        while True:
            ended = process.poll() is not None
            rows = read_progress(folder)
            for row in rows[seen:]:
                event(row)
            seen = len(rows)
            if ended:
                break
            time.sleep(0.2)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)   # the run and the step that it is in: a group of their own
        process.wait()
        raise
    return read_result(folder) or RunResult(status="failed", reason=failure(folder))


def execute(parameters: RunParameters, folder: Path) -> RunResult:
    """Run the pipeline in this process; output goes to wherever this process writes."""
    os.environ[PROGRESS] = str(folder / "progress.jsonl")
    os.environ.setdefault(CHECKPOINTS, str(folder / "checkpoints"))   # a retraining run's next attempt finds it
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from kfp import local

    from pipelines.chain import pipeline

    with shell_safe_python():
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "artifacts"),
                   raise_on_error=True)
        try:
            outputs = pipeline(**parameters.to_json()).outputs
        except RuntimeError as error:   # kfp's own word for a failed task; the reason is in the step's log
            return RunResult(status="failed", reason=failure(folder) or str(error))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)   # nothing is left to go on from
    return RunResult(status=outputs["status"], version=int(outputs["version"]), reason=outputs["reason"])


@contextlib.contextmanager
def shell_safe_python():
    """kfp puts sys.executable into a shell command as it is, so a path with a space must be quoted there."""
    plain = sys.executable
    sys.executable = shlex.quote(plain)
    try:
        yield
    finally:
        sys.executable = plain


def read_progress(folder: Path) -> list[dict]:
    """The events so far; a line that is still being written is left for the next time."""
    with contextlib.suppress(FileNotFoundError):
        lines = (folder / "progress.jsonl").read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]
    return []


def read_result(folder: Path) -> RunResult | None:
    """The result of an ended run, None before."""
    with contextlib.suppress(FileNotFoundError):
        return RunResult(**json.loads((folder / "result.json").read_text()))
    return None


def failure(folder: Path) -> str:
    """Why a run failed, in one line: the failing step's own word, else the last line of the log."""
    failed = [row["reason"] for row in read_progress(folder) if row.get("state") == "failed"]
    if failed:
        return failed[-1]
    lines = (folder / "run.log").read_text(errors="replace").splitlines() if (folder / "run.log").is_file() else []
    marked = [line.split(MARK, 1)[1].strip() for line in lines if MARK in line]
    return (marked or [line for line in lines if line.strip()] or ["the run ended without a word"])[-1][:500]


def write_json(path: Path, value: dict) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)


def main(folder: Path) -> int:
    """Run what `folder`/parameters.json asks for and write `folder`/result.json. Returns the exit code."""
    try:
        result = execute(RunParameters.from_json(json.loads((folder / "parameters.json").read_text())), folder)
    except RedoubtError as error:
        result = RunResult(status="failed", reason=str(error))
    write_json(folder / "result.json", asdict(result))
    return 1 if result.status == "failed" else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
