"""Augmentation and early stopping."""

import pytest
import torch
from training_support import LINF, run, weights

from redoubt.training import Plugins
from redoubt.training.augment import augment, draw

X = torch.arange(4 * 2 * 5 * 6, dtype=torch.float32).view(4, 2, 5, 6) + 1


def test_crops_and_flips_are_those_of_a_loop_over_the_pictures():
    plugins = Plugins(flip=True, crop=2)
    draws = draw(plugins, 4, torch.Generator().manual_seed(0))
    assert draws.flip.any() and not draws.flip.all()
    out = augment(X, draws, 2)
    for i in range(4):
        picture = X[i].flip(2) if draws.flip[i] else X[i]
        top, left = draws.offset[i].tolist()
        expected = torch.nn.functional.pad(picture, (2, 2, 2, 2))[:, top : top + 5, left : left + 6]
        assert torch.equal(out[i], expected)
    half = augment(X[2:], draws.slice(slice(2, 4)), 2)
    assert torch.equal(half, out[2:])


def test_every_place_of_the_crop_comes_up():
    draws = draw(Plugins(crop=1), 500, torch.Generator().manual_seed(0))
    assert {tuple(place) for place in draws.offset.tolist()} == {(i, j) for i in range(3) for j in range(3)}


def test_what_is_off_draws_nothing_and_copies_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert augment(X, draw(Plugins(), 4, generator), 0) is X
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("patience", [0, 2])
def test_patience_ends_a_run_that_gets_no_better(digits, patience):
    """The validation labels are shifted, so that learning makes validation worse."""
    result = run(digits, shift=1, threats=(LINF,), epochs=12, learning_rate=0.01, plugins=Plugins(patience=patience))
    keys = [(row["robust_accuracy"], row["clean_accuracy"]) for row in result.history]
    if patience:
        assert len(keys) < 12
        assert max(keys[-patience:]) <= max(keys[:-patience])
    else:
        assert len(keys) == 12
    assert weights(result).isfinite().all()
