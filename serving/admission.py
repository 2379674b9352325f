"""How much a server takes on: a bounded number of answers at a time, and none once it is to end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import ApiError

SOON = 1  # seconds until a refused client may find a place: answers end all the time
LATER = 5  # seconds until a server that is loading, begins again or ends is worth another try


class Admission:
    """Counts answers under way or waiting, at most `limit` of them, for any number of event loops."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open = 0
        self.closed = False
        self.door = threading.Lock()  # HTTP and gRPC have an event loop each

    def close(self) -> None:
        """Let nobody else in."""
        self.closed = True

    @contextmanager
    def ticket(self) -> Iterator[Ticket]:
        """Hold what one HTTP request takes, until its answer has been sent or given up."""
        ticket = Ticket(self)
        try:
            yield ticket
        finally:
            with self.door:
                self.open -= ticket.held


class Ticket:
    """The places of one HTTP request."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.held = 0

    def take(self, answers: int) -> None:
        """Take a place for each answer; raises `ApiError` where there are too few (429) or the server ends (503)."""
        with self._admission.door:
            self._take(answers, self._admission)

    def _take(self, answers: int, admission: Admission) -> None:
        if admission.closed:
            raise unavailable("the server is ending and takes no more requests")
        if answers > admission.limit:
            raise ApiError(400, f"The request asks for {answers} answers; this server takes {admission.limit} at most.")
        if admission.open + answers > admission.limit:
            message = f"The queue is full: {admission.open} answers are under way or waiting. Try again in {SOON} s."
            raise ApiError(429, message, kind="rate_limit_error", code="queue_full", retry_after=SOON)
        admission.open += answers
        self.held += answers


def unavailable(reason: str) -> ApiError:
    """Return the answer of a server that cannot answer now."""
    message = f"The request was not answered: {reason}."
    return ApiError(503, message, kind="server_error", code="service_unavailable", retry_after=LATER)
