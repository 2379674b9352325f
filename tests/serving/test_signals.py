"""`comem serve` as a process that is told to end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from comem_jax.cli import main
from comem_jax.errors import UserError
from serving.service import ServeOptions, Service
from tests.serving.test_server import wait_until

LONG = {"model": "tiny", "prompt": "fox", "max_tokens": 60, "n": 100, "ignore_eos": True}
HEADERS = {"Authorization": "Bearer the-key"}


class Served:
    """A server process and where it listens."""

    def __init__(self, folder: Path, log: Path, *options: str) -> None:
        command = [
            sys.executable,
            "-m",
            "comem_jax.cli",
            "serve",
            "--model",
            str(folder),
            "--port",
            "0",
            "--slots",
            "1",
        ]
        environment = os.environ | {"COMEM_API_KEY": "the-key", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, "--window", "64", *options], stdout=file, stderr=file, env=environment
            )
        wait_until(lambda: "listens on" in log.read_text())
        found = re.search(r"listens on (\S+)", log.read_text())
        assert found
        self.url = found.group(1)
        wait_until(lambda: httpx.get(self.url.removesuffix("/v1") + "/health").status_code == 200)

    def ask(self) -> httpx.Response:
        return httpx.post(self.url + "/completions", json=LONG, headers=HEADERS, timeout=120)

    def open(self) -> bool:
        """Whether the answers are under way."""
        return (
            'comem:open_answers{model_name="tiny"} 100.0' in httpx.get(self.url.removesuffix("/v1") + "/metrics").text
        )


@pytest.fixture
def served(folder: Path, tmp_path: Path) -> Iterator[Served]:
    served = Served(folder, tmp_path / "log", "--grace", "60", "--queue", "99")
    yield served
    served.process.kill()
    served.process.wait()


def test_a_terminated_server_finishes_first(served: Served) -> None:
    assert httpx.get(served.url + "/models").status_code == 401
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(served.ask)
        wait_until(served.open)
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: served.ask().status_code == 503)
        assert not answer.done()
        assert len(answer.result().json()["choices"]) == 100
    assert served.process.wait(30) == 0


def test_a_server_terminated_twice_ends_at_once(served: Served) -> None:
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(served.ask)
        wait_until(served.open)
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: served.ask().status_code == 503)
        begun = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(30) == -signal.SIGTERM
        assert time.monotonic() - begun < 2
        with pytest.raises(httpx.HTTPError):
            answer.result()


def test_a_key_that_is_empty_and_a_queue_below_nothing_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--model", str(folder), "--api-key", ""]) == 2
    assert "--api-key is empty" in capsys.readouterr().err
    with pytest.raises(UserError, match="queue cannot hold -1"):
        Service(ServeOptions(folder, queue=-1))
