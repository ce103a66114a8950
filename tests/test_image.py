"""What the Dockerfile says of a container's surroundings."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

DOCKERFILE = (Path(__file__).parents[1] / "Dockerfile").read_text()


def test_a_pod_that_asks_for_no_gpu_sees_none():
    """NVIDIA's runtime goes by this variable, and the device plugin sets it only for those who ask."""
    instructions = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    assert "NVIDIA_VISIBLE_DEVICES" not in instructions


@pytest.mark.parametrize("status", [200, 500])
def test_the_health_check_asks_the_server_itself(status):
    """Also where docker hands every container a proxy."""
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    command = json.loads(re.search(r"^HEALTHCHECK .*? CMD (\[.*)$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)[1])
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run([sys.executable, *command[1:]], capture_output=True, timeout=30, env={
            "PATH": os.environ["PATH"], "REDOUBT_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:9"})
        server.shutdown()
    assert asked == ["/v2/health/live"], done.stderr
    assert (done.returncode == 0) == (status == 200)
