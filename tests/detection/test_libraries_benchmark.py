"""The benchmark of other libraries' attacks: what it needs it says, what was made before it leaves, and what an attack
left as it was is no attack."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from benchmarks.cells import ROOT
from benchmarks.libraries import attacks
from benchmarks.libraries.__main__ import pictures
from redoubt.models import Architecture, build

ARCHITECTURE = {"name": "compact-cnn", "num_classes": 3, "channels": 1, "size": 8, "mean": (0.5,), "std": (0.2,)}


@pytest.mark.parametrize("python", ["none", "", sys.executable])
def test_without_the_libraries_it_says_what_to_do(tmp_path, python):
    done = subprocess.run([sys.executable, "-m", "benchmarks.libraries", "--peers-python", str(tmp_path / python)],
                          capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "make peers" in done.stderr and "Traceback" not in done.stderr


def test_one_that_fails_is_passed_over_and_what_was_made_before_is_left(tmp_path, monkeypatch, capsys):
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save({"architecture": ARCHITECTURE, "weights": build(Architecture(**ARCHITECTURE)).state_dict(), "x": x,
                "y": torch.arange(4) % 3, "attacks": ["PGD", "BIM", "FGSM"], "levels": 16, "epsilon": 0.2, "seed": 0},
               tmp_path / "case.pt")
    torch.save(torch.zeros(1), tmp_path / "PGD.pt")
    monkeypatch.setitem(attacks.ALL, "FGSM", lambda model, x, y, epsilon: x + epsilon)
    monkeypatch.setitem(attacks.ALL, "BIM", lambda *_: 1 / 0)
    attacks.main(tmp_path)
    assert "BIM: ZeroDivisionError" in capsys.readouterr().err and not (tmp_path / "BIM.pt").exists()
    assert torch.equal(torch.load(tmp_path / "PGD.pt"), torch.zeros(1))
    assert torch.equal(torch.load(tmp_path / "FGSM.pt"), ((x + 0.2).clamp(0, 1) * 16).round().to(torch.uint8))


def test_pictures_that_were_left_as_they_were_do_not_count(tmp_path):
    x = torch.full((3, 1, 2, 2), 0.5)
    torch.save(torch.tensor([[[[8, 8], [8, 8]]], [[[8, 9], [8, 8]]], [[[8, 8], [8, 8]]]], dtype=torch.uint8),
               tmp_path / "FGSM.pt")
    x_adv, rows = pictures(tmp_path, "FGSM", x, 16)
    assert rows.tolist() == [1] and x_adv[0, 0, 0, 1] == 9 / 16
    assert pictures(tmp_path, "PGD", x, 16) is None
