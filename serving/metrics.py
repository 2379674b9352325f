"""What the server counts, for Prometheus, under vLLM's names where the meaning is vLLM's."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
TOKEN_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """Counters of one server, labelled with the name its model is served under."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time, open files
        self._model = model
        self._running = self._gauge("vllm:num_requests_running", "Requests that have a slot.")
        self._waiting = self._gauge("vllm:num_requests_waiting", "Requests that wait for a slot.")
        self._usage = self._gauge("vllm:kv_cache_usage_perc", "Share of the cache that running requests hold, 0 to 1.")
        self._open = self._gauge(
            "comem:open_answers", "Answers under way or waiting, of which --queue bounds the number."
        )
        self._tasks = self._gauge("comem:event_loop_tasks", "Tasks of the HTTP server.")
        self._prompt = self._counter("vllm:prompt_tokens", "Prompt tokens of admitted requests.")
        self._cached = self._counter("vllm:prefix_cache_hits", "Prompt tokens found in a slot and not run again.")
        self._asked = self._counter("vllm:prefix_cache_queries", "Prompt tokens looked for in the slots.")
        self._generated = self._counter("vllm:generation_tokens", "Generated tokens.")
        self._queue = self._histogram("vllm:request_queue_time_seconds", "From submission to a slot.", SECONDS)
        self._first = self._histogram("vllm:time_to_first_token_seconds", "From submission to a token.", SECONDS)
        self._latency = self._histogram("vllm:e2e_request_latency_seconds", "From submission to the end.", SECONDS)
        self._token = self._histogram(
            "vllm:request_time_per_output_token_seconds", "Between tokens, a request's mean.", TOKEN_SECONDS
        )
        between = "Between two outputs of a request, for each token of the later one."
        self._between = [
            self._histogram("vllm:inter_token_latency_seconds", between, TOKEN_SECONDS),
            self._histogram("vllm:time_per_output_token_seconds", f"{between} The older name.", TOKEN_SECONDS),
        ]
        self._prompts = self._histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self._answers = self._histogram("vllm:request_generation_tokens", "Generated tokens of a request.", TOKENS)
        self._restarts = self._counter("comem:engine_restarts", "How often the engine was begun again.")
        labels = ("model_name", "finished_reason")
        self._finished = Counter("vllm:request_success", "Generations by their end.", labels, registry=self.registry)
        places = ("model_name", "endpoint", "status")
        self._answered = Counter("comem:http_requests", "Requests by HTTP status.", places, registry=self.registry)

    def watch(self, running: Callable[[], float], waiting: Callable[[], float], usage: Callable[[], float]) -> None:
        """Read the three gauges from the scheduler whenever they are asked for."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)
        self._usage.set_function(usage)

    def restarted(self) -> None:
        """Count an engine that is begun again."""
        self._restarts.inc()

    def admitted(self, prompt: int, cached: int, waited: float) -> None:
        """Count a request that got a slot after `waited` seconds: its prompt's tokens, and those not run again."""
        self._prompt.inc(prompt)
        self._prompts.observe(prompt)
        self._asked.inc(prompt)
        self._cached.inc(cached)
        self._queue.observe(waited)

    def first_token(self, seconds: float) -> None:
        """Count the first token of an answer, `seconds` after it was submitted."""
        self._first.observe(seconds)

    def generated(self, tokens: int, seconds: float | None) -> None:
        """Count the tokens of an output that came `seconds` after the one before it; None for an answer's first."""
        self._generated.inc(tokens)
        if seconds is not None and tokens:
            for histogram in self._between:
                histogram.observe(seconds / tokens)

    def answer(self, tokens: int) -> None:
        """Count how long an answer became."""
        self._answers.observe(tokens)

    def per_token(self, seconds: float) -> None:
        """Count the mean time between an answer's tokens."""
        self._token.observe(seconds)

    def finished(self, reason: str, seconds: float) -> None:
        """Count a generation's end (stop, length, abort or error), `seconds` after it was submitted."""
        self._finished.labels(self._model, reason).inc()
        self._latency.observe(seconds)

    def answered(self, endpoint: str, status: int) -> None:
        """Count an HTTP answer; 499 stands for a client that went away."""
        self._answered.labels(self._model, endpoint, str(status)).inc()

    def exposition(self, answers: int, tasks: int) -> bytes:
        """Return the text that `/metrics` answers, with the open answers and the event loop's tasks of this moment."""
        self._open.set(answers)
        self._tasks.set(tasks)
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ("model_name",), registry=self.registry).labels(self._model)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ("model_name",), registry=self.registry).labels(self._model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, ("model_name",), buckets=buckets, registry=self.registry).labels(self._model)
