"""The HTTP layer: routes, limits, and the one place where errors become statuses."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import to_json
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import ClientDisconnect

from redoubt import __version__
from redoubt.errors import InvalidInput
from serving import protocol
from serving.champion import Champions
from serving.engine import LoadedModel
from serving.images import decode_image
from serving.launcher import Launcher
from serving.live.routes import live_router
from serving.problems import NotFound, NotReady, TooLarge
from serving.server import Server
from serving.settings import Settings

log = logging.getLogger("redoubt.serving")
STATUSES = {InvalidInput: 400, NotFound: 404, TooLarge: 413, NotReady: 503}
# What a request may drive Python into, though its size is within the limits: the request's fault, in our words.
TOO_MUCH = {
    MemoryError: (413, "the request needs more memory than there is: send fewer inputs a request"),
    RecursionError: (400, "the request is nested too deeply"),
    OverflowError: (400, "the request holds a number that is too large"),
}
INFER, IMAGE = "/v2/models/{name}/infer", "/v2/models/{name}/image"


def create_app(
    settings: Settings, *, registry: Champions | None = None, launcher: Launcher | None = None
) -> FastAPI:
    """The application; its threads start and end with its lifespan.

    Args:
        registry, launcher: stand-ins for the ones that the settings describe.

    Raises:
        HomeUnusable: when the home folder cannot be used or another server holds it.
    """
    server = Server(settings, registry=registry, launcher=launcher)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.start()
        yield
        server.stop()

    app = FastAPI(title="Redoubt", version=__version__, lifespan=lifespan)
    app.state.server = server
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(_Front, server=server)
    for kind in (*STATUSES, *TOO_MUCH, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _explain)
    _add_health(app, server)
    _add_models(app, server)
    _add_inference(app, server)
    app.include_router(live_router(server.feed))
    return app


def _add_health(app: FastAPI, server: Server) -> None:
    @app.get("/v2/health/live", tags=["health"])
    async def live() -> dict:
        """The process answers."""
        return {"live": True}

    @app.get("/v2/health/ready", tags=["health"])
    async def ready() -> dict:
        """A model is loaded and warm; 503 with the reason while none is."""
        server.engine.require()
        return {"ready": True}

    @app.get("/v2", tags=["metadata"])
    async def about() -> dict:
        """Name and version of the server."""
        return {"name": "redoubt", "version": __version__, "extensions": []}

    @app.get("/status", tags=["status"])
    def status() -> dict:
        """Champion, monitor, campaigns, retraining requests, swaps and requests, as they stand."""
        return server.status()


def _add_models(app: FastAPI, server: Server) -> None:
    def find(name: str, version: str | None) -> LoadedModel:
        _check_name(server, name)
        loaded = server.engine.require()
        if version not in (None, loaded.version):
            raise NotFound(f"version {version} is not served: version {loaded.version} is")
        return loaded

    @app.get("/v2/models/{name}", tags=["metadata"])
    @app.get("/v2/models/{name}/versions/{version}", tags=["metadata"])
    async def describe(name: str, version: str | None = None) -> dict:
        """Inputs and outputs of the model."""
        loaded = find(name, version)
        return protocol.metadata(loaded.bundle, model_name=name, versions=[loaded.version])

    @app.get("/v2/models/{name}/ready", tags=["health"])
    @app.get("/v2/models/{name}/versions/{version}/ready", tags=["health"])
    async def model_ready(name: str, version: str | None = None) -> dict:
        """The model, or this version of it, is loaded and warm."""
        find(name, version)
        return {"name": name, "ready": True}


def _add_inference(app: FastAPI, server: Server) -> None:
    settings, engine = server.settings, server.engine

    def infer_now(body: bytes) -> bytes:
        loaded = engine.require()
        request = protocol.decode(body, loaded.bundle.architecture.input_shape, max_batch=settings.max_batch)
        tensors = engine.predict(loaded, request.x).tensors()
        answer = protocol.encode(tensors, request, model_name=settings.model_name, version=loaded.version)
        return to_json(answer)

    def look_now(data: bytes) -> bytes:
        loaded = engine.require()
        x = decode_image(data, loaded.bundle.architecture.input_shape, max_side=settings.max_image_side)
        tensors = engine.predict(loaded, x).tensors()
        return to_json(_flat(tensors, loaded, settings.model_name))

    @app.post(INFER, tags=["inference"])
    async def infer(name: str, request: Request) -> Response:
        """Open Inference Protocol v2, JSON: labels, probabilities and verdicts for a batch of inputs."""
        _check_name(server, name)
        engine.require()
        if "inference-header-content-length" in request.headers:
            raise InvalidInput("binary tensors are not taken: send `data` as JSON")
        return _json(await engine.run(infer_now, await request.body()))

    @app.post(IMAGE, tags=["inference"])
    async def image(name: str, request: Request) -> Response:
        """One PNG or JPEG, as the raw body or as the multipart field `file`: label and verdict as a flat object."""
        _check_name(server, name)
        engine.require()
        return _json(await engine.run(look_now, await _picture(request)))


def _check_name(server: Server, name: str) -> None:
    if name != server.settings.model_name:
        raise NotFound(f"there is no model {name!r} here: this server has {server.settings.model_name!r}")


async def _picture(request: Request) -> bytes:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await request.body()
    async with request.form(max_files=1, max_fields=8) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidInput("the form has no file in its field `file`")
        return await file.read()


def _flat(tensors: dict, loaded: LoadedModel, name: str) -> dict:
    values = {key: tensor[0].tolist() for key, tensor in tensors.items()}
    return {
        "model_name": name, "model_version": loaded.version,
        "class": loaded.bundle.classes[values["label"]],
        "probability": values["probabilities"][values["label"]], **values,
    }


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


async def _explain(_: Request, error: Exception) -> JSONResponse:
    """Every error that has a meaning for the client, in the protocol's own form."""
    headers = None
    if isinstance(error, HTTPException):
        status, text, headers = error.status_code, str(error.detail), error.headers
        if status == 413:
            text = "the body is over the limit: send fewer inputs a request"
    elif isinstance(error, RequestValidationError):
        status, text = 400, "; ".join(str(fault["msg"]) for fault in error.errors())
    elif isinstance(error, tuple(TOO_MUCH)):
        status, text = next(answer for kind, answer in TOO_MUCH.items() if isinstance(error, kind))
    else:
        status = next(code for kind, code in STATUSES.items() if isinstance(error, kind))
        text = str(error)
    return JSONResponse({"error": text}, status, headers)


class _Front:
    """The outermost layer: refuses a body that announces itself as too large, answers for faults of ours without a
    word about them, and counts inference requests."""

    def __init__(self, app, server: Server):
        self._app, self._server = app, server

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def note(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            limit = self._server.settings.max_body_bytes
            if _announced(scope) > limit:
                text = f"the body is over the limit of {limit} bytes: send fewer inputs a request"
                await JSONResponse({"error": text}, 413)(scope, receive, note)
            else:
                await self._app(scope, receive, note)
        except ClientDisconnect:
            status = status or 499   # the caller went away: nobody is left to answer
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if status:
                raise   # half an answer is out: all that is left is to close the connection
            await JSONResponse({"error": "internal error"}, 500)(scope, receive, note)
        finally:
            if scope["method"] == "POST" and scope["path"].startswith("/v2/models/"):
                self._server.count(status >= 500)


def _announced(scope) -> int:
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() and length.isascii() else 0
