"""Why a run does not get on: what scheduler, kubelet and workflow controller say of its pods, in one line each."""

from __future__ import annotations

from components.context import MARK
from redoubt.cluster.errors import ClusterError
from redoubt.cluster.kubernetes import EVENT, POD, Kind, Kubernetes

WORKFLOW = Kind(api="argoproj.io/v1alpha1", plural="workflows", kind="Workflow")
_HINTS = {
    "Unschedulable": "no node has what it asks for: ask for less (gpus_per_node, memory, cpu), or mend "
                     "node_selector and tolerations",
    "ImagePullBackOff": "the image is missing or needs a secret: check image and image_pull_secrets",
    "ErrImagePull": "the image is missing or needs a secret: check image and image_pull_secrets",
    "InvalidImageName": "check image",
    "CreateContainerConfigError": "a Secret or ConfigMap that it names is missing: check mlflow_secret and s3_secret",
    "CreateContainerError": "the container cannot be made: see the pod",
    "OOMKilled": "it needed more memory than its limit: raise memory or light_memory",
    "Evicted": "the node ran out of something: raise memory, or ask the node's operator",
    "DeadlineExceeded": "it took longer than step_hours",
}
_QUOTA = "the namespace's quota is used up: ask for less, wait for other runs, or have it raised"
_MOUNT = "a volume cannot be mounted: check data_claim and checkpoint_claim"
_MISSING = "what it mounts is not there: check signing_secret and trusted_keys, and for the agent's pod the Secret " \
           "ACCOUNT.service-account-token of service_account"


def reasons(kubernetes: Kubernetes, run_id: str) -> list[str]:
    """One line for each thing that stands in a run's way: what is said, and what to do; none where nothing is known."""
    found: dict[str, None] = {}
    try:
        workflows = kubernetes.list(WORKFLOW, labels=f"pipeline/runid={run_id}")
        for pod in _pods(kubernetes, run_id, workflows):
            for line in [*of_pod(pod), *_last_words(kubernetes, pod), *_mounts(kubernetes, pod)]:
                found[line] = None
        for workflow in workflows:
            for line in of_workflow(workflow):
                found[line] = None
    except ClusterError as error:
        found[f"its pods cannot be looked at: {error}"] = None
    return list(found)


def _pods(kubernetes: Kubernetes, run_id: str, workflows: list[dict]) -> list[dict]:
    """The steps' pods, and the agent's that runs the drivers, which bears the workflow's name alone."""
    labels = [f"pipeline/runid={run_id}",
              *(f"workflows.argoproj.io/workflow={one['metadata']['name']}" for one in workflows)]
    found = {pod["metadata"]["name"]: pod for label in labels for pod in kubernetes.list(POD, labels=label)}
    return list(found.values())


def of_pod(pod: dict) -> list[str]:
    """What stands in one pod's way."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    found = []
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            found.append(_line(name, condition.get("reason", ""), condition.get("message", "")))
    if status.get("reason"):   # Evicted, DeadlineExceeded
        found.append(_line(name, status["reason"], status.get("message", "")))
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = container.get("state", {}).get("waiting") or {}
        ended = container.get("state", {}).get("terminated") or {}
        if waiting.get("reason") in _HINTS:
            found.append(_line(name, waiting["reason"], waiting.get("message", "")))
        if ended.get("reason") in _HINTS:
            found.append(_line(name, ended["reason"], ended.get("message", "")))
    return found


def _last_words(kubernetes: Kubernetes, pod: dict) -> list[str]:
    """The reason that a failed step has written itself."""
    name = pod["metadata"]["name"]
    if pod.get("status", {}).get("phase") != "Failed":
        return []
    try:
        lines = kubernetes.log(name, "main", tail=500).splitlines()
    except ClusterError:   # the pod is gone, or its log may not be read
        return []
    return [f"{name}: {line.split(MARK, 1)[1].strip()}" for line in lines if MARK in line][-1:]


def _mounts(kubernetes: Kubernetes, pod: dict) -> list[str]:
    """Which volume keeps a pod from being made: its status does not say, only the kubelet's last event does."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if status.get("phase") != "Pending":
        return []
    try:
        events = kubernetes.list(EVENT, fields=f"involvedObject.name={name}")
    except ClusterError:
        return []
    said = [one.get("message", "") for one in events if one.get("reason") in ("FailedMount", "FailedAttachVolume")]
    return [_line(name, "FailedMount", said[-1])] if said else []


def of_workflow(workflow: dict) -> list[str]:
    """What the controller says of pods that it could not make, or that wait for something."""
    found = []
    for node in (workflow.get("status", {}).get("nodes") or {}).values():
        said = node.get("message") or ""
        if "exceeded quota" in said:
            found.append(f"{node.get('displayName', 'a step')}: {_first(said)}; {_QUOTA}")
        elif "persistentvolumeclaim" in said.lower() or "FailedMount" in said:
            found.append(f"{node.get('displayName', 'a step')}: {_first(said)}; {_MOUNT}")
        elif "forbidden" in said and node.get("phase") in ("Error", "Failed", "Pending"):
            found.append(f"{node.get('displayName', 'a step')}: {_first(said)}; check service_account and the "
                         "namespace's Pod Security level")
    return found


def _line(name: str, reason: str, message: str) -> str:
    hint = _HINTS.get(reason, "")
    if "persistentvolumeclaim" in message:
        hint = _MOUNT
    elif reason == "FailedMount":
        hint = _MISSING if "not found" in message else _MOUNT
    said = f"{reason}: {_first(message)}" if message else reason
    return f"{name}: {said}" + (f"; {hint}" if hint else "")


def _first(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:300]
