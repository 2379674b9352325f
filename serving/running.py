"""A server in this process, around a service."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from comem_jax.compiled import keep_compiled_programs
from comem_jax.errors import UserError
from serving.server import create_app
from serving.service import ServeOptions, Service
from serving.web import WebThread

if TYPE_CHECKING:
    from serving.jetstream.rpc import GrpcServer

log = logging.getLogger(__name__)


class RunningServer:
    """A server that listens; `start_server` makes one. Leaving it as a context manager stops it and its engine."""

    def __init__(
        self, service: Service, host: str, port: int, api_key: str | None = None, grpc_port: int | None = None
    ) -> None:
        """Listen on `host` and `port` (0 for any free one); raises `UserError` where that cannot be.

        With an `api_key` clients must send it. With a `grpc_port` JetStream's gRPC service listens there too.
        """
        self.service = service
        self._web = WebThread(create_app(service, api_key), host, port)
        self.port = self._web.port
        self.url = self._web.url
        try:
            self.grpc = None if grpc_port is None else _grpc_server(service, host, grpc_port, api_key)
        except UserError:
            self._web.stop()
            raise

    def start(self) -> None:
        """Begin to answer, with 503 until the model is loaded."""
        self.service.start()
        self._web.start()
        log.info("%s listens on %s", self.service.name, self.url)
        if self.grpc is not None:
            self.grpc.start()
            log.info("%s listens for gRPC on port %d", self.service.name, self.grpc.port)

    def drain(self, grace: float, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Refuse new requests and wait until those under way are answered, for `grace` seconds at most.

        Returns whether all were; `hurry` is asked all along whether to wait no longer.
        """
        admission, deadline = self.service.admission, time.monotonic() + grace
        admission.close()
        log.info("no more requests are taken; %d answers are under way", admission.open)
        while admission.open and time.monotonic() < deadline and not hurry():
            time.sleep(0.02)
        return not admission.open

    def stop(self) -> None:
        """Stop the engine and close every connection."""
        self.service.stop()
        self._web.stop()
        if self.grpc is not None:
            self.grpc.stop()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _grpc_server(service: Service, host: str, port: int, api_key: str | None) -> GrpcServer:
    if service.driver != "jetstream":
        raise UserError("a gRPC port is for the jetstream driver alone; give --driver jetstream, or no --grpc-port")
    from serving.jetstream.rpc import GrpcServer

    return GrpcServer(service, host, port, api_key)


def start_server(
    model_path: str | Path,
    port: int = 0,
    *,
    host: str = "127.0.0.1",
    api_key: str | None = None,
    grpc_port: int | None = None,
    **options: Any,
) -> RunningServer:
    """Start serving a Hugging Face folder and return at once; `.service.wait_ready()` waits until it answers.

    With an `api_key` clients must send it; with a `grpc_port` (0 for any free one) the jetstream driver answers
    JetStream's gRPC there too. `options` are those of `ServeOptions`: name, slots, queue, window, cache, dtype,
    quantize, load_format, kv_cache_dtype, attention, mesh, driver.
    Raises `UserError` for a folder, an option or a port that cannot be served.
    """
    keep_compiled_programs()
    server = RunningServer(Service(ServeOptions(Path(model_path), **options)), host, port, api_key, grpc_port)
    server.start()
    return server
