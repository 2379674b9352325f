"""Checkpoints hold exactly what was saved, and become Hugging Face folders."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import transformers
from flax import nnx

from comem_jax.checkpoints import Checkpointer, describe, export, import_
from comem_jax.errors import UserError
from comem_jax.models import save
from tests.comem_jax.models.tiny import reference_folder, tiny_model


def training_state(seed):
    params = nnx.state(tiny_model(seed), nnx.Param)
    return {"params": params, "optimiser": moments_after_a_step(params), "key": jax.random.key(seed)}


@jax.jit
def moments_after_a_step(params):
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return optimiser.update(params, optimiser.init(params), params)[1]


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert as_bytes(a) == as_bytes(b)


def as_bytes(array):
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if is_key else array).tobytes()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_newest_state_comes_back_bitwise(tmp_path, asynchronous):
    with Checkpointer(tmp_path, asynchronous=asynchronous) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, training_state(step), {"position": step, "files": ["a"]})
        step, state, data = checkpointer.restore(training_state(9))
    assert (step, data) == (3, {"position": 3, "files": ["a"]})
    assert_same(state, training_state(3))


def test_only_the_newest_are_kept_and_another_process_would_find_them(tmp_path):
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, {"params": {"w": jnp.full(3, step)}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    with Checkpointer(tmp_path) as checkpointer:
        step, state, data = checkpointer.restore({"params": {"w": jnp.zeros(3, int)}})
    assert (step, data, state["params"]["w"].tolist()) == (3, None, [3, 3, 3])


def test_an_empty_folder_holds_nothing(tmp_path):
    with Checkpointer(tmp_path / "new") as checkpointer:
        assert checkpointer.restore({"params": {}}) is None


def test_a_state_may_be_overwritten_while_it_is_being_saved(tmp_path):
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = {"params": {"w": jnp.zeros(1_000_000)}}
    with Checkpointer(tmp_path) as checkpointer:
        for number in (1, 2):
            state = step(state)
            checkpointer.save(number, state)
        state = step(step(state))
        found = checkpointer.restore(state)[1]
    assert np.all(np.asarray(found["params"]["w"]) == 2)


def test_bfloat16_and_abstract_likes(tmp_path):
    state = {"params": {"w": jnp.arange(4, dtype=jnp.bfloat16)}, "key": jax.random.key(1, impl="rbg")}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, state)
        like = {"params": {"w": jax.ShapeDtypeStruct((4,), jnp.bfloat16)}, "key": jax.random.key(0, impl="rbg")}
        assert_same(checkpointer.restore(like)[1], state)


@pytest.mark.parametrize(
    ("like", "said"),
    [
        ({"params": {"w": jnp.zeros(4)}}, r"params.w as float32\[3\], not float32\[4\]"),
        ({"params": {"w": jnp.zeros(3, int)}}, r"params.w as float32\[3\], not int32\[3\]"),
        ({"params": {"w": jnp.zeros(3), "x": jnp.zeros(3)}}, "lacks params.x"),
        ({"params": {}}, "also holds params.w"),
    ],
)
def test_another_state_is_refused(tmp_path, like, said):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, {"params": {"w": jnp.zeros(3)}})
        with pytest.raises(UserError, match=said):
            checkpointer.restore(like)


def test_a_step_is_saved_once(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(5, {"params": {"w": jnp.zeros(3)}})
        with pytest.raises(UserError, match="already holds step 5"):
            checkpointer.save(5, {"params": {"w": jnp.zeros(3)}})


@pytest.mark.parametrize("tied", [True, False])
def test_import_then_export_is_the_same_model(tmp_path, tied):
    reference = reference_folder(tmp_path / "hf", tie_word_embeddings=tied)
    (tmp_path / "hf/tokenizer.json").write_text("{}")
    (tmp_path / "hf/chat_template.jinja").write_text("template")
    import_(tmp_path / "hf", tmp_path / "run")
    (tmp_path / "hf").rename(tmp_path / "moved")
    export(tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out/chat_template.jinja").read_text() == "template"
    assert (tmp_path / "out/tokenizer.json").read_text() == "{}"
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    for name, tensor in reference.state_dict().items():
        assert tensor.equal(again.state_dict()[name]), name


def test_export_of_a_training_run_takes_the_newest_params(tmp_path):
    state = training_state(3)
    save(tiny_model(), tmp_path / "start")
    describe(tmp_path / "run", tmp_path / "start")
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(1, training_state(1))
        checkpointer.save(3, state)
    export(tmp_path / "run", tmp_path / "out")
    expected = nnx.merge(nnx.graphdef(tiny_model()), state["params"])
    save(expected, tmp_path / "expected")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "expected/model.safetensors").read_bytes()


def test_export_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="not a checkpoint folder"):
        export(tmp_path, tmp_path / "out")
    save(tiny_model(), tmp_path / "start")
    describe(tmp_path / "run", tmp_path / "start")
    with pytest.raises(UserError, match="no checkpoint in"):
        export(tmp_path / "run", tmp_path / "out")
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(0, {"params": {"embedding": jnp.zeros((3, 2))}})
    with pytest.raises(UserError, match="embedding with shape"):
        export(tmp_path / "run", tmp_path / "out")
