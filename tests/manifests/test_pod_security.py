"""Every pod against the Pod Security Standard `restricted`, rule by rule, and against our own stricter ones."""

import copy

import pytest
from manifests_support import OVERLAYS, WITH_SERVING, containers, of_kind, pods

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SECCOMP = ("RuntimeDefault", "Localhost")
SYSCTLS = {"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
           "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range"}


def violations(pod: dict) -> set[str]:
    """Names of the rules of `restricted` (which includes `baseline`) that a pod breaks."""
    context, broken = pod.get("securityContext", {}), set()

    def rule(name: str, holds: bool) -> None:
        if not holds:
            broken.add(name)

    rule("host namespaces", not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")))
    rule("volume types", all(set(volume) - {"name"} <= VOLUMES for volume in pod.get("volumes", [])))
    rule("sysctls", all(one["name"] in SYSCTLS for one in context.get("sysctls", [])))
    rule("host process", not context.get("windowsOptions", {}).get("hostProcess"))
    rule("not as root", context.get("runAsUser") != 0)
    rule("se linux", not {"user", "role"} & set(context.get("seLinuxOptions", {})))
    for container in containers(pod):
        own = container.get("securityContext", {})
        capabilities = own.get("capabilities", {})
        rule("privileged", not own.get("privileged"))
        rule("privilege escalation", own.get("allowPrivilegeEscalation") is False)
        rule("capabilities dropped", "ALL" in capabilities.get("drop", []))
        rule("capabilities added", set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"})
        rule("must run as non-root", own.get("runAsNonRoot", context.get("runAsNonRoot")) is True)
        rule("not as root", own.get("runAsUser") != 0)
        rule("seccomp", own.get("seccompProfile", context.get("seccompProfile", {})).get("type") in SECCOMP)
        rule("proc mount", own.get("procMount", "Default") == "Default")
        rule("apparmor", own.get("appArmorProfile", {}).get("type", "RuntimeDefault") != "Unconfined")
        rule("se linux", not {"user", "role"} & set(own.get("seLinuxOptions", {})))
        rule("host ports", not any(port.get("hostPort") for port in container.get("ports", [])))
        handlers = [container.get(name, {}) for name in ("livenessProbe", "readinessProbe", "startupProbe")]
        rule("host probes", not any(handler.get("httpGet", {}).get("host") for handler in handlers))
    return broken


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_restricted(overlay):
    for name, (_, pod) in pods(overlay).items():
        assert violations(pod) == set(), name


@pytest.mark.parametrize(("rule", "change"), [
    ("host namespaces", lambda pod: pod.update(hostNetwork=True)),
    ("volume types", lambda pod: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
    ("must run as non-root", lambda pod: pod["securityContext"].pop("runAsNonRoot")),
    ("seccomp", lambda pod: pod["securityContext"].pop("seccompProfile")),
    ("not as root", lambda pod: pod["securityContext"].update(runAsUser=0)),
    ("capabilities dropped", lambda pod: pod["containers"][0]["securityContext"]["capabilities"].update(drop=[])),
    ("privilege escalation", lambda pod: pod["containers"][0]["securityContext"].pop("allowPrivilegeEscalation")),
    ("privileged", lambda pod: pod["containers"][0]["securityContext"].update(privileged=True)),
    ("host ports", lambda pod: pod["containers"][0]["ports"][0].update(hostPort=80)),
])
def test_each_rule_is_seen_when_it_is_broken(rule, change):
    pod = copy.deepcopy(pods("base")["Deployment/redoubt-serving"][1])
    change(pod)
    assert violations(pod) == {rule}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_our_own_rules(overlay):
    """Read-only roots, numeric users, memory bounded, no stray environment, a token only where it is used."""
    for name, (_, pod) in pods(overlay).items():
        assert pod["enableServiceLinks"] is False, name
        assert "automountServiceAccountToken" in pod, name
        assert pod["securityContext"]["runAsUser"] >= 1 and pod["securityContext"]["fsGroup"], name
        for container in containers(pod):
            where = f"{name}/{container['name']}"
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, where
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
            assert "memory" in container["resources"]["limits"], where
            assert ":" in container["image"] and not container["image"].endswith(":latest"), where


@pytest.mark.parametrize("overlay", [name for name in WITH_SERVING if name != "overlays/kubeflow"])
def test_the_namespace_admits_restricted_pods_only(overlay):
    labels = of_kind(overlay, "Namespace")["redoubt"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
