"""Continuous batching: one thread drives the engine, requests come and go between its rounds.

Each turn of the loop takes in what was submitted or cancelled, runs about one chunk of prompt, and one round of
decoding for every answer under way. Answers go to whoever asked through a callback, called in the engine's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from serving.engine import Engine, Prefix, Sampling, Tokens
from serving.metrics import Metrics
from serving.scores import PromptScores, ScoredPrompt
from serving.slots import Place, Slots
from serving.text import Detokenizer, StopMatcher, TokenBytes

STOPPING = "the server is stopping"

log = logging.getLogger(__name__)


class UnavailableError(RuntimeError):
    """Why a generation that was in order is not done: the scheduler is stopping, or its engine failed for good."""


@dataclass(frozen=True)
class Generation:
    """One answer to generate: prompt token ids, the most tokens to generate, stop strings and how to sample.

    A `limit` of 0 runs the prompt alone. `score` asks for the log-probabilities of the prompt's own tokens, with so
    many alternatives each; such a prompt is run from its beginning, whatever the slots hold of it.
    """

    prompt: list[int]
    limit: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    score: int | None = None


@dataclass
class Output:
    """A stretch of an answer. The last one has a `finish` ("stop", "length") or an `error`.

    `tokens` counts the generated tokens behind it, the end token included; `ids`, `logprobs` and `top` (one entry a
    token) are filled where log-probabilities were asked for. `prompt` comes with the first one, where asked for.
    """

    text: str = ""
    tokens: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    cached: int = 0
    prompt: ScoredPrompt | None = None
    finish: str | None = None
    error: Exception | None = None

    @property
    def last(self) -> bool:
        """Whether nothing follows."""
        return self.finish is not None or self.error is not None


class Job:
    """A generation on its way through the scheduler."""

    def __init__(self, generation: Generation, tokens: TokenBytes, deliver: Callable[[Output], None]) -> None:
        self.generation = generation
        self.prompt = np.asarray(generation.prompt, np.int32)
        self.produced: list[int] = []
        self.prefix: Prefix | None = None
        self.cached = 0
        self.submitted = time.perf_counter()
        self.first: float | None = None
        self.latest: float | None = None
        self.deliver = deliver
        self._detokenizer = Detokenizer(tokens)
        self._stops = StopMatcher(generation.stop)

    def take(self, tokens: Tokens, eos: frozenset[int]) -> Output:
        """Turn a round's tokens into output, up to a stop string or the end."""
        sampling = self.generation.sampling
        output = Output(cached=self.cached, prompt=None if self.produced else self.scored)
        for token in tokens.ids:
            self.produced.append(token)
            output.tokens += 1
            output.text += self._stops.push(self._detokenizer.push(token))
            if self._stops.stopped:
                output.finish = "stop"
                break
        if output.finish is None and tokens.done:
            output.text += self._stops.push(self._detokenizer.flush())
            ended = tokens.ids[-1] in eos and not sampling.ignore_eos
            output.finish = "stop" if ended or self._stops.stopped else "length"
            output.text += self._stops.flush()
        if sampling.top is not None:
            count = output.tokens
            output.ids, output.logprobs, output.top = tokens.ids[:count], tokens.logprobs[:count], tokens.top[:count]
        return output

    @property
    def scored(self) -> ScoredPrompt | None:
        """The prompt with its scores, once it has been run; None where they were not asked for."""
        scores = self.prefix.scores if self.prefix else None
        return ScoredPrompt(self.generation.prompt, scores) if scores else None

    @property
    def run_tokens(self) -> np.ndarray:
        """The tokens that have been run: all but the last one."""
        return np.concatenate([self.prompt, np.asarray(self.produced, np.int32)])[:-1]


