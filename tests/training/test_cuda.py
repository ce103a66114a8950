"""What must hold on a GPU. Without one every test here is skipped."""

import pytest
import torch
from training_support import L2, LINF, untimed, weights

from redoubt.models import Architecture, build
from redoubt.training import OBJECTIVES, Plugins, TrainConfig, train
from redoubt.training.distributed import World
from redoubt.training.loop import use_bfloat16
from redoubt.training.pictures import Pictures
from redoubt.training.state import State
from redoubt.training.step import Stepper

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ALL = Plugins(label_smoothing=0.1, warmup=0.2, reweight=2.0, weight_perturbation=0.01, flip=True, crop=1)


def network(name="compact-cnn", size=8, channels=1):
    torch.manual_seed(0)
    return build(Architecture(name=name, num_classes=10, channels=channels, size=size, mean=(0.3,) * channels,
                              std=(0.4,) * channels))


def stepper(digits, device, **settings):
    model = network().to(device, memory_format=torch.channels_last)
    config = TrainConfig(**{"batch_size": 64, "steps": 2, "threats": (LINF, L2)} | settings)
    precision = torch.autocast(device, torch.bfloat16, enabled=use_bfloat16(config.precision, torch.device(device)))
    return Stepper(State(model, config, 1000), digits.pixels("train", 256), 1000, None, World(), precision,
                   digits.levels)


def go(digits, **settings):
    """A short run on the GPU with every default of the engine."""
    validation = tuple(part.cuda() for part in digits.tensors("validation", 50))
    config = TrainConfig(**{"threats": (LINF,), "epochs": 2, "batch_size": 64, "steps": 2} | settings)
    return train(network().cuda(), digits.pixels("train", 512), validation, config, levels=digits.levels)


@pytest.mark.parametrize("plugins", [Plugins(), ALL], ids=["plain", "plug-ins"])
@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"standard"}))
def test_no_step_makes_the_host_wait(digits, objective, plugins):
    made = stepper(digits, "cuda", objective=objective, plugins=plugins, compile="off")
    rows = made.pictures.place(torch.arange(256))
    for _ in range(3):   # kernels are chosen and the optimizer's state is made
        made.step(rows[:64])
        made.state.advance()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for i in range(4):
            made.step(rows[64 * i : 64 * (i + 1)])
            made.state.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(made.look()) == 7


def test_the_loss_is_the_cpus(digits, monkeypatch):
    """The same noise on both: drawn on the CPU, for the generators of the two devices give other numbers."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    real = type(LINF).sample

    def sample(threat, like, generator=None, scale=None):
        noise = real(threat, torch.empty(like.shape), torch.Generator().manual_seed(7))
        return noise.to(like.device)

    monkeypatch.setattr(type(LINF), "sample", sample)
    found = {}
    try:
        for device in ("cpu", "cuda"):
            made, losses = stepper(digits, device, precision="float32", compile="off", objective="pgd"), []
            rows = made.pictures.place(torch.arange(256))
            for i in range(6):
                losses += made.step(rows[64 * (i % 4) : 64 * (i % 4 + 1)])
                made.state.advance()
            found[device] = losses + made.look()
    finally:
        torch.set_float32_matmul_precision(precision)
    assert found["cuda"] == pytest.approx(found["cpu"], rel=2e-3)


def test_pictures_lie_on_the_device_as_bytes_and_are_cut_there(digits):
    pictures = Pictures(digits.pixels("train", 256), digits.levels, torch.device("cuda", 0))
    assert pictures.x.is_cuda and pictures.x.dtype == torch.uint8
    rows = torch.tensor([3, 1, 200])
    x = pictures.batch(pictures.place(rows))
    assert x.is_cuda and torch.equal(x.cpu(), digits.tensors("train")[0][rows])


def test_pictures_that_do_not_fit_train_all_the_same(digits, monkeypatch):
    resident = go(digits, seed=3, precision="float32", compile="off")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1000, 1000))
    with pytest.warns(UserWarning, match="stay in the host's memory"):
        copied = go(digits, seed=3, precision="float32", compile="off")
    assert copied.history[-1]["loss"] == pytest.approx(resident.history[-1]["loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_and_plain_steps_agree(digits, precision):
    plain, fast = (go(digits, compile=how, precision=precision) for how in ("off", "on"))
    tolerance = 1e-2 if precision == "float32" else 5e-2
    for name in ("loss", "clean_accuracy", "robust_accuracy"):
        assert fast.history[-1][name] == pytest.approx(plain.history[-1][name], rel=tolerance, abs=0.1), name


def test_half_precision_is_chosen_and_learns(digits):
    assert use_bfloat16("auto", torch.device("cuda")) == torch.cuda.is_bf16_supported()
    history = go(digits, epochs=10, learning_rate=5e-3).history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert weights(go(digits)).isfinite().all()


def test_out_of_memory_halves_the_micro_batch(digits):
    """A real one: the allocator is given too little for the whole batch of a ResNet."""
    model = network("preactresnet-18", 32, 3).to("cuda", memory_format=torch.channels_last)
    x, y = torch.rand(512, 3, 32, 32), torch.arange(512) % 10
    config = TrainConfig(threats=(LINF,), batch_size=512, steps=1, compile="off", average=0.0)
    made = Stepper(State(model, config, 100), (x, y), 100, None, World(),
                   torch.autocast("cuda", torch.bfloat16, enabled=False))
    rows = made.pictures.place(torch.arange(512))
    made.gradients(rows[:32])
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + 1.5 * 2**30
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    try:
        made.step(rows)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert made.micro < 512
    assert all(value == value for value in made.look())


def test_a_run_that_is_resumed_ends_alike(digits, tmp_path):
    keywords = {"checkpoint": tmp_path / "c.safetensors", "checkpoint_seconds": 0.0}
    validation = tuple(part.cuda() for part in digits.tensors("validation", 50))
    config = TrainConfig(threats=(LINF,), epochs=2, batch_size=64, steps=1, compile="off")
    first = train(network().cuda(), digits.pixels("train", 256), validation, config, levels=digits.levels, **keywords)
    again = train(network().cuda(), digits.pixels("train", 256), validation, config, levels=digits.levels, **keywords)
    assert torch.equal(weights(first), weights(again)), "a finished run is read, not made again"
    assert untimed(first.history) == untimed(again.history)


def test_a_run_that_was_killed_in_the_middle_goes_on(digits, tmp_path):
    validation = tuple(part.cuda() for part in digits.tensors("validation", 50))
    config = TrainConfig(threats=(LINF,), epochs=3, batch_size=64, steps=1, compile="off")
    data, kept = digits.pixels("train", 256), {"checkpoint": tmp_path / "c.safetensors", "checkpoint_seconds": 0.0}

    def stop(row: dict) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(network().cuda(), data, validation, config, levels=digits.levels, progress=stop, **kept)
    resumed = train(network().cuda(), data, validation, config, levels=digits.levels, **kept)
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3]
    assert all(value.isfinite().all() for value in resumed.model.state_dict().values())
