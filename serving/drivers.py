"""What drives the engine: our own scheduler, or JetStream's orchestrator (see `serving.jetstream`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Protocol

from serving.engine import Engine
from serving.scheduler import Generation, Job, Output

DRIVERS = ("native", "jetstream")


class Driver(Protocol):
    """Runs generations on an engine. `run` works until stopped, in a thread of its own; the rest is for others."""

    engine: Engine

    @property
    def running(self) -> int:
        """How many requests are under way."""

    @property
    def waiting(self) -> int:
        """How many requests wait."""

    @property
    def usage(self) -> float:
        """The share of the cache's pages that requests hold, 0 to 1."""

    def submit(self, generation: Generation, deliver: Callable[[Output], None]) -> Job:
        """Queue a generation; `deliver` is called in another thread with each `Output`, the last one included."""

    def cancel(self, job: Job) -> None:
        """Give a job up; returns at once."""

    def run(self) -> None:
        """Work until stopped; raises what the engine raises where it cannot go on. Nobody is left without answer."""

    def stop(self) -> None:
        """End `run`; what is under way fails."""


async def stream(driver: Driver, generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Output], None]:
    """Yield the outputs of several generations as they come, each with its generation's index.

    Whoever stops listening (`aclose`, cancellation) cancels what is not finished.
    """
    loop = asyncio.get_running_loop()
    outputs: asyncio.Queue[tuple[int, Output]] = asyncio.Queue()

    def deliver(index: int, output: Output) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            loop.call_soon_threadsafe(outputs.put_nowait, (index, output))

    jobs = {index: driver.submit(one, partial(deliver, index)) for index, one in enumerate(generations)}
    try:
        while jobs:
            index, output = await outputs.get()
            if output.last:
                del jobs[index]
            yield index, output
    finally:
        for job in jobs.values():
            driver.cancel(job)
