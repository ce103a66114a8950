"""One replica's share in the cluster: what the settings name, put together."""

from __future__ import annotations

import hashlib
import re
import socket
from dataclasses import dataclass

from redoubt.cluster.http import Connection
from redoubt.cluster.kubernetes import Kubernetes
from redoubt.cluster.runs import Pipelines
from serving.cluster.answers import RegistryAnswers
from serving.cluster.counts import Exchange
from serving.cluster.events import Events
from serving.cluster.launcher import KfpLauncher, Pinned
from serving.cluster.leadership import Leadership
from serving.cluster.ledger import ConfigMapLedger
from serving.problems import Problems
from serving.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Replica:
    """What a replica needs beside what a single server has."""

    kubernetes: Kubernetes
    leadership: Leadership
    ledger: ConfigMapLedger
    exchange: Exchange
    events: Events

    def stop(self) -> None:
        self.leadership.stop()
        self.kubernetes.close()


def join(settings: Settings, problems: Problems, kubernetes: Kubernetes | None = None) -> Replica:
    """Become one of the replicas of the settings' ledger. Nothing is asked of the API yet.

    Args:
        kubernetes: a stand-in for the API server of the cluster that this process runs in.

    Raises:
        Unreachable: outside a cluster.
    """
    api = kubernetes or Kubernetes.in_cluster(settings.namespace)
    name, replica = settings.ledger_name or ledger_name(settings.model_name), settings.replica or socket.gethostname()
    leadership = Leadership(api, f"{name}-leader", replica, problems, seconds=settings.lease_seconds)
    return Replica(
        kubernetes=api, leadership=leadership, ledger=ConfigMapLedger(api, f"{name}-ledger", leadership),
        exchange=Exchange(api, f"{name}-counts", replica), events=Events(api, replica, settings.pod_uid),
    )


def kfp_launcher(settings: Settings, kubernetes: Kubernetes, problems: Problems) -> KfpLauncher:
    """The launcher that the settings describe.

    Raises:
        InvalidInput: for an address or a file that cannot be used.
    """
    connection = Connection(settings.kfp_endpoint, what="Kubeflow Pipelines", token_file=settings.kfp_token_file,
                            ca_file=settings.kfp_ca_file,
                            forbidden="is the Role redoubt-serving-kfp in the namespace REDOUBT_KFP_NAMESPACE?")
    pinned = Pinned(pipeline=settings.kfp_pipeline, version=settings.kfp_version, experiment=settings.kfp_experiment,
                    service_account=settings.kfp_service_account)
    answers = RegistryAnswers(settings.tracking_uri, settings.run_tracking_uri, scratch=settings.home)
    return KfpLauncher(
        Pipelines(connection, settings.kfp_namespace), kubernetes, answers, pinned, problems,
        timeout=settings.retrain_timeout_seconds, poll=settings.kfp_poll_seconds,
    )


def ledger_name(model_name: str) -> str:
    """Beginning of the names of a model's Lease and ConfigMaps: the model's name, as far as Kubernetes takes it."""
    plain = re.sub(r"[^a-z0-9]+", "-", model_name.lower()).strip("-")[:40]
    if plain != model_name:   # two names may look alike now
        plain = f"{plain}-{hashlib.sha256(model_name.encode()).hexdigest()[:8]}".strip("-")
    return "redoubt" if plain == "redoubt" else f"redoubt-{plain}"
