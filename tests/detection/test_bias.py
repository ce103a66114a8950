"""What harmless changes win is taken off: their own, and beyond it what fixed patterns may."""

from __future__ import annotations

import math

import pytest
import torch

from redoubt.detection.bias import Change, calibrate_witness, tried, winners
from redoubt.detection.measures import MEASURES
from redoubt.detection.networks import SKETCH
from redoubt.detection.pattern import SAME, agreement, common
from redoubt.detection.witness import Witness


def sketched(n: int, same: float = 0.0) -> torch.Tensor:
    """Sketches of n pictures, in which one direction has so much weight."""
    drawn = torch.randn(n, SKETCH, generator=torch.Generator().manual_seed(n)) / math.sqrt(SKETCH)
    drawn[:, 0] += same
    return drawn / drawn.norm(dim=1, keepdim=True)


def change(kind: str, won: float, *, amount: float = 1.0, error: float = 0.1, shared: bool = False) -> Change:
    return Change(key=(kind, amount, False), won=won, error=error, shared=shared)


def biases(*changes: Change, again=()) -> list[float]:
    net = Witness()
    calibrate_witness(net, list(changes), list(again), ("some", "other"))
    return [round(part.item(), 4) for part in (net.bias, net.pattern, net.further)]


def test_a_pattern_that_wins_is_answered_by_those_that_share_one():
    """Many pictures under one pattern are worth one draw of it: the next may win more, so there is a margin."""
    usual = change("some", -0.05), change("other", -0.4), change("some", 0.3, amount=0.5, shared=True)
    assert biases(*usual) == [0.1, 0.7, 0.0], "0.15 beyond what it wins, for pictures from elsewhere"
    assert biases(*usual, change("other", 0.9, shared=True)) == [0.1, 1.3, 0.0]
    assert biases(*usual, change("other", 0.9)) == [1.05, 0.0, 0.0], "it does not show that it is one pattern"
    assert biases(*usual, change("light", 0.8)) == [0.1, 0.7, 0.7]
    assert biases(*usual, change("light", 0.8, shared=True)) == [0.1, 0.7, 0.7], "to pixels it is harmless"
    assert biases(change("some", -0.7)) == [0, 0, 0], "what loses lends nothing"


def test_what_was_lucky_is_believed_when_it_is_tried_again():
    lucky, other = change("some", 0.9, amount=0.5), change("some", 0.2)
    assert biases(lucky, other, again=[change("some", 0.05, amount=0.5)])[0] == 0.35
    assert biases(lucky, other, again=[change("some", 0.25, amount=0.5, error=0.2)])[0] == 0.6


def test_those_that_win_most_are_found():
    net = Witness()
    net.forward = lambda measured: measured[:, 0]
    lost = torch.cat([torch.full((19, MEASURES), -3.0), torch.full((1, MEASURES), 3.0)])   # but for one that makes 20
    parts = {("some", 0.5): 0.5, ("some", 0.1): 0.1, ("other", 0.3): 0.3, ("light", 0.9): 0.9}
    held = [((*key, False), (torch.full((20, MEASURES), won), sketched(20))) for key, won in parts.items()]
    held.append((("some", 9.0, False), (torch.full((15, MEASURES), 9.0), sketched(15))))   # too few to say
    held.append((("some", 2.0, True), (torch.full((20, MEASURES), 2.0), sketched(20, 2.0))))   # one pattern
    held.append((("some", 0.05, True), (lost, sketched(20))))
    found = tried(net, held)
    assert [one.key for one in found if one.shared] == [("some", 2.0, True)]
    assert [one.key[1] for one in winners(found, ("some", "other"), 3)] == [0.5, 0.3, 0.1]
    assert [one.key[1] for one in winners(found, ("some", "other"), 9)] == [0.5, 0.3, 0.1, 0.05]
    last = found[-1]
    assert last.won == pytest.approx(math.log((19 * math.exp(-3) + math.exp(3)) / 20), abs=1e-5) and last.error > 0.5
    assert found[0].error == pytest.approx(0, abs=1e-5)


def test_what_was_tried_again_is_taken_together():
    net = Witness()
    net.forward = lambda measured: measured[:, 0]
    key, parts = ("some", 1.0, False), [torch.full((n, MEASURES), won) for n, won in ((10, 0.0), (30, 1.0))]
    one, = tried(net, [(key, (part, sketched(len(part)))) for part in parts])
    assert one.won == pytest.approx(math.log((10 + 30 * math.e) / 40))


@pytest.mark.parametrize(("fixed", "same", "shared"), [
    (True, 2.0, True), (True, 0.15, False),
    (False, 2.0, False),   # noise drawn anew is none, whatever clipping makes common to all
])
def test_a_pattern_is_one_that_was_made_as_one_and_shows(fixed, same, shared):
    one, = tried(Witness(), [(("some", 1.0, fixed), (torch.zeros(64, MEASURES), sketched(64, same)))])
    assert one.shared is shared


def test_what_clean_pictures_have_in_common_is_no_pattern():
    net = Witness()
    net.usual.copy_(common(sketched(300, 2.0)))
    assert not tried(net, [(("some", 1.0, True), (torch.zeros(64, MEASURES), sketched(64, 2.0)))])[0].shared


def test_a_pattern_has_to_show_twice_as_clearly_as_in_a_campaign():
    between = sketched(4000, 0.25)
    assert SAME < agreement(between).mean() < 2 * SAME
    assert not tried(Witness(), [(("some", 1.0, True), (torch.zeros(4000, MEASURES), between))])[0].shared
