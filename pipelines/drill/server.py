"""The serving process of a drill: started, awaited, stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from pipelines.traffic import Served
from redoubt.errors import RedoubtError

START_SECONDS = 90


def free_port() -> int:
    """A port that is free on loopback now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`python -m serving` on a free port of loopback, as a context manager; `client` speaks to it."""

    def __init__(self, home: Path, model_name: str, tracking_uri: str, **settings):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / "serving.log"
        self._environment = os.environ | {
            "REDOUBT_HOME": str(home), "REDOUBT_MODEL_NAME": model_name, "REDOUBT_TRACKING_URI": tracking_uri,
            "REDOUBT_HOST": "127.0.0.1", "REDOUBT_PORT": str(self.port), "REDOUBT_POLL_SECONDS": "1",
        } | {f"REDOUBT_{key.upper()}": str(value) for key, value in settings.items()}
        self.client = Served(self.url, model_name)

    def __enter__(self) -> Server:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "serving"], env=self._environment, stdout=log,
                                            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                            start_new_session=True)   # Ctrl-C is for the drill, which stops it
        deadline = time.monotonic() + START_SECONDS
        while not self.client.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                lines = self.log.read_text(errors="replace").splitlines()
                raise RedoubtError(f"the server did not become ready: {(lines or ['it wrote nothing'])[-1][:300]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_) -> None:
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
