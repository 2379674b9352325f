"""Reading pages on NVIDIA GPUs: a kernel in Pallas, lowered to Triton.

`pages.read_by_chunks` gathers a chunk's pages and merges after every chunk, as suits a CPU. Here all reads are taken at
once (flash-decoding: Dao, Haziza, Massa and Sizov, 2023): a program for every read, kv head and block of query rows
finds keys and values where they lie, widens int8 itself, and leaves a partial softmax; XLA merges these by their
log-sum-exp. Programs of reads that are not taken end at once, so the cost follows what is read here too. A prompt's
tokens all read the same pages: those are parted into a few stretches instead, so that there is work for every
multiprocessor.

It agrees with XLA in Pallas' interpreter, and Triton compiles it for compute capabilities 8.0 and 9.0 within their
registers and shared memory (in float32 with a few registers spilled). **It has never run on a GPU**: neither its
numbers there nor its speed are known, and sizes are estimates. Sums of segments are added up in any order there, so two
runs may differ in the last bits.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from comem_jax.errors import UserError
from comem_jax.models.attention import MASKED, on_cuda
from comem_jax.models.pages import Pages, Partial, Reader, Reads, merge, read_by_chunks

FEWEST_ROWS = 16  # of queries, in a program: tensor cores multiply no fewer
PROGRAMS = 256  # for a prompt's tokens: about two for each multiprocessor of a large device
# Query rows whose partial results are kept until they are merged: at a head_dim of 128, 4 MB a kv head.
ROUND = 8192


class Tile(NamedTuple):
    """What a program holds at a time, at most: places of pages, and rows of queries."""

    keys: int
    rows: int


class Stretches(NamedTuple):
    """Stretches of pages; int32.

    Pages stand in blocks, `places` `[blocks, pages]`, of which the first `valid` `[blocks]` places count. A stretch has
    the blocks from `first` to before `end`, `[n]`, none where they are equal.
    """

    places: jax.Array
    valid: jax.Array
    first: jax.Array
    end: jax.Array


def page_reader(attention: str) -> Reader:
    """Return what reads pages under a choice of `attention.CHOICES`: the kernel is used only where it is asked for."""
    return read_on_gpu if attention == "pallas" else read_by_chunks


def check_kernel(head_dim: int) -> None:
    """Raise `UserError` where the kernel cannot run: without an NVIDIA GPU, or for heads of another form."""
    if not on_cuda():
        raise UserError(f"attention 'pallas' needs an NVIDIA GPU, but JAX runs on {jax.default_backend()} here")
    if head_dim < FEWEST_ROWS or head_dim & (head_dim - 1):
        raise UserError(
            f"attention 'pallas' needs a head_dim that is a power of two, {FEWEST_ROWS} or more, not {head_dim}"
        )


def read_on_gpu(q: jax.Array, pages: Pages, layer: jax.Array | int, reads: Reads, before: Partial) -> Partial:
    """Read pages as `read_by_chunks` does: through the kernel where a program is lowered for CUDA, else as it does."""
    # Pallas counts up to 2**32 bytes in 32 bits with a sign, which do for fewer single bytes.
    if pages.keys.dtype == jnp.int8 and 2**31 < pages.keys.size <= 2**32:
        return read_by_chunks(q, pages, layer, reads, before)
    found: Partial = jax.lax.platform_dependent(
        q, pages, layer, reads, before, cuda=read_by_kernel, default=read_by_chunks
    )
    return found


def read_by_kernel(
    q: jax.Array, pages: Pages, layer: jax.Array | int, reads: Reads, before: Partial, *, interpret: bool = False
) -> Partial:
    """Read pages as `read_by_chunks` does, through the kernel; `interpret` runs it on any platform, slowly."""
    attend = partial(_attend, pages=pages, layer=layer, interpret=interpret)
    how = _read_by_all if reads.readers is None else _read_by_few
    return how(attend, q, reads, pages.size, before)


def _read_by_all(attend: Any, q: jax.Array, reads: Reads, size: int, before: Partial) -> Partial:
    """Let all queries read all pages, in a few stretches of the same length."""
    queries, kv_heads, group, _ = q.shape
    places, valid = _blocks(reads, size, _tile(q.dtype).keys)
    programs = kv_heads * -(-queries * group // _tile(q.dtype).rows)
    parts = min(max(1, PROGRAMS // programs), len(places))
    used = jnp.asarray(reads.count) * (len(places) // len(reads.pages))
    each = -(-used // parts)
    first = jnp.minimum(each * jnp.arange(parts), used)
    end = jnp.minimum(first + each, used)
    found = attend(_rows(q[None]), over=Stretches(places, valid, first, end))
    return reduce(merge, (_part(found, i, first[i] < end[i], q.shape) for i in range(parts)), before)


def _part(found: Partial, number: int, taken: jax.Array, shape: tuple[int, ...]) -> Partial:
    """Return what one stretch gave all queries, or nothing where it was not taken."""
    top, total, summed = _by_query(Partial(*(x[number : number + 1] for x in found)), shape)
    return Partial(jnp.where(taken, top, MASKED / 2), jnp.where(taken, total, 0), jnp.where(taken, summed, 0))


def _read_by_few(attend: Any, q: jax.Array, reads: Reads, size: int, before: Partial) -> Partial:
    """Let each read's readers read its pages, so many reads at a time that their partial results take little room."""
    chunks, width, members = reads.readers.shape
    places, valid = _blocks(reads, size, _tile(q.dtype).keys)
    count = chunks * width
    taken = ((jnp.arange(chunks) < reads.count)[:, None] & (reads.valid > 0)).reshape(-1)
    first = jnp.arange(count) * (len(places) // count)
    end = jnp.where(taken, first + len(places) // count, first)
    readers = jnp.where(taken[:, None], reads.readers.reshape(count, members), -1)
    at_once = min(count, max(1, ROUND // (members * q.shape[2])))

    def one_round(number: jax.Array | int, partial: Partial) -> Partial:
        # The last one begins earlier, so that it is whole, and leaves out what was read before.
        begin = jnp.minimum(number * at_once, count - at_once)
        fresh = begin + jnp.arange(at_once) >= number * at_once
        f, e, r = (jax.lax.dynamic_slice_in_dim(x, begin, at_once) for x in (first, end, readers))
        r = jnp.where(fresh[:, None], r, -1)
        found = attend(_rows(q[r]), over=Stretches(places, valid, f, jnp.where(fresh, e, f)))
        return _merge_readers(partial, _by_query(found, (members, *q.shape[1:])), r.reshape(-1))

    if at_once == count:
        return one_round(0, before)
    return jax.lax.fori_loop(0, -(-jnp.asarray(reads.count) * width // at_once), one_round, before)


def _merge_readers(partial: Partial, found: Partial, readers: jax.Array) -> Partial:
    """Merge what the `readers` `[n]` found into the partial results of all queries; what those of -1 found is left out.

    A sum of segments, which a GPU does at once, where a CPU prefers a product with ones and zeros.
    """
    queries = len(partial.top)
    reader = jnp.where(readers < 0, queries, readers)  # no segment: of reads not taken there is nothing but old memory
    top = jnp.maximum(jax.ops.segment_max(found.top, reader, queries), MASKED / 2)
    share = jnp.exp(found.top - top[reader])
    total = jax.ops.segment_sum(found.total * share, reader, queries)
    summed = jax.ops.segment_sum(found.summed * share[..., None], reader, queries)
    return merge(partial, Partial(top, total, summed))


def _rows(q: jax.Array) -> jax.Array:
    """Return queries `[n, r, k, g, d]` as rows of one matrix a kv head, `[n, k, r * g, d]`."""
    rows = jnp.swapaxes(q, 1, 2)
    return rows.reshape(*rows.shape[:2], -1, rows.shape[-1])


def _by_query(found: Partial, shape: tuple[int, ...]) -> Partial:
    """Return what rows `[n, k, r * g]` found by query, `[n * r, k, g]`; `shape` is `(r, k, g, d)`."""
    queries, kv_heads, group, _ = shape

    def turn(x: jax.Array) -> jax.Array:
        x = jnp.swapaxes(x.reshape(-1, kv_heads, queries, group, *x.shape[3:]), 1, 2)
        return x.reshape(-1, *x.shape[2:])

    return Partial(*(turn(x) for x in found))


def _tile(dtype: Any) -> Tile:
    """Return the tile whose queries, keys and values fit a multiprocessor's registers and shared memory."""
    return Tile(64, 64) if dtype.itemsize == 2 else Tile(32, FEWEST_ROWS)


def _blocks(reads: Reads, size: int, most: int) -> tuple[jax.Array, jax.Array]:
    """Return the pages of all reads in blocks `[blocks, pages]` of at most `most` places; how many of each count."""
    span = reads.pages.shape[-1]
    pages = next(n for n in range(span, 0, -1) if span % n == 0 and (n * size <= most or n == 1))
    before = jnp.arange(0, span, pages) * size
    valid = jnp.clip(reads.valid[..., None] - before, 0, pages * size)
    return jnp.reshape(reads.pages, (-1, pages)), valid.reshape(-1)


def _attend(rows: jax.Array, pages: Pages, layer: jax.Array | int, over: Stretches, interpret: bool) -> Partial:
    """Return what query rows `[n or 1, k, rows, d]` find in the `n` stretches; anything where one has no block."""
    count, (_, kv_heads, length, dim) = len(over.first), rows.shape
    block = min(max(FEWEST_ROWS, pl.next_power_of_2(length)), _tile(rows.dtype).rows)
    shape = count, kv_heads, length
    wide, narrow = (None, None, block, dim), (None, None, block)
    of_all = len(rows) == 1
    whole = [jax.tree.map(lambda _: pl.BlockSpec(), x) for x in (over, pages)]
    found = pl.pallas_call(
        partial(_program, length=length),
        out_shape=[jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, shape, (*shape, dim))],
        grid=(count, kv_heads, -(-length // block)),
        in_specs=[pl.BlockSpec(), *whole, pl.BlockSpec(wide, lambda n, k, r: (0 if of_all else n, k, r, 0))],
        out_specs=[pl.BlockSpec(narrow, lambda n, k, r: (n, k, r))] * 2
        + [pl.BlockSpec(wide, lambda n, k, r: (n, k, r, 0))],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="read_pages",
    )(jnp.reshape(jnp.asarray(layer, jnp.int32), 1), over, pages, rows)
    return Partial(*found)


def _program(layer: Any, over: Any, pages: Any, rows: Any, *out: Any, length: int) -> None:
    """Let one block of query rows of one kv head read one stretch; the arguments are references."""
    stretch, head = pl.program_id(0), pl.program_id(1)
    first, end = over.first[stretch], over.end[stretch]
    block, dim = rows.shape
    inside = pl.program_id(2) * block + jnp.arange(block) < length

    @pl.when(first < end)
    def attend() -> None:
        wide = jnp.broadcast_to(inside[:, None], (block, dim))
        query = triton.load(rows, mask=wide, other=0)
        visit = partial(_visit, query, (over, pages, layer[0], head))
        start = jnp.full(block, MASKED / 2), jnp.zeros(block), jnp.zeros((block, dim))
        found = jax.lax.fori_loop(first, end, visit, start)
        for ref, x, mask in zip(out, found, (inside, inside, wide), strict=True):
            triton.store(ref, x, mask=mask)


def _visit(query: jax.Array, source: Any, block: Any, carry: Any) -> Any:
    """Read one block of pages, of one layer and kv head, on top of what was read before."""
    top, total, summed = carry
    over, pages, layer, head = source
    at = layer, over.places[block], head
    keys, values = (x[at].reshape(-1, query.shape[1]).astype(query.dtype) for x in (pages.keys, pages.values))
    scores = _product(query, keys, 1)
    if pages.key_scales is not None:
        scores *= pages.key_scales[(*at, slice(None), 0)].reshape(1, -1)
    scores = jnp.where((jnp.arange(len(keys)) < over.valid[block])[None], scores, MASKED)
    higher = jnp.maximum(top, scores.max(axis=1))
    powers, shrink = jnp.exp(scores - higher[:, None]), jnp.exp(top - higher)
    total = total * shrink + powers.sum(axis=1)
    if pages.value_scales is not None:
        powers *= pages.value_scales[(*at, slice(None), 0)].reshape(1, -1)
    return higher, total, summed * shrink[:, None] + _product(powers.astype(values.dtype), values, 0)


def _product(one: jax.Array, other: jax.Array, axis: int) -> jax.Array:
    """Return the product over the last axis of one and `axis` of the other, in float32 and not in TF32."""
    return jax.lax.dot_general(
        one, other, (((1,), (axis,)), ((), ())), precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
