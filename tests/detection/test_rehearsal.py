"""Rehearsals show the scorer what is sent: inputs just across a boundary, most of them as stored pictures."""

from __future__ import annotations

import pytest
import torch

from redoubt.attacks import on_lattice, pgd
from redoubt.detection import rehearsal
from redoubt.detection.measures import measured
from redoubt.detection.rehearsal import KINDS, Block, across, is_coarse, rehearse, rehearse_all
from redoubt.detection.surrogates import fit_surrogates
from redoubt.threat import ThreatModel

LEVELS = 16


@pytest.fixture(scope="module")
def block(digits, digits_model):
    x, y = (part[:64] for part in digits.tensors("detector_fit"))
    threat = ThreatModel("Linf", 0.3)
    x_adv = pgd(digits_model, x, y, threat, steps=10, generator=torch.Generator().manual_seed(0))
    return Block(x=x_adv, clean=x, rows=torch.arange(64), threat=threat,
                 stored=False, strength=0.3, kind="pgd")


@pytest.mark.parametrize("inside", [False, True])
def test_across_stops_just_beyond_the_boundary(block, digits_model, inside):
    crossed = across(digits_model, block, inside=inside)
    assert 16 <= len(crossed) <= len(block.x)
    with torch.no_grad():
        answers, after = digits_model(block.clean).argmax(1), digits_model(crossed).argmax(1)
    near = torch.cdist(crossed.flatten(1), block.clean.flatten(1)).topk(2, 1, largest=False)
    clear = near.values[:, 0] < 0.9 * near.values[:, 1]   # which picture it was made from
    assert clear.float().mean() > 0.8
    crossed, after, nearest = crossed[clear], after[clear], near.indices[clear, 0]
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


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_strength_that_arrives_is_told_apart_from_the_one_that_was_set(digits, digits_model, norm):
    x, y = digits.tensors("detector_fit")
    surrogates, seen = fit_surrogates(digits_model, x, seed=0, epochs=2), set()
    span = (0.05, 0.4) if norm == "Linf" else (0.4, 1.2)
    for make in rehearse(digits_model, surrogates, x, y, blocks=64, size=16, levels=LEVELS, norm=norm, epsilon=span,
                         seed=1):
        block = make()
        assert torch.equal(block.clean, x[block.rows])
        stored = bool(((block.x - on_lattice(block.x, LEVELS)).abs().max() < 1e-6).item())
        assert block.stored or not stored
        seen.add(block.stored)
        if norm == "L2" or not block.stored:
            assert block.strength == block.threat.epsilon
        else:   # a whole number of levels, at most half a level from what was set, and never exceeded
            assert block.strength * LEVELS == pytest.approx(round(block.strength * LEVELS))
            assert abs(block.strength - block.threat.epsilon) <= 0.5001 / LEVELS
            assert (block.x - block.clean).abs().max().item() <= block.strength + 1e-5
    assert seen == {True, False}


def test_some_attacks_leave_pixels_alone(digits, digits_model):
    """Those near black and white, a window, busy places or a scattering: one kind does."""
    x, y = digits.tensors("detector_fit")
    left: dict[str, list[float]] = {}
    surrogates = fit_surrogates(digits_model, x, seed=0, epochs=1)
    for make in rehearse(digits_model, surrogates, x, y, blocks=20 * len(KINDS), size=16, levels=255, norm="Linf",
                         epsilon=(0.1, 0.3), seed=4):
        block = make()
        alone = ((block.x - block.clean).abs() < 0.5 / 255).float().mean().item()
        left.setdefault(block.kind, []).append(alone)
    assert sorted(left["part"])[10] > 0.5 and min(left["part"]) > 0.1
    assert all(sorted(shares)[10] < 0.45 for kind, shares in left.items() if kind != "part"), left


