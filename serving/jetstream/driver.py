"""JetStream's orchestrator, with its faults contained.

What its `Driver` does of itself, and does not here: it kills the process where one of its threads fails, and where the
last slot comes free at the wrong moment; its queue has no end; it puts a token before every prompt, and cuts off the
beginning of a long one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from serving.jetstream.engine import JetStreamEngine
from serving.jetstream.package import orchestrator
from serving.jetstream.requests import Active, Request

RACE = "At this point we must have some requests inserted into the slots."

log = logging.getLogger(__name__)


class Driver(orchestrator.Driver):
    """JetStream's threads and queues over one engine; at most `queue` requests wait for their prefill.

    `fail` is called with a request whose prompt cannot be run, in the prefill thread. `ended` is set where any thread
    has failed, by `error`, and the driver is dead (`live` is False), or where it is to end.
    """

    def __init__(self, engine: JetStreamEngine, queue: int, fail: Callable[[Request, Exception], None]) -> None:
        self.ended = threading.Event()
        self.error: Exception | None = None
        self._engine = engine
        self._fail = fail
        self._prefilling: Active | None = None
        super().__init__([engine], [engine], [None], [None])  # the engine has its weights
        self._prefill_backlog.maxsize = queue

    def withdraw(self, request: Request) -> None:
        """Take a request out of the queue, if it is still there: else those given up would leave no place in it."""
        backlog = self._prefill_backlog
        with backlog.mutex:
            kept = [active for active in backlog.queue if active is None or active.prefill_content is not request]
            backlog.queue.clear()
            backlog.queue.extend(kept)

    def _process_prefill_content(
        self, request: Active, tokenizer: Any, is_bos: bool, max_prefill_length: int
    ) -> tuple[Request, int]:
        """Hand a request through as it is: all of its tokens and no other, and how to sample."""
        self._prefilling = request
        return request.prefill_content, len(request.prefill_content.prompt)

    def _transfer_prefill_result(self, new_request: Active, target_idx: int) -> None:
        """Leave a prompt's pages where they are: it is decoded on the same device."""

    def _prefill_thread(self, idx: int) -> None:
        self._contain(self._prefill_all, idx)

    def _transfer_thread(self, idx: int) -> None:
        self._contain(super()._transfer_thread, idx)

    def _generate_thread(self, idx: int) -> None:
        self._contain(self._generate_all, idx)

    def _detokenize_thread(self, idx: int) -> None:
        self._contain(super()._detokenize_thread, idx)

    def _contain(self, work: Callable[[int], None], idx: int) -> None:
        """Do a thread's work; what it raises is the end of the driver, and of nothing else."""
        try:
            work(idx)
        except Exception as error:
            log.exception("JetStream's driver failed")
            self.live, self.error = False, error
            self.ended.set()

    def _prefill_all(self, idx: int) -> None:
        """Run prompts to the driver's end; one that cannot be run fails alone, if the engine is still whole."""
        while self.live:
            try:
                super()._prefill_thread(idx)
                return
            except Exception as error:
                if self._prefilling is None or not self._engine.intact:
                    raise
                self._fail(self._prefilling.prefill_content, error)

    def _generate_all(self, idx: int) -> None:
        """Decode to the driver's end.

        Between the moment a slot is found in use, and the one in which that is asserted, the detokenize thread may have
        freed it. The thread has no state that the engine does not have, and can be begun again.
        """
        while self.live:
            try:
                super()._generate_thread(idx)
                return
            except AssertionError as error:
                if str(error) != RACE:
                    raise
