"""Tests against a real cluster: the one that KUBECONFIG names. Run them with `pytest -m cluster tests/cluster`.

    KUBECONFIG               whose current context may make namespaces, roles and a PriorityClass
    REDOUBT_KFP_ENDPOINT     Kubeflow Pipelines' API as this machine sees it; without it, what needs runs is skipped
    REDOUBT_KFP_NAMESPACE    the profile, on a server with users
    REDOUBT_SERVING_IMAGE    the images as the cluster's nodes can pull them; without them, what needs pods is skipped
    REDOUBT_STEPS_IMAGE
    REDOUBT_RUN_TRACKING_URI  MLflow as a run's pods see it; without it runs end where they would register
"""

from __future__ import annotations

import os
import secrets
import shutil

import pytest
from cluster_support import Cluster


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/cluster/" in str(item.path).replace(os.sep, "/"):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The API server, reached and willing."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names no cluster")
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    found = Cluster()
    answer = found.kubectl("version", "-o", "json", check=False)
    if answer.returncode:
        pytest.fail(f"KUBECONFIG is set, but its cluster does not answer: {answer.stderr.strip()}")
    return found


@pytest.fixture(scope="session")
def namespace(cluster):
    """A namespace of this session's own that admits restricted pods only; gone afterwards, with all that is in it."""
    name = f"redoubt-test-{secrets.token_hex(3)}"
    level = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": level}}])
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false", check=False)


@pytest.fixture(scope="session")
def accounts(cluster, namespace):
    """Service accounts, roles and bindings of the dev overlay, and the PriorityClass, applied for real."""
    kinds = ("ServiceAccount", "Role", "RoleBinding", "PriorityClass")
    there = cluster.kubectl("get", "priorityclass", "redoubt-serving", check=False).returncode == 0
    cluster.apply([one for one in cluster.overlay("overlays/dev", namespace) if one["kind"] in kinds])
    yield namespace
    if not there:   # it belongs to no namespace, so it would outlive ours
        cluster.kubectl("delete", "priorityclass", "redoubt-serving", check=False)


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    """The images that the cluster can pull, by the name that the manifests have for them."""
    names = {"redoubt/serving": "REDOUBT_SERVING_IMAGE", "redoubt/steps": "REDOUBT_STEPS_IMAGE"}
    missing = [variable for variable in names.values() if not os.environ.get(variable)]
    if missing:
        pytest.skip(f"{' and '.join(missing)} name no image that the cluster can pull")
    return {name: os.environ[variable] for name, variable in names.items()}
