"""Several models in one server: a whole application for each, told apart by the path.

    /v2/models/NAME/...     that model's application, unchanged
    /models/NAME/...        the same one, without that beginning: its live page, status, operations and so on
    /v2, /v2/health/live    the first one's: they are alike
    everything else         `serving.hall`
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

from fastapi import FastAPI

from serving.app import create_app
from serving.champion import Champions
from serving.front import Front
from serving.hall import Hall, hall_routes
from serving.per_model import per_model
from serving.routes.errors import add_errors
from serving.security import Access
from serving.settings import Settings

_PROTOCOL = re.compile(r"^/v2/models/([^/]+)(?:/|$)")
_BELOW = re.compile(r"^(/models/([^/]+))(/.*)$", re.DOTALL)
_ALIKE = ("/v2", "/v2/health/live")


def create_several(settings: Settings, *, registries: Mapping[str, Champions] | None = None) -> FastAPI:
    """The application of a server with the models of `settings.models`; the threads of all start and end with it.

    Args:
        registries: stand-ins for the registries that the settings describe, by model name.

    Raises:
        HomeUnusable: when a home folder cannot be used or another server holds it.
        InvalidInput: when the settings would let strangers in, or a model's cannot be used.
    """
    each = per_model(settings)
    access, apps, servers = Access(settings), {}, {}
    with ExitStack() as undo:
        hall = Hall(settings, access, servers)
        undo.callback(hall.stop)
        for name, own in each.items():
            apps[name] = app = create_app(own, registry=(registries or {}).get(name), access=access)
            app.router.redirect_slashes = False   # it would lead out of /models/NAME
            servers[name] = app.state.server
        undo.pop_all()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as started:
            try:
                for app in apps.values():
                    await started.enter_async_context(app.router.lifespan_context(app))
                yield
            finally:
                await asyncio.to_thread(hall.stop)

    whole = FastAPI(title="Redoubt", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None,
                    redirect_slashes=False)
    whole.state.server = hall
    whole.add_middleware(Front, server=hall)
    whole.add_middleware(Dispatch, apps=apps)
    add_errors(whole)
    whole.include_router(hall_routes(hall))
    whole.router.default = hall.nowhere
    return whole


class Dispatch:
    """The ASGI middleware that hands a request to the model that its path names; see the module's first lines."""

    def __init__(self, hall, apps: Mapping[str, FastAPI]):
        self._hall, self._apps = hall, apps

    async def __call__(self, scope, receive, send) -> None:
        app, scope = self._choose(scope) if scope["type"] == "http" else (self._hall, scope)
        await app(scope, receive, send)

    def _choose(self, scope):
        path = scope["path"]
        if path in _ALIKE:
            return next(iter(self._apps.values())), scope
        found = _PROTOCOL.match(path)
        if found and found[1] in self._apps:
            return self._apps[found[1]], scope
        found = _BELOW.match(path)
        # The router would take the beginning off a second time, after the Front has judged the path by its role.
        if found and found[2] in self._apps and not found[3].startswith("/models/"):
            return self._apps[found[2]], scope | {"path": found[3], "root_path": found[1]}
        return self._hall, scope
