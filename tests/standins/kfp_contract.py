"""The contract of Kubeflow Pipelines' REST API, read out of `kfp_server_api`, the client that its own build generates.

Which paths exist, which query parameters each takes, which model its body must be and which it answers with: none of it
is written down here by hand, so what our client sends is checked against the server's own description.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass
from functools import cache

import kfp_server_api
from kfp_server_api import api as apis
from kfp_server_api import models
from kfp_server_api.exceptions import ApiException

_NOT_A_QUERY = {"async_req", "_return_http_data_only", "_preload_content", "_request_timeout"}
_PRIMITIVES = {"str": str, "int": int, "bool": bool, "float": (int, float)}


class Broken(Exception):
    """A request or an answer that the contract does not know."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """One call of the API.

    Attributes:
        operation: as the generated client names it, such as run_service_create_run.
        path: its pattern, with the names of path parameters as groups.
        body: the model of the body; None where there is none.
        answer: the model of the answer.
    """

    operation: str
    method: str
    path: re.Pattern
    body: str | None
    query: frozenset[str]
    files: frozenset[str]
    answer: str


class _Recorded(Exception):
    pass


class _Recorder(kfp_server_api.ApiClient):
    def call_api(self, resource_path, method, *_, response_type=None, **__):
        raise _Recorded(resource_path, method, response_type)


@cache
def routes() -> tuple[Route, ...]:
    """Every call that the generated client can make."""
    found = []
    for name in dir(apis):
        service = getattr(apis, name)
        if not inspect.isclass(service):
            continue
        client = service(_Recorder())
        for operation in dir(client):
            if operation.endswith("_with_http_info"):
                found.append(_route(client, operation))
    return tuple(found)


def _route(client, operation: str) -> Route:
    call = getattr(client, operation)
    types = dict(re.findall(r":type (\w+): ([\w\[\], ]+)", call.__doc__))
    required = [name for name, parameter in inspect.signature(call).parameters.items() if name != "kwargs"]
    given = {name: "/dev/null" if types.get(name) == "file" else "x" for name in required}
    try:
        call(**given)
    except _Recorded as recorded:
        path, method, answer = recorded.args
    body = next((types[name] for name in required if hasattr(models, types.get(name, ""))), None)
    files = frozenset(name for name in required if types.get(name) == "file")
    groups = re.findall(r"\{([\w.]+)\}", path)
    query = {name for name in types if name not in _NOT_A_QUERY and types[name] != body} - files
    pattern = re.sub(r"\\\{([\w.]+)\\\}", lambda m: f"(?P<{m[1].replace('.', '_')}>[^/:]+)", re.escape(path))
    return Route(
        operation=operation.removesuffix("_with_http_info"), method=method, path=re.compile(pattern + "$"), body=body,
        query=frozenset(query - {group.replace(".", "_") for group in groups}), files=files, answer=answer,
    )


def find(method: str, path: str) -> tuple[Route, dict[str, str]]:
    """The route of a request and its path parameters.

    Raises:
        Broken: when there is none.
    """
    for route in routes():
        match = route.path.match(path)
        if match and route.method == method:
            return route, match.groupdict()
    raise Broken(f"the API has no {method} {path}")


def check(value, kind: str, where: str = "body") -> None:
    """That a JSON value is what the model `kind` says, to the last field.

    Raises:
        Broken: naming the field.
    """
    if value is None or kind in ("object", "datetime", "file"):
        return
    if kind in _PRIMITIVES:
        if not isinstance(value, _PRIMITIVES[kind]) or (kind != "bool" and isinstance(value, bool)):
            raise Broken(f"{where}: {value!r} is no {kind}")
    elif kind.startswith("list["):
        for number, item in enumerate(value):
            check(item, kind[5:-1], f"{where}[{number}]")
    elif kind.startswith("dict("):
        for key, item in value.items():
            check(item, kind[5:-1].split(", ", 1)[1], f"{where}.{key}")
    else:
        _check_model(value, getattr(models, kind), where)


def _check_model(value, model, where: str) -> None:
    choices = [text for name, text in vars(model).items() if name.isupper() and isinstance(text, str)]
    if not model.openapi_types:   # an enumeration
        if value not in choices:
            raise Broken(f"{where}: {value!r} is none of {choices}")
        return
    if not isinstance(value, dict):
        raise Broken(f"{where}: {value!r} is no {model.__name__}")
    names = {key: name for name, key in model.attribute_map.items()}
    for key, item in value.items():
        if key not in names:
            raise Broken(f"{where}.{key}: {model.__name__} has no such field")
        check(item, model.openapi_types[names[key]], f"{where}.{key}")


def parse(value: dict, kind: str):
    """The generated client's own reading of an answer: what does not fit its model is an error there, too."""
    class Text:
        data = json.dumps(value)
    try:
        return kfp_server_api.ApiClient().deserialize(Text, kind)
    except (ApiException, ValueError) as error:
        raise Broken(f"{kind}: {error}") from error
