"""The one place where errors become HTTP answers, in the protocol's own form."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from redoubt.errors import InvalidInput
from serving.problems import ServingError

# What a request may drive Python into, though its size is within the limits: the request's fault, in our words.
TOO_MUCH = {
    MemoryError: (413, "the request needs more memory than there is: send fewer inputs a request"),
    RecursionError: (400, "the request is nested too deeply"),
    OverflowError: (400, "the request holds a number that is too large"),
}


def add_errors(app: FastAPI) -> None:
    """Explain every error that has a meaning for the client."""
    for kind in (InvalidInput, ServingError, *TOO_MUCH, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _explain)


async def _explain(_: Request, error: Exception) -> JSONResponse:
    headers = None
    if isinstance(error, HTTPException):
        status, text, headers = error.status_code, str(error.detail), error.headers
        if status == 413:
            text = "the body is over the limit: send fewer inputs a request"
    elif isinstance(error, RequestValidationError):
        status, text = 400, "; ".join(str(fault["msg"]) for fault in error.errors())
    elif isinstance(error, ServingError):
        status, text, headers = error.status, str(error), error.headers
    elif isinstance(error, tuple(TOO_MUCH)):
        status, text = next(answer for kind, answer in TOO_MUCH.items() if isinstance(error, kind))
    else:
        status, text = 400, str(error)
    return JSONResponse({"error": text}, status, headers)
