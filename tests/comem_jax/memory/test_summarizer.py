"""The memory call: what is sent, and which answers are summaries."""

import pytest

from comem_jax.actions import Action
from comem_jax.endpoint import Completion, Endpoint, EndpointError
from comem_jax.memory.history import Step, Summary, Task
from comem_jax.memory.prompt import memory_messages
from comem_jax.memory.summarizer import SUMMARY_TOKENS, Summarizer, SummaryError
from tests.comem_jax.openai_server import answer, serving

TASK = Task("t", "Mend it.", "You repair.", ("a pin",))
STEPS = [Step(i, f"thought {i}", Action("search", {"search_term": "x"}), f"seen {i}") for i in (1, 2, 3)]


async def test_a_real_call_sends_the_prompt_builders_messages():
    with serving(lambda body: answer("  facts\n")) as server:
        endpoint = Endpoint(server.url, "m")
        summary = await Summarizer(endpoint).summarize(TASK, STEPS, 3)
        base = Summary("old facts", 1)
        await Summarizer(endpoint, max_tokens=99).summarize(TASK, STEPS[1:], 3, base)
        await endpoint.close()
    assert summary == Summary("facts", 3, tokens=3)
    assert server.bodies[0]["messages"] == memory_messages(TASK, STEPS)
    assert server.bodies[0]["max_tokens"] == SUMMARY_TOKENS == 2048
    assert server.bodies[1]["messages"] == memory_messages(TASK, STEPS[1:], base)
    assert server.bodies[1]["max_tokens"] == 99
    assert "tools" not in server.bodies[0]


class Scripted:
    """An endpoint with one answer."""

    def __init__(self, result):
        self.result = result

    async def complete(self, messages, **options):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (Completion(""), "empty"),
        (Completion(" \n\t"), "empty"),
        (Completion("", reasoning="only thought"), "empty"),
        (Completion("<think>never ended"), "empty"),
        (Completion("facts", finish_reason="length", completion_tokens=2048), "cut off after 2048 tokens"),
        (EndpointError(503, "overloaded"), "overloaded"),
        (EndpointError(None, "gone"), "gone"),
    ],
)
async def test_answers_that_are_no_summary(result, reason):
    with pytest.raises(SummaryError, match=reason) as error:
        await Summarizer(Scripted(result)).summarize(TASK, STEPS, 3)
    assert error.value.reason == str(error.value)


async def test_a_think_block_alone_is_empty_through_the_real_client():
    with serving(lambda body: answer("<think>hm</think>\n ")) as server:
        endpoint = Endpoint(server.url, "m")
        with pytest.raises(SummaryError, match="empty"):
            await Summarizer(endpoint).summarize(TASK, STEPS, 3)
        await endpoint.close()
