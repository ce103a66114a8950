"""The current model, the threads that compute with it, and how models are swapped without losing a request."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from redoubt.bundle import Bundle
from redoubt.detection import Verdicts
from serving.batcher import Batcher, Job
from serving.calm import no_pause, pause
from serving.model import CHUNK, LoadedModel, Prediction, load, predict
from serving.probation import Probation
from serving.problems import NotFound, NotReady, Problems
from serving.settings import Settings

log = logging.getLogger("redoubt.serving")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A batch that was answered, for those who watch.

    Attributes:
        loaded: the version that answered.
        x: [N, C, H, W].
        predicted: classes, [N].
        verdicts: None when the version has no detector or it failed.
        jobs: the requests, in the order of their inputs.
        seconds: that the batch took to compute.
    """

    loaded: LoadedModel
    x: Tensor
    predicted: np.ndarray
    verdicts: Verdicts | None
    jobs: list[Job]
    seconds: float

    @property
    def clients(self) -> list[str]:
        """Who sent each of the N inputs."""
        return [job.client for job in self.jobs for _ in range(len(job))]

    def labels(self) -> list[np.ndarray]:
        """The classes of each request."""
        ends = np.cumsum([len(job) for job in self.jobs])[:-1]
        return np.split(self.predicted, ends)


