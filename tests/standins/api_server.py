"""A Kubernetes API server of a few hundred lines: names are unique, resourceVersions grow, stale writes are refused.

What the code under test relies on is kept strictly, and everything else is refused: unknown kinds, wrong verbs, objects
without the fields that the real server wants, and whatever the rules of a Role do not allow. Faults come on order.
"""

from __future__ import annotations

import copy
import itertools
import json
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import httpx

PLURALS = {
    ("v1", "configmaps"): "ConfigMap", ("v1", "events"): "Event", ("v1", "pods"): "Pod",
    ("v1", "secrets"): "Secret", ("v1", "serviceaccounts"): "ServiceAccount",
    ("v1", "persistentvolumeclaims"): "PersistentVolumeClaim",
    ("coordination.k8s.io/v1", "leases"): "Lease",
    ("trainer.kubeflow.org/v1alpha1", "trainjobs"): "TrainJob", ("argoproj.io/v1alpha1", "workflows"): "Workflow",
}
VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
LARGEST = 1024 * 1024   # bytes of a ConfigMap's data


@dataclass(frozen=True)
class Call:
    """A call that was made: what RBAC looks at."""

    verb: str
    group: str
    resource: str
    name: str

    @property
    def permission(self) -> tuple[str, str, str]:
        return self.verb, self.group, self.resource


class Cut(Exception):
    """The connection is cut: the client gets no answer."""


@dataclass
class Fault:
    """What happens instead of an answer, to the next `times` calls that `matches`.

    Attributes:
        status: HTTP status; 0 cuts the connection.
        done: whether the request is carried out all the same, so that only the answer is lost.
        seconds: how long it takes.
    """

    status: int
    times: int = 1
    matches: Callable[[Call], bool] = lambda call: True
    done: bool = False
    seconds: float = 0.0


class Faulty:
    """A server's `faults`, each taken as often as it is ordered."""

    faults: list[Fault]
    _lock: threading.RLock

    def fault(self, call: Call) -> Fault | None:
        """What is to go wrong with this call."""
        with self._lock:
            fault = next((fault for fault in self.faults if fault.times > 0 and fault.matches(call)), None)
            if fault is not None:
                fault.times -= 1
            return fault


def broken(fault: Fault, refuse: Callable[[int, str], tuple[int, dict]]) -> tuple[int, dict]:
    """The answer that a fault gives, in the words of the server."""
    if fault.status == 0:
        raise Cut
    return refuse(fault.status, f"as the test ordered: {fault.status}")


