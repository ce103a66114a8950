"""What the engine promises a GPU, as far as a CPU can show it: nobody waits in a step, bytes as pictures, compiling."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training_support import L2, LINF, run, untimed, weights

from redoubt.errors import InvalidInput, TrainingDiverged
from redoubt.models import Architecture, build
from redoubt.training import OBJECTIVES, Plugins, TrainConfig, compiled, train
from redoubt.training.distributed import World
from redoubt.training.losses import LATE, Loss, Losses
from redoubt.training.pictures import Pictures
from redoubt.training.state import State
from redoubt.training.step import Stepper


class Waiting(TorchDispatchMode):
    """Notes every operation whose result, or the size of whose result, the host would have to wait for on a GPU."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "bincount")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1].split(".")[0]
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if name.startswith(self.NAMES) or masks:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def stepper(digits, **settings):
    torch.manual_seed(0)
    model = build(Architecture(name="compact-cnn", num_classes=10, channels=1, size=8, mean=(0.3,), std=(0.4,)))
    config = TrainConfig(**{"batch_size": 64, "steps": 2} | settings)
    made = Stepper(State(model, config, 100), digits.pixels("train", 256), 100, settings.get("scale"), World(),
                   torch.autocast("cpu", torch.bfloat16, enabled=False), digits.levels)
    made._losses = type("Late", (), {"add": lambda self, loss: [], "rest": lambda self: []})()   # as a GPU's
    return made


ALL = Plugins(label_smoothing=0.1, warmup=0.2, reweight=2.0, weight_perturbation=0.01, flip=True, crop=1)


@pytest.mark.parametrize("plugins", [Plugins(), ALL], ids=["plain", "plug-ins"])
@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"standard"}))
def test_no_step_makes_the_host_wait(digits, objective, plugins):
    made = stepper(digits, objective=objective, threats=(LINF, L2), plugins=plugins)
    rows = made.pictures.place(torch.arange(64))
    for _ in range(2):   # Linf, then L2
        with Waiting() as waiting:
            made.gradients(rows)
            made.state.advance()
        assert waiting.found == []   # AdamW reads its step counters, which lie on the host: test_cuda.py has it, too


def test_that_test_sees_what_it_looks_for():
    x = torch.rand(4)
    for act in (lambda: x.sum().item(), lambda: bool(x.sum() > 1), lambda: x[x > 0.5], lambda: (x > 0.5).nonzero()):
        with Waiting() as waiting:
            act()
        assert waiting.found


def test_bytes_train_the_same_bits_as_floats(digits):
    def go(data):
        torch.manual_seed(0)
        model = build(Architecture(name="compact-cnn", num_classes=10, channels=1, size=8, mean=(0.3,), std=(0.4,)))
        return train(model, data, digits.tensors("validation", 50), TrainConfig(threats=(LINF,), epochs=2, steps=2),
                     levels=digits.levels)

    first, second = go(digits.pixels("train", 256)), go(digits.tensors("train", 256))
    assert torch.equal(weights(first), weights(second))
    assert untimed(first.history) == untimed(second.history)


def test_pictures_that_do_not_fit_stay_with_the_host_and_a_warning_says_so(digits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000))
    device, meta = torch.device("cuda", 0), torch.device("meta")
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, place, **_: tensor if place == device else meta)
    with pytest.warns(UserWarning, match="they stay in the host's memory, and every batch is copied"):
        pictures = Pictures(digits.pixels("train", 256), 16, device)
    assert pictures.x.device.type == "cpu"


def test_losses_of_a_gpu_are_read_late_in_order_and_completely(monkeypatch):
    class Event:
        record = synchronize = lambda self: None

    monkeypatch.setattr(torch.cuda, "Event", Event)
    losses, read = Losses(torch.device("cuda")), []
    for step in range(3 * LATE + 5):
        got = losses.add(Loss(1, step, torch.arange(2), torch.tensor(float(step))))
        assert not got or step + 1 in (2 * LATE, 3 * LATE), "only while a whole batch of steps lies between"
        read += got
    read += losses.rest()
    assert [loss.value for loss in read] == [float(step) for step in range(3 * LATE + 5)]
    assert losses.rest() == []


def test_a_loss_that_is_read_late_still_names_its_own_step(digits, monkeypatch):
    made = stepper(digits, objective="standard")
    made._losses = Losses(torch.device("cpu"))
    monkeypatch.setattr(made._losses, "add", lambda loss: made._losses._new.append(loss) or [])
    real = made.gradients
    monkeypatch.setattr(made, "gradients", lambda rows: real(rows) * (float("nan") if made.state.step == 2 else 1))
    for i in range(4):
        made.step(torch.arange(64) + i)
        made.state.advance()
    with pytest.raises(TrainingDiverged, match="loss is nan in epoch 1, step 3") as caught:
        made.look()
    assert caught.value.rows == list(range(2, 66))


@pytest.fixture
def ahead(monkeypatch):
    """torch.compile up to the code generator: everything but the machine code, which takes a compiler and long."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compiled_steps_compute_the_same(digits, ahead):
    settings = {"threats": (LINF,), "precision": "float32", "limit": 128, "objective": "trades",
                "plugins": Plugins(weight_perturbation=0.01)}
    plain, fast = run(digits, compile="off", **settings), run(digits, compile="on", **settings)
    torch.testing.assert_close(weights(fast), weights(plain), atol=1e-4, rtol=0)
    assert fast.history[0]["loss"] == pytest.approx(plain.history[0]["loss"], rel=1e-4)


def test_a_compiler_that_changes_the_outputs_or_fails_is_not_used(digits, monkeypatch):
    class Wrong(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x).flip(1)

    def broken(model):
        raise RuntimeError("no compiler")

    for compiler, reason in ((Wrong, "outputs differ"), (broken, "no compiler")):
        monkeypatch.setattr(compiled, "compiled", compiler)
        with pytest.raises(InvalidInput, match=f"compile 'on' does not work here.*{reason}"):
            run(digits, threats=(LINF,), compile="on")
        made = stepper(digits, threats=(LINF,))
        before = made.state.generator.get_state()
        monkeypatch.setattr(compiled, "WORTH", 0.0)
        with pytest.warns(UserWarning, match=f"goes on uncompiled: .*{reason}"):
            assert compiled.choose(made, torch.arange(64), 10**9) is made.state.model
        assert torch.equal(made.state.generator.get_state(), before)


def test_compiling_must_pay(digits, monkeypatch):
    made, view = stepper(digits, threats=(LINF,)), torch.nn.Sequential()
    monkeypatch.setattr(compiled, "compiled", lambda model: view)
    monkeypatch.setattr(compiled, "difference", lambda *_: 0.0)
    monkeypatch.setattr(compiled, "_seconds", lambda stepper, rows, network: 0.8 if network is view else 1.0)
    rows = torch.arange(64)
    assert compiled.choose(made, rows, left=1000) is view
    assert compiled.choose(made, rows, left=100) is made.state.model, "the rest is too short to be worth it"
    monkeypatch.setattr(compiled, "_seconds", lambda stepper, rows, network: 0.97 if network is view else 1.0)
    assert compiled.choose(made, rows, left=1000) is made.state.model


def test_weights_are_frozen_and_thawed():
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    with pytest.raises(ValueError), compiled.frozen(model):
        assert not model.weight.requires_grad
        raise ValueError
    assert model.weight.requires_grad and not model.bias.requires_grad
