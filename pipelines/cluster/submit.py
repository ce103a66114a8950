"""Runs on a cluster: a version found or uploaded, a run started or met again, and followed to its end."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.cluster.settings import ClusterSettings
from redoubt.cluster.errors import RETRYABLE, ClusterError, NotFound, Unauthorized
from redoubt.cluster.kubernetes import Kubernetes
from redoubt.cluster.runs import Pipelines, Run, once
from redoubt.errors import InvalidInput, RedoubtError, Refused
from redoubt.names import REFUSAL

SUCCEEDED, FAILED, REFUSED = 0, 1, Refused.exit_code   # exit codes; 2 is a user's mistake
POLL_SECONDS = 3.0
LONGEST_SILENCE = 900.0   # seconds without an answer until whoever follows gives up; the run does not
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Version:
    """A pipeline's version on the server; serving pins these two ids."""

    pipeline: str
    version: str
    name: str
    uploaded: bool


def ensure_version(api: Pipelines, settings: ClusterSettings, package) -> Version:
    """The version with the package's content, uploaded unless it is there.

    Raises:
        InvalidInput: for an image by tag, unless the settings allow it.
    """
    check_image(settings)
    pipeline = api.pipeline(settings.pipeline, description="Trains and judges a robust classifier")
    found = api.version(pipeline, package.version)
    version = found or api.upload(pipeline, package.version, package.content, description=f"steps in {package.image}")
    return Version(pipeline=pipeline, version=version, name=package.version, uploaded=not found)


def check_image(settings: ClusterSettings) -> None:
    """Raise InvalidInput for an image by tag, unless the settings allow it."""
    if not settings.pinned and not settings.allow_tag:
        what = f"image {settings.image!r} is a tag, which can" if settings.image else "no image is named: a tag could"
        raise InvalidInput(f"{what} come to mean another image while the cache goes by its name: give --image "
                           "NAME@sha256:DIGEST, or --allow-tag")


def run_name(parameters: dict, version: str) -> str:
    """The run's name: what it trains, and a digest of everything that makes it this run."""
    digest = hashlib.sha256(json.dumps([parameters, version], sort_keys=True).encode()).hexdigest()[:8]
    model, epsilon = parameters.get("model_name", "redoubt"), parameters.get("epsilon", "")
    return f"{model}-{parameters.get('dataset', 'sweep').split(':')[0]}-{epsilon:.4g}-{digest}" if isinstance(
        epsilon, float) else f"{model}-{digest}"


def start(api: Pipelines, settings: ClusterSettings, version: Version, parameters: dict) -> tuple[Run, bool]:
    """Start a run, or meet one of the same name that is not finished. Returns it and whether it is new."""
    experiment = api.experiment(settings.experiment or parameters.get("model_name") or settings.pipeline)
    name = run_name(parameters, version.name)
    earlier = {run.id for run in api.named(name, experiment=experiment) if run.ended}

    def unfinished() -> Run | None:
        return next((run for run in api.named(name, experiment=experiment) if run.id not in earlier), None)

    met = unfinished()
    if met is not None:
        return met, False
    run = once(
        lambda: api.start(name, pipeline=version.pipeline, version=version.version, experiment=experiment,
                          parameters=parameters, service_account=settings.service_account,
                          pipeline_root=settings.pipeline_root),
        unfinished,
    )
    return run, True


