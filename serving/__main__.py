"""`python -m serving`: read the settings, take the port, serve until SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys

import uvicorn

from redoubt.errors import RedoubtError
from serving.app import create_app
from serving.settings import Settings, load_settings


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal; returns the exit code, 2 for a setting that is wrong, or a port or home that is taken."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        settings = load_settings(sys.argv[1:] if arguments is None else arguments)
        return serve(settings)
    except RedoubtError as error:
        print(f"serving: {error}", file=sys.stderr)
        return error.exit_code


def serve(settings: Settings) -> int:
    """Serve with these settings until SIGTERM or SIGINT; returns the exit code."""
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        print(f"serving: cannot listen on {settings.host} port {settings.port}: {error.strerror}", file=sys.stderr)
        return 2
    with listener:
        app = create_app(settings)
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=20)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        server = _Uvicorn(config)
        # For a signal before uvicorn listens to them; and uvicorn raises it again once it has shut down in order, which
        # must not look like a crash.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        host, port = listener.getsockname()[:2]
        print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        try:
            server.run(sockets=[listener])
        finally:
            app.state.server.stop()   # also where uvicorn did not come to the end of its lifespan
    return 0


class _Uvicorn(uvicorn.Server):
    """uvicorn that ends the live pages' feeds first: it would wait for them as for any answer under way."""

    async def shutdown(self, sockets=None) -> None:
        self.config.app.state.server.feed.close()
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(False)
    return listener


if __name__ == "__main__":
    code = main()
    # Everything is stopped and written. What would follow is seconds of unloading libraries, or for ever where the
    # registry's thread hangs in a network call.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
