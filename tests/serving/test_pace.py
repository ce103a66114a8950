"""The pace of the queue: what inputs take, with caution, and before a slow batch has ended."""

import pytest

from serving.pace import Pace


def pace(*batches, workers=1) -> Pace:
    """After batches of (seconds, inputs), one after the other from time 0."""
    made, now = Pace(workers), 0.0
    for seconds, inputs in batches:
        made.begin(1, inputs, now)
        now += seconds
        made.end(1, now)
    return made


def test_nothing_is_known_at_first():
    assert pace().usual(10) == pace().cautious(10, 0) == pace().ahead(10, 0) == 0


def test_even_batches_leave_no_doubt():
    steady = pace(*[(0.64, 64)] * 8)
    assert steady.usual(10) == pytest.approx(0.1)
    assert steady.cautious(10, 100) == pytest.approx(0.1)


def test_uneven_batches_call_for_caution():
    uneven = pace(*[(0.5, 64), (0.8, 64)] * 4)
    assert uneven.cautious(10, 100) > 1.3 * uneven.usual(10)


def test_a_small_batch_says_little_beside_large_ones():
    assert pace(*[(0.64, 64)] * 8, (0.1, 1)).usual(1) < 0.012   # 0.1 by itself


def test_a_slow_batch_counts_before_it_has_ended():
    steady = pace(*[(0.64, 64)] * 8)
    steady.begin(1, 64, 100.0)
    assert steady.ahead(0, 100.0) == pytest.approx(0.64)
    assert steady.ahead(0, 100.6) == pytest.approx(0.04)
    assert steady.cautious(64, 100.6) == pytest.approx(0.64)
    assert steady.cautious(64, 102.6) > 1.5


def test_it_learns_within_two_batches():
    assert pace(*[(0.32, 64)] * 8, *[(1.28, 64)] * 2).usual(64) > 0.9
    assert pace(*[(1.28, 64)] * 8, *[(0.32, 64)] * 3).usual(64) < 0.5


def test_two_workers_halve_the_wait():
    two = pace(*[(0.64, 64)] * 8, workers=2)
    two.begin(1, 64, 100.0)
    two.begin(2, 64, 100.0)
    assert two.ahead(64, 100.0) == pytest.approx(0.96)


def test_two_workers_share_a_queue_and_no_batch():
    two = pace(*[(0.64, 64)] * 8, workers=2)
    assert [two.usual(64), two.cautious(64, 100.0)] == pytest.approx([0.64, 0.64])
