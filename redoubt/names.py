"""Names that several systems must read alike."""

from __future__ import annotations

import re

from redoubt.errors import InvalidInput

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous_champion"
ALIASES = (CHAMPION, CHALLENGER, PREVIOUS)
REFUSAL = "refusal"   # the step that a run has only where the gate refused its version
REPORT = "report.json"   # the file of an evaluation, in a version's bundle and wherever else one lies
# A dataset elsewhere, its checksum in its name: see `redoubt.data.remote`.
REMOTE = re.compile(r"(https?|s3)://[^#\s]+\.(npz|zip|tar|tgz|tar\.gz)#sha256=[0-9a-f]{64}"
                    r"|oci://[^@\s/]+/[^@\s]+@sha256:[0-9a-f]{64}")
SCHEMES = ("http://", "https://", "s3://", "oci://")
_TORCHVISION = re.compile(r"torchvision:[a-z0-9_]+")


def check_model_name(name: str) -> None:
    """Raise InvalidInput for a name that MLflow, a URL or a folder would misread, and for one that is an alias."""
    if name in ALIASES:
        raise InvalidInput(f"model name {name!r} is an alias of versions: commands would not know which one is meant")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise InvalidInput(f"model name {name!r}: use letters, digits, '.', '_' and '-', a letter or digit first")


def check_remote(dataset: str) -> None:
    """Raise InvalidInput for a remote dataset without a checksum, or of a kind that cannot be read."""
    if not REMOTE.fullmatch(dataset):
        raise InvalidInput(f"dataset {dataset!r}: a remote one carries its checksum: https://HOST/FILE#sha256=DIGEST, "
                           "s3://BUCKET/FILE#sha256=DIGEST (.npz, .zip, .tar, .tar.gz) or oci://REGISTRY/NAME@sha256:DIGEST")


def is_torchvision(name: str) -> bool:
    """Whether `name` has the form `torchvision:resnet18`; whether torchvision knows it is found out by building it."""
    return _TORCHVISION.fullmatch(name) is not None
