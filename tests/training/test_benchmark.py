"""The training benchmark's arithmetic."""

from benchmarks.training import SECTIONS, interleaved, least_time


def test_the_floor_is_k_attack_passes_and_one_training_pass():
    assert least_time(5, 2.0, 3.0) == 13.0
    assert "floor" in SECTIONS


def test_works_take_turns_and_the_least_time_counts():
    order = []
    took = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == list("ab" * 4)
    assert took.keys() == {"a", "b"} and min(took.values()) >= 0
