"""`python -m serving` as a process: the port, the signals, and a retraining run that a restart interrupts."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from serving_support import CHILD, wait_until

from redoubt.threat import ThreatModel
from serving.__main__ import main
from serving.home import take_home
from serving.ledger import SqliteLedger

ROOT = Path(__file__).resolve().parents[2]


def test_a_port_in_use_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REDOUBT_HOME", str(tmp_path / "home"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 2
    assert capsys.readouterr().err == f"serving: cannot listen on 127.0.0.1 port {port}: Address already in use\n"


@pytest.mark.parametrize("arguments", [["--port", "99999"], ["--poll-seconds", "-1"], ["--model-name", "a:b"]])
def test_a_bad_setting_is_said_in_one_line(arguments, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("serving: REDOUBT_")
    assert said.count("\n") == 1


def test_a_home_that_is_no_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "home"):
        assert main(["--port", "0", "--home", str(home)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"serving: the home folder {home} cannot be used: ")
        assert said.count("\n") == 1


def test_a_home_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):   # who runs as root may write everywhere
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        assert main(["--port", "0", "--home", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"serving: the home folder {tmp_path} cannot be used: Permission denied\n"


def test_a_ledger_that_is_no_database(tmp_path, capsys):
    (tmp_path / "ledger.db").write_text("anything else " * 100)
    for _ in range(2):   # the home is let go again
        assert main(["--port", "0", "--home", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert "cannot be opened: file is not a database" in said
        assert said.count("\n") == 1


def test_one_home_has_one_server_and_sigkill_lets_it_go(tmp_path, capsys, monkeypatch):
    home = tmp_path / "a home"
    runs = home / "runs.txt"
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)   # a second server would serve for ever
    ledger = SqliteLedger(home / "ledger.db")
    ledger.ask(ledger.open_campaign("digits", "1", inputs=10, flagged=70), ThreatModel("Linf", 0.1), cool_down=0,
               daily_budget=1)
    ledger.close()
    (home / "plan.txt").write_text("hang")
    with Process(home, f"sqlite:///{tmp_path}/mlflow.db") as first:
        # A run that goes on without its server must not hold the home.
        child = int(wait_until(lambda: runs.exists() and runs.read_text(), 30, "the run").split()[1])
        assert main(["--port", "0", "--home", str(home)]) == 2
        assert capsys.readouterr().err == (
            f"serving: the home folder {home} is in use by another server: stop it or choose another\n"
        )
        first.process.kill()
        first.process.wait()
        os.kill(child, 0)
        take_home(home).close()
        os.killpg(child, signal.SIGKILL)


class Process:
    """A serving process; `with` makes sure that it is gone at the end."""

    def __init__(self, home: Path, tracking_uri: str, **settings: str):
        environment = os.environ | {
            "REDOUBT_HOME": str(home), "REDOUBT_TRACKING_URI": tracking_uri, "REDOUBT_MODEL_NAME": "digits",
            "REDOUBT_POLL_SECONDS": "0.1", "REDOUBT_RETRAIN_COMMAND": f'["{sys.executable}", "{CHILD}"]',
        } | settings
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving", "--port", "0"], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        self.errors: list[str] = []
        threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True).start()
        line = self.process.stdout.readline()
        assert re.match(r"listening on https?://127\.0\.0\.1:", line), (line, self.errors)
        self.url = line.split()[-1]

    def get(self, path: str) -> httpx.Response | None:
        try:
            return httpx.get(self.url + path, timeout=10, trust_env=False, verify=False)
        except httpx.TransportError:
            return None

    def ready(self) -> bool:
        answer = self.get("/v2/health/ready")
        return answer is not None and answer.status_code == 200

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def test_a_full_server_still_answers_probes(tmp_path, mlflow_uri):
    """The kubelet would end it, and so whoever opens many connections would end one replica after the other."""
    with Process(tmp_path / "home", mlflow_uri, REDOUBT_MAX_CONNECTIONS="4") as process:
        assert process.get("/status").status_code == 200
        host, port = process.url.removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(6)]
        try:
            wait_until(lambda: process.get("/status").status_code == 503, 10, "a full server")
            crowded = process.get("/status")
            assert "too many connections" in crowded.json()["error"] and crowded.headers["connection"] == "close"
            assert process.get("/v2/health/live").status_code == 200
        finally:
            for one in idle:
                one.close()
        wait_until(lambda: process.get("/status").status_code == 200, 10, "room again")


def test_an_idle_connection_is_not_closed_under_the_next_request(tmp_path, mlflow_uri):
    """Balancers keep theirs for a minute; uvicorn by itself closes after five seconds."""
    with Process(tmp_path / "home", mlflow_uri) as process:
        idle = http.client.HTTPConnection(process.url.removeprefix("http://"), timeout=10)
        idle.request("GET", "/v2/health/live")
        idle.getresponse().read()
        first = idle.sock
        time.sleep(6)
        assert first.fileno() >= 0
        idle.request("GET", "/v2/health/live")
        assert idle.getresponse().status == 200
        assert idle.sock is first   # http.client opens another one without a word
        idle.close()
        assert process.end() == 0


def test_a_run_that_sigterm_interrupts_is_finished_once(tmp_path, mlflow_uri):
    home = tmp_path / "a home"
    ledger = SqliteLedger(home / "ledger.db")
    campaign = ledger.open_campaign("digits", "1", inputs=10, flagged=70)
    asked, _ = ledger.ask(campaign, ThreatModel("Linf", 0.1), cool_down=0, daily_budget=1)
    (home / "plan.txt").write_text("hang refused")

    def runs() -> list[str]:
        file = home / "runs.txt"
        return file.read_text().splitlines() if file.exists() else []

    with Process(home, mlflow_uri) as first:
        wait_until(runs, 30, "the first run")
        assert ledger.requests()[0].state == "running"
        assert first.end() == 0, first.errors
    assert not any("Traceback" in line for line in first.errors)
    child = int(runs()[0].split()[1])
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert [(r.id, r.state, r.attempts) for r in ledger.requests()] == [(asked.id, "pending", 0)]

    with Process(home, mlflow_uri) as second:
        wait_until(lambda: ledger.requests()[0].state == "refused", 30, "the second run")
        wait_until(second.ready, 30, "readiness")
        status = second.get("/status").json()
        assert status["retrains"][0]["reason"] == "by script for Linf 0.1"
        assert [(c["id"], c["outcome"]) for c in status["campaigns"]] == [(campaign.id, "unanswered")]
        with httpx.stream("GET", second.url + "/live/events", timeout=20, trust_env=False) as page:
            assert next(page.iter_lines()) == "event: history"
            began = time.monotonic()
            assert second.end() == 0
            assert time.monotonic() - began < 15   # uvicorn would have waited 20 s for an open page
    assert [line.split()[0] for line in runs()] == ["hang", "refused"]
    ledger.close()


def test_a_signal_while_it_starts_is_not_lost(tmp_path):
    with Process(tmp_path / "home", f"sqlite:///{tmp_path}/mlflow.db") as process:
        assert process.end() == 0, process.errors


def certificate(folder: Path) -> dict[str, str]:
    """Settings for a certificate that vouches for itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now - timedelta(days=1), now + timedelta(days=1)
    ).sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))
    return {"REDOUBT_TLS_CERT": str(folder / "cert.pem"), "REDOUBT_TLS_KEY": str(folder / "key.pem")}


