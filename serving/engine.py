"""Computes predictions and verdicts with whatever model is current, and swaps models without dropping a request."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from redoubt.bundle import Bundle
from redoubt.detection import Detector, Verdicts
from redoubt.errors import ArtifactError
from redoubt.models import Classifier
from serving.problems import NotReady, Problems

log = logging.getLogger("redoubt.serving")
CHUNK = 256   # inputs a forward pass; bounds the memory that one request can take
_WARM_UP = (1, 32)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A version in memory. Everything that an answer depends on travels in this one reference.

    Attributes:
        version: its number in the registry.
        run_id: the registry's id of the run that made it: another registry's version may have the same number.
        detector: None for a version without one.
        loaded_at: unix seconds.
    """

    version: str
    bundle: Bundle
    model: Classifier
    detector: Detector | None
    run_id: str = ""
    loaded_at: float = field(default_factory=time.time)

    @property
    def key(self) -> str:
        """What tells it from every other version, of this registry and of others; a folder's name."""
        return version_key(self.version, self.run_id)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model and its detector say about N inputs.

    Attributes:
        version: the version that answered.
        probabilities: [N, K].
        verdicts: None when the version has no detector or it failed.
    """

    version: str
    probabilities: Tensor
    verdicts: Verdicts | None

    def tensors(self) -> dict[str, Tensor]:
        """Named outputs of the protocol, first dimension N."""
        named = {"label": self.probabilities.argmax(1), "probabilities": self.probabilities}
        if self.verdicts is not None:
            named |= {
                "is_adversarial": self.verdicts.is_adversarial,
                "instance_score": self.verdicts.score,
                "strength": self.verdicts.strength,
                "strength_interval": torch.stack([self.verdicts.low, self.verdicts.high], 1),
            }
        return named


def version_key(version: str, run_id: str) -> str:
    """A folder's name for a version: its number and the beginning of its run's id."""
    return f"{version}-{run_id[:12]}"


def load(bundle: Bundle, version: str, run_id: str = "") -> LoadedModel:
    """Bring a verified bundle into memory and run it once, so that its first request is as fast as the rest.

    Raises:
        ArtifactError: when model or detector cannot be loaded, or do not answer sensibly.
    """
    try:
        model = bundle.model().requires_grad_(False)
        detector = Detector.load(bundle.folder, model) if bundle.has_detector else None
        loaded = LoadedModel(version=version, run_id=run_id, bundle=bundle, model=model, detector=detector)
        shape = bundle.architecture.input_shape
        for n in _WARM_UP:
            x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(n))
            probabilities = _probabilities(loaded, x)
            if probabilities.shape != (n, len(bundle.classes)) or not probabilities.isfinite().all():
                raise ArtifactError(f"it does not answer with {len(bundle.classes)} finite probabilities")
            if detector is not None:
                detector.assess(x)
    except Exception as error:   # whatever a bad folder makes torch raise
        raise ArtifactError(f"version {version} cannot be served: {error}") from error
    return loaded


def _probabilities(loaded: LoadedModel, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([loaded.model(part) for part in x.split(CHUNK)]).softmax(1)


class Engine:
    """The current model and the threads that compute with it.

    Args:
        threads: torch threads within one operation.
        workers: requests computed at a time.
        observe: called with (loaded model, inputs, verdicts) after each assessed request, in the computing thread.
    """

    def __init__(
        self, *, threads: int, workers: int, problems: Problems,
        observe: Callable[[LoadedModel, Tensor, Verdicts], None],
    ):
        self._problems, self._observe = problems, observe
        self._current: LoadedModel | None = None
        self.previous: LoadedModel | None = None
        torch.set_num_threads(threads)
        self._pool = ThreadPoolExecutor(workers, "compute", initializer=lambda: torch.set_num_threads(threads))
        self._swapping = threading.Lock()

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

    def swap(self, loaded: LoadedModel) -> None:
        """Answer with `loaded` from now on; requests under way finish with the model that they began with."""
        with self._swapping:
            self.previous, self._current = self._current, loaded

    async def run(self, work: Callable[..., Any], *args) -> Any:
        """Do `work` in a computing thread, first come, first served; the event loop stays free."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    def predict(self, loaded: LoadedModel, x: Tensor) -> Prediction:
        """Probabilities and verdicts for x [N, C, H, W] in [0, 1]; the verdicts go to the watch. Blocks."""
        probabilities = _probabilities(loaded, x)
        verdicts = None
        if loaded.detector is not None:
            try:
                verdicts = _assess(loaded.detector, x)
                self._observe(loaded, x, verdicts)
                self._problems.clear("detector")
            except Exception as error:   # a fault of the guard must not become a fault of the service
                log.exception("assessing inputs failed")
                self._problems.note("detector", f"version {loaded.version}: {type(error).__name__}: {error}")
        return Prediction(version=loaded.version, probabilities=probabilities, verdicts=verdicts)

    def stop(self) -> None:
        """Finish what is queued and end the threads."""
        self._pool.shutdown(wait=True)


def _assess(detector: Detector, x: Tensor) -> Verdicts:
    parts = [detector.assess(part) for part in x.split(CHUNK)]
    if len(parts) == 1:
        return parts[0]
    return Verdicts(**{name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0].__dict__})
