"""Choosing the next token, and the log-probabilities of the choice, inside the compiled step.

Each kind of work is a branch of a `cond`, not a program of its own: a batch that is all greedy computes no noise, and
one in which nobody asked for log-probabilities computes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

TOP = 20
GREEDY_BELOW = 1e-5  # a temperature under this is 0: dividing by it would overflow
BISECTIONS = 24  # of a probability between 0 and 1: as fine as float32


class Noise(NamedTuple):
    """What a request says of the drawing and of repetition, float32 `[batch]`; these values change nothing.

    Their names and meaning are those of the OpenAI protocol and vLLM: temperature 0 is greedy, `top_p` 1, `min_p` 0,
    `presence` and `frequency` 0, `repetition` 1.
    """

    temperature: Any
    top_p: Any
    min_p: Any
    presence: Any
    frequency: Any
    repetition: Any


class Choice(NamedTuple):
    """What each request of a batch wants of the sampler, arrays `[batch]`; a `top_k` of 0 keeps every token.

    `slot` is its row of `Tastes`, `biased` whether it has a bias there, `logprobs` whether it wants log-probabilities.
    """

    noise: Noise
    top_k: jax.Array
    seed: jax.Array
    slot: jax.Array
    biased: jax.Array
    logprobs: jax.Array


class Tastes(NamedTuple):
    """What is kept of each slot, `[slots, vocab]`: how often a token was generated, whether the prompt or the answer
    has it, and what is added to its logit (-inf for one that may not come).
    """

    generated: Any
    seen: Any
    bias: Any


class Logprobs(NamedTuple):
    """Natural logarithms: of the chosen token `[batch]`, of the most probable ones `[batch, top]`, and their ids."""

    chosen: jax.Array
    top: jax.Array
    top_ids: jax.Array


class Scores(NamedTuple):
    """Of given tokens `[tokens]`: their log-probabilities and ranks; of the most probable `[tokens, top]`, with ids."""

    chosen: jax.Array
    rank: jax.Array
    top: jax.Array
    top_ids: jax.Array


def choose(logits: jax.Array, choice: Choice, tastes: Tastes, position: jax.Array) -> jax.Array:
    """Return token ids `[batch]` drawn from float32 `logits` `[batch, vocab]`.

    Bias and penalties come first, then the temperature, and then what `min_p`, `top_k` and `top_p` keep, as in vLLM.
    The noise of a row comes from its seed and from `position` `[batch]`, the number of the token within its answer, and
    from nothing else: what else runs in the batch does not change it.
    """
    noise = choice.noise
    logits = _tasted(logits, choice, tastes)
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw() -> jax.Array:
        kept = _kept(logits / jnp.maximum(noise.temperature, GREEDY_BELOW)[:, None], choice)
        drawn = jnp.argmax(kept + _noise(choice.seed, position, logits.shape[-1]), axis=-1)
        return jnp.where(noise.temperature < GREEDY_BELOW, greedy, drawn.astype(jnp.int32))

    return jax.lax.cond(jnp.any(noise.temperature >= GREEDY_BELOW), draw, lambda: greedy)


def count_tokens(tastes: Tastes, slot: jax.Array, token: jax.Array, active: jax.Array) -> Tastes:
    """Return the tastes with the new tokens `[batch]` of `active` rows counted."""
    generated = tastes.generated.at[slot, token].add(active.astype(tastes.generated.dtype))
    return tastes._replace(generated=generated, seen=tastes.seen.at[slot, token].max(active))


def without(logits: jax.Array, ids: Sequence[int], rows: jax.Array) -> jax.Array:
    """Return `logits` with -inf for some `ids` in the rows that `rows` `[batch]` marks."""
    if not ids:
        return logits
    barred = jnp.isin(jnp.arange(logits.shape[-1]), jnp.asarray(ids, jnp.int32))
    return jnp.where(rows[:, None] & barred, -jnp.inf, logits)


def permitted(logits: jax.Array, bits: jax.Array, rows: jax.Array) -> jax.Array:
    """Return `logits` `[batch, vocab]` with -inf where a token's bit is not set, in the rows that `rows` marks.

    `bits` is int32 `[batch, vocab / 32]`, the lowest bit first.
    """

    def barred() -> jax.Array:
        each = (bits[:, :, None] >> jnp.arange(32)) & 1
        may = each.reshape(len(bits), -1)[:, : logits.shape[-1]] > 0
        return jnp.where(may | ~rows[:, None], logits, -jnp.inf)

    return jax.lax.cond(jnp.any(rows), barred, lambda: logits)


def _tasted(logits: jax.Array, choice: Choice, tastes: Tastes) -> jax.Array:
    noise = choice.noise
    wanted = (noise.presence != 0) | (noise.frequency != 0) | (noise.repetition != 1)

    def biased() -> jax.Array:
        return logits + jnp.where(choice.biased[:, None], tastes.bias[choice.slot], 0)

    def penalised(logits: jax.Array) -> jax.Array:
        generated, seen = tastes.generated[choice.slot], tastes.seen[choice.slot]
        factor = noise.repetition[:, None]
        logits = jnp.where(seen, jnp.where(logits > 0, logits / factor, logits * factor), logits)
        logits -= noise.frequency[:, None] * generated
        return logits - noise.presence[:, None] * (generated > 0)

    logits = jax.lax.cond(jnp.any(choice.biased), biased, lambda: logits)
    return jax.lax.cond(jnp.any(wanted), penalised, lambda logits: logits, logits)


def _kept(logits: jax.Array, choice: Choice) -> jax.Array:
    noise = choice.noise

    def likely(logits: jax.Array) -> jax.Array:
        floor = jnp.max(logits, axis=-1) + jnp.log(noise.min_p)  # -inf for a min_p of 0
        return jnp.where(logits >= floor[:, None], logits, -jnp.inf)

    for wanted, keep in (
        (noise.min_p > 0, likely),
        (choice.top_k > 0, lambda logits: highest(logits, choice.top_k)),
        (noise.top_p < 1, lambda logits: nucleus(logits, noise.top_p)),
    ):
        logits = jax.lax.cond(jnp.any(wanted), keep, lambda logits: logits, logits)
    return logits


def highest(logits: jax.Array, top_k: jax.Array) -> jax.Array:
    """Return float32 `logits` `[batch, vocab]` with -inf outside the `top_k` `[batch]` highest (0: all; ties stay).

    The least one to keep is found by bisection of the floats' bits, which are in the order of the floats once those of
    negative numbers are turned around: exact, and far faster than a sort.
    """
    bits = jax.lax.bitcast_convert_type(jnp.where(logits == 0, 0.0, logits), jnp.int32)  # 0 and -0 are the same
    order = jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)

    def set_bit(number: jax.Array, floor: jax.Array) -> jax.Array:
        higher = floor + jnp.left_shift(jnp.int32(1), 31 - number)  # the first one goes from the lowest int32 to 0
        enough = jnp.sum(order >= higher[:, None], axis=-1) >= top_k
        return jnp.where(enough, higher, floor)

    lowest = jnp.full(top_k.shape, jnp.iinfo(jnp.int32).min)
    floor = jax.lax.fori_loop(0, 32, set_bit, lowest)
    return jnp.where((order >= floor[:, None]) | (top_k <= 0)[:, None], logits, -jnp.inf)


def nucleus(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """Return `logits` `[batch, vocab]` with -inf outside the fewest tokens whose probabilities reach `top_p` `[batch]`.

    The least probability to keep is found by bisection: a sort of the vocabulary takes far longer, on every device.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        mass = jnp.sum(jnp.where(probabilities >= middle[:, None], probabilities, 0), axis=-1)
        return jnp.where(mass >= top_p, middle, low), jnp.where(mass >= top_p, high, middle)

    most = jnp.max(probabilities, axis=-1)
    floor, _ = jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros_like(most), most))
    floor = jnp.where(top_p < 1, jnp.minimum(floor, most), 0)
    return jnp.where(probabilities >= floor[:, None], logits, -jnp.inf)


