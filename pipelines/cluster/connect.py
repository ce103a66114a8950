"""Connections from a person's machine: to Kubeflow Pipelines as the settings say, to Kubernetes as kubectl has it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pipelines.cluster.settings import ClusterSettings
from redoubt.cluster.errors import ClusterError, NotFound, Unreachable
from redoubt.cluster.http import Connection
from redoubt.cluster.kubernetes import Kubernetes
from redoubt.cluster.runs import API, Pipelines
from redoubt.errors import InvalidInput

OLDEST = "2.16"   # of a server; Kubeflow 26.03 has it


def pipelines_api(settings: ClusterSettings) -> Pipelines:
    """The server that the settings name, asked who it is.

    REDOUBT_KFP_TOKEN and REDOUBT_KFP_COOKIE may hold a bearer token and the cookie of a login page.

    Raises:
        InvalidInput: without an endpoint, on a multi-user server without a namespace, or for one that is too old.
        ClusterError: when it does not answer.
    """
    check_endpoint(settings)
    token = Path(settings.token_file).expanduser() if settings.token_file else None
    connection = Connection(
        settings.endpoint, what="Kubeflow Pipelines", environment=True, token_file=token,
        token=os.environ.get("REDOUBT_KFP_TOKEN", ""), cookies=os.environ.get("REDOUBT_KFP_COOKIE", ""),
        ca_file=Path(settings.ca_file).expanduser() if settings.ca_file else None,
        forbidden=f"is {settings.namespace or 'the namespace'} the name of your profile, and may you edit it? Its "
                  "owner adds contributors on Kubeflow's page",
    )
    api = Pipelines(connection, settings.namespace, ui=settings.ui)
    try:
        about = api.about()
    except Unreachable as error:
        raise Unreachable(f"{error}. Is the address right, and does a port-forward behind it still run?") from None
    except NotFound:
        raise InvalidInput(f"{settings.endpoint} does not know {API}: is it the address of Kubeflow Pipelines (on "
                           f"Kubeflow it ends in /pipeline), of release {OLDEST} or newer?") from None
    _check_release(about, settings.endpoint)
    if about.get("multi_user") and not settings.namespace:
        raise InvalidInput(f"{settings.endpoint} has users: give --namespace, the name of your profile")
    return api


def check_endpoint(settings: ClusterSettings) -> None:
    """Raise InvalidInput where the settings name no server."""
    if not settings.endpoint:
        raise InvalidInput("no Kubeflow Pipelines API named: give --endpoint or set REDOUBT_KFP_ENDPOINT. Without one "
                           "that is exposed: kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8888:80, and "
                           "--endpoint http://localhost:8888")


def _check_release(about: dict, endpoint: str) -> None:
    """The API itself does not tell its release; the page in front of it does, and whether it reaches the API."""
    if about.get("apiServerReady") is False:
        raise Unreachable(f"the page at {endpoint} answers, Kubeflow Pipelines' API behind it does not: kubectl -n "
                          "kubeflow get pods -l app=ml-pipeline")
    tag = about.get("apiServerTagName") or about.get("frontendTagName") or ""
    release = re.match(r"v?([0-9]+)\.([0-9]+)", tag)
    if release and tuple(map(int, release.groups())) < tuple(map(int, OLDEST.split("."))):
        raise InvalidInput(f"{endpoint} is Kubeflow Pipelines {tag}: {OLDEST} or newer is needed")


def kubernetes_api(namespace: str) -> Kubernetes:
    """The API server of kubectl's current context.

    Raises:
        ClusterError: without a kubeconfig, or one that cannot be used.
    """
    import kubernetes

    configuration = kubernetes.client.Configuration()
    try:
        kubernetes.config.load_kube_config(client_configuration=configuration)
        _, context = kubernetes.config.list_kube_config_contexts()
    except kubernetes.config.ConfigException as error:
        raise Unreachable(f"no cluster: {error}; set KUBECONFIG or use kubectl config use-context") from None
    prefix = configuration.api_key_prefix.get("authorization", "")
    token = configuration.api_key.get("authorization", "").removeprefix("Bearer ").strip()
    certificate = (configuration.cert_file, configuration.key_file) if configuration.cert_file else None
    connection = Connection(
        configuration.host, what=f"the Kubernetes API of context {context['name']}", environment=True,
        token=token if prefix in ("", "Bearer") else "", certificate=certificate,
        ca_file=Path(configuration.ssl_ca_cert) if configuration.ssl_ca_cert else None,
        verify=configuration.verify_ssl,
    )
    return Kubernetes(connection, namespace or context["context"].get("namespace") or "default")


def quietly(namespace: str) -> Kubernetes | None:
    """`kubernetes_api`, or None: for what is good to know and no more."""
    try:
        return kubernetes_api(namespace)
    except (ClusterError, InvalidInput):
        return None
