import json
import threading

import pytest
from serving_support import wait_until

from redoubt.promotion.policy import read_policy
from redoubt.threat import ThreatModel
from serving.launcher import Result
from serving.ledger import SqliteLedger
from serving.problems import Problems
from serving.retrainer import Retrainer


class Scripted:
    """A launcher that gives one answer after another; an exception is raised, None waits to be stopped."""

    def __init__(self, *answers):
        self.answers, self.folders = list(answers), []

    def run(self, folder, stop: threading.Event, attempt=0):
        assert (folder / "request.json").exists()
        for leftover in ("parent", "artifacts"):
            (folder / leftover).mkdir(exist_ok=True)
        self.folders.append(folder)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            stop.wait(10)
        return answer


FAILED = Result(status="failed", reason="out of memory")


@pytest.fixture
def scene(settings):
    """A function (*answers, **settings) -> (retrainer, ledger, launcher, finished), with one request in the ledger."""
    ends = []

    def make(*answers, **changes):
        chosen = settings(**changes)
        ledger = SqliteLedger(chosen.home / "ledger.db")
        campaign = ledger.open_campaign("digits", "1", inputs=1, flagged=1)
        assert ledger.ask(campaign, ThreatModel("L2", 0.5), cool_down=0, daily_budget=1)[0]
        launcher, finished = Scripted(*answers), []
        retrainer = Retrainer(chosen, ledger, launcher, Problems(), finished.append)
        ends.extend([retrainer.stop, ledger.close])
        retrainer.start()
        return retrainer, ledger, launcher, finished

    yield make
    for end in ends:
        end()


def test_a_result_is_written_down_and_told(scene):
    _, ledger, launcher, finished = scene(Result(status="promoted", version="7", reason="better"))
    wait_until(lambda: finished)
    request = ledger.requests()[0]
    assert (request.state, request.version, request.reason, request.attempts) == ("promoted", "7", "better", 0)
    assert request.finished_at
    assert finished == [request]
    assert launcher.folders[0].name == request.id


def test_the_policy_travels_with_the_request(scene, tmp_path):
    (tmp_path / "policy.yaml").write_text("promotion: ask")
    _, _, launcher, finished = scene(Result(status="waiting", version="7"), gate_policy=tmp_path / "policy.yaml")
    wait_until(lambda: finished)
    assert finished[0].state == "waiting"
    sent = json.loads((launcher.folders[0] / "request.json").read_text())["policy"]
    assert read_policy(sent).promotion == "ask"


def test_failures_are_tried_again_with_growing_pauses_and_given_up(scene):
    retrainer, ledger, launcher, finished = scene(FAILED, RuntimeError("no launcher"), FAILED, backoff_seconds=100)

    def attempts(count: int):
        return wait_until(lambda: (row := ledger.requests()[0]).attempts == count and row)

    pauses = []
    for count in (1, 2):
        request = attempts(count)
        assert request.state == "pending"
        pauses.append(request.next_attempt_at)
        ledger.update_request(request, next_attempt_at=0)
        retrainer.wake()
    assert 95 < pauses[1] - pauses[0] < 110   # 100 s, then 200 s
    assert attempts(3).state == "failed"
    wait_until(lambda: finished)
    assert finished[0].reason == "out of memory"
    assert len(launcher.folders) == 3


def test_stopping_leaves_the_request_owed(scene):
    retrainer, ledger, launcher, finished = scene(None)
    wait_until(lambda: launcher.folders)
    retrainer.stop()
    assert ledger.requests()[0].state == "pending"
    assert ledger.requests()[0].attempts == 0
    assert finished == []


def left(folder) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir()}


@pytest.mark.parametrize("end", [Result(status="promoted", version="7"), FAILED])
def test_what_a_finished_request_worked_with_is_removed(scene, end):
    _, _, launcher, finished = scene(end, retrain_attempts=1)
    wait_until(lambda: finished)
    wait_until(lambda: not left(launcher.folders[0]), what="the tidying")
    assert (launcher.folders[0] / "request.json").exists()


def test_an_attempt_that_failed_keeps_its_folders_for_the_next(scene):
    _, ledger, launcher, _ = scene(FAILED, backoff_seconds=100)
    wait_until(lambda: ledger.requests()[0].attempts)
    assert left(launcher.folders[0]) == {"parent", "artifacts"}


def test_what_an_earlier_server_left_is_removed_at_the_start(settings):
    chosen = settings()
    ledger = SqliteLedger(chosen.home / "ledger.db")
    request, _ = ledger.ask(
        ledger.open_campaign("digits", "1", inputs=1, flagged=1), ThreatModel("L2", 0.5), cool_down=0, daily_budget=1
    )
    ledger.update_request(request, state="promoted", finished_at=1.0)
    retrainer = Retrainer(chosen, ledger, Scripted(), Problems(), print)
    (retrainer.folder(request) / "parent").mkdir(parents=True)
    retrainer.start()
    wait_until(lambda: not left(retrainer.folder(request)), what="the tidying")
    retrainer.stop()
    ledger.close()


def test_a_run_after_a_promotion_in_vain_answers_under_another_name(settings):
    chosen = settings()
    ledger = SqliteLedger(chosen.home / "ledger.db")
    campaign = ledger.open_campaign("digits", "1", inputs=1, flagged=1)
    names = []
    for state in ("failed", "promoted", "promoted"):
        request, _ = ledger.ask(campaign, ThreatModel("L2", 0.5), cool_down=0, daily_budget=3, arrival=60)
        launcher, finished = Scripted(Result(status="promoted", version="7")), []
        retrainer = Retrainer(chosen, ledger, launcher, Problems(), finished.append)
        retrainer.start()
        wait_until(lambda finished=finished: finished)
        retrainer.stop()
        ledger.update_request(request, state=state, finished_at=1.0)
        names.append(json.loads((retrainer.folder(request) / "request.json").read_text())["campaign"])
    assert names == [campaign.id, campaign.id, f"{campaign.id}.2"]
    ledger.close()
