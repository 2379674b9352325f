"""What JetStream's driver does wrong of itself, and does not here."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from comem_jax.chat import ChatFormat
from comem_jax.models import Qwen3
from serving import service as services
from serving.jetstream.driver import Driver
from serving.jetstream.engine import JetStreamEngine
from serving.jetstream.requests import Active, Request
from serving.jetstream.scheduler import FULL, JetStreamScheduler
from serving.jobs import Generation
from serving.metrics import Metrics
from serving.pages import Sequence as PagedSequence
from serving.running import start_server
from serving.text import TokenBytes
from tests.serving.conftest import WINDOW
from tests.serving.jetstream.faulty import BAD, Faulty, Run, end
from tests.serving.test_server import wait_until

Make = Callable[..., "Run"]


@pytest.fixture
def make(engine: Faulty, tokens: TokenBytes, chat_format: ChatFormat) -> Iterator[Make]:
    runs: list[Run] = []

    def make(limit: int = 99) -> Run:
        runs.append(Run(JetStreamScheduler(engine, chat_format, tokens, Metrics("tiny"), limit), engine))
        return runs[-1]

    yield make
    for run in runs:
        run.stop()


@pytest.fixture
def one_window(engine: Faulty) -> Iterator[int]:
    """Leaves pages for one window alone; returns the share of the others."""
    others = engine.store.pages - engine.store.pages_for(WINDOW)
    taken = PagedSequence(np.zeros(0, np.int32))
    assert engine.store.reserve(taken, others * engine.store.size)
    return others / engine.store.pages


def test_a_prompt_that_cannot_be_run_fails_alone(make: Make) -> None:
    run = make()
    asked = [run.ask([5, 6, BAD] if n % 2 else [5, n]) for n in range(8)]
    for number, (_, outputs) in enumerate(asked):
        ids, error = end(outputs)
        assert (len(ids), str(error)) == ((0, "this prompt cannot be run") if number % 2 else (9, "None"))
    assert run.scheduler.driver.live
    assert (run.scheduler.usage, run.scheduler.running, run.scheduler.waiting) == (0, 0, 0)


def test_a_request_that_fails_on_its_way_to_text_fails_alone(make: Make) -> None:
    run = make()
    bad, good = run.ask([5, 6], 20), run.ask([5, 7], 20)
    bad[0]._stops = None  # type: ignore[assignment]
    assert isinstance(end(bad[1])[1], AttributeError)
    assert end(good[1])[1] is None
    wait_until(lambda: run.scheduler.usage == 0)


def test_a_thread_that_fails_ends_the_driver_and_leaves_nobody_without_answer(make: Make) -> None:
    run = make()
    run.engine.gate.clear()
    asked = [run.ask([5, n], 40) for n in range(9)]
    run.engine.dying = True
    run.engine.gate.set()
    assert {str(end(outputs)[1]) for _, outputs in asked} == {"the engine failed: the device is gone"}
    wait_until(lambda: run.error is not None)
    assert str(run.error) == "the device is gone"
    assert not run.scheduler.driver.live
    assert str(end(run.ask([5, 6])[1])[1]) == "the engine failed: the device is gone"
    assert not any(thread.is_alive() for thread in run.scheduler.driver._all_threads)


def test_a_server_whose_driver_died_begins_it_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, gate = services.load, threading.Event()

    def slow(*arguments: Any, **settings: Any) -> Qwen3:
        assert gate.wait(60)
        return load(*arguments, **settings)

    monkeypatch.setattr(services, "Engine", Faulty)
    monkeypatch.setattr(services, "load", slow)
    gate.set()
    body = {"model": "tiny", "prompt": "fox", "max_tokens": 30, "ignore_eos": True, "n": 3}
    with start_server(folder, slots=4, driver="jetstream") as server, ThreadPoolExecutor() as pool:
        health = server.url.removesuffix("/v1") + "/health"
        server.service.wait_ready(timeout=200)
        gate.clear()
        server.service.scheduler.engine.dying = True
        failed = pool.submit(httpx.post, server.url + "/completions", json=body, timeout=60).result()
        assert (failed.status_code, "the device is gone" in failed.text) == (503, True)
        wait_until(lambda: httpx.get(health).status_code == 503)
        assert httpx.get(health).json() == {"status": "restarting"}
        gate.set()
        wait_until(lambda: httpx.get(health).status_code == 200)
        again = httpx.post(server.url + "/completions", json=body, timeout=60).json()
        assert again["usage"]["completion_tokens"] == 90


def test_the_last_slot_may_come_free_while_the_next_request_is_looked_for(
    engine: Faulty, tokens: TokenBytes, chat_format: ChatFormat
) -> None:
    """The moment in question, between finding a slot in use and asserting it, made as long as it has to be."""
    first, second = (Request(Generation([5, n], 9), tokens, lambda output: None) for n in range(2))
    looking, freed, over = threading.Event(), threading.Event(), threading.Event()

    class Late(queue.Queue):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            if not block and first.rounds and not looking.is_set():
                looking.set()
                wait_until(lambda: driver._generate_slots[0].qsize() == engine.slots - 1)
                freed.set()
                raise queue.Empty
            return super().get(block, timeout)

    class Raced(Driver):
        def _generate_thread(self, idx: int) -> None:
            self._generate_backlogs[idx] = Late()
            super()._generate_thread(idx)

    adapter = JetStreamEngine(engine, chat_format, tokens)

    def advance(request: Request) -> bool:
        assert looking.wait(30)
        request.close()
        adapter.drop(request)
        if request is second:
            over.set()
        return True

    driver = Raced(adapter, 9, lambda request, error: None)
    try:
        driver.place_request_on_prefill_queue(Active(first, advance))
        assert freed.wait(10)
        driver.place_request_on_prefill_queue(Active(second, advance))
        assert over.wait(10)
        assert driver.live
    finally:
        driver.stop()


def test_the_queue_has_an_end(make: Make) -> None:
    run = make(limit=1)
    run.engine.gate.clear()
    asked = [run.ask([5, n], 40) for n in range(40)]
    run.engine.gate.set()
    errors = [str(error) for _, outputs in asked for error in [end(outputs)[1]] if error]
    assert 0 < len(errors) < 40
    assert set(errors) == {FULL}
    with pytest.raises(queue.Full):
        for _ in range(999):
            run.scheduler.driver.place_request_on_prefill_queue(Active(asked[0][0], lambda request: True))


def test_those_given_up_leave_their_places_in_the_queue(make: Make, one_window: int) -> None:
    run = make(limit=3)
    run.engine.gate.clear()
    first, second = run.ask([5, 6], 200), run.ask([5, 7], 200)
    wait_until(run.scheduler.driver._prefill_backlog.empty)
    for _ in range(5):
        given_up = [run.ask([5, n], 200)[0] for n in range(3)]
        assert not any(request.closed for request in given_up)
        assert str(end(run.ask([5, 6])[1])[1]) == FULL
        for request in given_up:
            run.scheduler.cancel(request)
    run.engine.gate.set()
    assert len(end(first[1])[0]) == len(end(second[1])[0]) == 200


def test_prompts_wait_for_pages_and_none_is_left_behind(make: Make, one_window: int) -> None:
    run = make()
    asked = [run.ask([5, n], 130) for n in range(5)]
    for _, outputs in asked:
        ids, error = end(outputs)
        assert (len(ids), error) == (130, None)


def test_a_request_that_waits_for_pages_can_be_given_up(make: Make, one_window: int) -> None:
    run = make()
    run.engine.gate.clear()
    first, waiting, last = run.ask([5, 6], 200), run.ask([5, 7], 200), run.ask([5, 8], 200)
    wait_until(lambda: (run.scheduler.running, run.scheduler.waiting) == (1, 2))
    run.scheduler.cancel(waiting[0])
    run.scheduler.cancel(waiting[0])
    assert run.scheduler.waiting == 1
    run.engine.gate.set()
    assert len(end(first[1])[0]) == len(end(last[1])[0]) == 200
    assert waiting[1].empty()


def test_who_waits_for_pages_and_is_given_up_lets_the_next_one_pass(make: Make, engine: Faulty) -> None:
    taken = PagedSequence(np.zeros(0, np.int32))
    assert engine.store.reserve(taken, engine.store.pages * engine.store.size)
    run = make()
    waiting = run.ask([5, 6])[0]
    wait_until(run.scheduler.driver._prefill_backlog.empty)
    time.sleep(0.05)  # in which the prefill thread finds no pages
    run.scheduler.cancel(waiting)
    engine.store.end(taken)
    assert len(end(run.ask([5, 7])[1])[0]) == 9


def test_a_request_that_is_decoded_can_be_given_up(make: Make) -> None:
    run = make()
    given_up, other = run.ask([5, 6], 240), run.ask([5, 7], 240)
    assert given_up[1].get(timeout=30).tokens == 1  # the first token does not wait for others
    run.engine.gate.clear()
    run.scheduler.cancel(given_up[0])
    run.engine.gate.set()
    assert len(end(other[1])[0]) == 240
    assert len(given_up[0].produced) < 240
    assert run.scheduler.usage == 0


def test_a_driver_that_is_stopped_leaves_nobody_without_answer(make: Make, one_window: int) -> None:
    run = make()
    run.engine.gate.clear()
    asked = [run.ask([5, n], 200) for n in range(6)]
    wait_until(lambda: run.scheduler.running == 1)
    run.engine.gate.set()
    run.stop()
    assert {str(end(outputs)[1]) for _, outputs in asked} <= {"the server is stopping", "None"}
    assert not any(thread.is_alive() for thread in run.scheduler.driver._all_threads)
    assert run.scheduler.usage == one_window


def test_a_long_prompt_leaves_running_answers_their_rounds(
    make: Make, engine: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []
    prefill, generate = engine.prefill, engine.generate
    monkeypatch.setattr(engine, "prefill", lambda prefix: turns.append("chunk") or prefill(prefix))
    monkeypatch.setattr(engine, "generate", lambda most=None: turns.append("round") or generate(most))
    engine.chunk = 32
    run = make()
    running = run.ask([5, 6], 240)
    assert running[1].get(timeout=30).ids
    turns.clear()
    assert len(end(run.ask([8] * 230, 1)[1])[0]) == 1
    chunks = [n for n, turn in enumerate(turns) if turn == "chunk"]
    assert len(chunks) == 8
    assert [later - earlier for earlier, later in pairwise(chunks)] == [2] * 7
