"""The OpenAI front over JetStream's driver, next to our own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from serving.running import RunningServer
from tests.serving.conftest import WINDOW
from tests.serving.test_server import TOOL, metrics, wait_until

Ask = Callable[[RunningServer, dict[str, Any]], Any]
GREEDY = {"model": "tiny", "temperature": 0, "ignore_eos": True}
PROMPT = GREEDY | {"prompt": "the lazy dog", "max_tokens": 24, "logprobs": 2}
CHAT = GREEDY | {"messages": [{"role": "user", "content": "東京 fox"}], "max_tokens": 24}
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    with httpx.Client(timeout=60) as http:

        def ask(server: RunningServer, body: dict[str, Any]) -> Any:
            path = "/chat/completions" if "messages" in body else "/completions"
            answer = http.post(server.url + path, json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        yield ask


def told(answer: Any) -> Any:
    """An answer without what differs from one to the next of the same: ids, the time, what was found of the prompt."""
    if isinstance(answer, list):
        return [told(one) for one in answer]
    if isinstance(answer, dict):
        passing = ("id", "created", "prompt_tokens_details")
        return {key: told(value) for key, value in answer.items() if key not in passing}
    return answer


def near(answer: Any) -> Any:
    """What is to be compared with: numbers need not be the same to the last bit, since batches differ."""
    if isinstance(answer, list):
        return [near(one) for one in answer]
    if isinstance(answer, dict):
        return {key: near(value) for key, value in answer.items()}
    return pytest.approx(answer, abs=1e-4) if isinstance(answer, float) else answer


def test_fifty_prompts_have_the_same_greedy_tokens_and_logprobs(
    server: RunningServer, jetstream_server: RunningServer, ask: Ask
) -> None:
    bodies = [
        PROMPT | {"prompt": f"{n} naïve fox 東京 " * (1 + n % 7), "max_tokens": 3 + n % 11, "ignore_eos": n % 3 > 0}
        for n in range(50)
    ]
    with ThreadPoolExecutor(8) as pool:
        own = list(pool.map(lambda body: ask(server, body), bodies))
        answers = list(pool.map(lambda body: ask(jetstream_server, body), bodies))
    assert len({answer["choices"][0]["text"] for answer in own}) > 40
    for answer, expected in zip(answers, own, strict=True):
        assert told(answer) == near(told(expected))


@pytest.mark.parametrize(
    "body",
    [
        PROMPT | {"temperature": 1, "seed": 7, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "ignore_eos": False},
        PROMPT | {"temperature": 1, "seed": 3, "n": 6, "logprobs": None},
        PROMPT | {"frequency_penalty": 2.0, "presence_penalty": 1.0, "logit_bias": {"5": -100}},
        PROMPT | {"min_tokens": 20, "ignore_eos": False},
        PROMPT | {"stop_token_ids": list(range(60, 90))},
        PROMPT | {"echo": True, "prompt_logprobs": 2, "max_tokens": 3},
        PROMPT | {"echo": True, "max_tokens": 0},
        PROMPT | {"max_tokens": 1},
        PROMPT | {"prompt": ["fox", "dog", "quick"], "max_tokens": WINDOW},
        PROMPT | {"prompt": [[5] * (WINDOW - 1)]},
        CHAT | {"response_format": FORM, "max_tokens": 40},
        CHAT | {"tools": [TOOL], "tool_choice": "required", "max_tokens": 60, "ignore_eos": False},
        CHAT | {"logprobs": True, "top_logprobs": 3},
    ],
    ids=lambda body: ",".join(sorted(set(body) - set(GREEDY) - {"prompt", "messages", "max_tokens"})),
)
def test_either_driver_gives_the_same_answer(
    server: RunningServer, jetstream_server: RunningServer, ask: Ask, body: dict[str, Any]
) -> None:
    assert told(ask(jetstream_server, body)) == near(told(ask(server, body)))


def test_a_form_is_followed(jetstream_server: RunningServer, ask: Ask) -> None:
    answer = ask(jetstream_server, CHAT | {"response_format": FORM, "max_tokens": 40, "ignore_eos": False})
    assert isinstance(json.loads(answer["choices"][0]["message"]["content"])["a"], bool)


def test_a_stop_string_ends_an_answer_and_frees_its_slot(jetstream_server: RunningServer, ask: Ask) -> None:
    whole = ask(jetstream_server, PROMPT | {"max_tokens": 100})["choices"][0]["text"]
    stop = whole[20:23]
    for _ in range(9):  # more often than there are slots
        choice = ask(jetstream_server, PROMPT | {"max_tokens": 100, "stop": stop})["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    assert jetstream_server.service.scheduler.usage == 0


def test_a_prompt_that_was_run_before_is_found(jetstream_server: RunningServer, ask: Ask) -> None:
    body = PROMPT | {"prompt": "once only, " * 12}
    first, again = ask(jetstream_server, body)["usage"], ask(jetstream_server, body)["usage"]
    assert first["prompt_tokens_details"]["cached_tokens"] < 20
    assert again["prompt_tokens_details"]["cached_tokens"] > again["prompt_tokens"] - 5


def test_a_stream_comes_in_pieces_of_whole_characters(jetstream_server: RunningServer) -> None:
    settings: Any = {"model": "tiny", "prompt": "naïve 東京 は日本", "temperature": 1, "seed": 1, "max_tokens": 150}
    with openai.OpenAI(base_url=jetstream_server.url, api_key="none", max_retries=0) as client:
        whole = client.completions.create(**settings, extra_body={"ignore_eos": True}).choices[0].text
        stream = client.completions.create(**settings, extra_body={"ignore_eos": True}, stream=True)
        pieces = [chunk.choices[0].text for chunk in stream]
    assert len(pieces) > 10
    assert "".join(pieces) == whole
    assert not whole.isascii()


def test_a_client_that_goes_away_gives_its_pages_back(jetstream_server: RunningServer, ask: Ask) -> None:
    ask(jetstream_server, PROMPT)  # so that there is something to count
    scheduler, before = jetstream_server.service.scheduler, metrics(jetstream_server)
    with httpx.stream(
        "POST", jetstream_server.url + "/completions", json=PROMPT | {"n": 60, "max_tokens": 200, "stream": True}
    ) as answer:
        lines = answer.iter_lines()  # which would close the connection when dropped
        next(lines)
        assert scheduler.running and scheduler.waiting
    wait_until(lambda: (scheduler.running, scheduler.waiting, scheduler.usage) == (0, 0, 0))
    wait_until(lambda: jetstream_server.service.admission.open == 0)
    now = metrics(jetstream_server)
    assert now["vllm:request_success_total"] - before["vllm:request_success_total"] == 60
    assert now["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"] < 60 * 200
    assert ask(jetstream_server, PROMPT)["usage"]["completion_tokens"] == 24
