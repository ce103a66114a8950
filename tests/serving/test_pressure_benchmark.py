"""The benchmarks of overload, soak and faults: what they order really happens."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.serving import faulty
from benchmarks.serving.faults import _full_disk
from benchmarks.serving.load import Outcome
from benchmarks.serving.pressure import _each, _never_twice
from benchmarks.serving.servers import Running
from redoubt.errors import RegistryError

WRITER = """
import sys
for line in sys.stdin:
    try:
        with open(sys.argv[1], "a") as file:
            file.write(line)
        print("written", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""


def test_a_full_disk_is_one_for_every_write_until_it_is_lifted(tmp_path):
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "file")], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as writer:
        def write() -> str:
            writer.stdin.write("a line\n")
            writer.stdin.flush()
            return writer.stdout.readline().strip()

        inject, lift = _full_disk(writer.pid)
        assert write() == "written"
        inject()
        assert write() == write() == "File too large"
        lift()
        assert write() == "written"
        writer.stdin.close()


def test_a_registry_to_order_fails_while_its_file_lies_there(tmp_path):
    registry = faulty.FaultyRegistry(f"sqlite:///{tmp_path / 'mlflow.db'}", "bench")
    registry.faults = tmp_path
    (tmp_path / "registry").touch()
    with pytest.raises(RegistryError, match="to order"):
        registry.champion()


def test_the_soak_sends_no_picture_twice():
    running = Running("localhost", 1, 1)
    x = (np.random.default_rng(0).integers(0, 17, (5, 1, 8, 8)) / np.float32(16)).astype(np.float32)
    pictures = []
    for number in (0, 1):
        for request in _never_twice(running, x, False, number, 20):
            data = json.loads(request.split(b"\r\n\r\n", 1)[1])["inputs"][0]["data"]
            pictures += [part.tobytes() for part in np.array(data, np.float32).reshape(-1, 64)]
    assert len(set(pictures)) == len(pictures) == 2 * 20 * 12


def test_what_an_answer_costs_leaves_out_the_warm_up():
    outcome = Outcome(ok=[(1.0, 0.1)] * 90, seconds=9.0)   # of 10 s, one did not count: 100 answers in all
    assert _each(2.0, outcome, 10.0) == pytest.approx(20.0)
    assert np.isnan(_each(2.0, SimpleNamespace(ok=[], seconds=1.0), 10.0))
