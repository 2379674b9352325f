from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jax
import numpy as np
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from comem_jax.chat import ChatFormat
from comem_jax.models import Qwen3
from serving.running import RunningServer
from tests.serving.conftest import WINDOW

GREEDY = {"model": "tiny", "temperature": 0, "extra_body": {"ignore_eos": True}}
USER = [{"role": "user", "content": "the quick brown fox"}]
TOOL = {"type": "function", "function": {"name": "view", "description": "show a file", "parameters": {}}}


@pytest.fixture(scope="module")
def uncached(model: Qwen3) -> Callable[[list[int], int], tuple[list[int], list[float]]]:
    """The model's own greedy continuation and its log-probabilities, without any cache."""
    logits = jax.jit(model)

    def continued(prompt: list[int], count: int) -> tuple[list[int], list[float]]:
        tokens, logprobs = list(prompt), []
        for _ in range(count):
            padded = np.zeros((1, WINDOW), np.int32)
            padded[0, : len(tokens)] = tokens
            row = jax.nn.log_softmax(logits(padded)[0, len(tokens) - 1])
            tokens.append(int(row.argmax()))
            logprobs.append(float(row.max()))
        return tokens[len(prompt) :], logprobs

    return continued


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


def metrics(server: RunningServer) -> dict[str, float]:
    """Every sample, summed over its labels."""
    text = httpx.get(server.url.removesuffix("/v1") + "/metrics").text
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name] = samples.get(sample.name, 0.0) + sample.value
    return samples


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_greedy_chat_is_the_models_own_continuation(
    client: openai.OpenAI, chat_format: ChatFormat, uncached: Callable
) -> None:
    answer = client.chat.completions.create(messages=USER, max_completion_tokens=20, **GREEDY)
    prompt = chat_format.prompt(USER)
    assert answer.choices[0].message.content == chat_format.decode(uncached(prompt, 20)[0]).strip()
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 20)


def test_prompts_as_text_ids_and_lists(client: openai.OpenAI, chat_format: ChatFormat, uncached: Callable) -> None:
    texts = ["the lazy dog", "日本"]
    ids = [chat_format.encode(text) for text in texts]
    expected = [chat_format.decode(uncached(one, 9)[0]) for one in ids]
    for prompt in (texts, ids):
        answer = client.completions.create(prompt=prompt, max_tokens=9, **GREEDY)
        assert [choice.text for choice in answer.choices] == expected
    assert client.completions.create(prompt=texts[0], max_tokens=9, **GREEDY).choices[0].text == expected[0]
    assert client.completions.create(prompt=ids[1], max_tokens=9, **GREEDY).choices[0].text == expected[1]


async def test_requests_together_give_what_each_gives_alone(server: RunningServer) -> None:
    async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:

        async def ask(number: int, temperature: float) -> str:
            settings: dict[str, Any] = GREEDY | {"temperature": temperature, "seed": number, "top_p": 0.9}
            answer = await client.completions.create(
                prompt=f"{number} fox " * number, max_tokens=5 + number, **settings
            )
            return answer.choices[0].text

        for temperature in (0.0, 1.0):
            alone = [await ask(number, temperature) for number in range(1, 8)]
            together = await asyncio.gather(*(ask(number, temperature) for number in range(1, 8)))
            assert together == alone


def test_a_bias_and_penalties_change_the_answer(client: openai.OpenAI, chat_format: ChatFormat) -> None:
    def ids(**settings: Any) -> list[int]:
        extra = settings.pop("extra_body", {})
        answer = client.completions.create(
            prompt="the lazy dog", max_tokens=24, logprobs=0, extra_body=extra | GREEDY["extra_body"], model="tiny",
            temperature=0, **settings,
        )  # fmt: skip
        return [chat_format.encode(name)[0] for name in answer.choices[0].logprobs.tokens]

    plain = ids()
    token = max(plain, key=plain.count)
    assert plain.count(token) > 2
    assert token not in ids(logit_bias={str(token): -100})
    for settings in ({"frequency_penalty": 2.0}, {"extra_body": {"repetition_penalty": 5.0}}):
        assert ids(**settings) != plain
    drawn = [ids(extra_body={"top_k": 1}) for _ in range(2)]
    assert drawn == [plain, plain]


