"""Whole servers that share a ledger, against the API server's stand-in."""

from contextlib import contextmanager

import pytest
from serving_support import FolderRegistry, wait_until
from standins.api_server import ApiServer, Fault
from standins.kfp_server import KfpServer

from redoubt.cluster.errors import Unreachable
from redoubt.cluster.http import Connection
from redoubt.cluster.kubernetes import Kubernetes
from redoubt.errors import InvalidInput
from redoubt.threat import ThreatModel
from serving.cluster.replica import ledger_name
from serving.launcher import Result
from serving.problems import NotReady
from serving.server import Server
from serving.settings import load_settings

KFP = {"launcher": "kfp", "kfp_endpoint": "http://kfp", "kfp_pipeline": "p", "kfp_version": "v",
       "tracking_uri": "http://mlflow:5000"}


class Launcher:
    """Says at once what it was told to."""

    def __init__(self, result: Result):
        self.result, self.runs = result, 0

    def run(self, folder, stop, attempt=0):
        self.runs += 1
        return self.result


@contextmanager
def replica(api: ApiServer, settings, registry, home, name: str, launcher=None):
    """A started server, one of several."""
    kubernetes = Kubernetes(Connection("http://api", what="the Kubernetes API", transport=api.transport()), "redoubt")
    server = Server(settings(home=home, ledger="kubernetes", replica=name, lease_seconds=10, **KFP), registry=registry,
                    launcher=launcher or Launcher(Result(status="refused", reason="by script")), kubernetes=kubernetes)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def test_one_leads_answers_for_all_and_gives_the_lease_back(settings, registry, tmp_path):
    api = ApiServer()
    with replica(api, settings, registry, tmp_path / "a", "a") as first:
        wait_until(lambda: first.replica.leadership.leads)
        with replica(api, settings, registry, tmp_path / "b", "b") as second:
            wait_until(lambda: second.status()["ready"])
            assert [one.status()["replica"] for one in (first, second)] == [
                {"name": "a", "leads": True}, {"name": "b", "leads": False}]
            campaign = first.ledger.open_campaign("digits", "1", inputs=1, flagged=1)
            first.ledger.ask(campaign, ThreatModel("Linf", 0.1), cool_down=0, daily_budget=1)
            first.retrainer.wake()
            wait_until(lambda: second.status()["retrains"] and second.status()["retrains"][0]["state"] == "refused",
                       what="the result on the other replica")
            assert first.retrainer._launcher.runs == 1
            assert second.retrainer._launcher.runs == 0
            wait_until(lambda: {event["reason"] for event in api.all("events")} == {
                "RetrainStarted", "RetrainRefused"}, what="the events")
            first.stop()
            wait_until(lambda: second.replica.leadership.leads, 5, "the other replica's turn")


def test_an_operator_s_pause_on_one_replica_holds_back_the_leader(settings, registry, tmp_path):
    api = ApiServer()
    with replica(api, settings, registry, tmp_path / "a", "a") as first:
        wait_until(lambda: first.replica.leadership.leads)
        with replica(api, settings, registry, tmp_path / "b", "b") as second:
            second.operations.pause("ann", "maintenance")
            wait_until(lambda: first.operations.paused, what="the pause on the leader")
            assert first.status()["operations"]["paused"]["why"] == "maintenance"
            campaign = first.ledger.open_campaign("digits", "1", inputs=1, flagged=1)
            first.ledger.ask(campaign, ThreatModel("Linf", 0.1), cool_down=0, daily_budget=1)
            assert not first.retrainer.work_off()
            assert first.retrainer._launcher.runs == 0
            second.operations.resume()
            wait_until(lambda: first.retrainer._launcher.runs == 1, what="the run")
            api.faults.append(Fault(403, times=10**6))
            with pytest.raises(NotReady, match="was not done"):
                second.operations.pause("ann")
            api.faults.clear()


def test_a_server_outside_a_cluster_says_so_and_leaves_its_home(settings, registry, tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    chosen = settings(ledger="kubernetes", **KFP)
    for _ in range(2):   # the home is free again
        with pytest.raises(Unreachable, match="does not run in a Kubernetes cluster"):
            Server(chosen, registry=registry)


def test_it_serves_while_the_api_is_down_and_says_what_is_wrong(settings, undefended, tmp_path):
    api = ApiServer()
    api.faults.append(Fault(403, times=10**6))
    with replica(api, settings, FolderRegistry({1: undefended}, 1), tmp_path / "a", "a") as server:
        wait_until(lambda: server.status()["ready"])
        wait_until(lambda: "forbids" in (server.status()["problem"] or ""), what="the problem")
        assert server.status()["campaigns"] == server.status()["retrains"] == []
        api.faults.clear()
        wait_until(lambda: server.status()["replica"]["leads"], what="its term")
        wait_until(lambda: server.status()["problem"] is None, what="the all-clear")


def test_the_launcher_is_made_as_the_settings_say(settings, registry, tmp_path):
    kfp, api = KfpServer(), ApiServer()
    (tmp_path / "token").write_text("t")
    with kfp.listening() as url:
        chosen = settings(ledger="kubernetes", **KFP | {"kfp_endpoint": url}, kfp_token_file=tmp_path / "token")
        kubernetes = Kubernetes(Connection("http://api", what="k", transport=api.transport()), "redoubt")
        server = Server(chosen, registry=registry, kubernetes=kubernetes)
        try:
            launcher = server.retrainer._launcher
            assert launcher._pipelines.experiment("e") == launcher._pipelines.experiment("e")
        finally:
            server.stop()


@pytest.mark.parametrize("changes, says", [
    ({"launcher": "kfp"}, "needs REDOUBT_KFP_ENDPOINT, REDOUBT_KFP_PIPELINE, REDOUBT_KFP_VERSION"),
    (KFP, "go together"),
    ({"ledger": "kubernetes"}, "go together"),
])
def test_settings_that_do_not_fit_together(changes, says):
    with pytest.raises(InvalidInput, match=says):
        load_settings(**changes)


def test_pods_cannot_reach_a_registry_in_a_file(settings, registry, tmp_path):
    kubernetes = Kubernetes(Connection("http://api", what="k", transport=ApiServer().transport()), "redoubt")
    chosen = settings(ledger="kubernetes", **KFP | {"tracking_uri": f"sqlite:///{tmp_path / 'm.db'}"})
    with pytest.raises(InvalidInput, match="cannot reach"):
        Server(chosen, registry=registry, kubernetes=kubernetes)


@pytest.mark.parametrize("model, name", [("redoubt", "redoubt"), ("digits", "redoubt-digits")])
def test_names_of_what_replicas_share(model, name):
    assert ledger_name(model) == name


def test_names_that_kubernetes_does_not_take_stay_apart():
    names = {ledger_name(one) for one in ("A_b", "a-b", "A-b", "a.b", "é" * 3, "x" * 100)}
    assert len(names) == 6
    assert all(len(name) < 60 and name == name.lower() and "_" not in name for name in names)
