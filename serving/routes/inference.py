"""Predictions: tensors of the protocol, and single pictures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json
from starlette.datastructures import UploadFile

from redoubt.errors import InvalidInput
from serving import protocol
from serving.images import decode_image
from serving.model import Prediction
from serving.problems import Forbidden, Late
from serving.routes.schemas import IMAGE_ANSWERS, IMAGE_DOCUMENT, INFER_ANSWERS, INFER_DOCUMENT
from serving.server import Server

_HEADER_LENGTH = "inference-header-content-length"
_INLINE = 2**19   # bytes that are read on the event loop: a thread would cost more than the millisecond that they take


def inference_routes(server: Server) -> APIRouter:
    routes = APIRouter()
    engine, settings = server.engine, server.settings

    async def answer(request: Request, loaded, x, timeout: float | None = None, name: str | None = None) -> Prediction:
        state = request.state
        bound = settings.request_timeout_seconds
        deadline = state.began + (bound if timeout is None else min(timeout, bound))
        names = (state.request_id,) if name in (None, state.request_id) else (state.request_id, name)
        prediction = await engine.predict(loaded, x, client=state.principal.name, deadline=deadline, names=names)
        if settings.policy == "block" and prediction.flagged is not None and prediction.flagged.any():
            rows = prediction.flagged.nonzero()[0].tolist()
            raise Forbidden(f"refused: the input looks adversarial{'' if len(x) == 1 else f' (inputs {rows[:20]})'}")
        return prediction

    @routes.post(
        "/v2/models/{name}/infer", tags=["inference"], responses=INFER_ANSWERS, openapi_extra=INFER_DOCUMENT,
        response_class=Response,
    )
    @routes.post(
        "/v2/models/{name}/versions/{version}/infer", tags=["inference"], responses=INFER_ANSWERS,
        openapi_extra=INFER_DOCUMENT, response_class=Response,
    )
    async def infer(request: Request) -> Response:
        """Open Inference Protocol v2: labels, probabilities and verdicts for a batch of inputs, as JSON or binary
        tensors."""
        name, version = request.path_params["name"], request.path_params.get("version")
        server.check_name(name)
        loaded = engine.find(version)
        length = _header_length(request)
        body = await _body(server, request)
        asked = await _off_loop(
            len(body), protocol.decode, body, loaded.bundle.architecture.input_shape, max_batch=settings.max_batch,
            json_length=length,
        )
        del body
        prediction = await answer(request, loaded, asked.x, asked.timeout, asked.id)
        outputs = protocol.visible(prediction.outputs, server.told())
        content, json_length = await _off_loop(
            128 * len(asked.x) * len(loaded.bundle.classes), protocol.encode, outputs, asked, model_name=name,
            version=prediction.loaded.version, request_id=request.state.request_id,
        )
        if json_length is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={_HEADER_LENGTH: str(json_length)})

    @routes.post(
        "/v2/models/{name}/image", tags=["inference"], responses=IMAGE_ANSWERS, openapi_extra=IMAGE_DOCUMENT,
        response_class=Response,
    )
    async def image(request: Request) -> Response:
        """One PNG or JPEG, as the raw body or as the multipart field `file`: label and verdict as a flat object."""
        server.check_name(request.path_params["name"])
        loaded = engine.require()
        data = await _picture(server, request)
        x = await asyncio.to_thread(
            decode_image, data, loaded.bundle.architecture.input_shape, max_side=settings.max_image_side
        )
        prediction = await answer(request, loaded, x)
        outputs = protocol.visible(prediction.outputs, server.told())
        return Response(to_json(_flat(prediction, outputs, server)), media_type="application/json")

    return routes


def _header_length(request: Request) -> int | None:
    text = request.headers.get(_HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise InvalidInput("Inference-Header-Content-Length must be a whole number: the bytes of JSON in the body")
    return int(text)


async def _off_loop(size: int, work: Callable, *args, **named):
    """Do `work` here when it is small, in a thread when it would hold up everybody else."""
    if size <= _INLINE:
        return work(*args, **named)
    return await asyncio.to_thread(work, *args, **named)


async def _body(server: Server, request: Request) -> bytes:
    try:
        async with asyncio.timeout(_left(server, request)):
            return await request.body()
    except TimeoutError:
        raise Late("the body did not come in time") from None


def _left(server: Server, request: Request) -> float:
    return server.settings.request_timeout_seconds - (time.monotonic() - request.state.began)


async def _picture(server: Server, request: Request) -> bytes:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await _body(server, request)
    try:
        async with asyncio.timeout(_left(server, request)), request.form(max_files=1, max_fields=8) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise InvalidInput("the form has no file in its field `file`")
            return await file.read()
    except TimeoutError:
        raise Late("the body did not come in time") from None


def _flat(prediction: Prediction, outputs: dict, server: Server) -> dict:
    values = {key: value[0].tolist() for key, value in outputs.items()}
    return {
        "model_name": server.settings.model_name, "model_version": prediction.loaded.version,
        "class": prediction.loaded.bundle.classes[values["label"]],
        "probability": values["probabilities"][values["label"]], **values,
    }
