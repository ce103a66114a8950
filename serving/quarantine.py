"""Flagged inputs on disk for people to look at: bounded by number, bytes and age. Nothing here is ever trained on."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

log = logging.getLogger("redoubt.serving")
_WAITING = 256      # inputs that wait to be written; beyond, they are dropped and counted
_ID = re.compile(r"^\d{13}-\d{6}$")


class Quarantine:
    """A ring of files: `<id>.npy` holds the pixels [C, H, W] as uint8, `<id>.json` what is known of them.

    Written by a thread of its own, so that a slow disk costs no request.

    Args:
        folder: made when missing, for its owner's eyes alone.
        count: called with `kept` or `dropped`.
        fault: called with what is wrong with the disk, or None once it works again.
    """

    def __init__(
        self, folder: Path, *, most: int, most_bytes: int, seconds: float, count: Callable[[str], None],
        fault: Callable[[str | None], None], clock=time.time,
    ):
        self._folder, self._most, self._most_bytes, self._seconds = folder, most, most_bytes, seconds
        self._count, self._fault, self._clock = count, fault, clock
        self._ready, self._stopping, self._serial = threading.Condition(), False, 0
        self._waiting: deque[tuple[np.ndarray, dict]] = deque()
        self._kept: deque[tuple[str, int]] = deque()   # id, bytes; oldest first
        self._bytes = 0
        self._thread = threading.Thread(target=self._loop, name="quarantine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Write what waits and end."""
        with self._ready:
            self._stopping = True
            self._ready.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def put(self, pixels: np.ndarray, **facts) -> None:
        """Keep one input, float [C, H, W] in [0, 1], with JSON values about it; never blocks."""
        with self._ready:
            if len(self._waiting) >= _WAITING:
                self._count("dropped")
                return
            image = np.rint(pixels * 255).astype(np.uint8)
            self._waiting.append((image, {"at": self._clock(), **facts}))
            self._ready.notify()

    def entries(self, limit: int = 100) -> list[dict]:
        """What is known of the newest, newest first."""
        with self._ready:
            newest = [identity for identity, _ in list(self._kept)[-limit:]]
        found = []
        for identity in reversed(newest):
            try:
                found.append({"id": identity} | json.loads((self._folder / f"{identity}.json").read_text()))
            except (OSError, ValueError):
                continue   # it has just gone
        return found

    def pixels(self, identity: str) -> np.ndarray | None:
        """One input's pixels, uint8 [C, H, W]; None when there is no such one."""
        if not _ID.match(identity):
            return None
        try:
            return np.load(self._folder / f"{identity}.npy", allow_pickle=False)
        except (OSError, ValueError):
            return None

    def png(self, identity: str) -> bytes | None:
        """One input as a PNG; None when there is no such one."""
        pixels = self.pixels(identity)
        if pixels is None:
            return None
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        out = BytesIO()
        image.save(out, "PNG")
        return out.getvalue()

    def _loop(self) -> None:
        try:
            self._take_stock()
        except OSError as error:
            self._fault(str(error))
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._waiting or self._stopping, timeout=30)
                if self._stopping and not self._waiting:
                    return
                item = self._waiting.popleft() if self._waiting else None
            try:
                if item is not None:
                    self._write(*item)
                    self._count("kept")
                    self._fault(None)
                self._trim()
            except OSError as error:
                self._count("dropped")
                self._fault(str(error))

    def _take_stock(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in sorted(self._folder.glob("*.npy")):
            if _ID.match(file.stem):
                self._kept.append((file.stem, _size(self._folder, file.stem)))
        self._bytes = sum(size for _, size in self._kept)

    def _write(self, image: np.ndarray, facts: dict) -> None:
        self._serial = (self._serial + 1) % 1_000_000
        identity = f"{int(facts['at'] * 1000):013}-{self._serial:06}"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            (self._folder / f"{identity}.json").write_text(json.dumps(facts))
            with os.fdopen(os.open(self._folder / f"{identity}.npy", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as out:
                np.save(out, image, allow_pickle=False)
        except OSError:
            _remove(self._folder, identity)   # half of one is none
            raise
        size = _size(self._folder, identity)
        with self._ready:
            self._kept.append((identity, size))
        self._bytes += size

    def _trim(self) -> None:
        oldest = int((self._clock() - self._seconds) * 1000)
        while self._kept and (
            len(self._kept) > self._most or self._bytes > self._most_bytes or int(self._kept[0][0][:13]) < oldest
        ):
            with self._ready:
                identity, size = self._kept.popleft()
            self._bytes -= size
            _remove(self._folder, identity)


def _size(folder: Path, identity: str) -> int:
    files = (folder / f"{identity}.npy", folder / f"{identity}.json")
    return sum(file.stat().st_size for file in files if file.exists())


def _remove(folder: Path, identity: str) -> None:
    for ending in ("npy", "json"):
        (folder / f"{identity}.{ending}").unlink(missing_ok=True)
