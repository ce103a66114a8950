"""Attacks along random fields: inside their bound, at it often enough, and of many textures."""

from __future__ import annotations

import pytest
import torch

from redoubt.attacks import holds_whole_levels, on_lattice
from redoubt.detection import drawn as fields
from redoubt.detection.drawn import drawn
from redoubt.detection.rehearsal import Dice

RANGE, LEVELS = (0.02, 0.3), 255


def pictures(channels: int = 3) -> torch.Tensor:
    return on_lattice(0.2 + 0.6 * torch.rand(40, channels, 20, 20, generator=torch.Generator().manual_seed(0)), LEVELS)


def blocks(x: torch.Tensor, **given) -> list:
    return list(drawn(x, **{"blocks": 40, "size": 12, "epsilon": RANGE, "levels": LEVELS, "seed": 3} | given))


@pytest.mark.parametrize("channels", [1, 3])
def test_blocks_stay_inside_their_bound_and_come_to_it(channels):
    x, stored, reached = pictures(channels), 0, []
    made = blocks(x)
    assert len(made) == 40
    for changed, clean, strength in made:
        assert changed.shape == clean.shape == (12, channels, 20, 20)
        assert changed.min() >= 0 and changed.max() <= 1
        assert (clean.unsqueeze(1) == x.unsqueeze(0)).flatten(2).all(2).any(1).all()   # of the given pictures
        size = (changed - clean).abs()
        assert size.max() <= strength + 1e-5
        reached.append((size >= 0.85 * strength).float().mean().item())
        whole = bool(holds_whole_levels(changed, LEVELS).all())
        stored += whole
        assert not whole or abs(strength * LEVELS - round(strength * LEVELS)) < 1e-3
    assert 22 <= stored <= 37
    assert sum(share >= 0.14 for share in reached) >= 38 and max(reached) > 0.9
    assert sum(share < 0.4 for share in reached) >= 3   # those that swing to and fro are among them


def test_in_every_fourth_block_one_pattern_is_put_on_all_pictures():
    judged = 0
    for i, (changed, clean, strength) in enumerate(blocks(pictures())):
        change = changed - clean
        inside = ((clean >= strength + 0.01) & (clean <= 0.99 - strength)).all(0)   # not cut off in any picture
        if inside.sum() < 20:
            continue
        judged += 1
        same = (change - change[:1]).abs()[:, inside].max().item() < 1.01 / LEVELS   # of rounding
        assert same == (i % 4 == 0), i
    assert judged > 20


def test_textures_reach_from_grain_to_one_colour_over_the_picture():
    beside = []
    for changed, clean, _ in blocks(pictures()):
        change = changed - clean
        beside.append(((change[..., 1:] * change[..., :-1]).mean() / change.square().mean()).item())
    assert min(beside) < 0.1 and max(beside) > 0.8


def test_a_patchwork_has_few_values_and_a_mean_size_of_one_in_each_picture():
    counts = []
    for seed in range(30):
        field = fields._patchwork(pictures()[:4], Dice(seed))
        assert field.abs().mean((1, 2, 3)) == pytest.approx(torch.ones(4), abs=1e-4)
        counts.append(max(len(part.unique()) for part in field.flatten(2).flatten(0, 1)))
    assert min(counts) < 10 and 40 < max(counts) <= 20 + fields._MOST   # 20 columns, and the squares on them


def test_some_climb_a_patchwork_and_most_are_shaken_by_fields_as_smooth_as_their_own(monkeypatch):
    """As searches without a gradient, and as gradients that turn with every step."""
    widths, patched, field, patchwork = [], [], fields._field, fields._patchwork

    def seen(like, width, colours, generator):
        widths.append(width)
        return field(like, width, colours, generator)

    monkeypatch.setattr(fields, "_field", seen)
    monkeypatch.setattr(fields, "_patchwork", lambda like, dice: patched.append(1) or patchwork(like, dice))
    same = []
    for seed in range(60):
        widths.clear()
        before = len(patched)
        fields._along_fields(pictures()[:4], 0.1, Dice(seed))
        if len(patched) == before and len(widths) > 2:   # its own field, and the last that shook it
            same.append(widths[-1] == widths[0])
    assert 8 <= len(patched) <= 30
    assert len(same) > 20 and 0.5 < sum(same) / len(same) < 0.9


def test_an_attack_that_hardly_comes_to_its_bound_is_drawn_again(monkeypatch):
    shares = iter((0.02, 0.14, 0.16, 0.9))

    def along(x, bound, dice):
        change = torch.zeros(x[0].numel())
        change[: round(next(shares) * len(change))] = bound
        return x + change.view(1, *x.shape[1:])

    monkeypatch.setattr(fields, "_along_fields", along)
    x = torch.full((3, 1, 10, 10), 0.5)
    assert ((fields._reaching(x, 0.1, Dice(0)) - x) > 0.09).float().mean().item() == pytest.approx(0.16)


def test_the_same_seed_gives_the_same_blocks():
    one, two, other = (blocks(pictures(), blocks=6, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a[0], b[0]) and a[2] == b[2] for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0][0], other[0][0])
