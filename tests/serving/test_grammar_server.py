"""Answers of a given form from a real server over random weights: whatever fits, fits by the grammar alone."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from serving.running import RunningServer, start_server

WINDOW = 1000
USER = [{"role": "user", "content": "fox"}]
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}, "up": {"type": "boolean"}},
    "required": ["x", "up"],
    "additionalProperties": False,
}
COLOUR = {
    "type": "object",
    "properties": {"colour": {"$ref": "#/$defs/C"}},
    "required": ["colour"],
    "additionalProperties": False,
    "$defs": {"C": {"enum": ["red", "é"]}},
}
TOOLS = [
    {"type": "function", "function": {"name": "move", "description": "go", "parameters": POINT}},
    {"type": "function", "function": {"name": "paint", "parameters": COLOUR}},
    {"type": "function", "function": {"name": "rest", "parameters": {"properties": {}, "additionalProperties": False}}},
]
PARAMETERS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
LEAVES = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer", "minimum": -5, "maximum": 300},
        {"type": "number", "minimum": 0.5, "maximum": 2, "multipleOf": 0.5},
        {"type": "string", "maxLength": 6},
        {"type": "string", "pattern": "^[a-c]{1,4}$"},
        {"enum": ["fox", 7, None, {"a": [1]}]},
        {"const": '"é\\'},
        {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "boolean"}]},
    ]
)


def nested(inner: st.SearchStrategy) -> st.SearchStrategy:
    names = st.sampled_from(["a", "b c", 'd"', "é"])
    lists = st.tuples(inner, st.integers(0, 1), st.integers(1, 2)).map(
        lambda one: {"type": "array", "items": one[0], "minItems": one[1], "maxItems": one[2]}
    )
    objects = st.tuples(st.dictionaries(names, inner, max_size=2), st.booleans()).map(
        lambda one: {
            "type": "object",
            "properties": one[0],
            "required": sorted(one[0]) if one[1] else [],
            "additionalProperties": False,
        }
    )
    return lists | objects


SCHEMAS = st.recursive(LEAVES, nested, max_leaves=3)


def as_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def asked(seed: int = 0, **settings: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": USER, "temperature": 1.0, "seed": seed} | settings


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The tiny model with more positions, for a prompt that tells of tools is long in a small vocabulary."""
    longer = tmp_path_factory.mktemp("longer") / "tiny"
    shutil.copytree(folder, longer)
    config = json.loads((longer / "config.json").read_text())
    (longer / "config.json").write_text(json.dumps(config | {"max_position_embeddings": WINDOW}))
    with start_server(longer, slots=2) as server:
        server.service.wait_ready(timeout=200)
        yield server


@pytest.fixture(scope="module")
def compact(tokenizer: Tokenizer) -> dict[str, int]:
    """A bias against white space, of which random weights write more than the window holds."""
    return {str(tokenizer.encode(blank).ids[0]): -100 for blank in (" ", "\n")}


