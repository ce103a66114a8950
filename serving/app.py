"""The HTTP application: its layers and routes put together."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from redoubt import __version__
from serving.champion import Champions
from serving.front import Front
from serving.launcher import Launcher
from serving.live.routes import live_router
from serving.routes.docs import docs_routes
from serving.routes.errors import add_errors
from serving.routes.health import health_routes
from serving.routes.inference import inference_routes
from serving.routes.labels import label_routes
from serving.routes.operations import operation_routes
from serving.routes.status import status_routes
from serving.security import Access
from serving.server import Server
from serving.settings import Settings

_READERS = 2   # threads that read large bodies and pictures


def create_app(
    settings: Settings, *, registry: Champions | None = None, launcher: Launcher | None = None,
    access: Access | None = None,
) -> FastAPI:
    """The application; its threads start and end with its lifespan.

    Args:
        registry, launcher: stand-ins for the ones that the settings describe.
        access: the door, where it is shared with other applications; one of its own when None.

    Raises:
        HomeUnusable: when the home folder cannot be used or another server holds it.
        InvalidInput: when the settings would let strangers in.
    """
    server = Server(settings, registry=registry, launcher=launcher, access=access)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_READERS, "read"))
        try:
            server.start()
            yield
        finally:
            await asyncio.to_thread(server.stop)

    app = FastAPI(
        title="Redoubt", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Predictions over the Open Inference Protocol v2, with verdicts on adversarial inputs.",
    )
    app.state.server = server
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(Front, server=server)
    add_errors(app)
    for routes in (health_routes, inference_routes, label_routes, status_routes, operation_routes):
        app.include_router(routes(server))
    app.include_router(live_router(server.feed))
    app.include_router(docs_routes(app))
    app.openapi = _documented(app, app.openapi, settings.model_name)
    return app


def _documented(app: FastAPI, make, name: str):
    """The OpenAPI document with the model's name and the ways to identify oneself, without the 422 that never comes."""
    def openapi() -> dict:
        if app.openapi_schema is None:
            document = make()
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["key"] = {"type": "http", "scheme": "bearer", "description": "An API key, or a token of the issuer"}
            for path, methods in document["paths"].items():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
                    _name_parameters(path, operation, name)
                    if not path.startswith("/v2/health/"):
                        operation["security"] = [{}, {"key": []}]
            for unused in ("HTTPValidationError", "ValidationError"):
                document["components"].get("schemas", {}).pop(unused, None)
        return app.openapi_schema

    return openapi


def _name_parameters(path: str, operation: dict, name: str) -> None:
    """Every part of the path that is to be filled in, also where a route reads it itself."""
    parameters = [one for one in operation.get("parameters", ()) if one["in"] != "path"]
    for part in re.findall(r"{(\w+)}", path):
        schema = {"type": "string", "enum": [name]} if part == "name" else {"type": "string"}
        parameters.append({"name": part, "in": "path", "required": True, "schema": schema})
    if parameters:
        operation["parameters"] = parameters
