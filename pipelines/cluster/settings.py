"""What a cluster is like, and what a run may take of it: one YAML or TOML file, whose values flags may replace."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

from redoubt.errors import InvalidInput

DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
_QUANTITY = re.compile(r"[1-9][0-9]*(\.[0-9]+)?(m|[kMGTP]i?)?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Everything about a cluster that a person may set; docs/cluster.md shows a whole file.

    Attributes:
        endpoint: the Kubeflow Pipelines API; REDOUBT_KFP_ENDPOINT where it is empty.
        ui: address of its pages, where that is not the endpoint.
        namespace: profile on a multi-user server, and where pods are looked for when a run does not get on.
        token_file: file with a bearer token, read anew for every call; or REDOUBT_KFP_TOKEN holds one.
        ca_file: authority to trust instead of the system's.
        experiment: groups runs; empty takes the model's name.
        pipeline: the pipeline's name on the server.
        image: the steps' image, by digest; REDOUBT_IMAGE where it is empty.
        allow_tag: take an image by a tag all the same, though it may come to mean another one.
        image_pull_secrets: names of Secrets to pull it with.
        service_account: whom the steps' pods are; the server's default when empty.
        tracking_uri: MLflow's address as pods see it.
        pipeline_root: where artifacts go; the server's default when empty.
        user: numeric user that every step runs as; the image's own is 10001.
        gpus_per_node, gpu_type: GPUs of a pod that trains, which then runs under torchrun, and the resource's name.
        nodes: pods that train together; more than one makes the train step create a TrainJob.
        runtime: the Trainer's ClusterTrainingRuntime for that.
        cpu, memory: what a step that computes requests, and its memory limit.
        light_memory: the same for a step that does not.
        shared_memory: size of the memory-backed /dev/shm of a step that computes; empty leaves the container's 64 MiB.
        node_selector, tolerations: where steps that compute may run; a toleration has key, operator, value, effect.
        data_claim, data_path: a PersistentVolumeClaim with data, and where it is mounted.
        checkpoint_claim: a PersistentVolumeClaim for checkpoints, so that a retried train or evaluate step goes on.
        mlflow_secret, s3_secret: Secrets whose keys become the environment variables of that name.
        oci_secret: Secret with REDOUBT_OCI_USER and REDOUBT_OCI_PASSWORD, for data in a container registry.
        signing_secret: Secret whose key `redoubt.key` is what the register step signs versions with.
        trusted_keys: ConfigMap with public keys, `*.pub`, one of which must have signed what is fetched.
        s3_endpoint: address of an S3-compatible store that is not Amazon's.
        retries: how often a step is repeated; waits double from `retry_seconds`.
        step_hours: longest that one step may take.
        run_hours: longest that a run is waited for.
        pending_minutes: after so long in which no step's pod runs the scheduler's reason is shown.
    """

    endpoint: str = ""
    ui: str = ""
    namespace: str = ""
    token_file: str = ""
    ca_file: str = ""
    experiment: str = ""
    pipeline: str = "redoubt"
    image: str = ""
    allow_tag: bool = False
    image_pull_secrets: tuple[str, ...] = ()
    service_account: str = ""
    tracking_uri: str = "http://mlflow:5000"
    pipeline_root: str = ""
    user: int = 10001
    gpus_per_node: int = 0
    gpu_type: str = "nvidia.com/gpu"
    nodes: int = 1
    runtime: str = "torch-distributed"
    cpu: str = "1"
    memory: str = "4Gi"
    light_memory: str = "2Gi"
    shared_memory: str = ""
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[dict, ...] = ()
    data_claim: str = ""
    data_path: str = "/data"
    checkpoint_claim: str = ""
    mlflow_secret: str = ""
    s3_secret: str = ""
    oci_secret: str = ""
    signing_secret: str = ""
    trusted_keys: str = ""
    s3_endpoint: str = ""
    retries: int = 2
    retry_seconds: int = 30
    step_hours: float = 24.0
    run_hours: float = 48.0
    pending_minutes: float = 3.0

    def __post_init__(self) -> None:
        for name in ("endpoint", "ui", "s3_endpoint", "tracking_uri"):
            value = getattr(self, name)
            if value and not value.startswith(("http://", "https://")):
                raise InvalidInput(f"{name}: {value!r} must begin with http:// or https://")
        for name in ("memory", "light_memory", "shared_memory", "cpu"):
            value = getattr(self, name)
            if value and not _QUANTITY.fullmatch(value):
                raise InvalidInput(f"{name}: {value!r} is no quantity: write 500m, 4 or 16Gi")
        for name in ("namespace", "service_account", "data_claim", "checkpoint_claim", "mlflow_secret", "s3_secret",
                     "oci_secret", "signing_secret", "trusted_keys", "pipeline", "runtime"):
            value = getattr(self, name)
            if value and not _NAME.fullmatch(value):
                raise InvalidInput(f"{name}: {value!r} is no name of Kubernetes: lowercase letters, digits, - and .")
        volumes: dict[str, str] = {}   # Kubeflow Pipelines calls a pod's volume as what is mounted
        for name in ("data_claim", "checkpoint_claim", "signing_secret", "trusted_keys"):
            value, kind = getattr(self, name), name.rsplit("_", 1)[-1]
            if "." in value or len(value) > 63:
                raise InvalidInput(f"{name}: {value!r} cannot be mounted by Kubeflow Pipelines, which calls the volume "
                                   "by it: take a name without dots of 63 characters at most")
            if value and volumes.setdefault(value, kind) != kind:
                raise InvalidInput(f"{name}: {value!r} is another setting's name, too: Kubeflow Pipelines would take "
                                   "both for one volume")
        for name, least in (("gpus_per_node", 0), ("nodes", 1), ("retries", 0), ("retry_seconds", 1), ("user", 1)):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("step_hours", "run_hours", "pending_minutes"):
            if not 0 < getattr(self, name) < 10_000:
                raise InvalidInput(f"{name} must be above 0, not {getattr(self, name)}")
        if not self.data_path.startswith("/"):
            raise InvalidInput(f"data_path: {self.data_path!r} must be an absolute path")
        _check_image(self.image)
        self._check_scheduling()

    def _check_scheduling(self) -> None:
        for toleration in self.tolerations:
            unknown = set(toleration) - {"key", "operator", "value", "effect", "toleration_seconds"}
            if unknown:
                raise InvalidInput(f"tolerations: {', '.join(sorted(unknown))} is no field of a toleration: "
                                   "key, operator, value, effect, toleration_seconds")
            if toleration.get("operator", "Equal") not in ("Equal", "Exists"):
                raise InvalidInput(f"tolerations: operator {toleration['operator']!r} must be Equal or Exists")
        if self.nodes > 1 and not self.data_claim:
            raise InvalidInput("nodes: several nodes share data and result through a volume that all can mount: "
                               "set data_claim to a PersistentVolumeClaim with access mode ReadWriteMany")

    @property
    def pinned(self) -> bool:
        """Whether the image is named by digest."""
        return DIGEST.fullmatch(self.image) is not None


