"""A headless Chromium, driven over its DevTools protocol: open a page, wait for something on it, take its picture."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path

import httpx
from websocket import create_connection

CHROMIUM = shutil.which("chromium")
_QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
          "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
          "--remote-allow-origins=*")


class Browser:
    """One page. Use as a context manager.

    Args:
        profile: an empty folder.
        size: width and height in pixels.
        dark: prefer the dark colours.
    """

    def __init__(self, profile: Path, *, size: tuple[int, int] = (1200, 900), dark: bool = False):
        self._process = subprocess.Popen(
            [CHROMIUM, *_QUIET, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = self._port(profile / "DevToolsActivePort")
        with httpx.Client(trust_env=False) as client:
            pages = client.get(f"http://127.0.0.1:{port}/json").json()
        page = next(page for page in pages if page["type"] == "page")
        self._socket = create_connection(page["webSocketDebuggerUrl"], timeout=60, http_no_proxy=["127.0.0.1"])
        self._number, self.faults = 0, []
        self.call("Runtime.enable")
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme",
                                                           "value": "dark" if dark else "light"}])

    @staticmethod
    def _port(file: Path) -> str:
        deadline = time.monotonic() + 30
        while not (file.exists() and file.read_text().count("\n")):
            assert time.monotonic() < deadline, "chromium did not start"
            time.sleep(0.05)
        return file.read_text().splitlines()[0]

    def call(self, method: str, **params) -> dict:
        """One DevTools command; what the page throws meanwhile is kept in `faults`."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("method") == "Runtime.exceptionThrown":
                self.faults.append(message["params"]["exceptionDetails"])
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def open(self, url: str) -> None:
        """Go there and wait until the page stands; its feed may still be on the way."""
        self.call("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def value(self, expression: str):
        """What a JavaScript expression gives, promises awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 20.0):
        """Poll until the expression is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.value(expression)):
            assert time.monotonic() < deadline, f"{expression} did not become true; the page threw {self.faults}"
            time.sleep(0.1)
        return value

    def picture(self, file: Path, *, whole: bool = True) -> None:
        """Write a PNG of the page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=20)
