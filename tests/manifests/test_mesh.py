"""Who may come through Istio, in a Kubeflow profile. The schema is AuthorizationPolicy's of security.istio.io/v1."""

import copy
import json

import jsonschema
import pytest
import yaml
from manifests_support import MANIFESTS, documents, of_kind, pods, serving_environment, serving_pod

OVERLAY = "overlays/kubeflow"
TEXTS = {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}}


def closed(**properties) -> dict:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def either_way(*names: str) -> dict:
    """Fields that Istio has as NAME and as notNAME."""
    return {one: TEXTS for name in names for one in (name, f"not{name[0].upper()}{name[1:]}")}


SOURCE = closed(**either_way("principals", "requestPrincipals", "namespaces", "ipBlocks", "remoteIpBlocks",
                             "serviceAccounts"))
OPERATION = closed(**either_way("hosts", "ports", "methods", "paths"))
WHEN = closed(key={"type": "string"}, values=TEXTS, notValues=TEXTS) | {"required": ["key"]}
RULE = closed(**{"from": {"type": "array", "items": closed(source=SOURCE)},
                 "to": {"type": "array", "items": closed(operation=OPERATION)},
                 "when": {"type": "array", "items": WHEN}})
POLICY = closed(
    selector=closed(matchLabels={"type": "object", "additionalProperties": {"type": "string"}}),
    targetRefs={"type": "array"}, provider=closed(name={"type": "string"}), rules={"type": "array", "items": RULE},
    action={"enum": ["ALLOW", "DENY", "AUDIT", "CUSTOM"]})


@pytest.fixture
def policy() -> dict:
    one, = of_kind(OVERLAY, "AuthorizationPolicy").values()
    return copy.deepcopy(one)


def test_istio_takes_it(policy):
    assert policy["apiVersion"] == "security.istio.io/v1"
    jsonschema.validate(policy["spec"], POLICY)


@pytest.mark.parametrize("spoil", [
    lambda spec: spec["rules"][0]["from"][0]["source"].update(namespace="redoubt"),
    lambda spec: spec["rules"][0]["to"][0]["operation"].update(ports=[8080]),
    lambda spec: spec["rules"][1]["when"][0].pop("key"),
    lambda spec: spec.update(action="allow"),
], ids=["no such field", "a port that is no text", "a condition on nothing", "no such action"])
def test_the_schema_refuses_what_istio_would(policy, spoil):
    spoil(policy["spec"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(policy["spec"], POLICY)


def test_it_closes_serving_and_nothing_else(policy):
    """A workload that an ALLOW policy selects is closed to all that none of them names."""
    wanted = policy["spec"]["selector"]["matchLabels"]
    chosen = [name for name, (labels, _) in pods(OVERLAY).items() if wanted.items() <= labels.items()]
    assert (policy["spec"]["action"], chosen) == ("ALLOW", ["Deployment/redoubt-serving"])
    labels, _ = serving_pod(OVERLAY)
    assert labels["sidecar.istio.io/inject"] == "true", "without a sidecar nobody enforces it"


def test_every_rule_says_from_whom_and_to_the_servers_port_alone(policy):
    _, pod = serving_pod(OVERLAY)
    port, = pod["containers"][0]["ports"]
    for rule in policy["spec"]["rules"]:
        assert rule["from"] and all(one["source"] for one in rule["from"])
        assert rule["to"] == [{"operation": {"ports": [str(port["containerPort"])]}}]


def test_it_lets_in_pods_of_the_profile_and_its_owner_at_kubeflows_gateway(policy):
    profile = yaml.safe_load((MANIFESTS / OVERLAY / "profile.yaml").read_text())
    inside, signed_in = policy["spec"]["rules"]
    assert inside["from"] == [{"source": {"namespaces": [profile["metadata"]["name"]]}}]
    assert "when" not in inside
    gateway = "cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account"
    assert signed_in["from"] == [{"source": {"principals": [gateway]}}]
    assert signed_in["when"] == [
        {"key": "request.headers[kubeflow-userid]", "values": [profile["spec"]["owner"]["name"]]}]


def test_what_the_mesh_lets_in_the_network_lets_in():
    """Both stand before the server: the gateway must be named by the network policies, too."""
    sources = [source.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
               for one in documents(OVERLAY) if one["kind"] == "NetworkPolicy"
               for rule in one["spec"].get("ingress", []) for source in rule["from"]]
    assert "istio-system" in sources


def test_the_sidecar_outlives_the_server():
    """Both are told to end at once, unless the sidecar is a native one. What the server still answers and writes goes
    through the sidecar."""
    from serving.__main__ import _LONGEST_SHUTDOWN

    deployment = of_kind(OVERLAY, "Deployment")["redoubt-serving"]
    sidecar = json.loads(deployment["spec"]["template"]["metadata"]["annotations"]["proxy.istio.io/config"])
    assert sidecar["holdApplicationUntilProxyStarts"] is True
    last = float(serving_environment(OVERLAY)["REDOUBT_DRAIN_SECONDS"]) + _LONGEST_SHUTDOWN
    drained = float(sidecar["terminationDrainDuration"].removesuffix("s"))
    assert last < drained < deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
