"""The home folder: made when missing, and held by one server at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import BinaryIO

from serving.problems import HomeUnusable

LOCK = "serving.lock"


def take_home(home: Path) -> BinaryIO:
    """Make `home` and hold it: nobody else can take it until the returned file is closed or the process has ended.

    Children do not inherit the file, so a retraining run that outlives its server does not keep the home.

    Raises:
        HomeUnusable: when it is no folder, cannot be written, or another server holds it.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / LOCK).open("ab")
    except OSError as error:
        raise HomeUnusable(f"the home folder {home} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise HomeUnusable(f"the home folder {home} is in use by another server: stop it or choose another") from None
    except OSError as error:
        lock.close()
        raise HomeUnusable(f"the home folder {home} cannot be locked: {error.strerror}") from None
    return lock
