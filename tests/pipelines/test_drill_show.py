"""What a drill prints at its end."""

from __future__ import annotations

import io

from rich.console import Console

from pipelines.drill import show

RESULT = {
    "dataset": "digits", "attack": "pgd", "seed": 0, "hardware": "a machine", "epsilon_true": 0.2, "stages": [],
    "strength": {"estimate": 0.19, "low": 0.16, "high": 0.22, "matched": 0.227}, "requests": 5, "failed_requests": 0,
    "accuracy": {"before": {"clean": 0.98, "pgd20": 0.01}, "after": {"clean": 0.97, "pgd20": 0.48}}, "failure": None,
    "outcome": "recovered", "timeline": [], "events": [], "epsilon": 0.2,
}


def printed(result: dict) -> str:
    out = io.StringIO()
    Console(file=out, width=100).print(show.figures(result))
    return out.getvalue()


def test_an_oracle_has_a_column_only_if_there_was_one():
    without = printed(RESULT)
    assert "oracle" not in without and without.count("0.2000") == 1
    assert "0.2270" in without and "48.0 %" in without
    accuracy = RESULT["accuracy"] | {"oracle": {"clean": 0.96, "pgd20": 0.45}}
    trained = printed(RESULT | {"accuracy": accuracy})
    assert "oracle" in trained and trained.count("0.2000") == 2 and "45.0 %" in trained
