"""Which replica leads: the holder of a Lease, renewed while it lives, taken over when it is silent for too long.

The clocks of two machines are never compared: a replica watches, by its own clock, for how long the Lease has not
changed. One that leads stops to believe so well before another may take over, also when it could not renew in between.
What a replica that slept through its term may still write, the ledger and the claims render harmless.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable

from redoubt.cluster.errors import ClusterError, Conflict, NotFound
from redoubt.cluster.kubernetes import LEASE, Kubernetes, now_micro
from serving.problems import Problems

log = logging.getLogger("redoubt.serving")
_LABELS = {"app.kubernetes.io/part-of": "redoubt", "redoubt.dev/role": "leader"}


class Leadership:
    """Takes part in the election for one Lease.

    Args:
        name: the Lease's name.
        replica: this replica's name; a random part is added, for a container that is restarted is another one.
        seconds: after so many without a renewal another replica takes over.
        on_change: called, in the election's thread, with whether this replica leads from now on.
    """

    def __init__(
        self, kubernetes: Kubernetes, name: str, replica: str, problems: Problems, *, seconds: float = 15.0,
        on_change: Callable[[bool], None] = lambda leads: None, clock: Callable[[], float] = time.monotonic,
    ):
        self._kubernetes, self._name, self._problems = kubernetes, name, problems
        self._seconds, self._clock, self.on_change = seconds, clock, on_change
        self.replica, self.identity = replica, f"{replica}_{secrets.token_hex(4)}"
        self._until, self._terms, self._told = -math.inf, 0, False
        self._seen: tuple | None = None   # what the Lease looked like, and since when
        self._seen_at = clock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="leadership", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and give the Lease back, so that another replica need not wait for it to run out."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        if self.leads:
            self._until = -math.inf
            try:
                self._give_back()
            except ClusterError as error:
                log.info("the lease %s was not given back: %s", self._name, error)

    @property
    def leads(self) -> bool:
        """Whether this replica may act for all, now."""
        return self._clock() < self._until

    @property
    def term(self) -> str | None:
        """A name for this replica's present time in office; None while it does not lead."""
        return f"{self.identity}.{self._terms}" if self.leads else None

    def resign(self) -> None:
        """Another replica is found to have taken over: stop leading now."""
        self._until = -math.inf

    def confirm(self) -> bool:
        """Ask the API whether the Lease is ours, whatever the clock says: a machine that was suspended has none.

        Raises:
            ClusterError: when it does not answer.
        """
        try:
            ours = self._kubernetes.get(LEASE, self._name).get("spec", {}).get("holderIdentity") == self.identity
        except NotFound:
            ours = False
        if not ours:
            self.resign()
        return ours

    def campaign(self) -> bool:
        """One look at the Lease: renew it, take it, or leave it to its holder. Returns whether this replica leads."""
        began, led = self._clock(), self.leads
        try:
            if self._take(began):
                self._terms += not led
                self._until = began + self._seconds * 2 / 3
            elif led:
                self.resign()
            self._problems.clear("leadership")
        except Conflict:
            self.resign()   # another replica was faster
        except ClusterError as error:   # led until its time is over: it may answer again before
            self._problems.note("leadership", str(error))
        if self.leads != self._told:
            self._told = self.leads
            log.info("%s %s", self.identity, "leads" if self._told else "does not lead any more")
            self.on_change(self._told)
        return self.leads

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                self.campaign()
            except Exception as error:
                log.exception("the election failed")
                self._problems.note("leadership", f"{type(error).__name__}: {error}")
            self._stop.wait(self._seconds / 5)

    def _take(self, now: float) -> bool:
        """Renew the Lease or take it where it is free; whether it is ours."""
        try:
            lease = self._kubernetes.get(LEASE, self._name)
        except NotFound:
            spec = self._spec(transitions=0) | {"acquireTime": now_micro()}
            self._kubernetes.create(LEASE, self._name, {"spec": spec}, labels=_LABELS)
            return True
        spec = lease.setdefault("spec", {})
        holder = spec.get("holderIdentity")
        if holder == self.identity:
            lease["spec"] = spec | self._spec(transitions=spec.get("leaseTransitions", 0))
        elif not holder or self._silent(lease, now):
            taken = self._spec(transitions=spec.get("leaseTransitions", 0) + 1) | {"acquireTime": now_micro()}
            lease["spec"] = spec | taken
        else:
            return False
        self._kubernetes.replace(LEASE, lease)
        return True

    def _silent(self, lease: dict, now: float) -> bool:
        """Whether the Lease has not changed for as long as its holder said it would hold."""
        looks = (lease["spec"].get("holderIdentity"), lease["spec"].get("renewTime"), lease["metadata"]["uid"])
        if looks != self._seen:
            self._seen, self._seen_at = looks, now
        return now - self._seen_at >= lease["spec"].get("leaseDurationSeconds", self._seconds)

    def _give_back(self) -> None:
        lease = self._kubernetes.get(LEASE, self._name)
        if lease.get("spec", {}).get("holderIdentity") == self.identity:
            lease["spec"] |= {"holderIdentity": "", "renewTime": now_micro()}
            self._kubernetes.replace(LEASE, lease)

    def _spec(self, *, transitions: int) -> dict:
        return {"holderIdentity": self.identity, "leaseDurationSeconds": max(1, math.ceil(self._seconds)),
                "renewTime": now_micro(), "leaseTransitions": transitions}
