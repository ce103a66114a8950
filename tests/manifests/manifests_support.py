"""Renders the overlays with the kustomize that kubectl carries, and finds what tests look at."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)   # Python itself takes a quarter minute for a megabyte of YAML
MANIFESTS = Path(__file__).parents[2] / "manifests"
OVERLAYS = ("base", "overlays/dev", "overlays/dev/champion", "overlays/dev/runs", "overlays/gpu", "overlays/kserve",
            "overlays/kubeflow", "overlays/monitoring")
WITH_SERVING = tuple(name for name in OVERLAYS if not name.startswith("overlays/dev/"))


@cache
def rendered(overlay: str) -> str:
    """What `kubectl apply -k` would send."""
    return render(MANIFESTS / overlay)


def render(folder: Path) -> str:
    if shutil.which("kustomize"):
        command = ["kustomize", "build"]
    elif shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    else:
        pytest.skip("neither kubectl nor kustomize is installed: nothing renders the manifests")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def documents(overlay: str) -> list[dict]:
    """Its objects. They are shared: who changes one copies it first."""
    return list(yaml.load_all(rendered(overlay), Loader=LOADER))


def of_kind(overlay: str, kind: str) -> dict[str, dict]:
    """Objects of one kind by name."""
    return {one["metadata"]["name"]: one for one in documents(overlay) if one["kind"] == kind}


def title(document: dict) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def pods(overlay: str) -> dict[str, tuple[dict, dict]]:
    """Labels and spec of every pod that an overlay makes, by what makes it."""
    found = {}
    for one in documents(overlay):
        if one["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            template = one["spec"]["template"]
            found[title(one)] = template["metadata"]["labels"], template["spec"]
        elif one["kind"] == "InferenceService":
            predictor = one["spec"]["predictor"]
            found[title(one)] = predictor["labels"], predictor
    return found


def containers(pod: dict) -> list[dict]:
    return pod.get("initContainers", []) + pod["containers"] + pod.get("ephemeralContainers", [])


def serving_pod(overlay: str) -> tuple[dict, dict]:
    """Labels and spec of the pod that answers requests."""
    return next(pod for name, pod in pods(overlay).items() if "redoubt" in name)


def serving_environment(overlay: str) -> dict[str, str]:
    """Environment of the serving container, as far as the manifests fix it."""
    container = serving_pod(overlay)[1]["containers"][0]
    values = {}
    for source in container.get("envFrom", []):
        values |= of_kind(overlay, "ConfigMap")[source["configMapRef"]["name"]]["data"]
    return values | {one["name"]: one.get("value", "from the pod") for one in container["env"]}
