"""A mixture of experts: the MLP of a token is a weighted sum of a few of many (arXiv 1701.06538).

Tokens are sorted by expert and computed block by block, in a loop over just those blocks (after arXiv 2211.15841): no
token is dropped, and the cost, of reading weights too, follows the experts used. The backward pass computes the blocks
again. There is no load-balancing loss: this trains experts that are balanced already, it does not make them.

On a mesh each device of the `tensor` axis holds some experts whole, computes its share of every token, and the shares
are summed: one sum a layer, as for a dense MLP parted over the same axis.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from comem_jax.models.config import Moe
from comem_jax.models.products import Weights, gated
from comem_jax.models.sharding import activation_spec, mesh_axes

# Rows computed at once: enough to keep a matrix unit busy, few enough that an expert with some rows wastes little.
BLOCK = 128
OF_EXPERTS = ("gate", "up", "down", "gate_scale", "up_scale", "down_scale")


def mix(x: jax.Array, weights: Weights, moe: Moe) -> jax.Array:
    """Return, for `x` `[batch, tokens, hidden]`, the sum of each token's experts by its shares, in the same shape.

    `weights` are a layer's: `router` `[hidden, experts]`, and `gate`, `up` and `down` with experts as first axis.
    """
    chosen, shares = route(x, weights["router"], moe)
    experts = {name: weights[name] for name in OF_EXPERTS if name in weights}
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _sum_of(experts, 0, x, chosen, shares)
    axes = mesh_axes(mesh, "experts")

    def share(experts: Weights, *tokens: jax.Array) -> jax.Array:
        first = jax.lax.axis_index(axes) * experts["gate"].shape[0]
        return jax.lax.psum(_sum_of(experts, first, *tokens), axes)

    by_expert, by_token = PartitionSpec(axes), activation_spec(mesh, x.shape, "batch", "length", "hidden")
    specs = by_expert, by_token, by_token, by_token
    parted = jax.shard_map(share, in_specs=specs, out_specs=by_token, check_vma=False)
    mixed: jax.Array = parted(experts, x, chosen, shares)
    return mixed


def route(x: jax.Array, router: jax.Array, moe: Moe) -> tuple[jax.Array, jax.Array]:
    """Return each token's experts (integer) and their shares (float32), both `[batch, tokens, experts per token]`."""
    scores = jnp.einsum("bte,en->btn", x, router).astype(jnp.float32)
    likely = jax.nn.softmax(scores, axis=-1)
    chosen = jax.lax.top_k(jax.lax.stop_gradient(likely), moe.num_experts_per_tok)[1]
    # By comparison and not by the top values: their gradient would be a scatter, which is slow on CPU.
    is_chosen = chosen[..., None] == jnp.arange(moe.num_experts)
    shares = jnp.where(is_chosen, likely[..., None, :], 0).sum(axis=-1)
    return chosen, shares / shares.sum(axis=-1, keepdims=True) if moe.norm_topk_prob else shares


def _sum_of(experts: Weights, first: jax.Array | int, x: jax.Array, chosen: jax.Array, shares: jax.Array) -> jax.Array:
    """Return what `experts`, whose numbers begin at `first`, add to each token of `x` `[batch, tokens, hidden]`."""
    count = experts["gate"].shape[0]
    local = chosen.reshape(-1) - first
    local = jnp.where((local >= 0) & (local < count), local, count)  # the tokens of others come last
    order = jnp.argsort(local)
    back = jnp.argsort(order)
    ends = jnp.searchsorted(local[order], jnp.arange(count), side="right")
    rows = jnp.repeat(x.reshape(-1, x.shape[-1]), chosen.shape[-1], axis=0)
    found = _permute(_by_expert(_permute(rows, order, back), ends, experts), back, order)
    found = found.reshape(*chosen.shape, -1)
    return jnp.einsum("btke,btk->bte", found, shares, preferred_element_type=jnp.float32).astype(x.dtype)


@jax.custom_vjp
def _permute(rows: jax.Array, order: jax.Array, back: jax.Array) -> jax.Array:
    """Return `rows[order]`; `back` is the inverse of `order`, by which the gradient is a look-up too, not a scatter."""
    return rows[order]


