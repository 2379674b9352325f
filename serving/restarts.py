"""How often an engine may die."""

from __future__ import annotations

import time
from collections import deque


class Restarts:
    """Lets an engine be begun again up to `most` times in `seconds`; one that dies more often is to stay dead."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._deaths: deque[float] = deque(maxlen=most + 1)

    def allow(self) -> bool:
        """Count a death; returns whether to begin again."""
        now = time.monotonic()
        self._deaths.append(now)
        return len(self._deaths) <= self._most or now - self._deaths[0] > self._seconds
