"""The compiled pipeline equals the golden file. After a deliberate change: REDOUBT_UPDATE_GOLDEN=1 make test."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from components.train.trainjob import NODES, Nodes
from pipelines.cluster.package import package, write
from pipelines.cluster.settings import ClusterSettings
from redoubt.errors import InvalidInput
from redoubt.names import REFUSAL

GOLDEN = Path(__file__).parent.parent / "golden" / "pipeline.yaml"
CRDS = os.environ.get("REDOUBT_CRDS", "")
IMAGE = f"registry/redoubt/steps@sha256:{'a' * 64}"


def documents(content: bytes) -> list[dict]:
    return list(yaml.safe_load_all(content))


def test_the_pipeline_compiles_to_the_golden_file(tmp_path):
    write(ClusterSettings(), tmp_path / "out" / "pipeline.yaml")
    text = re.sub(r"sdkVersion: kfp-.*", "sdkVersion: kfp", (tmp_path / "out" / "pipeline.yaml").read_text())
    if os.environ.get("REDOUBT_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert list(yaml.safe_load_all(text)) == list(yaml.safe_load_all(GOLDEN.read_text()))


def test_the_chain_runs_one_way_and_what_has_effects_is_not_cached():
    tasks = next(yaml.safe_load_all(GOLDEN.read_text()))["root"]["dag"]["tasks"]
    after = {name: set(task.get("dependentTasks", [])) for name, task in tasks.items()}
    assert after == {
        "begin": set(), "prepare-data": {"begin"}, "train": {"prepare-data"}, "evaluate": {"prepare-data", "train"},
        "fit-detector": {"prepare-data", "train"}, "register": {"evaluate", "fit-detector", "train"},
        "gate": {"prepare-data", "register"}, "condition-1": {"gate", "register"},
    }
    cached = {name for name, task in tasks.items() if task.get("cachingOptions", {}).get("enableCache")}
    assert cached == {"prepare-data", "train", "evaluate", "fit-detector"}


def test_a_refusal_is_a_step_of_its_own_under_the_name_that_followers_know():
    spec = next(yaml.safe_load_all(GOLDEN.read_text()))
    judged = spec["root"]["dag"]["tasks"]["condition-1"]
    assert judged["triggerPolicy"]["condition"].endswith("'pipelinechannel--gate-status'] == 'refused'")
    tasks = spec["components"][judged["componentRef"]["name"]]["dag"]["tasks"]
    assert set(tasks) == {REFUSAL}
    assert not tasks[REFUSAL]["cachingOptions"].get("enableCache")


def test_what_enters_the_cache_key():
    """A changed image, parameter or data checksum misses: each is an input, or the container's image, of what it
    changes. The claim, which is another one for every campaign, is none."""
    spec, _ = documents(package(ClusterSettings(image=IMAGE)).content)
    tasks = spec["root"]["dag"]["tasks"]
    prepare = tasks["prepare-data"]["inputs"]["parameters"]
    assert prepare["fingerprint"]["taskOutputParameter"]["producerTask"] == "begin"
    assert "data_checksum" in prepare
    assert "data" in tasks["train"]["inputs"]["artifacts"]
    for name in ("prepare-data", "train", "evaluate", "fit-detector"):
        assert not {"claim", "run"} & set(tasks[name]["inputs"].get("parameters", {}))


def test_the_version_follows_from_the_content():
    one, other = package(ClusterSettings(image=IMAGE)), package(ClusterSettings(image=IMAGE))
    assert (one.version, one.content) == (other.version, other.content)
    for changed in (ClusterSettings(image=IMAGE.replace("a" * 64, "b" * 64)),
                    ClusterSettings(image=IMAGE, gpus_per_node=1)):
        assert package(changed).version != one.version
    assert re.fullmatch(r"redoubt-[0-9a-f]{12}", one.version)


def test_every_step_is_admitted_to_a_restricted_namespace():
    _, platform = documents(package(ClusterSettings(image=IMAGE)).content)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert len(executors) == 8
    for executor in executors.values():
        assert executor["securityContext"] == {"runAsGroup": "10001", "runAsNonRoot": True, "runAsUser": "10001"}


def test_settings_reach_the_pods():
    settings = ClusterSettings(
        image=IMAGE, gpus_per_node=4, gpu_type="amd.com/gpu", shared_memory="8Gi", data_claim="pictures", memory="64Gi",
        checkpoint_claim="checkpoints", mlflow_secret="mlflow", s3_secret="s3", s3_endpoint="http://minio:9000",
        retries=5, step_hours=2, image_pull_secrets=("pull",))
    spec, platform = documents(package(settings).content)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    containers = {name: one["container"] for name, one in spec["deploymentSpec"]["executors"].items()}
    train = executors["exec-train"]
    assert train["emptyDirMounts"] == [
        {"medium": "Memory", "mountPath": "/dev/shm", "sizeLimit": "8Gi", "volumeName": "shm"}]
    assert [mount["constant"] for mount in train["pvcMount"]] == ["checkpoints"]
    assert [mount["constant"] for mount in executors["exec-evaluate"]["pvcMount"]] == ["checkpoints"]
    assert [mount["constant"] for mount in executors["exec-prepare-data"]["pvcMount"]] == ["pictures"]
    assert containers["exec-train"]["resources"]["accelerator"]["resourceType"] == "amd.com/gpu"
    assert containers["exec-train"]["resources"]["resourceMemoryLimit"] == "64Gi"
    for name in ("exec-train", "exec-evaluate"):
        assert {"name": "REDOUBT_CHECKPOINTS", "value": "/checkpoints"} in containers[name]["env"]
    assert {secret["secretName"] for secret in executors["exec-register"]["secretAsEnv"]} == {"mlflow", "s3"}
    assert all(secret["optional"] for secret in executors["exec-register"]["secretAsEnv"])
    assert all(one["activeDeadlineSeconds"] == "7200" for one in executors.values())
    assert spec["root"]["dag"]["tasks"]["train"]["retryPolicy"]["maxRetryCount"] == 5


def test_a_step_that_fails_after_hours_is_still_repeated():
    settings = ClusterSettings(image=IMAGE, retries=3, step_hours=48.0)
    spec, _ = documents(package(settings).content)
    dags = [spec["root"]["dag"], *(one["dag"] for one in spec["components"].values() if "dag" in one)]
    policies = [task["retryPolicy"] for dag in dags for task in dag["tasks"].values() if "retryPolicy" in task]
    assert len(policies) == 8
    for policy in policies:   # Argo ends every repeat that long after the first attempt began
        assert int(policy["backoffMaxDuration"].removesuffix("s")) > 4 * 48 * 3600


@pytest.mark.parametrize("given, says", [
    ({"data_claim": "pictures.of.cats"}, "without dots"),
    ({"checkpoint_claim": "c" * 64}, "63 characters"),
    ({"signing_secret": "redoubt", "trusted_keys": "redoubt"}, "trusted_keys: 'redoubt' is another setting's name"),
    ({"trusted_keys": "team", "checkpoint_claim": "team"}, "for one volume"),
])
def test_what_cannot_be_a_volume_s_name_is_refused(given, says):
    """The server's driver calls a volume as the claim, Secret or ConfigMap in it; the pod would be refused."""
    with pytest.raises(InvalidInput, match=says):
        ClusterSettings(image=IMAGE, **given)
    assert ClusterSettings(image=IMAGE, data_claim="team", checkpoint_claim="team", s3_secret="team.s3")


