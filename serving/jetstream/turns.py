"""A lock that goes to those who wait for it in the order they came."""

from __future__ import annotations

import threading
from types import TracebackType


class Turns:
    """A fair lock. With Python's own, a thread that lets go and asks again at once nearly always has it again: a long
    prompt, chunk after chunk, would keep every running answer from its next round.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = self._served = 0

    def __enter__(self) -> None:
        with self._changed:
            mine = self._next
            self._next += 1
            self._changed.wait_for(lambda: self._served == mine)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._served += 1
            self._changed.notify_all()
