"""What the serving tests share: a registry made of folders, bundles of digits models, and servers on free ports."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn
from serving_support import CHILD, FolderRegistry, Scene, model, wait_until

from redoubt.bundle import open_bundle, seal, write_bundle
from redoubt.models import Architecture, build
from redoubt.registry import Registry
from redoubt.threat import ThreatModel
from serving.app import create_app
from serving.settings import Settings
from serving.several import create_several


@pytest.fixture(scope="session")
def make_bundle(digits, digits_model, detector_folder, tmp_path_factory):
    """A function (threats=(), detector=True) -> a fresh bundle folder; every one holds the same weights."""

    def make(threats=(), *, detector: bool = True, model=None) -> Path:
        folder = tmp_path_factory.mktemp("bundle")
        write_bundle(folder, model or digits_model, classes=[f"digit {n}" for n in range(10)], threats=threats)
        if detector:
            for file in detector_folder.iterdir():
                shutil.copy(file, folder)
        seal(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def undefended(make_bundle) -> Path:
    return make_bundle()


@pytest.fixture(scope="session")
def defended(make_bundle) -> Path:
    """The same model, said to be trained against Linf 0.3; so its detector fits it, too."""
    return make_bundle((ThreatModel("Linf", 0.3),))


@pytest.fixture(scope="session")
def plain(make_bundle) -> Path:
    """A version without a detector."""
    return make_bundle(detector=False)


@pytest.fixture(scope="session")
def other_model(digits):
    """Untrained weights, so that answers tell versions apart."""
    torch.manual_seed(5)
    return build(Architecture(name="compact-cnn", num_classes=10, channels=1, size=8, mean=(0.3,), std=(0.4,))).eval()


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> Path:
    """An untrained model without a detector, for tests that only need an answer: nothing is fitted for it."""
    torch.manual_seed(5)
    model = build(Architecture(name="compact-cnn", num_classes=10, channels=1, size=8, mean=(0.3,), std=(0.4,))).eval()
    folder = tmp_path_factory.mktemp("untrained")
    write_bundle(folder, model, classes=[f"digit {n}" for n in range(10)], threats=())
    return folder


@pytest.fixture
def light(untrained) -> FolderRegistry:
    """A registry whose champion is the untrained version 1."""
    return FolderRegistry({1: untrained}, 1)


def quick_settings(home: Path, **changes) -> Settings:
    """Settings for a server that waits for nothing."""
    values = {
        "model_name": "digits", "home": home, "poll_seconds": 0.05, "cool_down_seconds": 0,
        "backoff_seconds": 0.05, "verdict_detail": "exact", "retrain_command": [sys.executable, str(CHILD)], **changes,
    }
    return Settings(**values)


@pytest.fixture
def settings(tmp_path):
    """A function (**changes) -> settings for a quick server with a home of its own."""
    return lambda **changes: quick_settings(**{"home": tmp_path / "home", **changes})


@dataclass
class Live:
    """A server in this process and a client for it."""

    server: object
    client: httpx.Client

    def status(self) -> dict:
        return self.client.get("/status").json()

    def infer(self, x, name: str = "digits") -> httpx.Response:
        tensor = {"name": "input", "shape": list(x.shape), "datatype": "FP32", "data": x.flatten().tolist()}
        return self.client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})


@contextmanager
def started(settings: Settings, registry, *, ready: bool = True) -> Iterator[Live]:
    """A started server of one model on a free port."""
    with running(create_app(settings, registry=registry), ready=ready) as live:
        yield live


@contextmanager
def running(app, *, ready: bool = True) -> Iterator[Live]:
    """The application, started on a free port."""
    uvicorn_server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=uvicorn_server.run, daemon=True)
    thread.start()
    wait_until(lambda: uvicorn_server.started, what="the start")
    port = uvicorn_server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
        if ready:
            wait_until(lambda: client.get("/v2/health/ready").status_code == 200, what="readiness")
        yield Live(app.state.server, client)
    uvicorn_server.should_exit = True
    thread.join(timeout=20)
    assert not thread.is_alive()


@pytest.fixture
def live(settings):
    """A function (registry, ready=True, again=False, **settings) -> a started server, with the test's own home.

    With `again` the servers before it are stopped first: a home holds one at a time.
    """
    with ExitStack() as alive:
        def start(registry, *, ready: bool = True, again: bool = False, **changes) -> Live:
            if again:
                alive.close()
            return alive.enter_context(started(settings(**changes), registry, ready=ready))

        yield start


@pytest.fixture
def several(settings):
    """A function (registries by name, settings by name, ready=True, **settings) -> a started server of several."""
    with ExitStack() as alive:
        def start(registries: dict, models: dict | None = None, *, ready: bool = True, **changes) -> Live:
            chosen = settings(models={name: {} for name in registries} | (models or {}), **changes)
            return alive.enter_context(running(create_several(chosen, registries=registries), ready=ready))

        yield start


@pytest.fixture(scope="module")
def limited(undefended, tmp_path_factory):
    """A started server with tight limits, for requests that leave no trace in it."""
    tight = quick_settings(tmp_path_factory.mktemp("limited"), max_body_bytes=4096, max_image_side=32)
    with started(tight, FolderRegistry({1: undefended}, 1)) as live:
        yield live


@pytest.fixture(scope="session")
def mlflow_uri(undefended, tmp_path_factory) -> str:
    """A real registry in a folder whose name has a space; the champion of `digits` is version 1. Read only."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('ml flow')}/mlflow.db"
    registry = Registry(uri, "digits")
    registry.promote(registry.register(open_bundle(undefended), metrics={}, parameters={}, tags={}), override="a test")
    return uri


@pytest.fixture
def registry(undefended) -> FolderRegistry:
    """A registry whose champion is the undefended version 1."""
    return FolderRegistry({1: undefended}, 1)


@pytest.fixture
def scene(settings):
    """A watch over version 1, which covers nothing."""
    scene = Scene(settings())
    scene.serve(model("1"))
    yield scene
    scene.ledger.close()