def test_keys_reach_the_steps_that_need_them_and_no_other():
    settings = ClusterSettings(image=IMAGE, signing_secret="key", trusted_keys="public", oci_secret="login")
    spec, platform = documents(package(settings).content)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    env = {name: {one["name"]: one["value"] for one in executor["container"].get("env", [])}
           for name, executor in spec["deploymentSpec"]["executors"].items()}

    def with_(part: str) -> set[str]:
        return {name.removeprefix("exec-") for name, one in executors.items() if one.get(part)}

    assert with_("secretAsVolume") == {"register"}
    assert executors["exec-register"]["secretAsVolume"][0]["secretName"] == "key"
    assert env["exec-register"]["REDOUBT_SIGNING_KEY"] == "/etc/redoubt/signing/redoubt.key"
    assert with_("configMapAsVolume") == {"train", "register", "gate"}
    assert env["exec-gate"]["REDOUBT_TRUSTED_KEYS"] == '["/etc/redoubt/trusted"]'
    assert with_("secretAsEnv") == {"begin", "prepare-data"}
    assert {"REDOUBT_SIGNING_KEY"} & set(env["exec-gate"]) == set()


def test_several_nodes_leave_their_gpus_to_the_train_job():
    settings = ClusterSettings(image=IMAGE, nodes=3, gpus_per_node=8, data_claim="shared", service_account="steps")
    spec, platform = documents(package(settings).content)
    container = spec["deploymentSpec"]["executors"]["exec-train"]["container"]
    assert "accelerator" not in container["resources"]
    nodes = Nodes(**json.loads(next(one["value"] for one in container["env"] if one["name"] == NODES)))
    assert (nodes.nodes, nodes.gpus, nodes.image, nodes.claim) == (3, 8, IMAGE, "shared")
    mounts = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]["pvcMount"]
    assert [mount["constant"] for mount in mounts] == ["shared"]
    with pytest.raises(InvalidInput, match="ReadWriteMany"):
        ClusterSettings(nodes=2)


