"""Several engines behind one server: where a request goes, and what a death costs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from tokenizers import Tokenizer

from comem_jax.models import Qwen3
from serving.engine import Engine, Tokens
from serving.jobs import UnavailableError
from serving.metrics import Metrics
from serving.replicas import Offer, Replica, Replicas, choose
from serving.restarts import Restarts
from serving.scheduler import Scheduler
from serving.text import TokenBytes
from tests.serving.test_scheduler import Asked, tokens
from tests.serving.test_server import wait_until

LENGTH = 100
OFFERS = st.lists(
    st.builds(Offer, st.integers(0, LENGTH), st.integers(0, 20), st.just(8), st.integers(0, 99)), min_size=1, max_size=5
)


@given(offers=OFFERS)
def test_nothing_better_is_passed_over(offers: list[Offer]) -> None:
    taken = offers[choose(LENGTH, offers)]
    for other in offers:
        assert not (other.held > taken.held and other.under_way <= taken.under_way)
        assert not (other.held >= taken.held and other.under_way < taken.under_way)
        assert other.under_way + other.slots >= taken.under_way  # a whole prompt is worth a full set of slots
        if other[:2] == taken[:2]:
            assert other.latest >= taken.latest


@given(offers=OFFERS, held=st.integers(1, LENGTH), number=st.integers(0, 4))
def test_who_has_more_or_less_to_do_stays_the_choice(offers: list[Offer], held: int, number: int) -> None:
    best = choose(LENGTH, offers)
    better = list(offers)
    better[best] = offers[best]._replace(held=max(held, offers[best].held))
    assert choose(LENGTH, better) == best
    busier = list(offers)
    other = number % len(offers)
    busier[other] = offers[other]._replace(under_way=offers[other].under_way + 1)
    assert choose(LENGTH, busier) == best or other == best


def test_a_held_prompt_is_worth_waiting_for_but_not_long() -> None:
    idle = Offer(held=0, under_way=0, slots=8)
    assert choose(100, [Offer(90, 7, 8), idle]) == 0
    assert choose(100, [Offer(90, 8, 8), idle]) == 1
    assert choose(100, [Offer(10, 0, 8), idle]) == 0
    assert choose(100, [Offer(10, 1, 8), idle]) == 1


class Mortal(Engine):
    """An engine that fails in a round and cannot be reset, once it is told to die."""

    dying = False

    def generate(self, most: int | None = None, slots: Sequence[int] | None = None) -> dict[int, Tokens]:
        if self.dying and self.open_slots:
            raise ValueError("the device is gone")
        return super().generate(most, slots)

    def reset(self) -> None:
        if self.dying:
            raise ValueError("there is no memory for the cache")
        super().reset()


@pytest.fixture(scope="module")
def engines(model: Qwen3) -> list[Mortal]:
    """Two engines, compiled one after the other: the second finds the programs of the first on disk."""
    engines = [Mortal(model, slots=2, window=240, chunk=32) for _ in range(2)]
    for engine in engines:
        engine.warm_up()
    return engines


class Fleet:
    """Two replicas; one that is begun again gets its engine back, alive and empty, once the gate is open."""

    def __init__(self, engines: list[Mortal], tokenizer: Tokenizer) -> None:
        self.metrics = Metrics("tiny")
        self.engines = engines
        self.begun = 0
        self.gate = threading.Event()
        self.gate.set()

        def begin(engine: Mortal) -> Scheduler:
            assert self.gate.wait(60)
            engine.dying = False
            engine.reset()
            self.begun += 1
            return Scheduler(engine, TokenBytes(tokenizer), frozenset({2}), self.metrics)

        self.members = [Replica(partial(begin, engine), Restarts(1, 600)) for engine in engines]
        self.replicas = Replicas(self.members, self.metrics)
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.replicas.run()
        except Exception as error:
            self.failure = error

    def ask(self, prompt: list[int], limit: int = 6) -> Asked:
        return Asked(self.replicas, prompt, limit)

    def count(self, name: str) -> float:
        lines = generate_latest(self.metrics.registry).decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


@pytest.fixture
def fleet(engines: list[Mortal], tokenizer: Tokenizer) -> Iterator[Fleet]:
    fleet = Fleet(engines, tokenizer)
    yield fleet
    fleet.gate.set()
    fleet.replicas.stop()
    fleet.thread.join(60)
    assert not fleet.thread.is_alive()


def test_sessions_that_grow_stay_where_they_are(fleet: Fleet) -> None:
    sessions = [[5 + n] * 40 for n in range(2)]
    homes = [fleet.ask(session).job.replica for session in sessions]
    assert homes[0] is not homes[1]
    for turn in range(3):
        wait_until(lambda: not any(member.open for member in fleet.members))
        for number in (1, 0) if turn % 2 else (0, 1):  # by turns alone they would change places
            session = sessions[number]
            session += [60 + turn] * 20
            asked = fleet.ask(session)
            assert asked.all()[-1].cached >= len(session) - 30
            assert asked.job.replica is homes[number]
    assert fleet.count("vllm:prompt_tokens_total") == 2 * sum(range(40, 120, 20))
    assert fleet.count("vllm:prefix_cache_hits_total") > 2 * (30 + 50 + 70)
    assert (fleet.replicas.running, fleet.replicas.waiting, fleet.replicas.usage) == (0, 0, 0)
    assert [len(member.open) for member in fleet.members] == [0, 0]


def test_answers_to_one_prompt_are_given_where_it_is_run(fleet: Fleet) -> None:
    """A prompt under way counts as held: a group fills the slots of one replica, and then those of another."""
    asked = [fleet.ask([9] * 60, limit=100) for _ in range(4)]
    homes = [one.job.replica for one in asked]
    assert homes[0] is homes[1] is not homes[2] is homes[3]
    assert sorted(one.all()[-1].cached for one in asked) == [0, 0, 59, 59]


def test_a_cancelled_answer_makes_room_where_it_was(fleet: Fleet) -> None:
    asked = [fleet.ask([n + 3] * 30, limit=200) for n in range(4)]
    wait_until(lambda: fleet.replicas.running == 4)
    assert fleet.replicas.usage > 0
    for one in asked:
        fleet.replicas.cancel(one.job)
    wait_until(lambda: fleet.replicas.running == 0)
    assert [len(member.open) for member in fleet.members] == [0, 0]
    fleet.replicas.cancel(asked[0].job)
    assert tokens(fleet.ask([3] * 30).all()) == 6


def test_a_death_costs_others_nothing(fleet: Fleet) -> None:
    doomed, safe = fleet.ask([4] * 40, limit=190), fleet.ask([7] * 40, limit=190)
    engine = doomed.job.scheduler.engine
    fleet.gate.clear()
    engine.dying = True
    assert str(doomed.all()[-1].error) == "the device is gone"
    assert tokens(safe.all()) == 190
    assert fleet.replicas.ready
    meanwhile = fleet.ask([4] * 40)
    assert meanwhile.job.replica is safe.job.replica and tokens(meanwhile.all()) == 6
    fleet.gate.set()
    wait_until(lambda: doomed.job.replica.scheduler is not None)
    homes = set()
    for n in range(2):
        asked = fleet.ask([20 + n] * 40)
        homes.add(asked.job.replica)
        assert tokens(asked.all()) == 6
    assert len(homes) == 2
    assert fleet.count("comem:engine_restarts_total") == 1


def test_where_all_are_gone_nobody_waits_and_the_service_hears_of_it(fleet: Fleet) -> None:
    fleet.gate.clear()
    for engine in fleet.engines:
        engine.dying = True
    for asked in [fleet.ask([4] * 40, limit=190), fleet.ask([7] * 40, limit=190)]:
        assert asked.all()[-1].error is not None
    wait_until(lambda: not fleet.replicas.ready)
    refused = fleet.ask([4] * 40)
    assert isinstance(refused.all()[-1].error, UnavailableError)
    fleet.replicas.cancel(refused.job)
    fleet.gate.set()
    wait_until(lambda: fleet.replicas.ready and fleet.begun == 4)
    assert fleet.thread.is_alive()
    for engine in fleet.engines:
        engine.dying = True
    for prompt in ([4] * 40, [7] * 40):
        assert fleet.ask(prompt, limit=190).all()[-1].error is not None
    fleet.thread.join(60)
    assert str(fleet.failure) == "there is no memory for the cache"


def test_stopping_answers_who_waits(fleet: Fleet) -> None:
    asked = [fleet.ask([n + 3] * 30, limit=200) for n in range(4)]
    fleet.replicas.stop()
    assert all(isinstance(one.all()[-1].error, UnavailableError) for one in asked)
    fleet.thread.join(60)
    assert fleet.failure is None
