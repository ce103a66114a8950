"""Every object of every overlay against the schemas of Kubernetes and of the operators, unknown fields refused."""

import copy
import os
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import kubernetes_validate.utils
import pytest
import yaml
from manifests_support import LOADER, MANIFESTS, OVERLAYS, documents, of_kind, rendered, title

VERSIONS = ("1.31", "1.32", "1.33", "1.34")
OPERATORS = ("serving.kserve.io", "trainer.kubeflow.org", "pipelines.kubeflow.org", "kubeflow.org")
# What the directory of definitions has no schema for: test_monitoring.py and test_mesh.py check it.
BY_HAND = ("monitoring.coreos.com", "security.istio.io")
CONTENTS = cache(kubernetes_validate.utils.schema_contents)


def group(document: dict) -> str:
    return document["apiVersion"].rpartition("/")[0]


def is_custom(document: dict) -> bool:
    return group(document) in (*OPERATORS, *BY_HAND)


@cache
def definitions() -> dict[tuple[str, str], dict]:
    """The schema of each custom resource, by apiVersion and kind."""
    folder = os.environ.get("REDOUBT_CRDS", "")
    if not folder:
        pytest.skip("REDOUBT_CRDS names no folder with the operators' resource definitions")
    found = {}
    for file in Path(folder).glob("*.yaml"):
        for one in yaml.load_all(file.read_text(), Loader=LOADER):
            for version in (one or {}).get("spec", {}).get("versions", []):
                key = f"{one['spec']['group']}/{version['name']}", one["spec"]["names"]["kind"]
                found[key] = closed(version["schema"]["openAPIV3Schema"])
    return found


def closed(schema: dict) -> dict:
    """The same schema, with fields refused that it does not name, as the API server's strict validation does."""
    schema = copy.copy(schema)
    if "properties" in schema:
        schema["properties"] = {name: closed(one) for name, one in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        schema["type"] = ["integer", "string"]
    if isinstance(schema.get("items"), dict):
        schema["items"] = closed(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        schema["additionalProperties"] = closed(schema["additionalProperties"])
    return schema


def check_custom(document: dict, schemas: dict) -> None:
    schema = schemas[document["apiVersion"], document["kind"]]
    open_top = schema | {"properties": schema["properties"] | {"metadata": {"type": "object"}}}
    jsonschema.Draft202012Validator(open_top).validate(document)   # without checking the schema itself each time


@pytest.fixture(autouse=True)
def read_once(monkeypatch):
    """The validator reads its megabytes of definitions anew for every object."""
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", CONTENTS)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_object(version):
    seen = []   # overlays have most of their objects in common
    for overlay in OVERLAYS:
        for document in documents(overlay):
            if not is_custom(document) and document not in seen:
                kubernetes_validate.validate(document, version, strict=True)
                seen.append(document)
    assert len(seen) > 30


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_operators_take_every_object(overlay):
    ours = [one for one in documents(overlay) if group(one) in OPERATORS]
    if not ours:
        return
    schemas = definitions()
    for document in ours:
        check_custom(document, schemas)


def test_schemas_refuse_what_they_should():
    deployment = copy.deepcopy(of_kind("base", "Deployment")["redoubt-serving"])
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullSecret"] = "no such field"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.32", strict=True)
    service = copy.deepcopy(of_kind("overlays/kserve", "InferenceService")["redoubt"])
    service["spec"]["predictor"]["minReplica"] = 2
    with pytest.raises(jsonschema.ValidationError):
        check_custom(service, definitions())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_group_is_known(overlay):
    """An object that neither schema knows would otherwise pass unseen."""
    known = {"", "apps", "autoscaling", "batch", "coordination.k8s.io", "networking.k8s.io", "policy",
             "rbac.authorization.k8s.io", "scheduling.k8s.io", *OPERATORS, *BY_HAND}
    assert {group(one) for one in documents(overlay)} <= known


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_is_there_twice_and_namespaces_are_set(overlay):
    names = [title(one) for one in documents(overlay)]
    assert len(names) == len(set(names))
    for one in documents(overlay):
        if one["kind"] not in ("Namespace", "PriorityClass"):
            assert one["metadata"]["namespace"] == ("kubeflow" if overlay.endswith("runs") else "redoubt"), title(one)


def test_every_source_is_rendered_by_some_overlay():
    """A file that no kustomization lists would rot."""
    listed = " ".join(file.read_text() for file in MANIFESTS.rglob("kustomization.yaml"))
    for file in MANIFESTS.rglob("*"):
        if file.is_file() and file.name not in ("kustomization.yaml", "profile.yaml"):
            assert file.name in listed, file
    rendered_files = {name for name in OVERLAYS if rendered(name)}
    assert rendered_files == set(OVERLAYS)


def test_profile_is_well_formed():
    profile = yaml.safe_load((MANIFESTS / "overlays/kubeflow/profile.yaml").read_text())
    assert profile["kind"] == "Profile" and profile["spec"]["owner"].keys() == {"kind", "name"}
    assert profile["metadata"]["name"] == of_kind("overlays/kubeflow", "Service")["redoubt-serving"]["metadata"][
        "namespace"]
