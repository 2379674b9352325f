"""An engine that dies is begun again, a few times."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from comem_jax.models import Qwen3
from serving import service as services
from serving.engine import Engine, Tokens
from serving.running import RunningServer, start_server
from tests.serving.test_server import metrics, wait_until

BODY = {"model": "tiny", "prompt": "fox", "max_tokens": 200, "ignore_eos": True}


class Mortal(Engine):
    """An engine that fails in a round and cannot be reset, once it is told to die."""

    dying = threading.Event()

    def generate(self, *args: Any) -> dict[int, Tokens]:
        if self.dying.is_set() and self.open_slots:
            raise ValueError("the device is gone")
        return super().generate(*args)

    def reset(self) -> None:
        if self.dying.is_set():
            self.dying.clear()
            raise ValueError("there is no memory for the cache")
        super().reset()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Whether a model may be loaded."""
    gate, load = threading.Event(), services.load
    gate.set()

    def slow(*arguments: Any, **settings: Any) -> Qwen3:
        assert gate.wait(60)
        return load(*arguments, **settings)

    monkeypatch.setattr(services, "load", slow)
    monkeypatch.setattr(services, "Engine", Mortal)
    monkeypatch.setattr(services, "RESTARTS", 1)
    return gate


@pytest.fixture
def mortal(folder: Path, gate: threading.Event) -> Iterator[RunningServer]:
    with start_server(folder, slots=2) as server:
        server.service.wait_ready(timeout=200)
        yield server


def ask(server: RunningServer) -> httpx.Response:
    return httpx.post(server.url + "/completions", json=BODY, timeout=120)


def health(server: RunningServer) -> tuple[int, str]:
    answer = httpx.get(server.url.removesuffix("/v1") + "/health")
    return answer.status_code, answer.json()["status"]


def test_a_dead_engine_is_begun_again_and_nobody_waits_for_nothing(
    mortal: RunningServer, gate: threading.Event
) -> None:
    gate.clear()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, mortal) for _ in range(8)]
        wait_until(lambda: mortal.service.admission.open == 8 or any(one.done() for one in asked))
        Mortal.dying.set()
        answers = [one.result() for one in asked]
    failed = [answer for answer in answers if answer.status_code != 200]
    assert failed
    assert {answer.status_code for answer in failed} <= {500, 503}
    for answer in failed:
        assert ("Retry-After" in answer.headers) == (answer.status_code == 503)
        assert "the device is gone" in answer.text or "there is no memory" in answer.text or "restarting" in answer.text
    assert health(mortal) == (503, "restarting")
    assert ask(mortal).status_code == 503
    gate.set()
    wait_until(lambda: health(mortal) == (200, "ready"))
    assert ask(mortal).json()["usage"]["completion_tokens"] == 200
    assert metrics(mortal)["comem:engine_restarts_total"] == 1
    assert mortal.service.error is None


def test_an_engine_that_dies_too_often_stays_dead(mortal: RunningServer) -> None:
    with openai.OpenAI(base_url=mortal.url, api_key="none", max_retries=0, timeout=60) as client:
        stream = client.completions.create(model="tiny", prompt="fox", max_tokens=200, n=40, stream=True)
        next(stream)
        Mortal.dying.set()
        with pytest.raises(openai.APIError, match=r"the device is gone|no memory for the cache"):
            list(stream)
    wait_until(lambda: not Mortal.dying.is_set() and health(mortal) == (200, "ready"))
    Mortal.dying.set()
    assert ask(mortal).status_code == 500
    wait_until(lambda: not Mortal.dying.is_set() and health(mortal)[1] == "dead")
    assert health(mortal) == (503, "dead")
    assert ask(mortal).status_code == 503
    with pytest.raises(ValueError, match="no memory"):
        mortal.service.wait_ready(1)