def test_where_a_change_has_no_grain_the_steps_cross_the_ball(digits, digits_model, monkeypatch):
    """Else little is left of the bound there, or two steps undo each other, and no one could tell it."""
    x, y = digits.tensors("detector_fit")
    calls, steps, totals = [], {}, {}

    def watched(*args, **given):
        calls.append((given["steps"], given["steps"] * given["alpha"] / given["threat"].epsilon))
        return pgd(*args, **given)

    monkeypatch.setattr(rehearsal, "pgd", watched)
    surrogates = fit_surrogates(digits_model, x, seed=0, epochs=1)
    for make in rehearse(digits_model, surrogates, x, y, blocks=30 * len(KINDS), size=4, levels=LEVELS, norm="Linf",
                         epsilon=(0.1, 0.3), seed=4):
        calls.clear()
        kind = make().kind
        for many, total in calls:
            steps.setdefault(kind, set()).add(many)
            totals.setdefault(kind, []).append(total)
    for kind in ("transfer", "smooth", "cells", "part"):
        assert 1.25 <= min(totals[kind]) < 1.5 and 3.3 < max(totals[kind]) <= 4 + 1e-6, kind
    for kind in ("smooth", "cells", "part"):
        assert {1, 3} <= steps[kind] <= {1, *range(3, 13)}, kind
    assert min(totals["pgd"]) < 1 and max(steps["transfer"]) > 12


def test_what_arrived_is_what_strength_is_learned_from(digits, digits_model):
    x, y = digits.tensors("detector_fit")
    plans = (("Linf", 48, (0.05, 0.45)), ("L2", 24, (0.5, 1.2)))
    made = rehearse_all(digits_model, fit_surrogates(digits_model, x, seed=0, epochs=2), x, y, plans=plans, size=16,
                        levels=LEVELS, asks=False, seed=3)
    sent = made.attacked.x.float().unflatten(0, made.real.shape)
    steps = made.log_epsilon.exp() * LEVELS
    whole, linf = (steps - steps.round()).abs() < 1e-3, made.norm == 0
    assert torch.equal(whole[linf], made.stored[linf]) and not whole[~linf].any()
    size = (sent - x[made.rows]).abs().flatten(1).amax(1) * LEVELS   # the largest change of any pixel
    assert bool((size <= steps + 0.01)[linf].all()) and (size / steps)[linf].median().item() > 0.98


def test_every_second_block_and_each_in_l2_is_taken_across_in_either_way(digits, digits_model, monkeypatch):
    x, y = digits.tensors("detector_fit")
    taken = []

    def watched(model, block, *, inside):
        taken.append((block.threat.norm, inside))
        return across(model, block, inside=inside)

    monkeypatch.setattr(rehearsal, "across", watched)
    rehearse_all(digits_model, fit_surrogates(digits_model, x, seed=0, epochs=1), x, y, size=8, levels=LEVELS,
                 plans=(("Linf", 5, (0.05, 0.45)), ("L2", 3, (0.5, 1.2))), asks=False, seed=0)
    assert taken == [("Linf", False), ("Linf", True), ("Linf", False), ("L2", True), ("L2", False), ("L2", True)]


def test_every_kind_is_taken_across_in_every_way(digits, digits_model, monkeypatch):
    """Inside or not, in whole levels or not: to count to two, or five, would give each of ten kinds one way."""
    x, y = digits.tensors("detector_fit")
    met, kinds = set(), {}

    def watched(model, block, *, inside):
        crossed = across(model, block, inside=inside)
        met.add((block.threat.norm, block.kind, "inside" if inside else "anywhere"))
        kinds[id(crossed)] = crossed, (block.threat.norm, block.kind)
        return crossed

    def sent(x, levels):
        if id(x) in kinds:
            met.add((*kinds.pop(id(x))[1], "stored"))
        return on_lattice(x, levels)

    monkeypatch.setattr(rehearsal, "across", watched)
    monkeypatch.setattr(rehearsal, "on_lattice", sent)
    rehearse_all(digits_model, fit_surrogates(digits_model, x, seed=0, epochs=1), x, y, size=8, levels=LEVELS,
                 plans=(("Linf", 100, (0.05, 0.45)), ("L2", 100, (0.5, 1.2))), asks=False, seed=0)
    met |= {(*kind, "float") for _, kind in kinds.values()}
    ways = ("inside", "anywhere", "stored", "float")
    near = [("Linf", kind) for kind in KINDS[::2]] + [("L2", kind) for kind in KINDS]
    assert met == {(*kind, way) for kind in near for way in ways}


