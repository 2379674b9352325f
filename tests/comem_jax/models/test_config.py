"""Reading and writing `config.json`."""

import dataclasses
import json

import pytest
import transformers

from comem_jax.errors import UserError
from comem_jax.models import Qwen3Config
from tests.comem_jax.models.tiny import reference_model, tiny_config


def write(folder, **changes):
    fields = json.loads(tiny_config().to_json()) | changes
    fields = {name: value for name, value in fields.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_reads_what_transformers_writes(tmp_path):
    reference = reference_model(rope_parameters={"rope_type": "default", "rope_theta": 5e5}, head_dim=16)
    reference.config.save_pretrained(tmp_path)
    config = Qwen3Config.from_folder(tmp_path)
    assert (config.rope_theta, config.head_dim, config.eos_token_id) == (5e5, 16, 3)


def test_transformers_reads_what_it_writes(tmp_path):
    config = tiny_config(rope_theta=5e5, head_dim=16, bos_token_id=1, eos_token_id=(2, 3))
    (tmp_path / "config.json").write_text(config.to_json("bfloat16"))
    written = json.loads(config.to_json("bfloat16"))
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 5e5  # older readers, and transformers 5
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.Qwen3Config)
    assert theirs.rope_parameters["rope_theta"] == 5e5
    assert str(theirs.dtype) == "torch.bfloat16"
    assert theirs.architectures == ["Qwen3ForCausalLM"]
    shared = {f.name for f in dataclasses.fields(config)} - {"rope_theta", "eos_token_id", "yarn", "moe"}
    assert {name: getattr(theirs, name) for name in shared} == {name: getattr(config, name) for name in shared}
    assert Qwen3Config.from_folder(tmp_path) == config


@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
def test_rope_theta_in_any_place(tmp_path, name):
    places = {"rope_theta": ..., "rope_parameters": ...}
    rope = {"rope_type": "default", "rope_theta": 123.0}
    assert Qwen3Config.from_folder(write(tmp_path, **(places | {name: rope}))).rope_theta == 123.0
    assert Qwen3Config.from_folder(write(tmp_path, **(places | {"rope_theta": 7}))).rope_theta == 7.0


def test_head_dim_defaults_to_an_equal_share(tmp_path):
    assert Qwen3Config.from_folder(write(tmp_path, head_dim=..., hidden_size=48)).head_dim == 12


def test_generation_config_knows_the_end_tokens(tmp_path):
    (write(tmp_path, eos_token_id=2) / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    assert Qwen3Config.from_folder(tmp_path).eos_token_id == (2, 5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "'linear'"),
        ({"rope_theta": ..., "rope_parameters": ...}, "rope_theta"),
        ({"hidden_size": ...}, "lacks hidden_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads (3)"),
        ({"head_dim": 7}, "head_dim (7)"),
    ],
)
def test_what_is_not_supported_is_said(tmp_path, changes, said):
    with pytest.raises(UserError) as error:
        Qwen3Config.from_folder(write(tmp_path, **changes))
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_file_is_said(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        Qwen3Config.from_folder(tmp_path)
