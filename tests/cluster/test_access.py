"""What each service account can do, and what it cannot, asked of the API server's own authorizer."""

import pytest


def rules(cluster, namespace: str) -> list[tuple[str, str, str, str, str]]:
    """(account, verb, resource, group, name) of everything that the manifests allow."""
    documents = cluster.overlay("overlays/dev", namespace)
    roles = {one["metadata"]["name"]: one["rules"] for one in documents if one["kind"] == "Role"}
    found = []
    for binding in (one for one in documents if one["kind"] == "RoleBinding"):
        for subject in binding["subjects"]:
            for rule in roles[binding["roleRef"]["name"]]:
                found += [(subject["name"], verb, resource, group, name) for verb in rule["verbs"]
                          for resource in rule["resources"] for group in rule["apiGroups"]
                          for name in rule.get("resourceNames", [""])]
    return found


def test_can(cluster, accounts):
    allowed = rules(cluster, accounts)
    assert {account for account, *_ in allowed} == {"redoubt-serving", "redoubt-steps"}
    for account, verb, resource, group, name in allowed:
        assert cluster.may(account, accounts, verb, resource, group=group, name=name), (account, verb, resource)


@pytest.mark.parametrize(("account", "verb", "resource", "group"), [
    ("redoubt-serving", "list", "leases", "coordination.k8s.io"),
    ("redoubt-serving", "deletecollection", "leases", "coordination.k8s.io"),
    ("redoubt-serving", "delete", "configmaps", ""),
    ("redoubt-serving", "get", "secrets", ""),
    ("redoubt-serving", "list", "secrets", ""),
    ("redoubt-serving", "create", "pods", ""),
    ("redoubt-serving", "get", "pods", ""),
    ("redoubt-serving", "create", "pods/exec", ""),
    ("redoubt-serving", "patch", "deployments", "apps"),
    ("redoubt-serving", "create", "rolebindings", "rbac.authorization.k8s.io"),
    ("redoubt-serving", "impersonate", "serviceaccounts", ""),
    ("redoubt-steps", "update", "leases", "coordination.k8s.io"),
    ("redoubt-steps", "delete", "leases", "coordination.k8s.io"),
    ("redoubt-steps", "update", "configmaps", ""),
    ("redoubt-steps", "get", "secrets", ""),
    ("redoubt-steps", "create", "pods", ""),
])
def test_cannot(cluster, accounts, account, verb, resource, group):
    assert not cluster.may(account, accounts, verb, resource, group=group)


@pytest.mark.parametrize("account", ["redoubt-serving", "redoubt-steps"])
def test_cannot_anything_elsewhere(cluster, accounts, account):
    for verb, resource, group in (("get", "leases", "coordination.k8s.io"), ("get", "configmaps", "")):
        assert not cluster.may(account, accounts, verb, resource, group=group, where="kube-system")
    assert not cluster.may(account, accounts, "list", "nodes", where="")
