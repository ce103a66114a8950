"""The training on several processes of this machine: `torchrun` round `components.train.work`.

The step stays one process to whoever runs it: it starts the others, passes on what the first of them reports, ends them
when it is ended, and raises their error as its own. The processes share a folder: work.json goes in, events.jsonl
grows, and each leaves done.RANK or error.RANK.json. `alive` is locked for as long as the step lives; on several nodes,
whose volume may know no locks, the step writes `beat` anew at every look instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from components.signals import sigterm_raises
from components.train.trainjob import BEAT, LEFT
from components.train.work import Work
from redoubt import errors
from redoubt.errors import InvalidInput, RedoubtError
from redoubt.training.distributed import processes

GRACE = 20.0   # seconds between SIGTERM and SIGKILL
SILENCE = 600.0   # seconds without a beat after which the step is taken for gone
_ROOT = Path(__file__).parents[2]


def count(asked: int) -> int:
    """How many processes to run: `asked`, or for 0 one for each GPU, at least 1.

    Raises:
        InvalidInput: when there are GPUs, but fewer than processes.
    """
    gpus = torch.cuda.device_count()
    if asked < 0 or (gpus and asked > gpus):
        raise InvalidInput(f"processes must lie between 0 and {gpus or 'the number of cores'} here, not {asked}")
    return asked or gpus or 1


def run(work: Work, size: int, progress: Callable[[dict], None], pulse: Callable[[int, dict], None]) -> None:
    """Do `work` with `size` processes.

    Raises:
        RedoubtError: the error that ended the first of them, under its own class where it is one of ours.
    """
    with tempfile.TemporaryDirectory(prefix="redoubt-together-") as name, (Path(name) / "alive").open("w") as alive:
        folder = Path(name)
        fcntl.flock(alive, fcntl.LOCK_EX)
        (folder / "work.json").write_text(json.dumps(work.to_json()))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}",
                   "--max-restarts=0", "-m", "components.train.together", name]
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // size))}
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                 env=threads | os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
        with _ended_with_us(child):
            _follow(child, folder / "events.jsonl", progress, pulse)
        if child.returncode:
            raise _cause(folder, size, child.returncode)


def _follow(child: subprocess.Popen, events: Path, progress, pulse) -> None:
    """Pass events on until the processes have ended."""
    seen, ended = 0, False
    while not ended:
        ended = child.poll() is not None
        text = events.read_text() if events.exists() else ""
        whole = text[seen : text.rfind("\n") + 1]
        seen += len(whole)
        for line in whole.splitlines():
            event = json.loads(line)
            pulse(event["pulse"], event["values"]) if "pulse" in event else progress(event)
        if not ended:
            time.sleep(0.1)


@contextlib.contextmanager
def _ended_with_us(child: subprocess.Popen):
    """Whatever ends this block, a SIGTERM included, ends the child first."""
    with sigterm_raises():
        try:
            yield
        finally:
            if child.poll() is None:
                child.terminate()   # torchrun passes it on to the processes
                try:
                    child.wait(GRACE)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


def _cause(folder: Path, size: int, code: int) -> RedoubtError:
    """The error that came first: the others fail only because they wait for a process that is gone."""
    failed = [json.loads(file.read_text()) for file in folder.glob("error.*.json")]
    own = sorted((error for error in failed if not error["lost"]), key=lambda error: error["at"])
    if own:
        first = own[0]
        known = getattr(errors, first["type"], None)
        if isinstance(known, type) and issubclass(known, RedoubtError):
            return known(first["message"], **({"rows": first["rows"]} if first["rows"] else {}))
        return RedoubtError(f"process {first['rank']} of {size} failed: {first['type']}: {first['message']}")
    said = {error["rank"] for error in failed} | {int(file.suffix[1:]) for file in folder.glob("done.*")}
    if silent := sorted(set(range(size)) - said):
        which = ", ".join(map(str, silent))
        return RedoubtError(f"process {which} of {size} ended without a word: killed, or out of memory")
    return RedoubtError(f"training on {size} processes failed with exit code {code}; its log says why")


def main(folder: Path) -> int:
    """What torchrun starts: one of the processes. Returns its exit code."""
    rank = int(os.environ["RANK"])
    if (folder / LEFT).exists():   # a pod that its Job starts again
        return 143
    if (folder / "alive").exists():
        threading.Thread(target=_end_with, args=(folder / "alive",), daemon=True).start()
    if (folder / BEAT).exists():
        threading.Thread(target=_end_without_beat, args=(folder,), daemon=True).start()
    try:
        with processes(), (folder / "events.jsonl").open("a", buffering=1) as events:
            def tell(event: dict) -> None:
                if rank == 0:
                    events.write(json.dumps(event) + "\n")

            Work.from_json(json.loads((folder / "work.json").read_text())).run(
                tell, lambda step, values: tell({"pulse": step, "values": values}))
    except Exception as error:
        words = ("gloo", "NCCL", "Connection closed")   # of the ways to say that another process is gone
        lost = isinstance(error, torch.distributed.DistError) or (
            isinstance(error, RuntimeError) and any(word in str(error) for word in words))
        temporary = folder / f".error.{rank}"
        temporary.write_text(json.dumps({
            "rank": rank, "at": time.time(), "type": type(error).__name__, "message": str(error), "lost": lost,
            "rows": getattr(error, "rows", [])}))
        temporary.replace(folder / f"error.{rank}.json")
        if isinstance(error, RedoubtError):
            return 1
        raise
    (folder / f"done.{rank}").touch()
    return 0


def _end_with(alive: Path) -> None:
    """End this process when the step is gone, however it went: the kernel gives its lock away."""
    try:
        with alive.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
    except OSError:
        pass
    os._exit(143)


def _end_without_beat(folder: Path, silence: float = SILENCE, every: float = 15.0) -> None:
    """End this process when the step that made the TrainJob is gone. Nothing but this process's own clock counts."""
    last, since = "", time.monotonic()
    while time.monotonic() - since < silence:
        time.sleep(every)
        try:
            now = (folder / BEAT).read_text()
        except OSError:   # the folder was removed, or its volume stumbles
            continue
        if now != last:
            last, since = now, time.monotonic()
    print(f"the step has not been heard of for {silence:g} s: it is gone, and so is what this is for", flush=True)
    with contextlib.suppress(OSError):
        (folder / LEFT).touch()
    os._exit(143)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
