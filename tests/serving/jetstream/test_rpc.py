"""JetStream's own gRPC service, asked by a client of its protocol."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from comem_jax.chat import ChatFormat
from comem_jax.errors import UserError
from serving.jetstream.package import jetstream_pb2, jetstream_pb2_grpc
from serving.jetstream.rpc import GrpcServer
from serving.running import RunningServer, start_server
from tests.serving.conftest import WINDOW
from tests.serving.test_server import wait_until

TEXT = "naïve 東京 fox"


@pytest.fixture(scope="module")
def channel(jetstream_server: RunningServer) -> Iterator[grpc.Channel]:
    assert jetstream_server.grpc is not None
    with grpc.insecure_channel(f"127.0.0.1:{jetstream_server.grpc.port}") as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    return jetstream_pb2_grpc.OrchestratorStub(channel)


def as_text(text: str, most: int) -> Any:
    content = jetstream_pb2.DecodeRequest.TextContent(text=text)
    return jetstream_pb2.DecodeRequest(text_content=content, max_tokens=most)


def as_ids(ids: list[int], most: int) -> Any:
    content = jetstream_pb2.DecodeRequest.TokenContent(token_ids=ids)
    return jetstream_pb2.DecodeRequest(token_content=content, max_tokens=most)


def samples(responses: Any) -> tuple[str, list[int]]:
    found = [response.stream_content.samples[0] for response in responses]
    return "".join(one.text for one in found), [token for one in found for token in one.token_ids]


def test_text_and_token_ids_are_answered_as_over_http(
    stub: Any, server: RunningServer, chat_format: ChatFormat
) -> None:
    body = {"model": "tiny", "prompt": TEXT, "max_tokens": 60, "temperature": 0, "logprobs": 0}
    expected = httpx.post(server.url + "/completions", json=body, timeout=60).json()["choices"][0]
    text, ids = samples(stub.Decode(as_text(TEXT, 60)))
    assert text == expected["text"]
    assert not text.isascii()
    names = expected["logprobs"]["tokens"]
    assert len(ids) == len(names) - (expected["finish_reason"] == "stop")
    assert samples(stub.Decode(as_ids(chat_format.encode(TEXT), 60))) == ("", ids)


def test_what_cannot_be_answered_has_its_status(stub: Any) -> None:
    for request, sentence in (
        (jetstream_pb2.DecodeRequest(max_tokens=3), "neither text_content nor token_content"),
        (as_ids([5] * WINDOW, 3), f"maximum context length is {WINDOW} tokens"),
        (as_ids([9999], 3), "token id 9999"),
        (as_text("", 3), "prompt is empty"),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            list(stub.Decode(request))
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert sentence in raised.value.details()


def test_a_call_that_is_cancelled_gives_its_pages_back(stub: Any, jetstream_server: RunningServer) -> None:
    scheduler, admission = jetstream_server.service.scheduler, jetstream_server.service.admission
    before = aborted(jetstream_server)
    call = stub.Decode(as_text("the fox", 230))
    next(call)
    assert admission.open == 1
    call.cancel()
    wait_until(lambda: (admission.open, scheduler.running, scheduler.usage) == (0, 0, 0))
    assert aborted(jetstream_server) == before + 1


def aborted(server: RunningServer) -> float:
    """How many generations were given up."""
    text = httpx.get(server.url.removesuffix("/v1") + "/metrics").text
    found = re.search(r'^vllm:request_success_total{finished_reason="abort",model_name="tiny"} (\S+)', text, re.M)
    return float(found.group(1)) if found else 0


def test_a_server_that_loads_or_drains_takes_no_calls_and_keys_are_asked_for(folder: Path) -> None:
    with start_server(folder, slots=4, driver="jetstream", grpc_port=0, api_key="the-key") as server:
        assert server.grpc is not None
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc.port}") as channel:
            stub, key = jetstream_pb2_grpc.OrchestratorStub(channel), (("authorization", "Bearer the-key"),)

            def refused(**settings: Any) -> Any:
                with pytest.raises(grpc.RpcError) as raised:
                    list(stub.Decode(as_text("fox", 3), **settings))
                return raised.value.code()

            assert refused() == grpc.StatusCode.UNAUTHENTICATED
            assert refused(metadata=(("authorization", "Bearer another"),)) == grpc.StatusCode.UNAUTHENTICATED
            server.service.wait_ready(timeout=200)
            assert stub.HealthCheck(jetstream_pb2.HealthCheckRequest()).is_live
            assert len(samples(stub.Decode(as_text("fox", 3), metadata=key))[1]) == 3
            assert server.drain(5)
            assert not stub.HealthCheck(jetstream_pb2.HealthCheckRequest()).is_live
            assert refused(metadata=key) == grpc.StatusCode.UNAVAILABLE
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1 port {server.grpc.port} for gRPC"):
            GrpcServer(server.service, "127.0.0.1", server.grpc.port)
