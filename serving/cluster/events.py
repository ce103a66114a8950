"""What happens to a campaign, as Kubernetes Events of this pod: `kubectl get events` and alerts on them see it."""

from __future__ import annotations

import logging
import secrets

from redoubt.cluster.errors import ClusterError
from redoubt.cluster.kubernetes import EVENT, POD, Kubernetes, now_micro, now_seconds

log = logging.getLogger("redoubt.serving")
MOST_BYTES = 1000   # of a message; the API takes 1024


class Events:
    """Writes Events about one pod. One that cannot be written is logged: it is never worth more than what it tells of.

    Args:
        pod, uid: this replica's pod; `kubectl describe pod` shows the events where the uid is known.
    """

    def __init__(self, kubernetes: Kubernetes, pod: str, uid: str = ""):
        self._kubernetes, self._pod, self._uid = kubernetes, pod, uid

    def tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        """Write one Event.

        Args:
            reason: one word in CamelCase, what alerts match.
            message: for people.
        """
        now = now_seconds()
        about = {"apiVersion": POD.api, "kind": POD.kind, "name": self._pod, "namespace": self._kubernetes.namespace}
        content = {
            "involvedObject": about | ({"uid": self._uid} if self._uid else {}), "reason": reason, "count": 1,
            "message": message.encode()[:MOST_BYTES].decode(errors="ignore"),
            "type": "Warning" if warning else "Normal",
            "firstTimestamp": now, "lastTimestamp": now, "eventTime": now_micro(), "action": reason,
            "source": {"component": "redoubt-serving"}, "reportingComponent": "redoubt.dev/serving",
            "reportingInstance": self._pod,
        }
        try:
            self._kubernetes.create(EVENT, f"{self._pod}.{secrets.token_hex(8)}", content)
        except ClusterError as error:
            log.warning("the event %s (%s) could not be written: %s", reason, message, error)
