"""Helpers that the serving tests import by name."""

from __future__ import annotations

import time
from pathlib import Path

CHILD = Path(__file__).with_name("child.py")


def wait_until(condition, seconds: float = 10.0, what: str = "the condition"):
    """Poll until `condition()` is true and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.02)
    return value
