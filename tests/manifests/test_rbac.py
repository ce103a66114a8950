"""Each service account may do what the code calls, and nothing else.

The calls are read from the code: `anything.create(LEASE, ...)`, where the first argument is one of the kinds that
`redoubt/cluster/kubernetes.py` declares. What serving/ calls is asked by serving's account, what components/ calls by
that of a run's pods; functions of redoubt/cluster/ count for the room that imports them.
"""

import ast
from functools import cache
from pathlib import Path

import pytest
from manifests_support import WITH_SERVING, documents, of_kind

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "redoubt" / "cluster"
VERBS = {"get": "get", "list": "list", "create": "create", "replace": "update", "merge": "patch", "delete": "delete",
         "watch": "watch"}
Call = tuple[str, str, str]   # API group, resource, verb


@cache
def kinds() -> dict[str, tuple[str, str]]:
    """Group and plural of every kind that the client declares, by its constant's name."""
    file = CLUSTER / "kubernetes.py"
    if not file.exists():
        pytest.skip("redoubt/cluster is not here: nothing calls the API server yet")
    found = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.func.id == "Kind":
            given = {keyword.arg: keyword.value.value for keyword in node.value.keywords}
            found[node.targets[0].id] = given["api"].rpartition("/")[0], given["plural"]
    return found


