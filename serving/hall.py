"""What a server of several models answers for all of them: whether they are ready, their metrics, and a page of links.

`serving.several` sends here whatever belongs to no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from html import escape

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse

from serving.home import take_home
from serving.problems import NotFound, NotReady
from serving.routes.docs import CSS
from serving.routes.schemas import ServerReady
from serving.security import Access, Audit
from serving.server import Server
from serving.settings import Settings
from serving.telemetry.metrics import CONTENT_TYPE, Requests, render
from serving.telemetry.traces import Traces

_NAMED = re.compile(r"^(?:/v2)?/models/([^/]+)")
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Redoubt</title><link rel="icon" href="models/{first}/live/icon.svg"><link rel="stylesheet" href="ui/docs.css">
<main><h1>Models of this server</h1>
<table><tr><th>Live page<th>State</tr>{rows}</table>
<p>Requests go to <code>/v2/models/NAME</code>. What else a model has, such as <code>status</code> and
<code>docs</code>, lies below <code>/models/NAME/</code>; <code>/metrics</code> holds all of them.</p></main></html>
"""


class Hall:
    """Stands in the Front's eyes for a server without an engine, and in the process' eyes for all the servers.

    Args:
        servers: by model name; more may come until the first request.

    Raises:
        HomeUnusable: when the home folder cannot be used or another server holds it.
    """

    engine = admission = None
    connections = staticmethod(lambda: 0)   # as of a server

    def __init__(self, settings: Settings, access: Access, servers: Mapping[str, Server]):
        self.settings, self.access, self.servers = settings, access, servers
        self.traces, self.metrics = Traces(settings.traces), Requests()
        self._home = take_home(settings.home)
        self.audit = Audit(settings.home / "audit.jsonl")
        self._stopped = False

    @property
    def draining(self) -> bool:
        """Whether the process is about to end."""
        return any(server.draining for server in self.servers.values())

    @draining.setter
    def draining(self, value: bool) -> None:
        for server in self.servers.values():
            server.draining = value

    def close_pages(self) -> None:
        """End the feeds of every live page."""
        for server in self.servers.values():
            server.close_pages()

    def stop(self) -> None:
        """Stop every server, all at a time: each may have a run to end. A second call does nothing."""
        if self._stopped:
            return
        self._stopped = True
        with ThreadPoolExecutor(len(self.servers) or 1, "stop") as threads:
            ended = [threads.submit(server.stop) for server in self.servers.values()]
        self.audit.stop()
        self.traces.stop()
        self._home.close()
        for one in ended:
            one.result()   # what went wrong in one must not keep the others from their end

    def faults(self) -> dict[str, str]:
        """The models that are not ready, and why."""
        found = {}
        for name, server in self.servers.items():
            try:
                server.check_ready()
            except NotReady as reason:
                found[name] = str(reason)
        return found

    def page(self) -> str:
        """The models with links to their live pages. Open to all, as `/v2/health/ready` is, and so it tells no more."""
        faults = self.faults()
        rows = "".join(
            f'<tr><td><a href="models/{escape(name)}/">{escape(name)}</a><td>{escape(faults.get(name, "ready"))}</tr>'
            for name in self.servers
        )
        return _PAGE.format(first=escape(next(iter(self.servers))), rows=rows)

    def check_name(self, name: str) -> None:
        """Raises NotFound for a model that is not here."""
        if name not in self.servers:
            raise NotFound(f"there is no model {name[:100]!r} here: this server has {', '.join(self.servers)}")

    async def nowhere(self, scope, receive, send) -> None:
        """The last resort of the router.

        Raises:
            NotFound: always; it says what there is.
        """
        named = _NAMED.match(scope["path"])
        if named:
            self.check_name(named[1])
        raise NotFound(f"there is nothing at {scope['path'][:200]}: a model's paths begin with /v2/models/NAME or "
                       f"/models/NAME/, NAME being one of {', '.join(self.servers)}; for all of them there are /, "
                       "/metrics, /v2, /v2/health/live and /v2/health/ready")


def hall_routes(hall: Hall) -> APIRouter:
    routes = APIRouter()

    @routes.get("/")
    def page() -> Response:
        return Response(hall.page(), media_type="text/html")

    @routes.get("/ui/docs.css")
    def style() -> Response:
        return Response(CSS, media_type="text/css")

    @routes.get("/v2/health/ready")
    async def ready() -> ServerReady:
        faults = hall.faults()
        if faults:
            raise NotReady("not ready: " + ", ".join(f"{name} ({reason})" for name, reason in faults.items()))
        return ServerReady(ready=True)

    @routes.get("/metrics")
    def metrics() -> Response:
        instruments = {"": hall.metrics} | {name: server.metrics for name, server in hall.servers.items()}
        return Response(render(instruments), media_type=CONTENT_TYPE)

    @routes.get("/models/{name}")
    async def below(name: str) -> Response:
        hall.check_name(name)
        return RedirectResponse(f"{name}/")   # relative, for proxies that put something in front

    return routes
