"""When a step goes wrong: a loss that is no number, and a device without memory."""

import pytest
import torch
from training_support import L2, LINF, run, untimed, weights

from redoubt.errors import TrainingDiverged
from redoubt.models import Architecture, build
from redoubt.training import OBJECTIVES, Plugins, TrainConfig, train


def network():
    torch.manual_seed(0)
    return build(Architecture(name="compact-cnn", num_classes=10, channels=1, size=8, mean=(0.3,), std=(0.4,)))


def test_broken_pixels_are_named(digits):
    x, y = digits.tensors("train", 64)
    x[5], x[40, 0, 3, 3] = float("nan"), float("inf")
    with pytest.raises(TrainingDiverged, match=r"loss is nan in epoch 1, step 1: training pictures \[") as caught:
        train(network(), (x, y), (x, y), TrainConfig(objective="standard", batch_size=64, epochs=1))
    assert set(caught.value.rows) == set(range(64))
    assert {5, 40} == set(map(int, str(caught.value).split("[")[1].split("]")[0].split(",")))


def test_a_loss_that_bursts_names_its_batch_and_what_to_try(digits):
    with pytest.raises(TrainingDiverged, match=r"lower the learning rate.*float32.*held training pictures \[") as error:
        run(digits, objective="standard", learning_rate=1e30, epochs=5)
    assert len(error.value.rows) == 64


def short_of_memory(monkeypatch, room):
    """Every objective raises what CUDA raises, for more than `room` images at a time. Returns the sizes tried."""
    tried = []

    def limited(objective):
        def run(model, x, *args, **keywords):
            tried.append(len(x))
            if len(x) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return objective(model, x, *args, **keywords)

        return run

    monkeypatch.setattr("redoubt.training.step.OBJECTIVES", {n: limited(f) for n, f in OBJECTIVES.items()})
    return tried


@pytest.mark.parametrize("settings", [{}, {"plugins": Plugins(weight_perturbation=0.01)}, {"threats": (L2,)},
                                      {"objective": "half"}, {"objective": "pgd"}, {"objective": "trades"},
                                      {"objective": "fast"}], ids=str)
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(digits, monkeypatch, settings):
    settings = {"threats": (LINF,), "precision": "float32"} | settings
    whole = run(digits, **settings)
    tried = short_of_memory(monkeypatch, room=20)
    parts = run(digits, **settings)
    assert tried[:3] == [64, 32, 16]
    assert set(tried[3:]) == {16}, "the size that fits is kept"
    torch.testing.assert_close(weights(parts), weights(whole), atol=2e-4, rtol=0)
    assert parts.history[0]["loss"] == pytest.approx(whole.history[0]["loss"], rel=1e-4)


@pytest.mark.parametrize("objective", ["blend", "half"])
@pytest.mark.parametrize("room", [1, 3])
def test_the_same_pictures_stay_clean_in_the_smallest_parts(digits, monkeypatch, objective, room):
    settings = {"objective": objective, "threats": (LINF,), "precision": "float32", "batch_size": 60, "epochs": 1}
    whole = run(digits, **settings)
    short_of_memory(monkeypatch, room=room)
    parts = run(digits, **settings)
    torch.testing.assert_close(weights(parts), weights(whole), atol=2e-4, rtol=0)


def test_without_room_for_one_picture_the_run_ends_with_advice(digits, monkeypatch):
    short_of_memory(monkeypatch, room=0)
    with pytest.raises(torch.OutOfMemoryError, match="even one picture at a time is too much"):
        run(digits, threats=(LINF,))


def test_rows_say_how_fast_and_how_long(digits):
    result = run(digits, threats=(LINF,), epochs=3)
    rates, left = ([row[name] for row in result.history] for name in ("images_per_second", "seconds_left"))
    assert min(rates) > 0
    assert left[-1] == 0 and left[0] > 0
    first = result.history[0]
    assert left[0] == pytest.approx(2 * 4 * 64 / first["images_per_second"], abs=0.1, rel=0.1)
    assert len(untimed(result.history)) == 3
