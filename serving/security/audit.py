"""What operators did: one line of JSON each, appended and synced, in HOME/audit.jsonl."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path

log = logging.getLogger("redoubt.serving")
_LARGEST = 16 * 2**20   # bytes, after which the file is set aside once


class Audit:
    """The audit log. Safe to use from every thread."""

    def __init__(self, file: Path):
        self.file = file
        self._lock = threading.Lock()

    def record(self, action: str, *, principal: str, address: str, request_id: str, status: int, **details) -> None:
        """Write down one action. A disk that fails is logged; the line goes to the log in any case."""
        row = {
            "at": time.time(), "action": action, "principal": principal, "address": address,
            "request_id": request_id, "status": status, **details,
        }
        log.info("audit: %s by %s from %s: %d", action, principal, address, status)
        with self._lock:
            try:
                if self.file.exists() and self.file.stat().st_size > _LARGEST:
                    self.file.replace(self.file.with_suffix(".old.jsonl"))
                with self.file.open("a") as out:
                    out.write(json.dumps(row) + "\n")
                    out.flush()
                    os.fsync(out.fileno())
            except OSError as error:
                log.error("the audit log cannot be written: %s", error)

    def tail(self, limit: int = 100) -> list[dict]:
        """The newest entries, newest first."""
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
