"""Network policies: closed by default, and each way out is one that the code takes."""

import json
from pathlib import Path

import pytest
import yaml
from manifests_support import OVERLAYS, WITH_SERVING, of_kind, pods, serving_environment

from pipelines.cluster.place import LABEL

GOLDEN = Path(__file__).parents[1] / "golden" / "pipeline.yaml"


def selects(policy: dict, labels: dict) -> bool:
    wanted = policy["spec"]["podSelector"].get("matchLabels", {})
    return wanted.items() <= labels.items()


def ways_out(overlay: str, labels: dict) -> set[tuple[str, int]]:
    """(where, port) of everything that a pod may reach."""
    found = set()
    for policy in of_kind(overlay, "NetworkPolicy").values():
        if selects(policy, labels):
            for rule in policy["spec"].get("egress", []):
                assert rule.get("to") and rule.get("ports"), "an egress rule that names no target opens everything"
                for target in rule["to"]:
                    found |= {(name_of(target), port["port"]) for port in rule["ports"]}
    return found


def name_of(target: dict) -> str:
    if "ipBlock" in target:
        return target["ipBlock"]["cidr"]
    space = target.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name", "here")
    return "/".join([space, *target.get("podSelector", {}).get("matchLabels", {}).values()])


NAMES = {("kube-system/kube-dns", 53), ("169.254.20.10/32", 53)}
API_SERVER = {(block, port) for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16") for port in (443, 6443)}
SERVING = NAMES | API_SERVER | {("here/mlflow", 5000), ("kubeflow/ml-pipeline", 8888)}


@pytest.mark.parametrize("overlay", WITH_SERVING)
def test_every_pod_is_closed_by_default(overlay):
    for name, (labels, _) in pods(overlay).items():
        deny = [one for one in of_kind(overlay, "NetworkPolicy").values() if selects(one, labels)
                and not one["spec"].get("ingress") and not one["spec"].get("egress")
                and set(one["spec"]["policyTypes"]) == {"Ingress", "Egress"}]
        assert deny, name


@pytest.mark.parametrize("overlay", WITH_SERVING)
def test_serving_reaches_what_it_needs_and_nothing_else(overlay):
    labels = next(found for name, (found, _) in pods(overlay).items() if "redoubt" in name)
    more = {("istio-system/istiod", 15012)} if overlay == "overlays/kubeflow" else set()
    assert ways_out(overlay, labels) == SERVING | more


@pytest.mark.parametrize("overlay", [one for one in OVERLAYS if not one.endswith("champion")])
def test_a_steps_pod_may_go_anywhere_and_be_reached_by_nobody(overlay):
    """It lives in the same namespace: a policy that selects it and says Egress would cut off its data and artifacts."""
    chosen = [one for one in of_kind(overlay, "NetworkPolicy").values() if selects(one, dict([LABEL]))]
    assert [(one["spec"]["policyTypes"], one["spec"].get("ingress")) for one in chosen] == [(["Ingress"], None)]


def test_every_step_bears_the_label_that_the_policies_go_by():
    _, platform = yaml.safe_load_all(GOLDEN.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    assert {json.dumps(one["podMetadata"]["labels"]) for one in executors} == {json.dumps(dict([LABEL]))}


@pytest.mark.parametrize("overlay", WITH_SERVING)
def test_addresses_in_the_settings_are_among_the_ways_out(overlay):
    settings = serving_environment(overlay)
    assert settings["REDOUBT_TRACKING_URI"] == "http://mlflow:5000"
    assert settings["REDOUBT_KFP_ENDPOINT"] == "http://ml-pipeline.kubeflow:8888"


@pytest.mark.parametrize("overlay", ["overlays/dev", "overlays/kubeflow"])
def test_the_registry_reaches_nothing(overlay):
    assert ways_out(overlay, pods(overlay)["StatefulSet/mlflow"][0]) == set()


@pytest.mark.parametrize("overlay", WITH_SERVING)
def test_no_ingress_rule_is_open_to_all(overlay):
    for name, policy in of_kind(overlay, "NetworkPolicy").items():
        for rule in policy["spec"].get("ingress", []):
            assert rule.get("from") and rule.get("ports"), name
            for source in rule["from"]:
                assert source == {"podSelector": {}} or source["namespaceSelector"]["matchLabels"], name


def test_pipelines_stay_open_to_their_own_namespace():
    """A policy that selects a pod closes it to all that no policy names."""
    policy = of_kind("overlays/dev/runs", "NetworkPolicy")["redoubt-serving"]["spec"]
    assert {"from": [{"podSelector": {}}]} in policy["ingress"]
    (ours,) = [rule for rule in policy["ingress"] if "ports" in rule]
    labels, _ = pods("overlays/dev")["Deployment/redoubt-serving"]
    assert ours["from"][0]["podSelector"]["matchLabels"].items() <= labels.items()
    assert ours["ports"] == [{"port": 8888, "protocol": "TCP"}]
