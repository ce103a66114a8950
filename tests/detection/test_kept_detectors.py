"""The detection benchmark keeps a detector only as long as the code is the same that fitted it."""

from __future__ import annotations

import inspect

from benchmarks.cells import ROOT
from benchmarks.detection import CODE
from redoubt.detection import rehearsal


def test_attacks_that_are_rehearsed_count_as_code_that_fits():
    used = [value for value in vars(rehearsal).values() if getattr(value, "__module__", "").startswith("redoubt.")]
    files = {inspect.getfile(inspect.unwrap(value)) for value in [*used, rehearsal.masked, rehearsal.shaped]}
    files = {str(file).removeprefix(f"{ROOT}/") for file in files}
    files -= {"redoubt/training/loop.py", "redoubt/compute.py"}   # bfloat16, threads
    assert {"redoubt/attacks/gradient.py", "redoubt/attacks/shaped.py", "redoubt/threat.py"} < files
    assert all(file.startswith(CODE) for file in files), files
