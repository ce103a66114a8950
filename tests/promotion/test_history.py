"""What a rollback may return to, out of the changes so far."""

import json

import pytest
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from redoubt.promotion.history import MOST, UNREADABLE, Transition, entry, standing, transition


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
    assert str(change).startswith("version 2 became champion over version 1 at 20")


@pytest.mark.parametrize("letter", ["x", "é", "火", "🔥", '"', "\x00", "\x1b", "\ud800"],
                         ids=["ASCII", "accent", "kanji", "emoji", "quote", "nul", "escape", "half a letter"])
@pytest.mark.parametrize("length", [10, 1990, 9000])
def test_whatever_the_reason_the_record_fits_and_is_read_again(letter, length):
    change = transition(2, 1, "override", why=letter * length, by=letter * 9000)
    assert len(change.text()) <= MOST == MAX_PARAM_VAL_LENGTH, "MLflow cuts a longer parameter"
    change.text().encode()
    again = entry(change.text(), number=3, done=True)
    assert (again.version, again.over, again.at, again.nonce) == (2, 1, change.at, change.nonce)
    assert change.why.startswith(again.why)
    assert len(again.why) == len(change.why) or len(again.text()) > MOST - 6
    if letter == "é" and length == 1990:
        assert again.why == "é" * 1990


@pytest.mark.parametrize("text, version, over, how", [
    (transition(2, 1, "override", why="a reason").text()[:70], 2, 1, "override"),
    (transition(12, None, "gate").text()[:-1], 12, None, "gate"),
    ('{"version": 3}', 0, None, UNREADABLE),
    (json.dumps({**vars(transition(2, 1, "gate")), "version": "two"}), 0, None, UNREADABLE),
    ("[]", 0, None, UNREADABLE), ("nonsense", 0, None, UNREADABLE), ("", 0, None, UNREADABLE),
], ids=["cut", "cut at the end", "half", "another type", "a list", "no JSON", "empty"])
def test_an_entry_that_is_no_whole_record_says_so_in_its_place(text, version, over, how):
    change = entry(text, number=4, done=False)
    assert (change.version, change.over, change.how, change.number) == (version, over, how, 4)
    assert change.why == f"this entry cannot be read: {text[:80]!r}"
    assert version or str(change) == "entry 4 of the history, which cannot be read"


def test_an_entry_that_cannot_be_read_is_passed_over():
    changes = [*line(1, 2), entry("nonsense", number=3, done=False), *line(1, 2, 4)[2:]]
    assert standing(changes, 4) == ([1, 2], set())
