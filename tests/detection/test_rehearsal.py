"""Rehearsals show the scorer what is sent: inputs just across a boundary, most of them as stored pictures."""

from __future__ import annotations

import pytest
import torch

from redoubt.attacks import on_lattice, pgd
from redoubt.detection.rehearsal import Block, across, rehearse_all
from redoubt.detection.surrogates import fit_surrogates
from redoubt.threat import ThreatModel

LEVELS = 16


@pytest.fixture(scope="module")
def block(digits, digits_model):
    x, y = (part[:64] for part in digits.tensors("detector_fit"))
    threat = ThreatModel("Linf", 0.3)
    return Block(x=pgd(digits_model, x, y, threat, steps=10), clean=x, threat=threat, kind="pgd")


@pytest.mark.parametrize("inside", [False, True])
def test_across_stops_just_beyond_the_boundary(block, digits_model, inside):
    crossed = across(digits_model, block, inside=inside)
    assert 16 <= len(crossed) <= len(block.x)
    with torch.no_grad():
        answers, after = digits_model(block.clean).argmax(1), digits_model(crossed).argmax(1)
    nearest = torch.cdist(crossed.flatten(1), block.clean.flatten(1)).argmin(1)
    assert bool((after != answers[nearest]).all())
    change = crossed - block.clean[nearest]
    assert change.flatten(1).norm(dim=1).mean() < 0.8 * (block.x - block.clean).flatten(1).norm(dim=1).mean()
    with torch.no_grad():   # a little less of the change and the model stays with its answer
        less = digits_model(block.clean[nearest] + 0.97 * change).argmax(1) == answers[nearest]
    assert less.float().mean() > 0.9
    if inside:
        assert bool((change[block.clean[nearest] == 0] == 0).all())


def test_four_in_five_near_blocks_lie_on_the_lattice(digits, digits_model):
    x, y = digits.tensors("detector_fit")
    plans = (("Linf", 48, (0.1, 0.45)), ("L2", 24, (0.5, 1.2)))
    made = rehearse_all(digits_model, fit_surrogates(digits_model, x, seed=0, epochs=2), x, y, plans=plans, size=16,
                        levels=LEVELS, asks=False, seed=0)
    x = made.near.x.float()
    stored = (x - on_lattice(x, LEVELS)).abs().flatten(1).amax(1) < 1e-3
    assert len(x) > 200
    assert 0.7 < stored.float().mean() < 0.9
