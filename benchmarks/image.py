"""The two images: how large they are and what that is made of; every step inside one, serving inside the other.

    python -m benchmarks.image --engine podman --steps redoubt/steps:cpu --serving redoubt/serving:cpu

Containers run as user 10001 without capabilities, on a read-only root file system with one writable folder; the
pipeline has no network at all. Serving is then started against an MLflow (from the image `steps`) that holds the
version trained there. Targets: serving without CUDA at most 1.2 GB beyond its base; start to ready in 15 s. `--quick`
is sizes only. Without an engine or an image nothing is measured, and the output says so.
"""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import Report, arguments, table
from components.train.trainjob import TORCHRUN

BEYOND_BASE, READY = 1.2e9, 15.0
HOME = "/var/lib/redoubt"
CONFINED = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "10001:10001"]
COUNT = r"""
import os, json
def size(path):
    return sum(os.lstat(os.path.join(at, name)).st_blocks * 512 for at, _, names in os.walk(path) for name in names)
parts = {}
for folder in ("/opt/torch", "/opt/project", *(
        at for at, _, _ in os.walk("/opt/redoubt/lib") if at.endswith("site-packages"))):
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        own = size(path) if os.path.isdir(path) else os.lstat(path).st_blocks * 512
        key = name.split("-")[0].split(".")[0] if folder != "/opt/project" else "redoubt"
        parts[key] = parts.get(key, 0) + own
print(json.dumps(parts))
"""