def test_only_kinds_that_tell_are_put_to_the_model(digits, digits_model):
    x, y = digits.tensors("detector_fit")
    made = rehearse_all(digits_model, fit_surrogates(digits_model, x, seed=0, epochs=1), x, y, size=8, levels=LEVELS,
                        plans=(("Linf", 20, (0.05, 0.45)), ("L2", 10, (0.5, 1.2))), asks=True, seed=0)
    assert made.telling.tolist() == 3 * [kind not in ("part", "guessed") for kind in KINDS]
    assert made.asked.shape[:2] == (24, 2 * rehearsal.ASKED)   # twice as many of few blocks
    first = made.attacked.x.float().unflatten(0, (30, 8))[made.telling][:, : 2 * rehearsal.ASKED]
    again = measured(digits_model, first.flatten(0, 1))   # of pictures that were kept in half precision
    torch.testing.assert_close(made.asked.flatten(0, 1), again, atol=0.2, rtol=0.05)


def test_every_sort_of_mask_and_some_chance_are_drawn(digits, digits_model, monkeypatch):
    x, y = digits.tensors("detector_fit")
    drawn, asked = [], []
    for name in ("inside", "busy", "window", "scattered"):
        monkeypatch.setattr(rehearsal.masked, name, lambda *args, name=name: drawn.append(name) or (lambda x: x + 1))

    def guessed(noise, seed):
        assert 0.5 <= noise <= 4
        return lambda gradient: asked.append(seed) or gradient

    monkeypatch.setattr(rehearsal.shaped, "guessed", guessed)
    for make in rehearse(digits_model, fit_surrogates(digits_model, x, seed=0, epochs=1), x, y, blocks=20 * len(KINDS),
                         size=4, levels=LEVELS, norm="Linf", epsilon=(0.1, 0.3), seed=4):
        make()
    assert len(drawn) == 20 and set(drawn) == {"inside", "busy", "window", "scattered"}
    assert len(set(asked)) == 20, "each time another chance"


def test_more_threads_rehearse_the_same(digits, digits_model):
    x, y = digits.tensors("detector_fit")
    plans = (("Linf", 16, (0.05, 0.45)), ("L2", 8, (0.5, 1.2)))
    surrogates = fit_surrogates(digits_model, x, seed=0, epochs=1)
    before, made = torch.get_num_threads(), []
    try:
        for count in (1, 2):   # each task computes with one of them
            torch.set_num_threads(count)
            made.append(rehearse_all(digits_model, surrogates, x, y, plans=plans, size=8, levels=LEVELS, asks=True,
                                     seed=5))
    finally:
        torch.set_num_threads(before)
    for name in ("seen", "rows", "real", "log_epsilon", "norm", "kind", "coarse", "stored", "asked"):
        assert torch.equal(getattr(made[0], name), getattr(made[1], name)), name
    for name in ("attacked", "near"):
        assert torch.equal(getattr(made[0], name).x, getattr(made[1], name).x), name


def test_what_stretches_over_many_pixels_is_called_coarse():
    generator = torch.Generator().manual_seed(0)
    fine = torch.randn(8, 3, 32, 32, generator=generator).sign()
    squares = fine[..., :4, :4].repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert not is_coarse(fine) and is_coarse(squares)
    assert not is_coarse(torch.cat([fine, squares[:3]])) and is_coarse(torch.cat([squares, fine[:3]]))   # most of them
    assert not is_coarse(torch.zeros(4, 1, 8, 8)) and not is_coarse(torch.zeros(0, 1, 8, 8))
    assert is_coarse(torch.ones(4, 1, 8, 8))   # edges are no grain