@given(schema=SCHEMAS, seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_answer_fits_its_schema_whole_and_streamed(
    client: openai.OpenAI, compact: dict[str, int], schema: dict[str, Any], seed: int
) -> None:
    request = asked(seed, response_format=as_format(schema), logit_bias=compact)
    whole = client.chat.completions.create(**request).choices[0]
    assert whole.finish_reason == "stop"
    jsonschema.validate(json.loads(whole.message.content), schema)
    chunks = list(client.chat.completions.create(stream=True, **request))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_penalties_bias_log_probabilities_and_several_answers_go_with_a_form(
    client: openai.OpenAI, compact: dict[str, int], temperature: float
) -> None:
    request = asked(response_format=as_format(POINT), n=3, logprobs=True, top_logprobs=2, temperature=temperature)
    request |= {"frequency_penalty": 1.5, "presence_penalty": 0.5, "logit_bias": compact, "top_p": 0.9}
    answer = client.chat.completions.create(**request, extra_body={"repetition_penalty": 1.3, "top_k": 5, "min_p": 0.1})
    for choice in answer.choices:
        jsonschema.validate(json.loads(choice.message.content), POINT)
        written = b"".join(bytes(one.bytes) for one in choice.logprobs.content[:-1])
        assert written.decode() == choice.message.content
        assert all(one.logprob > -1e4 for one in choice.logprobs.content)  # the model's own, before the form


def test_any_object(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    brace = {str(tokenizer.encode("}").ids[0]): 100}
    answer = client.chat.completions.create(**asked(response_format={"type": "json_object"}, logit_bias=brace))
    assert answer.choices[0].message.content == "{}"


def test_an_answer_that_is_cut_off_says_so(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**asked(response_format=as_format(POINT), max_tokens=4)).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.content.startswith("{") and "}" not in choice.message.content


FORMS = {
    "structured_outputs regex": (
        {"structured_outputs": {"regex": "(the|fox){2}"}},
        {"thethe", "thefox", "foxthe", "foxfox"},
    ),
    "structured_outputs choice": ({"structured_outputs": {"choice": ["red", "é"]}}, {"red", "é"}),
    "structured_outputs json": ({"structured_outputs": {"json": {"const": 7}}}, {"7"}),
    "guided_json as text": ({"guided_json": '{"const": 7}'}, {"7"}),
    "guided_regex": ({"guided_regex": "[0-1]"}, {"0", "1"}),
    "guided_choice": ({"guided_choice": ["red"]}, {"red"}),
}


@pytest.mark.parametrize(("fields", "right"), FORMS.values(), ids=FORMS.keys())
def test_the_forms_of_vllm(client: openai.OpenAI, fields: dict[str, Any], right: set[str]) -> None:
    answer = client.chat.completions.create(**asked(), extra_body=fields)
    assert answer.choices[0].message.content in right
    answer = client.completions.create(model="tiny", prompt="fox", max_tokens=20, extra_body=fields)
    assert answer.choices[0].text in right


def check_calls(calls: list[Any]) -> None:
    for call in calls:
        arguments = json.loads(call.function.arguments)
        assert isinstance(arguments, dict)
        jsonschema.validate(arguments, PARAMETERS[call.function.name])


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_fits_its_tool(client: openai.OpenAI, compact: dict[str, int], seed: int) -> None:
    request = asked(seed, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, logit_bias=compact)
    whole = client.chat.completions.create(**request).choices[0]
    assert (whole.finish_reason, whole.message.content, len(whole.message.tool_calls)) == ("tool_calls", None, 1)
    check_calls(whole.message.tool_calls)
    with client.chat.completions.stream(**request) as events:
        streamed = events.get_final_completion().choices[0].message.tool_calls
    assert [(one.function.name, one.function.arguments) for one in streamed] == [
        (one.function.name, one.function.arguments) for one in whole.message.tool_calls
    ]


def test_several_calls_may_be_made_at_once(client: openai.OpenAI, compact: dict[str, int]) -> None:
    """A bias for the end of a line lets calls follow each other until the window ends."""
    line = dict.fromkeys(list(compact)[1:], 100)
    request = asked(tools=TOOLS[2:], tool_choice="required", logit_bias=line, max_tokens=150)
    choice = client.chat.completions.create(**request).choices[0]
    assert choice.finish_reason == "length"
    assert len(choice.message.tool_calls) > 1
    check_calls(choice.message.tool_calls[:-1])


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_named_tool_is_the_one_that_is_called(client: openai.OpenAI, compact: dict[str, int], name: str) -> None:
    choice = {"type": "function", "function": {"name": name}}
    answer = client.chat.completions.create(**asked(tools=TOOLS, tool_choice=choice, logit_bias=compact))
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == name
    check_calls([call])


def test_a_call_that_breaks_off_is_told_as_far_as_it_was_written(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "paint"}}
    request = asked(tools=TOOLS, tool_choice=choice)
    whole = client.chat.completions.create(**request, logprobs=True).choices[0]
    most = len(whole.logprobs.content) - 8
    cut = client.chat.completions.create(**request, max_tokens=most).choices[0]
    assert cut.finish_reason == "length"
    (call,) = cut.message.tool_calls
    assert call.function.name == "paint"
    assert whole.message.tool_calls[0].function.arguments.startswith(call.function.arguments)


async def test_together_each_gives_what_it_gives_alone(server: RunningServer, compact: dict[str, int]) -> None:
    requests = [
        asked(1, response_format=as_format(POINT), logit_bias=compact),
        asked(2, max_tokens=40),
        asked(3, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, logit_bias=compact),
        asked(4, temperature=0, max_tokens=30),
        asked(5, response_format=as_format(COLOUR)),
        asked(6, max_tokens=25, frequency_penalty=1.0),
    ]
    async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:

        async def ask(request: dict[str, Any]) -> Any:
            message = (await client.chat.completions.create(**request)).choices[0].message
            calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
            return message.content, calls

        alone = [await ask(request) for request in requests]
        assert await asyncio.gather(*(ask(request) for request in requests)) == alone
    jsonschema.validate(json.loads(alone[0][0]), POINT)


BAD = {
    "a keyword nobody keeps": {"response_format": as_format({"not": {"type": "string"}})},
    "a type there is not": {"response_format": as_format({"type": "strung"})},
    "no schema": {"response_format": {"type": "json_schema"}},
    "another type of form": {"response_format": {"type": "xml"}},
    "two forms": {"response_format": {"type": "json_object"}, "guided_regex": "a"},
    "a pattern that is none": {"guided_regex": "(a"},
    "a form of vLLM that is not here": {"structured_outputs": {"grammar": "root ::= a"}},
    "no choices": {"guided_choice": []},
    "a schema that is no JSON": {"guided_json": "{"},
    "a call without tools": {"tool_choice": "required"},
    "a tool that is not there": {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "mov"}}},
    "a tool choice there is not": {"tools": TOOLS, "tool_choice": "always"},
    "a tool whose schema is none": {
        "tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {"type": "string"}}}}],
        "tool_choice": "required",
    },
}  # fmt: skip


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD.keys())
def test_a_form_that_cannot_be_given_is_refused(server: RunningServer, fields: dict[str, Any]) -> None:
    answer = httpx.post(server.url + "/chat/completions", json=asked() | fields, timeout=60)
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert len(message) < 300 and "\n" not in message


def test_the_nearest_tool_is_named(server: RunningServer) -> None:
    fields = BAD["a tool that is not there"]
    answer = httpx.post(server.url + "/chat/completions", json=asked() | fields, timeout=60)
    assert "did you mean 'move'" in answer.json()["error"]["message"]
