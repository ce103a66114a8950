"""`python -m serving`: read the settings, take the port, serve until SIGTERM. `python -m serving keys` manages keys."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading

import uvicorn

from redoubt.errors import RedoubtError
from serving.app import create_app
from serving.environment import unknown_variables
from serving.settings import Settings, load_settings
from serving.several import create_several
from serving.telemetry.logs import set_up

log = logging.getLogger("redoubt.serving")
_LONGEST_SHUTDOWN = 20   # seconds that requests under way are given
# Seconds that an idle connection stays: longer than balancers and proxies keep theirs (60), so that they close it. A
# request that meets a server's closing is lost, and behind a proxy a 502.
KEEP_ALIVE = 75


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal; returns the exit code, 2 for a setting that is wrong, or a port or home that is taken."""
    arguments = sys.argv[1:] if arguments is None else arguments
    set_up("text")
    try:
        if arguments[:1] == ["keys"]:
            from serving.security.command import keys

            return keys(arguments[1:])
        settings = load_settings(arguments)
        set_up(settings.log_format)
        for sentence in unknown_variables(os.environ):
            log.warning("%s", sentence)
        return serve(settings)
    except RedoubtError as error:
        print(f"serving: {error}", file=sys.stderr)
        return error.exit_code


class _Uvicorn(uvicorn.Server):
    """Serves on for a while after the first signal, not ready any more, so that balancers look elsewhere."""

    def __init__(self, config: uvicorn.Config, redoubt, seconds: float):
        super().__init__(config)
        self._redoubt, self._seconds = redoubt, seconds

    def handle_exit(self, sig: int, frame) -> None:
        waiting = self._redoubt.draining
        self._redoubt.draining = True
        if self._seconds and not waiting:
            timer = threading.Timer(self._seconds, super().handle_exit, (sig, frame))
            timer.daemon = True
            timer.start()
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets=None) -> None:
        """End the live pages' feeds first: uvicorn would wait for them as for any answer under way."""
        self._redoubt.close_pages()
        await super().shutdown(sockets)


def serve(settings: Settings) -> int:
    """Serve with these settings until SIGTERM or SIGINT; returns the exit code."""
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        print(f"serving: cannot listen on {settings.host} port {settings.port}: {error.strerror}", file=sys.stderr)
        return 2
    with listener:
        app = create_several(settings) if settings.models else create_app(settings)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=_LONGEST_SHUTDOWN, server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            proxy_headers=False, ws="none",   # limit_concurrency would refuse probes, too, and the full be killed
            ssl_certfile=settings.tls_cert, ssl_keyfile=settings.tls_key,
        )
        server = _Uvicorn(config, app.state.server, settings.drain_seconds)
        app.state.server.connections = lambda: len(server.server_state.connections)
        # For a signal before uvicorn listens to them; and uvicorn raises it again once it has shut down in order, which
        # must not look like a crash.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        try:
            config.load()
        except (OSError, ValueError) as error:   # a certificate that cannot be read
            print(f"serving: the certificate {settings.tls_cert} cannot be used: {error}", file=sys.stderr)
            app.state.server.stop()
            return 2
        host, port = listener.getsockname()[:2]
        scheme = "https" if settings.tls_cert else "http"
        print(f"listening on {scheme}://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        try:
            server.run(sockets=[listener])
        finally:
            app.state.server.stop()   # also where uvicorn did not come to the end of its lifespan
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
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
