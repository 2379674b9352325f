"""JetStream's own gRPC service, `Decode` and `HealthCheck`, on the driver of a service.

Its `LLMOrchestrator` answers the calls. Its server is not used: that one listens to the whole network, asks for no key,
and ends the driver with itself, where ours may be begun again below it. A call is counted among the server's answers,
and waits for its place as they do; it is greedy, since a `DecodeRequest` has no word on sampling.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import grpc

from comem_jax.errors import UserError
from serving.admission import unavailable
from serving.drivers import Driver
from serving.engine import Sampling
from serving.errors import ApiError
from serving.handlers import failure
from serving.jetstream.package import ReturnSample, jetstream_pb2, jetstream_pb2_grpc, orchestrator
from serving.jobs import Generation, Output
from serving.server import check_prompt
from serving.service import Service

CLOSE = 1.0  # seconds that calls under way have, once the server is stopped
STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


class Call:
    """One call, to which JetStream's orchestrator speaks as if it were the driver."""

    def __init__(self, service: Service, driver: Driver) -> None:
        self._service = service
        self._driver = driver
        self._job: Any = None

    def place_request_on_prefill_queue(self, request: Any) -> None:
        """Submit what the orchestrator has read of the call; its outputs go to the request's return channel."""
        content = request.prefill_content
        prompt = self._service.format.encode(content) if isinstance(content, str) else list(content)
        check_prompt(self._service, prompt)
        channel, ends = request.return_channel, self._service.format.eos_ids

        def deliver(output: Output) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                _pass_on(output, channel, ends)

        self._job = self._driver.submit(Generation(prompt, request.max_tokens, Sampling(top=0)), deliver)

    def end(self) -> None:
        """Give the call up, if it is not finished."""
        if self._job is not None:
            self._driver.cancel(self._job)


class Orchestrator(orchestrator.LLMOrchestrator):
    """JetStream's service over whatever driver there is at the time; every fault has its gRPC status."""

    def __init__(self, service: Service, api_key: str | None = None) -> None:
        self._service = service
        self._api_key = api_key

    async def Decode(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Answer a prompt with a stream of texts, or token ids where it is token ids."""
        try:
            self._check(request, context)
            with self._service.admission.ticket() as ticket:
                if (driver := self._service.scheduler) is None:
                    raise unavailable(f"the model is {self._service.state}")
                ticket.take(1)
                call = Call(self._service, driver)
                try:
                    async for response in orchestrator.LLMOrchestrator(call).Decode(request, context):
                        yield response
                finally:
                    call.end()
        except ApiError as error:
            await context.abort(STATUS.get(error.status, grpc.StatusCode.INTERNAL), str(error))

    async def HealthCheck(self, request: Any, context: Any) -> Any:
        """Say whether requests are taken."""
        return jetstream_pb2.HealthCheckResponse(is_live=self._service.state == "ready")

    def _check(self, request: Any, context: Any) -> None:
        sent = dict(context.invocation_metadata()).get("authorization")
        if self._api_key and sent != f"Bearer {self._api_key}":
            raise ApiError(401, "The metadata has no key this server takes, as in `authorization: Bearer KEY`.")
        if request.WhichOneof("content") is None:
            raise ApiError(400, "The request has neither text_content nor token_content.")


class GrpcServer:
    """A gRPC server on `host` and `port` (0 for any free one), in a thread of its own; it listens from the start.

    Raises `UserError` where one cannot listen there.
    """

    def __init__(self, service: Service, host: str, port: int, api_key: str | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="grpc", daemon=True)
        self._thread.start()
        try:
            self.port = self._wait(self._listen(Orchestrator(service, api_key), host, port))
        except BaseException:
            self._end_loop()
            raise

    def start(self) -> None:
        """Begin to answer."""
        self._wait(self._server.start())

    def stop(self) -> None:
        """Close every call."""
        self._wait(self._server.stop(CLOSE))
        self._end_loop()

    async def _listen(self, servicer: Orchestrator, host: str, port: int) -> int:
        # Without the option a second server would be let in on the same port, and get every other call.
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        jetstream_pb2_grpc.add_OrchestratorServicer_to_server(servicer, self._server)
        try:
            return self._server.add_insecure_port(f"{f'[{host}]' if ':' in host else host}:{port}")
        except (RuntimeError, OverflowError) as error:
            raise UserError(f"cannot listen on {host} port {port} for gRPC: {error}") from None

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


def _pass_on(output: Output, channel: Any, ends: tuple[int, ...]) -> None:
    """Put an output into a return channel: its text, and its token ids without the one that ends it.

    The text goes character by character, to be joined by JetStream: a longer piece might look like a byte, `<0x41>`.
    """
    if output.error is not None:
        channel.set_exception(failure(output.error))
        return
    ids = [one for one in output.ids if one not in ends]
    if ids or output.text:
        channel.add_result([ReturnSample(text=list(output.text), token_ids=ids)])
    if output.last:
        channel.close()