def calls_in(tree: ast.AST) -> set[Call]:
    """Calls of the API server within a piece of code."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        first = node.args[0] if node.args else None
        if node.func.attr in VERBS and isinstance(first, ast.Name) and first.id in kinds():
            found.add((*kinds()[first.id], VERBS[node.func.attr]))
        if node.func.attr == "log" and any(keyword.arg in ("since", "tail") for keyword in node.keywords):
            found.add(("", "pods/log", "get"))
    return found


@cache
def shared() -> dict[str, set[Call]]:
    """Calls of each function and class of redoubt/cluster/, with those of the functions that it calls in its module."""
    found = {}
    for file in CLUSTER.glob("*.py"):
        parts = {node.name: node for node in ast.parse(file.read_text()).body
                 if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        used = {name: {one.id for one in ast.walk(node) if isinstance(one, ast.Name)} & set(parts)
                for name, node in parts.items()}
        for name in parts:
            reached, todo = set(), {name}
            while todo:
                reached |= todo
                todo = {one for part in todo for one in used[part]} - reached
            found[f"redoubt.cluster.{file.stem}.{name}"] = set().union(*(calls_in(parts[one]) for one in reached))
    return found


def calls_of(room: str) -> set[Call]:
    found = set()
    for file in (ROOT / room).rglob("*.py"):
        tree = ast.parse(file.read_text())
        found |= calls_in(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("redoubt.cluster."):
                found |= set().union(*(shared().get(f"{node.module}.{one.name}", set()) for one in node.names))
    return found


def rules(roles: dict[str, dict], name: str) -> set[Call]:
    return {(group, resource, verb) for rule in roles[name]["rules"] for group in rule["apiGroups"]
            for resource in rule["resources"] for verb in rule["verbs"]}


def difference(allowed: set[Call], called: set[Call]) -> dict[str, list[Call]]:
    return {"called and not allowed": sorted(called - allowed), "allowed and not called": sorted(allowed - called)}


NONE = {"called and not allowed": [], "allowed and not called": []}


@pytest.mark.parametrize(("account", "room"), [("redoubt-serving", "serving"), ("redoubt-steps", "components")])
def test_an_account_may_do_what_the_code_calls_and_nothing_else(account, room):
    called = calls_of(room)
    assert called, f"{room}/ calls nothing: the scan has lost sight of the client"
    assert difference(rules(of_kind("base", "Role"), account), called) == NONE


def test_the_scan_sees_a_call_that_is_not_allowed():
    extra = calls_in(ast.parse("self._kubernetes.list(LEASE)"))
    assert difference(rules(of_kind("base", "Role"), "redoubt-serving"), calls_of("serving") | extra)[
        "called and not allowed"] == [("coordination.k8s.io", "leases", "list")]


def test_serving_may_do_the_same_where_runs_live_in_another_namespace():
    here, there = of_kind("base", "Role"), of_kind("overlays/dev/runs", "Role")
    assert there["redoubt-serving"]["rules"] == here["redoubt-serving"]["rules"]
    assert there["redoubt-steps"]["rules"] == here["redoubt-steps"]["rules"]
    binding = of_kind("overlays/dev/runs", "RoleBinding")["redoubt-serving"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "redoubt-serving", "namespace": "redoubt"}]


@pytest.mark.parametrize("overlay", [*WITH_SERVING, "overlays/dev/runs"])
def test_no_rule_is_wider_than_a_namespace_or_holds_a_wildcard(overlay):
    for one in documents(overlay):
        assert one["kind"] not in ("ClusterRole", "ClusterRoleBinding")
        for rule in one.get("rules", []):
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"], one["metadata"]["name"]
            if "secrets" in rule["resources"]:
                assert rule.get("resourceNames"), one["metadata"]["name"]


@pytest.mark.parametrize("overlay", [*WITH_SERVING, "overlays/dev/runs"])
def test_the_agent_that_runs_drivers_finds_the_token_of_a_runs_account(overlay):
    """Argo falls back on exactly this name where an account lists no Secret of its own."""
    account = of_kind(overlay, "ServiceAccount")["redoubt-steps"]
    token = of_kind(overlay, "Secret")["redoubt-steps.service-account-token"]
    assert "secrets" not in account
    assert token["type"] == "kubernetes.io/service-account-token"
    assert token["metadata"]["annotations"]["kubernetes.io/service-account.name"] == "redoubt-steps"
    assert token["metadata"]["namespace"] == account["metadata"]["namespace"]


@pytest.mark.parametrize("overlay", [*WITH_SERVING, "overlays/dev/runs"])
def test_every_binding_names_a_role_and_an_account_that_exist(overlay):
    roles, accounts = of_kind(overlay, "Role"), of_kind(overlay, "ServiceAccount")
    for name, binding in of_kind(overlay, "RoleBinding").items():
        assert binding["roleRef"]["name"] in roles, name
        for subject in binding["subjects"]:
            assert subject["name"] in accounts or subject["namespace"] != binding["metadata"]["namespace"], name


def kfp_calls() -> set[tuple[str, str]]:
    """(resource, verb) as Kubeflow Pipelines' API asks Kubernetes for each method that serving's launcher calls."""
    asked = {"run": ("runs", "get"), "named": ("runs", "list"), "start": ("runs", "create"),
             "terminate": ("runs", "terminate")}
    launcher = ROOT / "serving" / "cluster" / "launcher.py"
    if not launcher.exists():
        pytest.skip("serving/cluster/launcher.py is not here: nothing calls Kubeflow Pipelines yet")
    found = set()
    for node in ast.walk(ast.parse(launcher.read_text())):
        if isinstance(node, ast.Attribute) and getattr(node.value, "attr", "") == "_pipelines":
            found |= {asked[node.attr]} if node.attr in asked else {
                ("experiments", verb) for verb in ("get", "list", "create")}
    return found


def test_what_serving_may_ask_of_kubeflow_pipelines():
    rule = rules(of_kind("overlays/kubeflow", "Role"), "redoubt-serving-kfp")
    assert {group for group, _, _ in rule} == {"pipelines.kubeflow.org"}
    assert {(resource, verb) for _, resource, verb in rule} == kfp_calls()


def test_what_the_launcher_in_a_steps_pod_may_ask_of_kubeflow_pipelines():
    """Of a server with users, which authorizes what is written about a run's tasks as if it were the run."""
    assert rules(of_kind("overlays/kubeflow", "Role"), "redoubt-steps-pipelines") == {
        ("pipelines.kubeflow.org", "runs", verb) for verb in ("get", "list", "create")}
    binding = of_kind("overlays/kubeflow", "RoleBinding")["redoubt-steps-pipelines"]
    assert [one["name"] for one in binding["subjects"]] == ["redoubt-steps"]
