"""`comem serve --driver jetstream` as a process that is told to end."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from serving.jetstream.package import jetstream_pb2, jetstream_pb2_grpc
from tests.serving.test_server import wait_until
from tests.serving.test_signals import Served

KEY = (("authorization", "Bearer the-key"),)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def served(folder: Path, log: Path) -> Iterator[Served]:
    served = Served(folder, log, "--driver", "jetstream", "--grpc-port", "0", "--grace", "60", "--queue", "300")
    yield served
    served.process.kill()
    served.process.wait()


def test_a_terminated_server_finishes_http_and_grpc_first(served: Served, log: Path) -> None:
    found = re.search(r"gRPC on port (\d+)", log.read_text())
    assert found
    content = jetstream_pb2.DecodeRequest.TextContent(text="fox")
    request = jetstream_pb2.DecodeRequest(text_content=content, max_tokens=60)
    with grpc.insecure_channel(f"127.0.0.1:{found.group(1)}") as channel, ThreadPoolExecutor() as pool:
        stub = jetstream_pb2_grpc.OrchestratorStub(channel)

        def decode() -> list[Any]:
            return list(stub.Decode(request, metadata=KEY))

        calls: list[Any] = [pool.submit(served.ask)]
        wait_until(served.open)
        calls.append(pool.submit(decode))
        wait_until(lambda: 'comem:open_answers{model_name="tiny"} 101.0' in metrics(served))
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: served.ask().status_code == 503)
        with pytest.raises(grpc.RpcError, match="takes no more requests"):
            decode()
        assert not calls[1].done()
        assert len(calls[0].result().json()["choices"]) == 100
        assert calls[1].result()
    assert served.process.wait(30) == 0
    told = log.read_text()
    assert "Spinning up" not in told  # what JetStream tells the root logger
    assert " - INFO - " not in told  # and how its own handler would write it
    assert "Traceback" not in told


def metrics(served: Served) -> str:
    return httpx.get(served.url.removesuffix("/v1") + "/metrics").text
