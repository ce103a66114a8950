"""Where training begins: with the weights of a version, or with random ones."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from redoubt.bundle import MANIFEST, WEIGHTS, Bundle, open_bundle
from redoubt.data import Prepared
from redoubt.errors import InvalidInput, RedoubtError
from redoubt.models import Architecture
from redoubt.registry import Registry, Version

_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<number>[0-9]+)|@(?P<alias>[^/@]+))")


@dataclass(frozen=True, kw_only=True)
class Start:
    """What training begins with.

    Attributes:
        bundle: the version whose weights are taken; None for random ones.
        version: its name in the registry, NAME/NUMBER; empty for a folder.
        asked: whether these weights were asked for by name, rather than being a retraining run's parent.
        given_up: why the parent's weights are not used, though nobody asked for random ones.
    """

    bundle: Bundle | None = None
    version: str = ""
    asked: bool = False
    given_up: str = ""

    def to_json(self) -> dict | None:
        """What the manifest says of it; None for random weights."""
        if self.bundle is None:
            return None
        return {"version": self.version, "weights_sha256": self.bundle.manifest["files"][WEIGHTS],
                "threats": self.bundle.manifest["threats"], "objective": self.bundle.manifest["objective"]}


def find(
    start: str, *, parent: int, from_scratch: bool, model_name: str, tracking_uri: str, folder: Path,
    wanted: Architecture, data: Prepared,
) -> Start:
    """The version to begin with, copied to `folder` when it comes from the registry.

    What was asked for by name must exist and fit. A retraining run begins with its parent's weights unasked, and an
    answer to an attack must not fail for want of them: without them it begins with random ones and says why.

    Args:
        start: a bundle's folder, `models:/NAME/VERSION` or `models:/NAME@ALIAS`; empty to begin with the parent.
        parent: number of the version that the run answers for; 0 for none.
        wanted: the network that the run is for.
        data: what it trains on.

    Raises:
        InvalidInput: when `start` names no version, or one of another architecture, shape or set of classes, or one
            that was trained on another split of the same data: it knows pictures that this run is tested on.
        ArtifactError, RegistryError: when it cannot be read.
    """
    if from_scratch or not (start or (parent and model_name)):
        return Start()
    uri = start or f"models:/{model_name}/{parent}"
    try:
        bundle, version = _open(uri, tracking_uri, folder)
        if unfit := _unfit(bundle, wanted, data):
            raise InvalidInput(f"{uri} cannot be the start: {unfit}" + (": leave it empty" if start else ""))
        return Start(bundle=bundle, version=version, asked=bool(start))
    except RedoubtError as error:
        if start:
            raise
        return Start(given_up=str(error))


def _open(uri: str, tracking_uri: str, folder: Path) -> tuple[Bundle, str]:
    found = look_up(uri, tracking_uri)
    if found is None:
        return open_bundle(uri), ""
    registry, version = found
    return registry.fetch(version, folder), f"{version.name}/{version.number}"


def look_up(uri: str, tracking_uri: str) -> tuple[Registry, Version] | None:
    """The version that `models:/NAME/VERSION` or `models:/NAME@ALIAS` names; None for a bundle's folder.

    Raises:
        InvalidInput: when there is no such version or folder.
        RegistryError: when the registry cannot be read.
    """
    if not uri.startswith("models:"):
        if not (Path(uri) / MANIFEST).is_file():
            raise InvalidInput(f"start {uri!r} is no bundle's folder: write one, models:/NAME/VERSION or "
                               "models:/NAME@ALIAS")
        return None
    match = _URI.fullmatch(uri)
    if match is None:
        raise InvalidInput(f"start {uri!r}: write models:/NAME/VERSION, models:/NAME@ALIAS or a bundle's folder")
    if not tracking_uri:
        raise InvalidInput(f"start {uri!r} lies in a registry, and no tracking URI is given")
    registry = Registry(tracking_uri, match["name"])
    version = registry.version(match["number"]) if match["number"] else registry.by_alias(match["alias"])
    if version is None:
        raise InvalidInput(f"start {uri!r}: {match['name']} has no alias {match['alias']!r}")
    return registry, version


def _unfit(bundle: Bundle, wanted: Architecture, data: Prepared) -> str:
    have, classes, trained_on = bundle.architecture, list(data.classes), bundle.manifest.get("data") or {}
    if (have.name, have.input_shape, list(bundle.classes)) != (wanted.name, wanted.input_shape, classes):
        return (f"it is {have.name} for {have.input_shape} and {_some(bundle.classes)}, "
                f"this run {wanted.name} for {wanted.input_shape} and {_some(classes)}")
    if trained_on.get("dataset") == data.metadata["dataset"] and trained_on.get("seed") != data.metadata["seed"]:
        return (f"it was trained on split {trained_on.get('seed')} of {data.metadata['dataset']} and knows pictures "
                "that this run keeps for its tests: take the same split seed")
    return ""


def _some(classes: list[str]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"
