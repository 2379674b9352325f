"""An engine on meshes of eight virtual devices against one device; argv[1] may be `all`."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from comem_jax.models import Qwen3, Qwen3Config, load, save
from comem_jax.models.config import Moe
from comem_jax.models.loading import load_dummy
from comem_jax.models.sharding import make_mesh
from serving import programs
from serving.engine import Engine, Sampling

VOCAB = 64
SHARED = 80  # tokens: five pages, which five rows read at once
PENALTIES = Sampling(top=3, ignore_eos=True, presence=0.5, frequency=0.5, repetition=1.2, bias={5: 2.0, 7: -100.0})
DRAWN = Sampling(top=2, ignore_eos=True, temperature=1.3, top_p=0.9, top_k=20, min_p=0.01, seed=11)
GREEDY = Sampling(top=3, ignore_eos=True)
MOE = Moe(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True)
# What a model is, how it is loaded, and over how many devices. With 8 of them the 2 kv heads are there 4 times each.
SPREAD: list[tuple[dict[str, Any], dict[str, Any], int]] = [({"moe": MOE}, {"int8": True}, 8)]
ALL = [
    (changes | shape, how, tensor)
    for changes in ({}, {"tie_word_embeddings": True}, {"moe": MOE}, {"num_hidden_layers": 2})
    for shape in ({}, {"num_key_value_heads": 8})
    for how in ({}, {"int8": True})
    for tensor in (2, 4, 8)
]


def make_folder(folder: Path, **changes: Any) -> Path:
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 5,  # scanned and not unrolled: less to compile
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "tie_word_embeddings": False,
        "max_position_embeddings": 512,
    }
    model = Qwen3(Qwen3Config(**(fields | changes)), rngs=nnx.Rngs(0))
    # Larger weights than at the start of a training: the next token then depends on the whole prompt.
    nnx.update(model, jax.tree.map(lambda x: x * 8 if x.ndim > 2 else x, nnx.state(model, nnx.Param)))
    save(model, folder)
    return folder


def prompt(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, VOCAB, length).astype(np.int32)


class Transcript:
    """Everything an engine says to a mix of requests: token ids, log-probabilities, and what it had found."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ids: list[list[int]] = []
        self.found: list[int] = []
        self.logprobs: list[float] = []

    def ask(self, prompts: list[np.ndarray], samplings: list[Sampling], mask: np.ndarray | None = None) -> None:
        for slot, (tokens, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            prefix = self.engine.begin(tokens)
            while not prefix.ready:
                self.engine.prefill(prefix)
            self.engine.insert(prefix, slot, sampling, limit=9)
            self.found.append(prefix.found)
        answers: dict[int, list[int]] = {slot: [] for slot in range(len(prompts))}
        while self.engine.open_slots:
            assert all(self.engine.reserve(slot) for slot in self.engine.open_slots)
            if mask is not None:
                self.engine.constrain(0)[:] = mask
            for slot, new in self.engine.generate().items():
                answers[slot] += new.ids
                self.logprobs += new.logprobs + [value for top in new.top for _, value in top]
        self.ids += answers.values()
        for slot in answers:
            self.engine.release(slot)

    def score(self, tokens: np.ndarray) -> None:
        prefix = self.engine.begin(tokens, top=3)
        while not prefix.ready:
            self.engine.prefill(prefix)
        self.engine.store.end(prefix.sequence)
        self.ids.append(prefix.scores.ranks)
        self.logprobs += prefix.scores.logprobs + [value for top in prefix.scores.likeliest for _, value in top]

    def all(self) -> Transcript:
        shared = [np.concatenate([prompt(SHARED, 0), prompt(5 + 9 * row, row + 1)]) for row in range(5)]
        self.ask(shared, [GREEDY, GREEDY, PENALTIES, DRAWN, GREEDY])
        grown = np.concatenate([shared[1], np.array(self.ids[1], np.int32), prompt(30, 9)])
        even = np.full(VOCAB // 32, 0x55555555, np.int32)
        self.ask([grown, *shared[:4]], [GREEDY] * 5, mask=even)  # as many rows as before: no further program
        self.score(prompt(90, 8))
        return self


def transcript(folder: Path, tensor: int, how: dict[str, Any]) -> Transcript:
    mesh = make_mesh(tensor=tensor) if tensor > 1 else None
    model = load(folder, mesh=mesh, spread=True, **how)
    engine = Engine(model, slots=5, window=200, chunk=32, mesh=mesh)
    found = Transcript(engine).all()
    assert engine.intact
    kept = engine._pages.keys
    heads = max(model.config.num_key_value_heads, tensor)
    assert {shard.data.shape[2] for shard in kept.addressable_shards} == {heads // tensor}
    assert len(kept.sharding.device_set) == tensor
    return found


def check(folder: Path, how: dict[str, Any], tensor: int) -> None:
    expected, found = transcript(folder, 1, how), transcript(folder, tensor, how)
    assert found.ids == expected.ids
    assert found.found == expected.found and expected.found[5] > SHARED + 14
    assert all(token % 2 == 0 for token in found.ids[5])
    np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=0, atol=1e-4)


def check_what_is_sent(folder: Path) -> None:
    """A chunk of a prompt costs two sums among the devices a layer and one for the embeddings; nothing else is sent."""
    mesh = make_mesh(tensor=8)
    engine = Engine(load(folder, mesh=mesh, spread=True), slots=2, window=64, mesh=mesh)
    empty = np.zeros((2, 32), np.int32), engine._nowhere(32), engine._plan.chunk([], 0), np.bool_(False)
    text = engine._prefill.lower(engine._params, engine._pages, programs.Chunk(*empty)).compile().as_text()
    sent = Counter(re.findall(r" (all-\w+|reduce-scatter|collective-\w+)\(", text))
    assert sent == {"all-reduce": 2 + 1}, sent


def check_steady_state(folder: Path) -> None:
    mesh = make_mesh(tensor=2)
    engine = Engine(load(folder, mesh=mesh), slots=1, window=200, chunk=32, mesh=mesh)
    engine.warm_up()
    compiled = engine._generate, engine._prefill, engine._set_taste, engine._copy
    before = [program._cache_size() for program in compiled]
    said = Transcript(engine)
    for length in (1, 20, 40, 150):
        said.ask([prompt(length, 1)], [DRAWN if length % 20 else PENALTIES], mask=np.full(2, -1, np.int32))
    assert said.found == [0, 0, 20, 40]
    assert [program._cache_size() for program in compiled] == before


def check_dummy(folder: Path) -> None:
    alone, parted = (load_dummy(folder, mesh=mesh, spread=True) for mesh in (None, make_mesh(tensor=8)))
    keys, wide = alone.layers["k"][...], parted.layers["k"][...]
    np.testing.assert_array_equal(jnp.repeat(keys, 4, axis=2), wide)
    np.testing.assert_array_equal(alone.layers["gate"][...], parted.layers["gate"][...])


if __name__ == "__main__":
    assert jax.device_count() == 8
    wide = sys.argv[1:] == ["all"]
    with TemporaryDirectory() as name:
        for number, (changes, how, tensor) in enumerate(ALL if wide else SPREAD):
            begun = time.monotonic()
            check(make_folder(Path(name) / str(number), **changes), how, tensor)
            print(changes, how, tensor, f"{time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
        for check_more in (check_what_is_sent, check_steady_state, *([check_dummy] if wide else [])):
            begun = time.monotonic()
            check_more(Path(name) / "0")
            print(check_more.__name__, f"{time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