def logprobs(logits: jax.Array, tokens: jax.Array, wanted: jax.Array) -> Logprobs:
    """Return the model's own log-probabilities (before temperature and top_p), or zeros where no row wants them."""
    batch, top = logits.shape[0], min(TOP, logits.shape[1])

    def compute() -> Logprobs:
        logs = jax.nn.log_softmax(logits, axis=-1)
        values, ids = jax.lax.top_k(logs, top)
        return Logprobs(jnp.take_along_axis(logs, tokens[:, None], axis=-1)[:, 0], values, ids.astype(jnp.int32))

    return jax.lax.cond(jnp.any(wanted), compute, lambda: no_logprobs((batch,), top))


def score(logits: jax.Array, tokens: jax.Array, top: jax.Array) -> Scores:
    """Return the model's own log-probabilities of `tokens` `[tokens]` under `logits` `[tokens, vocab]`.

    The most probable ones are looked for where `top` (a bool) says so, and are zeros otherwise.
    """
    total = jax.nn.logsumexp(logits, axis=-1)
    own = jnp.take_along_axis(logits, tokens[:, None], axis=-1)
    rank = 1 + jnp.sum(logits > own, axis=-1)
    shape = (logits.shape[0], min(TOP, logits.shape[1]))

    def find() -> tuple[jax.Array, jax.Array]:
        values, ids = jax.lax.top_k(logits, shape[1])
        return jnp.minimum(values - total[:, None], 0), ids.astype(jnp.int32)

    likeliest, ids = jax.lax.cond(top, find, lambda: (jnp.zeros(shape), jnp.zeros(shape, jnp.int32)))
    return Scores(jnp.minimum(own[:, 0] - total, 0), rank, likeliest, ids)  # rounding alone would make one positive


def no_logprobs(shape: tuple[int, ...], top: int) -> Logprobs:
    """Return zeros in the shape of log-probabilities."""
    return Logprobs(jnp.zeros(shape), jnp.zeros((*shape, top)), jnp.zeros((*shape, top), jnp.int32))


def _noise(seed: jax.Array, position: jax.Array, vocabulary: int) -> jax.Array:
    def of_row(seed: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), (vocabulary,))

    return jax.vmap(of_row)(seed, position)
