"""The engine's compiled programs: pure functions of weights, pages and rows.

All mathematics is the model's and the sampler's. `B` rows of a batch, `T` tokens of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from comem_jax.models.paged import Step, put, run_chunk, run_step
from comem_jax.models.pages import Pages, Reads, init_pages
from serving.sampling import (
    TOP,
    Choice,
    Logprobs,
    Noise,
    Scores,
    Tastes,
    choose,
    count_tokens,
    logprobs,
    no_logprobs,
    permitted,
    without,
)  # fmt: skip
from serving.sampling import score as find_scores


class Rows(NamedTuple):
    """What a round of decoding knows of each row, int32 `[B]`: also the order in which the figures are packed.

    `slot` is the row's place in the tables, `length` the tokens it holds, `token` the next one to run, `remaining` how
    many may still come (0: done), `generated` how many came, `least` how many must come before an end token may,
    `seed` its noise, `ignore_eos`, `biased` and `masked` 0 or 1, `logprobs` the number of alternatives to report, or -1
    for no log-probabilities, and `top_k` (0: all). What it writes goes to `page` from `offset` on, and then to
    `next_page`.
    """

    slot: Any
    length: Any
    token: Any
    remaining: Any
    generated: Any
    least: Any
    seed: Any
    ignore_eos: Any
    biased: Any
    masked: Any
    logprobs: Any
    top_k: Any
    page: Any
    offset: Any
    next_page: Any


class Decoding(NamedTuple):
    """What holds for every round: the model without its weights, the ids that end an answer, the steps of a round."""

    graphdef: Any
    eos: tuple[int, ...]
    steps: int


class _Round(NamedTuple):
    step: jax.Array
    token: jax.Array
    remaining: jax.Array
    recent: Pages
    tastes: Tastes
    ids: jax.Array
    logs: Logprobs


class Chunk(NamedTuple):
    """The next stretch of a prompt: its tokens and, to score, the one that follows each, int32 `[2, T]`.

    `place` is where it begins, how many pages it touches, and then these pages, room for T / page size + 1 of them;
    `reads` are the pages before it. `likeliest` (a bool) says whether a score tells the most probable tokens too.
    """

    tokens: Any
    place: Any
    reads: Reads
    likeliest: Any


class Batch(NamedTuple):
    """A round's rows: `rows` is `Rows` as int32 `[15, B]`, `noise` is `Noise` as float32 `[6, B]`.

    `reads` are what single rows read of the pages and what several read together; no row gets over `most` tokens.
    `masks` says of each slot which tokens may come, one bit each, int32 `[slots + 1, vocab / 32]`: it holds for the
    rows that are `masked`, which take their end tokens from it too, and for one step.
    """

    rows: Any
    noise: Any
    reads: tuple[Reads, Reads]
    most: Any
    masks: Any


def prefill(graphdef: Any, params: Any, pages: Pages, chunk: Chunk) -> Pages:
    """Run a chunk and return the pages with its keys and values."""
    return _extend(nnx.merge(graphdef, params), pages, chunk)[1]


def score(graphdef: Any, params: Any, pages: Pages, chunk: Chunk) -> tuple[Pages, Scores]:
    """Prefill a chunk and score the tokens that follow its own."""
    model = nnx.merge(graphdef, params)
    hidden, pages = _extend(model, pages, chunk)
    return pages, find_scores(model.head(hidden), chunk.tokens[1], chunk.likeliest)


def generate(
    decoding: Decoding, params: Any, pages: Pages, tastes: Tastes, batch: Batch
) -> tuple[Pages, Tastes, jax.Array, Logprobs]:
    """Decode up to `steps` tokens a row; returns ids `[steps, B]` too, -1 past a row's end.

    New keys and values are written to the pages at the end, all at once.
    """
    rows, noise, steps = Rows(*batch.rows), Noise(*batch.noise), decoding.steps
    model = nnx.merge(decoding.graphdef, params)
    choice = Choice(noise, rows.top_k, rows.seed, rows.slot, rows.biased > 0, rows.logprobs >= 0)
    eos = jnp.array(decoding.eos, jnp.int32)

    def step(now: _Round) -> _Round:
        generated = rows.generated + now.step
        new = Step(now.token, rows.length + now.step, now.step)
        hidden, recent = run_step(model, pages, now.recent, new, batch.reads)
        logits = model.head(hidden)
        active = now.remaining > 0
        possible = without(logits, decoding.eos, (generated < rows.least) & (rows.masked == 0))
        possible = permitted(possible, batch.masks[rows.slot], rows.masked > 0)
        token = choose(possible, choice, now.tastes, generated)
        found = logprobs(logits, token, choice.logprobs)
        ended = jnp.isin(token, eos) & (rows.ignore_eos == 0)
        return _Round(
            now.step + 1,
            jnp.where(active, token, now.token),
            jnp.where(ended, 0, now.remaining - active),
            recent,
            count_tokens(now.tastes, rows.slot, token, active),
            now.ids.at[now.step].set(jnp.where(active, token, -1)),
            jax.tree.map(lambda all_steps, new: all_steps.at[now.step].set(new), now.logs, found),
        )

    last = jax.lax.while_loop(
        lambda now: (now.step < batch.most) & jnp.any(now.remaining > 0),
        step,
        _first_round(model, pages, rows, tastes, steps),
    )
    return _keep(pages, last.recent, rows, last.step), last.tastes, last.ids, last.logs


def copy_page(pages: Pages, places: jax.Array) -> Pages:
    """Return the pages with page `places[1]` like page `places[0]`."""
    page = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, places[0], 1, axis=1), pages)
    return put(pages, page, places[1:], jnp.zeros(1, jnp.int32), jnp.int32(1))


def set_taste(tastes: Tastes, slot: jax.Array, row: Tastes) -> Tastes:
    """Return the tastes with one slot's row replaced by arrays `[vocab]`."""
    return jax.tree.map(lambda all_slots, new: all_slots.at[slot].set(new), tastes, row)