def test_it_speaks_https_and_drains_before_it_ends(tmp_path):
    settings = certificate(tmp_path) | {"REDOUBT_DRAIN_SECONDS": "2", "REDOUBT_LOG_FORMAT": "json"}
    with Process(tmp_path / "home", f"sqlite:///{tmp_path}/mlflow.db", **settings) as process:
        assert process.url.startswith("https://")
        live = wait_until(lambda: process.get("/v2/health/live"), 30, "an answer")
        assert (live.status_code, live.headers["strict-transport-security"]) == (200, "max-age=31536000")
        assert "server" not in live.headers
        process.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "shutting down" in process.get("/v2/health/ready").text, what="the drain")
        assert process.get("/v2/health/live").status_code == 200   # it still answers
        assert process.process.wait(20) == 0
    assert all(json.loads(line)["message"] for line in process.errors)


def test_a_certificate_that_cannot_be_used_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "cert.pem").write_text("x")
    arguments = ["--port", "0", "--home", str(tmp_path / "home"), "--tls-cert", str(tmp_path / "cert.pem"),
                 "--tls-key", str(tmp_path / "cert.pem")]
    assert main(arguments) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be used" in said
    assert main(arguments[:-2]) == 2
    assert "go together" in capsys.readouterr().err


def test_several_models_drain_and_end_together(tmp_path, mlflow_uri):
    home = tmp_path / "a home"
    ledger = SqliteLedger(home / "digits" / "ledger.db")
    ledger.ask(ledger.open_campaign("digits", "1", inputs=10, flagged=70), ThreatModel("Linf", 0.1), cool_down=0,
               daily_budget=1)
    (home / "digits" / "plan.txt").write_text("hang")
    settings = {"REDOUBT_MODELS": '{"digits": {}, "letters": {"policy": "block"}}', "REDOUBT_DRAIN_SECONDS": "1"}
    with Process(home, mlflow_uri, **settings) as process:
        runs = home / "digits" / "runs.txt"
        child = int(wait_until(lambda: runs.exists() and runs.read_text(), 30, "the run").split()[1])
        wait_until(lambda: process.get("/v2/models/digits/ready").status_code == 200, 30, "the model")
        wait_until(lambda: "letters (" in process.get("/v2/health/ready").text, what="the one that has no version")
        assert process.get("/models/letters/status").json()["policy"] == "block"
        with httpx.stream("GET", process.url + "/models/digits/live/events", timeout=20, trust_env=False) as page:
            assert next(page.iter_lines()) == "event: history"
            began = time.monotonic()
            process.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "digits (the server is shutting down)" in process.get("/v2/health/ready").text,
                       what="the drain")
            assert process.process.wait(20) == 0
            assert time.monotonic() - began < 15
    assert not any("Traceback" in line for line in process.errors)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert [request.state for request in ledger.requests()] == ["pending"]
    ledger.close()
