"""What the process asks of the system that it computes on."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, types, redoubt, torch
from benchmarks.training.floor import parts
from redoubt.compute import keep_memory
torch.set_num_threads(1)
assert not {keep} or keep_memory()
step = parts("compact-cnn", 2, types.SimpleNamespace(seed=0))["step"]
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_a_training_step_that_keeps_its_memory_fetches_next_to_none():
    fetched = [int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], check=True, capture_output=True,
                                  text=True).stdout) for keep in (False, True)]
    assert fetched[1] < 2000
    if fetched[0] < 2000:
        pytest.skip(f"only {fetched[0]} pages were fetched without the setting: nothing to show here")
    assert fetched[1] < fetched[0]
