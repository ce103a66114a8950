"""What operators did: one line of JSON each, appended and synced, in HOME/audit.jsonl."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

log = logging.getLogger("redoubt.serving")
_LARGEST = 16 * 2**20   # bytes, after which the file is set aside once
_WAITING = 1000         # entries that wait to be written


class Audit:
    """The audit log. Safe to use from every thread; a thread of its own writes, so that a slow disk holds up nobody."""

    def __init__(self, file: Path):
        self.file = file
        self._writer = ThreadPoolExecutor(1, "audit")
        self._waiting = threading.Semaphore(_WAITING)

    def record(self, action: str, *, principal: str, address: str, request_id: str, status: int, **details) -> None:
        """Write down one action. It goes to the log in any case, also where the disk fails or cannot keep up."""
        row = {
            "at": time.time(), "action": action, "principal": principal, "address": address,
            "request_id": request_id, "status": status, **details,
        }
        log.info("audit: %s by %s from %s: %d", action, principal, address, status)
        if self._waiting.acquire(blocking=False):
            self._writer.submit(self._write, row)
        else:
            log.error("the audit log cannot keep up: %s", row)

    def _write(self, row: dict) -> None:
        try:
            if self.file.exists() and self.file.stat().st_size > _LARGEST:
                self.file.replace(self.file.with_suffix(".old.jsonl"))
            with self.file.open("a") as out:
                out.write(json.dumps(row, default=str) + "\n")
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            log.error("the audit log cannot be written: %s", error)
        finally:
            self._waiting.release()

    def stop(self) -> None:
        """Write what waits."""
        self._writer.shutdown(wait=True)

    def tail(self, limit: int = 100) -> list[dict]:
        """The newest entries, newest first."""
        with contextlib.suppress(RuntimeError):   # it has stopped, and everything is written
            self._writer.submit(lambda: None).result(timeout=5)
        try:
            with self.file.open("rb") as source:
                source.seek(max(0, source.seek(0, os.SEEK_END) - 512 * limit - 4096))
                lines = source.read().splitlines()[-limit:]
        except OSError:
            return []
        rows = []
        for line in reversed(lines):
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue   # the first one may be cut
        return rows
