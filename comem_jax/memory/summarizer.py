"""The call to the memory model."""

from __future__ import annotations

from collections.abc import Sequence

from comem_jax.endpoint import Completion, Endpoint, EndpointError
from comem_jax.memory.history import Step, Summary, Task
from comem_jax.memory.prompt import memory_messages

SUMMARY_TOKENS = 2048


class SummaryError(Exception):
    """The memory model gave no summary that can be used; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Summarizer:
    """Asks the memory model behind `endpoint` for summaries of at most `max_tokens` tokens."""

    def __init__(self, endpoint: Endpoint, max_tokens: int = SUMMARY_TOKENS) -> None:
        self.endpoint = endpoint
        self.max_tokens = max_tokens

    async def summarize(self, task: Task, steps: Sequence[Step], coverage: int, base: Summary | None = None) -> Summary:
        """Return a summary of `base` (if any) and `steps`, the last of which is step `coverage`.

        Raises `SummaryError` for an empty or truncated answer and for a call that failed.
        """
        try:
            answer = await self.endpoint.complete(memory_messages(task, steps, base), max_tokens=self.max_tokens)
        except EndpointError as error:
            raise SummaryError(str(error)) from error
        return Summary(_usable_text(answer), coverage, answer.completion_tokens)


def _usable_text(answer: Completion) -> str:
    if answer.finish_reason == "length":
        raise SummaryError(f"the summary was cut off after {answer.completion_tokens} tokens")
    text = answer.content.strip()
    if not text or text.startswith("<think>"):  # reasoning that never ended is no summary
        raise SummaryError("the summary is empty")
    return text
