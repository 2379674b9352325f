"""Who may ask, and what is said to those who ask wrongly: always OpenAI's error object, never a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from starlette.testclient import TestClient

from serving import middleware
from serving.running import RunningServer
from serving.server import create_app

USER = [{"role": "user", "content": "fox"}]
CHAT = {"model": "tiny", "messages": USER, "max_tokens": 1}
TEXT = {"model": "tiny", "prompt": "fox", "max_tokens": 1}


@pytest.fixture
def locked(server: RunningServer) -> Iterator[TestClient]:
    """The same service behind a key."""
    with TestClient(create_app(server.service, api_key="schlüssel")) as client:
        yield client


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic schlüssel", "schlüssel"])
def test_without_the_key_there_is_no_answer(locked: TestClient, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode()}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/v1/nothing")):
        answer = locked.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_with_the_key_there_is(locked: TestClient) -> None:
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} schlüssel".encode()}
        assert locked.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200


def test_health_and_metrics_are_for_everyone(locked: TestClient) -> None:
    assert locked.get("/health").status_code == locked.get("/metrics").status_code == 200
    assert 'status="401"' in (locked.get("/v1/models") and locked.get("/metrics").text)


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


DEEP = "[" * 100_000 + "]" * 100_000
BAD: dict[str, tuple[bytes, str]] = {
    "an empty body": (b"", "not"),
    "half an object": (b'{"model": "tiny"', "not valid JSON"),
    "a list": (b"[]", "not a JSON object"),
    "a number": (b"5", "not a JSON object"),
    "bytes that are no text": (b'{"model": "\xff"}', "body"),
    "endless brackets": (DEEP.encode(), "body"),
    "a tool of endless depth": (
        json.dumps(CHAT | {"tools": [{"type": "function", "function": {"name": "x", "parameters": "DEEP"}}]})
        .replace('"DEEP"', "[" * 900 + "]" * 900)
        .encode(),
        "",
    ),
    "a number as text": (json.dumps(CHAT | {"max_tokens": "5"}).encode(), "max_tokens"),
    "true as a number": (json.dumps(CHAT | {"n": True}).encode(), "n: "),
    "no number at all": (json.dumps(CHAT | {"temperature": float("nan")}).encode(), "temperature"),
    "a prompt of no known kind": (json.dumps(TEXT | {"prompt": {"a": 1}}).encode(), "prompt: must be a text or token"),
    "a mixed prompt": (json.dumps(TEXT | {"prompt": ["a", 1]}).encode(), "prompt: must be a text or token"),
    "a negative token": (json.dumps(TEXT | {"prompt": [-1]}).encode(), "prompt: must be a text or token"),
    "a model of half a character": (json.dumps(TEXT | {"model": "\ud800"}).encode(), "does not exist"),
    "tools of half a character": (
        json.dumps(CHAT | {"tools": [{"type": "function", "function": {"name": "\ud800"}}]}).encode(),
        "surrogate",
    ),
    "alternatives without log-probabilities": (json.dumps(CHAT | {"top_logprobs": 2}).encode(), "needs logprobs"),
}


@pytest.mark.parametrize("body, said", BAD.values(), ids=BAD.keys())
def test_a_bad_body_is_the_clients_fault(http: httpx.Client, body: bytes, said: str) -> None:
    path = "/completions" if b'"prompt"' in body else "/chat/completions"
    answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
    if not said:
        assert answer.status_code < 500
        return
    assert 400 <= answer.status_code < 500
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


def test_other_bad_requests_have_the_same_form(http: httpx.Client) -> None:
    asked = {
        404: http.get("/nothing"),
        405: http.delete("/models"),
        400: http.post("/chat/completions", content=json.dumps(CHAT), headers={"Content-Type": "text/plain"}),
    }
    for status, answer in asked.items():
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert asked[405].headers["Allow"] == "GET"
    assert "application/json" in asked[400].json()["error"]["message"]


def test_a_body_without_end_is_broken_off(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MAX_BODY", 10_000)
    body: dict[str, Any] = TEXT | {"prompt": "fox" * 4000}
    assert http.post("/completions", json=body).status_code == 413
    chunks = iter([b'{"model": "tiny", "prompt": "'] + [b"a" * 1000] * 20)
    answer = http.post("/completions", content=chunks, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert "10000 bytes" in answer.json()["error"]["message"]


def test_the_openai_package_knows_the_faults(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="tiny", messages=USER, temperature=3)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="other", messages=USER)
