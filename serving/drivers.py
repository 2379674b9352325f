"""Who answers requests, as the front sees it, and waiting for the answers in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from serving.jobs import Generation, Output


class Driver(Protocol):
    """What answers requests: a `Scheduler`, which says what each of these means, or several behind one."""

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""

    @property
    def running(self) -> int:
        """How many requests have a slot."""

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""

    @property
    def usage(self) -> float:
        """The share of the cache's pages that requests hold, 0 to 1."""

    def submit(self, generation: Generation, deliver: Callable[[Output], None]) -> Any:
        """Queue a generation; returns what `cancel` takes."""

    def cancel(self, job: Any) -> None:
        """Give a generation up."""

    def stop(self) -> None:
        """End what `run` does."""

    def run(self) -> None:
        """Work until stopped."""


async def stream(scheduler: Driver, generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Output], None]:
    """Yield the outputs of several generations as they come, each with its generation's index.

    Whoever stops listening (`aclose`, cancellation) cancels what is not finished.
    """
    loop = asyncio.get_running_loop()
    outputs: asyncio.Queue[tuple[int, Output]] = asyncio.Queue()

    def deliver(index: int, output: Output) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            loop.call_soon_threadsafe(outputs.put_nowait, (index, output))

    jobs = {index: scheduler.submit(one, partial(deliver, index)) for index, one in enumerate(generations)}
    try:
        while jobs:
            index, output = await outputs.get()
            if output.last:
                del jobs[index]
            yield index, output
    finally:
        for job in jobs.values():
            scheduler.cancel(job)
