"""Replicas that count, one that judges: what a campaign spread over many costs, and what a change of leader loses."""

import json
import random

import pytest
import torch
from serving_support import Scripted, model
from standins.api_server import ApiServer, Fault

from redoubt.cluster.http import Connection
from redoubt.cluster.kubernetes import Kubernetes
from redoubt.detection import Monitor, Verdicts
from redoubt.threat import ThreatModel
from serving.cluster.counts import Counts, Exchange
from serving.cluster.leadership import Leadership
from serving.cluster.ledger import ConfigMapLedger
from serving.cluster.watch import CROWDED, ROOM, SILENT, SharedWatch
from serving.problems import Problems


class Replica:
    """One replica's watch, with traffic as a string: `c` clean, `a` attacked, each input different from the rest."""

    numbers = iter(range(1, 10**9))

    def __init__(self, server: ApiServer, name: str, settings):
        self.now = 0.0
        connection = Connection("http://api", what="the Kubernetes API", transport=server.transport(),
                                sleep=lambda _: None)
        kubernetes, self.problems, self.asked = Kubernetes(connection, "redoubt"), Problems(), []
        clock = lambda: self.now   # noqa: E731
        self.leadership = Leadership(kubernetes, "leader", name, self.problems, clock=clock)
        self.ledger = ConfigMapLedger(kubernetes, "ledger", self.leadership, clock=clock)
        self.watch = SharedWatch(settings, self.ledger, self.problems, lambda: self.asked.append(1),
                                 leadership=self.leadership, exchange=Exchange(kubernetes, "counts", name), clock=clock)
        self.leadership.campaign()

    def serve(self, loaded):
        self.loaded = loaded
        self.watch.on_model(loaded)

    def send(self, traffic: str, numbers=None, clients=None) -> None:
        numbers = numbers or [next(self.numbers) for _ in traffic]
        x = torch.zeros(len(traffic), 1, 8, 8)
        for row, number in zip(x, numbers, strict=True):
            row[0, 1, :4] = torch.tensor([number // 251**place % 251 / 251 for place in range(4)])
        flags, none = torch.tensor([letter == "a" for letter in traffic]), torch.zeros(len(x))
        self.watch.observe(self.loaded, x, Verdicts(score=none, probability=none, is_adversarial=flags, strength=none,
                                                    low=none, high=none, evidence=torch.zeros(len(x), 4)), clients)


@pytest.fixture
def group(settings):
    """A function (n, **settings) -> that many replicas of one version; the first leads."""
    def make(n: int, server=None, **changes) -> tuple[ApiServer, list[Replica]]:
        server = server or ApiServer()
        replicas = [Replica(server, f"pod-{number}", settings(**changes)) for number in range(n)]
        for replica in replicas:
            replica.serve(model("1"))
        return server, replicas

    return make


def tick(replicas) -> None:
    for replica in reversed(replicas):   # the leader, who is first, last
        replica.watch.tick()


def test_a_campaign_spread_over_ten_replicas_is_seen_nearly_as_soon_as_by_one(group):
    """At most twice the requests of a single monitor, and those of one interval."""
    random.seed(0)
    for share in (0.1, 0.3, 1.0):
        traffic = "".join("a" if random.random() < share else "c" for _ in range(3000))
        alone = Monitor(Scripted.null_rate, arl=1e8)
        needed = next(n for n, letter in enumerate(traffic, 1) if alone.update(letter == "a"))
        _server, replicas = group(10)
        interval = 40   # requests a second, over all
        for sent in range(interval, len(traffic), interval):
            part = traffic[sent - interval : sent]
            for number, replica in enumerate(replicas):
                replica.send(part[number::10])
            tick(replicas)
            if replicas[0].watch.campaigns_status():
                break
        assert needed <= sent <= 2 * needed + interval, f"{share}: {sent} against {needed}"


def test_the_evidence_of_all_is_judged_and_one_request_made(group):
    _server, replicas = group(3)
    for _ in range(4):
        for replica in replicas:
            replica.send("a" * 10)
        tick(replicas)
    request, = replicas[0].ledger.requests()
    assert (request.norm, request.epsilon > 0.105) == ("Linf", True)
    assert replicas[0].loaded.detector.seen >= 64
    assert [len(replica.asked) for replica in replicas] == [1, 0, 0]
    replicas[1].now = 5.0
    assert replicas[1].watch.campaigns_status()[0]["flagged"] > 60


def test_one_picture_sent_to_every_replica_counts_once(group):
    _server, replicas = group(10)
    same = list(range(10**6, 10**6 + 5))
    for replica in replicas:
        replica.send("a" * 5, same)
    tick(replicas)
    status = replicas[0].watch.monitor_status()
    assert (status["inputs"], status["distinct"], status["flagged"]) == (50, 5, 5)


def test_nothing_is_lost_while_the_api_is_down(group):
    server, replicas = group(2)
    replicas[1].send("ac" * 20)
    server.faults.append(Fault(0, times=30))
    replicas[1].watch.tick()
    assert "counts" in str(replicas[1].problems)
    server.faults.clear()
    replicas[1].send("c" * 10)
    tick(replicas)
    assert str(replicas[1].problems) == ""
    assert replicas[0].watch.monitor_status()["distinct"] == 50


def test_quiet_replicas_write_nothing(group):
    server, replicas = group(3)
    replicas[2].send("c")
    tick(replicas)
    before = len(server.calls)
    tick(replicas)
    assert [call.verb for call in server.calls[before:]] == ["get"]   # the leader's look


def test_a_new_leader_goes_on_with_the_monitor_of_the_last(group):
    _server, (first, second) = group(2)
    first.send("a" * 2 + "c" * 30)
    second.send("a" * 2 + "c" * 30)
    tick([first, second])
    stood = first.watch.monitor_status()
    second.leadership.campaign()
    second.now = 20.0
    assert second.leadership.campaign()
    second.watch.tick()
    assert second.watch.monitor_status() == pytest.approx(stood)
    second.send("c")
    second.watch.tick()
    assert second.watch.monitor_status()["distinct"] == stood["distinct"] + 1


def test_a_new_leader_goes_on_with_the_open_campaign(group):
    _server, (first, second) = group(2)
    first.send("a" * 30)
    tick([first, second])
    campaign = first.watch.campaigns_status()[0]
    second.leadership.campaign()
    second.now = 20.0
    second.leadership.campaign()
    for _ in range(3):
        second.send("a" * 30)
        second.watch.tick()
    assert [row["id"] for row in second.watch.campaigns_status()] == [campaign["id"]]
    assert len(second.ledger.requests()) == 1


def test_counts_of_another_version_wait_until_the_leader_serves_it(group):
    _server, (first, second) = group(2)
    newer = model("2", ThreatModel("Linf", 0.2))
    second.serve(newer)
    second.send("c" * 7)
    tick([first, second])
    assert first.watch.monitor_status()["distinct"] == 0
    first.serve(newer)
    tick([first, second])
    assert first.watch.monitor_status()["distinct"] == 7


def test_the_all_clear_ends_a_campaign_of_all(group):
    _server, replicas = group(2)
    for traffic in ("a" * 30, *["c" * 50] * 4):
        for replica in replicas:
            replica.send(traffic)
        tick(replicas)
    assert [row["state"] for row in replicas[0].watch.campaigns_status()] == ["closed"]


def test_a_replica_that_is_gone_is_forgotten(group):
    server, (first, second) = group(2)
    second.send("c")
    tick([first, second])
    for first.now in range(0, int(SILENT) + 20, 9):
        first.leadership.campaign()
    first.send("c")
    first.watch.tick()
    first.watch.tick()
    assert "pod-1" not in server.get("configmaps", "counts")["data"]


def test_a_flood_is_thinned_evenly(group):
    """More flagged inputs in an interval than are told one by one: the share stays what it was."""
    _server, (only,) = group(1)
    only.send(("a" + "c" * 9) * 2000)
    only.watch.tick()
    status = only.watch.monitor_status()
    assert status["flagged"] == 1024
    assert status["flagged"] / status["distinct"] == pytest.approx(0.1, rel=0.01)


def test_the_config_map_of_thirty_busy_replicas_is_within_its_limit(group):
    server, (only,) = group(1)
    only.loaded.detector.null_rate = 0.02
    x = torch.rand(2000, 1, 8, 8)
    flags, none = torch.ones(2000, dtype=torch.bool), torch.zeros(2000)
    only.watch.observe(only.loaded, x, Verdicts(score=none, probability=none, is_adversarial=flags, strength=none,
                                                low=none, high=none, evidence=torch.rand(2000, 64)))
    only.watch.tick()
    assert 30 * len(server.get("configmaps", "counts")["data"]["pod-0"]) < 1024 * 1024


def test_what_the_leader_has_taken_in_is_not_told_again(group):
    """Ten replicas write their keys every second, and each write stores the whole ConfigMap anew."""
    server, (leader, other) = group(2)
    for n in range(1, 13):
        other.send("a" * 3 + "c" * 30)
        tick([leader, other])
        assert leader.watch.monitor_status()["distinct"] == 33 * n
    told = Counts.from_json(server.get("configmaps", "counts")["data"]["pod-1"])
    assert (told.flagged, len(told.digests), len(told.evidence)) == (36, 6, 6)   # of this interval and the one before
    assert leader.watch.monitor_status()["flagged"] == 36


def test_a_leader_who_could_not_say_what_it_took_in_takes_nothing_from_its_successor(group):
    server, (first, second, third) = group(3)
    third.send("a" + "c" * 40)
    tick([first, second, third])
    third.send("a" + "c" * 40)
    third.watch.tick()
    server.faults.append(Fault(503, matches=lambda call: call.verb == "patch"))
    first.watch.tick()   # takes it in, and cannot write its state
    server.faults.clear()
    third.send("a" + "c" * 40)
    third.watch.tick()
    second.leadership.campaign()
    second.now = 20.0
    assert second.leadership.campaign()
    second.watch.tick()
    status = second.watch.monitor_status()
    assert (status["distinct"], status["flagged"]) == (123, 3)


def test_the_silent_go_sooner_where_the_room_is_short(group):
    server, (first, second) = group(2)
    second.send("c")
    tick([first, second])
    server.get("configmaps", "counts")["data"]["stranger"] = "x" * ROOM
    for first.now in range(0, int(CROWDED) + 20, 9):
        first.leadership.campaign()
    first.watch.tick()
    first.watch.tick()
    assert "pod-1" not in server.get("configmaps", "counts")["data"]
    second.send("c")   # it was quiet, and no more
    tick([first, second])
    assert first.watch.monitor_status()["distinct"] == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"epoch": "e"}', "null"])
def test_what_no_replica_wrote_is_left_out(group, text):
    server, (only,) = group(1)
    server.put("configmaps", "counts", {"data": {"stranger": text, "leader": text}})
    only.send("ccc")
    only.watch.tick()
    assert only.watch.monitor_status()["distinct"] == 3


def test_counts_survive_the_way_through_json():
    counts = Counts(epoch="e", key="1-r", inputs=9, passed=3, flagged=4, digests=(b"12345678", b"abcdefgh"),
                    evidence=torch.rand(2, 5), clients=("x", ""), at=(3, 4))
    none, last = counts.after(4), counts.after(3)
    assert (none.digests, none.clients, none.evidence) == ((), (), None)
    assert (last.digests, last.clients, len(last.evidence)) == ((b"abcdefgh",), ("",), 1)
    assert counts.after(0).to_json() == counts.to_json()
    back = Counts.from_json(counts.to_json())
    assert torch.equal(back.evidence, counts.evidence)
    assert json.loads(back.to_json()) == json.loads(counts.to_json())
    before = json.loads(counts.to_json())
    del before["at"]   # as the release before told it
    assert Counts.from_json(json.dumps(before)).at == (3, 4)


def test_who_sends_much_at_an_intervals_end_leaves_the_others_their_evidence(group):
    _server, (only,) = group(1)
    senders = [f"other {number}" for number in range(40)] + ["loud"] * 80
    only.send("a" * 120, clients=senders)
    told = only.watch._tally.counts().after(0)
    assert (len(told.clients), len(set(told.clients)), told.flagged) == (64, 41, 120)
    assert told.at == (*range(1, 41), *range(97, 121))
    seen = []
    only.watch.tick()
    only.watch._judge.campaigns.see = lambda flagged, evidence, *, client, **_: seen.append((evidence is None, client))
    only.send("a" * 120, clients=senders)
    only.watch.tick()
    assert [client for nothing, client in seen if not nothing] == list(told.clients)
    assert len(seen) == 120


def test_one_client_alone_is_told_as_before(group):
    _server, (only,) = group(1)
    only.send("a" * 100, clients=["loud"] * 100)
    told = only.watch._tally.counts()
    assert told.after(0).at == tuple(range(37, 101))
    assert told.after(90).at == tuple(range(91, 101))