@pytest.mark.parametrize("name, changes, says", [
    ("pipeline.json", {}, r"must end in \.yaml"),
    ("p.yaml", {"image": "a@sha256:12"}, "64 hexadecimal digits"),
    ("p.yaml", {"image": "two words"}, "names no image"),
])
def test_what_cannot_be_compiled(tmp_path, name, changes, says):
    with pytest.raises(InvalidInput, match=says):
        write(ClusterSettings(**changes), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_manifests_hold_the_same_pipeline(tmp_path):
    settings = ClusterSettings(image=IMAGE, namespace="team")
    made = write(settings, tmp_path / "m.yaml", manifests=True)
    pipeline, version = documents((tmp_path / "m.yaml").read_bytes())
    assert (pipeline["kind"], pipeline["metadata"]) == ("Pipeline", {"name": "redoubt", "namespace": "team"})
    assert version["metadata"] == {"name": made.version, "namespace": "team"}
    spec, platform = documents(made.content)
    assert (version["spec"]["pipelineSpec"], version["spec"]["platformSpec"]) == (spec, platform)
    assert version["spec"]["pipelineName"] == "redoubt"


@pytest.mark.skipif(not CRDS, reason="REDOUBT_CRDS names no folder with the operators' resource definitions")
@pytest.mark.parametrize("kind, file", [("Pipeline", "kfp_pipelines.yaml"),
                                        ("PipelineVersion", "kfp_pipelineversions.yaml")])
def test_the_manifests_fit_the_resource_definitions(tmp_path, kind, file):
    import jsonschema

    write(ClusterSettings(image=IMAGE), tmp_path / "m.yaml", manifests=True)
    one = next(document for document in documents((tmp_path / "m.yaml").read_bytes()) if document["kind"] == kind)
    definition = yaml.safe_load((Path(CRDS) / file).read_text())
    schema = next(version["schema"]["openAPIV3Schema"] for version in definition["spec"]["versions"]
                  if one["apiVersion"].endswith("/" + version["name"]))
    jsonschema.validate(one, schema)
    assert set(one["spec"]) <= set(schema["properties"]["spec"]["properties"])