class Engine:
    """docker or podman, given as a command with its options."""

    def __init__(self, command: str):
        self.command = shlex.split(command)

    def __call__(self, *words: str, timeout: float = 600) -> str:
        done = subprocess.run([*self.command, *words], capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise SystemExit(f"{' '.join([*self.command, *words[:3]])} ...: {lines[-1]}")
        return done.stdout

    def has(self, image: str) -> bool:
        found = subprocess.run([*self.command, "image", "inspect", image], capture_output=True)
        return found.returncode == 0

    def size(self, image: str) -> int:
        """Bytes of an image, unpacked."""
        return int(self("image", "inspect", "--format", "{{.Size}}", image))

    def label(self, image: str, name: str) -> str:
        return self("image", "inspect", "--format", f'{{{{index .Config.Labels "{name}"}}}}', image).strip()

    def inside(self, image: str, *words: str, timeout: float = 1200, options: tuple[str, ...] = ()) -> str:
        """Run a command in a confined container of its own."""
        return self("run", "--rm", *CONFINED, *options, image, *words, timeout=timeout)

    @contextmanager
    def service(self, image: str, *words: str, options: tuple[str, ...] = ()) -> Iterator[subprocess.Popen]:
        """A container that runs while the block does; its log goes to a file, and is shown if it ends early."""
        name = f"redoubt-bench-{time.time_ns()}"
        with tempfile.TemporaryFile("w+") as log:
            child = subprocess.Popen(
                [*self.command, "run", "--rm", "--name", name, *CONFINED, *options, image, *words],
                stdout=log, stderr=subprocess.STDOUT, text=True,
            )
            child.name = name
            try:
                yield child
            except SystemExit:
                log.seek(0)
                print(log.read()[-2000:], file=sys.stderr)
                raise
            finally:
                if child.poll() is None:
                    subprocess.run([*self.command, "stop", "--time", "30", name], capture_output=True)
                    child.wait(60)


def sizes(report: Report, engine: Engine, images: dict[str, str], base: str) -> None:
    """Print what each image weighs and its largest parts."""
    base_size, rows = engine.size(base), []
    for target, image in images.items():
        variant, total = engine.label(image, "org.redoubt.variant"), engine.size(image)
        parts = sorted(json.loads(engine.inside(image, "python3", "-c", COUNT, options=("--network", "none"))).items(),
                       key=lambda part: -part[1])
        beyond = total - base_size
        rows.append([target, variant, f"{total / 1e9:.2f}", f"{beyond / 1e9:.2f}",
                     ", ".join(f"{name} {size / 1e6:.0f}" for name, size in parts[:9])])
        report.figures[target] = {"variant": variant, "bytes": total, "beyond_base": beyond, "parts": dict(parts[:25])}
        if target == "serving" and variant == "cpu":
            report.require(beyond <= BEYOND_BASE, f"serving is {beyond / 1e9:.2f} GB beyond its base, above 1.2 GB")
    report.say(f"base {base}: {base_size / 1e9:.2f} GB\n" + table(
        ["target", "variant", "GB", "beyond base", "largest parts in MB"], rows))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(url: str, seconds: float, child: subprocess.Popen) -> float:
    """Seconds until an address answers 200."""
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return time.perf_counter() - start
        except OSError:
            if child.poll() is not None:
                break
        time.sleep(0.05)
    raise SystemExit(f"{url} did not answer within {seconds:g} s")


def runs(report: Report, engine: Engine, images: dict[str, str], folder: Path) -> None:
    """Every step in `steps` without a network, then a version in MLflow, served from `serving`."""
    scratch, mlflow, port = f"{folder / 'scratch'}:{HOME}", free_port(), free_port()
    start = time.perf_counter()
    engine.inside(images["steps"], "redoubt", "run", "--dataset", "digits", "--epsilon", "0.1",
                  options=("--network", "none", "--volume", scratch))
    report.figures["pipeline_seconds"] = time.perf_counter() - start
    report.say(f"\nall six steps in {images['steps']}: {report.figures['pipeline_seconds']:.0f} s, without a network")
    engine.inside(images["steps"], *TORCHRUN, "--help", options=("--network", "none", "--volume", scratch))   # as nodes

    uri, host = f"http://127.0.0.1:{mlflow}", ("--network", "host")
    server = ["mlflow", "server", "--host=127.0.0.1", f"--port={mlflow}", "--workers=1",
              f"--backend-store-uri=sqlite:///{HOME}/mlflow.db", f"--artifacts-destination={HOME}/served",
              f"--allowed-hosts=127.0.0.1:{mlflow}"]
    with engine.service(images["steps"], *server, options=(*host, "--volume", f"{folder / 'mlflow'}:{HOME}")) as mlf:
        wait_for(f"{uri}/health", 120, mlf)
        engine.inside(images["steps"], "redoubt", "run", "--dataset", "digits", "--epsilon", "0.1", "--tracking-uri",
                      uri, options=(*host, "--volume", scratch))
        started = time.perf_counter()
        options = (*host, "--tmpfs", f"{HOME}:rw,mode=1777", "--env", f"REDOUBT_TRACKING_URI={uri}", "--env",
                   "REDOUBT_HOST=127.0.0.1", "--env", f"REDOUBT_PORT={port}", "--env", "REDOUBT_RETRAIN=false")
        with engine.service(images["serving"], options=options) as serving:
            wait_for(f"http://127.0.0.1:{port}/v2/health/ready", 120, serving)
            ready = time.perf_counter() - started
            answer = predict(port)
            engine("kill", "--signal", "TERM", serving.name)
            code = serving.wait(60)
    report.figures |= {"ready_seconds": ready, "exit_code": code, "answer": answer}
    report.say(f"serving: ready after {ready:.1f} s with a version in MLflow; answers {answer}; SIGTERM: exit {code}")
    report.require(ready <= READY, f"ready after {ready:.1f} s, later than {READY:g} s")
    report.require(code == 0, f"SIGTERM ends serving with {code}")


def predict(port: int) -> str:
    """The label and verdict of one blank picture."""
    tensor = {"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/redoubt/infer", json.dumps({"inputs": [tensor]}).encode(),
        {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return ", ".join(f"{one['name']} {one['data'][0]}" for one in json.load(answer)["outputs"]
                         if one["name"] in ("label", "is_adversarial"))


def main() -> int:
    given = arguments(__doc__, engine={"default": "docker", "help": "docker or podman, with options if need be"},
                      steps={"default": "redoubt/steps:0.1.0-python3.11"}, serving={"default": "redoubt/serving:0.1.0"},
                      base={"default": "", "help": "the base image; default: what the image says that it was built on"})
    report, engine = Report(given, "Images"), Engine(given.engine)
    images = {"steps": given.steps, "serving": given.serving}
    missing = [image for image in images.values() if not shutil.which(engine.command[0]) or not engine.has(image)]
    if missing:
        report.say(f"nothing measured: {given.engine} has no {' and no '.join(missing)}; the Dockerfile's head says "
                   "how to build them")
        return report.close() if not given.check else 1
    sizes(report, engine, images, given.base or engine.label(images["serving"], "org.opencontainers.image.base.name"))
    if not given.quick:
        with tempfile.TemporaryDirectory(prefix="redoubt-image-", ignore_cleanup_errors=True) as folder:
            for name in ("scratch", "mlflow"):
                (Path(folder) / name).mkdir()
                (Path(folder) / name).chmod(0o777)
            Path(folder).chmod(0o755)
            runs(report, engine, images, Path(folder))
    return report.close()


if __name__ == "__main__":
    raise SystemExit(main())
