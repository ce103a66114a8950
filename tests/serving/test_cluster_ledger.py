"""The ConfigMap ledger and the Lease, against an API server that refuses stale writes."""

import threading
import time
from dataclasses import replace

import pytest
from standins.api_server import ApiServer, Fault

from redoubt.cluster.claims import claim, claim_name
from redoubt.cluster.http import ATTEMPTS, Connection
from redoubt.cluster.kubernetes import Kubernetes
from redoubt.threat import ThreatModel
from serving.cluster.leadership import Leadership
from serving.cluster.ledger import MOST_BYTES, PAUSE, ConfigMapLedger, Document, pruned
from serving.problems import Problems
from serving.records import LedgerUnavailable, asked_for, opened

WEAK, STRONG = ThreatModel("Linf", 0.1), ThreatModel("Linf", 0.2)
FREE = {"cool_down": 0.0, "daily_budget": 100}


class Member:
    """One replica's leadership and ledger, with a clock of its own that the test moves."""

    def __init__(self, server: ApiServer, name: str, **transport):
        self.now = 0.0
        connection = Connection("http://api", what="the Kubernetes API", transport=server.transport(**transport),
                                sleep=lambda _: None)
        self.kubernetes, self.problems = Kubernetes(connection, "redoubt"), Problems()
        self.changes: list[bool] = []
        self.leadership = Leadership(self.kubernetes, "redoubt-leader", name, self.problems, clock=lambda: self.now,
                                     on_change=self.changes.append)
        self.ledger = ConfigMapLedger(self.kubernetes, "redoubt-ledger", self.leadership, clock=lambda: self.now)

    def open(self):
        return self.ledger.open_campaign("digits", "1", inputs=100, flagged=20)


@pytest.fixture
def server() -> ApiServer:
    return ApiServer()


@pytest.fixture
def leader(server) -> Member:
    member = Member(server, "a")
    assert member.leadership.campaign()
    return member


@pytest.fixture
def other(server) -> Member:
    return Member(server, "b")


# -- who leads --------------------------------------------------------------------------------------------------------

def test_one_leads_and_goes_on_leading(leader, other):
    assert not other.leadership.campaign()
    leader.now = other.now = 9.0
    assert leader.leadership.campaign()
    assert not other.leadership.campaign()
    assert (leader.changes, other.changes) == ([True], [])


def test_a_silent_leader_is_replaced_only_after_it_stopped_believing(leader, other):
    assert not other.leadership.campaign()   # sees the Lease for the first time
    leader.now = other.now = 9.9
    assert leader.leadership.leads
    leader.now = other.now = 10.1
    assert not leader.leadership.leads, "it could not renew: it stops well before another may take over"
    assert not other.leadership.campaign()
    other.now = 15.1
    assert other.leadership.campaign()
    assert not leader.leadership.campaign()
    assert leader.leadership.term is None


def test_a_lease_that_is_given_back_is_taken_at_once(leader, other):
    leader.leadership.stop()
    assert other.leadership.campaign()


def test_the_same_pod_started_again_is_another_replica(leader, server):
    again = Member(server, "a")
    assert not again.leadership.campaign()


