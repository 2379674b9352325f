"""The kernel for GPUs, in Pallas' interpreter, against XLA's reading of pages; and that it is lowered for CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from comem_jax.errors import UserError
from comem_jax.models import Qwen3, kernels, paged
from comem_jax.models.kernels import check_kernel, read_by_kernel, read_on_gpu
from comem_jax.models.pages import Pages, Partial, Reads, finish, init_pages, packed, read_pages
from comem_jax.models.sharding import make_mesh
from tests.comem_jax.models.paths import check_pages
from tests.comem_jax.models.tiny import random_tokens, tiny_model

LAYERS, COUNT, KV, CHUNKS = 2, 7, 2, 3
LAYER = 1
TRITON = "xla.gpu.triton"


class Case(NamedTuple):
    """`readers` and `width` of a read, 0 readers where all `queries` read all; pages of `size`, `span` a read."""

    dtype: Any
    int8: bool
    readers: int
    queries: int
    group: int
    dim: int = 16
    width: int = 1
    size: int = 8
    span: int = 8

    @property
    def tolerance(self) -> float:
        return 1e-5 if self.dtype == jnp.float32 else 2e-2


ALONE = Case(jnp.float32, False, 1, 5, 3, width=2)
ALONE_INT8 = Case(jnp.bfloat16, True, 1, 5, 16, dim=64, width=2, size=16, span=4)
TOGETHER = Case(jnp.float32, True, 16, 20, 2)
CHUNK = Case(jnp.float32, False, 0, 5, 4)
CHUNK_INT8 = Case(jnp.bfloat16, True, 0, 37, 4)
CASES = [ALONE, ALONE_INT8, TOGETHER, CHUNK, CHUNK_INT8]


def store(case: Case) -> tuple[jax.Array, Pages, Partial]:
    """Scaled queries, pages, and what the queries have read before."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape).astype(case.dtype))

    keys, values = (normal(LAYERS, COUNT, KV, case.size, case.dim) for _ in range(2))
    q = normal(case.queries, KV, case.group, case.dim) * case.dim**-0.5
    shape = case.queries, KV, case.group
    before = Partial(*(jnp.asarray(random.random(s, np.float32)) for s in (shape, shape, (*shape, case.dim))))
    return q, packed(keys, values, jnp.int8 if case.int8 else case.dtype), before


def full(case: Case) -> Reads:
    """Reads all of which are taken, of the same pages by the first queries."""
    reads = CHUNKS, case.width
    readers = np.broadcast_to(np.arange(case.readers, dtype=np.int32), (*reads, case.readers))
    valid = np.full(reads, case.span * case.size, np.int32)
    pages = np.zeros((*reads, case.span), np.int32)
    return jax.tree.map(jnp.asarray, Reads(pages, valid, np.int32(CHUNKS), readers if case.readers else None))


@st.composite
def some_reads(draw: st.DrawFn, case: Case) -> Reads:
    """Reads of any lengths, empty ones too, of any pages by any queries."""

    def numbers(shape: tuple[int, ...], least: int, most: int) -> np.ndarray:
        count = int(np.prod(shape))
        return np.array(draw(st.lists(st.integers(least, most), min_size=count, max_size=count)), np.int32).reshape(
            shape
        )

    reads = CHUNKS, case.width
    pages, valid = numbers((*reads, case.span), 0, COUNT - 1), numbers(reads, 0, case.span * case.size)
    readers = numbers((*reads, case.readers), -1, case.queries - 1) if case.readers else None
    return Reads(pages, valid, np.int32(draw(st.integers(0, CHUNKS))), readers)


def reader(interpret: bool) -> Callable[..., jax.Array]:
    read = partial(read_by_kernel, interpret=True) if interpret else None
    return jax.jit(lambda q, pages, reads, before: finish(read_pages(q, pages, LAYER, reads, before, reader=read)))


@pytest.mark.parametrize("case", CASES)
def test_it_finds_what_xla_finds(case: Case) -> None:
    check(case, examples=8)


def test_reads_that_do_not_fit_one_round_are_read_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ROUND", 4 * ALONE.group)
    check(ALONE, examples=8)


def check(case: Case, examples: int) -> None:
    q, pages, before = store(case)
    kernel, xla = reader(interpret=True), reader(interpret=False)

    @settings(max_examples=examples, deadline=None)
    @given(reads=some_reads(case))
    def agrees(reads: Reads) -> None:
        found, expected = (read(q, pages, reads, before) for read in (kernel, xla))
        np.testing.assert_allclose(found, expected, rtol=0, atol=case.tolerance)

    agrees()


