"""The train step on two gloo processes, started by torchrun: one bundle, one error, and nobody left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from components.train import step, together
from redoubt.errors import InvalidInput, RedoubtError, TrainingDiverged

ROOT = Path(__file__).parents[2]
SMALL = {"objective": "pgd", "epochs": 2, "steps": 1, "precision": "float32"}


def test_two_processes_make_one_processs_bundle(digits, tmp_path, monkeypatch):
    rows = []
    monkeypatch.setattr(step, "SAY_SECONDS", 3600.0)   # on a slow day an epoch has lines of its own
    two = step.run(digits.folder, tmp_path / "two", processes=2, progress=rows.append, **SMALL)
    one = step.run(digits.folder, tmp_path / "one", **SMALL)
    assert [row["epoch"] for row in rows] == [1, 2], "the first of them alone reports"
    assert rows == two.manifest["training"]["history"]
    assert (two.manifest["training"]["processes"], one.manifest["training"]["processes"]) == (2, 1)
    losses = [[row["loss"] for row in bundle.manifest["training"]["history"]] for bundle in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    weights = one.model().state_dict()
    for name, value in two.model().state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=5e-3, rtol=5e-3)


def test_their_error_is_the_steps_own(digits, tmp_path):
    with pytest.raises(InvalidInput, match="plug-in crop must be a whole number"):
        step.run(digits.folder, tmp_path / "m", processes=2, plugins='{"crop": -1}', **SMALL)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("found, kind, message", [
    ([{"rank": 1, "at": 2.0, "type": "InvalidInput", "message": "second", "lost": False, "rows": []},
      {"rank": 0, "at": 1.0, "type": "TrainingDiverged", "message": "first", "lost": False, "rows": [4]}],
     TrainingDiverged, "^first$"),
    ([{"rank": 0, "at": 1.0, "type": "RuntimeError", "message": "gloo: closed", "lost": True, "rows": []},
      {"rank": 1, "at": 2.0, "type": "ValueError", "message": "why", "lost": False, "rows": []}],
     RedoubtError, "process 1 of 2 failed: ValueError: why"),
    ([{"rank": 0, "at": 1.0, "type": "RuntimeError", "message": "gloo: closed", "lost": True, "rows": []}],
     RedoubtError, "process 1 of 2 ended without a word"),
    ([], RedoubtError, "process 0, 1 of 2 ended"),
], ids=["first", "not the one that waited", "killed", "all killed"])
def test_the_error_that_came_first_is_told(tmp_path, found, kind, message):
    for error in found:
        (tmp_path / f"error.{error['rank']}.json").write_text(json.dumps(error))
    with pytest.raises(kind, match=message) as caught:
        raise together._cause(tmp_path, 2, 1)
    if kind is TrainingDiverged:
        assert caught.value.rows == [4]


def children_of(folder):
    """Processes whose command line names the folder that the processes share: torchrun and what it started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line:
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nobody_outlives_the_step(digits, tmp_path, how):
    code = ("import sys; from pathlib import Path; from components.train import step; "
            "step.run(Path(sys.argv[1]), Path(sys.argv[2]), epochs=19, steps=200, processes=2, "
            "progress=lambda row: print('row', flush=True))")
    child = subprocess.Popen([sys.executable, "-c", code, str(digits.folder), str(tmp_path / "m")], cwd=ROOT,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                             env=os.environ | {"TMPDIR": str(tmp_path)})
    assert child.stdout.readline() == "row\n"
    shared = next(tmp_path.glob("redoubt-together-*"))
    assert len(children_of(shared)) == 3
    child.send_signal(how)
    assert child.wait(60) == (143 if how == signal.SIGTERM else -9)
    deadline = time.monotonic() + 60
    while children_of(shared) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert children_of(shared) == []
    child.stdout.close()


def test_how_many(monkeypatch):
    assert (together.count(0), together.count(3)) == (max(1, torch.cuda.device_count()), 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (together.count(0), together.count(1)) == (2, 1)
    with pytest.raises(InvalidInput, match="between 0 and 2 here, not 4"):
        together.count(4)