class Scheduler:
    """Runs generations on an engine. `run` is the engine thread's loop; the rest is for other threads."""

    def __init__(self, engine: Engine, tokens: TokenBytes, eos_ids: frozenset[int], metrics: Metrics) -> None:
        self.engine = engine
        self._tokens = tokens
        self._eos = eos_ids
        self._metrics = metrics
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._prefilling: Job | None = None
        self._running: dict[int, Job] = {}
        self._slots = Slots(engine.slots)
        self._stopping = False
        self._door = threading.Lock()  # nothing is put into the inbox after it was emptied for the last time

    @property
    def running(self) -> int:
        """How many requests have a slot."""
        return len(self._running) + (self._prefilling is not None)

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self._waiting) + self._inbox.qsize()

    @property
    def usage(self) -> float:
        """The share of the cache that the answers under way hold, 0 to 1."""
        held = sum(len(job.prompt) + len(job.produced) for job in list(self._running.values()))
        return held / (self.engine.slots * self.engine.window)

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
            self._slots = Slots(self.engine.slots)
            self.engine.reset()

    def _prefill(self) -> None:
        """Run prompts for one chunk's worth of tokens, one prompt after another."""
        budget = self.engine.chunk
        while budget > 0 and (job := self._prefilling or self._admit()) is not None:
            try:
                budget -= self._run_chunk(job)
            except Exception as error:
                if not self.engine.intact:
                    raise
                log.exception("a prompt failed")
                self._drop(job, "error")
                job.deliver(Output(error=error))

    def _run_chunk(self, job: Job) -> int:
        prefix, count = job.prefix, 0
        assert prefix is not None
        if not prefix.ready:
            count = self.engine.prefill(prefix)
            self._slots.fill(prefix.slot, job.prompt[: prefix.held])
        if prefix.ready:
            self._prefilling = None
            self._begin(job, prefix)
        return count

    def _begin(self, job: Job, prefix: Prefix) -> None:
        """Let a prompt that has been run be answered; one that asks for no token is done."""
        if job.generation.limit:
            self.engine.insert(prefix, job.generation.sampling, job.generation.limit)
            self._running[prefix.slot] = job
            return
        self._slots.give_back(prefix.slot)
        self._metrics.finished("length", time.perf_counter() - job.submitted)
        job.deliver(Output(cached=job.cached, prompt=job.scored, finish="length"))

    def _admit(self) -> Job | None:
        if not self._waiting or not self._slots.free:
            return None
        job = self._prefilling = self._waiting.popleft()
        place = self._slots.take(job.prompt)
        assert place is not None
        score = job.generation.score
        if score is not None:  # keys and values that are there already tell nothing of their tokens
            self._slots.fill(place.slot, job.prompt[:0])
            place = Place(place.slot, place.slot, 0)
        if place.source != place.slot:
            self.engine.copy(place.source, place.slot, place.common)
        job.cached = place.common
        job.prefix = Prefix(job.prompt, place.slot, place.common, None if score is None else PromptScores(score))
        self._metrics.admitted(len(job.prompt), place.common, time.perf_counter() - job.submitted)
        return job

    def _decode(self) -> None:
        for slot, tokens in self.engine.generate().items():
            job = self._running[slot]
            try:
                output = job.take(tokens, self._eos)
            except Exception as error:
                log.exception("a request failed")
                output = Output(error=error)
            self._account(job, output)
            if output.last:
                self._finish(slot, job)
            job.deliver(output)

    def _account(self, job: Job, output: Output) -> None:
        now = time.perf_counter()
        if job.first is None:
            job.first = now
            self._metrics.first_token(now - job.submitted)
        self._metrics.generated(output.tokens, None if job.latest is None else now - job.latest)
        job.latest = now
        if output.last:
            self._metrics.finished(output.finish or "error", now - job.submitted)
            self._metrics.answer(len(job.produced))
            if len(job.produced) > 1:
                self._metrics.per_token((now - job.first) / (len(job.produced) - 1))

    def _finish(self, slot: int, job: Job) -> None:
        del self._running[slot]
        self.engine.release(slot)
        self._slots.fill(slot, job.run_tokens)
        self._slots.give_back(slot)

    def _drop(self, job: Job, reason: str = "abort") -> None:
        """Take a job out, wherever it is; one that is finished already is nowhere."""
        if job in self._waiting:
            self._waiting.remove(job)
        elif job is self._prefilling:
            assert job.prefix is not None
            self._prefilling = None
            self._slots.give_back(job.prefix.slot)
        elif job.prefix is not None and self._running.get(job.prefix.slot) is job:
            self._finish(job.prefix.slot, job)
        else:
            return
        self._metrics.finished(reason, time.perf_counter() - job.submitted)

    def _fail_all(self, error: Exception, waiting: bool = True) -> None:
        jobs: list[Job] = [*self._running.values(), *([self._prefilling] if self._prefilling else [])]
        if waiting:
            jobs += self._waiting
            self._waiting.clear()
        self._running.clear()
        self._prefilling = None
        for job in jobs:
            self._metrics.finished("error", time.perf_counter() - job.submitted)
            job.deliver(Output(error=error))

    def _stop(self) -> None:
        self._stopping = True


async def stream(scheduler: Scheduler, generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Output], None]:
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
