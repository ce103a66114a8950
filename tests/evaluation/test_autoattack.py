"""AutoAttack through us and alone, interrupted and not; Square; and what happens with two and three classes."""

import copy

import pytest
import torch
from torch import nn

from redoubt.errors import InvalidInput
from redoubt.evaluation import autoattack as ours
from redoubt.evaluation.accuracy import correct, withstands_pgd
from redoubt.evaluation.store import Store, fingerprint, forget, pack, read, unpack, write
from redoubt.threat import ThreatModel

WEAK, STRONG = ThreatModel("Linf", 0.12), ThreatModel("Linf", 0.3)


@pytest.fixture
def images(digits):
    return digits.tensors("test", 40)


def alone(model, x, y, threat, size, parts=None):
    from pyautoattack import AutoAttack

    attack = AutoAttack(model, norm=threat.norm, eps=threat.epsilon, seed=3, version="standard")
    attack.attacks_to_run = parts or attack.attacks_to_run
    return attack.run_standard_evaluation(x.clone(), y.clone(), batch_size=size)[1] == y


@pytest.mark.parametrize("threat", [STRONG, ThreatModel("L2", 2.5)], ids=str)
def test_the_same_images_stand_as_with_pyautoattack_alone(digits_model, images, threat):
    """Strong enough that no image is left for Square, whose 5,000 queries take the time of everything else."""
    mine = ours.autoattack(digits_model, *images, threat, seed=3, batch_size=16)
    assert torch.equal(mine.stood, alone(digits_model, *images, threat, 16))
    assert next(iter(mine.after)) == "clean"
    assert mine.after["clean"] == correct(digits_model, *images).float().mean().item()


@pytest.mark.slow
def test_the_same_images_stand_when_some_do(robust_digits_model, images):
    mine = ours.autoattack(robust_digits_model, *images, WEAK, seed=3, batch_size=16)
    assert torch.equal(mine.stood, alone(robust_digits_model, *images, WEAK, 16))
    assert 0.1 < mine.stood.float().mean() < 0.9


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 4])
def test_an_interrupted_run_goes_on_to_the_same_images(digits_model, images, tmp_path, after):
    seen, state = [], tmp_path / "state.json"
    whole = ours.autoattack(digits_model, *images, STRONG, batch_size=16, progress=seen.append)

    def kill(event):
        early.append(event)
        if len(early) == after:
            raise Killed

    early, late = [], []
    with pytest.raises(Killed):
        ours.autoattack(digits_model, *images, STRONG, batch_size=16, state=state, progress=kill)
    again = ours.autoattack(digits_model, *images, STRONG, batch_size=16, state=state, progress=late.append)
    assert torch.equal(again.stood, whole.stood)
    assert again.after == whole.after
    assert early + late == seen, "no batch twice, none left out"


def test_a_state_of_another_model_or_seed_is_not_taken_up(digits_model, images, tmp_path):
    x, y = images[0][:8], images[1][:8]
    state = tmp_path / "state.json"
    ours.autoattack(digits_model, x, y, STRONG, state=state)
    key = read(state)["key"]
    other = copy.deepcopy(digits_model)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    ours.autoattack(other, x, y, STRONG, state=state)
    assert read(state)["key"] != key
    state.write_text('{"key": ')   # what a power cut could leave of a file written in place
    ours.autoattack(digits_model, x, y, STRONG, state=state)
    assert read(state)["key"] == key


def test_torch_draws_the_same_numbers_after_an_attack_as_before(digits_model, images):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    ours.autoattack(digits_model, images[0][:4], images[1][:4], STRONG)
    assert torch.equal(torch.rand(3), wanted)


class Thirds(nn.Module):
    """Names which of `classes` equal parts of the brightness range a picture lies in."""

    def __init__(self, classes):
        super().__init__()
        self.centres = nn.Parameter((torch.arange(classes) + 0.5) / classes)

    def forward(self, x):
        return -30 * (x.mean((1, 2, 3))[:, None] - self.centres).square()


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_are_attacked_with_what_there_is(classes):
    grey = ((torch.arange(6 * classes) + 0.5) / (6 * classes))
    x, y = grey.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous(), (grey * classes).long()
    left = ours.autoattack(Thirds(classes), x, y, ThreatModel("Linf", 0.5))
    assert not left.stood.any()
    assert "apgd-t" not in left.after
    assert ours.label(classes) == f"AutoAttack ({classes} classes: {', '.join(ours.parts(classes))})"


def test_square_finds_what_masked_gradients_hide(digits_model, images):
    class Quantised(nn.Module):
        def forward(self, x):
            return digits_model((x * 4).round() / 4)

    threat, model = ThreatModel("Linf", 0.25), Quantised()
    masked = withstands_pgd(model, *images, threat)
    assert ours.withstands_square(model, *images, threat, queries=150).float().mean() < masked.float().mean() - 0.2


def test_without_pyautoattack_the_remedy_is_named(monkeypatch, digits_model, images):
    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"pip install 'redoubt\[pipelines\]'"):
        ours.autoattack(digits_model, *images, WEAK)


def test_a_store_computes_once_and_forgets_what_belongs_to_others(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"value": len(calls)}

    store = Store(tmp_path, "a" * 64)
    assert [store.recall("pgd Linf/0.1", compute) for _ in range(2)] == [{"value": 1}] * 2
    assert Store(tmp_path, "b" * 64).recall("pgd Linf/0.1", compute) == {"value": 2}
    assert Store(None, "a" * 64).recall("pgd Linf/0.1", compute) == {"value": 3}
    forget(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_stored_comes_back(tmp_path):
    right = torch.rand(50, generator=torch.Generator().manual_seed(0)) < 0.5
    write(tmp_path / "a" / "part.json", {"stood": pack(right)})
    assert torch.equal(unpack(read(tmp_path / "a" / "part.json")["stood"]), right)
    assert read(tmp_path / "nowhere.json") is None


def test_a_fingerprint_knows_model_images_and_settings(digits_model, robust_digits_model, images):
    x, y = images
    marks = {fingerprint(digits_model, x, y), fingerprint(robust_digits_model, x, y), fingerprint(digits_model, x[1:],
             y[1:]), fingerprint(digits_model, x, y.flip(0)), fingerprint(digits_model, x, y, seed=1)}
    assert len(marks) == 5
    assert fingerprint(digits_model, x, y) in marks
