"""Single-step training: the noisy step itself, the alarm for catastrophic overfitting, and what follows it."""

import pytest
import torch
from training_support import LINF, run, untimed

from redoubt.errors import TrainingDiverged
from redoubt.threat import ThreatModel
from redoubt.training import validate
from redoubt.training.objectives.fast import noisy_step, overfitted


@pytest.mark.parametrize("threat", [LINF, ThreatModel("L2", 0.5)], ids=str)
def test_the_noisy_step_is_noise_and_one_step_of_length_epsilon(threat):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    x, y = torch.full((4, 1, 4, 4), 0.5), torch.tensor([0, 1, 2, 0])
    noise = threat.sample(x, torch.Generator().manual_seed(1)) * 0.2   # small: nothing meets the edge of [0, 1]
    moved = noisy_step(model, x, y, threat, noise=noise) - x - 2 * noise
    torch.testing.assert_close(threat.size(moved), torch.full((4,), threat.epsilon))
    at = (x + 2 * noise).requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(at), y), at)
    assert torch.nn.functional.cosine_similarity(moved.flatten(1), gradient.flatten(1)).min() > 0.7
    half = noisy_step(model, x, y, threat, noise=noise, scale=torch.full((4,), 0.5)) - x - 2 * noise
    torch.testing.assert_close(half, moved / 2, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("rows", "alarm"), [
    ([(0.6, 0.7)], False),
    ([(0.05, 0.7)], True),
    ([(0.01, 0.1)], False),
    ([(0.6, 0.7), (0.5, 0.7)], False),
    ([(0.6, 0.7), (0.0, 0.9)], True),
    ([(0.6, 0.7), (0.29, 0.6)], True),
    ([(0.6, 0.7), (0.31, 0.6)], False),
    ([(0.6, 0.7), (0.1, 0.1)], False),
    ([(0.6, 0.7), (0.0, 0.9), (0.5, 0.7)], False),
], ids=["one look", "collapsed at once", "nothing learned yet", "a small loss",
        "collapse", "just below half", "just above half", "both lost", "recovered"])
def test_the_alarm_needs_pgd_lost_and_the_single_step_held(rows, alarm):
    assert overfitted([{"robust_accuracy": r, "single_step_accuracy": s} for r, s in rows]) == alarm


def test_after_the_alarm_the_run_goes_on_with_pgd_from_its_best_weights(digits, monkeypatch):
    settings = {"objective": "fast", "threats": (LINF,), "epochs": 4, "steps": 2, "average": 0.0}
    calm = run(digits, **settings)
    assert not any("fallback" in row for row in calm.history)

    seen, measure = [], validate.measure

    def collapse_at_the_second_look(model, data, config):
        row = measure(model, data, config)
        seen.append(row)
        return row | ({"robust_accuracy": 0.0, "single_step_accuracy": 1.0} if len(seen) == 2 else {})

    monkeypatch.setattr(validate, "measure", collapse_at_the_second_look)
    monkeypatch.setattr("redoubt.training.attack.noisy_step", counted := Counter(noisy_step))
    result = run(digits, **settings)
    assert [row.get("fallback") for row in result.history] == [None, "pgd", None, None]
    assert counted.calls == 2 * 4, "single steps in the first two epochs of four steps, and no more"
    assert untimed(result.history[:1]) == untimed(calm.history[:1])
    assert untimed(result.history[2:]) != untimed(calm.history[2:])
    assert result.best_epoch != 2


def test_a_run_that_ends_overfitted_is_no_result(digits, monkeypatch):
    measure = validate.measure
    monkeypatch.setattr(validate, "measure", lambda *given: measure(*given) | {"robust_accuracy": 0.01,
                                                                             "single_step_accuracy": 0.9})
    with pytest.raises(TrainingDiverged, match=r"overfitted catastrophically by epoch 1.*take objective 'pgd'"):
        run(digits, objective="fast", threats=(LINF,), epochs=1, average=0.0)


def test_single_step_training_is_looked_at_after_every_epoch(digits):
    assert len(run(digits, objective="fast", threats=(LINF,), epochs=4, looks=1).history) == 4
    assert len(run(digits, objective="pgd", threats=(LINF,), epochs=4, looks=1).history) == 1


class Counter:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **keywords):
        self.calls += 1
        return self.function(*args, **keywords)
