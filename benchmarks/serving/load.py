"""The load generator, a process of its own: `python -m benchmarks.serving.load < SPEC`, results as JSON on stdout.

Closed loop: every connection asks again as soon as it is answered. Open loop: requests leave on a timetable, whatever
the server does, and their latency counts from when they were due, so that a server that stalls cannot hide it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(kw_only=True)
class Load:
    """What to send.

    Attributes:
        requests: whole HTTP requests, sent in turn.
        connections: at most at a time.
        seconds: how long.
        rate: requests a second on a timetable; None for a closed loop.
        warm: seconds at the beginning that do not count.
        pause: seconds that a closed loop's connection waits after an answer other than 200.
    """

    host: str
    port: int
    requests: list[bytes]
    connections: int = 8
    seconds: float = 5.0
    rate: float | None = None
    warm: float = 0.5
    pause: float = 0.05


@dataclass
class Outcome:
    """What came back.

    Attributes:
        codes: answers by status; 0 for a connection that broke.
        ok: [at, seconds] of each 200, at seconds after the beginning.
        versions: answers by the model version that they name.
        late: requests that no connection was free for when they were due and were never sent.
        began_at: unix seconds of the beginning.
    """

    codes: dict[int, int] = field(default_factory=dict)
    ok: list[tuple[float, float]] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    late: int = 0
    seconds: float = 0.0
    began_at: float = 0.0

    @property
    def rate(self) -> float:
        """Answers with 200 a second."""
        return len(self.ok) / self.seconds

    def quantile(self, q: float, counts: Callable[[float], bool] = lambda at: True) -> float:
        """Latency in milliseconds, of the answers that came when it `counts`."""
        found = sorted(seconds for at, seconds in self.ok if counts(at))
        return found[min(len(found) - 1, int(q * len(found)))] * 1e3 if found else float("nan")

    @property
    def failed(self) -> int:
        """Everything that is neither 200 nor 429."""
        return sum(count for code, count in self.codes.items() if code not in (200, 429))


def start(load: Load) -> subprocess.Popen:
    """Begin sending in another process."""
    spec = asdict(load) | {"requests": [base64.b64encode(one).decode() for one in load.requests]}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving.load"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdin.write(json.dumps(spec).encode())
    process.stdin.close()
    process.stdin = None
    return process


def finish(process: subprocess.Popen) -> Outcome:
    """Wait for the end of what `start` began."""
    out, _ = process.communicate()
    found = json.loads(out)
    found["codes"] = {int(code): count for code, count in found["codes"].items()}
    return Outcome(**found)


def run(load: Load) -> Outcome:
    """Send, and wait for the end."""
    return finish(start(load))


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, sender: _Sender):
        self._sender, self._buffer, self._need = sender, b"", -1
        self.transport, self.due = None, 0.0

    def connection_made(self, transport) -> None:
        self.transport = transport

    def send(self, request: bytes, due: float) -> None:
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._need < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            self._need = end + 4 + (int(head[at + 15:].split(b"\r\n", 1)[0]) if at >= 0 else 0)
        if len(self._buffer) >= self._need:
            answer, self._buffer, self._need = self._buffer, b"", -1
            self._sender.answered(self, answer)

    def connection_lost(self, _) -> None:
        self._sender.broke(self)


class _Sender:
    def __init__(self, load: Load):
        self.load, self.outcome = load, Outcome()
        self.began, self.sent, self.open = 0.0, 0, 0
        self.idle: list[_Connection] = []
        self.busy: set[_Connection] = set()
        self.ended = False

    async def run(self) -> Outcome:
        load = self.load
        for _ in range(load.connections if load.rate is None else min(8, load.connections)):
            await self._connect()
        self.began, self.outcome.began_at = time.perf_counter(), time.time()
        if load.rate is None:
            for connection in list(self.idle):
                self._send(connection, time.perf_counter())
            await asyncio.sleep(load.seconds)
        else:
            await self._timetable()
        self.ended = True
        self.outcome.seconds = time.perf_counter() - self.began - load.warm
        until = time.perf_counter() + 10
        while self.busy and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        if self.busy:
            self.outcome.codes[0] = self.outcome.codes.get(0, 0) + len(self.busy)
        return self.outcome

    async def _timetable(self) -> None:
        step, number = 1 / self.load.rate, 0
        while (due := self.began + number * step) < self.began + self.load.seconds:
            now = time.perf_counter()
            if due > now:
                await asyncio.sleep(due - now)
            number += 1
            if not self.idle and self.open < self.load.connections:
                await self._connect()
            if self.idle:
                self._send(self.idle.pop(), due)
            else:
                self.outcome.late += 1
            if number % 32 == 0:
                await asyncio.sleep(0)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self), self.load.host, self.load.port)
        except OSError:
            self._count(0)
            await asyncio.sleep(0.05)
            return
        self.open += 1
        self.idle.append(connection)

    def _send(self, connection: _Connection, due: float) -> None:
        if connection in self.idle:
            self.idle.remove(connection)
        self.busy.add(connection)
        connection.send(self.load.requests[self.sent % len(self.load.requests)], due)
        self.sent += 1

    def _count(self, code: int) -> None:
        self.outcome.codes[code] = self.outcome.codes.get(code, 0) + 1

    def answered(self, connection: _Connection, answer: bytes) -> None:
        self.busy.discard(connection)
        now = time.perf_counter()
        code = int(answer[9:12])
        if now - self.began >= self.load.warm:
            self._count(code)
            if code == 200:
                self.outcome.ok.append((now - self.began, now - connection.due))
                at = answer.find(b'"model_version":"')
                version = answer[at + 17:answer.find(b'"', at + 17)].decode() if at >= 0 else ""
                self.outcome.versions[version] = self.outcome.versions.get(version, 0) + 1
        if self.ended:
            return
        if self.load.rate is None and (code == 200 or not self.load.pause):
            self._send(connection, now)
        elif self.load.rate is None:   # a client that is told to wait does not ask again at once
            asyncio.get_running_loop().call_later(self.load.pause, self._again, connection)
        else:
            self.idle.append(connection)

    def _again(self, connection: _Connection) -> None:
        if not self.ended and not connection.transport.is_closing():
            self._send(connection, time.perf_counter())

    def broke(self, connection: _Connection) -> None:
        self.open -= 1
        if connection in self.idle:
            self.idle.remove(connection)
        if connection in self.busy:
            self.busy.discard(connection)
            self._count(0)
        if not self.ended and self.load.rate is None:
            asyncio.get_running_loop().create_task(self._replace())

    async def _replace(self) -> None:
        await self._connect()
        if self.idle and not self.ended:
            self._send(self.idle[-1], time.perf_counter())


def main() -> None:
    spec = json.loads(sys.stdin.read())
    spec["requests"] = [base64.b64decode(one) for one in spec["requests"]]
    try:
        import uvloop

        outcome = uvloop.run(_Sender(Load(**spec)).run())
    except ImportError:
        outcome = asyncio.run(_Sender(Load(**spec)).run())
    # Through a buffer of its own: with PYTHONUNBUFFERED a write to a full pipe may end halfway, and print is content.
    with open(sys.stdout.fileno(), "w", closefd=False) as out:
        json.dump(asdict(outcome), out)


if __name__ == "__main__":
    main()
