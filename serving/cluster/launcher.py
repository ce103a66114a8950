"""Retraining runs through Kubeflow Pipelines: started over its REST API, found again by whoever leads, followed.

The server has no notion of a request that is sent twice, so three things together make one run of several: a run's name
follows from its request and attempt, and is looked for before another is started; the run itself claims its attempt by
creating a Lease, and whoever finds it taken ends at once; and before a next attempt the last one's claim is made void,
so that a run for it that starts late does not train beside the next.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

from redoubt.cluster.claims import VOID, claim, claim_name, holder_of
from redoubt.cluster.errors import RETRYABLE, ClusterError, NotFound
from redoubt.cluster.kubernetes import Kubernetes
from redoubt.cluster.runs import Pipelines, Run
from redoubt.errors import RedoubtError, RegistryError
from serving.launcher import REQUEST, Result, write_step
from serving.problems import Problems

log = logging.getLogger("redoubt.serving")
_LONGEST_WAIT = 60.0


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """Which pipeline is run, and how.

    Attributes:
        pipeline, version: their ids on the server.
        experiment: the experiment's name; made when missing.
        service_account: whom the run's pods are; the server's default when empty.
    """

    pipeline: str
    version: str
    experiment: str
    service_account: str = ""


class Answers(Protocol):
    """What a run is asked to do, and what it came to: `serving/cluster/answers.py` reads both from the registry."""

    def parameters(self, request: dict) -> dict:
        """The pipeline's parameters for a request."""
        ...

    def judged(self, request: dict) -> Result | None:
        """What the gate said of the version that answers a request; None before it did."""
        ...


class KfpLauncher:
    """Has requests carried out by one pinned version of a pipeline.

    Args:
        timeout: seconds that one attempt may take before its run is terminated.
        poll: seconds between two looks at a run.
    """

    def __init__(
        self, pipelines: Pipelines, kubernetes: Kubernetes, answers: Answers, pinned: Pinned, problems: Problems, *,
        timeout: float = 6 * 3600.0, poll: float = 5.0, clock: Callable[[], float] = time.monotonic,
    ):
        self._pipelines, self._kubernetes, self._answers, self._pinned = pipelines, kubernetes, answers, pinned
        self._problems = problems
        self._timeout, self._poll, self._clock = timeout, poll, clock

    def run(self, folder: Path, stop: Event, attempt: int = 0) -> Result | None:
        """See `serving.launcher.Launcher`. A run is not ended with its server: another replica goes on following it."""
        request = json.loads((folder / REQUEST).read_text())
        job = _Job(request=request, folder=folder, claim=claim_name(request.get("claim", request["campaign"]), attempt),
                   name=f"redoubt-{request['id']}-{attempt + 1}", deadline=self._clock() + self._timeout)
        wait = self._poll
        while not stop.is_set():
            try:
                result = self._look(job)
                if result is not None:
                    self._problems.clear("launcher")
                    return result
                wait = self._poll
                self._problems.clear("launcher")
            except (*RETRYABLE, RegistryError) as error:
                self._problems.note("launcher", str(error))
                if self._clock() > job.deadline and not job.run_id:
                    return self._give_up(job, f"given up after {self._timeout:g} s: {error}")
                wait = min(2 * wait, max(_LONGEST_WAIT, self._poll))
            except RedoubtError as error:   # the server refuses, or the parent cannot be used
                result = self._give_up(job, str(error))
                if result is not None:
                    return result
                wait = min(2 * wait, max(_LONGEST_WAIT, self._poll))
            stop.wait(wait)
        return None

    def _look(self, job: _Job) -> Result | None:
        """One look at how the request stands, and the next thing that is to be done about it."""
        run = self._find(job)
        if run is None:
            done = self._answers.judged(job.request)   # by an attempt that was killed before it could say so
            if done is not None:
                return done
            run = self._start(job)
        if run is _GIVEN_UP:
            return Result(status="failed", reason=f"the attempt {job.name} was given up before")
        if run.succeeded:
            return self._answers.judged(job.request) or Result(
                status="failed", reason=f"run {run.id} succeeded, but the registry holds no version that the gate "
                                        f"judged for {job.request['campaign']}: look at its page")
        if run.ended:
            late = f"it took longer than {self._timeout:g} s and was terminated"
            return self._ended(job, run, late if job.terminated else run.reason)
        if self._clock() > job.deadline and not job.terminated:
            self._pipelines.terminate(run.id)
            job.terminated = True   # its end is waited for: until then it may still train
        if run.step != job.step:
            job.step = run.step
            write_step(job.folder, run.step, run=run.id)
        return None

    def _find(self, job: _Job) -> Run | None:
        """The run that holds the claim, else one of the job's name that may still take it; None where there is none."""
        holder = holder_of(self._kubernetes, job.claim)
        if holder == VOID:
            return _GIVEN_UP
        if holder is not None:
            return self._get(holder)
        if job.run_id:
            return self._get(job.run_id)
        experiment = self._experiment(job)
        found = self._pipelines.named(job.name, experiment=experiment)
        alive = [run for run in found if not run.ended]
        return (alive or found or [None])[-1]

    def _get(self, run_id: str) -> Run:
        try:
            return self._pipelines.run(run_id)
        except NotFound:
            return Run(id=run_id, name="", state="FAILED", error=f"run {run_id} was deleted on the server")

    def _start(self, job: _Job) -> Run:
        run = self._pipelines.start(
            job.name, pipeline=self._pinned.pipeline, version=self._pinned.version, experiment=self._experiment(job),
            parameters=self._answers.parameters(job.request) | {"claim": job.claim},
            service_account=self._pinned.service_account,
            description=f"answers {job.request['campaign']}: {job.request['norm']} {job.request['epsilon']:.4g}",
        )
        log.info("retraining run started: %s as %s", run.id, job.name)
        job.run_id = run.id
        return run

    def _ended(self, job: _Job, run: Run, reason: str) -> Result | None:
        """A run ended without success. None where another one holds the claim: that one counts."""
        holder = claim(self._kubernetes, job.claim, VOID)
        if holder not in (VOID, run.id):
            job.run_id = holder
            return None
        return self._answers.judged(job.request) or Result(status="failed", reason=f"run {run.id}: {reason}")

    def _give_up(self, job: _Job, reason: str) -> Result | None:
        """A failed attempt, once no run can claim it any more. None while one holds it or may yet: that is followed."""
        try:
            holder = claim(self._kubernetes, job.claim, VOID)
        except ClusterError as error:
            self._problems.note("launcher", f"{reason}; its claim cannot be made void: {error}")
            return None
        if holder != VOID:
            self._problems.note("launcher", reason)
            job.run_id = holder
            return None
        return Result(status="failed", reason=reason)

    def _experiment(self, job: _Job) -> str:
        if not job.experiment:
            job.experiment = self._pipelines.experiment(self._pinned.experiment)
        return job.experiment


@dataclass(kw_only=True)
class _Job:
    request: dict
    folder: Path
    claim: str
    name: str
    deadline: float
    run_id: str = ""
    experiment: str = ""
    step: str = ""
    terminated: bool = False


_GIVEN_UP = Run(id="", name="", state="FAILED")
