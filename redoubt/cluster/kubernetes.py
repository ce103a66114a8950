"""The Kubernetes API, as far as Redoubt uses it: objects of one namespace, read, created, replaced and merged."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx

from redoubt.cluster.errors import Unreachable
from redoubt.cluster.http import Connection

MOUNTED = Path("/var/run/secrets/kubernetes.io/serviceaccount")   # what kubelet mounts into a pod: token, CA, namespace


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of object: its API's group and version, its name in paths, its name in objects."""

    api: str
    plural: str
    kind: str

    @property
    def prefix(self) -> str:
        return "/api/v1" if self.api == "v1" else f"/apis/{self.api}"


CONFIG_MAP = Kind(api="v1", plural="configmaps", kind="ConfigMap")
EVENT = Kind(api="v1", plural="events", kind="Event")
POD = Kind(api="v1", plural="pods", kind="Pod")
LEASE = Kind(api="coordination.k8s.io/v1", plural="leases", kind="Lease")
TRAIN_JOB = Kind(api="trainer.kubeflow.org/v1alpha1", plural="trainjobs", kind="TrainJob")


class Kubernetes:
    """Objects of one namespace.

    Every method raises a kind of `redoubt.cluster.errors.ClusterError` when it does not succeed.
    """

    def __init__(self, connection: Connection, namespace: str):
        self._connection, self.namespace = connection, namespace

    @classmethod
    def in_cluster(cls, namespace: str = "", *, mounted: Path = MOUNTED,
                   transport: httpx.BaseTransport | None = None) -> Kubernetes:
        """The API server of the cluster that this pod runs in, with the pod's own service account.

        Args:
            namespace: the pod's own when empty.

        Raises:
            Unreachable: outside a cluster, or where the pod has no service-account token mounted.
        """
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise Unreachable("this process does not run in a Kubernetes cluster (KUBERNETES_SERVICE_HOST is not set): "
                              "run it in a pod, or choose the SQLite ledger and the child-process launcher")
        try:
            namespace = namespace or (mounted / "namespace").read_text().strip()
            (mounted / "token").read_text()
        except OSError as error:
            raise Unreachable(f"the pod has no service-account token ({error}): set automountServiceAccountToken: "
                              "true") from None
        url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        connection = Connection(url, what="the Kubernetes API", token_file=mounted / "token",
                                ca_file=mounted / "ca.crt", transport=transport,
                                forbidden=f"are manifests/runs and the Roles of redoubt applied to {namespace}?")
        return cls(connection, namespace)

    def close(self) -> None:
        self._connection.close()

    def get(self, kind: Kind, name: str) -> dict:
        """One object."""
        return self._connection.call("GET", self._path(kind, name))

    def list(self, kind: Kind, *, labels: str = "", fields: str = "") -> list[dict]:
        """Objects that match a label selector and a field selector."""
        found, token = [], ""
        while True:
            page = self._connection.call("GET", self._path(kind), params={
                "labelSelector": labels, "fieldSelector": fields, "limit": 500, "continue": token})
            found += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue", "")
            if not token:
                return found

    def create(self, kind: Kind, name: str, content: dict, **metadata) -> dict:
        """Create an object.

        Args:
            content: everything beside apiVersion, kind and metadata.
            metadata: labels, annotations, ownerReferences.

        Raises:
            Conflict: when it exists.
        """
        body = {"apiVersion": kind.api, "kind": kind.kind,
                "metadata": {"name": name, "namespace": self.namespace, **metadata}, **content}
        return self._connection.call("POST", self._path(kind), body=body)

    def replace(self, kind: Kind, value: dict) -> dict:
        """Write back an object that was read, provided that nobody has changed it since.

        Raises:
            Conflict: when somebody has.
        """
        return self._connection.call("PUT", self._path(kind, value["metadata"]["name"]), body=value)

    def merge(self, kind: Kind, name: str, patch: dict) -> dict:
        """Merge a patch into an object; null removes a key."""
        return self._connection.call("PATCH", self._path(kind, name), body=patch, attempts=2,
                                     content_type="application/merge-patch+json")

    def delete(self, kind: Kind, name: str) -> None:
        """Delete an object and, in the background, what it owns."""
        self._connection.call("DELETE", self._path(kind, name), params={"propagationPolicy": "Background"}, attempts=3)

    def log(self, pod: str, container: str, *, since: str = "", tail: int | None = None) -> str:
        """A container's log with a time stamp before each line, from `since` (RFC 3339) on."""
        return self._connection.text(f"{self._path(POD, pod)}/log", params={
            "container": container, "timestamps": "true", "sinceTime": since, "tailLines": tail})

    def _path(self, kind: Kind, name: str = "") -> str:
        path = f"{kind.prefix}/namespaces/{self.namespace}/{kind.plural}"
        return f"{path}/{name}" if name else path


def now_micro() -> str:
    """The time as Kubernetes' MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def now_seconds() -> str:
    """The time as Kubernetes' Time."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
