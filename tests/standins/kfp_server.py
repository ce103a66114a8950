"""A Kubeflow Pipelines server that keeps the contract of `kfp_contract` and does what a test tells it.

Runs do not run by themselves: a test moves them, with `play` or through `on_run`. Faults come on order, as in
`api_server`.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from urllib.parse import parse_qsl, urlsplit

import httpx
import yaml
from standins import kfp_contract
from standins.api_server import Call, Cut, Fault, Faulty, broken, serving

STEPS = ("begin", "prepare-data", "train", "evaluate", "fit-detector", "register", "gate")


@dataclass
class KfpServer(Faulty):
    """Pipelines, versions, experiments, runs and recurring runs, each by its id.

    Attributes:
        multi_user: whether everything belongs to a namespace.
        token, cookie: what a client must bear; empty lets everybody in.
        on_run: called with each run that is created, under no lock.
        calls: the operations that were asked for, in order.
    """

    multi_user: bool = False
    token: str = ""
    cookie: str = ""
    on_run: Callable[[dict], None] = lambda run: None
    pipelines: dict[str, dict] = field(default_factory=dict)
    versions: dict[str, dict] = field(default_factory=dict)
    experiments: dict[str, dict] = field(default_factory=dict)
    runs: dict[str, dict] = field(default_factory=dict)
    recurring: dict[str, dict] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    packages: dict[str, list[dict]] = field(default_factory=dict)
    _clock: itertools.count = field(default_factory=lambda: itertools.count(1))
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # -- what a test does ---------------------------------------------------------------------------------------

    def run_named(self, name: str) -> dict:
        return next(run for run in self.runs.values() if run["display_name"] == name)

    def play(self, run_id: str, state: str, *, step: str = "", error: str = "", cached: bool = False) -> None:
        """Put a run into a state; `step` is the one that it is at, that failed, or that the cache answered."""
        with self._lock:
            run = self.runs[run_id]
            run["state"] = state
            run["state_history"].append({"update_time": self._now(), "state": state})
            nodes = run["run_details"]["task_details"]
            if step and not nodes:
                for name in (f"redoubt-{run_id[:5]}", "root-driver", "root"):
                    self._node(run, name, "SUCCEEDED" if name.endswith("driver") else "RUNNING")
            if step:
                self._step(run, step, "SUCCEEDED" if cached else state, error, cached)
            if state in ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"):
                run["finished_at"] = self._now()
                for node in nodes:
                    if node["state"] == "RUNNING":
                        node["state"] = state
            if error and not step:
                run["error"] = {"code": 13, "message": error}

    def _step(self, run: dict, step: str, state: str, error: str, cached: bool) -> None:
        """The workflow's nodes for a step, in an order of their own, as the server lists them."""
        executor = self._node(run, "executor", "SKIPPED" if cached else state)
        if not cached:
            self._node(run, "executor(0)", state)
        node = self._node(run, step, state, executor["task_id"])
        if cached:
            node["start_time"] = node["end_time"] = executor["start_time"]
        if error:
            node["error"] = {"code": 13, "message": error}
        self._node(run, f"{step}-driver", "SUCCEEDED")

    def _node(self, run: dict, name: str, state: str, child: str = "") -> dict:
        node = {"run_id": run["run_id"], "task_id": str(uuid.uuid4()), "display_name": name, "state": state,
                "start_time": self._now(), "end_time": "1970-01-01T00:00:00Z" if state == "RUNNING" else self._now(),
                "child_tasks": [{"pod_name": child}] if child else []}
        run["run_details"]["task_details"].append(node)
        return node

    # -- HTTP ---------------------------------------------------------------------------------------------------

    def transport(self, before=lambda call: None, after=lambda call: None) -> httpx.BaseTransport:
        """A client's network to this server, without sockets; `before` and `after` may raise what ends the client."""
        def handle(request: httpx.Request) -> httpx.Response:
            call = Call(request.method, "kfp", request.url.path.rsplit("/", 1)[-1], "")
            before(call)
            try:
                status, body = self.handle(request.method, request.url.raw_path.decode(), dict(request.headers),
                                           request.read())
            except Cut:
                raise httpx.ReadError("the connection was cut", request=request) from None
            after(call)
            return httpx.Response(status, json=body)

        return httpx.MockTransport(handle)

    @contextmanager
    def listening(self):
        """Yields the URL at which this server really listens."""
        with serving(self) as url:
            yield url

    def handle(self, method: str, target: str, headers: dict, content: bytes) -> tuple[int, dict]:
        url = urlsplit(target)
        try:
            route, names = kfp_contract.find(method, url.path)
        except kfp_contract.Broken as error:
            return refuse(404, str(error))
        fault = self.fault(Call(method, "kfp", route.operation, ""))
        if fault and fault.seconds:
            time.sleep(fault.seconds)
        if fault and not fault.done:
            return broken(fault, refuse)
        created: list[dict] = []
        with self._lock:
            self.calls.append(route.operation)
            status, body = self._answer(route, names, dict(parse_qsl(url.query)), headers, content, created)
            body = json.loads(json.dumps(body))
        for run in created:
            self.on_run(run)
        if fault:
            return broken(fault, refuse)
        if status == 200 and route.answer != "object":
            kfp_contract.check(body, route.answer, "answer")
            kfp_contract.parse(body, route.answer)
        return status, body

    def _answer(self, route, names, query, headers, content, created) -> tuple[int, dict]:
        if route.operation == "healthz_service_get_healthz":
            return 200, {"multi_user": self.multi_user}
        if self.token and headers.get("authorization") != f"Bearer {self.token}":
            return refuse(401, "Request header error: there is no user identity header")
        if self.cookie and headers.get("cookie") != self.cookie:
            return refuse(401, "Request header error: there is no user identity header")
        unknown = set(query) - route.query
        if unknown:
            return refuse(400, f"{route.operation} takes no {', '.join(sorted(unknown))}")
        body: dict = {}
        if route.body:
            body = json.loads(content)
            try:
                kfp_contract.check(body, route.body)
            except kfp_contract.Broken as error:
                return refuse(400, str(error))
        handler = getattr(self, "_" + route.operation, None)
        if handler is None:
            return refuse(501, f"the stand-in does not carry out {route.operation}")
        arguments = {"names": names, "query": query, "body": body, "content": content, "headers": headers}
        if route.operation == "run_service_create_run":
            arguments["created"] = created
        return handler(**arguments)

    def _namespace(self, given: str) -> str | None:
        """A refusal's words where a namespace is missing, or given to a server without users."""
        if self.multi_user and not given:
            return "Invalid input error: namespace is empty in multi-user mode"
        if not self.multi_user and given:
            return "Invalid input error: In single-user mode, ListExperiment cannot filter by namespace."
        return None

    # -- experiments, pipelines, versions -----------------------------------------------------------------------

    def _experiment_service_list_experiments(self, query, **_):
        refusal = self._namespace(query.get("namespace", ""))
        return refuse(400, refusal) if refusal else self._page("experiments", self._in(self.experiments, query), query)

    def _experiment_service_create_experiment(self, body, **_):
        refusal = self._namespace(body.get("namespace", ""))
        if refusal:
            return refuse(400, refusal)
        if any(row["display_name"] == body["display_name"] and row.get("namespace", "") == body.get("namespace", "")
               for row in self.experiments.values()):
            return refuse(409, f"experiment {body['display_name']} already exists")
        return 200, self._keep(self.experiments, "experiment_id", body)

    def _pipeline_service_list_pipelines(self, query, **_):
        return self._page("pipelines", self._in(self.pipelines, query), query)

    def _pipeline_service_create_pipeline(self, body, **_):
        if any(row["name"] == body["name"] for row in self.pipelines.values()):
            return refuse(409, f"a pipeline with the name {body['name']} already exists")
        return 200, self._keep(self.pipelines, "pipeline_id", body)

    def _pipeline_service_list_pipeline_versions(self, names, query, **_):
        rows = [row for row in self.versions.values() if row["pipeline_id"] == names["pipeline_id"]]
        return self._page("pipeline_versions", rows, query)

    def _upload_pipeline_version(self, query, content, headers, **_):
        head = f"Content-Type: {headers['content-type']}\r\n\r\n".encode()
        part = next(iter(BytesParser(policy=HTTP).parsebytes(head + content).iter_parts()))
        assert part.get_param("name", header="content-disposition") == "uploadfile"
        documents = list(yaml.safe_load_all(part.get_payload(decode=True)))
        if "pipelineInfo" not in documents[0]:
            return refuse(400, "Failed to read a pipeline spec file")
        if query["pipelineid"] not in self.pipelines:
            return refuse(400, "Failed to create a pipeline version")
        if any(row["name"] == query["name"] for row in self.versions.values()):
            return refuse(409, "Failed to create a pipeline version")
        made = self._keep(self.versions, "pipeline_version_id", {
            "pipeline_id": query["pipelineid"], "name": query["name"], "display_name": query["display_name"]})
        self.packages[made["pipeline_version_id"]] = documents
        return 200, made

    # -- runs ---------------------------------------------------------------------------------------------------

    def _run_service_create_run(self, body, created, **_):
        refusal = self._unstartable(body)
        if refusal:
            return refuse(*refusal)
        run = {**body, "state": "PENDING", "storage_state": "AVAILABLE", "state_history": [],
               "run_details": {"task_details": []}}
        made = self._keep(self.runs, "run_id", run)
        created.append(made)
        return 200, made

    def _unstartable(self, body) -> tuple[int, str] | None:
        reference = body.get("pipeline_version_reference") or {}
        version = self.versions.get(reference.get("pipeline_version_id", ""))
        if version is None or version["pipeline_id"] != reference.get("pipeline_id"):
            return 404, f"PipelineVersion {reference.get('pipeline_version_id')} not found"
        if body.get("experiment_id") not in self.experiments:
            return 404, f"Experiment {body.get('experiment_id')} not found"
        package = self.packages.get(version["pipeline_version_id"])
        known = package[0]["root"].get("inputDefinitions", {}).get("parameters", {}) if package else None
        given = body.get("runtime_config", {}).get("parameters", {})
        if known is not None and set(given) - set(known):
            return 400, f"parameter {sorted(set(given) - set(known))} are not used by the pipeline"
        types = {"NUMBER_INTEGER": int, "NUMBER_DOUBLE": (int, float), "STRING": str, "BOOLEAN": bool,
                 "LIST": list, "STRUCT": dict}
        for name, value in given.items() if known else ():
            if not isinstance(value, types[known[name]["parameterType"]]):
                return 400, f"input parameter {name} requires type {known[name]['parameterType']}"
        return None

    def _run_service_get_run(self, names, **_):
        run = self.runs.get(names["run_id"])
        return (200, run) if run else refuse(404, f"Run {names['run_id']} not found")

    def _run_service_list_runs(self, query, **_):
        rows = list(self.runs.values())
        if self.multi_user and not (query.get("namespace") or query.get("experiment_id")):
            return refuse(400, "ListRuns must filter by resource reference in multi-user mode")
        if query.get("experiment_id"):
            rows = [row for row in rows if row["experiment_id"] == query["experiment_id"]]
        for predicate in json.loads(query.get("filter", "{}")).get("predicates", []):
            kfp_contract.check(predicate, "V2beta1Predicate", "filter")
            assert predicate["operation"] == "EQUALS"
            rows = [row for row in rows if row[predicate["key"]] == predicate["string_value"]]
        return self._page("runs", rows, query)

    def _run_service_terminate_run(self, names, **_):
        if names["run_id"] not in self.runs:
            return refuse(404, f"Run {names['run_id']} not found")
        if self.runs[names["run_id"]]["state"] in ("PENDING", "RUNNING"):
            self.play(names["run_id"], "CANCELING")
        return 200, {}

    # -- recurring runs -----------------------------------------------------------------------------------------

    def _recurring_run_service_create_recurring_run(self, body, **_):
        refusal = self._unstartable(body)
        return refuse(*refusal) if refusal else (200, self._keep(self.recurring, "recurring_run_id", body))

    def _recurring_run_service_list_recurring_runs(self, query, **_):
        rows = [row for row in self.recurring.values() if row["experiment_id"] == query.get("experiment_id")]
        return self._page("recurringRuns", rows, query)

    def _recurring_run_service_delete_recurring_run(self, names, **_):
        gone = self.recurring.pop(names["recurring_run_id"], None)
        return (200, {}) if gone else refuse(404, "RecurringRun not found")

    # -- rows ---------------------------------------------------------------------------------------------------

    def _in(self, rows, query):
        return [row for row in rows.values() if row.get("namespace", "") == query.get("namespace", "")]

    def _keep(self, rows, key, body):
        made = {**body, key: str(uuid.uuid4()), "created_at": self._now()}
        rows[made[key]] = made
        return made

    def _page(self, key, rows, query):
        """Two rows a page, however many were asked for: a client that reads one page only is found out."""
        if query.get("sort_by", "").endswith("desc"):
            rows = list(reversed(rows))
        start = int(query.get("page_token") or 0)
        answer = {key: rows[start : start + 2]} if rows else {}   # the real server leaves an empty list out
        if start + 2 < len(rows):
            answer["next_page_token"] = str(start + 2)
        return 200, answer

    def _now(self) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(1_800_000_000 + next(self._clock))) + "Z"


def refuse(status: int, message: str) -> tuple[int, dict]:
    """As the server's gateway answers."""
    codes = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 429: 8, 500: 13, 501: 12, 503: 14}
    return status, {"error": message, "code": codes.get(status, 2), "message": message, "details": []}
