"""The drill's timeline: the server's status, read twice a second by a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

from redoubt.errors import RedoubtError

SECONDS = 0.5


@contextmanager
def watched(status: Callable[[], dict], rows: list[dict], started: float):
    """While the block runs, append to `rows` what `status` says: time since `started`, requests, the share of new
    distinct inputs that were flagged (None without any), the monitor's statistic and its alarm line.
    """
    stop = threading.Event()

    def read() -> None:
        last = {"distinct": 0, "flagged": 0}
        while not stop.wait(SECONDS):
            try:
                said = status()
            except RedoubtError:
                continue
            now = said["monitor"] or last
            seen, flagged = now["distinct"] - last["distinct"], now["flagged"] - last["flagged"]
            if seen < 0:   # another model, counted afresh
                seen, flagged = now["distinct"], now["flagged"]
            rows.append({
                "t": round(time.time() - started, 2), "requests": said["requests"]["total"],
                "flagged_share": flagged / seen if seen else None,
                "statistic": now.get("statistic"), "threshold": now.get("threshold"),
            })
            last = now

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