@dataclass
class ApiServer(Faulty):
    """Objects by kind, namespace and name.

    Attributes:
        rules: (verb, group, resource, names or None) that are allowed; None allows everything.
        token: what a client must bear; empty lets everybody in.
    """

    rules: list[tuple] | None = None
    token: str = ""
    objects: dict[tuple[str, str, str], dict] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    _versions: itertools.count = field(default_factory=lambda: itertools.count(1))
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # -- what a test looks at -----------------------------------------------------------------------------------

    def get(self, plural: str, name: str, namespace: str = "redoubt") -> dict | None:
        return self.objects.get((plural, namespace, name))

    def all(self, plural: str) -> list[dict]:
        return [value for (kind, *_), value in self.objects.items() if kind == plural]

    def put(self, plural: str, name: str, content: dict, namespace: str = "redoubt") -> dict:
        """Place an object as another client would."""
        with self._lock:
            metadata = {"name": name, "namespace": namespace, "uid": str(uuid.uuid4()), **content.get("metadata", {})}
            value = content | {"metadata": metadata}
            value["metadata"]["resourceVersion"] = str(next(self._versions))
            self.objects[plural, namespace, name] = value
            return value

    # -- HTTP ---------------------------------------------------------------------------------------------------

    def transport(self, before: Callable[[Call], None] = lambda call: None,
                  after: Callable[[Call], None] = lambda call: None) -> httpx.BaseTransport:
        """A client's network to this server, without sockets; `before` and `after` may raise what ends the client."""
        def handle(request: httpx.Request) -> httpx.Response:
            call = self._call(request.method, request.url.path)
            before(call)
            try:
                status, body = self.handle(request.method, str(request.url.raw_path.decode()), dict(request.headers),
                                           request.content)
            except Cut:
                raise httpx.ReadError("the connection was cut", request=request) from None
            after(call)
            if isinstance(body, str):
                return httpx.Response(status, text=body)
            return httpx.Response(status, json=body, headers={"Retry-After": "0"} if status == 429 else {})

        return httpx.MockTransport(handle)

    def handle(self, method: str, target: str, headers: dict, content: bytes) -> tuple[int, dict | str]:
        url = urlsplit(target)
        query = dict(parse_qsl(url.query))
        call = self._call(method, url.path)
        fault = self.fault(call)
        if fault and fault.seconds:
            time.sleep(fault.seconds)
        if fault and not fault.done:
            return broken(fault, refuse)
        with self._lock:
            self.calls.append(call)
            status, body = self._answer(method, url.path, call, query, headers, content)
            body = copy.deepcopy(body)
        if fault:
            return broken(fault, refuse)
        return status, body

    def _call(self, method: str, path: str) -> Call:
        api, _, plural, name, sub = self._split(path)
        group = api.rsplit("/", 1)[0] if "/" in api else ""
        verb = VERBS[method]
        if verb == "get" and not name:
            verb = "list"
        return Call(verb, group, f"{plural}/{sub}" if sub else plural, name)

    @staticmethod
    def _split(path: str) -> tuple[str, str, str, str, str]:
        parts = path.strip("/").split("/")
        api = parts[1] if parts[0] == "api" else "/".join(parts[1:3])
        rest = parts[2 if parts[0] == "api" else 3:]
        assert rest[0] == "namespaces", f"only namespaced objects: {path}"
        return api, rest[1], rest[2], rest[3] if len(rest) > 3 else "", rest[4] if len(rest) > 4 else ""

    def _answer(self, method, path, call, query, headers, content) -> tuple[int, dict | str]:
        api, namespace, plural, name, sub = self._split(path)
        if self.token and headers.get("authorization") != f"Bearer {self.token}":
            return refuse(401, "Unauthorized")
        if self.rules is not None and not any(
            rule[:3] == call.permission and (rule[3] is None or name in rule[3]) for rule in self.rules
        ):
            return refuse(403, f"{call.resource} is forbidden: User cannot {call.verb} resource \"{call.resource}\" in "
                               f"API group \"{call.group}\" in the namespace \"{namespace}\"")
        if (api, plural) not in PLURALS:
            return refuse(404, "the server could not find the requested resource")
        if sub == "log":
            return 200, self.logs.get(name, "")
        key = (plural, namespace, name)
        body = json.loads(content) if content else {}
        if method == "POST":
            return self._create(api, plural, namespace, body)
        if call.verb == "list":
            return 200, {"items": self._list(plural, namespace, query), "metadata": {}}
        if key not in self.objects:
            return refuse(404, f'{plural} "{name}" not found')
        if method == "DELETE":
            return 200, self.objects.pop(key)
        if method == "PUT":
            return self._replace(key, body)
        if method == "PATCH":
            if headers.get("content-type") != "application/merge-patch+json":
                return refuse(415, "the body of the request was in an unknown format")
            return self._store(key, merged(self.objects[key], body))
        return 200, self.objects[key]

    def _list(self, plural: str, namespace: str, query: dict) -> list[dict]:
        wanted = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)
        fields = dict(part.split("=", 1) for part in query.get("fieldSelector", "").split(",") if part)
        return [value for (kind, where, _), value in self.objects.items() if (kind, where) == (plural, namespace)
                and wanted.items() <= value["metadata"].get("labels", {}).items()
                and all(_field(value, path) == wish for path, wish in fields.items())]

    def _create(self, api, plural, namespace, body) -> tuple[int, dict]:
        name = body.get("metadata", {}).get("name", "")
        fault = wrong(api, plural, namespace, body)
        if fault:
            return refuse(422, fault)
        if (plural, namespace, name) in self.objects:
            return refuse(409, f'{plural} "{name}" already exists')
        body["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ")}
        return 201, self._store((plural, namespace, name), body)[1]

    def _replace(self, key, body) -> tuple[int, dict]:
        was = self.objects[key]["metadata"]
        if body["metadata"].get("resourceVersion") not in (None, was["resourceVersion"]):
            return refuse(409, f"Operation cannot be fulfilled on {key[0]} \"{key[2]}\": the object has been modified; "
                               "please apply your changes to the latest version and try again")
        body["metadata"] |= {"uid": was["uid"]}
        return self._store(key, body)

    def _store(self, key, value) -> tuple[int, dict]:
        if key[0] == "configmaps" and sum(map(len, value.get("data", {}).values())) > LARGEST:
            return refuse(422, "data: Too long: may not be more than 1048576 bytes")
        value = copy.deepcopy(value)
        value["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[key] = value
        return 200, value

    @contextmanager
    def listening(self):
        """Yields the URL at which this server really listens."""
        with serving(self) as url:
            yield url


def wrong(api: str, plural: str, namespace: str, body: dict) -> str:
    """What the real server would find wrong with a new object; empty if nothing."""
    name = body.get("metadata", {}).get("name", "")
    if body.get("kind") != PLURALS[api, plural] or body.get("apiVersion") != api:
        return f"the kind {body.get('apiVersion')} {body.get('kind')} does not match the path"
    if body["metadata"].get("namespace") != namespace:
        return "the namespace of the object does not match the path"
    if not name or len(name) > 253 or name != name.lower() or not name.replace("-", "a").replace(".", "a").isalnum():
        return f'metadata.name: Invalid value: "{name}": a lowercase RFC 1123 subdomain'
    if plural == "leases" and body.get("spec", {}).get("leaseDurationSeconds", 1) <= 0:
        return "spec.leaseDurationSeconds: Invalid value: must be greater than 0"
    if plural == "configmaps" and not all(isinstance(value, str) for value in body.get("data", {}).values()):
        return "data: Invalid value: must be of type string"
    if plural == "events":
        needed = ("eventTime", "reportingComponent", "reportingInstance", "action", "reason", "type")
        lacking = [key for key in needed if not body.get(key)]
        if lacking or len(body["message"].encode()) > 1024 or body["involvedObject"]["namespace"] != namespace:
            return f"event is invalid: {lacking}"
    return ""


def merged(value, patch):
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    value = dict(value) if isinstance(value, dict) else {}
    for key, change in patch.items():
        if change is None:
            value.pop(key, None)
        else:
            value[key] = merged(value.get(key), change)
    return value


def refuse(status: int, message: str) -> tuple[int, dict]:
    reasons = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 422: "Invalid"}
    return status, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status,
                    "reason": reasons.get(status, "InternalError")}


@contextmanager
def serving(server):
    """Answer at a free port with `server.handle(method, target, headers, content) -> (status, JSON or text)`."""
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            length = int(self.headers.get("Content-Length") or 0)
            content = self.rfile.read(length)
            headers = {key.lower(): value for key, value in self.headers.items()}
            try:
                status, body = server.handle(self.command, self.path, headers, content)
            except Cut:
                self.close_connection = True
                self.connection.shutdown(2)
                return
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()


def _field(value: dict, path: str):
    for name in path.split("."):
        value = value.get(name) or {}
    return value
