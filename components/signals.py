"""What a step does when its pod is told to go."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Inside this block a SIGTERM raises SystemExit, so that every `finally` on the way out has its turn.

    Only the main thread may take signals; in any other the block changes nothing.
    """
    def terminated(number, frame) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
