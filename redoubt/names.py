"""Names that several systems must read alike."""

from __future__ import annotations

import re

from redoubt.errors import InvalidInput

_TORCHVISION = re.compile(r"torchvision:[a-z0-9_]+")


def check_model_name(name: str) -> None:
    """Raise InvalidInput for a name that MLflow, a URL or a folder would misread."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise InvalidInput(f"model name {name!r}: use letters, digits, '.', '_' and '-', a letter or digit first")


def is_torchvision(name: str) -> bool:
    """Whether `name` has the form `torchvision:resnet18`; whether torchvision knows it is found out by building it."""
    return _TORCHVISION.fullmatch(name) is not None
