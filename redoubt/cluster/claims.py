"""A run claims what it answers by creating a Lease named after it. Whoever comes second finds it and ends.

The API server creates a name once, whatever replicas did or did not see: this is what makes a late writer's second run
harmless. A claim is never renewed and never taken over; it goes with the request that it belongs to.
"""

from __future__ import annotations

import contextlib
import re

from redoubt.cluster.errors import Conflict, NotFound
from redoubt.cluster.kubernetes import LEASE, Kubernetes, now_micro

VOID = "void"   # holder of a claim that no run may take any more: its attempt was given up
_LABELS = {"app.kubernetes.io/part-of": "redoubt", "redoubt.dev/role": "claim"}


def claim_name(cause: str, attempt: int = 0) -> str:
    """The Lease's name for an attempt at answering `cause`, a campaign: `redoubt-` and the campaign's name.

    Args:
        attempt: how many runs for it failed before; from the second one on it is part of the name.
    """
    name = re.sub(r"[^a-z0-9.-]+", "-", f"redoubt-{cause}".lower()).strip("-.")
    return f"{name}-{attempt + 1}" if attempt else name


def claim(kubernetes: Kubernetes, name: str, holder: str) -> str:
    """Take the claim `name` for `holder`, a run's id, unless it is taken.

    Returns:
        Who holds it now: `holder`, also where it took the claim before and is run again, or another run's id, or VOID.
    """
    spec = {"holderIdentity": holder, "acquireTime": now_micro()}
    try:
        kubernetes.create(LEASE, name, {"spec": spec}, labels=_LABELS)
    except Conflict:
        found = holder_of(kubernetes, name)
        return VOID if found is None else found
    return holder


def holder_of(kubernetes: Kubernetes, name: str) -> str | None:
    """Which run holds the claim `name`; None while nobody does."""
    try:
        return kubernetes.get(LEASE, name).get("spec", {}).get("holderIdentity") or VOID
    except NotFound:
        return None


def forget(kubernetes: Kubernetes, name: str) -> None:
    """Remove the claim `name`, if it is there, of a request that nobody answers any more."""
    with contextlib.suppress(NotFound):
        kubernetes.delete(LEASE, name)


def take(name: str, holder: str) -> str:
    """`claim`, from within a run's pod and in its namespace."""
    return claim(Kubernetes.in_cluster(), name, holder)
