"""The one place where errors become HTTP answers, in the protocol's own form."""

from __future__ import annotations

from http import HTTPStatus

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
_MOST_FAULTS = 5   # of one body that an error names
_MOST_OF_A_NAME = 60   # characters of a field's name, which may be the client's own
_MOST_OF_A_PATH = 200


def add_errors(app: FastAPI) -> None:
    """Explain every error that has a meaning for the client."""
    for kind in (InvalidInput, ServingError, *TOO_MUCH, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _explain)


async def _explain(request: Request, error: Exception) -> JSONResponse:
    headers = None
    if isinstance(error, HTTPException):
        status, text, headers = error.status_code, str(error.detail), error.headers
        text = _routing(request, error) or text
    elif isinstance(error, RequestValidationError):
        status, text = 400, _faults(request, error.errors())
    elif isinstance(error, ServingError):
        status, text, headers = error.status, str(error), error.headers
    elif isinstance(error, tuple(TOO_MUCH)):
        status, text = next(answer for kind, answer in TOO_MUCH.items() if isinstance(error, kind))
    else:
        status, text = 400, str(error)
    return JSONResponse({"error": text}, status, headers)


def _routing(request: Request, error: HTTPException) -> str | None:
    """The framework's own refusals in our words."""
    root = request.scope.get("root_path", "")
    path = (root + request.scope["path"])[:_MOST_OF_A_PATH]
    if error.status_code == 404 and error.detail == HTTPStatus.NOT_FOUND.phrase:
        return f"there is nothing at {path}: {root}/docs lists what there is"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"{path} does not take {request.method[:_MOST_OF_A_NAME]}: it takes {allowed}"
    return "the body is over the limit: send fewer inputs a request" if error.status_code == 413 else None


def _faults(request: Request, faults) -> str:
    """What is wrong with a request's fields, each by its path."""
    texts = [_fault(request, fault) for fault in faults[:_MOST_FAULTS]]
    return "; ".join([*texts, f"and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else texts)


def _fault(request: Request, fault: dict) -> str:
    where, *path = fault["loc"]
    if fault["type"] == "json_invalid":
        return f"the body is not JSON: {fault['ctx']['error']} (character {path[-1]})"
    if where == "body" and not path:
        return _whole_body(request, fault)
    problems = {"missing": "field required", "extra_forbidden": "there is no such field"}
    text = fault["msg"].removeprefix("Input ")
    return f"{_path(path)}: {problems.get(fault['type']) or text[:1].lower() + text[1:]}"


def _whole_body(request: Request, fault: dict) -> str:
    """The body is no object: absent, another kind of JSON, or never read as JSON for want of the header."""
    if fault["type"] == "missing":
        return "the body is missing: send a JSON object"
    if isinstance(fault["input"], bytes):
        sent = request.headers.get("content-type")
        return ("the header `Content-Type: application/json` is missing" if sent is None else
                f"the header Content-Type is {sent[:_MOST_OF_A_NAME]!r}: send `application/json`")
    return "the body must be a JSON object"


def _path(parts: list) -> str:
    """A field as a person would write it: feedback[0].labels[2]."""
    texts = (f"[{part}]" if isinstance(part, int) else f".{part[:_MOST_OF_A_NAME]}" for part in parts)
    return "".join(texts).removeprefix(".")