def test_a_token_id_stops_an_answer_and_stays_in_it(client: openai.OpenAI, chat_format: ChatFormat) -> None:
    whole = client.completions.create(prompt="the lazy dog", max_tokens=24, logprobs=0, **GREEDY).choices[0]
    names = whole.logprobs.tokens
    stop = names[4]
    settings = GREEDY | {"extra_body": GREEDY["extra_body"] | {"stop_token_ids": chat_format.encode(stop)}}
    answer = client.completions.create(prompt="the lazy dog", max_tokens=24, logprobs=0, **settings).choices[0]
    assert (answer.finish_reason, answer.logprobs.tokens) == ("stop", names[: names.index(stop) + 1])
    settings["extra_body"]["min_tokens"] = 8
    later = client.completions.create(prompt="the lazy dog", max_tokens=24, logprobs=0, **settings).choices[0]
    assert len(later.logprobs.tokens) > 8


def test_seeds_are_reproducible_and_choices_differ(client: openai.OpenAI) -> None:
    settings = GREEDY | {"temperature": 1.5, "seed": 11}
    answers = [client.chat.completions.create(messages=USER, max_tokens=12, n=3, **settings) for _ in range(2)]
    texts = [[choice.message.content for choice in answer.choices] for answer in answers]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3
    assert answers[0].usage.completion_tokens == 36
    unseeded = GREEDY | {"temperature": 1.5}
    # The model's likeliest answer has 6%, so that two draws may well agree; ten agree once in 10^11 times.
    drawn = {client.completions.create(prompt="fox", max_tokens=12, **unseeded).choices[0].text for _ in range(10)}
    assert len(drawn) > 1


@pytest.mark.parametrize("usage", [True, False])
def test_a_stream_put_together_is_the_answer(client: openai.OpenAI, usage: bool) -> None:
    settings = GREEDY | {"max_tokens": 30, "n": 2, "seed": 3, "temperature": 0.8}
    whole = client.chat.completions.create(messages=USER, **settings)
    options = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = list(client.chat.completions.create(messages=USER, stream=True, **options, **settings))
    texts, ends = ["", ""], [None, None]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == ["length", "length"]
    assert len(chunks) > 2
    last = chunks[-1]
    assert (last.usage.completion_tokens, last.choices) == (60, []) if usage else last.usage is None


def test_a_streamed_completion(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt="the fox", max_tokens=20, logprobs=1, **GREEDY).choices[0]
    chunks = list(client.completions.create(prompt="the fox", max_tokens=20, logprobs=1, stream=True, **GREEDY))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.tokens] == whole.logprobs.tokens
    offsets = [o for c in chunks if c.choices[0].logprobs for o in c.choices[0].logprobs.text_offset]
    assert offsets == whole.logprobs.text_offset


def test_a_stop_string_across_tokens_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    text = client.completions.create(prompt="the fox", max_tokens=30, **GREEDY).choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 5]
    for stream in (False, True):
        answer = client.completions.create(
            prompt="the fox", max_tokens=30, stop=["never there", stop], stream=stream, **GREEDY
        )
        choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        assert "".join(choice.text for choice in choices) == text[: text.find(stop)]
        assert choices[-1].finish_reason == "stop"


def test_log_probabilities_are_the_models(client: openai.OpenAI, chat_format: ChatFormat, uncached: Callable) -> None:
    answer = client.chat.completions.create(messages=USER, max_tokens=10, logprobs=True, top_logprobs=4, **GREEDY)
    content = answer.choices[0].logprobs.content
    _, logprobs = uncached(chat_format.prompt(USER), 10)
    assert sum(token.logprob for token in content) == pytest.approx(sum(logprobs), abs=1e-3)
    assert all(len(token.top_logprobs) == 4 and token.top_logprobs[0].token == token.token for token in content)
    plain = client.chat.completions.create(messages=USER, max_tokens=10, logprobs=True, **GREEDY)
    assert [token.logprob for token in plain.choices[0].logprobs.content] == [token.logprob for token in content]


