"""The step that a run on a cluster ends with when the gate refused its version: who follows it sees steps, not results.

kfp's local runner leaves it out, for it reads no condition on one of several outputs; there the run's result says it.
"""

from __future__ import annotations


def run(*, model_name: str, version: int, reason: str) -> str:
    """Say what was refused and why, in one line."""
    line = f"the gate refused version {version} of {model_name}, its champion stays: {reason}"
    print(line, flush=True)
    return line
