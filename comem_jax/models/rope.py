"""The frequencies of rotary embeddings: as trained (arXiv 2104.09864), or stretched by YaRN (arXiv 2309.00071)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from math import ceil, floor, log, pi
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from comem_jax.errors import UserError, nearest

# What a rotary entry of `config.json` says beside YaRN's own figures.
OTHER_KEYS = {"rope_type", "type", "rope_theta"}


@dataclass(frozen=True)
class Yarn:
    """YaRN's figures, under Hugging Face's names: a context of `original_max_position_embeddings` grows by `factor`.

    A dimension that turns more than `beta_fast` times within the original context stays as it was trained, one that
    turns less than `beta_slow` times is slowed by `factor`, and those between are mixed; the mixture's ends are whole
    dimensions where `truncate` says so. Cosine and sine are multiplied by `attention_factor` (None: 0.1 ln factor + 1).
    Raises `UserError` for a factor below 1, an empty context, or turns that are none.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise UserError(f"YaRN's factor ({self.factor}) must be at least 1.")
        for name in ("original_max_position_embeddings", "beta_fast", "beta_slow"):
            if getattr(self, name) <= 0:
                raise UserError(f"YaRN's {name} ({getattr(self, name)}) must be above 0.")

    @property
    def scale(self) -> float:
        """What cosine and sine are multiplied by."""
        return 0.1 * log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor

    def slowed(self, head_dim: int, theta: float) -> np.ndarray:
        """Return how far each pair of dimensions `[head_dim / 2]` is slowed: 0 stays as trained, 1 is `factor` slower.

        It is one minus the ramp gamma of the paper's equation 18, over dimensions instead of turns.
        """

        def dimension(turns: float) -> float:
            return head_dim * log(self.original_max_position_embeddings / (turns * 2 * pi)) / (2 * log(theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = floor(low), ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = high - low or 0.001
        return np.clip((np.arange(head_dim // 2) - low) / width, 0, 1).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a `config.json` has them, without the rope theta."""
        return {"rope_type": "yarn"} | {name: value for name, value in asdict(self).items() if value is not None}


def frequencies(head_dim: int, theta: float, yarn: Yarn | None) -> tuple[jax.Array, float]:
    """Return each pair's angle a position `[head_dim / 2]` (float32), and the factor of cosine and sine."""
    half = head_dim // 2
    trained = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if yarn is None:
        return trained, 1.0
    slowed = yarn.slowed(head_dim, theta)
    return trained * (1 - slowed + slowed / yarn.factor), yarn.scale


def read_rope(config: dict[str, Any], where: str) -> tuple[float, Yarn | None]:
    """Return the rotary base of a parsed `config.json`, and YaRN where it asks for it; `where` is for errors.

    The entry is `rope_scaling`, or `rope_parameters` in what `transformers` 5 writes; both may hold the base too.
    Raises `UserError` for any other type of scaling, for figures of it that are not known here, and without a base.
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    entry = {key: value for key, value in (config.get(name) or {}).items() if value is not None}
    kind = entry.get("rope_type", entry.get("type", "default"))
    if kind not in ("default", "yarn"):
        raise UserError(f"{where} has {name} of type {kind!r}; only 'default' and 'yarn' are supported.")
    yarn = _read_yarn(entry, f"{name} of {where}", config) if kind == "yarn" else None
    for place in (config.get("rope_parameters"), config.get("rope_scaling"), config):
        if place and place.get("rope_theta") is not None:
            return float(place["rope_theta"]), yarn
    raise UserError(f"{where} names no rope_theta, at the top level or in rope_parameters.")


def _read_yarn(entry: dict[str, Any], where: str, config: dict[str, Any]) -> Yarn:
    known = [field.name for field in fields(Yarn)]
    for key in entry.keys() - OTHER_KEYS:
        if key not in known:
            raise UserError(f"{where} has {key!r}, which YaRN is not known to need here{nearest(key, known)}")
    if "factor" not in entry:
        raise UserError(f"{where} asks for YaRN but lacks its factor.")
    given = {key: entry[key] for key in known if key in entry}
    return Yarn(**({"original_max_position_embeddings": config["max_position_embeddings"]} | given))
