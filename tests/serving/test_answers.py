"""Answers with tool calls, from text such as a trained model writes."""

from __future__ import annotations

import json

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tokenizers import Tokenizer

from serving.answers import Answer, ChatForm, TextForm
from serving.jobs import Output
from serving.text import TokenBytes

TEXT = (
    "<think>\nI should look.\n</think>\n\nLet me look.\n"
    '<tool_call>\n{"name": "view", "arguments": {"path": "a.py"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "bash", "arguments": {"command": "ls -l"}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def tokens(tokenizer: Tokenizer) -> TokenBytes:
    return TokenBytes(tokenizer)


def outputs(size: int, finish: str = "stop") -> list[Output]:
    pieces = [Output(TEXT[at : at + size], tokens=2, cached=7) for at in range(0, len(TEXT), size)]
    return [*pieces, Output(tokens=1, cached=7, finish=finish)]


def called(calls: list) -> list[tuple[str, dict]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


CALLS = [("view", {"path": "a.py"}), ("bash", {"command": "ls -l"})]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_tool_calls_in_a_whole_answer(tokens: TokenBytes, size: int) -> None:
    answer = Answer(ChatForm(tools=True), "tiny", [10], 1)
    for output in outputs(size):
        answer.take(0, output, tokens)
    whole = ChatCompletion.model_validate(answer.whole())
    message = whole.choices[0].message
    assert called(message.tool_calls) == CALLS
    assert message.content == "Let me look."
    assert message.reasoning_content == "I should look."
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.usage.prompt_tokens_details.cached_tokens == 7


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_tool_calls_in_a_stream(tokens: TokenBytes, size: int) -> None:
    answer = Answer(ChatForm(tools=True, eager=True), "tiny", [10], 1)
    chunks = [chunk for output in outputs(size) if (chunk := answer.take(0, output, tokens)) is not None]
    choices = [ChatCompletionChunk.model_validate(chunk).choices[0] for chunk in chunks]
    pieces = [call for choice in choices for call in choice.delta.tool_calls or []]
    written = ["".join(one.function.arguments for one in pieces if one.index == index) for index in range(2)]
    assert [(one.index, one.function.name) for one in pieces if one.id] == [(0, "view"), (1, "bash")]
    assert [json.loads(one) for one in written] == [arguments for _, arguments in CALLS]
    assert len({one.id for one in pieces if one.id}) == 2
    assert "".join(choice.delta.content or "" for choice in choices) == "Let me look."
    assert "".join(getattr(choice.delta, "reasoning_content", "") for choice in choices) == "I should look."
    assert [choice.delta.role for choice in choices] == ["assistant"] + [None] * (len(choices) - 1)
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["tool_calls"]


def test_an_answer_cut_off_keeps_its_reason(tokens: TokenBytes) -> None:
    answer = Answer(ChatForm(tools=True), "tiny", [10], 1)
    for output in outputs(50, finish="length"):
        answer.take(0, output, tokens)
    assert answer.whole()["choices"][0]["finish_reason"] == "length"


def test_without_tools_the_text_is_left_alone(tokens: TokenBytes) -> None:
    answer = Answer(ChatForm(), "tiny", [10], 1)
    for output in outputs(9):
        answer.take(0, output, tokens)
    choice = answer.whole()["choices"][0]
    assert choice["message"]["content"] == TEXT.partition("</think>")[2].strip()
    assert choice["finish_reason"] == "stop"


def test_usage_counts_each_prompt_once(tokens: TokenBytes) -> None:
    answer = Answer(TextForm(), "tiny", [10, 20], 2)
    for index, cached in enumerate([3, 9, 5, 19]):
        answer.take(index, Output("x", tokens=4, cached=cached, finish="stop"), tokens)
    usage = Completion.model_validate(answer.whole()).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (30, 16, 46)
    assert usage.prompt_tokens_details.cached_tokens == 8
