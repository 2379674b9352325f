"""SFT's loss over trees on a mesh of eight virtual devices against the same rows as sequences of their own on one."""

import jax
import numpy as np
from flax import nnx

from comem_jax.chat import ChatFormat
from comem_jax.models import Qwen3, Qwen3Config
from comem_jax.models.sharding import make_mesh, shardings
from envs.pocket.weights import TOKENIZER
from rl import pocket
from rl.sft import loss_fn
from rl.trunks import trunk_batches
from tests.rl.trees import assert_same
from tests.rl.trunk_rows import as_packed_rows, make_store

MESH = {"fsdp": 2, "tensor": 2, "context": 2}
CONFIG = Qwen3Config(
    vocab_size=1024, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=True,
    max_position_embeddings=1024,
)  # fmt: skip


def make_batch():
    chat, rng = ChatFormat.load(TOKENIZER), np.random.default_rng(0)
    rows = [row for task in range(2) for row in pocket.rows_of_seed("train", task, chat)["memory"]]
    weights = [row.loss * rng.uniform(0.2, 3, len(row.loss)).astype(np.float32) for row in rows]
    store = make_store([{"tokens": row.tokens, "loss": loss} for row, loss in zip(rows, weights, strict=True)])
    return next(iter(trunk_batches({"memory": store}, {"memory": 1.0}, 640, 2, 0, cuts=3)))


if __name__ == "__main__":
    assert jax.device_count() == 8
    batch = make_batch()
    graphdef, params = nnx.split(Qwen3(CONFIG, rngs=nnx.Rngs(0)))
    gradient = jax.grad(lambda p, b: loss_fn(graphdef, p, b)[0])
    expected = jax.jit(gradient)(params, as_packed_rows(batch, 8, 544))
    mesh = make_mesh(**MESH)
    with jax.set_mesh(mesh):
        placed = jax.tree.map(jax.device_put, params, shardings(params, mesh))
        assert_same(jax.jit(gradient)(placed, batch), expected)
