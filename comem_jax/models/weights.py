"""The one table of Qwen3's weights: shape, logical axes and Hugging Face name."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product, takewhile
from math import prod

from comem_jax.models.config import Qwen3Config


@dataclass(frozen=True)
class Weight:
    """One weight; where its first axes are `layers`, or `layers` and `experts`, it is stacked from many tensors.

    `inputs` counts the axes (after the stacked ones) that a product contracts: a Hugging Face linear weight
    `[outputs, inputs]` is stored here as `[*inputs, *outputs]`. 0 means stored as it is there.
    `hf` is its Hugging Face name, with `{}` for the layer's number and for the expert's.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    hf: str
    inputs: int = 0

    @property
    def stacked(self) -> int:
        """How many of the first axes count tensors."""
        return len(list(takewhile(lambda axis: axis in ("layers", "experts"), self.axes)))

    @property
    def is_norm(self) -> bool:
        """Whether this is a norm's scale, which starts at one."""
        return self.hf.endswith("norm.weight")

    @property
    def part_shape(self) -> tuple[int, ...]:
        """The shape of one tensor's part, in our order of axes."""
        return self.shape[self.stacked :]

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """The shape of one tensor in a Hugging Face file."""
        if not self.inputs:
            return self.part_shape
        return prod(self.part_shape[self.inputs :]), prod(self.part_shape[: self.inputs])

    def names(self) -> list[str]:
        """The Hugging Face names that make up this weight, in the order of its stacked axes."""
        return [self.hf.format(*place) for place in product(*map(range, self.shape[: self.stacked]))]


def weight_table(config: Qwen3Config) -> dict[str, Weight]:
    """Return every weight of a model of this shape under its path in the module, e.g. `layers.q`."""
    sizes = {
        "layers": config.num_hidden_layers,
        "vocab": config.vocab_size,
        "embed": config.hidden_size,
        "mlp": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
    }
    if config.moe:
        sizes |= dict.fromkeys(("experts", "routes"), config.moe.num_experts)
        sizes["expert_mlp"] = config.moe.moe_intermediate_size

    def weight(axes: str, hf: str, inputs: int = 0) -> Weight:
        names = tuple(axes.split())
        return Weight(tuple(sizes[name] for name in names), names, hf, inputs)

    layer = "model.layers.{}."
    table = {
        "embedding": weight("vocab embed", "model.embed_tokens.weight"),
        "layers.attention_norm": weight("layers embed", layer + "input_layernorm.weight"),
        "layers.q": weight("layers embed heads head_dim", layer + "self_attn.q_proj.weight", inputs=1),
        "layers.k": weight("layers embed kv_heads head_dim", layer + "self_attn.k_proj.weight", inputs=1),
        "layers.v": weight("layers embed kv_heads head_dim", layer + "self_attn.v_proj.weight", inputs=1),
        "layers.q_norm": weight("layers head_dim", layer + "self_attn.q_norm.weight"),
        "layers.k_norm": weight("layers head_dim", layer + "self_attn.k_norm.weight"),
        "layers.o": weight("layers heads head_dim embed", layer + "self_attn.o_proj.weight", inputs=2),
        "layers.mlp_norm": weight("layers embed", layer + "post_attention_layernorm.weight"),
        "norm": weight("embed", "model.norm.weight"),
    }
    stack, width = ("layers experts", "expert_mlp") if config.moe else ("layers", "mlp")
    mlp = layer + ("mlp.experts.{}." if config.moe else "mlp.")
    table |= {
        "layers.gate": weight(f"{stack} embed {width}", mlp + "gate_proj.weight", inputs=1),
        "layers.up": weight(f"{stack} embed {width}", mlp + "up_proj.weight", inputs=1),
        "layers.down": weight(f"{stack} {width} embed", mlp + "down_proj.weight", inputs=1),
    }
    if config.moe:
        table["layers.router"] = weight("layers embed routes", layer + "mlp.gate.weight", inputs=1)
    if not config.tie_word_embeddings:
        table["lm_head"] = weight("vocab embed", "lm_head.weight")
    return table
