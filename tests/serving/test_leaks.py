"""After many clients that came and went nothing is left of them: no slot, no request, no task, no memory."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.process import ServerProcess
from tests.serving.traffic import visit

EMPTY = {"vllm:num_requests_running": 0, "vllm:num_requests_waiting": 0, "comem:open_answers": 0}
TASKS = 4  # uvicorn's own, and those of the request that asks
GROWTH = 16 * 2**20  # bytes: what the allocator keeps of the busiest moment differs by so much from run to run


def figures(url: str) -> dict[str, float]:
    families = text_string_to_metric_families(httpx.get(url.removesuffix("/v1") + "/metrics").text)
    return {sample.name: sample.value for family in families for sample in family.samples if "le" not in sample.labels}


def settled(url: str) -> dict[str, float]:
    """The server's figures once it has nothing to do."""
    deadline = time.monotonic() + 30
    while True:
        found = figures(url)
        if all(found[name] == value for name, value in EMPTY.items()) and found["comem:event_loop_tasks"] <= TASKS:
            return found
        assert time.monotonic() < deadline, {name: found[name] for name in (*EMPTY, "comem:event_loop_tasks")}
        time.sleep(0.2)


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize(
    "connections, warm, seconds",
    [(40, 1, 3), pytest.param(200, 60, 300, marks=[pytest.mark.slow, pytest.mark.timeout(600)])],
)
def test_clients_that_come_and_go_leave_nothing(folder: Path, connections: int, warm: int, seconds: int) -> None:
    with ServerProcess(folder, slots=4) as server:
        assert server.pid is not None
        asyncio.run(visit(server.url, "tiny", connections, warm))
        before = settled(server.url)
        memory = resident(server.pid)
        ends = asyncio.run(visit(server.url, "tiny", connections, seconds))
        after = settled(server.url)
        grown = resident(server.pid) - memory
        print(f"{ends}: {grown / 2**20:+.1f} MiB from {memory / 2**20:.0f}, {after['process_open_fds']:.0f} files")
    assert set(ends) <= {"200", "400", "429", "gone"}
    assert min(ends[end] for end in ("200", "400", "gone")) > connections / 4
    assert grown < GROWTH
    assert after["process_open_fds"] <= before["process_open_fds"] + 2
