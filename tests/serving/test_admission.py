"""A bounded queue, and a server that ends without breaking off what it has begun."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from serving.running import RunningServer, start_server
from tests.serving.test_server import wait_until

ASKED: dict[str, Any] = {"model": "tiny", "prompt": "fox", "max_tokens": 240}
LONG = ASKED | {"ignore_eos": True}


@pytest.fixture(scope="module")
def small(folder: Path) -> Iterator[RunningServer]:
    with start_server(folder, slots=2, queue=40) as server:
        server.service.wait_ready(timeout=200)
        yield server


@pytest.fixture
def ending(folder: Path) -> Iterator[RunningServer]:
    with start_server(folder, name="tiny", slots=2, queue=40) as server:
        server.service.wait_ready(timeout=200)
        yield server


async def statuses(url: str, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    async with httpx.AsyncClient(timeout=120) as http:
        return list(await asyncio.gather(*(http.post(url + "/completions", json=body) for body in bodies)))


async def test_who_does_not_fit_into_the_queue_is_told_when_to_come_again(small: RunningServer) -> None:
    answers = await statuses(small.url, [LONG | {"max_tokens": 60}] * 70)
    refused = [answer for answer in answers if answer.status_code == 429]
    assert sum(answer.status_code == 200 for answer in answers) == 42
    assert len(refused) == 28
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    assert {answer.json()["error"]["code"] for answer in refused} == {"queue_full"}
    assert small.service.admission.open == 0
    assert (await statuses(small.url, [LONG]))[0].status_code == 200


def test_each_answer_of_a_request_takes_a_place(small: RunningServer) -> None:
    with openai.OpenAI(base_url=small.url, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="43 answers; this server takes 42"):
            client.completions.create(model="tiny", prompt="fox", n=43)
        held = client.completions.create(stream=True, n=41, extra_body={"ignore_eos": True}, **ASKED)
        next(held)
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model="tiny", prompt="fox", n=2)
        held.close()
        wait_until(lambda: small.service.admission.open == 0)


def test_a_refused_request_leaves_no_trace(small: RunningServer) -> None:
    for body in ({"model": "other", "prompt": "fox"}, {"model": "tiny", "prompt": [10**6]}, {"model": "tiny"}):
        assert httpx.post(small.url + "/completions", json=body).status_code in (400, 404)
    assert small.service.admission.open == 0


def test_draining_finishes_what_is_under_way_and_takes_nothing_new(ending: RunningServer) -> None:
    health = ending.url.removesuffix("/v1") + "/health"
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(httpx.post, ending.url + "/completions", json=LONG | {"n": 40}, timeout=120)
        wait_until(lambda: ending.service.admission.open == 40)
        drained = pool.submit(ending.drain, 120)
        wait_until(lambda: httpx.get(health).json() == {"status": "draining"})
        assert httpx.get(health).status_code == 503
        late = httpx.post(ending.url + "/completions", json=LONG)
        assert (late.status_code, late.headers["Retry-After"]) == (503, "5")
        assert not answer.done()
        assert drained.result()
        assert [len(choice["text"]) > 0 for choice in answer.result().json()["choices"]] == [True] * 40


def test_the_grace_ends_and_so_does_the_wait_of_who_is_in_a_hurry(ending: RunningServer) -> None:
    hurry = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(httpx.post, ending.url + "/completions", json=LONG | {"n": 40}, timeout=120)
        wait_until(lambda: ending.service.admission.open == 40)
        assert not ending.drain(0.01)
        hurry.set()
        assert not ending.drain(60, hurry.is_set)
        ending.service.stop()
        assert answer.result().status_code == 503
        assert "stopping" in answer.result().json()["error"]["message"]
