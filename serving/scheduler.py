"""Continuous batching: one thread drives the engine, requests come and go between its rounds.

Each turn of the loop takes in what was submitted or cancelled, runs prompts for about as long as a round of decoding
takes, and then a round for every answer under way: that is the longest that a running answer waits for its next tokens,
however long the prompts are. The first token of an answer does not wait for the others' round. Where pages run out, the
youngest answer gives its pages back and is taken up again later, from the tokens it has. Answers go to whoever asked
through a callback, called in the engine's thread.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from serving.engine import Engine, Prefix
from serving.jobs import STOPPING, Generation, Job, Output, UnavailableError
from serving.metrics import Metrics
from serving.text import TokenBytes

# A token decoded takes longer than one of a prompt, which is run together with others: about so many times on a CPU.
# Prompts of so many tokens for each one that a round decodes take about half the time, where there is more to run.
PROMPT_SHARE = 8

log = logging.getLogger(__name__)


class Scheduler:
    """Runs generations on an engine. `run` is the engine thread's loop; the rest is for other threads."""

    def __init__(self, engine: Engine, tokens: TokenBytes, eos_ids: frozenset[int], metrics: Metrics) -> None:
        self.engine = engine
        self._tokens = tokens
        self._eos = eos_ids
        self._metrics = metrics
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._prefilling: list[Job] = []  # the oldest first
        self._running: dict[int, Job] = {}  # by slot, the oldest first
        self._free = list(range(engine.slots))
        self._turn = 0
        self._stopping = False
        self._door = threading.Lock()  # nothing is put into the inbox after it was emptied for the last time

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return not self._stopping

    @property
    def running(self) -> int:
        """How many requests have a slot."""
        return len(self._running) + len(self._prefilling)

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self._waiting) + self._inbox.qsize()

    @property
    def usage(self) -> float:
        """The share of the cache's pages that requests hold, 0 to 1."""
        return 1 - self.engine.store.free / self.engine.store.pages

    def submit(self, generation: Generation, deliver: Callable[[Output], None]) -> Job:
        """Queue a generation; `deliver` is called in the engine's thread with each `Output`, the last one included."""
        job = Job(generation, self._tokens, deliver)
        with self._door:
            stopping = self._stopping
            if not stopping:
                self._inbox.put(lambda: self._waiting.append(job))
        if stopping:
            deliver(Output(error=UnavailableError(STOPPING)))
        return job

    def cancel(self, job: Job) -> None:
        """Give a job up: its slot comes free before the next round."""
        self._inbox.put(lambda: self._drop(job))

    def stop(self) -> None:
        """End the loop; what is under way fails."""
        self._inbox.put(self._stop)

    def run(self) -> None:
        """Work until stopped. An error of the engine fails the requests under way, and the loop goes on.

        Raises what the engine raises where it cannot be brought back to an empty cache; nobody is left without answer.
        """
        reason = UnavailableError(STOPPING)
        try:
            while not self._stopping:
                self._read_inbox()
                self._guard(self._prefill)
                self._guard(self._decode)
        except Exception as error:
            reason = UnavailableError(f"the engine failed: {error}")
            raise
        finally:
            with self._door:
                self._stopping = True
            while not self._inbox.empty():
                self._inbox.get()()
            self._fail_all(reason)

    def _read_inbox(self) -> None:
        idle = not (self._waiting or self._prefilling or self._running)
        if idle:
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # the cache was given to the program that failed, so all slots are lost
            log.exception("the engine failed; its requests are answered with an error")
            self._fail_all(error, waiting=False)
            self._free = list(range(self.engine.slots))
            self.engine.reset()

    def _prefill(self) -> None:
        """Run prompts for a while, the first token of each answer as soon as its prompt has been run."""
        budget = max(self.engine.chunk, PROMPT_SHARE * self.engine.steps * len(self._running))
        self._admit()
        while budget > 0 and self._prefilling:
            job = self._next_prompt()
            try:
                count = self._run_chunk(job)
            except Exception as error:
                if not self.engine.intact:
                    raise
                log.exception("a prompt failed")
                self._drop(job, "error")
                job.deliver(Output(error=error))
                continue
            budget -= count
            if count:  # those whose prompts another has run already begin together
                self._answer_new()
        self._answer_new()

    def _answer_new(self) -> None:
        """Generate the first token of those that have none; the others are not to be waited for."""
        if slots := [slot for slot, job in self._running.items() if not job.produced]:
            self._round(slots, 1)

    def _next_prompt(self) -> Job:
        """Return the prompt to go on with: by turns the oldest and the one with the least to run.

        So a short prompt does not wait for a long one, and a long one is never left behind.
        """
        self._turn += 1
        return self._prefilling[0] if self._turn % 2 else min(self._prefilling, key=lambda job: job.left)

    def _run_chunk(self, job: Job) -> int:
        prefix = job.prefix
        assert prefix is not None
        count = self.engine.prefill(prefix)
        if prefix.ready:
            self._prefilling.remove(job)
            self._begin(job, prefix)
        return count

    def _begin(self, job: Job, prefix: Prefix) -> None:
        """Let a prompt that has been run be answered; one that asks for no token is done."""
        if not job.produced:
            job.cached = prefix.found
            self._metrics.admitted(len(job.prompt), job.cached, job.admitted - job.submitted)
        limit = job.generation.limit - len(job.produced)
        if limit:
            self.engine.insert(prefix, job.slot, job.generation.sampling, limit)
            self._running[job.slot] = job
            return
        self.engine.store.end(prefix.sequence)
        self._free.append(job.slot)
        self._metrics.finished("length", time.perf_counter() - job.submitted)
        job.deliver(Output(cached=job.cached, prompt=job.scored, finish="length"))

    def _admit(self) -> None:
        """Give slots and pages to those who wait, in their order, as long as there are any."""
        while self._waiting and self._free:
            job = self._waiting[0]
            top = None if job.produced else job.generation.score
            prefix = self.engine.begin(job.tokens, top=top, answered=len(job.produced))
            if prefix is None:
                return
            self._waiting.popleft()
            job.prefix, job.slot, job.admitted = prefix, self._free.pop(), time.perf_counter()
            self._prefilling.append(job)

    def _reserve(self, slots: Sequence[int]) -> None:
        """See that running answers have pages for a round, if need be by putting the youngest off."""
        for slot in slots:
            while slot in self._running and not self.engine.reserve(slot):
                self._put_off(max(self._running.values(), key=lambda job: job.submitted))

    def _put_off(self, job: Job) -> None:
        """Take an answer out of its slot, to go on from its tokens when there are pages again."""
        self._leave(job)
        self._waiting.appendleft(job)

    def _constrain(self, slots: Sequence[int]) -> None:
        """Say which tokens may come next in answers of a given form, while the device runs the chunk of a prompt."""
        for slot in slots:
            job = self._running.get(slot)
            if job is None or job.guide is None:
                continue
            ends = len(job.produced) >= job.generation.sampling.least
            try:
                job.guide.fill(self.engine.constrain(slot), ends)
            except Exception as error:
                log.exception("the form of an answer failed")
                self._drop(job, "error")
                job.deliver(Output(error=error))

    def _decode(self) -> None:
        self._round(list(self._running), self.engine.steps)

    def _round(self, slots: Sequence[int], most: int) -> None:
        """Take some running answers up to `most` tokens on."""
        self._reserve(slots)
        self._constrain(slots)
        going_on = [slot for slot in slots if slot in self._running]  # the others gave their pages back, or failed
        for slot, tokens in self.engine.generate(most, going_on).items():
            job = self._running[slot]
            try:
                output = job.take(tokens, self._eos)
            except Exception as error:
                log.exception("a request failed")
                output = Output(error=error)
            job.account(output, self._metrics)
            if output.last:
                self._leave(job)
            job.deliver(output)

    def _leave(self, job: Job) -> None:
        """Free a running answer's slot and its pages."""
        del self._running[job.slot]
        self.engine.release(job.slot)
        self._free.append(job.slot)

    def _drop(self, job: Job, reason: str = "abort") -> None:
        """Take a job out, wherever it is; one that is finished already is nowhere."""
        if job in self._waiting:
            self._waiting.remove(job)
        elif job in self._prefilling:
            assert job.prefix is not None
            self._prefilling.remove(job)
            self.engine.store.end(job.prefix.sequence)
            self._free.append(job.slot)
        elif self._running.get(job.slot) is job:
            self._leave(job)
        else:
            return
        self._metrics.finished(reason, time.perf_counter() - job.submitted)

    def _fail_all(self, error: Exception, waiting: bool = True) -> None:
        jobs: list[Job] = [*self._running.values(), *self._prefilling]
        if waiting:
            jobs += self._waiting
            self._waiting.clear()
        self._running.clear()
        self._prefilling.clear()
        for job in jobs:
            self._metrics.finished("error", time.perf_counter() - job.submitted)
            job.deliver(Output(error=error))

    def _stop(self) -> None:
        self._stopping = True
