"""What a run names and the namespace does not have: said before it is started, where kubectl's context can tell."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.cluster.settings import ClusterSettings
from redoubt.cluster.errors import ClusterError, NotFound
from redoubt.cluster.kubernetes import Kind, Kubernetes
from redoubt.errors import InvalidInput

SECRET = Kind(api="v1", plural="secrets", kind="Secret")
CLAIM = Kind(api="v1", plural="persistentvolumeclaims", kind="PersistentVolumeClaim")
CONFIG_MAP = Kind(api="v1", plural="configmaps", kind="ConfigMap")
ACCOUNT = Kind(api="v1", plural="serviceaccounts", kind="ServiceAccount")
FIELDS = (("mlflow_secret", SECRET), ("s3_secret", SECRET), ("image_pull_secrets", SECRET), ("oci_secret", SECRET),
          ("signing_secret", SECRET), ("trusted_keys", CONFIG_MAP), ("data_claim", CLAIM), ("checkpoint_claim", CLAIM),
          ("service_account", ACCOUNT))


def named(settings: ClusterSettings) -> Iterator[tuple[str, Kind, str]]:
    """(setting, kind, name) of everything that must be in the namespace of the run's pods."""
    for field, kind in FIELDS:
        value = getattr(settings, field)
        for name in (value,) if isinstance(value, str) else value:
            if name:
                yield field, kind, name


def check(kubernetes: Kubernetes, settings: ClusterSettings) -> None:
    """Raise InvalidInput naming what is missing.

    What may not be looked at is taken to be there, as is everything where the namespace itself is not: kubectl's
    context is of another cluster then.
    """
    for field, kind, name in named(settings):
        try:
            kubernetes.get(kind, name)
        except NotFound:
            if there(kubernetes):
                raise InvalidInput(
                    f"{field}: the namespace {kubernetes.namespace} has no {kind.kind} {name!r}: make it, name "
                    "another, or, if that is not the cluster, choose it with kubectl config use-context") from None
            return
        except ClusterError:
            continue


def there(kubernetes: Kubernetes) -> bool:
    """Whether the namespace can be seen to exist: each has the ServiceAccount `default`."""
    try:
        kubernetes.get(ACCOUNT, "default")
    except ClusterError:
        return False
    return True