def _check_image(image: str) -> None:
    """Raise InvalidInput for what names no image."""
    if "@" in image and not DIGEST.fullmatch(image):
        raise InvalidInput(f"image {image!r}: after @ comes sha256: and 64 hexadecimal digits")
    if image and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", image):
        raise InvalidInput(f"image {image!r} names no image: write REGISTRY/NAME@sha256:DIGEST")


def load(file: Path | None = None, *, given: tuple[str, ...] = (), **flags) -> ClusterSettings:
    """Settings from a file, replaced by `name=value` pairs, replaced by flags that are not empty.

    Args:
        file: YAML or TOML; REDOUBT_CLUSTER names one where it is None, and there may be none.

    Raises:
        InvalidInput: for a file that cannot be read, and for a name or value that is wrong, with what would be right.
    """
    file = file or (Path(os.environ["REDOUBT_CLUSTER"]) if os.environ.get("REDOUBT_CLUSTER") else None)
    values = _read(file.expanduser()) if file else {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InvalidInput(f"--set {pair}: write it as name=value")
        values[name.strip()] = _parsed(text)
    values |= {name: value for name, value in flags.items() if value not in (None, "")}
    where = f"{file}: " if file else ""
    known = {one.name for one in fields(ClusterSettings)}
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
            raise InvalidInput(f"{where}{name} is no setting of a cluster: {hint}")
    try:
        found = ClusterSettings(**{name: _typed(name, value) for name, value in values.items()})
    except InvalidInput as error:
        raise InvalidInput(f"{where}{error}") from None
    return replace(
        found, endpoint=found.endpoint or os.environ.get("REDOUBT_KFP_ENDPOINT", ""),
        image=found.image or os.environ.get("REDOUBT_IMAGE", ""),
    )


def _read(file: Path) -> dict:
    import yaml

    try:
        text = file.read_text()
        found = tomllib.loads(text) if file.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise InvalidInput(f"the cluster's settings {file} cannot be read: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        first = " ".join(str(error).split())[:200]
        raise InvalidInput(f"the cluster's settings {file} are neither YAML nor TOML: {first}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidInput(f"the cluster's settings {file} must be names with values, not a {type(found).__name__}")
    return found


def _parsed(text: str):
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _typed(name: str, value):
    """`value` as the field `name` holds it."""
    wanted = get_type_hints(ClusterSettings)[name]
    plain = get_origin(wanted) or wanted
    if value is None:
        value = plain()
    if plain is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)   # cpu: 4
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if plain is tuple and isinstance(value, list):
        item = get_args(wanted)[0]
        if all(isinstance(one, item) for one in value):
            return tuple(value)
    if plain is dict and isinstance(value, dict):
        return {str(key): str(one) for key, one in value.items()}
    if isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
        return value
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", tuple: "a list",
             dict: "names with values"}
    raise InvalidInput(f"{name} must be {words[plain]}, not {value!r}")
