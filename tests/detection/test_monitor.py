"""The monitor's bound by simulation and closed form, its speed, its memory; distinct inputs; the all-clear."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from redoubt.detection import Monitor, RecentInputs, all_clear, digests
from redoubt.errors import InvalidInput

NULL = 0.02


def run_lengths(rate: float, arl: float, n: int, limit: int, seed: int = 0) -> list[int]:
    random = np.random.default_rng(seed)
    lengths = []
    for _ in range(n):
        monitor = Monitor(NULL, arl)
        draws = random.random(limit) < rate
        lengths.append(next((i + 1 for i, flag in enumerate(draws) if monitor.update(bool(flag))), limit))
    return lengths


def test_statistic_less_time_is_a_martingale_at_the_null_rate():
    # The proof of the run length rests on E[M_t] = t: enumerate every sequence of six verdicts exactly.
    expected = 0.0
    for code in range(64):
        flags = [bool(code >> i & 1) for i in range(6)]
        monitor = Monitor(NULL)
        monitor.update(flags)
        expected += NULL ** sum(flags) * (1 - NULL) ** (6 - sum(flags)) * math.exp(monitor.statistic)
    assert expected == pytest.approx(6, rel=1e-9)


def test_average_run_length_is_at_least_what_was_asked_for():
    lengths = run_lengths(NULL, arl=100, n=100, limit=2000)
    assert np.mean(lengths) >= 100   # censored at 2,000, so the true mean is larger still


def test_lower_rates_than_the_null_alarm_more_rarely():
    assert np.mean(run_lengths(NULL / 2, 100, 60, 1500)) > np.mean(run_lengths(2 * NULL, 100, 60, 1500))


@pytest.mark.parametrize(("rate", "at_most"), [(1.0, 8), (0.5, 40), (0.1, 1000)], ids=["flood", "half", "trickle"])
def test_alarm_comes_soon(rate, at_most):
    assert np.median(run_lengths(rate, 1e8, 15, 3000)) <= at_most


def test_one_flag_in_fifty_never_alarms():
    monitor = Monitor(NULL)
    assert not monitor.update(([True] + [False] * 49) * 200)


def test_a_flood_overflows_nothing_and_reset_forgets():
    monitor = Monitor(NULL)
    assert monitor.update([True] * 20_000)
    assert math.isfinite(monitor.statistic) and monitor.statistic > 20_000
    monitor.reset()
    assert monitor.statistic == -math.inf
    assert monitor.threshold == pytest.approx(math.log(1e8))


@pytest.mark.parametrize("seen", [0, 30])
def test_state_survives_json_and_goes_on_alike(seen):
    flags = (np.random.default_rng(1).random(60) < 0.2).tolist()
    whole, part = Monitor(NULL), Monitor(NULL)
    whole.update(flags)
    part.update(flags[:seen])
    part = Monitor.from_state(json.loads(json.dumps(part.state(), allow_nan=False)))
    part.update(flags[seen:])
    assert part.statistic == pytest.approx(whole.statistic)


@pytest.mark.parametrize(
    "state",
    [{}, {"null_rate": NULL, "arl": 1e8, "log": [1.0]}, {"null_rate": NULL, "arl": 1e8, "log": 3},
     {"null_rate": "x", "arl": 2, "log": None}],
    ids=["empty", "other length", "no list", "no number"],
)
def test_broken_state_is_refused(state):
    with pytest.raises(InvalidInput, match="fresh monitor"):
        Monitor.from_state(state)


@pytest.mark.parametrize("bad", [{"null_rate": 0}, {"null_rate": 0.5}, {"null_rate": float("nan")},
                                 {"null_rate": NULL, "arl": 1}, {"null_rate": NULL, "arl": math.inf}], ids=str)
def test_monitor_refuses_bad_values(bad):
    with pytest.raises(InvalidInput):
        Monitor(**bad)


def test_an_input_has_one_digest_whatever_its_number_type():
    x = np.zeros((1, 8, 8), np.float64)
    x[0, 0, 0] = 0.5
    [own] = digests(x[None])
    assert digests(x[None].astype(np.float32)) == [own]
    assert digests(np.stack([x, np.where(x == 0, -0.0, x)])) == [own, own]   # minus nought is nought
    assert digests(np.stack([x, x])[::1, :, ::-1])[0] != own
    others = [x.reshape(1, 1, 4, 16), x[None] + 0.1, np.zeros((1, 1, 8, 8))]
    assert len({own, *(digests(other)[0] for other in others)}) == 4
    assert digests(np.zeros((0, 1, 8, 8))) == []


def test_the_oldest_input_is_forgotten_first():
    recent = RecentInputs(2)
    a, b, c = digests(np.stack([np.full((1, 8, 8), value) for value in (0.1, 0.2, 0.3)]))
    assert recent.is_new(a)
    assert not recent.is_new(a)
    recent.is_new(b)
    recent.is_new(a)   # seen again, so b is now the oldest
    assert recent.is_new(c) and len(recent) == 2
    assert not recent.is_new(a)
    assert recent.is_new(b)
    with pytest.raises(InvalidInput):
        RecentInputs(0)


def test_one_flagged_input_a_thousand_times_raises_no_alarm():
    recent, monitor, x = RecentInputs(100), Monitor(NULL), np.ones((1, 1, 8, 8))
    assert not any(monitor.update(True) for _ in range(1000) if recent.is_new(digests(x)[0]))


def test_all_clear_needs_a_full_quiet_window():
    quiet, attack = [False] * 200, [True] * 40
    assert not all_clear(quiet[:199], null_rate=NULL)
    assert not all_clear(attack + quiet[:190], null_rate=NULL)
    assert all_clear(attack + quiet, null_rate=NULL)
    assert all_clear([True] + [False] * 199, null_rate=NULL)
    with pytest.raises(InvalidInput):
        all_clear(quiet, null_rate=NULL, window=0)


def test_normal_traffic_gives_the_all_clear_and_an_attack_does_not():
    random = np.random.default_rng(2)
    normal = np.mean([all_clear(list(random.random(200) < NULL), null_rate=NULL) for _ in range(300)])
    attack = np.mean([all_clear(list(random.random(200) < 0.15), null_rate=NULL) for _ in range(300)])
    assert normal > 0.93
    assert attack == 0


@pytest.mark.parametrize("flagged, passed", [(0, 5), (3, 0), (2, 7), (40, 400), (300, 0), (0, 5000)])
def test_an_interval_counts_as_if_its_flags_came_first(flagged, passed):
    one, other = Monitor(0.02), Monitor(0.02)
    for monitor in (one, other):
        monitor.update([True, False, False])
    one.update([True] * flagged + [False] * passed)
    other.update_interval(flagged=flagged, passed=passed)
    assert other.state()["log"] == pytest.approx(one.state()["log"], rel=1e-9)


def test_no_order_of_an_interval_ends_lower():
    rng = np.random.default_rng(0)
    least = Monitor(0.02)
    least.update_interval(flagged=5, passed=30)
    for _ in range(200):
        monitor = Monitor(0.02)
        monitor.update(rng.permutation([True] * 5 + [False] * 30).tolist())
        assert monitor.statistic >= least.statistic - 1e-12


def test_an_interval_of_a_million_overflows_nothing():
    monitor = Monitor(0.02)
    assert monitor.update_interval(flagged=1_000_000, passed=0)
    assert math.isfinite(monitor.statistic)
