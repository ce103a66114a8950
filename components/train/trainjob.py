"""Training on several nodes: a TrainJob of Kubeflow Trainer, made by the train step, followed, and removed with it.

The nodes and the step share a volume: prepared data, the weights to begin with and the bundle go over it, and so do the
rows of progress. See https://www.kubeflow.org/docs/components/trainer/ for the kind.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from components.signals import sigterm_raises
from redoubt.cluster.errors import RETRYABLE, Conflict, NotFound
from redoubt.cluster.kubernetes import POD, TRAIN_JOB, Kubernetes
from redoubt.errors import RedoubtError

NODES = "REDOUBT_TRAIN_JOB"   # holds `Nodes` as JSON where the step is to make a TrainJob
NODE = "node"   # the name of replicated job and container in the runtime torch-distributed
BEAT, LEFT = "beat", "left"   # files: written by the step at every look; by a process that found the step gone
TORCHRUN = ("python3", "-m", "torch.distributed.run")   # by its script's name it is not on the image's path
POLL_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """What a TrainJob is made of.

    Attributes:
        nodes, gpus, gpu_type: how many pods, and GPUs of each; without GPUs each pod is one process.
        image: the steps' image.
        claim, path: the volume that all of them mount, and where.
        runtime: name of the ClusterTrainingRuntime.
        hours: longest that it may take.
    """

    nodes: int
    image: str
    claim: str
    path: str
    gpus: int = 0
    gpu_type: str = "nvidia.com/gpu"
    runtime: str = "torch-distributed"
    cpu: str = "1"
    memory: str = "4Gi"
    shared_memory: str = ""
    user: int = 10001
    service_account: str = ""
    image_pull_secrets: tuple[str, ...] = ()
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[dict, ...] = ()
    hours: float = 24.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_environment(cls) -> Nodes | None:
        """As the environment says; None where the step trains in its own pod."""
        text = os.environ.get(NODES)
        return cls(**json.loads(text)) if text else None


def run(work, nodes: Nodes, progress: Callable[[dict], None], pulse: Callable[[int, dict], None],
        kubernetes: Kubernetes | None = None) -> None:
    """Do `work`, a `components.train.work.Work`, on several nodes.

    Raises:
        RedoubtError: when a process failed, the job was deleted, or the volume cannot be used.
        ClusterError: when this pod may not make a TrainJob.
    """
    name = f"redoubt-train-{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12]}"
    with shared(nodes, name) as folder:
        there = work.to_json() | {"data": str(folder / "data"), "out": str(folder / "out")}
        shutil.copytree(work.data, folder / "data", dirs_exist_ok=True)
        if there["start"]["folder"]:
            shutil.copytree(there["start"]["folder"], folder / "start", dirs_exist_ok=True)
            there["start"]["folder"] = str(folder / "start")
        if there["checkpoint"]:   # beside the job's folder: a next attempt finds it
            there["checkpoint"] = str(folder.parent / Path(there["checkpoint"]).name)
        (folder / "work.new").write_text(json.dumps(there))
        (folder / "work.new").replace(folder / "work.json")   # whole, or not there
        (folder / LEFT).unlink(missing_ok=True)
        _beat(folder)
        events = Events(folder / "events.jsonl", progress, pulse)
        try:
            follow(kubernetes or Kubernetes.in_cluster(), name, content(nodes, folder),
                   say=lambda line: print(line, flush=True), tell=lambda: (_beat(folder), events.tell()))
        except RedoubtError as error:
            said = [json.loads(file.read_text())["message"] for file in sorted(folder.glob("error.*.json"))]
            if said:
                raise RedoubtError(f"{error}: {said[0]}") from None
            raise
        shutil.copytree(folder / "out", work.out, dirs_exist_ok=True)
        if there["checkpoint"]:   # the bundle is whole: nothing is left to go on from
            Path(there["checkpoint"]).unlink(missing_ok=True)


def _beat(folder: Path) -> None:
    """Tell the nodes that somebody waits for them. A canceled run's pod ends a second after the signal, whether or not
    its TrainJob could be removed by then; the pod itself stays, and with it what it owns."""
    with contextlib.suppress(OSError):   # a volume that stumbles is met again where it is needed
        (folder / BEAT).write_text(str(time.time_ns()))


class Events:
    """Rows of progress that the first process writes, passed on as they come."""

    def __init__(self, file: Path, progress: Callable[[dict], None], pulse: Callable[[int, dict], None]):
        self._file, self._progress, self._pulse, self._seen = file, progress, pulse, 0

    def tell(self) -> None:
        """Pass on what is new; a line that is still being written waits."""
        text = self._file.read_text() if self._file.exists() else ""
        whole = text[self._seen : text.rfind("\n") + 1]
        self._seen += len(whole)
        for line in whole.splitlines():
            event = json.loads(line)
            self._pulse(event["pulse"], event["values"]) if "pulse" in event else self._progress(event)


def content(nodes: Nodes, folder: Path) -> dict:
    """The TrainJob's spec: every process runs `components.train.together` on the shared folder."""
    resources = {"cpu": nodes.cpu, "memory": nodes.memory} | ({nodes.gpu_type: str(nodes.gpus)} if nodes.gpus else {})
    limits = {key: value for key, value in resources.items() if key != "cpu"}
    mounts = [{"name": "shared", "mountPath": nodes.path}]
    volumes: list[dict] = [{"name": "shared", "persistentVolumeClaim": {"claimName": nodes.claim}}]
    if nodes.shared_memory:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": nodes.shared_memory}})
    secure = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod: dict = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": nodes.user, "runAsGroup": nodes.user,
                            "fsGroup": nodes.user, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": volumes,
        "containers": [{"name": NODE, "volumeMounts": mounts, "securityContext": secure}],
    }
    pod |= {key: value for key, value in {
        "nodeSelector": nodes.node_selector, "serviceAccountName": nodes.service_account,
        "tolerations": [_toleration(one) for one in nodes.tolerations],
        "imagePullSecrets": [{"name": name} for name in nodes.image_pull_secrets]}.items() if value}
    # In a profile Istio would give every pod a sidecar, and the nodes' own protocols do not pass it.
    pods = {"metadata": {"labels": {"sidecar.istio.io/inject": "false"}}, "spec": pod}
    template = {"spec": {"replicatedJobs": [{"name": NODE, "template": {"spec": {"template": pods}}}]}}
    return {
        "runtimeRef": {"name": nodes.runtime, "kind": "ClusterTrainingRuntime", "apiGroup": "trainer.kubeflow.org"},
        "activeDeadlineSeconds": int(nodes.hours * 3600),
        "trainer": {
            "image": nodes.image, "numNodes": nodes.nodes, "numProcPerNode": max(1, nodes.gpus),
            "command": [*TORCHRUN, "-m", "components.train.together"], "args": [str(folder)],
            "resourcesPerNode": {"requests": resources, "limits": limits},
        },
        "runtimePatches": [{"manager": "redoubt.dev/train", "trainingRuntimeSpec": {"template": template}}],
    }


