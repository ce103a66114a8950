"""What each step's pod needs of the cluster, said through kfp-kubernetes. Nothing here changes what a step computes."""

from __future__ import annotations

import json

from kfp import dsl, kubernetes

from components.context import CHECKPOINTS
from components.image import IMAGE
from components.train.trainjob import NODES, Nodes
from pipelines.cluster.settings import ClusterSettings
from redoubt.signing import SIGNING_KEY, TRUSTED_KEYS

LABEL = ("app.kubernetes.io/name", "redoubt-steps")   # not part-of, which closes a pod to the network
COMPUTING = ("train", "evaluate", "fit_detector", "gate")
READING_DATA = ("begin", "prepare_data")
WITH_MLFLOW = ("train", "register", "gate")
RESUMED = ("train", "evaluate")   # go on from what an attempt before has finished
CHECKPOINT_PATH = "/checkpoints"
RETRIED_FOR = "365d"   # from the first attempt's start on: Argo repeats nothing after it, and ends what runs then
_MLFLOW_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_OCI_KEYS = ("REDOUBT_OCI_USER", "REDOUBT_OCI_PASSWORD")
SIGNING_PATH, TRUSTED_PATH = "/etc/redoubt/signing", "/etc/redoubt/trusted"
_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION")


def placing(settings: ClusterSettings):
    """A function (name, task) for `pipelines.chain.define`."""
    def place(name: str, task: dsl.PipelineTask) -> None:
        _secure(task, settings)
        _resources(name, task, settings)
        _volumes(name, task, settings)
        if name == "train" and settings.nodes > 1:
            task.set_env_variable(NODES, _nodes(settings).to_json())
        _secrets(name, task, settings)
        if settings.retries:
            task.set_retry(num_retries=settings.retries, backoff_duration=f"{settings.retry_seconds}s",
                           backoff_factor=2.0, backoff_max_duration=RETRIED_FOR)
        kubernetes.set_timeout(task, int(settings.step_hours * 3600))
        kubernetes.add_pod_label(task, *LABEL)

    return place


def _secure(task: dsl.PipelineTask, settings: ClusterSettings) -> None:
    """The server drops capabilities and sets seccomp and escalation; who runs is for the pipeline to say."""
    kubernetes.set_security_context(task, run_as_user=settings.user, run_as_group=settings.user, run_as_non_root=True)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")   # also where a node has it from elsewhere, as kind does
    if settings.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(settings.image_pull_secrets))


def _resources(name: str, task: dsl.PipelineTask, settings: ClusterSettings) -> None:
    if name not in COMPUTING:
        task.set_cpu_request("100m").set_memory_request("512Mi").set_memory_limit(settings.light_memory)
        return
    task.set_cpu_request(settings.cpu).set_memory_request(settings.memory).set_memory_limit(settings.memory)
    if settings.shared_memory:
        kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory",
                                   size_limit=settings.shared_memory)
    gpus = settings.gpus_per_node
    gpus = gpus if name == "train" else min(gpus, 1)   # one is what the others can use
    if gpus and not (name == "train" and settings.nodes > 1):   # there the TrainJob's pods have them
        task.set_accelerator_type(settings.gpu_type).set_accelerator_limit(gpus)
    for key, value in settings.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in settings.tolerations:
        kubernetes.add_toleration(task, **toleration)


def _nodes(settings: ClusterSettings) -> Nodes:
    """What the train step makes its TrainJob of."""
    return Nodes(
        nodes=settings.nodes, gpus=settings.gpus_per_node, gpu_type=settings.gpu_type, image=settings.image or IMAGE,
        claim=settings.data_claim, path=settings.data_path, runtime=settings.runtime, cpu=settings.cpu,
        memory=settings.memory, shared_memory=settings.shared_memory, user=settings.user,
        service_account=settings.service_account, image_pull_secrets=settings.image_pull_secrets,
        node_selector=settings.node_selector, tolerations=settings.tolerations, hours=settings.step_hours,
    )


def _volumes(name: str, task: dsl.PipelineTask, settings: ClusterSettings) -> None:
    if settings.data_claim and (name in READING_DATA or (name == "train" and settings.nodes > 1)):
        kubernetes.mount_pvc(task, pvc_name=settings.data_claim, mount_path=settings.data_path)
    if settings.checkpoint_claim and name in RESUMED:
        kubernetes.mount_pvc(task, pvc_name=settings.checkpoint_claim, mount_path=CHECKPOINT_PATH)
        task.set_env_variable(CHECKPOINTS, CHECKPOINT_PATH)


def _secrets(name: str, task: dsl.PipelineTask, settings: ClusterSettings) -> None:
    if settings.mlflow_secret and name in WITH_MLFLOW:
        kubernetes.use_secret_as_env(task, settings.mlflow_secret, {key: key for key in _MLFLOW_KEYS}, optional=True)
    if settings.s3_secret and name in (*WITH_MLFLOW, *READING_DATA):
        kubernetes.use_secret_as_env(task, settings.s3_secret, {key: key for key in _S3_KEYS}, optional=True)
    if settings.oci_secret and name in READING_DATA:
        kubernetes.use_secret_as_env(task, settings.oci_secret, {key: key for key in _OCI_KEYS})
    if settings.signing_secret and name == "register":
        kubernetes.use_secret_as_volume(task, settings.signing_secret, mount_path=SIGNING_PATH)
        task.set_env_variable(SIGNING_KEY, f"{SIGNING_PATH}/redoubt.key")
    if settings.trusted_keys and name in WITH_MLFLOW:
        kubernetes.use_config_map_as_volume(task, settings.trusted_keys, mount_path=TRUSTED_PATH)
        task.set_env_variable(TRUSTED_KEYS, json.dumps([TRUSTED_PATH]))
    if settings.s3_endpoint and name in (*WITH_MLFLOW, *READING_DATA):
        task.set_env_variable("MLFLOW_S3_ENDPOINT_URL", settings.s3_endpoint)
        task.set_env_variable("AWS_ENDPOINT_URL", settings.s3_endpoint)
