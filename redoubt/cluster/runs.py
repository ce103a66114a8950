"""Kubeflow Pipelines' REST API (v2beta1), as far as Redoubt uses it: pipelines and versions, experiments and runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from redoubt.cluster.errors import Conflict, Unreachable
from redoubt.cluster.http import Connection
from redoubt.cluster.tasks import Task, at_work, message, state_of, steps

API = "/apis/v2beta1"
SUCCEEDED = ("SUCCEEDED", "SKIPPED")
ENDED = (*SUCCEEDED, "FAILED", "CANCELED")
_PAGE = 100


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as the server tells it.

    Attributes:
        state: PENDING, RUNNING, SUCCEEDED, SKIPPED, FAILED, CANCELING, CANCELED or PAUSED; empty before it has one.
        tasks: its steps, without what the server puts round them.
        at_work: whether the pod of a step runs.
    """

    id: str
    name: str
    state: str
    error: str = ""
    created: str = ""
    tasks: tuple[Task, ...] = field(default=())
    at_work: bool = False

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def succeeded(self) -> bool:
        return self.state in SUCCEEDED

    @property
    def step(self) -> str:
        """The step that it is at, the latest where there are several; empty while there is none."""
        running = [task for task in self.tasks if task.state == "RUNNING"]
        return max(running, key=lambda task: task.started).name if running else ""

    @property
    def reason(self) -> str:
        """Why it failed, in one line."""
        failed = [task for task in self.tasks if task.state == "FAILED"]
        said = [f"{task.name}: {task.error}" for task in failed if task.error] or [self.error]
        named = f"the step {failed[0].name} failed" if failed else ""
        return (said[0] or named or f"the run ended as {self.state}").splitlines()[0][:500]

    @classmethod
    def of(cls, answer: dict) -> Run:
        """Read the server's answer."""
        details = (answer.get("run_details") or {}).get("task_details") or []
        return cls(id=answer["run_id"], name=answer.get("display_name", ""), state=state_of(answer),
                   error=message(answer), created=answer.get("created_at") or "", tasks=steps(details),
                   at_work=at_work(details))


