"""`comem train sft`: supervised fine-tuning from a configuration file."""

from __future__ import annotations

import argparse

from comem_jax.config import load_config
from comem_jax.errors import UserError, nearest

HELP = "Train a model from a configuration file; a run that was stopped goes on from its last checkpoint."
EXAMPLE = "comem train sft --config configs/train/pocket_agent.yaml steps=100 out=runs/try"
METHODS = ("sft",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the method, the configuration and its overrides."""
    parser.add_argument("method", metavar="METHOD", help="sft")
    parser.add_argument("--config", required=True, metavar="FILE", help="a file of configs/train")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")


def run(args: argparse.Namespace) -> int:
    """Train."""
    if args.method not in METHODS:
        raise UserError(f"no training method {args.method!r}{nearest(args.method, METHODS)}")
    from rl.sft import SFTConfig, train

    config = load_config(SFTConfig, args.config, args.overrides)
    train(config)
    print(f"The trained model is in {config.out / 'model'}.")
    return 0