def follow(
    kubernetes: Kubernetes, name: str, spec: dict, *, say: Callable[[str], None], tell: Callable[[], None],
    poll: float = POLL_SECONDS, sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Make the TrainJob `name`, pass on its first node's log and its conditions, and remove it however this ends.

    Args:
        say: takes each line.
        tell: called at every look, to pass on progress.

    Raises:
        RedoubtError: when it failed, with what its conditions say.
        ClusterError: when it cannot be made, or is not followed for so long that it must be given up.
    """
    with _removed(kubernetes, name):
        _make(kubernetes, name, spec)
        seen, since, told = set(), "", ""
        while True:
            ended, line = _stands(kubernetes, name)
            if line and line != told:
                told = line
                say(f"TrainJob {name}: {line}")
            since = _log(kubernetes, name, seen, since, say)
            tell()
            if ended == "Complete":
                return
            if ended:
                raise RedoubtError(f"TrainJob {name} failed: {line}")
            sleep(poll)


def _make(kubernetes: Kubernetes, name: str, spec: dict) -> None:
    owner = []
    try:   # removed with this pod, should it end without a word
        pod = kubernetes.get(POD, os.environ.get("KFP_POD_NAME") or socket.gethostname())   # which is cut at 63 letters
        owner = [{"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}]
    except NotFound:
        pass
    for _ in range(10):
        try:
            kubernetes.create(TRAIN_JOB, name, {"spec": spec}, ownerReferences=owner,
                              labels={"app.kubernetes.io/part-of": "redoubt"})
            return
        except Conflict:   # an attempt before this one was killed
            kubernetes.delete(TRAIN_JOB, name)
            time.sleep(2)
        except NotFound as error:
            raise RedoubtError(f"this cluster has no TrainJob: install Kubeflow Trainer 2, or set nodes to 1 "
                               f"({error})") from None
    raise RedoubtError(f"TrainJob {name} of an attempt before this one does not go away")


def _stands(kubernetes: Kubernetes, name: str) -> tuple[str, str]:
    """The condition that ended it, or nothing, and what there is to say."""
    try:
        status = kubernetes.get(TRAIN_JOB, name).get("status") or {}
    except NotFound:
        return "Deleted", "it was deleted while it was followed"
    except RETRYABLE as error:
        return "", str(error)
    for condition in status.get("conditions") or []:
        if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed"):
            return condition["type"], f"{condition.get('reason', '')}: {condition.get('message', '')}"
    counts = [f"{one.get('ready', 0)} ready, {one.get('active', 0)} active, {one.get('failed', 0)} failed"
              for one in status.get("jobsStatus") or [] if one.get("name") == NODE]
    return "", "; ".join(counts)


def _log(kubernetes: Kubernetes, name: str, seen: set[str], since: str, say: Callable[[str], None]) -> str:
    """Say the first node's new lines; returns the time of the last."""
    labels = f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/replicatedjob-name={NODE}," \
             "batch.kubernetes.io/job-completion-index=0"
    try:
        pods = kubernetes.list(POD, labels=labels)
        lines = kubernetes.log(pods[0]["metadata"]["name"], NODE, since=since).splitlines() if pods else []
    except (RedoubtError, IndexError):   # it has no log before its container runs
        return since
    for line in lines:
        stamp, _, text = line.partition(" ")
        if line not in seen:
            seen.add(line)
            say(text)
        since = stamp if "T" in stamp else since
    return since


@contextmanager
def _removed(kubernetes: Kubernetes, name: str) -> Iterator[None]:
    """Whatever ends this block, a run that is canceled included, the TrainJob goes with it."""
    try:
        with sigterm_raises():
            yield
    finally:
        try:
            kubernetes.delete(TRAIN_JOB, name)
        except NotFound:
            pass
        except RedoubtError as error:
            print(f"TrainJob {name} was not removed: {error}", flush=True)


@contextmanager
def shared(nodes: Nodes, name: str) -> Iterator[Path]:
    """A folder of this job's own on the volume that all nodes mount; gone afterwards."""
    folder = Path(nodes.path) / ".redoubt" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise RedoubtError(f"the shared volume {nodes.claim} at {nodes.path}: {error.strerror or error}: is it "
                           "ReadWriteMany, writable and not full?") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _toleration(one: dict) -> dict:
    return {"tolerationSeconds" if key == "toleration_seconds" else key: value for key, value in one.items()}