class Pipelines:
    """One Kubeflow Pipelines server.

    Args:
        namespace: the profile's namespace; left aside by a server that has no users, which would refuse it.
        ui: address of the user interface, where it is not the API's.

    Every method raises a kind of `redoubt.cluster.errors.ClusterError` when it does not succeed.
    """

    def __init__(self, connection: Connection, namespace: str = "", *, ui: str = ""):
        self._connection, self.namespace, self._ui = connection, namespace, ui.rstrip("/")
        self._about: dict | None = None

    def close(self) -> None:
        self._connection.close()

    def about(self) -> dict:
        """What the server says of itself: multi_user and little more; asked once."""
        if self._about is None:
            self._about = self._connection.call("GET", f"{API}/healthz")
        return self._about

    def page(self, run_id: str) -> str:
        """Address of the run's page in the user interface, at the server's own address unless one was given."""
        if self._ui:
            return f"{self._ui}/#/runs/details/{run_id}"
        if self._about and self._about.get("multi_user"):   # behind Kubeflow's dashboard
            root = self._connection.url.removesuffix("/pipeline")
            return f"{root}/_/pipeline/?ns={self.namespace}#/runs/details/{run_id}"
        return f"{self._connection.url}/#/runs/details/{run_id}"

    # -- pipelines and versions ---------------------------------------------------------------------------------

    def pipeline(self, name: str, *, make: bool = True, description: str = "") -> str:
        """Id of the pipeline `name`, made where there is none; empty where there is none and `make` is false."""
        found = self._find("pipelines", "pipelines", name)
        if found is None and make:
            body = {"display_name": name, "name": name, "description": description}
            found = self._make("pipelines", "pipelines", name, body | self._home())
        return (found or {}).get("pipeline_id", "")

    def version(self, pipeline: str, name: str) -> str:
        """Id of the version `name` of a pipeline, empty where there is none."""
        found = self._find(f"pipelines/{pipeline}/versions", "pipeline_versions", name, home=False)
        return (found or {}).get("pipeline_version_id", "")

    def upload(self, pipeline: str, name: str, package: bytes, *, description: str = "") -> str:
        """Make a version of a pipeline from a compiled package; returns its id. Finds it where somebody was faster."""
        try:
            made = self._connection.call(
                "POST", f"{API}/pipelines/upload_version",
                params={"name": name, "display_name": name, "pipelineid": pipeline, "description": description},
                files={"uploadfile": ("pipeline.yaml", package, "application/x-yaml")},
            )
        except Conflict:
            found = self.version(pipeline, name)
            if found:
                return found
            raise
        return made["pipeline_version_id"]

    def experiment(self, name: str) -> str:
        """Id of the experiment `name`, made where there is none."""
        found = self._find("experiments", "experiments", name)
        found = found or self._make("experiments", "experiments", name, {"display_name": name} | self._home())
        return found["experiment_id"]

    # -- runs ---------------------------------------------------------------------------------------------------

    def start(
        self, name: str, *, pipeline: str, version: str, experiment: str, parameters: dict, service_account: str = "",
        description: str = "", pipeline_root: str = "",
    ) -> Run:
        """Start a run. The server has no notion of a request sent twice: look with `named` before asking again."""
        config: dict = {"parameters": parameters}
        if pipeline_root:
            config["pipeline_root"] = pipeline_root
        body = {
            "display_name": name, "experiment_id": experiment, "runtime_config": config,
            "pipeline_version_reference": {"pipeline_id": pipeline, "pipeline_version_id": version},
        }
        body |= {key: value for key, value in
                 {"service_account": service_account, "description": description}.items() if value}
        return Run.of(self._connection.call("POST", f"{API}/runs", body=body))

    def run(self, run_id: str) -> Run:
        """A run as it stands."""
        return Run.of(self._connection.call("GET", f"{API}/runs/{run_id}"))

    def named(self, name: str, *, experiment: str) -> list[Run]:
        """The experiment's runs of exactly this name, newest first."""
        predicate = {"predicates": [{"operation": "EQUALS", "key": "display_name", "string_value": name}]}
        rows = self._all("runs", "runs", experiment_id=experiment, filter=json.dumps(predicate),
                         sort_by="created_at desc")
        return [Run.of(row) for row in rows if row.get("display_name") == name]

    def terminate(self, run_id: str) -> None:
        """Ask for a run's end."""
        self._connection.call("POST", f"{API}/runs/{run_id}:terminate", attempts=3)

    # -- recurring runs -----------------------------------------------------------------------------------------

    def recurring(self, experiment: str) -> list[dict]:
        """The experiment's recurring runs."""
        return self._all("recurringruns", "recurringRuns", experiment_id=experiment)

    def schedule(self, body: dict) -> dict:
        """Make a recurring run."""
        return self._connection.call("POST", f"{API}/recurringruns", body=body)

    def unschedule(self, recurring_id: str) -> None:
        """Remove a recurring run; runs that it started stay."""
        self._connection.call("DELETE", f"{API}/recurringruns/{recurring_id}", attempts=3)

    # -- finding and making -------------------------------------------------------------------------------------

    def _home(self) -> dict:
        return {"namespace": self.namespace} if self.namespace and self.about().get("multi_user") else {}

    def _find(self, path: str, key: str, name: str, *, home: bool = True) -> dict | None:
        rows = self._all(path, key, **(self._home() if home else {}))
        return next((row for row in rows if name in (row.get("display_name"), row.get("name"))), None)

    def _make(self, path: str, key: str, name: str, body: dict) -> dict:
        return once(lambda: self._connection.call("POST", f"{API}/{path}", body=body),
                    lambda: self._find(path, key, name))

    def _all(self, path: str, key: str, **params) -> list[dict]:
        rows, token = [], ""
        while True:
            answer = self._connection.call("GET", f"{API}/{path}",
                                           params=params | {"page_size": _PAGE, "page_token": token})
            rows += answer.get(key) or []
            token = answer.get("next_page_token") or ""
            if not token:
                return rows


def once(make: Callable[[], dict], find: Callable[[], dict | None]) -> dict:
    """Make something that there must be one of, and find it where it was made already or the answer got lost.

    Raises:
        ClusterError: when it could not be made and is not there.
    """
    try:
        return make()
    except (Conflict, Unreachable):
        found = find()
        if found is None:
            raise
        return found
