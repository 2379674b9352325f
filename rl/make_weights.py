"""Makes the pocket models again from seeds: `make weights`.

The tokenizer, the stem of both models, the agent and the memory model, in this order; what is already there from an
earlier, interrupted call is not made again. Each run is a configuration of `configs/train`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from comem_jax.chat import ChatFormat
from comem_jax.config import load_config
from envs.pocket.weights import AGENT, MEMORY, TOKENIZER
from envs.pocket.world import KEYS, SPLITS, WORDS
from rl.pocket import texts
from rl.sft import SFTConfig, train
from rl.tokenizer import TEMPLATE, save_tokenizer, train_tokenizer, untrained

CONFIGS = Path("configs/train")
VOCABULARY = 1024
WINDOW = 1024
TEXT_TASKS = 400


def make_tokenizer() -> None:
    """Train the tokenizer on oracle runs and write it to the weights folder."""
    start = SPLITS["train"][0]
    rendered = texts(range(start, start + TEXT_TASKS), ChatFormat(untrained(), TEMPLATE, [0]))
    settings = [f"{key} = '" for name in KEYS for key in (name, name.lower())]
    save_tokenizer(train_tokenizer(rendered, WORDS, settings, VOCABULARY), TOKENIZER, WINDOW)


def make_models() -> None:
    """Train the stem and both models, and put the two in the weights folder."""
    train(load_config(SFTConfig, CONFIGS / "pocket_base.yaml"))
    for target in (AGENT, MEMORY):
        config = load_config(SFTConfig, CONFIGS / f"pocket_{target.name}.yaml")
        train(config)
        shutil.copytree(config.out / "model", target, dirs_exist_ok=True)


if __name__ == "__main__":
    if "--tokenizer-only" in sys.argv or not (TOKENIZER / "tokenizer.json").is_file():
        make_tokenizer()
    if "--tokenizer-only" not in sys.argv:
        make_models()