class Engine:
    """The model that answers and the queue in front of it.

    Args:
        observe: called with each answered batch, in a computing thread.
        convicted: called as (version, reason) when a new champion errs or slows and should be rolled back.
    """

    def __init__(
        self, settings: Settings, problems: Problems, observe: Callable[[Seen], None],
        convicted: Callable[[LoadedModel, str], None] = lambda *_: None,
    ):
        self._settings, self._problems, self._observe, self._convicted = settings, problems, observe, convicted
        self._current: LoadedModel | None = None
        self.previous: LoadedModel | None = None
        self._swapping = threading.Lock()
        self._probation = Probation(settings.probation_seconds, slow_factor=settings.slow_factor)
        self._notes = threading.local()
        self.device = _device(settings.device)
        self.batcher = Batcher(
            self._compute, self._answered, workers=settings.workers, threads=settings.threads,
            batch_inputs=settings.batch_inputs, delay=settings.batch_delay_ms / 1000,
            queue_inputs=settings.queue_inputs,
        )

    # -- models -------------------------------------------------------------------------------------------------

    @property
    def current(self) -> LoadedModel | None:
        """The model that answers; None before the first is loaded."""
        return self._current

    def require(self) -> LoadedModel:
        """The model that answers.

        Raises:
            NotReady: while there is none.
        """
        loaded = self._current
        if loaded is None:
            raise NotReady(str(self._problems) or "the model is still being loaded")
        return loaded

    def find(self, version: str | None) -> LoadedModel:
        """The model that answers, or the version that was named.

        Raises:
            NotReady: while there is none.
            NotFound: when that version is not served.
        """
        loaded = self.require()
        if version in (None, loaded.version):
            return loaded
        previous = self.previous
        if self._settings.serve_previous and previous is not None and previous.version == version:
            return previous
        raise NotFound(f"version {version} is not served: version {loaded.version} is")

    def versions(self) -> list[str]:
        """The versions that a request may name."""
        served = [self._current, self.previous if self._settings.serve_previous else None]
        return list(dict.fromkeys(loaded.version for loaded in served if loaded is not None))

    def swap(self, loaded: LoadedModel) -> None:
        """Answer with `loaded` from now on; requests under way finish with the model that they were read for."""
        with self._swapping:
            if self._current is not None:
                self.previous = self._current
            self._current = loaded
            self._probation.begin(loaded, self.previous)

    def load(self, bundle: Bundle, version: str, run_id: str) -> LoadedModel:
        """Bring a version into memory as the settings say, ready to answer; beside one that answers, with pauses.

        Raises:
            ArtifactError: when it cannot be served.
        """
        current = self._current
        return load(bundle, version, run_id, device=self.device, quick=self._settings.accelerate, like=current,
                    pause=no_pause if current is None else pause)

    # -- answering ----------------------------------------------------------------------------------------------

    async def predict(
        self, loaded: LoadedModel, x: Tensor, *, client: str = "", deadline: float | None = None,
        names: tuple[str, ...] = (),
    ) -> Prediction:
        """Probabilities and verdicts for x [N, C, H, W] in [0, 1].

        Args:
            deadline: on the monotonic clock; the settings' bound when None.
            names: under which feedback may name the answer.

        Raises:
            Busy, Expired, NotReady: when it cannot be computed in time.
        """
        until = time.monotonic() + self._settings.request_timeout_seconds if deadline is None else deadline
        return await self.batcher.ask(Job(loaded, x, client, until, names))

    def _compute(self, loaded: LoadedModel, x: Tensor) -> Prediction:
        began = time.perf_counter()
        loaded, probabilities = self._probabilities(loaded, x)
        verdicts = None
        if loaded.detector is not None and self._settings.detection:
            try:
                verdicts = loaded.assess(x, probabilities)
                self._problems.clear("detector")
            except Exception as error:   # a fault of the guard must not become a fault of the service
                if "detector" not in self._problems.current():   # once, not with every batch while it lasts
                    log.exception("assessing inputs failed")
                self._problems.note("detector", f"version {loaded.version}: {type(error).__name__}: {error}")
        self._notes.verdicts, self._notes.seconds = verdicts, time.perf_counter() - began
        return predict(loaded, probabilities, verdicts)

    def _probabilities(self, loaded: LoadedModel, x: Tensor) -> tuple[LoadedModel, Tensor]:
        """What the model says; where it fails what the other one says, if it takes the same inputs: the one before a
        new champion, and the one that took over again for requests that were read before it did."""
        try:
            probabilities = loaded.probabilities(x)
            if not torch.isfinite(probabilities).all():
                raise FloatingPointError("its answer is not finite")
            return loaded, probabilities
        except Exception as error:
            with self._swapping:
                fallback = self.previous if loaded is self._current else self._current
            if fallback is None or not _alike(fallback, loaded):
                raise
            log.warning("version %s failed on a batch, version %s answers: %s", loaded.version, fallback.version, error)
            reason = self._probation.erred(loaded, error)
            if reason:
                self._convicted(loaded, reason)
            return fallback, fallback.probabilities(x)

    def _answered(self, prediction: Prediction, x: Tensor, jobs: list[Job]) -> None:
        notes = self._notes
        self._observe(Seen(
            loaded=prediction.loaded, x=x, predicted=prediction.outputs["label"], verdicts=notes.verdicts, jobs=jobs,
            seconds=notes.seconds,
        ))
        self._try(prediction.loaded, x, notes.seconds)

    def _try(self, loaded: LoadedModel, x: Tensor, seconds: float) -> None:
        """A new champion that looks slow is compared with the one before, after the batch was answered."""
        before = self._probation.suspects(loaded, len(x), seconds)
        if before is None or not _alike(before, loaded):
            return
        part = x[: CHUNK[self.device.type]]   # what is computed in one go: who waits should not wait for a dozen of all
        reason = self._probation.compare(loaded, before, lambda model: self._run(model, part))
        if reason:
            self._convicted(loaded, reason)

    def _run(self, model: LoadedModel, x: Tensor) -> None:
        probabilities = model.probabilities(x)
        if model.detector is not None and self._settings.detection:
            with contextlib.suppress(Exception):   # as in service, where a detector that fails costs no answer
                model.assess(x, probabilities)

    def stop(self) -> None:
        """Finish what is queued and end the threads."""
        self.batcher.stop()


def _alike(one: LoadedModel, other: LoadedModel) -> bool:
    return (
        one is not other and one.bundle.architecture.input_shape == other.bundle.architecture.input_shape
        and one.bundle.classes == other.bundle.classes
    )


def _device(name: str) -> torch.device:
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)