_permute.defvjp(lambda rows, order, back: (rows[order], back), lambda back, gradient: (gradient[back], None, None))


class Visits(NamedTuple):
    """Which expert computes which block of rows, in turn: integer `[most]` each, of which the first `total` are real.

    A block whose rows belong to several experts is visited by each; the rows of `expert` lie in `[starts, ends)`.
    """

    expert: jax.Array
    block: jax.Array
    total: jax.Array
    starts: jax.Array
    ends: jax.Array

    def at(self, number: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return a visit's expert, its block, and which of the block's rows `[size, 1]` are the expert's."""
        expert, block = self.expert[number], self.block[number]
        row = block * size + jnp.arange(size)[:, None]
        return expert, block, (row >= self.starts[expert]) & (row < self.ends[expert])


def _visits(ends: jax.Array, blocks: int, size: int) -> Visits:
    starts = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
    first = starts // size
    counts = jnp.where(ends > starts, (ends - 1) // size - first + 1, 0)
    after = jnp.cumsum(counts)
    number = jnp.arange(blocks + len(ends))
    expert = jnp.minimum(jnp.searchsorted(after, number, side="right"), len(ends) - 1)
    return Visits(expert, first[expert] + number - (after - counts)[expert], after[-1], starts, ends)


@jax.custom_vjp
def _by_expert(rows: jax.Array, ends: jax.Array, experts: Weights) -> jax.Array:
    """Put `rows` `[n, hidden]`, sorted by expert, through their experts; those of expert e stand before `ends[e]`.

    Rows past the last end give zeros.
    """
    blocks = _in_blocks(rows)
    visits = _visits(ends, *blocks.shape[:2])

    def visit(number: jax.Array, out: jax.Array) -> jax.Array:
        expert, block, mine = visits.at(number, blocks.shape[1])
        found = gated(blocks[block], _one(experts, expert))
        return _put(out, block, jnp.where(mine, found, out[block]))

    out = jax.lax.fori_loop(0, visits.total, visit, jnp.zeros_like(blocks))
    return out.reshape(-1, rows.shape[1])[: len(rows)]


def _backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, None, Weights]:
    rows, ends, experts = saved
    blocks, slopes = _in_blocks(rows), _in_blocks(gradient)
    visits = _visits(ends, *blocks.shape[:2])

    def visit(number: jax.Array, sums: tuple[jax.Array, Weights]) -> tuple[jax.Array, Weights]:
        expert, block, mine = visits.at(number, blocks.shape[1])
        _, pull_back = jax.vjp(gated, blocks[block], _one(experts, expert))
        of_rows, of_expert = pull_back(jnp.where(mine, slopes[block], 0))
        of_experts = jax.tree.map(lambda s, new: _put(s, expert, s[expert] + new), sums[1], of_expert)
        return _put(sums[0], block, sums[0][block] + of_rows), of_experts

    zeros = jnp.zeros_like(blocks), jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), experts)
    of_rows, of_experts = jax.lax.fori_loop(0, visits.total, visit, zeros)
    of_experts = jax.tree.map(lambda new, w: new.astype(w.dtype), of_experts, experts)
    return of_rows.reshape(-1, rows.shape[1])[: len(rows)], None, of_experts


_by_expert.defvjp(lambda *inputs: (_by_expert(*inputs), inputs), _backward)


def _in_blocks(rows: jax.Array) -> jax.Array:
    """Turn `[n, hidden]` into `[blocks, size, hidden]`, with zeros at the end."""
    size = min(BLOCK, len(rows))
    return jnp.pad(rows, ((0, -len(rows) % size), (0, 0))).reshape(-1, size, rows.shape[1])


def _one(experts: Weights, number: jax.Array) -> Weights:
    return {name: weight[number] for name, weight in experts.items()}


def _put(array: jax.Array, place: jax.Array, new: jax.Array) -> jax.Array:
    """Write `new` at `place` of the first axis: a slice, which XLA writes in place, and not a scatter."""
    return jax.lax.dynamic_update_index_in_dim(array, new.astype(array.dtype), place, 0)
