"""JetStream's driver in the place of our own scheduler: the same operations for whoever answers requests."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from comem_jax.chat import ChatFormat
from serving.engine import Engine, Tokens
from serving.jetstream.driver import Driver
from serving.jetstream.engine import JetStreamEngine
from serving.jetstream.requests import Active, Request
from serving.jobs import STOPPING, Generation, Job, Output, UnavailableError
from serving.metrics import Metrics
from serving.text import TokenBytes

FULL = "JetStream's queue is full"

log = logging.getLogger(__name__)


class JetStreamScheduler:
    """Runs generations by JetStream's driver; at most `limit` of them wait.

    `run` looks after the driver, the rest is for other threads; outputs are delivered in the driver's threads.
    """

    def __init__(self, engine: Engine, chat: ChatFormat, tokens: TokenBytes, metrics: Metrics, limit: int) -> None:
        self.engine = engine
        self._tokens = tokens
        self._eos = frozenset(chat.eos_ids)
        self._metrics = metrics
        self._open: set[Request] = set()
        self._closed: UnavailableError | None = None
        self._door = threading.Lock()  # no request is open after all have been closed
        self._jetstream = JetStreamEngine(engine, chat, tokens)
        self.driver = Driver(self._jetstream, limit, self._fail)

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self._closed is None and self.driver.live

    @property
    def running(self) -> int:
        """How many requests have pages."""
        return len(self._jetstream.holding)

    @property
    def waiting(self) -> int:
        """How many requests wait for pages."""
        return max(0, len(self._open) - self.running)

    @property
    def usage(self) -> float:
        """The share of the cache's pages that requests hold, 0 to 1."""
        return 1 - self.engine.store.free / self.engine.store.pages

    def submit(self, generation: Generation, deliver: Callable[[Output], None]) -> Request:
        """Queue a generation; `deliver` is called in another thread with each `Output`, the last one included."""
        request = Request(generation, self._tokens, deliver)
        with self._door:
            error = self._closed
            if error is None:
                self._open.add(request)
        try:
            if error is None:
                self.driver.place_request_on_prefill_queue(Active(request, self._advance))
        except queue.Full:
            error = UnavailableError(FULL)
        if error is not None:
            self._fail(request, error)
        return request

    def cancel(self, job: Job) -> None:
        """Give a request up: its pages come free before the next round."""
        assert isinstance(job, Request)
        if job.close():
            self._metrics.finished("abort", time.perf_counter() - job.submitted)
            self._open.discard(job)
            self.driver.withdraw(job)
            self._jetstream.look_again()

    def stop(self) -> None:
        """End the driver; what is under way fails."""
        self.driver.ended.set()

    def run(self) -> None:
        """Wait until stopped. Raises what any thread of the driver raised; nobody is left without answer."""
        self.driver.ended.wait()
        error = self.driver.error
        reason = UnavailableError(STOPPING if error is None else f"the engine failed: {error}")
        with self._door:
            self._closed = reason
        for request in list(self._open):
            self._fail(request, reason)
        self.driver.stop()
        if error is not None:
            raise error

    def _advance(self, request: Request) -> bool:
        """Turn what was generated for a request into outputs; returns whether it is over."""
        if request.first is None and not request.closed:
            self._metrics.admitted(len(request.prompt), request.cached, request.admitted - request.submitted)
        while request.rounds and not request.closed:
            self._hand(request, self._output(request, request.rounds.popleft()))
        if request.fault is not None:
            self._fail(request, request.fault)
        if not request.generation.limit:
            self._hand(request, Output(cached=request.cached, prompt=request.scored, finish="length"))
        if request.closed:
            self._jetstream.drop(request)
        return request.closed

    def _output(self, request: Request, tokens: Tokens) -> Output:
        try:
            return request.take(tokens, self._eos)
        except Exception as error:
            log.exception("a request failed")
            return Output(error=error)

    def _hand(self, request: Request, output: Output) -> None:
        """Deliver an output, unless the request is over; its last one comes once its pages are free."""
        if output.last:
            if not request.close():
                return
            self._open.discard(request)
            self._jetstream.drop(request)
        request.account(output, self._metrics)
        request.deliver(output)

    def _fail(self, request: Request, error: Exception) -> None:
        self._hand(request, Output(error=error))
