"""YaRN against `transformers`: whole sequences, the cache, and pages."""

import json

import numpy as np
import pytest
import transformers
from flax import nnx

from comem_jax.errors import UserError
from comem_jax.models import Qwen3, Qwen3Config, load, save
from comem_jax.models.rope import Yarn
from tests.comem_jax.models.paths import check_paths
from tests.comem_jax.models.test_config import write
from tests.comem_jax.models.tiny import random_tokens, reference_folder, reference_logits, tiny_config

LENGTH = 150
SCALING = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
YARNS = [
    {},
    {"factor": 1.5},
    {"factor": 40.0, "beta_fast": 8.0, "beta_slow": 0.25},
    {"attention_factor": 1.3},
    {"truncate": False, "beta_fast": 5},
    {"original_max_position_embeddings": 4},  # every dimension is slowed
]


def yarn_folder(folder, **changes):
    rope = SCALING | changes | {"rope_theta": 100.0}
    return reference_folder(folder, head_dim=16, rope_parameters=rope, max_position_embeddings=128)


@pytest.mark.parametrize("changes", YARNS)
def test_logits_equal_transformers(tmp_path, changes):
    reference = yarn_folder(tmp_path, **changes)
    tokens = random_tokens(1, LENGTH)
    expected = reference_logits(reference, tokens)
    got = nnx.jit(Qwen3.__call__)(load(tmp_path), tokens)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_the_cache_and_pages_turn_as_whole_sequences_do(tmp_path):
    yarn_folder(tmp_path)
    check_paths(load(tmp_path))


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_yarn_is_found_where_each_version_keeps_it(tmp_path, place, key):
    rope = {key: "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": None}
    config = Qwen3Config.from_folder(write(tmp_path, **({"rope_parameters": None} | {place: rope})))
    assert (config.yarn, config.rope_theta, config.max_position_embeddings) == (Yarn(4.0, 32), 1e4, 512)


def test_a_context_that_is_not_named_is_the_models(tmp_path):
    config = Qwen3Config.from_folder(write(tmp_path, rope_scaling={"type": "yarn", "factor": 2}))
    assert config.yarn == Yarn(2, 512)


def test_yarn_survives_a_round_trip(tmp_path):
    reference = yarn_folder(tmp_path / "in", attention_factor=1.3, beta_fast=8.0)
    model = load(tmp_path / "in")
    save(model, tmp_path / "out")
    assert Qwen3Config.from_folder(tmp_path / "out") == model.config
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = random_tokens(1, LENGTH)
    np.testing.assert_array_equal(reference_logits(theirs, tokens), reference_logits(reference, tokens))
    assert json.loads((tmp_path / "out/config.json").read_text())["rope_scaling"]["factor"] == 4.0


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"type": "linear", "factor": 2}, "rope_scaling of type 'linear'; only 'default' and 'yarn'"),
        ({"rope_type": "yarn"}, "lacks its factor"),
        ({"rope_type": "yarn", "factor": 0.5}, r"factor \(0.5\) must be at least 1"),
        ({"rope_type": "yarn", "factor": 2, "beta_slow": 0}, r"beta_slow \(0\) must be above 0"),
        ({"rope_type": "yarn", "factor": 2, "beta_fst": 3}, "'beta_fst'.*did you mean 'beta_fast'"),
    ],
)
def test_other_scaling_is_refused(tmp_path, rope, said):
    with pytest.raises(UserError, match=said):
        Qwen3Config.from_folder(write(tmp_path, rope_scaling=rope))


def test_a_plain_model_names_no_scaling():
    assert "rope_scaling" not in json.loads(tiny_config().to_json())
