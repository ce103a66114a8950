"""What a cluster may answer instead of what was asked for, each with its exit code and a line on what to do."""

from __future__ import annotations

from redoubt.errors import RedoubtError


class ClusterError(RedoubtError):
    """A call to a cluster's API did not succeed.

    Attributes:
        status: the HTTP status; 0 when there was no answer.
    """

    status = 0


class Unreachable(ClusterError):
    """There was no answer: nobody listens, the name is unknown, the connection was cut, or it took too long."""


class Busy(ClusterError):
    """The server asks to come back later (429) or is at fault itself (5xx).

    Attributes:
        after: seconds that it asks to wait; 0 when it does not say.
    """

    def __init__(self, message: str, *, status: int = 503, after: float = 0.0):
        super().__init__(message)
        self.status, self.after = status, after


class Unauthorized(ClusterError):
    """The server does not know who asks (401): no token, or one that has expired."""

    exit_code, status = 2, 401


class Forbidden(ClusterError):
    """The server knows who asks and does not allow it (403)."""

    exit_code, status = 2, 403


class NotFound(ClusterError):
    """What was named does not exist (404)."""

    exit_code, status = 2, 404


class Conflict(ClusterError):
    """It exists already, or has changed since it was read (409)."""

    status = 409


class Rejected(ClusterError):
    """The server understood the request and finds it wrong (400, 422 and others)."""

    exit_code, status = 2, 400


RETRYABLE = (Unreachable, Busy)