@dataclass(kw_only=True)
class Follower:
    """Follows one run and says what happens.

    Args:
        kubernetes: where its pods are looked at when it does not get on; None where there is no access.
        say: takes one line for people.
        clock, sleep: the time.
    """

    api: Pipelines
    settings: ClusterSettings
    say: Say
    kubernetes: Kubernetes | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    poll: float = POLL_SECONDS
    _said: set[str] = field(default_factory=set)

    def to_the_end(self, run_id: str) -> int:
        """Wait until the run has ended, in whatever state. Returns the exit code.

        Raises:
            RedoubtError: when it does not end in time, was deleted, or the server does not answer any more.
        """
        began = moved = heard = self.clock()
        looked, seen = -1e9, ""
        while True:
            run = self._ask(run_id, heard)
            now = self.clock()
            if run is not None:
                heard = now
                looks = f"{run.state} {[(task.name, task.state) for task in run.tasks]}"
                moved, seen = (now, looks) if looks != seen or run.at_work else (moved, seen)
                self._tell(run)
                if run.ended:
                    return self._ended(run)
            stuck = now - moved > self.settings.pending_minutes * 60
            if stuck and now - looked > self.settings.pending_minutes * 60:
                looked = now
                self._why(run_id, now - moved)
            if now - began > self.settings.run_hours * 3600:
                raise RedoubtError(f"run {run_id} did not end within {self.settings.run_hours:g} hours and goes on: "
                                   "follow it with `redoubt follow`, end it with `redoubt cancel`, or raise run_hours")
            self.sleep(self.poll)

    def _ask(self, run_id: str, heard: float) -> Run | None:
        """The run; None where the server does not answer for a while."""
        try:
            run = self.api.run(run_id)
        except NotFound:
            raise RedoubtError(f"run {run_id} was deleted on the server while it was followed") from None
        except (*RETRYABLE, Unauthorized) as error:
            if isinstance(error, Unauthorized) and not self.settings.token_file:
                raise Unauthorized(f"{error}. The run goes on: `redoubt follow {run_id}` takes it up again") from None
            if self.clock() - heard > LONGEST_SILENCE:
                raise RedoubtError(f"{error}; the run may go on: `redoubt follow {run_id}` takes it up again") from None
            if "silence" not in self._said:
                self._said.add("silence")
                self.say(f"{error}: waiting")
            return None
        if "silence" in self._said:
            self._said.discard("silence")
            self.say("the server answers again")
        return run

    def _tell(self, run: Run) -> None:
        """Say what is new: the run's state, and each step as it begins and ends."""
        for task in run.tasks:
            why = f" ({task.error.splitlines()[0][:300]})" if task.error else ""
            line = f"{task.name}: {_words(task.state)}{why}"
            self._once(f"{task.name} {task.state}", line)
        self._once(f"run {run.state}", f"run: {_words(run.state)}")

    def _once(self, key: str, line: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self.say(line)

    def _ended(self, run: Run) -> int:
        if run.succeeded and any(task.name == REFUSAL and task.state == "SUCCEEDED" for task in run.tasks):
            self.say("the gate refused the version, the champion stays: the page's step gate says why, as does "
                     "`redoubt models show VERSION`")
            return REFUSED
        if run.succeeded:
            return SUCCEEDED
        if run.state == "CANCELED":
            self.say("the run was canceled")
            return FAILED
        self.say(f"the run failed: {run.reason}")
        for reason in self._reasons(run.id):
            self.say(reason)
        return FAILED

    def _why(self, run_id: str, seconds: float) -> None:
        self.say(f"nothing has moved for {seconds / 60:.0f} min")
        where = self.settings.namespace or "kubeflow"
        for reason in self._reasons(run_id) or [
            f"see why with: kubectl -n {where} get pods -l pipeline/runid={run_id}"
        ]:
            self.say(reason)

    def _reasons(self, run_id: str) -> list[str]:
        from pipelines.cluster.diagnose import reasons

        return reasons(self.kubernetes, run_id) if self.kubernetes else []


def cancel(api: Pipelines, run_id: str) -> Run:
    """Ask for a run's end; returns the run as it stands."""
    api.terminate(run_id)
    return api.run(run_id)


def find(api: Pipelines, text: str) -> str:
    """A run's id from an id or from the address of its page."""
    run_id = text.rstrip("/").rsplit("/", 1)[-1]
    try:
        return api.run(run_id).id
    except ClusterError as error:
        if isinstance(error, NotFound):
            raise InvalidInput(f"there is no run {run_id!r} on {api.page(run_id).split('/#')[0]}") from None
        raise


def _words(state: str) -> str:
    return {"PENDING": "waiting", "RUNNING": "running", "SUCCEEDED": "done", "SKIPPED": "done, from the cache",
            "FAILED": "failed", "CANCELING": "being canceled", "CANCELED": "canceled", "PAUSED": "paused",
            "": "accepted"}.get(state, state.lower())
