"""The API server takes every object of every overlay, and admits every pod into a restricted namespace."""

import copy

import pytest
from cluster_support import pods_of

OVERLAYS = ("base", "overlays/dev", "overlays/gpu", "overlays/kserve", "overlays/kubeflow", "overlays/monitoring")


@pytest.mark.parametrize("overlay", [*OVERLAYS, "overlays/dev/champion", "overlays/dev/runs"])
def test_the_server_takes_every_object(cluster, namespace, overlay):
    documents = cluster.overlay(overlay, namespace)
    known = [one for one in documents if cluster.knows(one)]
    cluster.apply(known, "--dry-run=server")
    unknown = {one["apiVersion"] for one in documents if not cluster.knows(one)}
    if unknown:
        pytest.skip(f"taken but for {', '.join(sorted(unknown))}, which this cluster does not have")


@pytest.mark.parametrize("overlay", [one for one in OVERLAYS if one != "overlays/kserve"])
def test_a_restricted_namespace_admits_every_pod(cluster, accounts, overlay):
    pods = pods_of(cluster.overlay(overlay, accounts))
    assert pods
    for pod in pods.values():
        cluster.apply([pod], "--dry-run=server")


def test_the_namespace_does_refuse_what_is_not_restricted(cluster, accounts):
    pod = copy.deepcopy(pods_of(cluster.overlay("base", accounts))["redoubt-serving"])
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    answer = cluster.apply([pod], "--dry-run=server", check=False)
    assert answer.returncode and "violates PodSecurity" in answer.stderr


def test_applying_twice_changes_nothing(cluster, accounts):
    kinds = ("ServiceAccount", "Role", "RoleBinding", "PriorityClass")
    ours = [one for one in cluster.overlay("overlays/dev", accounts) if one["kind"] in kinds]
    answer = cluster.apply(ours)
    assert {line.rpartition(" ")[2] for line in answer.stdout.splitlines()} == {"unchanged"}
