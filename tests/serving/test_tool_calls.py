"""Tool calls of a real server, as the `openai` package and litellm read them."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import openai
import pytest

from serving.running import RunningServer, start_server
from tests.serving.learnt import CALLS, TOOL, USER, make_learnt

ASKED: dict[str, Any] = {"messages": USER, "tools": [TOOL], "temperature": 0}
KEY = "a key of its own"


@pytest.fixture(scope="module")
def calling(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    target = tmp_path_factory.mktemp("learnt") / "caller"
    make_learnt(folder, target)
    with start_server(target, slots=2, api_key=KEY) as server:
        server.service.wait_ready(timeout=200)
        yield server


@pytest.fixture
def caller(calling: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=calling.url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def litellm() -> ModuleType:
    """Litellm, which otherwise asks the network for prices when it is imported."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    return importlib.import_module("litellm")


def read(message: Any) -> tuple[str, str, list[tuple[str, Any]]]:
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls]
    return message.reasoning_content, message.content, calls


def test_a_whole_answer(caller: openai.OpenAI) -> None:
    choice = caller.chat.completions.create(model="caller", **ASKED).choices[0]
    assert read(choice.message) == ("hm", "So.", CALLS)
    assert choice.finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [True, False])
def test_one_call_where_no_more_are_wanted(caller: openai.OpenAI, stream: bool) -> None:
    if stream:
        with caller.chat.completions.stream(model="caller", parallel_tool_calls=False, **ASKED) as events:
            choice = events.get_final_completion().choices[0]
    else:
        choice = caller.chat.completions.create(model="caller", parallel_tool_calls=False, **ASKED).choices[0]
    assert read(choice.message)[1:] == ("So.", CALLS[:1])
    assert choice.finish_reason == "tool_calls"


def test_a_stream_hands_out_arguments_while_they_are_written(caller: openai.OpenAI) -> None:
    chunks = list(caller.chat.completions.create(model="caller", stream=True, **ASKED))
    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [piece.index for piece in pieces if piece.id] == [0, 1]
    assert all(piece.type == "function" and piece.function.name for piece in pieces if piece.id)
    for index, (_, arguments) in enumerate(CALLS):
        written = [piece.function.arguments for piece in pieces if piece.index == index]
        assert len(written) > 1
        assert json.loads("".join(written)) == arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_openai_packages_own_accumulator(caller: openai.OpenAI) -> None:
    with caller.chat.completions.stream(model="caller", **ASKED) as events:
        done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
        final = events.get_final_completion().choices[0].message
    assert [(event.name, json.loads(event.arguments)) for event in done] == CALLS
    assert read(final)[1:] == ("So.", CALLS)


def test_litellm_reads_an_answer_and_a_stream(calling: RunningServer, litellm: ModuleType) -> None:
    asked = {"model": "openai/caller", "api_base": calling.url, "api_key": KEY, "num_retries": 0, **ASKED}
    whole = litellm.completion(**asked)
    built = litellm.stream_chunk_builder(list(litellm.completion(stream=True, **asked)))
    for answer in (whole, built):
        assert read(answer.choices[0].message) == ("hm", "So.", CALLS)
        assert answer.choices[0].finish_reason == "tool_calls"


def test_litellm_knows_the_servers_errors(calling: RunningServer, litellm: ModuleType) -> None:
    asked = {"model": "openai/caller", "api_base": calling.url, "num_retries": 0, "messages": USER}
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(api_key="another", **asked)
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(api_key=KEY, temperature=3, **asked)
