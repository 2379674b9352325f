"""Several engines behind one server, each with a copy of the model on devices of its own (data parallel).

A prompt goes where most of it has been run already, as long as that replica is not much busier than another; see
`choose`. A replica that dies is begun again by itself, and the others go on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from serving.jobs import Generation, Job, Output, UnavailableError
from serving.metrics import Metrics
from serving.restarts import Restarts
from serving.scheduler import Scheduler

NOBODY = "no replica of the model is ready"

log = logging.getLogger(__name__)


class Offer(NamedTuple):
    """What a replica has for a prompt: how many of its tokens, how many answers are under way, and in how many slots.

    `latest` is the number of the last request that it got.
    """

    held: int
    under_way: int
    slots: int
    latest: int = 0


def choose(length: int, offers: Sequence[Offer]) -> int:
    """Return which replica a prompt of `length` tokens goes to: the one with the least cost.

    The cost is the share of the prompt that is to be run there plus the share of the slots that are taken, over 1 where
    answers wait: a prompt leaves a replica that holds all of it only for one that is less busy by a full set of slots,
    and one that holds a little of it for less. Of equals the one whose last request is the oldest gets it.
    """

    def cost(number: int) -> tuple[float, int]:
        offer = offers[number]
        return (length - offer.held) / length + offer.under_way / offer.slots, offer.latest

    return min(range(len(offers)), key=cost)


@dataclass(eq=False)
class Placed:
    """A generation and the replica it was sent to."""

    replica: Replica
    prompt: np.ndarray
    scheduler: Scheduler
    job: Job | None = None


class Replica:
    """One scheduler, begun again where it dies, and what is under way on it."""

    def __init__(self, begin: Callable[[], Scheduler], restarts: Restarts) -> None:
        """Begin; raises what `begin` raises, which loads the model and returns a scheduler that does not run yet."""
        self._begin, self._restarts = begin, restarts
        self.scheduler: Scheduler | None = begin()
        self.open: set[Placed] = set()
        self.latest = 0
        self.error: Exception | None = None

    def offer(self, prompt: np.ndarray, scheduler: Scheduler) -> Offer:
        """Return what there is for a prompt: in the pages, or under way and soon there."""
        held = [_common(prompt, placed.prompt) for placed in self.open]
        held.append(scheduler.engine.store.estimate(prompt))
        return Offer(max(held), len(self.open), scheduler.engine.slots, self.latest)

    def work(self, stopping: threading.Event, metrics: Metrics) -> None:
        """Run until stopped, or until it has died too often."""
        while (scheduler := self.scheduler) is not None:
            try:
                if stopping.is_set():
                    scheduler.stop()
                scheduler.run()
                return
            except Exception as error:
                log.exception("a replica ended")
                self.error = error.with_traceback(None)  # its frames would keep the engine's memory
            self.scheduler = scheduler = None
            self._begin_again(stopping, metrics)

    def _begin_again(self, stopping: threading.Event, metrics: Metrics) -> None:
        while self.scheduler is None and not stopping.is_set() and self._restarts.allow():
            log.warning("a replica is begun again")
            metrics.restarted()
            try:
                self.scheduler = self._begin()
            except Exception as error:
                log.exception("a replica could not be begun")
                self.error = error.with_traceback(None)
        if self.scheduler is None:
            log.error("a replica stays dead")


class Replicas:
    """Schedulers with the interface of one. All requests are submitted and cancelled here, by any thread."""

    def __init__(self, replicas: Sequence[Replica], metrics: Metrics) -> None:
        self._replicas = replicas
        self._metrics = metrics
        self._requests = 0
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    @property
    def ready(self) -> bool:
        """Whether any replica takes requests."""
        return any(scheduler.ready for scheduler in self._live)

    @property
    def running(self) -> int:
        """How many requests have a slot."""
        return sum(scheduler.running for scheduler in self._live)

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return sum(scheduler.waiting for scheduler in self._live)

    @property
    def usage(self) -> float:
        """The share of the caches' pages that requests hold, 0 to 1."""
        live = self._live
        return sum(scheduler.usage for scheduler in live) / max(len(live), 1)

    def submit(self, generation: Generation, deliver: Callable[[Output], None]) -> Placed | None:
        """Queue a generation where it costs least; `deliver` is called in that engine's thread with each `Output`."""
        placed = self._place(np.asarray(generation.prompt, np.int32))
        if placed is None:
            deliver(Output(error=UnavailableError(NOBODY)))
            return None

        def hand_on(output: Output) -> None:
            if output.last:
                self._close(placed)
            deliver(output)

        placed.job = placed.scheduler.submit(generation, hand_on)
        return placed

    def cancel(self, placed: Placed | None) -> None:
        """Give a generation up."""
        if placed is not None and placed.job is not None:
            placed.scheduler.cancel(placed.job)
            self._close(placed)

    def stop(self) -> None:
        """End every replica; what is under way fails."""
        self._stopping.set()
        for scheduler in self._live:
            scheduler.stop()

    def run(self) -> None:
        """Work until stopped, each replica in a thread of its own. Raises an engine's error where none is left."""
        threads = [
            threading.Thread(
                target=one.work, args=(self._stopping, self._metrics), name=f"engine-{number}", daemon=True
            )
            for number, one in enumerate(self._replicas)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [replica.error for replica in self._replicas if replica.error]
        if errors and not self._stopping.is_set():
            raise errors[-1]

    @property
    def _live(self) -> list[Scheduler]:
        return [scheduler for replica in self._replicas if (scheduler := replica.scheduler) is not None]

    def _place(self, prompt: np.ndarray) -> Placed | None:
        with self._lock:
            live = [(one, scheduler) for one in self._replicas if (scheduler := one.scheduler) and scheduler.ready]
            if not live:
                return None
            offers = [replica.offer(prompt, scheduler) for replica, scheduler in live]
            replica, scheduler = live[choose(len(prompt), offers)]
            self._requests += 1
            replica.latest = self._requests
            placed = Placed(replica, prompt, scheduler)
            replica.open.add(placed)
            return placed

    def _close(self, placed: Placed) -> None:
        with self._lock:
            placed.replica.open.discard(placed)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many tokens two prompts begin with in common."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
