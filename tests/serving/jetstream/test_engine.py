"""The engine behind JetStream's operations, called by hand."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from comem_jax.chat import ChatFormat
from comem_jax.errors import UserError
from serving.engine import Engine, Sampling
from serving.jetstream.engine import GivenUpError, JetStreamEngine
from serving.jetstream.package import engine_api
from serving.jetstream.requests import Request
from serving.jobs import Generation
from serving.text import TokenBytes
from tests.serving.conftest import WINDOW
from tests.serving.jetstream.faulty import Faulty
from tests.serving.test_server import wait_until


def test_jetstreams_operations_by_hand(engine: Faulty, tokens: TokenBytes, chat_format: ChatFormat) -> None:
    """As JetStream's own offline loops call them: plain token ids, and results read out of one array."""
    theirs: engine_api.Engine = JetStreamEngine(engine, chat_format, tokens)
    tokenizer = theirs.build_tokenizer(theirs.get_tokenizer())
    params, state = theirs.load_params(), theirs.init_decode_state()
    produced: dict[int, list[int]] = {0: [], 1: [], 3: []}
    prompts: dict[int, np.ndarray] = {}
    ragged = False
    for slot in produced:
        text = "the fox " * (1 + slot)
        prompts[slot], length = tokenizer.encode(text, is_bos=True, prefill_lengths=[4])
        assert prompts[slot].tolist() == chat_format.encode(text)
        prefix = theirs.prefill(params=params, padded_tokens=np.pad(prompts[slot], (0, 9)), true_length=length)
        state = theirs.insert(prefix, state, slot=slot)
    running = set(produced)
    while running:
        state, results = theirs.generate(params, state)
        results = results.convert_to_numpy()
        for slot in list(running):
            row = results.get_result_at_slot(slot)
            valid = row.valid[0].astype(bool)
            produced[slot] += row.tokens[0][valid].tolist()
            ragged |= bool(valid.any() and not valid.all())
            assert row.lengths[0] == len(produced[slot]) or not valid.any()
            if not valid.all() or produced[slot][-1] in tokenizer.stop_tokens:
                running.remove(slot)
    assert produced == {slot: own_answer(engine, prompt) for slot, prompt in prompts.items()}
    assert ragged  # so that there was a round with more for one than for another


def own_answer(engine: Engine, ids: np.ndarray) -> list[int]:
    engine.reset()
    prefix = engine.begin(ids)
    assert prefix is not None
    while not prefix.ready:
        engine.prefill(prefix)
    engine.insert(prefix, 0, Sampling(), WINDOW)
    answer: list[int] = []
    while engine.open_slots:
        assert engine.reserve(0)
        answer += engine.generate()[0].ids
    return answer


def test_an_engine_in_a_round_is_not_taken_for_a_broken_one(
    engine: Faulty, tokens: TokenBytes, chat_format: ChatFormat
) -> None:
    theirs = JetStreamEngine(engine, chat_format, tokens)
    engine.gate.clear()
    with ThreadPoolExecutor() as pool:
        round_ = pool.submit(theirs.generate, None, None)
        wait_until(lambda: engine.in_round)
        assert not engine.intact
        intact = pool.submit(lambda: theirs.intact)
        time.sleep(0.05)
        engine.gate.set()
        assert intact.result(30)
        round_.result(30)


def test_whoever_is_given_up_has_no_pages_after_the_next_round(
    engine: Faulty, tokens: TokenBytes, chat_format: ChatFormat
) -> None:
    theirs = JetStreamEngine(engine, chat_format, tokens)
    decoded, ready = (Request(Generation([5, n], 40), tokens, lambda output: None) for n in range(2))
    for request in (decoded, ready):
        theirs.prefill(padded_tokens=request, true_length=2)
    theirs.insert(decoded, None, 0)
    assert theirs.holding == {decoded, ready}
    for request in (decoded, ready):
        request.close()
    theirs.generate(None, None)
    assert not theirs.holding
    assert engine.store.free == engine.store.pages
    assert not decoded.rounds


def test_a_prompt_beyond_the_window_is_refused_not_cut(
    engine: Faulty, tokens: TokenBytes, chat_format: ChatFormat
) -> None:
    theirs = JetStreamEngine(engine, chat_format, tokens)
    assert theirs.max_prefill_length == WINDOW - 1
    with pytest.raises(UserError, match=f"1 to {WINDOW - 1} tokens here, not {WINDOW}"):
        theirs.prefill(padded_tokens=np.ones(WINDOW, np.int32), true_length=WINDOW)
    with pytest.raises(UserError, match="existing_prefix is not taken"):
        theirs.prefill(existing_prefix=1, padded_tokens=np.ones(4, np.int32), true_length=4)
    request = Request(Generation([1, 2], 4), tokens, lambda output: None)
    request.close()
    with pytest.raises(GivenUpError):
        theirs.prefill(padded_tokens=request, true_length=2)
