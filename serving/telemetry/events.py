"""CloudEvents of what matters: found by comparing the ledger with what it said before, so nothing else has to tell."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
from pydantic import SecretStr

log = logging.getLogger("redoubt.serving")
_ATTEMPTS, _FIRST_WAIT, _LONGEST_WAIT = 8, 1.0, 60.0


class Differences:
    """Turns two looks at campaigns, retraining requests and swaps into events. For one thread at a time.

    The first look only remembers: what happened before this start was told by the server before.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple] | None = None

    def look(self, campaigns: list[dict], retrains: list[dict], swaps: list[dict]) -> list[tuple[str, dict]]:
        """Events since the last look, as (type, data)."""
        now = {f"campaign {row['id']}": (row["state"], row) for row in campaigns}
        now |= {f"retrain {row['id']}": (row["state"], row) for row in retrains}
        now |= {f"swap {row['at']}": ("done", row) for row in swaps}
        before, self._seen = self._seen, {name: state for name, (state, _) in now.items()}
        if before is None:
            return []
        events = []
        for name, (state, row) in reversed(now.items()):   # lists come newest first
            if before.get(name) == state:
                continue
            kind = name.split()[0]
            if kind == "campaign":
                if name not in before:
                    events.append(("alarm", row))
                if state == "closed":
                    events.append(("campaign.closed", row))
            elif kind == "retrain":
                events.append((f"retrain.{state}", row))
            else:
                events.append(("champion", row))
        return events


class Webhook:
    """Posts events to one address, in order, from a thread of its own.

    An event that is not taken is tried again with growing pauses, then given up; beyond `capacity` that wait, the
    oldest is dropped. Both are counted. The body is signed: `X-Redoubt-Signature: t=<unix seconds>,v1=<hex>`, where v1
    is the HMAC-SHA256 of `<t>.<body>` under the secret.

    Args:
        count: called with `delivered`, `dropped` or `failed`.
    """

    def __init__(
        self, url: str, secret: SecretStr, *, source: str, capacity: int, count: Callable[[str], None],
        first_wait: float = _FIRST_WAIT,
    ):
        self._url, self._secret, self._source, self._count = url, secret, source, count
        self._capacity, self._first_wait = capacity, first_wait
        self._queue: deque[dict] = deque()
        self._ready, self._stop = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="webhook", daemon=True)
        self.fault: str | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Try once more what waits, for a moment, and end."""
        self._stop.set()
        with self._ready:
            self._ready.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=3)

    def send(self, kind: str, data: dict) -> None:
        """Queue one event."""
        event = {
            "specversion": "1.0", "id": secrets.token_hex(12), "source": self._source, "type": f"redoubt.{kind}",
            "time": datetime.now(UTC).isoformat(), "datacontenttype": "application/json", "data": data,
        }
        with self._ready:
            if len(self._queue) >= self._capacity:
                self._queue.popleft()
                self._count("dropped")
            self._queue.append(event)
            self._ready.notify()

    def _loop(self) -> None:
        with httpx.Client(timeout=10, follow_redirects=False) as client:
            while True:
                with self._ready:
                    self._ready.wait_for(lambda: self._queue or self._stop.is_set())
                    if not self._queue:
                        return
                    event = self._queue.popleft()
                self._count("delivered" if self._deliver(client, event) else "failed")

    def _deliver(self, client: httpx.Client, event: dict) -> bool:
        body, wait = json.dumps(event, default=str).encode(), self._first_wait
        for attempt in range(_ATTEMPTS):
            try:
                answer = client.post(self._url, content=body, headers=self._headers(body))
                if answer.is_success:
                    self.fault = None
                    return True
                self.fault = f"the webhook answers {answer.status_code}"
                if answer.status_code < 500 and answer.status_code not in (408, 425, 429):
                    break   # it will not like it better another time
            except httpx.HTTPError as error:
                self.fault = f"the webhook cannot be reached: {type(error).__name__}"
            if attempt == _ATTEMPTS - 1 or self._stop.wait(wait):
                break
            wait = min(2 * wait, _LONGEST_WAIT)
        log.warning("event %s was given up: %s", event["type"], self.fault)
        return False

    def _headers(self, body: bytes) -> dict[str, str]:
        headers = {"content-type": "application/cloudevents+json"}
        secret = self._secret.get_secret_value()
        if secret:
            stamp = str(int(time.time()))
            signed = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
            headers["x-redoubt-signature"] = f"t={stamp},v1={signed}"
        return headers
