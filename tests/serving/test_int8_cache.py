"""Keys and values kept as int8: their error, and that it depends on nothing but the tokens."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comem_jax.chat import ChatFormat
from comem_jax.models import Qwen3, load
from envs.pocket.weights import AGENT, MEMORY
from envs.pocket.world import split_seed
from rl.pocket import texts as pocket_texts
from serving.engine import Engine, Sampling
from serving.scores import PromptScores
from tests.serving.test_engine import begin, finish, prompt


def test_tokens_do_not_depend_on_chunks_and_rounds(model: Qwen3) -> None:
    asked = [(prompt(length, seed=length), Sampling(ignore_eos=True, top=1)) for length in (5, 70)]
    found = []
    for chunk, steps in ((64, 8), (32, 1)):
        engine = Engine(model, slots=2, window=100, chunk=chunk, steps=steps, dtype=jnp.int8)
        for slot, (tokens, sampling) in enumerate(asked):
            begin(engine, tokens, slot, sampling, limit=20)
        found.append(finish(engine))
    one, other = found
    for slot in one:
        assert one[slot].ids == other[slot].ids
        np.testing.assert_allclose(one[slot].logprobs, other[slot].logprobs, atol=1e-4)


def scored(engine: Engine, tokens: list[int]) -> PromptScores:
    prefix = engine.begin(np.array(tokens, np.int32), top=1)
    assert prefix is not None
    while not prefix.ready:
        engine.prefill(prefix)
    engine.store.end(prefix.sequence)
    assert prefix.scores is not None
    return prefix.scores


@pytest.mark.parametrize(("folder", "most"), [(AGENT, 0.15), (MEMORY, 0.07)], ids=["agent", "memory"])
def test_the_pocket_models_keep_their_tokens(folder: Path, most: float) -> None:
    """Measured: 0.110 and 0.049 nats (RMS); 99.2% and 99.3% of the likeliest tokens are the same."""
    encode = ChatFormat.load(folder).encode
    texts = [encode(text) for text in pocket_texts([split_seed("test", 0)], ChatFormat.load(folder))]
    exact, near = (
        [scored(engine, text) for text in texts]
        for engine in (Engine(load(folder), slots=1, dtype=dtype, chunk=64) for dtype in (jnp.float32, jnp.int8))
    )
    logprobs, likeliest = zip(*(flat(scores) for scores in (exact, near)), strict=True)
    assert np.sqrt(np.mean(np.square(logprobs[0] - logprobs[1]))) < most
    assert np.mean(likeliest[0] == likeliest[1]) > 0.985


def flat(scores: list[PromptScores]) -> tuple[np.ndarray, np.ndarray]:
    """The log-probabilities of all tokens, and the likeliest ones in their places."""
    logprobs = [logprob for one in scores for logprob in one.logprobs]
    return np.array(logprobs), np.array([place[0][0] for one in scores for place in one.likeliest])


def test_they_take_little_more_than_a_quarter(model: Qwen3) -> None:
    def size(dtype: object) -> int:
        engine = Engine(model, slots=2, window=64, dtype=dtype)
        return sum(x.nbytes for x in jax.tree.leaves(engine._pages))

    head_dim = model.config.head_dim
    assert size(jnp.int8) / size(jnp.float32) == (head_dim + 4) / (4 * head_dim)
