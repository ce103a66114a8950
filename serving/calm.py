"""What keeps the server's longer work from holding up its answers: the interpreter's own pauses, and loading a model.

Python lets one thread run at a time. A thread that loads a model, or a full garbage collection, holds it while answers
wait; here is how they give way.
"""

from __future__ import annotations

import atexit
import gc
import threading
import time

_PAUSE = 0.01            # seconds; enough for a batch to be answered
_once = threading.Lock()


def freeze() -> None:
    """Take what is in memory by now out of the garbage collector's rounds; once in a process, before it is ready.

    Libraries are 300,000 objects that never go. A full collection looked through them for 0.2 to 0.35 s every few
    seconds of load, and nothing was answered meanwhile.
    """
    if _once.acquire(blocking=False):   # never released: what came later is no library
        gc.collect()
        gc.freeze()
        atexit.register(gc.unfreeze)   # or libraries complain of leaks at the end


def pause() -> None:
    """Between two steps of something long: let the answers that wait go first."""
    time.sleep(_PAUSE)


def no_pause() -> None:
    """For work that nobody waits behind."""
