"""kubectl, and the overlays moved to a namespace of the tests' own."""

from __future__ import annotations

import contextlib
import copy
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"
RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


@cache
def rendered(overlay: str) -> str:
    command = ["kubectl", "kustomize", str(MANIFESTS / overlay)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


class Cluster:
    """The cluster of the current context."""

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True, timeout: float = 120):
        """Run kubectl; a failure shows what it said."""
        done = subprocess.run(["kubectl", *words], input=stdin, capture_output=True, text=True, timeout=timeout)
        assert not check or done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr.strip()}"
        return done

    def get(self, kind: str, name: str, namespace: str) -> dict:
        return json.loads(self.kubectl("get", kind, name, "-n", namespace, "-o", "json").stdout)

    def apply(self, documents: list[dict], *more: str, check: bool = True):
        """Apply objects as one list, with strict validation by the server."""
        listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
        return self.kubectl("apply", "--validate=strict", *more, "-f", "-", stdin=listed, check=check)

    def has(self, document: dict) -> bool:
        """Whether an object of this kind and name is there."""
        found = self.kubectl("get", document["kind"], document["metadata"]["name"], "-n",
                             document["metadata"]["namespace"], check=False)
        return found.returncode == 0

    def knows(self, document: dict) -> bool:
        """Whether the server has this kind: operators may be missing."""
        return document["apiVersion"] in self._versions()

    def overlay(self, name: str, namespace: str, images: dict[str, str] | None = None) -> list[dict]:
        """An overlay's objects, moved to `namespace`, without the Namespace itself."""
        found = [one for one in yaml.safe_load_all(rendered(name)) if one["kind"] != "Namespace"]
        return [_moved(one, namespace, images or {}) for one in copy.deepcopy(found)]

    def may(self, account: str, namespace: str, verb: str, resource: str, *, group: str = "", name: str = "",
            where: str | None = None) -> bool:
        """What the API server's authorizer says of a service account; `where` is the namespace asked about."""
        resource, _, subresource = resource.partition("/")
        attributes = {"namespace": namespace if where is None else where, "verb": verb, "group": group,
                      "resource": resource, "subresource": subresource, "name": name}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": f"system:serviceaccount:{namespace}:{account}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
            "resourceAttributes": attributes}}
        answer = self.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(review))
        return json.loads(answer.stdout)["status"]["allowed"]

    def job(self, name: str, namespace: str, image: str, command: list[str], *, seconds: float = 900,
            labels: dict[str, str] | None = None) -> str:
        """Run a command to its end in a pod that a restricted namespace admits; returns its log."""
        pod = {
            "restartPolicy": "Never", "automountServiceAccountToken": False, "enableServiceLinks": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001,
                                "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": command,
                "securityContext": RESTRICTED,
                "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
                "volumeMounts": [{"name": "home", "mountPath": "/var/lib/redoubt"}]}],
            "volumes": [{"name": "home", "emptyDir": {}}],
        }
        spec = {"backoffLimit": 0, "activeDeadlineSeconds": int(seconds),
                "template": {"metadata": {"labels": labels or {}}, "spec": pod}}
        self.apply([{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": namespace},
                     "spec": spec}])
        return self.completed(name, namespace, seconds)

    def completed(self, name: str, namespace: str, seconds: float) -> str:
        """Wait for a Job's end, which must be a good one; returns its log."""
        state = {}
        deadline = time.monotonic() + seconds + 60
        while time.monotonic() < deadline:
            status = self.get("job", name, namespace).get("status", {})
            state = {one["type"]: one for one in status.get("conditions", []) if one["status"] == "True"}
            if "Complete" in state or "Failed" in state:
                break
            time.sleep(3)
        log = self.kubectl("logs", "-n", namespace, f"job/{name}", "--tail=200", check=False).stdout
        assert "Complete" in state, f"job {name}: {state or 'did not end'}\n{log}"
        return log

    @contextlib.contextmanager
    def forwarded(self, service: str, namespace: str, port: int) -> Iterator[str]:
        """A service's address on this machine."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            local = listener.getsockname()[1]
        child = subprocess.Popen(
            ["kubectl", "port-forward", "-n", namespace, f"svc/{service}", f"{local}:{port}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(lambda: _open(local), 30, f"port-forward to {service}")
            yield f"http://127.0.0.1:{local}"
        finally:
            child.terminate()
            child.wait(10)

    @cache   # noqa: B019 (one cluster lives for the whole session)
    def _versions(self) -> set[str]:
        return set(self.kubectl("api-versions").stdout.split())


def pods_of(documents: list[dict]) -> dict[str, dict]:
    """A Pod for every template among the objects, as its controller would make it."""
    found = {}
    for one in documents:
        if one["kind"] not in ("Deployment", "StatefulSet"):
            continue
        template, namespace = copy.deepcopy(one["spec"]["template"]), one["metadata"]["namespace"]
        for claim in one["spec"].get("volumeClaimTemplates", []):
            volume = claim["metadata"]["name"]
            template["spec"]["volumes"].append(
                {"name": volume, "persistentVolumeClaim": {"claimName": f"{volume}-{one['metadata']['name']}-0"}})
        found[one["metadata"]["name"]] = {
            "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
            "metadata": {"name": f"{one['metadata']['name']}-probe", "namespace": namespace,
                         "labels": template["metadata"]["labels"]}}
    return found


def until(condition, seconds: float, what: str, every: float = 1.0):
    """Poll until `condition()` is true, and return its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(every)
    raise AssertionError(f"{what}: not within {seconds:g} s")


def ask(address: str, body: dict | None = None) -> tuple[int, dict]:
    """Status and JSON of one request; 0 when nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")
    except OSError:
        return 0, {}


def _moved(document: dict, namespace: str, images: dict[str, str]) -> dict:
    metadata = document["metadata"]
    if "namespace" in metadata:
        metadata["namespace"] = namespace
    for subject in document.get("subjects", []):
        subject["namespace"] = namespace
    spec = document.get("spec", {})
    pod = spec.get("template", {}).get("spec", spec.get("predictor", {}))
    for container in pod.get("initContainers", []) + pod.get("containers", []):
        name = container["image"].rpartition(":")[0]
        container["image"] = images.get(name, container["image"])
    return document


def _open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
