"""The serving pod against the server: its settings exist and are right, its probes are where the server answers."""

import pytest
from manifests_support import MANIFESTS, WITH_SERVING, containers, of_kind, serving_environment, serving_pod

from serving.settings import Settings

ROOT = MANIFESTS.parent


def settings_of(overlay: str, monkeypatch) -> Settings:
    for name, value in serving_environment(overlay).items():
        monkeypatch.setenv(name, value)
    return Settings()


@pytest.mark.parametrize("overlay", WITH_SERVING)
def test_every_setting_exists_and_is_valid(overlay, monkeypatch):
    known = {f"REDOUBT_{name.upper()}" for name in Settings.model_fields}
    if "REDOUBT_LEDGER" not in known:
        pytest.skip("this server has no settings for a cluster yet")
    assert set(serving_environment(overlay)) <= known
    settings = settings_of(overlay, monkeypatch)
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert settings.ledger == "kubernetes" and settings.retrain is False
    keyless = overlay in ("overlays/dev", "overlays/kubeflow")
    assert settings.trusted_proxy is keyless and (settings.keys_file is None) is keyless


@pytest.mark.parametrize("overlay", ["overlays/dev", "overlays/kubeflow"])
def test_the_lines_to_uncomment_make_settings_that_start_runs(overlay, monkeypatch):
    if "launcher" not in Settings.model_fields:
        pytest.skip("this server has no settings for a cluster yet")
    for name, value in serving_environment(overlay).items():
        monkeypatch.setenv(name, value)
    lines = (MANIFESTS / overlay / "settings.env").read_text().splitlines()
    offered = dict(line[2:].split("=", 1) for line in lines if line.startswith("# REDOUBT_"))
    for name, value in offered.items():
        monkeypatch.setenv(name, value or "0d5c1c43-9b0a-4c7e-8d8e-3c0f5f3a1b2c")
    settings = Settings()
    assert settings.retrain and settings.launcher == "kfp" and settings.kfp_service_account == "redoubt-steps"


@pytest.mark.parametrize("overlay", WITH_SERVING)
def test_probes_ask_what_the_server_answers(overlay):
    routes = "".join(file.read_text() for file in (ROOT / "serving").rglob("*.py"))
    container = serving_pod(overlay)[1]["containers"][0]
    assert container["ports"] == [{"containerPort": 8080, "name": "http"}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == "http" and f'"{asked["path"]}"' in routes
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"


@pytest.mark.parametrize("overlay", WITH_SERVING)
def test_mounts_have_volumes_and_the_token_is_for_pipelines_alone(overlay):
    pod = serving_pod(overlay)[1]
    volumes = {one["name"]: one for one in pod["volumes"]}
    mounts = [mount for container in containers(pod) for mount in container["volumeMounts"]]
    assert {mount["name"] for mount in mounts} == set(volumes)
    source = volumes["kfp-token"]["projected"]["sources"][0]["serviceAccountToken"]
    assert source["audience"] == "pipelines.kubeflow.org"
    mount = next(one for one in mounts if one["name"] == "kfp-token")
    token = f"{mount['mountPath']}/{source['path']}"
    assert serving_environment(overlay)["REDOUBT_KFP_TOKEN_FILE"] == token
    home = next(one for one in mounts if one["name"] == "home")
    assert home["mountPath"] == serving_environment(overlay)["REDOUBT_HOME"]


def test_the_image_agrees_with_the_pod():
    dockerfile = (ROOT / "Dockerfile").read_text()
    pod = serving_pod("base")[1]
    assert f"USER {pod['securityContext']['runAsUser']}" in dockerfile
    assert "REDOUBT_HOME=/var/lib/redoubt" in dockerfile and "TMPDIR=/var/lib/redoubt" in dockerfile


@pytest.mark.parametrize("overlay", WITH_SERVING)
def test_grace_is_longer_than_what_the_server_takes_to_stop(overlay):
    drain = float(serving_environment(overlay)["REDOUBT_DRAIN_SECONDS"])
    assert serving_pod(overlay)[1]["terminationGracePeriodSeconds"] >= drain + 20 + 10   # 20 s for open requests


def test_kserve_runs_the_same_pod():
    """The InferenceService repeats the Deployment's pod: two texts that must not drift apart."""
    deployment, service = serving_pod("base")[1], serving_pod("overlays/kserve")[1]
    predictor = {key: value for key, value in service.items() if key in deployment}
    predictor["containers"] = [{**service["containers"][0], "name": deployment["containers"][0]["name"]}]
    assert predictor == deployment
    assert service["containers"][0]["name"] == "kserve-container"
    assert service["minReplicas"] == of_kind("base", "HorizontalPodAutoscaler")["redoubt-serving"]["spec"][
        "minReplicas"]
    assert not of_kind("overlays/kserve", "Deployment") and not of_kind("overlays/kserve", "Service")


def test_a_gpu_is_asked_for_by_the_gpu_overlay_alone():
    asked = {name: serving_pod(name)[1]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
             for name in WITH_SERVING}
    assert {name for name, count in asked.items() if count} == {"overlays/gpu"}
