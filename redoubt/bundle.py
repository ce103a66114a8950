"""A model version as a folder: weights, card, report and detector, each file with its sha256. No pickle anywhere.

    manifest.json         format, architecture, classes, threats, objective, parameters, data, and {file: sha256}
    model.safetensors     weights, normalisation included
    detector.safetensors, detector.json    the version's own detector; absent until it is fitted
    report.json, report.html               absent until it is evaluated
    manifest.sig                           signature of the manifest; absent unless a key was given
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from redoubt.errors import ArtifactError, RedoubtError
from redoubt.models import Architecture, Classifier, build
from redoubt.signing import SIGNATURE, verify
from redoubt.threat import ThreatModel, dump_threats, load_threats

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A model folder whose files were verified.

    Attributes:
        folder: where it lies.
        manifest: its manifest, as written by `write_bundle` and `seal`.
    """

    folder: Path
    manifest: dict

    @property
    def architecture(self) -> Architecture:
        return Architecture(**self.manifest["architecture"])

    @property
    def classes(self) -> list[str]:
        return self.manifest["classes"]

    @property
    def threats(self) -> tuple[ThreatModel, ...]:
        """The set that this version was trained against; empty for an undefended model."""
        return load_threats(json.dumps(self.manifest["threats"]))

    @property
    def has_detector(self) -> bool:
        return "detector.json" in self.manifest["files"]

    def model(self, device: str | torch.device = "cpu") -> Classifier:
        """The network with its weights, in eval mode.

        Raises:
            ArtifactError: when the weights do not fit the architecture.
        """
        model = build(self.architecture)
        try:
            model.load_state_dict(load_file(self.folder / WEIGHTS))
        except (RuntimeError, SafetensorError, OSError) as error:
            raise ArtifactError(f"{self.folder / WEIGHTS} does not fit {self.architecture.name}: {error}") from None
        return model.eval().to(device, memory_format=torch.channels_last)   # a quarter quicker on CPU, more on CUDA


def write_bundle(folder: Path, model: Classifier, *, classes, threats, **card) -> Bundle:
    """Write a model folder.

    Args:
        card: further facts for the manifest, such as objective, parameters, data, training; JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    manifest = {
        "format": FORMAT,
        "architecture": model.architecture.to_json(),
        "classes": list(classes),
        "threats": json.loads(dump_threats(threats)),
        **card,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return seal(folder)


def seal(folder: Path, **card) -> Bundle:
    """Record the sha256 of every file that now lies in `folder`, and add `card` to the manifest."""
    manifest = json.loads((folder / MANIFEST).read_text()) | card
    (folder / SIGNATURE).unlink(missing_ok=True)   # it was over another manifest
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    manifest["files"] = {str(file.relative_to(folder)): _sha256(file) for file in files}
    temporary = folder / (MANIFEST + ".new")
    temporary.write_text(json.dumps(manifest, indent=1))
    temporary.replace(folder / MANIFEST)
    return open_bundle(folder)


def open_bundle(folder: Path | str, *, trusted: Sequence = ()) -> Bundle:
    """Open a model folder and verify every file in it.

    Args:
        trusted: public keys (`redoubt.signing.trusted_keys`); if there are any, one of them must have signed it.

    Raises:
        ArtifactError: naming the file that is missing, altered, of an unknown format or not signed.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = dict(manifest["files"])
        if manifest["format"] != FORMAT:
            raise ArtifactError(f"{folder}: format {manifest['format']} is unknown, this release reads {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / MANIFEST} cannot be read ({error})") from None
    if trusted:
        verify(folder, MANIFEST, trusted)
    if WEIGHTS not in files:
        raise ArtifactError(f"{folder / MANIFEST} does not list {WEIGHTS}")
    for name, expected in files.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ArtifactError(f"{folder / MANIFEST} lists {name}, which lies outside the folder")
        if not file.is_file():
            raise ArtifactError(f"{file} is missing")
        if _sha256(file) != expected:
            raise ArtifactError(f"{file} does not match its sha256 in the manifest")
    bundle = Bundle(folder, manifest)
    try:
        bundle.architecture, bundle.threats, bundle.classes   # noqa: B018 - they raise on bad values
    except (RedoubtError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / MANIFEST} holds a value that cannot be used ({error})") from None
    return bundle


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
