"""The one table of Qwen3's weights: shape, logical axes and Hugging Face name."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from comem_jax.models.config import Qwen3Config


@dataclass(frozen=True)
class Weight:
    """One weight, stacked over layers where its first axis is `layers`.

    `inputs` counts the axes (after `layers`) that a product contracts: a Hugging Face linear weight
    `[outputs, inputs]` is stored here as `[*inputs, *outputs]`. 0 means stored as it is there.
    `hf` is its Hugging Face name, with `{layer}` for the layer's number.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    hf: str
    inputs: int = 0

    @property
    def stacked(self) -> bool:
        """Whether the first axis counts layers."""
        return self.axes[0] == "layers"

    @property
    def is_norm(self) -> bool:
        """Whether this is a norm's scale, which starts at one."""
        return self.hf.endswith("norm.weight")

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """The shape of one layer's part, in our order of axes."""
        return self.shape[1:] if self.stacked else self.shape

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """The shape of one layer's tensor in a Hugging Face file."""
        if not self.inputs:
            return self.layer_shape
        return prod(self.layer_shape[self.inputs :]), prod(self.layer_shape[: self.inputs])

    def names(self) -> list[str]:
        """The Hugging Face names that make up this weight, one a layer."""
        return [self.hf.format(layer=i) for i in range(self.shape[0])] if self.stacked else [self.hf]


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

    def weight(axes: str, hf: str, inputs: int = 0) -> Weight:
        names = tuple(axes.split())
        return Weight(tuple(sizes[name] for name in names), names, hf, inputs)

    layer = "model.layers.{layer}."
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
        "layers.gate": weight("layers embed mlp", layer + "mlp.gate_proj.weight", inputs=1),
        "layers.up": weight("layers embed mlp", layer + "mlp.up_proj.weight", inputs=1),
        "layers.down": weight("layers mlp embed", layer + "mlp.down_proj.weight", inputs=1),
        "norm": weight("embed", "model.norm.weight"),
    }
    if not config.tie_word_embeddings:
        table["lm_head"] = weight("vocab embed", "lm_head.weight")
    return table
