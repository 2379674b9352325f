from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comem_jax.models import Qwen3
from serving.engine import COPIED, Engine, Prefix, Sampling, Tokens
from serving.sampling import highest, nucleus

NEVER = Sampling(ignore_eos=True)


@pytest.fixture(scope="module")
def wide(model: Qwen3) -> Engine:
    """An engine whose window takes several chunks of prompt, and several reads of pages."""
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


def prefilled(engine: Engine, tokens: list[int]) -> Prefix:
    prefix = engine.begin(np.array(tokens, np.int32))
    assert prefix is not None
    while not prefix.ready:
        engine.prefill(prefix)
    return prefix


def begin(engine: Engine, tokens: list[int], slot: int, sampling: Sampling = NEVER, limit: int = 12) -> Prefix:
    engine.release(slot)
    prefix = prefilled(engine, tokens)
    engine.insert(prefix, slot, sampling, limit)
    return prefix


def finish(engine: Engine) -> dict[int, Tokens]:
    """Everything the open slots generate."""
    out: dict[int, Tokens] = {}
    while engine.open_slots:
        assert all(engine.reserve(slot) for slot in engine.open_slots)
        for slot, new in engine.generate().items():
            old = out.setdefault(slot, Tokens([], False))
            out[slot] = Tokens(old.ids + new.ids, new.done, old.logprobs + new.logprobs, old.top + new.top)
    return out


@pytest.mark.parametrize("held", [1, 3, 4, 15, 16, 17, 250, 256])
def test_a_prompt_goes_on_from_what_an_earlier_one_left(engine: Engine, uncached: Callable, held: int) -> None:
    engine.reset()
    tokens = prompt(held, seed=7)
    begin(engine, tokens, 0)
    finish(engine)
    longer = tokens + prompt(40, seed=8)
    prefix = begin(engine, longer, 1, Sampling(ignore_eos=True, top=1), 4)
    assert prefix.found == (held if held >= COPIED else 0)
    ids, logprobs = uncached(longer, 4)
    found = finish(engine)[1]
    assert found.ids == ids
    np.testing.assert_allclose(found.logprobs, logprobs, atol=1e-4)


def test_an_answer_is_found_by_the_prompt_that_quotes_it(engine: Engine, uncached: Callable) -> None:
    engine.reset()
    begin(engine, prompt(30), 0, limit=40)
    answer = finish(engine)[0].ids
    engine.release(0)
    longer = [*prompt(30), *answer, 5, 6, 7]
    assert begin(engine, longer, 2).found == 69  # the answer's last token was never run
    assert finish(engine)[2].ids == uncached(longer, 12)[0]


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


@pytest.mark.parametrize("together", [2, 4, 7])
def test_prompts_with_much_in_common_answer_as_alone(model: Qwen3, uncached: Callable, together: int) -> None:
    """From four rows on what they have in common is read once for all of them."""
    engine = Engine(model, slots=8, window=600, chunk=64)
    prompts = [prompt(200) + prompt(5 + 30 * row, seed=row + 1) for row in range(together)]
    for slot, tokens in enumerate(prompts):
        begin(engine, tokens, slot)
    out = finish(engine)
    assert engine.store.pages - engine.store.free < together * 13  # of the 200 tokens, 12 pages lie there once
    for slot, tokens in enumerate(prompts):
        assert out[slot].ids == uncached(tokens, 12)[0]


def test_nothing_is_recomputed_or_overwritten_when_pages_run_out(model: Qwen3, uncached: Callable) -> None:
    engine = Engine(model, slots=4, window=128, pages=12, chunk=64)
    for round_ in range(6):
        for slot in range(2):
            begin(engine, prompt(70, seed=round_ * 2 + slot), slot)
        assert engine.begin(np.arange(3, 70, dtype=np.int32)) is None  # two pages are left
        for slot, tokens in finish(engine).items():
            assert tokens.ids == uncached(prompt(70, seed=round_ * 2 + slot), 12)[0]
            engine.release(slot)
    assert engine.store.free == 12


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


