"""Attention against `jax.nn.dot_product_attention`, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from comem_jax.models.attention import attend, attend_causal, attend_through_cudnn, causal_mask, takes_cudnn


def arrays(length, kv_heads):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, length, 4, 8), (2, length, kv_heads, 8), (2, length, kv_heads, 8)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize(("length", "kv_heads"), [(7, 4), (7, 1), (300, 2)])
def test_values_and_gradients_equal_the_library_s(length, kv_heads):
    mask = causal_mask(length, np.sort(np.random.default_rng(0).integers(0, 3, (2, length)), axis=1))

    def ours(q, k, v):
        return attend(q, k, v, mask, causal=True)

    def library(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])

    inputs = arrays(length, kv_heads)
    np.testing.assert_allclose(jax.jit(ours)(*inputs), jax.jit(library)(*inputs), rtol=0, atol=1e-5)
    for got, expected in zip(*(gradients(f, inputs) for f in (ours, library)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def gradients(function, inputs):
    return jax.jit(jax.grad(lambda *qkv: (function(*qkv) ** 2).sum(), (0, 1, 2)))(*inputs)


def test_large_scores_do_not_overflow():
    q, k, v = arrays(7, 2)
    out = attend(q * 1e4, k, v, causal_mask(7, None))
    assert np.isfinite(out).all()


def test_a_query_that_may_look_nowhere_gets_the_mean():
    q, k, v = arrays(7, 4)
    out = attend(q, k, v, np.zeros((1, 7, 7), bool))
    np.testing.assert_allclose(out[:, 0], np.asarray(v).mean(1), rtol=0, atol=1e-5)


def test_blocks_skip_what_is_masked():
    q, k, v = arrays(512, 4)
    mask = causal_mask(512, None)

    def flops(causal):
        compiled = jax.jit(lambda *qkv: attend(*qkv, mask, causal=causal)).lower(q, k, v).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(causal=True) < 0.7 * flops(causal=False)


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        ({}, True),
        ({"dtype": jnp.float16}, True),
        ({"dtype": jnp.float32}, False),
        ({"head_dim": 80}, True),
        ({"head_dim": 12}, False),
        ({"head_dim": 136}, False),
        ({"length": 7}, True),
        ({"length": 7, "segments": True}, False),
        ({"length": 8, "segments": True}, True),
        ({"choice": "pallas"}, True),
        ({"choice": "xla"}, False),
        ({"cuda": False}, False),
    ],
)
def test_cudnn_is_taken_for_what_it_supports(changed, taken):
    what = {"dtype": jnp.bfloat16, "head_dim": 128, "length": 8, "segments": False, "choice": "auto", "cuda": True}
    what |= changed
    q = jax.ShapeDtypeStruct((2, what.pop("length"), 4, what.pop("head_dim")), what.pop("dtype"))
    assert takes_cudnn(q, **what) == taken


def test_cudnn_is_not_taken_for_a_length_on_several_devices():
    q = jax.ShapeDtypeStruct((2, 8, 4, 64), jnp.bfloat16)
    for split, taken in ((2, False), (1, True)):
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((split,), ("context",))):
            assert takes_cudnn(q, segments=False, choice="auto", cuda=True) == taken


@pytest.mark.parametrize("segments", [False, True])
def test_cudnn_is_lowered_for_cuda_forward_and_backward(monkeypatch, segments):
    # Without the library JAX refuses to trace it; its version says only which devices and shapes it would refuse.
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    q, k = (jax.ShapeDtypeStruct((2, 8, heads, 64), jnp.bfloat16) for heads in (4, 2))
    mask = causal_mask(8, np.ones((2, 8), int)) if segments else None

    def loss(q, k, v):
        return attend_through_cudnn(q, k, v, mask).astype(jnp.float32).sum()

    text = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k).lower(lowering_platforms=("cuda",)).as_text()
    bias = "ScaleBias" if segments else ""
    assert f"__cudnn$fmha{bias}Softmax(" in text and f"__cudnn$fmha{bias}SoftmaxBackward(" in text


@pytest.mark.parametrize("choice", ["auto", "xla", "pallas"])
def test_on_a_cpu_xla_computes_it_whatever_the_choice(choice):
    q, k, v = arrays(300, 2)
    mask = causal_mask(300, None)

    def program(function):
        return jax.jit(function).lower(q, k, v).as_text().split("\n", 1)[1]

    chosen = program(lambda *qkv: attend_causal(*qkv, mask=mask, segments=False, choice=choice))
    assert chosen == program(lambda *qkv: attend(*qkv, mask, causal=True))
