from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from serving.process import ServerProcess

PARENT = """
import os, sys, time
from serving.process import ServerProcess
server = ServerProcess(sys.argv[1], slots=1, window=64)
server.start()
print(server.pid, server.url, flush=True)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def wait_gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return gone(pid)


def test_a_server_lives_as_long_as_its_block(folder: Path, tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    with ServerProcess(folder, "child", cpu=cpu, slots=1, window=64, log=tmp_path / "log") as server:
        models = httpx.get(server.url + "/models").json()["data"]
        assert [(model["id"], model["max_model_len"]) for model in models] == [("child", 64)]
        assert server.pid is not None
        assert os.sched_getaffinity(server.pid) == {cpu}
    assert wait_gone(server.pid)
    assert "child listens on" in (tmp_path / "log").read_text()


def test_a_server_ends_with_its_parent(folder: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        pid = int(parent.stdout.readline().split()[0])
        assert not gone(pid)
        parent.kill()
    assert wait_gone(pid)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"exit code 2(.|\n)*config.json"):
        ServerProcess(tmp_path).start()
