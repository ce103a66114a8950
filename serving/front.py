"""The outermost layer, round every route: who asks, whether there is room, and what goes with every answer.

Whatever is refused here is refused before its body is read.
"""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from serving.hall import Hall
from serving.problems import Busy, Crowded, ServingError, TooLarge, Unsupported
from serving.security import needed_role
from serving.server import Server
from serving.telemetry.logs import request_id as logged_id

log = logging.getLogger("redoubt.serving")
access_log = logging.getLogger("redoubt.access")
_INFERENCE = re.compile(r"^/v2/models/[^/]+(/versions/[^/]+)?/(infer|image)$")
_PROBE = re.compile(r"^/v2/health/(live|ready)$")
_ID = re.compile(rb"^[\w.:/+=-]{1,128}$")
_SMALL = 2**20   # bytes of a body that is no inference request
_HEADERS = (
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-store"),
    ("content-security-policy",
     "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
     "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
)
_RAW_HEADERS = [(name.encode(), value.encode()) for name, value in _HEADERS]
_HSTS = (b"strict-transport-security", b"max-age=31536000")


class Admission:
    """Inference requests between arrival and answer, by number and by bytes. For one thread: the event loop's."""

    def __init__(self, most: int, most_bytes: int):
        self.requests = self.bytes = 0
        self._most, self._most_bytes = most, most_bytes

    def enter(self, size: int, wait: float) -> None:
        """Make room for one request.

        Raises:
            Busy: when there is none.
        """
        if self.requests >= self._most:
            raise Busy(f"{self.requests} requests are under way: try again later", wait)
        if self.requests and self.bytes + size > self._most_bytes:
            raise Busy("the requests under way hold all the memory there is for them: try again later", wait)
        self.requests += 1
        self.bytes += size

    def leave(self, size: int) -> None:
        self.requests -= 1
        self.bytes -= size


class Front:
    """The ASGI middleware; see the module's first lines.

    Args:
        server: whom it guards. One without an engine has no inference: whoever asks it for some learns so.
    """

    def __init__(self, app, server: Server | Hall):
        self._app, self._server, self._settings = app, server, server.settings
        self._headers = [*_RAW_HEADERS, _HSTS] if server.settings.tls_cert else _RAW_HEADERS
        server.admission = Admission(server.settings.max_in_flight, server.settings.max_in_flight_bytes)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        headers = dict(scope["headers"])
        identity = headers.get(b"x-request-id", b"")
        identity = identity if _ID.match(identity) else secrets.token_hex(12).encode()
        state = scope.setdefault("state", {})
        state["request_id"], state["principal"] = identity.decode(), None
        state["began"] = time.monotonic()
        logged_id.set(state["request_id"])

        async def note(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = list(message.get("headers", ()))
                named = {name.lower() for name, _ in own}
                own.append((b"x-request-id", identity))
                message["headers"] = own + [pair for pair in self._headers if pair[0] not in named]
            await send(message)

        method, path = scope["method"], scope["path"]
        shown = scope.get("root_path", "") + path
        inference = method == "POST" and _INFERENCE.match(path) is not None
        try:
            with self._server.traces.request(method, shown, headers) as span:
                await self._serve(scope, receive, note, headers, inference)
                if span is not None:
                    span.set_attribute("http.response.status_code", status)
        except ClientDisconnect:
            status = status or 499   # the caller went away: nobody is left to answer
        except Exception:
            log.exception("%s %s failed", method, shown)
            if status:
                raise   # half an answer is out: all that is left is to close the connection
            await JSONResponse({"error": "internal error"}, 500)(scope, receive, note)
        finally:
            self._close(scope, shown, status, time.perf_counter() - began, inference)

    async def _serve(self, scope, receive, send, headers: dict[bytes, bytes], inference: bool) -> None:
        state, room = scope["state"], None
        try:
            peer = scope["client"][0] if scope.get("client") else "unknown"
            state["address"] = address = self._server.access.client_address(peer, headers)
            access = self._server.access
            if needed_role(scope["method"], scope["path"]) is not None:   # the open paths are probes': they stay open
                if self._server.connections() > self._settings.max_connections:
                    raise Crowded("there are too many connections: try again later")
                state["principal"] = principal = await access.identify(headers, address)
                access.check(principal, scope["method"], scope["path"], headers)
            limit = self._settings.max_body_bytes if inference else min(_SMALL, self._settings.max_body_bytes)
            size = _announced(headers, limit)
            engine = self._server.engine
            if inference and engine is not None:
                engine.require()
                engine.batcher.check_room(self._settings.request_timeout_seconds)
                self._server.admission.enter(size, engine.batcher.congestion())
                room = size
        except ServingError as error:
            response = JSONResponse({"error": str(error)}, error.status, error.headers)
            await response(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            if room is not None:
                self._server.admission.leave(room)

    def _close(self, scope, shown: str, status: int, seconds: float, inference: bool) -> None:
        server, state, method = self._server, scope["state"], scope["method"]
        principal = state["principal"]
        if not _PROBE.match(scope["path"]):   # a pod without a model refuses its probes, and no request fails by that
            server.metrics.request(status, seconds if inference else None)
        if inference and server.engine is not None:
            server.count(status)
        name = principal.name if principal else "nobody"
        # What strangers are refused is for the log: they must not be able to fill a file.
        attempted = principal is not None and (principal.known or status != 403)
        if attempted and method not in ("GET", "HEAD") and needed_role(method, scope["path"]) == "operate":
            server.audit.record(
                f"{method} {shown[:200]}", principal=name, address=state.get("address", ""),
                request_id=state["request_id"], status=status, **state.get("audit", {}),
            )
        if self._settings.access_log:
            fields = {"method": method, "path": shown[:500], "status": status, "ms": round(seconds * 1e3, 2),
                      "client": name}
            access_log.info("%s %s %d %.1f ms", method, shown[:500], status, seconds * 1e3, extra={"fields": fields})


def _announced(headers: dict[bytes, bytes], limit: int) -> int:
    """Bytes that the body may have.

    Raises:
        TooLarge, Unsupported: when it announces more, or an encoding.
    """
    if headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
        raise Unsupported("the body must not be compressed: a small one may become a very large one")
    length = headers.get(b"content-length", b"")
    if not (length.isdigit() and len(length) < 20):
        return limit if b"transfer-encoding" in headers else 0
    if int(length) > limit:
        raise TooLarge(f"the body is over the limit of {limit} bytes: send fewer inputs a request")
    return int(length)


