"""The step that every run begins with: whose campaign it answers, and which data there are."""

import pytest
from standins.api_server import ApiServer

from components.begin import step
from redoubt.cluster.claims import VOID, claim
from redoubt.cluster.errors import Unreachable
from redoubt.cluster.http import Connection
from redoubt.cluster.kubernetes import Kubernetes
from redoubt.data.fingerprint import fingerprint
from redoubt.errors import InvalidInput


@pytest.fixture
def kubernetes(monkeypatch):
    """The API server as a pod of the run sees it."""
    server = ApiServer(rules=[("get", "coordination.k8s.io", "leases", None),
                              ("create", "coordination.k8s.io", "leases", None)])
    found = Kubernetes(Connection("http://api", what="the Kubernetes API", transport=server.transport()), "redoubt")
    monkeypatch.setattr(Kubernetes, "in_cluster", lambda *_, **__: found)
    return found


def test_the_first_run_takes_the_claim_and_is_repeated_freely(kubernetes):
    for _ in range(2):   # a step that is retried
        assert len(step.run(dataset="digits", claim="redoubt-c-1", run="run-1")) == 64


@pytest.mark.parametrize("holder, says", [("run-1", "is answered by run run-1"), (VOID, "was given up")])
def test_a_second_run_ends_before_it_trains(kubernetes, holder, says):
    claim(kubernetes, "redoubt-c-1", holder)
    with pytest.raises(step.Claimed, match=says):
        step.run(dataset="digits", claim="redoubt-c-1", run="run-2")


def test_a_run_without_campaign_asks_nobody(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert step.run(dataset="digits") == fingerprint("digits")
    with pytest.raises(Unreachable, match="does not run in a Kubernetes cluster"):
        step.run(dataset="digits", claim="redoubt-c-1", run="run-1")


def test_the_fingerprint_follows_the_bytes_and_their_names(tmp_path):
    for name, text in (("a/1.png", "one"), ("b/2.png", "two")):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    dataset = f"folder:{tmp_path / 'data'}"
    first = fingerprint(dataset)
    assert fingerprint(dataset) == first
    (tmp_path / "data" / "a" / "1.png").write_text("onE")
    changed = fingerprint(dataset)
    (tmp_path / "data" / "a" / "1.png").rename(tmp_path / "data" / "b" / "1.png")   # another class
    assert len({first, changed, fingerprint(dataset)}) == 3


def test_the_same_files_elsewhere_are_the_same_data(tmp_path):
    for place in ("x", "y"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "f.npz").write_bytes(b"1")
    assert fingerprint(f"folder:{tmp_path / 'x'}") == fingerprint(f"folder:{tmp_path / 'y'}")


@pytest.mark.parametrize("dataset", ["folder:/no/such", "npz:/no/such.npz"])
def test_data_that_are_not_there(dataset):
    with pytest.raises(InvalidInput, match="is the volume mounted"):
        fingerprint(dataset)
