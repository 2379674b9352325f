from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comem_jax.models import Qwen3
from serving.engine import Engine, Prefix, Sampling, Tokens
from serving.sampling import nucleus

NEVER = Sampling(ignore_eos=True)


@pytest.fixture(scope="module")
def wide(model: Qwen3) -> Engine:
    """An engine whose window takes two sizes of context and several chunks of prompt."""
    return Engine(model, slots=4, window=600, eos_ids=(2,), chunk=64)


@pytest.fixture
def engine(wide: Engine) -> Iterator[Engine]:
    yield wide
    for slot in range(wide.slots):
        wide.release(slot)


@pytest.fixture(scope="module")
def uncached(model: Qwen3) -> Callable[[list[int], int], tuple[list[int], list[float]]]:
    """The model's own greedy continuation and its log-probabilities, without any cache."""
    logits = jax.jit(model)

    def continued(prompt: list[int], count: int) -> tuple[list[int], list[float]]:
        tokens, logprobs = list(prompt), []
        for _ in range(count):
            padded = np.zeros((1, 600), np.int32)
            padded[0, : len(tokens)] = tokens
            row = jax.nn.log_softmax(logits(padded)[0, len(tokens) - 1])
            tokens.append(int(row.argmax()))
            logprobs.append(float(row.max()))
        return tokens[len(prompt) :], logprobs

    return continued


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 300, length).tolist()


def begin(engine: Engine, tokens: list[int], slot: int, sampling: Sampling = NEVER, limit: int = 12) -> None:
    prefix = Prefix(np.array(tokens, np.int32), slot)
    while not prefix.ready:
        engine.prefill(prefix)
    engine.insert(prefix, sampling, limit)


def finish(engine: Engine) -> dict[int, Tokens]:
    """Everything the open slots generate."""
    out: dict[int, Tokens] = {}
    while engine.open_slots:
        for slot, new in engine.generate().items():
            old = out.setdefault(slot, Tokens([], False))
            out[slot] = Tokens(old.ids + new.ids, new.done, old.logprobs + new.logprobs, old.top + new.top)
    return out


@pytest.mark.parametrize("held", [250, 255, 256])
def test_a_prompt_that_goes_on_past_a_size_of_context_sees_its_own_end(
    engine: Engine, uncached: Callable, held: int
) -> None:
    tokens = prompt(held, seed=7)
    begin(engine, tokens, 0)
    finish(engine)
    longer = tokens + prompt(40, seed=8)
    prefix = Prefix(np.array(longer, np.int32), 0, held)
    while not prefix.ready:
        engine.prefill(prefix)
    engine.insert(prefix, Sampling(ignore_eos=True, top=1), 4)
    ids, logprobs = uncached(longer, 4)
    found = finish(engine)[0]
    assert found.ids == ids
    np.testing.assert_allclose(found.logprobs, logprobs, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 33, 130, 300])
def test_greedy_tokens_are_the_models_own(engine: Engine, uncached: Callable, length: int) -> None:
    begin(engine, prompt(length), slot=1)
    assert finish(engine)[1].ids == uncached(prompt(length), 12)[0]


def test_a_batch_gives_what_each_request_gives_alone(engine: Engine, uncached: Callable) -> None:
    lengths = [5, 64, 310]
    for slot, length in enumerate(lengths):
        begin(engine, prompt(length, slot), slot, limit=7 + 3 * slot)
    out = finish(engine)
    for slot, length in enumerate(lengths):
        assert out[slot].ids == uncached(prompt(length, slot), 7 + 3 * slot)[0]


def test_a_prompt_to_the_end_of_the_window(engine: Engine, uncached: Callable) -> None:
    begin(engine, prompt(596), slot=3, limit=100)
    out = finish(engine)[3]
    assert out.ids == uncached(prompt(596), 4)[0]
    assert out.done


def test_a_slot_at_rest_keeps_its_tokens_while_others_work(engine: Engine, uncached: Callable) -> None:
    begin(engine, prompt(599), slot=0, limit=1)
    finish(engine)
    begin(engine, prompt(40, 1), slot=1, limit=40)
    finish(engine)
    engine.insert(Prefix(np.array(prompt(599), np.int32), 0, held=598), NEVER, 1)
    assert finish(engine)[0].ids == uncached(prompt(599), 1)[0]


