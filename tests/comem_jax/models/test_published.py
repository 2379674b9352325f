"""Every published size of Qwen3 by the figures of its `config.json`: the same weights as in `transformers`."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import torch
import transformers
from flax import nnx

from comem_jax.models import Qwen3, Qwen3Config
from comem_jax.models.weights import weight_table

DENSE = {  # hidden, intermediate, layers, heads, tied, parameters
    "0.6B": (1024, 3072, 28, 16, True, 596_049_920),
    "1.7B": (2048, 6144, 28, 16, True, 1_720_574_976),
    "4B": (2560, 9728, 36, 32, True, 4_022_468_096),
    "8B": (4096, 12288, 36, 32, False, 8_190_735_360),
    "14B": (5120, 17408, 40, 40, False, 14_768_307_200),
    "32B": (5120, 25600, 64, 64, False, 32_762_123_264),
}
COMMON = {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 40960}


def dense(size: str, folder: Path) -> tuple[transformers.Qwen3Config, Qwen3Config]:
    hidden, intermediate, layers, heads, tied, _ = DENSE[size]
    figures = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    theirs = transformers.Qwen3Config(
        **COMMON, **figures, num_attention_heads=heads, tie_word_embeddings=tied, rope_theta=1e6
    )
    theirs.architectures = ["Qwen3ForCausalLM"]
    theirs.save_pretrained(folder)
    return theirs, Qwen3Config.from_folder(folder)


def parameters(config: Qwen3Config) -> int:
    return sum(prod(weight.shape) for weight in weight_table(config).values())


@pytest.mark.parametrize("size", DENSE)
def test_a_dense_size_has_the_published_weights(size: str, tmp_path: Path) -> None:
    theirs, ours = dense(size, tmp_path)
    assert parameters(ours) == DENSE[size][-1]
    with torch.device("meta"):
        expected = transformers.Qwen3ForCausalLM(theirs).state_dict()
    names = {
        weight.hf.format(layer)
        for weight in weight_table(ours).values()
        for layer in range(ours.num_hidden_layers if weight.stacked else 1)
    }
    assert names == expected.keys() - ({"lm_head.weight"} if ours.tie_word_embeddings else set())


def test_the_largest_dense_size_runs_as_far_as_shapes_tell(tmp_path: Path) -> None:
    _, config = dense("32B", tmp_path)
    model = nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    logits = nnx.eval_shape(Qwen3.__call__, model, jax.ShapeDtypeStruct((1, 4096), jnp.int32))
    assert logits.shape == (1, 4096, 151936)


def test_30b_a3b_has_the_published_number_of_parameters(tmp_path: Path) -> None:
    figures = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32}
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True}
    config = COMMON | figures | experts | {"num_key_value_heads": 4, "tie_word_embeddings": False}
    config |= {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "rope_theta": 1e6}
    (tmp_path / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    assert parameters(Qwen3Config.from_folder(tmp_path)) == 30_532_122_624