def test_of_two_that_take_a_free_lease_at_once_one_gets_it(server):
    members = [Member(server, name) for name in "abc"]
    won = []
    threads = [threading.Thread(target=lambda m=m: won.append(m.leadership.campaign())) for m in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won.count(True) == 1


def test_an_api_that_fails_for_a_while_costs_no_leadership(leader, server):
    server.faults.append(Fault(500, times=4))
    leader.now = 5.0
    assert leader.leadership.campaign()
    assert "500" in str(leader.problems)
    assert leader.leadership.campaign()
    assert str(leader.problems) == ""


def test_without_permission_nobody_leads_and_says_why(server):
    server.rules = []
    member = Member(server, "a")
    assert not member.leadership.campaign()
    assert 'cannot get resource "leases"' in str(member.problems)


# -- what is written --------------------------------------------------------------------------------------------------

def test_what_one_writes_the_other_reads(leader, other):
    opened_ = leader.open()
    request, _ = leader.ledger.ask(opened_, WEAK, **FREE)
    assert other.ledger.campaigns() == [opened_]
    assert other.ledger.requests() == [request]
    assert other.ledger.running_campaign("digits") == opened_
    changed = leader.ledger.update_campaign(opened_, state="closed", reason="x" * 10_000)
    other.now = 3.0
    assert other.ledger.running_campaign("digits") is None
    assert len(other.ledger.campaigns()[0].reason) == 500
    assert leader.ledger.campaigns() == [changed]


def test_only_the_leader_writes(leader, other):
    leader.open()
    with pytest.raises(LedgerUnavailable, match="another replica leads"):
        other.open()


def test_a_campaign_gets_one_request_and_a_finished_one_another(leader):
    ledger, campaign = leader.ledger, leader.open()
    request, _ = ledger.ask(campaign, WEAK, **FREE)
    assert ledger.ask(campaign, STRONG, **FREE) == (None, "this campaign already has its retraining request")
    ledger.update_request(request, state="refused", finished_at=1.0, next_attempt_at=None)
    again, _ = ledger.ask(campaign, STRONG, **FREE)
    assert (again.round, ledger.last_request(campaign), ledger.promoted_before(again)) == (1, again, 0)
    assert ledger.due("digits") == again
    assert ledger.due("letters") is None


def test_a_leader_who_slept_and_was_replaced_writes_nothing(leader, other):
    campaign = leader.open()
    other.leadership.campaign()
    other.now = 20.0
    assert other.leadership.campaign()
    request, _ = other.ledger.ask(campaign, WEAK, **FREE)
    assert leader.leadership.leads, "its own clock stood still while it slept"
    with pytest.raises(LedgerUnavailable, match="another replica leads"):
        leader.ledger.ask(campaign, WEAK, **FREE)
    assert not leader.leadership.leads
    other.ledger.forget()
    assert other.ledger.requests() == [request]


def test_a_leader_who_slept_between_reading_and_writing_is_sent_back(server, other):
    """The write itself waits while another replica takes over and writes."""
    leader = Member(server, "a", before=lambda call: hold(call))
    released, reached = threading.Event(), threading.Event()

    def hold(call):
        if armed and (call.verb, call.resource) == ("update", "configmaps"):
            reached.set()
            released.wait(5)

    armed = False
    leader.leadership.campaign()
    campaign = leader.open()
    armed, failed = True, []

    def ask():
        try:
            leader.ledger.ask(campaign, WEAK, **FREE)
        except LedgerUnavailable as error:
            failed.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    assert reached.wait(5)
    other.leadership.campaign()
    other.now = 20.0
    assert other.leadership.campaign()
    request, _ = other.ledger.ask(campaign, STRONG, **FREE)
    released.set()
    thread.join(5)
    assert failed == ["another replica leads"]
    other.ledger.forget()
    assert other.ledger.requests() == [request]


@pytest.mark.parametrize("status", [0, 500], ids=["the connection is cut", "500"])
def test_a_write_whose_answer_is_lost_is_not_made_twice(leader, server, status):
    campaign = leader.open()
    server.faults.append(Fault(status, matches=lambda call: call.verb == "update", done=True))
    with pytest.raises(LedgerUnavailable):
        leader.ledger.ask(campaign, WEAK, **FREE)
    assert len(leader.ledger.requests()) == 1
    assert leader.ledger.ask(campaign, WEAK, **FREE)[0] is None


@pytest.mark.parametrize("status", [0, 500], ids=["the connection is cut", "500"])
def test_a_campaign_whose_opening_was_not_heard_of_goes_on_as_the_same(leader, server, status):
    leader.open()
    leader.ledger.update_campaign(leader.ledger.running_campaign("digits"), state="closed")
    server.faults.append(Fault(status, matches=lambda call: call.verb == "update", done=True))
    with pytest.raises(LedgerUnavailable):
        leader.open()
    campaign = leader.open()
    assert [row.id for row in leader.ledger.campaigns() if row.state == "open"] == [campaign.id]


def test_who_begins_to_lead_works_off_nothing_that_was_finished_a_moment_ago(leader, other):
    request, _ = leader.ledger.ask(leader.open(), WEAK, **FREE)
    request = leader.ledger.update_request(request, state="running")
    assert other.ledger.due("digits") == request
    leader.ledger.update_request(request, state="failed", attempts=3, finished_at=time.time(), next_attempt_at=None)
    leader.leadership.stop()
    assert other.leadership.campaign(), "at once, for the Lease was given back"
    assert other.ledger.due("digits") is None


def test_contention_is_survived(server):
    """Somebody else keeps changing the ConfigMap, a label perhaps: the ledger reads again and gets through."""
    leader = Member(server, "a", before=lambda call: meddle(call))

    def meddle(call):
        if call.verb == "update" and call.resource == "configmaps" and left.pop():
            server.put("configmaps", "redoubt-ledger", server.get("configmaps", "redoubt-ledger"))

    left = [False, *[True] * 5]
    leader.leadership.campaign()
    server.put("configmaps", "redoubt-ledger", {"data": {"mine": "kept"}})
    leader.open()
    assert set(server.get("configmaps", "redoubt-ledger")["data"]) == {"mine", "ledger.json"}


def test_a_content_that_is_not_understood_is_not_overwritten(leader, server):
    server.put("configmaps", "redoubt-ledger", {"data": {"ledger.json": '{"schema": 2}'}})
    with pytest.raises(LedgerUnavailable, match="put back a backup"):
        leader.open()
    assert server.get("configmaps", "redoubt-ledger")["data"] == {"ledger.json": '{"schema": 2}'}


def test_the_ledger_is_readable_while_the_api_is_down(leader, server):
    campaign = leader.open()
    server.faults.append(Fault(0, times=100))
    leader.now = 9.0
    assert leader.ledger.campaigns() == [campaign]
    fresh = Member(server, "c")
    with pytest.raises(LedgerUnavailable):
        fresh.ledger.campaigns()


def test_an_api_that_is_down_is_waited_for_once_and_not_by_everybody_who_looks(leader, server):
    campaign = leader.open()
    leader.now += 100   # what it knows is old
    server.faults.append(Fault(503, times=100))
    before = server.faults[0].times
    for _ in range(5):
        assert leader.ledger.campaigns() == [campaign]
    asked = before - server.faults[0].times
    assert asked == ATTEMPTS   # one question, with its repetitions
    leader.now += 3
    leader.ledger.campaigns()
    assert before - server.faults[0].times == 2 * ATTEMPTS
    server.faults.clear()
    leader.ledger.forget()   # who begins to lead asks in any case
    asked = len(server.calls)
    leader.ledger.campaigns()
    assert len(server.calls) == asked + 1


def test_a_replica_that_has_read_nothing_yet_waits_no_oftener(other, server):
    server.faults.append(Fault(503, times=100))
    for _ in range(5):
        with pytest.raises(LedgerUnavailable, match="503"):
            other.ledger.campaigns()
    assert 100 - server.faults[0].times == ATTEMPTS
    server.faults.clear()
    other.now += 3
    assert other.ledger.campaigns() == []


def test_it_is_pruned_far_below_a_config_map():
    campaigns = tuple(replace(opened("digits", "1", inputs=1, flagged=1), state="closed") for _ in range(3000))
    requests = [replace(asked_for(campaign, WEAK, [], time.time()), state="promoted") for campaign in campaigns]
    full = Document(campaigns=campaigns, requests=tuple(requests))
    assert len(full.to_json()) > 4 * MOST_BYTES
    kept = pruned(full)
    assert len(kept.to_json()) <= MOST_BYTES
    assert kept.campaigns[-1] == campaigns[-1]


def test_pruning_keeps_what_is_open_and_what_the_budget_counts():
    now = time.time()
    campaigns = [opened("digits", "1", inputs=1, flagged=1) for _ in range(300)]
    old = [asked_for(campaign, WEAK, [], now - 40 * 3600) for campaign in campaigns]
    done = [replace(row, state="promoted", finished_at=now) for row in old]
    today = replace(done[0], id="r-today", created_at=now - 23 * 3600)
    closed = [replace(row, state="closed") for row in campaigns[1:]]
    kept = pruned(Document(campaigns=(campaigns[0], *closed), requests=(today, *done)), now)
    assert campaigns[0] in kept.campaigns
    assert today in kept.requests
    assert (len(kept.campaigns), len(kept.requests)) == (51, 101)


def finished(campaign, *, days: float, **changes):
    then = time.time() - days * 86400
    return replace(asked_for(campaign, WEAK, [], then), state="failed", finished_at=then, **changes)


@pytest.fixture
def years(server, leader):
    """A ledger that is full of what is finished, and the Leases of its oldest two requests and its newest."""
    campaigns = [replace(opened("digits", "1", inputs=1, flagged=1), state="closed") for _ in range(200)]
    requests = [finished(campaign, days=40 - n / 10, attempts=3) for n, campaign in enumerate(campaigns)]
    requests[1] = replace(requests[1], campaign=requests[0].campaign, round=1, attempts=0)
    text = Document(campaigns=tuple(campaigns), requests=tuple(requests)).to_json()
    server.put("configmaps", "redoubt-ledger", {"data": {"ledger.json": text}})
    for row in (requests[0], requests[1], requests[-1]):
        claim(leader.kubernetes, claim_name(row.claim), "run")
    claim(leader.kubernetes, claim_name(requests[0].claim, 2), "run")
    return requests


def leases(server) -> set[str]:
    return {one["metadata"]["name"] for one in server.all("leases")} - {"redoubt-leader"}


def test_what_the_ledger_drops_takes_its_claims_along(server, leader, years):
    assert len(leases(server)) == 4
    leader.open()
    assert leases(server) == {claim_name(years[-1].claim)}


def test_a_claim_that_cannot_be_removed_now_goes_with_the_next_change(server, leader, years):
    server.faults.append(Fault(503, times=3, matches=lambda call: call.verb == "delete"))
    campaign = leader.open()
    assert len(leases(server)) == 4, "the change itself is written all the same"
    leader.ledger.update_campaign(campaign, flagged=21)
    assert leases(server) == {claim_name(years[-1].claim)}


# -- the pause of all replicas ----------------------------------------------------------------------------------------

def test_a_pause_on_one_replica_holds_for_all_and_outlives_the_leader_s_writing(leader, other):
    assert leader.ledger.paused() is None
    other.ledger.pause({"by": "ann", "at": 1.0, "why": "maintenance"})   # who does not lead may, too
    leader.open()   # with a resourceVersion that is not the newest any more
    leader.now = other.now = 2.5
    assert leader.ledger.paused()["why"] == other.ledger.paused()["why"] == "maintenance"
    assert [row.state for row in other.ledger.campaigns()] == ["open"]
    leader.ledger.pause(None)
    other.now = 5.0
    assert other.ledger.paused() is None
    assert len(leader.ledger.campaigns()) == 1


def test_a_pause_that_cannot_be_written_is_refused(server, leader, other):
    server.faults.append(Fault(403, times=10**6))
    with pytest.raises(LedgerUnavailable):
        other.ledger.pause({"by": "ann", "at": 1.0, "why": ""})
    server.faults.clear()
    assert leader.ledger.paused() is None


def test_a_pause_that_cannot_be_read_is_a_pause(server, leader):
    leader.ledger.pause({"by": "ann", "at": 1.0, "why": ""})
    leader.ledger._write(*leader.ledger._known, {PAUSE: "{"})
    assert "cannot be read" in leader.ledger.paused()["why"]
