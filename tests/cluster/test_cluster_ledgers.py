"""Ledger, election, counts and claims against a real API server: what the stand-in is believed to do, too."""

from __future__ import annotations

import secrets
import threading

import pytest
from cluster_support import until

from pipelines.cluster.connect import kubernetes_api
from redoubt.cluster.claims import VOID, claim, forget, holder_of
from redoubt.cluster.errors import Conflict, NotFound
from redoubt.cluster.kubernetes import CONFIG_MAP, EVENT, LEASE
from redoubt.threat import ThreatModel
from serving.cluster.counts import Counts, Exchange
from serving.cluster.events import Events
from serving.cluster.leadership import Leadership
from serving.cluster.ledger import ConfigMapLedger
from serving.problems import Problems
from serving.records import LedgerUnavailable

THREAT, FREE = ThreatModel("Linf", 0.1), {"cool_down": 0.0, "daily_budget": 100}


@pytest.fixture
def kubernetes(cluster, namespace):
    return kubernetes_api(namespace)


@pytest.fixture
def name() -> str:
    return f"t-{secrets.token_hex(3)}"


class Member:
    """One replica, with a clock that the test moves."""

    def __init__(self, kubernetes, name: str, replica: str):
        self.now, self.problems = 0.0, Problems()
        self.leadership = Leadership(kubernetes, f"{name}-leader", replica, self.problems, clock=lambda: self.now)
        self.ledger = ConfigMapLedger(kubernetes, f"{name}-ledger", self.leadership, clock=lambda: self.now)


def test_two_ledgers_contend_and_one_request_is_made(kubernetes, name):
    first, second = Member(kubernetes, name, "a"), Member(kubernetes, name, "b")
    assert [first.leadership.campaign(), second.leadership.campaign()] == [True, False], str(first.problems)
    campaign = first.ledger.open_campaign("digits", "1", inputs=1, flagged=1)
    with pytest.raises(LedgerUnavailable, match="another replica leads"):
        second.ledger.ask(campaign, THREAT, **FREE)
    second.now = 20.0
    assert second.leadership.campaign()
    request, _ = second.ledger.ask(campaign, THREAT, **FREE)
    with pytest.raises(LedgerUnavailable):
        first.ledger.ask(campaign, THREAT, **FREE)
    first.ledger.forget()
    assert first.ledger.requests() == [request]
    second.leadership.stop()
    assert kubernetes.get(LEASE, f"{name}-leader")["spec"].get("holderIdentity", "") == ""


def test_of_many_that_begin_at_once_one_leads(kubernetes, name):
    members, won = [Member(kubernetes, name, f"pod-{n}") for n in range(6)], []
    threads = [threading.Thread(target=lambda m=m: won.append(m.leadership.campaign())) for m in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won.count(True) == 1


def test_a_stale_write_is_refused(kubernetes, name):
    kubernetes.create(CONFIG_MAP, name, {"data": {"a": "1"}})
    old = kubernetes.get(CONFIG_MAP, name)
    kubernetes.merge(CONFIG_MAP, name, {"data": {"b": "2", "a": None}})
    with pytest.raises(Conflict):
        kubernetes.replace(CONFIG_MAP, old | {"data": {"a": "3"}})
    assert kubernetes.get(CONFIG_MAP, name)["data"] == {"b": "2"}


def test_counts_of_several_replicas_meet_in_one_config_map(kubernetes, name):
    counts = Counts(epoch="e", key="1-r", inputs=1, passed=1, flagged=0, digests=(), evidence=None)
    exchanges = [Exchange(kubernetes, name, f"pod-{n}") for n in range(4)]
    threads = [threading.Thread(target=exchange.publish, args=(counts,)) for exchange in exchanges]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(exchanges[0].read()[0]) == {f"pod-{n}" for n in range(4)}
    exchanges[0].forget("pod-3")
    assert "pod-3" not in exchanges[1].read()[0]


def test_one_run_of_many_gets_the_claim(kubernetes, name):
    holders = []
    threads = [threading.Thread(target=lambda n=n: holders.append(claim(kubernetes, name, f"run-{n}")))
               for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(holders)) == 1
    assert claim(kubernetes, name, VOID) == holders[0] == holder_of(kubernetes, name)
    assert holder_of(kubernetes, f"{name}-other") is None
    with pytest.raises(NotFound):
        kubernetes.get(LEASE, f"{name}-other")
    for _ in range(2):   # there, and gone
        forget(kubernetes, name)
    assert holder_of(kubernetes, name) is None


def test_an_event_is_taken_and_seen(kubernetes, name):
    Events(kubernetes, name).tell("RetrainStarted", "r-1: Linf 0.1 for c-1 " + "é" * 2000)
    event = until(lambda: next((one for one in kubernetes.list(EVENT)
                                if one["involvedObject"].get("name") == name), None),
                  10, "the event")
    assert (event["reason"], event["type"]) == ("RetrainStarted", "Normal")
