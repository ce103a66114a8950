"""Several processes: their slices, and that two of them on gloo train what one trains."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import together
import torch
from safetensors.torch import load_file

from redoubt.training.distributed import World, processes
from redoubt.training.syncnorm import SharedBatchNorm2d, share, unshare

SETTINGS = {"objective": "trades", "threats": [["Linf", 0.1], ["L2", 0.5]], "epochs": 3, "batch_size": 50, "steps": 2,
            "average": 0.9, "precision": "float32",
            "plugins": {"flip": True, "crop": 1, "weight_perturbation": 0.005, "class_adaptive": 0.1, "warmup": 0.3}}


@pytest.mark.parametrize(("n", "size"), [(7, 2), (8, 3), (2, 4)])
def test_the_slices_are_all_of_it_and_nearly_even(n, size):
    parts = [World(rank, size).part(n) for rank in range(size)]
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_alone_nothing_is_joined():
    with processes() as world:
        assert world == World(0, 1) == World.current()


def test_sharing_is_a_change_of_class_and_can_be_undone():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).eval()
    x = torch.rand(3, 1, 8, 8)
    before = model(x)
    share(model)
    assert type(model[1]) is SharedBatchNorm2d
    assert torch.equal(model(x), before)
    unshare(model)
    assert type(model[1]) is torch.nn.BatchNorm2d


# With `blend`, the second process's share of 50 pictures begins at 25: which ones stay clean must not begin anew there.
@pytest.mark.parametrize("settings", [SETTINGS, SETTINGS | {"objective": "blend", "epochs": 2}],
                         ids=lambda settings: settings["objective"])
def test_two_processes_train_what_one_trains(digits, tmp_path, settings):
    """Adversarial noise, augmentation, statistics, weight perturbation and averages: one loss curve within rounding."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [
        subprocess.Popen(
            [sys.executable, together.__file__, str(digits.folder), str(tmp_path / "r"), json.dumps(settings)],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
        for rank in range(2)]
    alone = together.go(digits.folder, settings)
    try:
        assert [child.wait(120) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
    histories = [json.loads((tmp_path / f"r.{rank}.json").read_text()) for rank in range(2)]
    for name in ("loss", "clean_accuracy", "robust_accuracy"):
        curves = [[row[name] for row in history] for history in (*histories, alone.history)]
        assert curves[0] == curves[1], "every process must decide the same"
        assert curves[0] == pytest.approx(curves[2], rel=2e-3, abs=0.04 if "accuracy" in name else 0), name
    first, second = (load_file(tmp_path / f"r.{rank}") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(first[name], value, atol=5e-3, rtol=5e-3, msg=name)
