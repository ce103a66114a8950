"""What is wrong right now, one line for each part of the server; `/status` shows it."""

from __future__ import annotations

import logging
import threading

from redoubt.errors import RedoubtError

log = logging.getLogger("redoubt.serving")


class ServingError(Exception):
    """Base of what the HTTP layer maps to a status other than 400."""


class TooLarge(ServingError):
    """The request is over a size limit; HTTP 413."""


class NotFound(ServingError):
    """No such model or version; HTTP 404."""


class NotReady(ServingError):
    """There is no model to answer with; HTTP 503."""


class HomeUnusable(RedoubtError):
    """The home folder is no folder, cannot be written, or belongs to another server."""

    exit_code = 2


class Problems:
    """Current faults by part. Safe to use from every thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: dict[str, str] = {}

    def note(self, part: str, fault: str) -> None:
        """Record that `part` is at fault; a new fault is logged once."""
        with self._lock:
            changed = self._faults.get(part) != fault
            self._faults[part] = fault
        if changed:
            log.warning("%s: %s", part, fault)

    def clear(self, part: str) -> None:
        """Record that `part` works again."""
        with self._lock:
            fault = self._faults.pop(part, None)
        if fault is not None:
            log.info("%s: works again", part)

    def __str__(self) -> str:
        with self._lock:
            return "; ".join(f"{part}: {fault}" for part, fault in self._faults.items())
