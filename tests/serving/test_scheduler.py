from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer

from comem_jax.models import Qwen3
from serving.engine import Engine, Prefix, Sampling, Tokens
from serving.jobs import Generation, Job, Output
from serving.metrics import Metrics
from serving.scheduler import PROMPT_SHARE, Scheduler
from serving.text import TokenBytes

ON = Sampling(ignore_eos=True)


class Faulty(Engine):
    """An engine that fails when it is told to: a prompt, or a round."""

    fail_prompt = fail_round = False

    def prefill(self, prefix: Prefix) -> int:
        if self.fail_prompt:
            self.fail_prompt = False
            raise ValueError("a bad prompt")
        return super().prefill(prefix)

    def generate(self, *args: Any) -> dict[int, Tokens]:
        if self.fail_round and self.open_slots:
            self.fail_round = False
            raise ValueError("a bad round")
        return super().generate(*args)


@pytest.fixture(scope="module")
def engine(model: Qwen3) -> Faulty:
    return Faulty(model, slots=2, window=100, chunk=64)


@pytest.fixture
def scheduler(engine: Faulty, tokenizer: Tokenizer) -> Iterator[Scheduler]:
    engine.reset()
    scheduler = Scheduler(engine, TokenBytes(tokenizer), frozenset({2}), Metrics("tiny"))
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    yield scheduler
    scheduler.stop()
    thread.join(60)
    assert not thread.is_alive()


class Asked:
    """A generation and what came of it."""

    def __init__(self, scheduler: Scheduler, prompt: list[int], limit: int = 10, stop: tuple[str, ...] = ()) -> None:
        self.outputs: queue.Queue[Output] = queue.Queue()
        self.job: Job = scheduler.submit(Generation(prompt, limit, ON, stop), self.outputs.put)

    def all(self) -> list[Output]:
        outputs = [self.outputs.get(timeout=120)]
        while not outputs[-1].last:
            outputs.append(self.outputs.get(timeout=120))
        return outputs


def tokens(outputs: list[Output]) -> int:
    return sum(output.tokens for output in outputs)


def test_more_requests_than_slots_are_all_answered(scheduler: Scheduler) -> None:
    asked = [Asked(scheduler, [5 + n] * (n + 1), limit=3 + n) for n in range(7)]
    assert [tokens(one.all()) for one in asked] == [3 + n for n in range(7)]
    assert (scheduler.running, scheduler.waiting) == (0, 0)


def test_a_first_token_comes_alone_and_the_others_together(scheduler: Scheduler) -> None:
    outputs = Asked(scheduler, [6] * 9, limit=10).all()
    assert [output.tokens for output in outputs] == [1, 8, 1]


def test_identical_prompts_at_once_are_run_once(scheduler: Scheduler) -> None:
    asked = [Asked(scheduler, [9] * 60) for _ in range(4)]
    assert sorted(one.all()[-1].cached for one in asked) == [0, 59, 59, 59]


def test_a_failing_prompt_fails_alone(scheduler: Scheduler, engine: Faulty) -> None:
    long = Asked(scheduler, [3] * 4, limit=90)
    long.outputs.get(timeout=120)
    engine.fail_prompt = True
    assert str(Asked(scheduler, [4] * 40).all()[-1].error) == "a bad prompt"
    assert long.all()[-1].finish == "length"
    assert tokens(Asked(scheduler, [4] * 40).all()) == 10


def test_a_failing_round_fails_those_in_it_and_the_next_are_served(scheduler: Scheduler, engine: Faulty) -> None:
    engine.fail_round = True
    assert str(Asked(scheduler, [3] * 4).all()[-1].error) == "a bad round"
    again = Asked(scheduler, [3] * 4).all()
    assert (tokens(again), again[-1].cached) == (10, 0)


