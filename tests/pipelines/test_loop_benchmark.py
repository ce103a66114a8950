"""The benchmark of ten campaigns: what it draws, and what it holds them to."""

from __future__ import annotations

from argparse import Namespace

from benchmarks.common import Report
from benchmarks.loop import ATTACKS, EPSILON, HEADER, MODEL, SHARE, Loop, cases, judge, row
from serving.ledger import SqliteLedger

GIVEN = Namespace(seed=0, quick=False, check=True, json=None)
FOUND = {"request": 80, "alarm": 7, "seconds": 140.0, "strength": {"estimate": 0.1}, "matched": 0.11, "runs": 1,
         "after": {"clean": 0.85, "pgd20": 0.72}}


def test_cases_are_drawn_alike_and_within_their_bounds():
    drawn = cases("fashion-mnist", 10, seed=0)
    assert drawn == cases("fashion-mnist", 10, seed=0) != cases("fashion-mnist", 10, seed=1)
    assert drawn[:6] == cases("fashion-mnist", 6, seed=0)
    low, high = EPSILON["fashion-mnist"]
    assert all(low <= case.epsilon <= high and SHARE[0] <= case.share <= SHARE[1] for case in drawn)
    assert {case.attack for case in drawn} == set(ATTACKS)
    assert len({case.epsilon for case in drawn}) == 10


def test_what_a_call_that_was_cut_off_had_under_way_is_forgotten(tmp_path):
    (tmp_path / "retrains" / "r-1").mkdir(parents=True)
    ledger = SqliteLedger(tmp_path / "ledger.db")
    ledger.open_campaign(MODEL, "1", inputs=6, flagged=6)
    ledger.close()
    Loop(tmp_path, "digits", "", 0).forget()
    ledger = SqliteLedger(tmp_path / "ledger.db")
    assert ledger.running_campaign(MODEL) is None
    ledger.close()
    assert not (tmp_path / "retrains").exists()


def shortfalls(**changes) -> list[str]:
    case, report = cases("fashion-mnist", 1, seed=0)[0], Report(GIVEN, "a test")
    found = FOUND | {"matched": 1.1 * case.epsilon} | changes
    line = row(case, found, {"pgd20": 0.72} if found.get("after") else None)
    assert len(line) == len(HEADER)
    judge(report, [line], strict=True)
    return report.shortfalls


def test_every_figure_that_falls_short_is_named():
    assert shortfalls() == []
    assert "0 of 1 campaigns were answered" in shortfalls(request=None, after=None, matched=None, runs=0)[0]
    assert "matched" in shortfalls(matched=0.5)[0]
    assert "1 further runs" in shortfalls(runs=2)[0]
    assert len(shortfalls(after={"clean": 0.85, "pgd20": 0.6})) == 2
