"""What attacks added, seen on other pictures: the same change, on the lattice, and the clean picture beside it."""

from __future__ import annotations

import pytest
import torch

from redoubt.detection.changes import Changes
from redoubt.detection.networks import CERTAINTY
from redoubt.detection.scoring import Examples

LEVELS = 255


def examples(x: torch.Tensor) -> Examples:
    return Examples(x=x.half(), sure=torch.rand(len(x), CERTAINTY), weight=torch.ones(len(x)))


@pytest.fixture
def changes() -> Changes:
    """Six attacks, each with a size of its own, on pictures that lie far from black and white."""
    torch.manual_seed(0)
    pictures = (torch.rand(5, 3, 8, 8) * 155 + 50).round() / LEVELS
    rows = torch.tensor([0, 1, 2, 2, 1, 0])
    size = torch.arange(1.0, 7.0).view(-1, 1, 1, 1) / LEVELS
    attacked = pictures[rows] + size * torch.randn(6, 3, 8, 8).sign()
    return Changes(attacked=examples(attacked), real=torch.ones(6, dtype=torch.bool), origin=rows, levels=LEVELS,
                   stored=torch.ones(6, dtype=torch.bool), pictures=examples(pictures))


def sizes(x: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return ((x - clean) * LEVELS).abs().flatten(1)


def test_a_pair_differs_in_one_attack_s_change(changes):
    x, sure = changes.pairs(200, torch.Generator().manual_seed(1))
    moved, clean = x[:200], x[200:]
    change = sizes(moved, clean)
    assert change.amax(1).tolist() == pytest.approx(change.amin(1).tolist(), abs=0.3)   # one size over all the picture
    size = change.mean(1).round().long()
    assert set(size.tolist()) == {1, 2, 3, 4, 5, 6}
    assert torch.equal(sure[:200], changes.attacked.sure[size - 1])
    known = torch.cdist(clean.flatten(1), changes.pictures.x.float().flatten(1))
    assert known.amin(1).max() < 0.01 and len(set(known.argmin(1).tolist())) == 5   # further pictures, too
    assert torch.equal(sure[200:], changes.pictures.sure[known.argmin(1)])


def test_everything_moved_lies_on_the_lattice_and_in_range(changes):
    changes.attacked.x[:] = 1.0   # more than any picture has room for
    x, _ = changes.pairs(100, torch.Generator().manual_seed(2))
    assert x.min() >= 0 and x.max() <= 1
    assert (x[:100] * LEVELS - (x[:100] * LEVELS).round()).abs().max() < 1e-3


def test_again_shows_every_change_once_and_in_order(changes):
    parts = list(changes.again(4, torch.Generator().manual_seed(3)))
    assert [len(x) for x, *_ in parts] == [4, 2]
    x, sure, kept = (torch.cat(part) for part in zip(*parts, strict=True))
    assert torch.equal(sure, changes.attacked.sure) and bool(kept.all())
    for size, one in enumerate(x, start=1):
        on = sizes(one.expand(5, -1, -1, -1), changes.pictures.x.float())
        assert on.mean(1).min().item() == pytest.approx(size, abs=0.2)


def test_what_was_sent_in_fractions_stays_so(changes):
    changes.stored[2:] = False
    changes.attacked.x[:] += 0.3 / LEVELS
    (x, _, _), = changes.again(6, torch.Generator().manual_seed(5))
    off = (x * LEVELS - (x * LEVELS).round()).abs().flatten(1).mean(1)
    assert off[:2].max() < 1e-3 and off[2:].min() > 0.15


def test_a_change_that_black_cuts_off_is_not_kept(changes):
    changes.pictures.x[:] = 0
    changes.pictures.x[0] = 0.5
    changes.origin[:] = 0
    changes.attacked.x[:] = 0.5 - 6 / LEVELS   # darker: nothing is left of that on black
    seen = set()
    for seed in range(5):
        (x, _, kept), = changes.again(6, torch.Generator().manual_seed(seed))
        assert torch.equal(kept, x.flatten(1).mean(1) > 0.4)
        seen |= set(kept.tolist())
    assert seen == {True, False}


def test_only_what_attacked_is_paired(changes):
    changes.real[:] = torch.tensor([False, False, True, True, False, False])
    x, _ = changes.pairs(50, torch.Generator().manual_seed(4))
    assert set(sizes(x[:50], x[50:]).mean(1).round().tolist()) == {3.0, 4.0}