def _extend(model: Any, pages: Pages, chunk: Chunk) -> tuple[jax.Array, Pages]:
    """Return the hidden states `[T, hidden]` of a chunk, and the pages with its keys and values."""
    start, count, into = chunk.place[0], chunk.place[1], chunk.place[2:]
    hidden, new = run_chunk(model, pages, chunk.tokens[0], start, chunk.reads)

    def in_pages(store: jax.Array, new: jax.Array) -> jax.Array:
        """The new tokens behind what their first page holds, as whole pages `[layers, pages, kv_heads, size, d]`."""
        layers, _, heads, length, dim = new.shape
        first = jax.lax.dynamic_slice_in_dim(store, into[0], 1, axis=1)
        room = jnp.concatenate([first, jnp.zeros((layers, 1, heads, length, dim), store.dtype)], axis=3)
        room = jax.lax.dynamic_update_slice_in_dim(room, new.astype(store.dtype), start % pages.size, axis=3)
        return room.reshape(layers, heads, -1, pages.size, dim).swapaxes(1, 2)

    return hidden, put(pages, jax.tree.map(in_pages, pages, new), into, jnp.zeros_like(into), count)


def _first_round(model: Any, pages: Pages, rows: Rows, tastes: Tastes, steps: int) -> _Round:
    batch = rows.slot.shape[0]
    ids = jnp.full((steps, batch), -1, jnp.int32)
    nothing = no_logprobs((steps, batch), min(TOP, model.config.vocab_size))
    recent = init_pages(model.config, batch, steps, pages.keys.dtype)
    return _Round(jnp.int32(0), rows.token, rows.remaining, recent, tastes, ids, nothing)


def _keep(pages: Pages, recent: Pages, rows: Rows, steps: jax.Array) -> Pages:
    """Write what `steps` steps left, step by step and row by row, to the rows' pages."""
    batch, length = rows.slot.shape[0], recent.size
    place = rows.offset + jnp.arange(length)[:, None]
    page = jnp.where(place < pages.size, rows.page, rows.next_page)

    def by_step(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 3, 1).reshape(len(x), length * batch, x.shape[2], 1, x.shape[-1])

    return put(pages, jax.tree.map(by_step, recent), page.reshape(-1), (place % pages.size).reshape(-1), steps * batch)