def test_a_copied_prefix_serves_as_if_it_had_been_run(engine: Engine, uncached: Callable) -> None:
    begin(engine, prompt(100), slot=0)
    finish(engine)
    longer = [*prompt(80), 7, 8, 9]
    engine.copy(0, 2, 80)
    prefix = Prefix(np.array(longer, np.int32), 2, held=80)
    assert engine.prefill(prefix) == 2
    engine.insert(prefix, NEVER, 12)
    assert finish(engine)[2].ids == uncached(longer, 12)[0]


def test_an_end_token_ends_the_answer(model: Qwen3, uncached: Callable) -> None:
    tokens = uncached(prompt(20), 12)[0]
    ending = Engine(model, slots=1, window=100, eos_ids=(tokens[4],))
    begin(ending, prompt(20), slot=0, sampling=Sampling())
    assert finish(ending)[0].ids == tokens[: tokens.index(tokens[4]) + 1]
    begin(ending, prompt(20), slot=0, sampling=NEVER)
    assert finish(ending)[0].ids == tokens


def test_a_seed_gives_the_same_tokens_whatever_else_runs(engine: Engine) -> None:
    sampling = Sampling(temperature=1.5, top_p=0.9, seed=2**40 + 7, ignore_eos=True)
    begin(engine, prompt(30), slot=0, sampling=sampling)
    alone = finish(engine)[0].ids
    begin(engine, prompt(30), slot=3, sampling=sampling)
    for slot in range(3):
        begin(engine, prompt(50 + slot, slot), slot, Sampling(temperature=1.0, seed=slot, top=3), limit=30)
    assert finish(engine)[3].ids == alone
    begin(engine, prompt(30), slot=0, sampling=Sampling(temperature=1.5, top_p=0.9, seed=8, ignore_eos=True))
    assert finish(engine)[0].ids != alone


def test_log_probabilities_are_the_models(engine: Engine, uncached: Callable) -> None:
    begin(engine, prompt(25), slot=2, sampling=Sampling(top=5, ignore_eos=True))
    begin(engine, prompt(26), slot=1)
    out = finish(engine)
    ids, logprobs = uncached(prompt(25), 12)
    np.testing.assert_allclose(out[2].logprobs, logprobs, atol=1e-4)
    assert [top[0][0] for top in out[2].top] == ids
    assert all(len(top) == 5 and top == sorted(top, key=lambda one: -one[1]) for top in out[2].top)
    assert out[1].logprobs == out[1].top == []


def test_samples_follow_the_temperature(model: Qwen3) -> None:
    """One token after a fixed prompt, drawn 400 times, has the model's distribution."""
    engine = Engine(model, slots=8, window=64)
    logits = model(jnp.array([prompt(6)]))[0, -1] / 2.0
    expected = np.asarray(jax.nn.softmax(logits))
    counts = np.zeros(len(expected))
    for seed in range(0, 400, 8):
        for slot in range(8):
            begin(engine, prompt(6), slot, Sampling(temperature=2.0, seed=seed + slot), limit=1)
        for tokens in finish(engine).values():
            counts[tokens.ids[0]] += 1
    assert 0.5 * np.abs(counts / 400 - expected).sum() < 0.35  # 400 draws of some dozens of likely tokens


def test_nucleus_keeps_the_fewest_tokens_that_reach_top_p() -> None:
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]] * 4))
    kept = jnp.isfinite(nucleus(logits, jnp.array([0.45, 0.7, 0.81, 1.0]))).sum(axis=-1)
    assert kept.tolist() == [1, 2, 3, 4]


def test_one_compiled_size_covers_many_lengths(model: Qwen3) -> None:
    engine = Engine(model, slots=3, window=100, chunk=64)
    assert engine.warm_up() > 0
    compiled = engine._generate._cache_size()
    for length in (3, 40, 90):
        begin(engine, prompt(length), slot=0, limit=5)
        finish(engine)
    assert engine._generate._cache_size() == compiled