def test_penalties_and_bias_are_those_of_the_protocol(engine: Engine, model: Qwen3) -> None:
    tokens = prompt(20)
    logits = np.asarray(model(jnp.array([tokens]))[0, -1])
    first = int(logits.argmax())
    begin(engine, tokens, 0, Sampling(ignore_eos=True, bias={first: -100.0, 44: 50.0}), limit=1)
    assert finish(engine)[0].ids == [44]
    begin(engine, tokens, 0, Sampling(ignore_eos=True, presence=2.0, frequency=2.0), limit=30)
    assert max(np.bincount(finish(engine)[0].ids)) < 3  # without penalties it repeats itself
    seen = logits.copy()
    seen[np.unique(tokens)] = np.where(seen > 0, seen / 1.5, seen * 1.5)[np.unique(tokens)]
    begin(engine, tokens, 0, Sampling(ignore_eos=True, repetition=1.5), limit=1)
    assert finish(engine)[0].ids == [int(seen.argmax())]


def test_no_end_token_comes_before_its_time(model: Qwen3, uncached: Callable) -> None:
    first = uncached(prompt(20), 1)[0][0]
    ending = Engine(model, slots=1, window=100, eos_ids=(first,))
    begin(ending, prompt(20), 0, Sampling())
    assert finish(ending)[0].ids == [first]
    begin(ending, prompt(20), 0, Sampling(least=3))
    found = finish(ending)[0].ids
    assert len(found) > 3 and first not in found[:3]


def test_an_answer_taken_up_again_goes_on_as_if_it_had_not_stopped(engine: Engine) -> None:
    sampling = Sampling(temperature=1.2, seed=5, ignore_eos=True, frequency=0.7, presence=0.3)
    begin(engine, prompt(30), 0, sampling, limit=20)
    whole = finish(engine)[0].ids
    engine.release(0)
    begun = [*prompt(30), *whole[:9]]
    prefix = engine.begin(np.array(begun, np.int32), answered=9)
    assert prefix is not None
    while not prefix.ready:
        engine.prefill(prefix)
    engine.insert(prefix, 1, sampling, 11)
    assert finish(engine)[1].ids == whole[9:]


@given(k=st.integers(1, 8), values=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=8, max_size=8))
@settings(max_examples=50, deadline=None)
def test_the_highest_are_kept_and_ties_with_them(k: int, values: list[float]) -> None:
    kept = np.isfinite(highest(jnp.array([values], jnp.float32), jnp.array([k])))[0]
    least = sorted(values)[-k]
    assert kept.tolist() == [value >= least for value in values]


def test_unlikely_tokens_are_never_drawn(engine: Engine, model: Qwen3) -> None:
    probabilities = np.asarray(jax.nn.softmax(model(jnp.array([prompt(6)]))[0, -1] / 2.0))
    likely = set(np.flatnonzero(probabilities >= 0.1 * probabilities.max()).tolist())
    best = set(np.argsort(-probabilities)[:3].tolist())
    for sampling, allowed in (
        (Sampling(temperature=2.0, min_p=0.1), likely),
        (Sampling(temperature=2.0, top_k=3), best),
    ):
        drawn = set()
        for seed in range(0, 60, 4):
            for slot in range(4):
                begin(engine, prompt(6), slot, replace(sampling, seed=seed + slot, ignore_eos=True), limit=1)
            drawn |= {tokens.ids[0] for tokens in finish(engine).values()}
        assert drawn <= allowed and len(drawn) > 1


def test_nothing_is_compiled_once_it_is_warm(model: Qwen3) -> None:
    engine = Engine(model, slots=3, window=300, chunk=64)
    assert engine.warm_up() > 0
    programs = (engine._generate, engine._prefill, engine._set_taste)
    compiled = [program._cache_size() for program in programs]
    for length in (1, 3, 40, 90, 290):
        for slot in range(3):
            sampling = Sampling(temperature=0.1 * slot, top_p=0.5, top_k=slot, bias={3: 1.0}, top=slot)
            begin(engine, prompt(length, slot), slot, sampling, limit=5 + slot)
        finish(engine)
        for slot in range(3):
            engine.release(slot)
    assert [program._cache_size() for program in programs] == compiled
