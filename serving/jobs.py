"""What is asked of an engine, what comes of it, and a request on its way between the two."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from serving.engine import Prefix, Sampling, Tokens
from serving.grammar import Grammar
from serving.metrics import Metrics
from serving.scores import ScoredPrompt
from serving.text import Detokenizer, StopMatcher, TokenBytes

STOPPING = "the server is stopping"


class UnavailableError(RuntimeError):
    """Why a generation that was in order is not done: the scheduler is stopping, or its engine failed for good."""


@dataclass(frozen=True)
class Generation:
    """One answer to generate: prompt token ids, the most tokens to generate, how to sample, and what stops it: strings,
    which are left out of the answer, and token ids, which are not.

    A `limit` of 0 runs the prompt alone. `score` asks for the log-probabilities of the prompt's own tokens, with so
    many alternatives each; such a prompt is run from its beginning, whatever the slots hold of it. With a `grammar`
    the answer is of its form; end tokens come where it allows them, and `min_tokens` where it leaves another choice.
    """

    prompt: list[int]
    limit: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    score: int | None = None
    grammar: Grammar | None = None


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
        self.slot = -1
        self.cached = 0
        self.submitted = self.admitted = time.perf_counter()
        self.first: float | None = None
        self.latest: float | None = None
        self.deliver = deliver
        self.guide = generation.grammar.begin() if generation.grammar else None
        self._detokenizer = Detokenizer(tokens)
        self._stops = StopMatcher(generation.stop)

    def take(self, tokens: Tokens, eos: frozenset[int]) -> Output:
        """Turn a round's tokens into output, up to a stop string or the end."""
        sampling = self.generation.sampling
        output = Output(cached=self.cached, prompt=None if self.produced else self.scored)
        if self.guide:
            self.guide.take(tokens.ids)
        for token in tokens.ids:
            self.produced.append(token)
            output.tokens += 1
            output.text += self._stops.push(self._detokenizer.push(token))
            if self._stops.stopped or (token in self.generation.stop_ids and len(self.produced) > sampling.least):
                if not self._stops.stopped:
                    output.text += self._stops.push(self._detokenizer.flush()) + self._stops.flush()
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

    def account(self, output: Output, metrics: Metrics) -> None:
        """Count an output that is about to be delivered."""
        now = time.perf_counter()
        if output.tokens:
            if self.first is None:
                self.first = now
                metrics.first_token(now - self.submitted)
            metrics.generated(output.tokens, None if self.latest is None else now - self.latest)
            self.latest = now
        if output.last:
            metrics.finished(output.finish or "error", now - self.submitted)
        if output.last and self.first is not None:
            metrics.answer(len(self.produced))
            if len(self.produced) > 1:
                metrics.per_token((now - self.first) / (len(self.produced) - 1))

    @property
    def scored(self) -> ScoredPrompt | None:
        """The prompt with its scores, once it has been run; None where they were not asked for."""
        scores = self.prefix.scores if self.prefix else None
        return ScoredPrompt(self.generation.prompt, scores) if scores else None

    @property
    def tokens(self) -> np.ndarray:
        """The prompt and what has been generated."""
        return np.concatenate([self.prompt, np.asarray(self.produced, np.int32)])

    @property
    def left(self) -> int:
        """How many tokens of a prompt under way are still to be run."""
        assert self.prefix is not None
        return len(self.prefix.sequence.tokens) - self.prefix.sequence.held
