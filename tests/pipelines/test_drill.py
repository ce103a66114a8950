"""The drill: what it asks, how it judges, and the whole loop on the digits."""

import json
import os
import signal
import subprocess
import sys
import threading

import httpx
import pytest
import torch

from pipelines.drill.measure import recovery
from pipelines.drill.options import DrillOptions
from pipelines.drill.stages import Drill, StageFailed
from redoubt.errors import InvalidInput
from redoubt.report import drill_report


@pytest.mark.parametrize("changes, message", [
    ({"attack": "magic"}, "unknown attack 'magic': valid ones are fgsm, momentum, pgd"),
    ({"dataset": "imagenet"}, "unknown dataset"),
    ({"epsilon": -1}, "above 0"),
    ({"requests": -1}, "requests"),
])
def test_bad_options_are_refused(changes, message):
    with pytest.raises(InvalidInput, match=message):
        DrillOptions(**changes)


def right(share, n=10_000, seed=0):
    return {"pgd20": torch.rand(n, generator=torch.Generator().manual_seed(seed)) < share}


@pytest.mark.parametrize("after, oracle, recovered", [
    (0.72, 0.73, True), (0.73, 0.73, True), (0.60, 0.73, False), (0.695, 0.73, False),
])
def test_recovery_is_judged_against_the_oracle(after, oracle, recovered):
    assert (recovery(right(after), right(0.0), right(oracle)) == "") == recovered


def test_recovery_without_an_oracle_is_judged_against_the_undefended_model():
    assert recovery(right(0.5), right(0.05), None) == ""
    assert "rose by only" in recovery(right(0.1, seed=1), right(0.05), None)


def test_a_failing_stage_is_named_and_the_report_still_written(tmp_path):
    drill = Drill(DrillOptions(), tmp_path)

    def fail():
        raise StageFailed("the dog ate the data")

    drill.train_champion = fail
    result = drill.run()
    assert result["outcome"] == "failed"
    assert result["failure"] == {"stage": "train the undefended champion", "reason": "the dog ate the data"}
    drill_report(tmp_path / "report.html", result)
    assert "the dog ate the data" in (tmp_path / "report.html").read_text()


def test_the_whole_loop_on_the_digits(tmp_path):
    """A live model is attacked, notices, measures, retrains, promotes, swaps. Everything is real.

    The live page is held open until Ctrl-C.
    """
    home = tmp_path / "a home"
    drill = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "drill", "--no-oracle", "--requests", "1500", "--hold", "--home",
         str(home)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"COLUMNS": "120"},
    )
    limit = threading.Timer(500, drill.kill)
    limit.start()
    said = []
    for line in drill.stdout:
        said.append(line)
        if line.startswith("the live page stays open at "):
            assert "<title>Redoubt</title>" in httpx.get(line.split()[6], trust_env=False).text
            drill.send_signal(signal.SIGINT)
    assert drill.wait() == 0, "".join(said)[-3000:]
    limit.cancel()
    assert any(line.startswith("the live page stays open") for line in said)
    folder = next((home / "drills").iterdir())
    result = json.loads((folder / "result.json").read_text())
    assert result["outcome"] == "recovered"
    assert result["failed_requests"] == 0
    assert result["retrains"] == 1
    assert result["clean_false_alarms"] == 0
    assert result["requests_until_alarm"] <= 40
    assert result["epsilon_true"] <= result["strength"]["matched"] <= 1.5 * result["epsilon_true"]
    assert result["accuracy"]["after"]["pgd20"] > result["accuracy"]["before"]["pgd20"] + 0.25
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.fashion
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_the_whole_loop_on_fashion_mnist(attack, tmp_path):
    """The full training file; the matched epsilon must lie between the true one and a quarter above."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "drill", "--dataset", "fashion-mnist", "--attack", attack,
         "--epsilon", "0.1", "--home", str(tmp_path)],
        capture_output=True, text=True, timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    result = json.loads(next((tmp_path / "drills").iterdir()).joinpath("result.json").read_text())
    assert 1.0 <= result["strength"]["matched"] / result["epsilon_true"] <= 1.25
    assert result["failed_requests"] == 0
    assert result["accuracy"]["after"]["pgd20"] >= 0.97 * result["accuracy"]["oracle"]["pgd20"]
