"""A model version in memory: how it is loaded and warmed, and how it answers a batch. No threads here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from redoubt.bundle import Bundle
from redoubt.detection import Budget, Detector, Verdicts
from redoubt.errors import ArtifactError
from redoubt.models import Classifier
from serving.accelerate import accelerate, least_of
from serving.calm import no_pause

log = logging.getLogger("redoubt.serving")
CHUNK = {"cpu": 32, "cuda": 256}   # inputs a forward pass; bounds the memory that one batch can take
_WARM_UP = (1, 8, 32)
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A version in memory. Everything that an answer depends on travels in this one reference.

    Attributes:
        version: its number in the registry.
        run_id: the registry's id of the run that made it: another registry's version may have the same number.
        detector: None for a version without one.
        loaded_at: unix seconds.
        forward: the model in its quickest form; None for the model itself.
    """

    version: str
    bundle: Bundle
    model: Classifier
    detector: Detector | None
    run_id: str = ""
    loaded_at: float = field(default_factory=time.time)
    device: torch.device = _CPU
    forward: Callable[[Tensor], Tensor] | None = None

    @property
    def key(self) -> str:
        """What tells it from every other version, of this registry and of others; a folder's name."""
        return version_key(self.version, self.run_id)

    def probabilities(self, x: Tensor) -> Tensor:
        """Class probabilities [N, K] on the CPU for x [N, C, H, W] on the CPU."""
        with torch.inference_mode():
            forward = self.forward or self.model
            parts = [forward(part.to(self.device, non_blocking=True)) for part in x.split(CHUNK[self.device.type])]
            return (parts[0] if len(parts) == 1 else torch.cat(parts)).float().softmax(1).cpu()

    def assess(self, x: Tensor, probabilities: Tensor | None = None) -> Verdicts:
        """The detector's verdicts on x, on the CPU; what the model answered [N, K] spares it asking again."""
        verdicts = self.detector.assess(x.to(self.device, non_blocking=True), probabilities)
        if self.device.type == "cpu":
            return verdicts
        return Verdicts(**{name: value.cpu() for name, value in vars(verdicts).items()})


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model and its detector say about N inputs.

    Attributes:
        loaded: the version that answered.
        outputs: named outputs of the protocol, first dimension N; verdicts are absent without a detector.
    """

    loaded: LoadedModel
    outputs: dict[str, np.ndarray]

    @property
    def flagged(self) -> np.ndarray | None:
        """The verdicts, bool [N]; None when there are none."""
        return self.outputs.get("is_adversarial")

    def rows(self, start: int, stop: int) -> Prediction:
        """The part about inputs start to stop."""
        return Prediction(loaded=self.loaded, outputs={k: v[start:stop] for k, v in self.outputs.items()})


def predict(loaded: LoadedModel, probabilities: Tensor, verdicts: Verdicts | None) -> Prediction:
    """Put together what a client may be told."""
    outputs = {"label": probabilities.argmax(1).numpy(), "probabilities": probabilities.numpy()}
    if verdicts is not None:
        outputs |= {
            "is_adversarial": verdicts.is_adversarial.numpy(),
            "instance_score": verdicts.score.numpy(),
            "attack_probability": verdicts.probability.numpy(),
            "strength": verdicts.strength.numpy(),
            "strength_interval": torch.stack([verdicts.low, verdicts.high], 1).numpy(),
        }
    return Prediction(loaded=loaded, outputs=outputs)


def version_key(version: str, run_id: str) -> str:
    """A folder's name for a version: its number and the beginning of its run's id."""
    return f"{version}-{run_id[:12]}"


def load(
    bundle: Bundle, version: str, run_id: str = "", *, device: torch.device | None = None, quick: bool = False,
    like: LoadedModel | None = None, pause: Callable[[], None] = no_pause,
) -> LoadedModel:
    """Bring a verified bundle into memory and run it, so that its first request is as fast as the rest.

    Args:
        quick: look for a faster form of the model; it must answer the same.
        like: a version that was loaded before: of the same architecture, its quickest form is this one's, too.
        pause: called between two steps.

    Raises:
        ArtifactError: when model or detector cannot be loaded, or do not answer sensibly.
    """
    device = device or _CPU
    try:
        model = bundle.model(device).requires_grad_(False)
        pause()
        detector = Detector.load(bundle.folder, model) if bundle.has_detector else None
        pause()
        fast = None
        if quick and device.type == "cpu":
            known = like is not None and like.bundle.architecture == bundle.architecture
            fast = accelerate(model, bundle.architecture.input_shape, pause=pause,
                              least=least_of(like.forward) if known else None)
        loaded = LoadedModel(
            version=version, run_id=run_id, bundle=bundle, model=model, detector=detector, device=device, forward=fast
        )
        _warm_up(loaded, pause)
        if detector is not None:
            detector.budget = Budget()   # an attack must not slow the answers to everyone else
    except Exception as error:   # whatever a bad folder makes torch raise
        raise ArtifactError(f"version {version} cannot be served: {error}") from error
    return loaded


def _warm_up(loaded: LoadedModel, pause: Callable[[], None]) -> None:
    classes = len(loaded.bundle.classes)
    for n in _WARM_UP:
        x = torch.rand(n, *loaded.bundle.architecture.input_shape, generator=torch.Generator().manual_seed(n))
        probabilities = loaded.probabilities(x)
        if probabilities.shape != (n, classes) or not probabilities.isfinite().all():
            raise ArtifactError(f"it does not answer with {classes} finite probabilities")
        if loaded.detector is not None:
            loaded.assess(x, probabilities)
        pause()