def test_a_failing_answer_fails_alone(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = Asked(scheduler, [3] * 4, limit=80), Asked(scheduler, [4] * 4, limit=80)

    def take(tokens: Tokens, eos: frozenset[int]) -> Output:
        raise ValueError("a bad answer")

    monkeypatch.setattr(bad.job, "take", take)
    assert str(bad.all()[-1].error) == "a bad answer"
    assert good.all()[-1].finish == "length"


def test_a_cancelled_request_leaves_its_slot_and_its_prefix(scheduler: Scheduler) -> None:
    asked = [Asked(scheduler, [n + 3] * 30, limit=60) for n in range(4)]
    for one in asked:
        scheduler.cancel(one.job)
    last = Asked(scheduler, [3] * 40, limit=5).all()
    assert tokens(last) == 5
    assert (scheduler.running, scheduler.waiting) == (0, 0)
    scheduler.cancel(asked[0].job)
    assert tokens(Asked(scheduler, [3] * 40, limit=5).all()) == 5


def test_answers_that_do_not_fit_together_are_all_given_as_if_alone(model: Qwen3, tokenizer: Tokenizer) -> None:
    """Three answers of 7 pages in a store of 8: they are put off and taken up again, and none notices."""
    found = []
    for pages in (100, 8):
        engine = Engine(model, slots=3, window=128, pages=pages, chunk=64)
        scheduler = Scheduler(engine, TokenBytes(tokenizer), frozenset({2}), Metrics("tiny"))
        thread = threading.Thread(target=scheduler.run)
        thread.start()
        asked = [Asked(scheduler, [9 + n] * 20, limit=85) for n in range(3)]
        found.append(["".join(output.text for output in one.all()) for one in asked])
        scheduler.stop()
        thread.join(60)
        assert engine.store.free == pages
    assert found[0] == found[1]


def test_a_short_prompt_does_not_wait_for_a_long_one(model: Qwen3, tokenizer: Tokenizer) -> None:
    engine = Engine(model, slots=2, window=600, chunk=32)
    scheduler = Scheduler(engine, TokenBytes(tokenizer), frozenset({2}), Metrics("tiny"))
    ended: list[str] = []

    def deliver(name: str) -> Callable[[Output], None]:
        return lambda output: ended.append(name) if output.last else None

    scheduler.submit(Generation(list(range(3, 300)) * 2, 1, ON), deliver("long"))
    scheduler.submit(Generation([5] * 40, 1, ON), deliver("short"))
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    while len(ended) < 2:
        time.sleep(0.01)
    scheduler.stop()
    thread.join(60)
    assert ended == ["short", "long"]


class Counting(Engine):
    """An engine that counts the tokens of prompts run between two rounds in which answers wait for their tokens."""

    ran = 0
    between: list[tuple[int, int]]

    def prefill(self, prefix: Prefix) -> int:
        count = super().prefill(prefix)
        self.ran += count
        return count

    def generate(self, most: int | None = None, slots: Sequence[int] | None = None) -> dict[int, Tokens]:
        if slots and most == self.steps:  # a round of all that run, and not the first token of a new one
            self.between.append((self.ran, len(slots)))
            self.ran = 0
        return super().generate(most, slots)


def test_an_answer_waits_for_a_rounds_worth_of_prompts_however_long_they_are(
    model: Qwen3, tokenizer: Tokenizer
) -> None:
    engine = Counting(model, slots=4, window=1000, chunk=32)
    engine.between = []
    scheduler = Scheduler(engine, TokenBytes(tokenizer), frozenset({2}), Metrics("tiny"))
    running = Asked(scheduler, [3] * 4, limit=500)
    long = [Asked(scheduler, [5 + n, *range(3, 300), *range(3, 300), *range(3, 300)], limit=2) for n in range(3)]
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    assert [tokens(one.all()) for one in (running, *long)] == [500, 2, 2, 2]
    scheduler.stop()
    thread.join(60)
    assert sum(ran for ran, _ in engine.between) > 2000  # the long prompts were run while the answer went on
    for ran, rows in engine.between:  # the last chunk may go beyond the budget
        assert ran < max(engine.chunk, PROMPT_SHARE * engine.steps * rows) + engine.chunk


def test_a_stopped_scheduler_answers_everyone(scheduler: Scheduler) -> None:
    asked = [Asked(scheduler, [5] * 4, limit=90) for _ in range(5)]
    scheduler.stop()
    assert all(one.all()[-1].last for one in asked)
    late = Asked(scheduler, [5] * 4)
    assert late.all()[-1].last


def test_a_stop_token_within_a_character_leaves_what_there_is_of_it(tokenizer: Tokenizer) -> None:
    tokens = TokenBytes(tokenizer)
    half = next(token for token, text in enumerate(tokens.text) if text == "日".encode()[:1])
    job = Job(Generation([3], 9, stop_ids=frozenset({half})), tokens, lambda _: None)
    output = job.take(Tokens([half, 3], done=False), frozenset())
    assert (output.text, output.tokens, output.finish) == ("\ufffd", 1, "stop")
