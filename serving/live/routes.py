"""The page's files and its feed of server-sent events."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from serving.live.feed import Feed

FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript", "charts.js": "text/javascript",
         "icon.svg": "image/svg+xml"}
MOST_READERS = 32
_LOOK_SECONDS, _QUIET_SECONDS = 0.25, 15.0


@cache
def _file(name: str) -> tuple[bytes, str]:
    content = files("serving.live").joinpath("page", name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:16]}"'


def live_router(feed: Feed) -> APIRouter:
    """Routes of the page: `/`, `/live/FILE` and `/live/events`."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return _serve("page.html", request)

    @router.get("/live/events", tags=["status"], response_class=StreamingResponse,
                responses={200: {"content": {"text/event-stream": {}}}})
    async def events(request: Request) -> StreamingResponse:
        """Server-sent events: `history` once, then a `frame` a second with everything that `/status` shows and more."""
        if feed.readers >= MOST_READERS:
            raise HTTPException(503, f"{MOST_READERS} pages are open already: close one", {"Retry-After": "10"})
        return StreamingResponse(_events(feed, request), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    @router.get("/live/{name}", include_in_schema=False)
    async def asset(name: str, request: Request) -> Response:
        if name not in FILES:
            raise HTTPException(404, f"there is no file {name!r} of the page")
        return _serve(name, request)

    return router


def _serve(name: str, request: Request) -> Response:
    content, tag = _file(name)
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=FILES[name], headers=headers)


async def _events(feed: Feed, request: Request) -> AsyncIterator[str]:
    quiet = 0.0
    with feed.reading() as last:
        yield f"event: history\ndata: {json.dumps(feed.history.rows(), separators=(',', ':'))}\n\n"
        while not feed.closed and not await request.is_disconnected():
            number, frame = feed.latest()
            if number != last:
                last, quiet = number, 0.0
                yield f"event: frame\nid: {number}\ndata: {frame}\n\n"
            elif quiet >= _QUIET_SECONDS:
                quiet = 0.0
                yield ": still here\n\n"
            await asyncio.sleep(_LOOK_SECONDS)
            quiet += _LOOK_SECONDS
