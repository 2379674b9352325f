"""Tiny random Qwen3 models, as `transformers` makes them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from comem_jax.models import Qwen3, Qwen3Config
from comem_jax.models.remat import Remat

VOCAB = 61
HEADS = [(4, 4, 8), (4, 2, 8), (4, 1, 8), (4, 2, 16)]


def reference_model(seed: int = 0, **changes: Any) -> transformers.PreTrainedModel:
    """Return a random model with weights large enough that attention and norms matter; of experts, with `MOE`."""
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.2,
        "eos_token_id": 3,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    moe = "num_experts" in changes
    configuration = transformers.Qwen3MoeConfig if moe else transformers.Qwen3Config
    kind = transformers.Qwen3MoeForCausalLM if moe else transformers.Qwen3ForCausalLM
    model = kind(configuration(**(fields | changes))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.uniform_(0.5, 1.5)
    return model


def reference_folder(folder: Path, **changes: Any) -> transformers.PreTrainedModel:
    """Save such a model in `folder` and return it."""
    model = reference_model(**changes)
    model.save_pretrained(folder)
    return model


def reference_logits(model: transformers.PreTrainedModel, tokens: np.ndarray, **inputs: np.ndarray) -> np.ndarray:
    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    with torch.no_grad():
        return model(torch.tensor(tokens), **tensors).logits.float().numpy()


def random_tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, shape)


def tiny_config(**changes: Any) -> Qwen3Config:
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
        "max_position_embeddings": 512,
    }
    return Qwen3Config(**(fields | changes))


def tiny_model(seed: int = 0, dtype: Any = jnp.float32, remat: Remat = "none", **changes: Any) -> Qwen3:
    """Return a random model of ours; made under jit, where a dozen shapes compile once instead of one by one."""
    return _make(tiny_config(**changes), jax.random.key(seed), dtype, remat)


@partial(nnx.jit, static_argnums=(0, 2, 3))
def _make(config: Qwen3Config, key: jax.Array, dtype: Any, remat: Remat) -> Qwen3:
    return Qwen3(config, rngs=nnx.Rngs(key), dtype=dtype, remat=remat)