def test_what_is_not_read_is_not_looked_at() -> None:
    q, pages, before = store(ALONE)
    unread = (np.arange(COUNT) > 0)[:, None, None, None]
    poisoned = Pages(*(jnp.asarray(np.where(unread, np.nan, x)) for x in (pages.keys, pages.values)))
    reads = full(ALONE)._replace(count=jnp.int32(1))
    reads = reads._replace(pages=jnp.asarray(np.where(np.arange(CHUNKS)[:, None, None], 1, reads.pages)))
    kernel = reader(interpret=True)
    np.testing.assert_array_equal(kernel(q, poisoned, reads, before), kernel(q, pages, reads, before))


def lowered(function: Callable[..., Any], *arguments: Any) -> str:
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("case", [ALONE_INT8, TOGETHER._replace(dim=128), CHUNK._replace(dim=64)])
def test_it_is_lowered_for_cuda(case: Case) -> None:
    q, pages, before = store(case)
    assert TRITON in lowered(read_on_gpu, q, pages, jnp.int32(LAYER), full(case), before)


def test_devices_of_a_mesh_run_it_too() -> None:
    q, pages, before = store(ALONE)
    with jax.sharding.use_abstract_mesh(make_mesh(tensor=1).abstract_mesh):
        text = lowered(partial(read_pages, reader=read_on_gpu), q, pages, jnp.int32(LAYER), full(ALONE), before)
    assert TRITON in text


def test_int8_pages_whose_places_it_would_miscount_are_read_by_xla() -> None:
    q, _, before = store(ALONE_INT8)
    for count, used in ((2**31 // 2**14, True), (2**31 // 2**14 + 1, False), (2**32 // 2**14 + 1, True)):
        of = jax.ShapeDtypeStruct((1, count, KV, 128, 64), jnp.int8)
        scales = jax.ShapeDtypeStruct((1, count, KV, 128, 1), jnp.float32)
        reads = full(ALONE_INT8)._replace(valid=jnp.full((CHUNKS, 2), 512))
        text = lowered(read_on_gpu, q, Pages(of, of, scales, scales), jnp.int32(0), reads, before)
        assert (TRITON in text) == used


@pytest.fixture(scope="module")
def model() -> Qwen3:
    return tiny_model(head_dim=16, num_hidden_layers=1)


@pytest.fixture
def chosen(model: Qwen3) -> Iterator[Callable[[str], Qwen3]]:
    def choose(attention: str) -> Qwen3:
        model.attention = attention
        return model

    yield choose
    model.attention = "auto"


def test_a_model_runs_over_pages_through_it(model: Qwen3, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = np.asarray(nnx.jit(Qwen3.hidden)(model, random_tokens(1, 41)))
    monkeypatch.setattr(paged, "page_reader", lambda _: partial(read_by_kernel, interpret=True))
    check_pages(model, expected[0])


def traced(model: Qwen3) -> Any:
    pages = init_pages(model.config, 2, 16)
    reads = Reads(*(np.zeros(shape, np.int32) for shape in ((1, 1, 2), (1, 1), (), (1, 1, 1))))
    new = paged.Step(jnp.zeros(1, jnp.int32), jnp.full(1, 20), jnp.int32(0))
    recent = init_pages(model.config, 1, 4)
    return jax.jit(lambda *arrays: paged.run_step(model, *arrays)).trace(pages, recent, new, [reads])


@pytest.mark.parametrize(("attention", "used"), [("auto", False), ("xla", False), ("pallas", True)])
def test_it_is_used_where_it_is_asked_for(chosen: Callable[[str], Qwen3], attention: str, used: bool) -> None:
    assert (TRITON in traced(chosen(attention)).lower(lowering_platforms=("cuda",)).as_text()) == used


def test_on_a_cpu_it_is_never_used(chosen: Callable[[str], Qwen3]) -> None:
    assert "triton" not in traced(chosen("pallas")).lower().compile().as_text()


def test_without_a_gpu_it_is_refused() -> None:
    with pytest.raises(UserError, match="needs an NVIDIA GPU, but JAX runs on cpu"):
        check_kernel(128)


def test_heads_of_another_form_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "on_cuda", lambda: True)
    for head_dim in (64, 128):
        check_kernel(head_dim)
    for head_dim in (8, 80):
        with pytest.raises(UserError, match=f"a power of two, 16 or more, not {head_dim}"):
            check_kernel(head_dim)
