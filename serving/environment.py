"""Variables that look like settings of this project and are none: a misspelt one would be passed over in silence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from serving.settings import Settings

PREFIX = "REDOUBT_"
# What training, pipelines and the other commands read (docs/settings.md).
OTHERS = frozenset({
    "API_KEY", "CHECKPOINTS", "CLUSTER", "DATA", "IMAGE", "KFP_COOKIE", "KFP_TOKEN", "OCI_PASSWORD", "OCI_USER",
    "PROGRESS", "SIGNING_KEY", "TRAIN_JOB",
})
_GONE = {"CLIENT_EVIDENCE": "is gone: REDOUBT_FEW_CLIENTS took its place (a number of clients, not of inputs)"}
# What Kubernetes puts into every container for a Service whose name begins with `redoubt`.
_SERVICE_LINK = re.compile(r"(^|_)(SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP)\w*)?)$")


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """A sentence for each variable that nothing here reads, with the name that was probably meant."""
    environment = set(environment)
    linked = "KUBERNETES_SERVICE_HOST" in environment
    known = OTHERS | {name.upper() for name in Settings.model_fields}
    found = sorted(name for name in environment if name.upper().startswith(PREFIX))
    names = {variable: variable.upper().removeprefix(PREFIX) for variable in found}
    return [
        _sentence(variable, name, known) for variable, name in names.items()
        if name not in known and not (linked and _SERVICE_LINK.search(name))
    ]


def _sentence(variable: str, name: str, known: frozenset[str]) -> str:
    if name in _GONE:
        return f"{variable} {_GONE[name]}"
    near = get_close_matches(name, sorted(known), n=1)
    return f"{variable} is no setting and is ignored" + (f": do you mean {PREFIX}{near[0]}?" if near else "")
