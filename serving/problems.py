"""What is wrong right now, one line for each part of the server; `/status` shows it."""

from __future__ import annotations

import logging
import math
import threading

from redoubt.errors import RedoubtError

log = logging.getLogger("redoubt.serving")


class ServingError(Exception):
    """Base of what the HTTP layer answers with a status of its own.

    Attributes:
        status: the HTTP status.
        headers: what goes with it.
    """

    status = 500

    @property
    def headers(self) -> dict[str, str]:
        return {}


class Unauthorized(ServingError):
    """Nobody that this server knows asked; HTTP 401."""

    status = 401

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(ServingError):
    """Who asked may not do this, or the input was flagged and the policy blocks it; HTTP 403."""

    status = 403


class NotFound(ServingError):
    """No such model or version; HTTP 404."""

    status = 404


class Late(ServingError):
    """The body did not come in time; HTTP 408."""

    status = 408


class TooLarge(ServingError):
    """The request is over a size limit; HTTP 413."""

    status = 413


class Unsupported(ServingError):
    """The body has an encoding that is not taken; HTTP 415."""

    status = 415


class Busy(ServingError):
    """No room for the request now; HTTP 429, with the seconds after which to try again."""

    status = 429

    def __init__(self, message: str, retry_after: float = 1.0):
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


class NotReady(ServingError):
    """There is no model to answer with; HTTP 503."""

    status = 503


class Crowded(ServingError):
    """There are more connections than the server takes; HTTP 503, and this one is closed."""

    status = 503

    @property
    def headers(self) -> dict[str, str]:
        return {"Connection": "close"}


class Expired(ServingError):
    """The request's time ran out before it was answered; HTTP 504."""

    status = 504


class HomeUnusable(RedoubtError):
    """The home folder is no folder, cannot be written, or belongs to another server."""

    exit_code = 2


class Problems:
    """Current faults by part. Safe to use from every thread.

    Args:
        model: whose they are, for the log.
    """

    def __init__(self, model: str = ""):
        self._prefix = f"{model}: " if model else ""
        self._lock = threading.Lock()
        self._faults: dict[str, str] = {}

    def note(self, part: str, fault: str) -> None:
        """Record that `part` is at fault; a new fault is logged once."""
        with self._lock:
            changed = self._faults.get(part) != fault
            self._faults[part] = fault
        if changed:
            log.warning("%s%s: %s", self._prefix, part, fault)

    def clear(self, part: str) -> None:
        """Record that `part` works again."""
        with self._lock:
            fault = self._faults.pop(part, None)
        if fault is not None:
            log.info("%s%s: works again", self._prefix, part)

    def current(self) -> dict[str, str]:
        """Every part that is at fault now, and what is wrong with it."""
        with self._lock:
            return dict(self._faults)

    def __str__(self) -> str:
        return "; ".join(f"{part}: {fault}" for part, fault in self.current().items())
