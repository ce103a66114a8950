"""What the process asks of the system that it computes on."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from redoubt.compute import keep_memory
keep_memory() if {keep} else None
def work():
    return [torch.ones(2**20) for _ in range(8)]   # 4 MiB each
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_kept_memory_does_not_have_to_be_fetched_again():
    fetched = [int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], check=True, capture_output=True,
                                  text=True).stdout) for keep in (False, True)]
    assert fetched[1] < fetched[0] / 10
