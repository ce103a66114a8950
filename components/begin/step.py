"""What must be settled anew in every run, and is never taken from the cache: whose campaign it answers, and which data
there are now."""

from __future__ import annotations

from redoubt.cluster.claims import VOID, take
from redoubt.data.fingerprint import fingerprint
from redoubt.errors import Refused


class Claimed(Refused):
    """Another run answers this campaign; this one ends before it trains."""


def run(*, dataset: str, data_dir: str = "", claim: str = "", run: str = "") -> str:
    """Take the claim, if there is one, and return the data's fingerprint.

    The fingerprint is part of what `prepare_data` is asked, so that its cached output is used for the same data only.

    Args:
        claim: name of the Lease that says which run answers a campaign; empty for a run that answers none.
        run: this run's id.

    Raises:
        Claimed: when another run has it, or its attempt was given up.
        ClusterError: when the Kubernetes API does not let this pod create the Lease.
        InvalidInput: when the data are not there.
    """
    if claim:
        holder = take(claim, run)
        if holder == VOID:
            raise Claimed(f"{claim} was given up before this run began: it ends without training")
        if holder != run:
            raise Claimed(f"{claim} is answered by run {holder}: this one ends without training")
    return fingerprint(dataset, data_dir)
