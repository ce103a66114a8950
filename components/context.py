"""What every component does besides its step: say where the run stands, and put a failure into one line."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from redoubt.errors import InvalidInput

PROGRESS = "REDOUBT_PROGRESS"   # names a file that gets one line of JSON for each event
CHECKPOINTS = "REDOUBT_CHECKPOINTS"   # names a folder that outlives a step's process, for what it can be resumed from
MARK = "redoubt: error:"        # stands before the reason in a step's log


def report(**event) -> None:
    """Append an event to the progress file, if the environment names one."""
    if os.environ.get(PROGRESS):
        with Path(os.environ[PROGRESS]).open("a") as file:
            file.write(json.dumps({"at": time.time(), **event}) + "\n")


@contextmanager
def step(name: str):
    """Report start and end of the step `name`; yields a function that reports further events of it."""
    def event(row: dict) -> None:
        report(step=name, **row)
        print(f"{name}: {json.dumps(row)}", flush=True)

    report(step=name, state="running")
    start = time.perf_counter()
    try:
        yield event
    except Exception as error:
        reason = f"{name}: {error or type(error).__name__}"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason += ": the volume is full; free space on it, or give it more"
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason += f": user {os.getuid()} may not; a volume must be open to the user that steps run as"
        print(f"{MARK} {reason}", flush=True)
        report(step=name, state="failed", reason=reason, mistake=isinstance(error, InvalidInput))
        raise
    report(step=name, state="done", seconds=round(time.perf_counter() - start, 2))


Progress = Callable[[dict], None]
