"""Selectors find their pods, replicas survive what a cluster does to them, and a changed setting rolls them."""

import os

import pytest
import yaml
from manifests_support import MANIFESTS, WITH_SERVING, documents, of_kind, pods, render, serving_pod

DEPLOYED = [name for name in WITH_SERVING if name != "overlays/kserve"]


@pytest.mark.parametrize("overlay", WITH_SERVING)
def test_selectors_match_exactly_one_kind_of_pod(overlay):
    templates = {name: labels for name, (labels, _) in pods(overlay).items()}
    for kind in ("Service", "PodDisruptionBudget"):
        for name, one in of_kind(overlay, kind).items():
            wanted = one["spec"]["selector"].get("matchLabels", one["spec"]["selector"])
            assert len([1 for labels in templates.values() if wanted.items() <= labels.items()]) == 1, f"{kind}/{name}"


@pytest.mark.parametrize("overlay", DEPLOYED)
def test_the_autoscaler_alone_says_how_many(overlay):
    deployment = of_kind(overlay, "Deployment")["redoubt-serving"]
    scaler = of_kind(overlay, "HorizontalPodAutoscaler")["redoubt-serving"]
    assert "replicas" not in deployment["spec"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaler["spec"]["minReplicas"] >= (1 if overlay == "overlays/dev" else 2)


@pytest.mark.parametrize("overlay", WITH_SERVING)
def test_pods_spread_and_outrank_runs(overlay):
    pod = serving_pod(overlay)[1]
    assert {one["topologyKey"] for one in pod["topologySpreadConstraints"]} == {
        "kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert of_kind(overlay, "PriorityClass")[pod["priorityClassName"]]["value"] > 0


@pytest.mark.parametrize("overlay", WITH_SERVING)
def test_settings_are_named_by_their_content(overlay):
    names = [one["metadata"]["name"] for one in documents(overlay) if one["kind"] == "ConfigMap"]
    used = serving_pod(overlay)[1]["containers"][0]["envFrom"][0]["configMapRef"]["name"]
    assert used in names and used != "redoubt-serving"


@pytest.mark.parametrize("overlay", ["overlays/dev", "overlays/kubeflow"])
def test_the_registry_has_a_database_a_volume_and_names(overlay):
    pod = pods(overlay)["StatefulSet/mlflow"][1]
    (server,) = pod["containers"]
    assert any(argument.startswith("--backend-store-uri=postgresql") for argument in server["args"])
    hosts = next(argument for argument in server["args"] if argument.startswith("--allowed-hosts="))
    names = {host.rpartition(":")[0] or host for host in hosts.removeprefix("--allowed-hosts=").split(",")}
    assert names == {"localhost", "127.0.0.1", "mlflow", *(f"mlflow.$(NAMESPACE){rest}" for rest in (
        "", ".svc", ".svc.cluster.local"))}   # a name such as mlflow.* would be anybody's
    database = pod["initContainers"][0]
    assert database["restartPolicy"] == "Always" and database["args"] == ["-c", "listen_addresses="]
    mounted = {mount["name"] for container in (server, database) for mount in container["volumeMounts"]}
    claims = of_kind(overlay, "StatefulSet")["mlflow"]["spec"]["volumeClaimTemplates"]
    assert {one["metadata"]["name"] for one in claims} <= mounted


@pytest.mark.parametrize("overlay", ["overlays/dev", "overlays/kubeflow"])
def test_the_registry_starts_no_more_than_it_has_memory_for(overlay):
    """By default the server has eight processes more, for jobs that nobody here asks for: 1.9 GiB idle with two
    workers, of a limit of 2 GiB, and the kernel ends a container that passes it. Without them it takes 0.6 GiB."""
    (server,) = pods(overlay)["StatefulSet/mlflow"][1]["containers"]
    given = {one["name"]: one.get("value") for one in server["env"]}
    assert given["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_components_combine_as_the_pages_say(tmp_path):
    """An overlay of one's own: Kubeflow with GPUs, monitoring without keys, images by digest."""
    def at(name: str) -> str:
        return os.path.relpath(MANIFESTS / name, tmp_path.resolve())

    digest = "sha256:" + "a" * 64
    own = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [at("overlays/kubeflow")],
        "components": [at("components/gpu"), at("components/monitoring")],
        "images": [{"name": "redoubt/serving", "newName": "registry.example.org/redoubt-serving", "digest": digest}],
        "patches": [{"target": {"kind": "ServiceMonitor"},
                     "patch": "- op: remove\n  path: /spec/endpoints/0/authorization\n"}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
    found = {f"{one['kind']}/{one['metadata']['name']}": one for one in yaml.safe_load_all(render(tmp_path))}
    container = found["Deployment/redoubt-serving"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"registry.example.org/redoubt-serving@{digest}"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "authorization" not in found["ServiceMonitor/redoubt-serving"]["spec"]["endpoints"][0]
