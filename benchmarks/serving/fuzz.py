"""Requests that nobody should send: schemathesis over the OpenAPI document, and mutated bodies and pictures."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from random import Random

import httpx
import numpy as np
from PIL import Image

from benchmarks.common import Report, table
from benchmarks.serving import servers

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
_WORDS = (b"null", b"true", b"[]", b"{}", b"-1", b"1e999", b"NaN", b'"\\ud800"', b"9" * 400, b"[" * 200, b"\x00",
          b"\xff")


def mutate(body: bytes, random: Random) -> bytes:
    """A body with some of its bytes changed, cut, doubled, or replaced by what parsers stumble over."""
    for _ in range(random.choice((1, 1, 2, 5))):
        at, kind = random.randrange(len(body) + 1), random.randrange(5)
        if kind == 0 and body:
            at = min(at, len(body) - 1)
            body = body[:at] + bytes([random.randrange(256)]) + body[at + 1:]
        elif kind == 1:
            body = body[:at]
        elif kind == 2:
            body = body[:at] + body[max(0, at - random.randrange(60)):]
        elif kind == 3:
            body = body[:at] + random.choice(_WORDS) + body[at:]
        else:
            body = body[:at] + body[at + random.randrange(20):]
    return body


def _seeds(running: servers.Running) -> list[tuple[str, str, bytes]]:
    """Path, further headers and body of requests that are in order."""
    x = np.full((1, 1, 28, 28), 0.5, np.float32)
    tensor = {"name": "input", "shape": [1, 1, 28, 28], "datatype": "FP32"}
    text = json.dumps({"id": "a", "inputs": [tensor | {"data": [0.5] * 784}], "outputs": [{"name": "label"}]}).encode()
    nested = json.dumps({"inputs": [tensor | {"data": x.tolist()}]}).encode()
    header = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": x.nbytes}}]}).encode()
    pictures = []
    for kind in ("PNG", "JPEG"):
        out = BytesIO()
        Image.new("L", (28, 28), 99).save(out, kind)
        pictures.append(out.getvalue())
    infer, image = running.path, running.path.replace("infer", "image")
    form = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n' + pictures[0] + b"\r\n--b--\r\n"
    label = json.dumps({"feedback": [{"request_id": "a", "labels": [1, None]}]}).encode()
    return [
        (infer, "", text), (infer, "", nested),
        (infer, f"Inference-Header-Content-Length: {len(header)}\r\n", header + x.tobytes()),
        (image, "", pictures[0]), (image, "", pictures[1]),
        (image, "Content-Type: multipart/form-data; boundary=b\r\n", form),
        (running.path.replace("infer", "feedback"), "Content-Type: application/json\r\n", label),
    ]


def _mutants(running: servers.Running, seed: int, count: int) -> list[bytes]:
    random, made, seeds = Random(seed), [], _seeds(running)
    for _ in range(count):
        path, headers, body = random.choice(seeds)
        body = mutate(body, random)
        if headers.startswith("Inference") and random.random() < 0.3:
            headers = f"Inference-Header-Content-Length: {random.choice((0, 1, len(body), 10**9, -1, 'x'))}\r\n"
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        made.append(head.encode() + body)
    return made


def fuzz(report: Report, work: Path) -> None:
    """No answer of 5xx, no hang, no growth."""
    total, part = (4_000 if report.given.quick else 100_000), 4_000
    folder = work / "fuzz"
    folder.mkdir()
    servers.random_version(folder / "v1", "compact-cnn", 1, 28, report.given.seed)
    servers.registry_of(folder, folder / "v1")
    with servers.redoubt(work / "fuzz-home", f"sqlite:///{folder / 'mlflow.db'}") as running:
        codes: dict[int, int] = {}
        memory, slowest = [], 0.0
        for number in range(0, total, part):
            requests = _mutants(running, report.given.seed + number, part)
            for start in range(0, part, 500):
                _drain(running, requests[start:start + 500], codes)
            memory.append(running.memory())
        slowest = max(slowest, httpx.get(running.url + "/v2/health/ready", timeout=5, trust_env=False).elapsed.seconds)
        schema = _schemathesis(report, running)
    early = memory[min(len(memory) - 1, len(memory) // 5)]
    growth = memory[-1] / early - 1
    bad = sum(count for code, count in codes.items() if code >= 500 or code == 0)
    rows = [["mutated bodies", sum(codes.values()), bad, json.dumps({str(k): codes[k] for k in sorted(codes)}),
             f"{growth:.1%}"], ["schemathesis", schema["cases"], schema["failures"], schema["says"], "-"]]
    header = ("what", "requests", "5xx, hung or broken", "answers", "memory growth")
    report.say(table(header, rows))
    report.figures["fuzz"] = {"columns": header, "rows": rows, "memory": memory}
    report.require(bad == 0, f"fuzz: {bad} of {sum(codes.values())} mutated bodies got a 5xx or no answer: {codes}")
    report.require(growth <= 0.03, f"fuzz: memory grew by {growth:.1%} after the first fifth")
    report.require(schema["failures"] == 0, f"fuzz: schemathesis found {schema['says']}")


def _drain(running: servers.Running, requests: list[bytes], codes: dict[int, int]) -> None:
    """Send each of `requests` once, over one connection after another."""
    stream, waiting = None, list(requests)
    while waiting:
        one = waiting.pop()
        for _ in range(2):   # a connection that the server closed after an earlier answer is no failure
            try:
                fresh = stream is None
                stream = stream or socket.create_connection((running.host, running.port), timeout=15)
                stream.sendall(one)
                code, closes = _read_answer(stream)
                break
            except (OSError, ValueError):
                if stream:
                    stream.close()
                stream, code, closes = None, 0, False
                if fresh:
                    break
        codes[code] = codes.get(code, 0) + 1
        if closes and stream:
            stream.close()
            stream = None
    if stream:
        stream.close()


def _read_answer(stream) -> tuple[int, bool]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = stream.recv(65536)
        if not more:
            raise OSError("closed")
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    lines = head.lower().split(b"\r\n")
    length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        more = stream.recv(65536)
        if not more:
            raise OSError("closed")
        body += more
    return int(head[9:12]), b"connection: close" in lines


def _schemathesis(report: Report, running: servers.Running) -> dict:
    examples = "5" if report.given.quick else "100"
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{running.url}/openapi.json", "--checks", CHECKS,
        "--max-examples", examples, "--exclude-path", "/live/events", "--seed", str(report.given.seed), "--no-color",
        "--request-timeout", "10",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    text = done.stdout
    last = next((line for line in reversed(text.splitlines()) if "generated" in line or "failure" in line), "")
    if done.returncode not in (0, 1):
        raise SystemExit(f"schemathesis ended with {done.returncode}: {(done.stderr or text)[-1500:]}")
    generated = next((line.split() for line in text.splitlines() if "generated" in line), [])
    cases = next((word for word in generated if word.isdigit()), 0)
    if done.returncode:
        report.say(text[-6000:])
    return {"cases": int(cases), "failures": done.returncode, "says": last.strip() or "no failure"}
