"""Qwen3 in Flax NNX, from and to Hugging Face folders."""

from comem_jax.models.cache import Cache, init_cache
from comem_jax.models.config import Qwen3Config
from comem_jax.models.loading import load, save
from comem_jax.models.qwen3 import Qwen3

__all__ = ["Cache", "Qwen3", "Qwen3Config", "init_cache", "load", "save"]