def test_cached_tokens_are_those_of_the_repeated_prefix(client: openai.OpenAI, chat_format: ChatFormat) -> None:
    first, second = "a prefix of its own, then one", "a prefix of its own, then another"
    common = [a == b for a, b in zip(chat_format.encode(first), chat_format.encode(second), strict=False)].index(False)
    before = client.completions.create(prompt=first, max_tokens=3, **GREEDY).usage
    after = client.completions.create(prompt=second, max_tokens=3, **GREEDY).usage
    again = client.completions.create(prompt=second, max_tokens=3, **GREEDY).usage
    assert before.prompt_tokens_details.cached_tokens < common
    assert after.prompt_tokens_details.cached_tokens == common
    assert again.prompt_tokens_details.cached_tokens == again.prompt_tokens - 1
    assert again.total_tokens == again.prompt_tokens + 3


def test_the_window_ends_an_answer_and_refuses_a_longer_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt=[5] * (WINDOW - 4), max_tokens=100, **GREEDY)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (4, "length")
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(prompt=[5] * WINDOW, max_tokens=1, **GREEDY)
    assert error.value.code == "context_length_exceeded"


BAD_BODIES = {
    "no messages": {"model": "tiny"},
    "empty messages": {"model": "tiny", "messages": []},
    "a message without a role": {"model": "tiny", "messages": [{"content": "a"}]},
    "an unknown role": {"model": "tiny", "messages": [{"role": "boss", "content": "a"}]},
    "an image": {"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    "a temperature of the wrong type": {"model": "tiny", "messages": USER, "temperature": "hot"},
    "no tokens to generate": {"model": "tiny", "messages": USER, "max_tokens": 0},
    "top_p beyond 1": {"model": "tiny", "messages": USER, "top_p": 1.5},
    "too many alternatives": {"model": "tiny", "messages": USER, "logprobs": True, "top_logprobs": 21},
    "an empty stop": {"model": "tiny", "messages": USER, "stop": [""]},
    "a penalty beyond 2": {"model": "tiny", "messages": USER, "frequency_penalty": 2.5},
    "a bias for no token": {"model": "tiny", "messages": USER, "logit_bias": {"the": 1}},
    "a bias for an unknown token": {"model": "tiny", "messages": USER, "logit_bias": {"99999": 1}},
    "a bias beyond 100": {"model": "tiny", "messages": USER, "logit_bias": {"5": 101}},
    "a top_k below -1": {"model": "tiny", "messages": USER, "top_k": -2},
    "an unknown form": {"model": "tiny", "messages": USER, "response_format": {"type": "xml"}},
    "a forced tool that is not there": {"model": "tiny", "messages": USER, "tool_choice": "required"},
    "half a surrogate pair": {"model": "tiny", "messages": [{"role": "user", "content": "\ud800"}]},
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_body_that_does_not_fit_is_refused(http: httpx.Client, body: dict[str, Any]) -> None:
    answer = http.post("/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_other_bad_requests_are_answered_and_the_server_goes_on(http: httpx.Client, client: openai.OpenAI) -> None:
    assert http.post("/chat/completions", content=b"{not json").status_code == 400
    assert http.post("/chat/completions", content=b"").status_code == 400
    assert http.post("/completions", json={"model": "tiny", "prompt": ""}).status_code == 400
    assert http.post("/completions", json={"model": "tiny", "prompt": [10**6]}).status_code == 400
    assert http.get("/nothing").json()["error"]["type"] == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.chat.completions.create(model="other", messages=USER)
    assert client.completions.create(prompt="fox", max_tokens=2, **GREEDY).usage.completion_tokens == 2


def test_fields_that_change_nothing_are_ignored(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": USER, "max_tokens": 1, "user": "me", "presence_penalty": 0, "top_k": -1}
    assert http.post("/chat/completions", json=body | {"stop": None, "n": None, "tools": None}).status_code == 200


def test_tools_are_in_the_prompt_unless_the_choice_is_none(client: openai.OpenAI, chat_format: ChatFormat) -> None:
    def prompt_tokens(choice: str) -> int:
        answer = client.chat.completions.create(messages=USER, max_tokens=1, tools=[TOOL], tool_choice=choice, **GREEDY)
        return answer.usage.prompt_tokens

    assert prompt_tokens("auto") == len(chat_format.prompt(USER, [TOOL]))
    assert prompt_tokens("none") == len(chat_format.prompt(USER))


def test_a_history_with_tool_calls_is_rendered_as_it_was_written(
    client: openai.OpenAI, chat_format: ChatFormat
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "view", "arguments": '{"path":  "a"}'}}
    history = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "12"}]},
    ]
    answer = client.chat.completions.create(messages=history, max_tokens=1, **GREEDY)
    plain = [*USER, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "12"}]
    assert answer.usage.prompt_tokens == len(chat_format.prompt(plain))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(server: RunningServer, stream: bool) -> None:
    body = {"model": "tiny", "prompt": "fox", "max_tokens": 240, "n": 100, "stream": stream, "ignore_eos": True}
    aborted = metrics(server).get("vllm:request_success_total", 0)
    with httpx.Client(timeout=60) as http:
        if stream:
            with http.stream("POST", server.url + "/completions", json=body) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(server.url + "/completions", json=body, timeout=0.05)
    wait_until(lambda: metrics(server)["vllm:num_requests_running"] == 0)
    wait_until(lambda: metrics(server)["vllm:num_requests_waiting"] == 0)
    wait_until(lambda: metrics(server)["vllm:request_success_total"] == aborted + 100)
    text = httpx.get(server.url.removesuffix("/v1") + "/metrics").text
    assert 'finished_reason="abort"' in text


