"""A web application in this process: uvicorn in a thread of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Literal

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from comem_jax.errors import UserError


class Protocol(HttpToolsProtocol):
    """Uvicorn's protocol, which after a connection was reset holds on to it until it would have been idle too long."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the connection whatever it ended by."""
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()


class WebThread:
    """An application that listens on `host` and `port` from the start, and answers once `start` is called.

    Port 0 takes any free one. Raises `UserError` where one cannot listen there.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, lifespan: Literal["on", "off"] = "off") -> None:
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"
        # Idle connections are kept for longer than an agent's tools usually take, and answers under way are given up at
        # the end rather than waited for.
        config = uvicorn.Config(
            app,
            http=Protocol,
            log_config=None,
            access_log=False,
            lifespan=lifespan,
            timeout_keep_alive=600,
            timeout_graceful_shutdown=1,
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._uvicorn.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to answer; returns once the application is up."""
        self._thread.start()
        while not self._uvicorn.started and self._thread.is_alive():
            time.sleep(0.005)

    def stop(self) -> None:
        """Close every connection."""
        self._uvicorn.should_exit = True
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._socket.close()


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
