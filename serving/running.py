"""A server in this process: uvicorn in a thread of its own, around a service."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import uvicorn

from comem_jax.errors import UserError
from serving.server import create_app
from serving.service import ServeOptions, Service, keep_compiled_programs

log = logging.getLogger(__name__)


class RunningServer:
    """A server that listens; `start_server` makes one. Leaving it as a context manager stops it and its engine."""

    def __init__(self, service: Service, host: str, port: int) -> None:
        """Listen on `host` and `port` (0 for any free one); raises `UserError` where that cannot be."""
        self.service = service
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{host}:{self.port}/v1"
        # Idle connections are kept for longer than an agent's tools usually take, and answers under way are given up at
        # the end rather than waited for.
        config = uvicorn.Config(
            create_app(service),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=600,
            timeout_graceful_shutdown=1,
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._uvicorn.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )

    def start(self) -> None:
        """Begin to answer, with 503 until the model is loaded."""
        self.service.start()
        self._thread.start()
        while not self._uvicorn.started and self._thread.is_alive():
            time.sleep(0.005)
        log.info("%s listens on %s", self.service.name, self.url)

    def stop(self) -> None:
        """Stop the engine and close every connection."""
        self.service.stop()
        self._uvicorn.should_exit = True
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._socket.close()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_server(model_path: str | Path, port: int = 0, *, host: str = "127.0.0.1", **options: Any) -> RunningServer:
    """Start serving a Hugging Face folder and return at once; `.service.wait_ready()` waits until it answers.

    `options` are those of `ServeOptions`: name, slots, window, dtype. Raises `UserError` for a folder, an option or a
    port that cannot be served.
    """
    keep_compiled_programs()
    server = RunningServer(Service(ServeOptions(Path(model_path), **options)), host, port)
    server.start()
    return server


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        with contextlib.suppress(OSError):
            listener.close()
        raise UserError(f"cannot listen on {host} port {port}: {error}") from None
    return listener
