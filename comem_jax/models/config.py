"""Qwen3's figures, read from and written to a Hugging Face `config.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comem_jax.errors import UserError
from comem_jax.models.rope import Yarn, read_rope

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "max_position_embeddings",
)
MOE_REQUIRED = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")


@dataclass(frozen=True)
class Moe:
    """The figures of a mixture of experts in place of every layer's MLP, under Hugging Face's field names.

    Raises `UserError` where a token is to have more experts than there are, or none.
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise UserError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) must be from 1 to num_experts ({self.num_experts})."
            )


@dataclass(frozen=True)
class Qwen3Config:
    """The shape of a Qwen3 model, under Hugging Face's field names.

    Raises `UserError` where the figures do not fit together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    yarn: Yarn | None = None
    moe: Moe | None = None

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})."
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim ({self.head_dim}) must be even, since rotary embeddings turn pairs.")

    @classmethod
    def from_folder(cls, path: str | Path) -> Qwen3Config:
        """Read `config.json` (and the end tokens of `generation_config.json`) in the model folder `path`.

        Raises `UserError` where the folder holds no model, or one with a feature that is not built here.
        """
        file = Path(path) / "config.json"
        fields = read_json(file)
        _reject_unsupported(fields, file)
        missing = [name for name in REQUIRED if fields.get(name) is None]
        if missing:
            raise UserError(f"{file} lacks {', '.join(missing)}.")
        generation = Path(path) / "generation_config.json"
        ends = fields | {
            k: v for k, v in (read_json(generation) if generation.is_file() else {}).items() if v is not None
        }
        eos = ends.get("eos_token_id")
        theta, yarn = read_rope(fields, str(file))
        return cls(
            **{name: fields[name] for name in REQUIRED},
            head_dim=fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"],
            rope_theta=theta,
            yarn=yarn,
            moe=_read_moe(fields, file) if fields["model_type"] == "qwen3_moe" else None,
            tie_word_embeddings=fields.get("tie_word_embeddings", False),
            bos_token_id=ends.get("bos_token_id"),
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
        )

    def to_json(self, dtype: str = "float32") -> str:
        """Return the text of a `config.json` that `transformers` loads as a Qwen3 or Qwen3-MoE in `dtype`."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in REQUIRED}
        rope = self.yarn.to_json() if self.yarn else {"rope_type": "default"}
        fields |= {
            "architectures": ["Qwen3MoeForCausalLM" if self.moe else "Qwen3ForCausalLM"],
            "model_type": "qwen3_moe" if self.moe else "qwen3",
            "dtype": dtype,
            "head_dim": self.head_dim,
            "rope_theta": self.rope_theta,
            "rope_parameters": rope | {"rope_theta": self.rope_theta},
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": False,
            "hidden_act": "silu",
            "use_sliding_window": False,
            **({"rope_scaling": rope} if self.yarn else {}),  # readers older than rope_parameters look there
            **(asdict(self.moe) | {"decoder_sparse_step": 1, "mlp_only_layers": []} if self.moe else {}),
            **self.special_tokens(),
        }
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"

    def special_tokens(self) -> dict[str, Any]:
        """Return the token ids that are known, under the names `config.json` and `generation_config.json` share."""
        ids = {"bos_token_id": self.bos_token_id, "eos_token_id": self.eos_token_id}
        return {name: value for name, value in ids.items() if value is not None}


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in `file`; raises `UserError` where there is none."""
    if not file.is_file():
        raise UserError(f"There is no {file.name} in {file.parent}; it is not a Hugging Face model folder.")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise UserError(f"{file} must hold a JSON object.")
    return fields


def _reject_unsupported(fields: dict[str, Any], file: Path) -> None:
    model_type = fields.get("model_type")
    if model_type not in ("qwen3", "qwen3_moe"):
        raise UserError(f"{file} has model_type {model_type!r}; only 'qwen3' and 'qwen3_moe' are supported.")
    if fields.get("attention_bias"):
        raise UserError(f"{file} has attention_bias true, which is not supported.")
    if fields.get("hidden_act", "silu") != "silu":
        raise UserError(f"{file} has hidden_act {fields['hidden_act']!r}; only 'silu' is supported.")
    if fields.get("use_sliding_window") or "sliding_attention" in (fields.get("layer_types") or []):
        raise UserError(f"{file} uses sliding-window attention, which is not supported.")


def _read_moe(fields: dict[str, Any], file: Path) -> Moe | None:
    """Return the experts' figures, or None where every layer's MLP is a dense one after all."""
    fields = fields | {"num_experts": fields.get("num_experts", fields.get("num_local_experts"))}  # transformers 5
    layers, step = fields["num_hidden_layers"], fields.get("decoder_sparse_step") or 1
    only = fields.get("mlp_only_layers") or []
    dense = [i for i in range(layers) if i in only or (i + 1) % step or fields["num_experts"] == 0]
    if len(dense) == layers:
        return None
    if dense:
        raise UserError(f"{file} mixes experts with dense layers (layer {dense[0]}), which is not supported.")
    missing = [name for name in MOE_REQUIRED if fields.get(name) is None]
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing)}.")
    return Moe(**{name: fields[name] for name in MOE_REQUIRED}, norm_topk_prob=fields.get("norm_topk_prob", False))
