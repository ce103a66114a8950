"""Checkpoints: a run that is killed again and again ends with the weights of one that was left alone."""

import json
import subprocess
import sys
import time
from pathlib import Path

import interrupted
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from training_support import L2, LINF, run, untimed, weights

from redoubt.errors import ArtifactError, TrainingDiverged
from redoubt.training import Plugins, checkpoint

CHILD = Path(__file__).parent / "interrupted.py"
SETTINGS = {"objective": "pgd", "threats": [["Linf", 0.1], ["L2", 0.5]], "epochs": 4, "batch_size": 32, "steps": 3,
            "average": 0.9, "learning_rate": 3e-3,
            "plugins": {"flip": True, "crop": 1, "weight_perturbation": 0.005, "class_adaptive": 0.1, "warmup": 0.3}}


def child(digits, kept):
    return subprocess.Popen([sys.executable, str(CHILD), str(digits.folder), str(kept), json.dumps(SETTINGS)],
                            cwd=Path(__file__).parents[2])


def test_killed_at_any_moment_a_run_ends_with_the_same_bits(digits, tmp_path):
    kept, kills, stamp = tmp_path / "run" / "checkpoint.safetensors", 0, None
    for wait in (0.05, 0.13):
        process = child(digits, kept)
        while process.poll() is None and (not kept.exists() or kept.stat().st_mtime_ns == stamp):
            time.sleep(0.01)   # until this process has written something of its own
        time.sleep(wait)       # into a step, a look, or the next write: the child writes after every step
        process.kill()
        kills += process.wait(60) == -9
        stamp = kept.stat().st_mtime_ns
    assert kills, "the run was over too soon to be interrupted"
    with safe_open(kept, "pt") as content:
        before = json.loads(content.metadata()["state"])
    assert 0 < before["step"] < 4 * 16

    resumed, whole = interrupted.go(digits.folder, kept, SETTINGS), interrupted.go(digits.folder, None, SETTINGS)
    assert torch.equal(weights(resumed), weights(whole))
    assert untimed(resumed.history) == untimed(whole.history)
    assert resumed.best_epoch == whole.best_epoch
    assert resumed.seconds > before["seconds"] > 0, "time before the interruption counts, too"


class Killed(BaseException):
    pass


def stopped(digits, file, writes, monkeypatch, **settings):
    """Run until the checkpoint was written `writes` times, then stop dead."""
    write, left = checkpoint.Keeper.write, [writes]

    def count(keeper):
        write(keeper)
        left[0] -= 1
        if not left[0]:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint.Keeper, "write", count)
        run(digits, keywords={"checkpoint": file, "checkpoint_seconds": 0.0}, **settings)


@pytest.mark.parametrize("writes", [3, 4, 9])
@pytest.mark.parametrize("settings", [
    {"objective": "trades", "threats": (LINF,)},
    {"objective": "fast", "threats": (L2,), "average": 0.0, "plugins": Plugins(label_smoothing=0.1, reweight=1.0)},
    {"threats": (LINF,), "shift": 1, "learning_rate": 0.02, "plugins": Plugins(patience=1)},
], ids=["trades", "fast", "patience"])
def test_every_place_to_stop_is_a_place_to_go_on_from(digits, tmp_path, monkeypatch, settings, writes):
    settings = {"epochs": 3} | settings
    expected = run(digits, **settings)
    if writes > 4 * len(expected.history):
        return   # patience had ended it before
    file = tmp_path / "c"
    stopped(digits, file, writes, monkeypatch, **settings)
    resumed = run(digits, keywords={"checkpoint": file}, **settings)
    assert torch.equal(weights(resumed), weights(expected))
    assert untimed(resumed.history) == untimed(expected.history)
    again = run(digits, keywords={"checkpoint": file}, **settings)
    assert torch.equal(weights(again), weights(expected)), "a finished run gives its result again"
    assert again.history == resumed.history


def test_another_run_does_not_take_it_up(digits, tmp_path, monkeypatch):
    file = tmp_path / "c"
    stopped(digits, file, 1, monkeypatch, threats=(LINF,))
    for changes in ({"steps": 3}, {"limit": 255}, {"threats": (L2,)}, {"seed": 1}):
        with pytest.raises(ArtifactError, match="other settings, data or first weights: delete it"):
            run(digits, keywords={"checkpoint": file}, **{"threats": (LINF,)} | changes)


def test_a_broken_file_is_named(digits, tmp_path):
    file = tmp_path / "c"
    for content in (b"", b"nonsense" * 10):
        file.write_bytes(content)
        with pytest.raises(ArtifactError, match=f"{file} is no checkpoint that can be read"):
            run(digits, keywords={"checkpoint": file}, threats=(LINF,))


def test_a_failing_write_leaves_the_old_file(digits, tmp_path, monkeypatch):
    file = tmp_path / "c"
    stopped(digits, file, 1, monkeypatch, threats=(LINF,))
    before = file.read_bytes()
    monkeypatch.setattr(checkpoint.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        run(digits, keywords={"checkpoint": file, "checkpoint_seconds": 0.0}, threats=(LINF,))
    assert file.read_bytes() == before


def test_a_diverged_state_is_not_written(digits, tmp_path):
    file = tmp_path / "c"
    with pytest.raises(TrainingDiverged):
        run(digits, objective="standard", learning_rate=1e30, epochs=5,
            keywords={"checkpoint": file, "checkpoint_seconds": 0.0})
    assert all(value.isfinite().all() for name, value in load_file(file).items() if name.startswith("best/"))
