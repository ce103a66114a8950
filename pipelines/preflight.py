"""What a run here will need and can be looked at now, before its first step: registry, start, architecture."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.home import sqlite_file
from pipelines.parameters import RunParameters
from redoubt.errors import InvalidInput, RedoubtError
from redoubt.names import is_torchvision


def check(parameters: RunParameters) -> None:
    """Look whether the run finds what it names. It imports only what the answer takes.

    Raises:
        InvalidInput: when the registry cannot be reached or made, `start` is no version, or torchvision has no such
            network.
    """
    if is_torchvision(parameters.architecture):
        import torch

        from redoubt.models import Architecture, build

        with torch.device("meta"):   # no memory, no arithmetic
            build(Architecture(name=parameters.architecture, num_classes=10, channels=3, size=32, mean=(0.0,) * 3,
                               std=(1.0,) * 3))
    _registry(parameters.tracking_uri, parameters.model_name)
    if parameters.start:
        from components.train.parent import look_up

        try:
            look_up(parameters.start, parameters.tracking_uri)
        except RedoubtError as error:
            raise InvalidInput(str(error)) from None


def _registry(uri: str, model_name: str) -> None:
    file = sqlite_file(uri)
    if file is not None and not file.exists():   # MLflow makes the file, but no folder
        if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
            raise InvalidInput(f"no registry can be made at {uri}: {file.parent} is no folder to write to")
    elif file is None or not _is_home(file):
        from redoubt.registry import Registry

        try:
            Registry(uri, model_name).champion()
        except RedoubtError as error:
            raise InvalidInput(str(error)) from None


def _is_home(file: Path) -> bool:
    """Whether a run wrote it: then asking it would cost three seconds and tell nothing."""
    return file.is_file() and file.stat().st_size > 0