def test_metrics_count_what_was_asked(server: RunningServer, client: openai.OpenAI) -> None:
    before = metrics(server)
    client.completions.create(prompt=[7] * 50, max_tokens=20, **GREEDY)
    client.completions.create(prompt=[7] * 50, max_tokens=20, **GREEDY)
    after = metrics(server)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("vllm:prompt_tokens_total") == 100
    assert grown("vllm:generation_tokens_total") == 40
    assert grown("vllm:prefix_cache_hits_total") >= 49
    assert grown("vllm:request_success_total") == grown("comem:http_requests_total") == 2
    assert grown("vllm:time_to_first_token_seconds_count") == 2
    assert grown("vllm:request_time_per_output_token_seconds_count") == 2
    assert grown("vllm:request_prompt_tokens_sum") == 100
    assert (grown("vllm:request_generation_tokens_sum"), grown("vllm:request_generation_tokens_count")) == (40, 2)
    for name in ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"):
        assert 2 <= grown(f"{name}_count") <= 38
        assert 0 < grown(f"{name}_sum") < grown("vllm:e2e_request_latency_seconds_sum")


def test_the_gauges_tell_of_now(server: RunningServer, client: openai.OpenAI) -> None:
    held = client.completions.create(prompt=[7] * 50, max_tokens=150, n=20, stream=True, **GREEDY)
    next(held)
    now = metrics(server)
    assert now["vllm:num_requests_running"] + now["vllm:num_requests_waiting"] <= now["comem:open_answers"] == 20
    # One prompt at least, which all of them share, and at most four whole answers in pages of 16.
    assert 50 / (4 * WINDOW) <= now["vllm:kv_cache_usage_perc"] <= 4 * 208 / (4 * WINDOW)
    held.close()
    wait_until(lambda: metrics(server)["comem:open_answers"] == metrics(server)["vllm:kv_cache_usage_perc"] == 0)


def test_health_and_models(server: RunningServer, client: openai.OpenAI) -> None:
    assert httpx.get(server.url.removesuffix("/v1") + "/health").json() == {"status": "ready"}
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "comem"


def test_a_server_says_that_it_is_loading_and_that_it_is_dead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from serving import service as services

    going, failing = threading.Event(), RuntimeError("no such weights")

    def load(*_: Any, **__: Any) -> Qwen3:
        going.wait(60)
        raise failing

    monkeypatch.setattr(services, "load", load)
    from serving.running import start_server

    with start_server(folder, name="late") as server:
        health = server.url.removesuffix("/v1") + "/health"
        assert (httpx.get(health).status_code, httpx.get(health).json()) == (503, {"status": "loading"})
        body = {"model": "late", "prompt": "fox"}
        assert httpx.post(server.url + "/completions", json=body).status_code == 503
        going.set()
        with pytest.raises(RuntimeError, match="no such weights"):
            server.service.wait_ready(60)
        wait_until(lambda: httpx.get(health).json() == {"status": "dead"})
