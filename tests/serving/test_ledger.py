import threading
import time
from dataclasses import replace

import pytest

from redoubt.threat import ThreatModel
from serving.ledger import SqliteLedger
from serving.records import LedgerUnavailable

WEAK, STRONG = ThreatModel("Linf", 0.1), ThreatModel("Linf", 0.2)
FREE = {"cool_down": 0.0, "daily_budget": 100}


@pytest.fixture
def ledger(tmp_path):
    ledger = SqliteLedger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def campaign(ledger):
    return ledger.open_campaign("digits", "1", inputs=100, flagged=20)


def finish(ledger, request, state, at=1.0):
    return ledger.update_request(request, state=state, finished_at=at)


def test_a_campaign_survives_closing_the_file(tmp_path):
    first = SqliteLedger(tmp_path / "ledger.db")
    opened = campaign(first)
    strength = {"norm": "Linf", "estimate": 0.1, "low": 0.09, "high": 0.11, "n": 64}
    changed = first.update_campaign(opened, strength=strength, matched=0.11)
    first.close()
    second = SqliteLedger(tmp_path / "ledger.db")
    assert second.running_campaign("digits") == changed
    assert changed.strength == strength
    assert second.running_campaign("letters") is None
    second.update_campaign(changed, state="closed")
    assert second.running_campaign("digits") is None
    second.close()


def test_one_campaign_gets_one_request(ledger):
    opened = campaign(ledger)
    request, _ = ledger.ask(opened, WEAK, **FREE)
    assert (request.state, request.epsilon, request.parent_version) == ("pending", 0.1, "1")
    for state in ("pending", "running", "promoted"):
        ledger.update_request(request, state=state, finished_at=1.0)
        assert ledger.ask(opened, STRONG, **FREE)[0] is None
    assert len(ledger.requests()) == 1


def test_what_failed_or_never_served_may_be_asked_again(ledger):
    opened = campaign(ledger)
    finish(ledger, ledger.ask(opened, WEAK, **FREE)[0], "failed")
    again, _ = ledger.ask(opened, WEAK, **FREE)
    assert (again.round, again.epsilon, ledger.promoted_before(again)) == (1, WEAK.epsilon, 0)
    finish(ledger, again, "promoted", at=time.time() - 61)
    assert ledger.ask(opened, WEAK, arrival=62, **FREE)[0] is None
    third, _ = ledger.ask(opened, WEAK, arrival=60, **FREE)
    assert (third.round, ledger.promoted_before(third)) == (2, 1)


def test_after_a_refusal_only_a_stronger_attack_asks_again(ledger):
    opened = campaign(ledger)
    finish(ledger, ledger.ask(opened, WEAK, **FREE)[0], "refused")
    again, reason = ledger.ask(opened, WEAK, **FREE)
    assert again is None
    assert "has not risen" in reason
    hair = replace(WEAK, epsilon=1.004 * WEAK.epsilon)   # a whole level beside a point of the grid
    assert ledger.ask(opened, hair, **FREE)[0] is None
    assert ledger.ask(opened, STRONG, **FREE)[0].round == 1


def test_the_table_itself_refuses_a_second_request(ledger):
    request, _ = ledger.ask(campaign(ledger), WEAK, **FREE)
    with pytest.raises(LedgerUnavailable, match="UNIQUE"), ledger._transaction() as sql:
        sql.execute("INSERT INTO requests SELECT 'other', campaign, round, model_name, parent_version, norm, epsilon, "
                    "state, attempts, reason, version, created_at, finished_at, next_attempt_at FROM requests")
    assert ledger.requests() == [request]


def test_two_servers_ask_at_once_and_one_is_heard(ledger, tmp_path):
    opened = campaign(ledger)
    asked = []

    def ask():
        other = SqliteLedger(tmp_path / "ledger.db")
        asked.append(other.ask(opened, WEAK, **FREE)[0])
        other.close()

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(request is not None for request in asked) == 1


def test_cool_down_budget_and_one_at_a_time(ledger, monkeypatch):
    now = 1_000_000.0
    monkeypatch.setattr("serving.ledger.time.time", lambda: now)
    bounds = {"cool_down": 60.0, "daily_budget": 2}
    request, _ = ledger.ask(campaign(ledger), WEAK, **bounds)
    assert "not finished" in ledger.ask(campaign(ledger), WEAK, **bounds)[1]
    finish(ledger, request, "promoted", at=now)
    now += 59
    assert "cooling down for another 1 s" in ledger.ask(campaign(ledger), WEAK, **bounds)[1]
    now += 2
    finish(ledger, ledger.ask(campaign(ledger), WEAK, **bounds)[0], "promoted", at=now)
    now += 3600
    assert "budget of 2" in ledger.ask(campaign(ledger), WEAK, **bounds)[1]
    now += 24 * 3600
    assert ledger.ask(campaign(ledger), WEAK, **bounds)[0] is not None


def test_due_waits_for_its_time_and_finds_what_was_running(ledger, monkeypatch):
    request, _ = ledger.ask(campaign(ledger), WEAK, **FREE)
    assert ledger.due("digits") == request
    later = ledger.update_request(request, next_attempt_at=request.created_at + 30)
    assert ledger.due("digits") is None
    monkeypatch.setattr("serving.ledger.time.time", lambda: request.created_at + 31)
    assert ledger.due("digits") == later
    assert ledger.due("letters") is None
    running = ledger.update_request(later, state="running")
    assert ledger.due("digits") == running
    finish(ledger, running, "failed")
    assert ledger.due("digits") is None
