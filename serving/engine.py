"""The engine: JetStream's three operations, prefill, insert and generate, over one store of pages.

`begin` finds what the store has of a prompt; `prefill` runs the rest chunk by chunk into pages, all but its last token;
`insert` opens a slot for decoding with that token; `generate` takes all open slots some steps on in one compiled call
and hands back token ids. What a call costs follows the real lengths (see `comem_jax.models.pages`), and the programs
depend on nothing but a chunk's size and the number of rows: they are few, and compiled before the first request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from comem_jax.models import Qwen3
from comem_jax.models.pages import Pages, init_pages
from serving import programs
from serving.layout import Layout
from serving.pages import PageStore
from serving.pages import Sequence as PagedSequence
from serving.reads import ReadPlan
from serving.sampling import Noise, Tastes
from serving.scores import PromptScores

PAGE = 16  # tokens
COPIED = 4  # tokens of part of a prompt's first page, at least
SHORTEST_CHUNK = 32

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one answer is sampled. Temperature 0 is greedy; `top` is None for no log-probabilities.

    `presence`, `frequency` and `repetition` are the penalties of the OpenAI protocol and vLLM, `bias` what is added to
    tokens' logits by id. No end token comes before `least` tokens did. A `top_k` of 0 keeps every token.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    top: int | None = None
    ignore_eos: bool = False
    least: int = 0

    @property
    def noise(self) -> Noise:
        """The settings that are no whole numbers."""
        return Noise(self.temperature, self.top_p, self.min_p, self.presence, self.frequency, self.repetition)


@dataclass(eq=False)
class Prefix:
    """A prompt on its way into pages; where its own tokens are to be scored, the scores gather in `scores`.

    `found` is how many of its tokens the store had; `answered` how many of them, at its end, are an answer that goes
    on. `limit` is the most tokens that all of it, with what is generated, may have.
    """

    sequence: PagedSequence
    found: int = 0
    scores: PromptScores | None = None
    answered: int = 0

    @property
    def ready(self) -> bool:
        """Whether all but the last token have been run; that one is the first step of decoding."""
        return self.sequence.held >= len(self.sequence.tokens) - 1


@dataclass
class Tokens:
    """What one slot generated in a round: token ids and, if asked for, their log-probabilities (see `Sampling.top`)."""

    ids: list[int]
    done: bool
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)


class Engine:
    """Prefill, insert and generate over `slots` requests of at most `window` tokens (prompt and answer together).

    `pages` is how many pages of 16 tokens the store has, by default enough for every slot's whole window. `steps` is
    the most decode steps a `generate`, `chunk` the longest prefill. `eos_ids` end an answer. `dtype` is that of keys
    and values, by default the model's. On a `mesh`, over whose `tensor` axis the model lies, every device keeps the
    keys and values of some kv heads.
    """

    def __init__(
        self,
        model: Qwen3,
        *,
        slots: int = 8,
        window: int = 1024,
        pages: int | None = None,
        eos_ids: Sequence[int] = (),
        steps: int = 8,
        chunk: int = 256,
        dtype: Any = None,
        mesh: Mesh | None = None,
    ) -> None:
        self.slots, self.window, self.steps = slots, window, min(steps, PAGE)
        self.chunk = max(SHORTEST_CHUNK, min(chunk, window))
        self.vocabulary = model.config.vocab_size
        self._eos = frozenset(eos_ids)
        graphdef, self._params = nnx.split(model)
        self.store = PageStore(pages or slots * -(-window // PAGE), PAGE, COPIED)
        # The page past the last takes what finished rows and padding write, so that it never lands on a live token.
        dtype = dtype or model.embedding[...].dtype
        new_pages = partial(init_pages, model.config, self.store.pages + 1, PAGE, dtype)
        self._plan = ReadPlan(PAGE, window + self.steps)
        self._layout = at = Layout(mesh)
        prompt, round_ = (at.weights, at.pages, at.whole), (at.weights, at.pages, at.vocab, at.whole)
        self._new_pages = at.jit(new_pages, (), at.pages)
        self._prefill = at.jit(partial(programs.prefill, graphdef), prompt, at.pages, donate=1)
        self._score = at.jit(partial(programs.score, graphdef), prompt, (at.pages, at.whole), donate=1)
        decode = partial(programs.generate, programs.Decoding(graphdef, tuple(eos_ids), self.steps))
        self._generate = at.jit(decode, round_, (at.pages, at.vocab, at.whole, at.whole), donate=(1, 2))
        self._copy = at.jit(programs.copy_page, (at.pages, at.whole), at.pages, donate=0)
        self._set_taste = at.jit(programs.set_taste, (at.vocab, at.whole, at.whole), at.vocab, donate=0)
        self.reset()

    def reset(self) -> None:
        """Empty the store and every slot."""
        self.store.clear()
        self._pages: Pages = self._new_pages()
        shape = (self.slots + 1, self.vocabulary)  # the last one is padding's
        tastes = Tastes(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape, jnp.float32))
        self._tastes = jax.device_put(tastes, self._layout.vocab)
        self._allowed = np.full((self.slots + 1, -(-self.vocabulary // 32)), -1, np.int32)
        self._masks = self._layout.put(self._allowed)
        self._rows = np.zeros((len(programs.Rows._fields), self.slots), np.int32)
        self._state = programs.Rows(*self._rows)
        self._state.slot[:] = np.arange(self.slots)
        self._noise = np.zeros((len(Noise._fields), self.slots), np.float32)
        self._sequences: list[PagedSequence | None] = [None] * self.slots

    def begin(self, tokens: np.ndarray, *, top: int | None = None, answered: int = 0) -> Prefix | None:
        """Take pages for a prompt (int32 `[length]`), with what the store has of it; None where there are too few.

        `top` asks for the scores of its own tokens, with so many alternatives: such a prompt is run as a whole.
        """
        prefix = Prefix(PagedSequence(tokens), scores=None if top is None else PromptScores(top), answered=answered)
        if top is None:
            self._find(prefix)
        if self.store.reserve(prefix.sequence, len(tokens)):
            return prefix
        self.store.end(prefix.sequence)
        return None

    def prefill(self, prefix: Prefix) -> int:
        """Run the next chunk of a prompt, unless another prompt has left it meanwhile; returns how many tokens ran."""
        sequence = prefix.sequence
        if prefix.scores is None:
            self._find(prefix)
        held, length = sequence.held, len(sequence.tokens)
        count = min(self.chunk, length - 1 - held)
        if count <= 0:
            return 0
        size = _bucket(count, SHORTEST_CHUNK)
        tokens = np.zeros((2, size), np.int32)  # the tokens to run and, to score, the one that follows each
        for row in range(2):
            tokens[row, :count] = sequence.tokens[held + row : held + row + count]
        place = self._nowhere(size)
        filled = sequence.pages[held // PAGE : self.store.pages_for(held + count)]
        place[:2], place[2 : 2 + len(filled)] = (held, len(filled)), filled
        reads = self._plan.chunk(sequence.pages, held)
        likeliest = np.bool_(prefix.scores is not None and prefix.scores.top > 0)
        chunk = programs.Chunk(tokens, place, reads, likeliest)
        if prefix.scores is None:
            self._pages = self._prefill(self._params, self._pages, chunk)
        else:
            self._pages, found = self._score(self._params, self._pages, chunk)
            prefix.scores.add(found, 0, count)
        self.store.fill(sequence, held + count)
        return count

    def insert(self, prefix: Prefix, slot: int, sampling: Sampling, limit: int) -> None:
        """Open a slot for decoding a prompt that is ready, up to `limit` tokens (fewer where the window ends)."""
        state, tokens = self._state, prefix.sequence.tokens
        self._sequences[slot] = prefix.sequence
        state.length[slot] = len(tokens) - 1
        state.token[slot] = tokens[-1]
        state.remaining[slot] = min(limit, self.window - len(tokens))
        state.generated[slot] = prefix.answered
        state.least[slot] = sampling.least
        state.seed[slot] = np.uint32(sampling.seed & 0xFFFFFFFF).view(np.int32)
        state.ignore_eos[slot] = sampling.ignore_eos
        state.biased[slot], state.masked[slot] = bool(sampling.bias), 0
        state.logprobs[slot] = -1 if sampling.top is None else sampling.top
        state.top_k[slot] = sampling.top_k
        self._noise[:, slot] = sampling.noise
        if sampling.bias or (sampling.presence, sampling.frequency, sampling.repetition) != (0, 0, 1):
            self._begin_taste(slot, tokens, prefix.answered, sampling.bias)

    def release(self, slot: int) -> None:
        """Stop decoding a slot and let its pages go."""
        self._state.remaining[slot] = 0
        if (sequence := self._sequences[slot]) is not None:
            self.store.end(sequence)
            self._sequences[slot] = None

    @property
    def intact(self) -> bool:
        """Whether the store is still there; a program that fails takes it along."""
        return not self._pages.keys.is_deleted()

    @property
    def open_slots(self) -> list[int]:
        """The slots that `generate` works on."""
        return np.flatnonzero(self._state.remaining).tolist()

    def reserve(self, slot: int) -> bool:
        """Take the pages that a slot's next round may fill; False where there are too few."""
        sequence, length = self._sequences[slot], int(self._state.length[slot])
        assert sequence is not None
        return self.store.reserve(sequence, length + min(self.steps, int(self._state.remaining[slot])))

    def constrain(self, slot: int) -> np.ndarray:
        """Return where to say which tokens may come next in a slot, to be filled before every one of its rounds.

        It is int32 `[vocabulary / 32]`, a bit for each token, the lowest first; a token that ends the answer comes
        where its bit is set, whatever `Sampling.least` says. A round with such a slot has one step.
        """
        self._state.masked[slot] = 1
        return self._allowed[slot]

    def generate(self, most: int | None = None, slots: Sequence[int] | None = None) -> dict[int, Tokens]:
        """Take open `slots` (by default all) up to `most` tokens on (by default `steps`); one that is done is closed.

        Every one of them must have its pages reserved. Returns tokens by slot.
        """
        slots = self.open_slots if slots is None else list(slots)
        if not slots:
            return {}
        most = self.steps if most is None else most
        if self._state.masked[slots].any():
            self._masks, most = self._layout.put(self._allowed), 1
        batch = self._gather(slots, most)
        self._pages, self._tastes, ids, logs = self._generate(self._params, self._pages, self._tastes, batch)
        produced = np.asarray(ids).T.tolist()
        wanted = [int(n) for n in self._state.logprobs[slots]]
        logs = jax.device_get(logs) if max(wanted) >= 0 else None
        return {slot: self._advance(slot, produced[i], logs, i) for i, slot in enumerate(slots)}

    def warm_up(self) -> float:
        """Compile every shape, so that no request waits for it; returns the seconds it took.

        Scoring prompts is left out: few servers are asked to, and each shape of it is compiled when it first is.
        """
        begun = time.perf_counter()
        sizes = sorted({_bucket(n, SHORTEST_CHUNK) for n in range(1, self.chunk + 1)})
        for size in sizes:
            nothing = np.zeros((2, size), np.int32), self._nowhere(size), self._plan.chunk([], 0), np.bool_(False)
            chunk = programs.Chunk(*nothing)
            self._pages = self._prefill(self._params, self._pages, chunk)
        batches = sorted({_bucket(n, 1) for n in range(1, self.slots + 1)})
        for batch in batches:
            rows, reads = self._padding(batch), self._plan.round([], [], batch)
            nobody = programs.Batch(*rows, reads, np.int32(self.steps), self._masks)
            self._pages, self._tastes, ids, _ = self._generate(self._params, self._pages, self._tastes, nobody)
            ids.block_until_ready()
        self._begin_taste(self.slots, np.zeros(0, np.int32), 0, {})
        self._copy_page(self.store.pages, self.store.pages)
        seconds = time.perf_counter() - begun
        log.info("compiled %d programs in %.1f s", len(sizes) + len(batches) + 2, seconds)
        return seconds

    def _find(self, prefix: Prefix) -> None:
        """Let a prompt go on with what the store has of it."""
        found, copy = self.store.find(prefix.sequence)
        prefix.found += found
        if copy:
            self._copy_page(*copy)

    def _copy_page(self, source: int, target: int) -> None:
        self._pages = self._copy(self._pages, np.array([source, target], np.int32))

    def _nowhere(self, size: int) -> np.ndarray:
        """Return the place of a chunk of `size` tokens that begins at 0 and fills no page."""
        return np.array([0, 0] + [self.store.pages] * (size // PAGE + 1), np.int32)

    def _begin_taste(self, slot: int, tokens: np.ndarray, answered: int, bias: Mapping[int, float]) -> None:
        """Count a prompt's tokens, and those of them that are an answer, where penalties or a bias want it."""
        prompt, answer = np.split(tokens, [len(tokens) - answered])
        generated = np.bincount(answer, minlength=self.vocabulary).astype(np.int32)
        seen = (np.bincount(prompt, minlength=self.vocabulary) + generated) > 0
        row = np.zeros(self.vocabulary, np.float32)
        for token, value in bias.items():
            row[token] = value
        self._tastes = self._set_taste(self._tastes, np.int32(slot), Tastes(generated, seen, row))

    def _gather(self, slots: list[int], most: int) -> programs.Batch:
        """Return some slots as a batch."""
        rows, noise = self._padding(_bucket(len(slots), 1))
        rows[:, : len(slots)] = self._rows[:, slots]
        noise[:, : len(slots)] = self._noise[:, slots]
        packed, pages = programs.Rows(*rows), []
        for number, slot in enumerate(slots):
            sequence = self._sequences[slot]
            assert sequence is not None
            first, packed.offset[number] = divmod(int(packed.length[number]), PAGE)
            for name, place in (("page", first), ("next_page", first + 1)):
                getattr(packed, name)[number] = [*sequence.pages, self.store.pages, self.store.pages][place]
            pages.append(sequence.pages)
        held = packed.length[: len(slots)].tolist()
        reads = self._plan.round(pages, held, rows.shape[1])
        return programs.Batch(rows, noise, reads, np.int32(most), self._masks)

    def _padding(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows that are all done, and write to the page past the last."""
        rows = np.zeros((len(programs.Rows._fields), batch), np.int32)
        padding = programs.Rows(*rows)
        padding.slot[:], padding.logprobs[:] = self.slots, -1
        padding.page[:] = padding.next_page[:] = self.store.pages
        noise = np.zeros((len(Noise._fields), batch), np.float32)
        Noise(*noise).top_p[:] = Noise(*noise).repetition[:] = 1
        return rows, noise

    def _advance(self, slot: int, ids: list[int], logs: Any, row: int) -> Tokens:
        """Bring a slot's figures and its sequence to where the device left them."""
        state, sequence = self._state, self._sequences[slot]
        assert sequence is not None
        if ids[-1] < 0:
            ids = ids[: ids.index(-1)]
        count = len(ids)
        state.length[slot] += count
        state.generated[slot] += count
        state.remaining[slot] -= count
        state.token[slot] = ids[-1]
        sequence.tokens = np.concatenate([sequence.tokens, np.asarray(ids, np.int32)])
        self.store.fill(sequence, int(state.length[slot]))
        if ids[-1] in self._eos and not state.ignore_eos[slot]:
            state.remaining[slot] = 0
        tokens = Tokens(ids, done=not state.remaining[slot])
        if (top := int(state.logprobs[slot])) >= 0:
            tokens.logprobs = logs.chosen[:count, row].tolist()
            tops = zip(logs.top_ids[:count, row, :top].tolist(), logs.top[:count, row, :top].tolist(), strict=True)
            tokens.top = [list(zip(names, values, strict=True)) for names, values in tops]
        return tokens


def _bucket(count: int, least: int) -> int:
    """Return the smallest of `least`, 2 `least`, 4 `least`, … that is not below `count`."""
    return max(least, 1 << max(count - 1, 0).bit_length())
