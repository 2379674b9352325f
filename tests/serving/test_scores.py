"""Scores of prompts: the engine's against the model's own full forward pass, and what the server makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jax
import numpy as np
import openai
import pytest
from tokenizers import Tokenizer

from comem_jax.chat import ChatFormat
from comem_jax.endpoint import Endpoint
from comem_jax.memory.scoring import action_logprobs
from comem_jax.models import Qwen3
from serving.engine import Engine, Prefix, Sampling
from serving.running import RunningServer
from serving.scores import PromptScores, ScoredPrompt
from serving.text import TokenBytes
from tests.serving.conftest import WINDOW

GREEDY = {"model": "tiny", "temperature": 0}
USER = [{"role": "user", "content": "the quick brown fox — naïve 東京"}]
Full = Callable[[list[int]], np.ndarray]


@pytest.fixture(scope="module")
def full(model: Qwen3) -> Full:
    """Log-probabilities `[tokens - 1, vocab]` of whatever follows each token, from one pass without any cache."""
    logits = jax.jit(model)

    def of(prompt: list[int]) -> np.ndarray:
        padded = np.zeros((1, 600), np.int32)
        padded[0, : len(prompt)] = prompt
        return np.asarray(jax.nn.log_softmax(logits(padded)[0, : len(prompt) - 1]))

    return of


@pytest.fixture(scope="module")
def engine(model: Qwen3) -> Engine:
    return Engine(model, slots=2, window=600, chunk=64)


def random(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 300, length).tolist()


def prefilled(engine: Engine, prompt: list[int], top: int | None) -> Prefix:
    prefix = engine.begin(np.array(prompt, np.int32), top=top)
    assert prefix is not None
    while not prefix.ready:
        engine.prefill(prefix)
    return prefix


def scored(engine: Engine, prompt: list[int], top: int) -> PromptScores:
    prefix = prefilled(engine, prompt, top)
    engine.store.end(prefix.sequence)
    assert prefix.scores is not None
    return prefix.scores


@pytest.mark.parametrize("length", [1, 2, 33, 64, 65, 66, 200, 599])
def test_the_engines_scores_are_the_models(engine: Engine, full: Full, length: int) -> None:
    prompt = random(length)
    found = scored(engine, prompt, 3)
    rows = full(prompt)
    own = rows[np.arange(length - 1), prompt[1:]]
    np.testing.assert_allclose(found.logprobs, own, atol=1e-4)
    assert found.ranks == (1 + (rows > own[:, None]).sum(axis=1)).tolist()
    for place, row in zip(found.likeliest, rows, strict=True):
        ids, logprobs = zip(*place, strict=True)
        assert list(ids) == np.argsort(-row)[:3].tolist()
        np.testing.assert_allclose(logprobs, row[list(ids)], atol=1e-4)


def test_without_alternatives_there_are_none(engine: Engine, full: Full) -> None:
    found = scored(engine, random(70), 0)
    np.testing.assert_allclose(found.logprobs, full(random(70))[np.arange(69), random(70)[1:]], atol=1e-4)
    assert found.likeliest == [[]] * 69


def test_a_scored_prompt_is_answered_like_any_other(engine: Engine) -> None:
    answers = []
    for top in (None, 0):
        engine.insert(prefilled(engine, random(130), top), 1, Sampling(ignore_eos=True), 8)
        assert engine.reserve(1)
        answers.append(engine.generate()[1].ids)
        engine.release(1)
    assert answers[0] == answers[1]


def test_scoring_compiles_each_shape_once(engine: Engine) -> None:
    scored(engine, random(599), 2)
    compiled = engine._score._cache_size()
    for seed in range(1, 4):
        scored(engine, random(599, seed), seed)
    assert engine._score._cache_size() == compiled


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


def own(places: list[dict[str, Any] | None]) -> list[float]:
    assert places[0] is None
    return [next(iter(place.values()))["logprob"] for place in places[1:] if place is not None]


@pytest.mark.parametrize("top", [0, 2])
def test_a_chats_prompt_in_vllms_form(http: httpx.Client, chat_format: ChatFormat, full: Full, top: int) -> None:
    body = GREEDY | {"messages": USER, "max_tokens": 1, "prompt_logprobs": top}
    answer = http.post("/chat/completions", json=body).json()
    prompt = chat_format.prompt(USER)
    places = answer["prompt_logprobs"]
    assert len(places) == len(prompt) == answer["usage"]["prompt_tokens"]
    rows = full(prompt)
    np.testing.assert_allclose(own(places), rows[np.arange(len(prompt) - 1), prompt[1:]], atol=1e-4)
    for token, place, row in zip(prompt[1:], places[1:], rows, strict=True):
        likeliest = np.argsort(-row)[:top].tolist()
        assert list(place) == [str(one) for one in dict.fromkeys([token, *likeliest])]
        assert [place[str(one)]["rank"] for one in likeliest] == list(range(1, top + 1))
        assert place[str(token)]["rank"] == 1 + (row > row[token]).sum()
    assert places[1][str(prompt[1])]["decoded_token"] == chat_format.tokenizer.decode([prompt[1]])
    assert "prompt_logprobs" not in http.post("/chat/completions", json=GREEDY | {"messages": USER}).json()


def test_without_a_generation_prompt_no_turn_is_opened(http: httpx.Client, chat_format: ChatFormat) -> None:
    for flag, reply in ((False, False), (True, True), (None, True)):
        body = GREEDY | {"messages": USER, "max_tokens": 1, "add_generation_prompt": flag}
        usage = http.post("/chat/completions", json=body).json()["usage"]
        assert usage["prompt_tokens"] == len(chat_format.encode(chat_format.render(USER, reply=reply)))


def test_a_scored_prompt_reads_no_cache_and_fills_it(http: httpx.Client, full: Full) -> None:
    prompt = random(180, 5)
    for score in (0, None, 3):
        answer = http.post(
            "/completions", json=GREEDY | {"prompt": prompt, "max_tokens": 1, "prompt_logprobs": score}
        ).json()
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == (179 if score is None else 0)
        if score is not None:
            expected = full(prompt)[np.arange(179), prompt[1:]]
            np.testing.assert_allclose(own(answer["choices"][0]["prompt_logprobs"]), expected, atol=1e-4)


def test_prompts_and_their_choices_have_their_own_scores(http: httpx.Client, full: Full) -> None:
    prompts = [random(20, 1), random(30, 2), [9]]
    body = {"model": "tiny", "prompt": prompts, "max_tokens": 2, "n": 2, "prompt_logprobs": 0, "seed": 1}
    choices = http.post("/completions", json=body).json()["choices"]
    assert len(choices) == 6
    for index, choice in enumerate(choices):
        prompt = prompts[index // 2]
        expected = full(prompt)[np.arange(len(prompt) - 1), prompt[1:]]
        np.testing.assert_allclose(own(choice["prompt_logprobs"]), expected, atol=1e-4)


def test_the_old_scoring_call(client: openai.OpenAI, chat_format: ChatFormat, full: Full) -> None:
    """`echo` with no token to generate and log-probabilities: what evaluation harnesses send."""
    text = "the lazy dog is naïve"
    prompt = chat_format.encode(text)
    answer = client.completions.create(prompt=text, max_tokens=0, echo=True, logprobs=2, **GREEDY)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason, answer.usage.completion_tokens) == (text, "length", 0)
    rows = full(prompt)
    assert choice.logprobs.token_logprobs[0] is choice.logprobs.top_logprobs[0] is None
    expected = rows[np.arange(len(prompt) - 1), prompt[1:]]
    np.testing.assert_allclose(choice.logprobs.token_logprobs[1:], expected, atol=1e-4)
    assert [max(top.values()) for top in choice.logprobs.top_logprobs[1:]] == pytest.approx(rows.max(axis=1), abs=1e-4)
    assert choice.logprobs.tokens[0] == "the"
    assert choice.logprobs.text_offset[:2] == [0, 3]


def test_an_echo_goes_before_the_answer(client: openai.OpenAI, chat_format: ChatFormat) -> None:
    settings: dict[str, Any] = GREEDY | {"max_tokens": 5, "extra_body": {"ignore_eos": True}}
    plain = client.completions.create(prompt="the fox", logprobs=1, **settings).choices[0]
    echoed = client.completions.create(prompt="the fox", logprobs=1, echo=True, **settings).choices[0]
    assert echoed.text == "the fox" + plain.text
    assert echoed.logprobs.tokens[-5:] == plain.logprobs.tokens
    assert len(echoed.logprobs.tokens) == 5 + len(chat_format.encode("the fox"))
    assert echoed.logprobs.text_offset == sorted(echoed.logprobs.text_offset)
    silent = client.completions.create(prompt=chat_format.encode("the fox"), echo=True, **settings).choices[0]
    assert (silent.text, silent.logprobs) == (echoed.text, None)
    alone = client.completions.create(prompt=["the fox"] * 2, echo=True, **settings | {"max_tokens": 0})
    assert [choice.text for choice in alone.choices] == ["the fox"] * 2


@pytest.mark.parametrize(
    "body",
    [
        {"messages": USER, "prompt_logprobs": 0, "stream": True},
        {"messages": USER, "prompt_logprobs": 21},
        {"messages": USER, "prompt_logprobs": -1},
        {"messages": USER, "continue_final_message": True},
        {"messages": USER, "echo": True},
        {"prompt": "fox", "prompt_logprobs": 0, "stream": True},
        {"prompt": "fox", "echo": True, "stream": True},
        {"prompt": "fox", "max_tokens": 0},
        {"prompt": [5] * WINDOW, "max_tokens": 0, "echo": True},
    ],
)
def test_what_cannot_be_scored_is_refused(http: httpx.Client, body: dict[str, Any]) -> None:
    answer = http.post("/chat/completions" if "messages" in body else "/completions", json={"model": "tiny"} | body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


async def test_the_projects_own_client_scores_an_action(server: RunningServer, chat_format: ChatFormat) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "view", "arguments": '{"path": "naïve.py"}'}}
    messages = [*USER, {"role": "assistant", "content": "I look.", "tool_calls": [call]}, *USER]
    endpoint = Endpoint(server.url)
    first = await endpoint.prefill(messages, score=True)
    again = await endpoint.prefill(messages)
    await endpoint.close()
    assert first.tokens is not None
    assert (
        first.prompt_tokens == len(first.tokens) == len(chat_format.encode(chat_format.render(messages, reply=False)))
    )
    assert (first.cached_tokens, again.cached_tokens) == (0, first.prompt_tokens)
    assert action_logprobs(first.tokens, [messages[1]])[0] < 0


def test_half_a_character_has_a_name(tokenizer: Tokenizer) -> None:
    tokens = TokenBytes(tokenizer)
    ids = tokenizer.encode("é京", add_special_tokens=False).ids
    prompt = ScoredPrompt(ids, PromptScores(0, [-1.0] * (len(ids) - 1), [1] * (len(ids) - 1), [[]] * (len(ids) - 1)))
    written = prompt.in_vllm_form(tokens, 0)
    assert all(next(iter(place.values()))["decoded_token"] for place in written[1:] if place)
