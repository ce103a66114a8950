"""Logging: lines for people, or one JSON object a line; secrets stay out of both."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")
_SECRETS = re.compile(r"rdb_[0-9a-f]+_[\w-]+|(?i:bearer)\s+[\w.~+/-]+=*|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


def redact(text: str) -> str:
    """`text` without keys, tokens and passwords in addresses."""
    return _SECRETS.sub("***", text)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        row = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(), "logger": record.name, "message": redact(record.getMessage()),
        }
        if request_id.get():
            row["request_id"] = request_id.get()
        row |= getattr(record, "fields", {})
        if record.exc_info:
            row["error"] = redact(self.formatException(record.exc_info))
        return json.dumps(row, default=str)


class _Stderr(logging.StreamHandler):
    """Whatever stderr is when something is logged."""

    @property
    def stream(self):
        return sys.stderr

    @stream.setter
    def stream(self, _) -> None:
        pass


def set_up(kind: str) -> None:
    """Log to stderr, as `text` or `json`; a second call replaces what the first set up."""
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _Stderr)]:
        root.removeHandler(old)
    handler = _Stderr()
    handler.setFormatter(_Json() if kind == "json" else _Text("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)   # it would log the webhook's address
