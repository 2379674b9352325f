"""One generation on its way through JetStream's queues."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from serving.engine import Tokens
from serving.jetstream.package import orchestrator
from serving.jobs import Generation, Job, Output
from serving.text import TokenBytes


class Request(Job):
    """A job that several threads have to do with: prefill fills its pages, generate makes its `rounds`, detokenize
    turns those into text.

    `fault` is what went wrong with it alone, in a round. It is `closed` once, by whoever ends it.
    """

    def __init__(self, generation: Generation, tokens: TokenBytes, deliver: Callable[[Output], None]) -> None:
        super().__init__(generation, tokens, deliver)
        # What may come next is asked for between two rounds, so that the grammar goes with the slot, not with the text.
        self.form, self.guide = self.guide, None
        self.rounds: deque[Tokens] = deque()
        self.fault: Exception | None = None
        self.closed = False
        self._door = threading.Lock()

    def close(self) -> bool:
        """End the request; returns False where somebody else already has."""
        with self._door:
            first, self.closed = not self.closed, True
        return first


class Unread:
    """A return channel that nobody reads: outputs go to whoever asked from `Active` itself."""

    def close(self) -> None:
        """Do nothing."""


class Active(orchestrator.ActiveRequest):
    """A request as JetStream's queues know it: the prompt is opaque, and the samples it is handed are not used.

    They are token ids without log-probabilities, which end where an end token comes, even one that was to be ignored.
    `advance` takes what was generated from the request itself, and says whether it is over: then the slot comes free.
    """

    def __init__(self, request: Request, advance: Callable[[Request], bool]) -> None:
        limit = request.generation.limit
        super().__init__(max_tokens=limit, return_channel=Unread(), is_client_side_tokenization=True)
        self.prefill_content = request
        self._advance = advance

    def enqueue_samples(self, generated_samples: Any) -> None:
        """Go on by a round."""
        self.complete[:] = self._advance(self.prefill_content)
