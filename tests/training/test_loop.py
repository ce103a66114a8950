"""The training loop: what it promises about seeds, divergence, the model it returns, and what training is for."""

import pytest
import torch
from training_support import L2, LINF, run, untimed, weights

from redoubt.attacks import pgd
from redoubt.errors import TrainingDiverged
from redoubt.evaluation.accuracy import accuracy
from redoubt.models import Architecture, build
from redoubt.training import TrainConfig, train


@pytest.mark.parametrize(
    "settings",
    [{"objective": "standard"}, {"threats": (LINF,)}, {"threats": (LINF, L2)}, {"objective": "half", "threats": (L2,)},
     {"threats": (LINF,), "precision": "bfloat16"}, {"objective": "trades", "threats": (L2,)},
     {"objective": "fast", "threats": (LINF,)}],
    ids=str,
)
def test_a_seed_fixes_every_bit(digits, settings):
    first = run(digits, seed=3, **settings)
    again, other = run(digits, seed=3, **settings), run(digits, seed=4, **settings)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))
    assert untimed(first.history) == untimed(again.history)


def test_a_batch_norm_model_trains_and_comes_back_in_eval_mode(digits):
    result = run(digits, name="preactresnet-18", limit=128, threats=(LINF,), steps=1)
    assert not any(module.training for module in result.model.modules())
    assert weights(result).isfinite().all()


@pytest.mark.parametrize("bad", ["learning rate", "pixels"])
def test_a_loss_that_is_no_number_stops_the_run(digits, bad):
    if bad == "learning rate":
        with pytest.raises(TrainingDiverged, match=r"epoch \d+, step \d+: lower the learning rate"):
            run(digits, objective="standard", learning_rate=1e30, epochs=5)
    else:
        x, y = digits.tensors("train", 64)
        x[5] = float("nan")
        model = build(Architecture(name="compact-cnn", num_classes=10, channels=1, size=8, mean=(0.3,), std=(0.4,)))
        with pytest.raises(TrainingDiverged, match="loss is nan in epoch 1, step 1"):
            train(model, (x, y), (x, y), TrainConfig(objective="standard", epochs=1))


@pytest.mark.parametrize("shift", [0, 1])
def test_the_best_epoch_is_kept(digits, shift):
    rows = []
    result = run(digits, shift=shift, threats=(LINF,), epochs=4, average=0.0, learning_rate=0.02, progress=rows.append)
    assert rows == result.history
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    best = max(rows, key=lambda row: (row["robust_accuracy"], row["clean_accuracy"], row["epoch"]))
    assert result.best_epoch == best["epoch"]
    assert (best["epoch"] < 4) == bool(shift)
    x, y = digits.tensors("validation", 50)
    assert accuracy(result.model, x, (y + shift) % 10) == best["clean_accuracy"]


def test_a_training_set_smaller_than_a_batch_is_one_step(digits):
    assert run(digits, limit=20, objective="standard").history[0]["loss"] > 0


@pytest.mark.parametrize(("looks", "epochs"), [(1, [6]), (2, [3, 6]), (20, [1, 2, 3, 4, 5, 6])])
def test_looks_at_validation_are_spread_over_the_run(digits, looks, epochs):
    history = run(digits, limit=64, objective="standard", epochs=6, looks=looks).history
    assert [row["epoch"] for row in history] == epochs


def test_what_training_is_for(digits, digits_model, robust_digits_model):
    """At its own epsilon the robust model beats the undefended by far under PGD-20, and stays good on clean images."""
    x, y = digits.tensors("test")

    def under_pgd(model):
        generator = torch.Generator().manual_seed(0)
        return accuracy(model, x, y, attack=lambda m, x, y: pgd(m, x, y, LINF, steps=20, generator=generator))

    assert accuracy(digits_model, x, y) > 0.95
    assert accuracy(robust_digits_model, x, y) > 0.95
    assert under_pgd(robust_digits_model) > under_pgd(digits_model) + 0.15
    assert under_pgd(robust_digits_model) > 0.65
