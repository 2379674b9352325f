"""The engine as JetStream's `Engine`: prefill, insert and generate, each called by another thread.

The engine is not made for several threads: each takes its turn, a chunk of a prompt or a round of decoding long. A
request takes pages for all that it may become before its prompt is begun, as with JetStream's own caches, of which
every slot has its whole window: JetStream cannot put an answer off.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from comem_jax.chat import ChatFormat
from comem_jax.errors import UserError
from serving.engine import Engine, Tokens
from serving.jetstream.package import engine_api, tokenizer_pb2
from serving.jetstream.requests import Request
from serving.jetstream.tokenizer import Tokenizer
from serving.jetstream.turns import Turns
from serving.jobs import Generation
from serving.text import TokenBytes

log = logging.getLogger(__name__)


class GivenUpError(Exception):
    """A request was closed before its prompt had been run."""


@dataclass
class Row:
    """A slot that is decoded: its request, and how many tokens it has generated."""

    request: Request
    produced: int = 0


class JetStreamEngine(engine_api.Engine):
    """JetStream's operations over one engine. The decode state they pass on is the engine's own, and empty here.

    `prefill` takes a `Request`, or plain token ids for a greedy answer as long as the window lets it be.
    """

    def __init__(self, engine: Engine, chat: ChatFormat, tokens: TokenBytes) -> None:
        self.holding: set[Request] = set()  # pages
        self._engine = engine
        self._chat = chat
        self._tokens = tokens
        self._turns = Turns()
        self._rows: dict[int, Row] = {}
        self._room = threading.Event()  # set where a prompt that waits for pages may look again

    def prefill(
        self, *, params: Any = None, existing_prefix: Any = None, padded_tokens: Any, true_length: int
    ) -> Request:
        """Run a prompt (a `Request`, or int `[length]` of which `true_length` count); waits until it has pages.

        Raises `GivenUpError` for a request that is closed meanwhile, `UserError` for one that cannot be.
        """
        if existing_prefix is not None:
            raise UserError("existing_prefix is not taken; give all of the prompt, and what is known of it is found")
        plain = not isinstance(padded_tokens, Request)
        request = self._plain(np.asarray(padded_tokens)[:true_length]) if plain else padded_tokens
        self._begin(request)
        try:
            while not self._run_chunk(request):
                pass
        except Exception:
            self.drop(request)
            raise
        return request

    def insert(self, prefix: Request, decode_state: None, slot: int) -> None:
        """Open a slot for a prompt that has been run; one that asks for no token, or is closed, leaves it empty."""
        with self._turns:
            if slot in self._rows:
                self._let_go(self._rows[slot].request)
            limit = prefix.generation.limit
            if prefix.closed or not limit:
                self._let_go(prefix)
                return
            assert prefix.prefix is not None
            self._engine.insert(prefix.prefix, slot, prefix.generation.sampling, limit)
            prefix.slot = slot
            self._rows[slot] = Row(prefix)

    def generate(self, params: Any, decode_state: None) -> tuple[None, Any]:
        """Take every open slot some tokens on; returns them as `ResultTokens`, a slot that is done with one invalid.

        Each request has its tokens, with their log-probabilities, in its `rounds` too.
        """
        with self._turns:
            for request in [one for one in self.holding if one.closed]:
                self._let_go(request)
            self._constrain()
            new = any(not row.produced for row in self._rows.values())  # whose first token should not wait for others
            made = self._engine.generate(1 if new else None)
            lengths = {slot: self._take(slot, tokens) for slot, tokens in made.items()}
        return None, self._results(made, lengths)

    def drop(self, request: Request) -> None:
        """Let the pages of a request go, wherever it is."""
        if request in self.holding:
            with self._turns:
                self._let_go(request)
        self.look_again()

    def look_again(self) -> None:
        """Let a prompt that waits for pages see whether there are any, and whether it is still wanted."""
        self._room.set()

    @property
    def intact(self) -> bool:
        """Whether the engine has survived what went wrong; while a program runs, it has given its pages away."""
        with self._turns:
            return self._engine.intact

    def load_params(self, *args: Any, **settings: Any) -> None:
        """Return nothing: the engine has its weights."""

    def init_decode_state(self, *args: Any, **settings: Any) -> None:
        """Return nothing: the engine has its state."""

    def get_prefix_destination_sharding(self) -> Any:
        """Return where a prompt's cache is to be sent: it stays where it is."""
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def get_tokenizer(self) -> Any:
        """Return empty parameters; `build_tokenizer` needs none."""
        return tokenizer_pb2.TokenizerParameters()

    def build_tokenizer(self, metadata: Any = None) -> Tokenizer:
        """Return the model's own tokenizer."""
        return Tokenizer(self._chat)

    @property
    def max_concurrent_decodes(self) -> int:
        """The number of slots."""
        return self._engine.slots

    @property
    def samples_per_slot(self) -> int:
        """One answer a slot."""
        return 1

    @property
    def max_prefill_length(self) -> int:
        """The most tokens of a prompt: the window, less one for the answer."""
        return self._engine.window - 1

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """A mesh of the one device."""
        return jax.sharding.Mesh(np.array(jax.devices()[:1]), ("device",))

    @property
    def colocated_cpus(self) -> None:
        """Nothing runs beside the device."""
        return

    def _plain(self, tokens: np.ndarray) -> Request:
        if not 0 < len(tokens) <= self.max_prefill_length:
            raise UserError(f"a prompt has 1 to {self.max_prefill_length} tokens here, not {len(tokens)}")
        return Request(Generation(tokens.tolist(), self._engine.window), self._tokens, lambda output: None)

    def _begin(self, request: Request) -> None:
        """Wait until there are pages for all that a request may become, and take them."""
        while True:
            self._room.clear()
            if request.closed:
                raise GivenUpError
            with self._turns:
                if self._take_pages(request):
                    return
            self._room.wait()

    def _take_pages(self, request: Request) -> bool:
        prefix = self._engine.begin(request.prompt, top=request.generation.score)
        if prefix is None:
            return False
        most = min(len(request.prompt) + request.generation.limit, self._engine.window)
        if not self._engine.store.reserve(prefix.sequence, most):
            self._engine.store.end(prefix.sequence)
            return False
        request.prefix, request.admitted = prefix, time.perf_counter()
        self.holding.add(request)
        return True

    def _run_chunk(self, request: Request) -> bool:
        """Run a chunk of a prompt; returns whether it was the last."""
        with self._turns:
            if request.closed:
                raise GivenUpError
            prefix = request.prefix
            assert prefix is not None
            self._engine.prefill(prefix)
            request.cached = prefix.found
            return prefix.ready

    def _constrain(self) -> None:
        """Say which tokens may come next in answers of a given form."""
        for slot, row in list(self._rows.items()):
            request = row.request
            if request.form is None:
                continue
            ends = row.produced >= request.generation.sampling.least
            try:
                request.form.fill(self._engine.constrain(slot), ends)
            except Exception as error:
                self._fail(request, error)

    def _take(self, slot: int, tokens: Tokens) -> int:
        """Give a request what was generated for it; returns how many tokens it has now."""
        row = self._rows[slot]
        row.produced += len(tokens.ids)
        try:
            if row.request.form is not None:
                row.request.form.take(tokens.ids)
        except Exception as error:
            self._fail(row.request, error)
            return row.produced
        if tokens.done:
            self._let_go(row.request)
        row.request.rounds.append(tokens)
        return row.produced

    def _fail(self, request: Request, error: Exception) -> None:
        log.error("the form of an answer failed", exc_info=error)
        self._let_go(request)
        request.fault = error

    def _let_go(self, request: Request) -> None:
        """Close a request's slot, if it has one, and let its pages go."""
        row = self._rows.get(request.slot)
        if row is not None and row.request is request:
            del self._rows[request.slot]
            self._engine.release(request.slot)
        elif request.prefix is not None:
            self._engine.store.end(request.prefix.sequence)
        self.holding.discard(request)
        self.look_again()

    def _results(self, made: dict[int, Tokens], lengths: dict[int, int]) -> Any:
        """Return a round as JetStream has it: int32 `[slots, 2 width + 1]`, tokens, which of them are valid, length."""
        width = max((len(tokens.ids) for tokens in made.values()), default=1)
        data = np.zeros((self._engine.slots, 2 * width + 1), np.int32)
        for slot, tokens in made.items():
            count = len(tokens.ids)
            data[slot, :count], data[slot, width : width + count] = tokens.ids, 1
            data[slot, -1] = lengths[slot]
        return engine_api.ResultTokens(data, (0, width), (width, 2 * width), (2 * width, 2 * width + 1), 1)
