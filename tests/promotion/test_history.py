"""What a rollback may return to, out of the changes so far."""

import pytest

from redoubt.promotion.history import Transition, standing, transition


def line(*moves) -> list[Transition]:
    """Moves such as `1` (promoted over whoever was champion) or `-1` (rolled back to 1)."""
    changes, now = [], None
    for move in moves:
        changes.append(transition(abs(move), now, "gate" if move > 0 else "rollback", by="a test"))
        now = abs(move)
    return changes


@pytest.mark.parametrize("moves, champion, behind, withdrawn", [
    ([], None, [], set()),
    ([1], 1, [], set()),
    ([1, 2, 3], 3, [1, 2], set()),
    ([1, 2, 3, -2], 2, [1], {3}),
    ([1, 2, 3, -2, -1], 1, [], {2, 3}),
    ([1, 2, 3, -2, 4], 4, [1, 2], {3}),
    ([1, 2, 3, -2, 4, -2], 2, [1], {3, 4}),
    ([1, 2, 3, -2, 3], 3, [1, 2], set()),
    ([1, 2, 1], 1, [2], set()),
    ([1, 2, 3, -1], 1, [], {3}),
    ([1, 2, 3], 5, [1, 2, 3], set()),
    ([1, 2, 3, -2], 3, [1, 2], {3}),
    ([1, 2], None, [1], set()),
], ids=["nothing", "first", "three", "one back", "two back", "on from there", "back again", "promoted again",
        "an old one again", "past one that was refused", "set by hand", "the withdrawn one by hand", "alias removed"])
def test_who_stands_behind_the_champion(moves, champion, behind, withdrawn):
    assert standing(line(*moves), champion) == (behind, withdrawn)


def test_a_champion_set_by_hand_is_remembered_by_the_next_change():
    changes = [*line(1, 2), transition(7, 5, "gate")]
    assert standing(changes, 7) == ([1, 2, 5], set())


def test_a_record_names_who_made_it():
    change = transition(2, 1, "override", why="x" * 9000)
    assert "@" in change.by
    assert len(change.text()) < 6000, "MLflow takes no longer parameter"
    assert str(change).startswith("version 2 became champion over version 1 at 20")
