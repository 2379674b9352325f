"""`comem import`: a Hugging Face folder to an Orbax checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Write the weights of a Hugging Face folder as the first step of a new Orbax checkpoint folder."
EXAMPLE = "comem import --model models/qwen3-0.6b --out runs/qwen3/checkpoints"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where from and where to."""
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a model folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the checkpoint folder to write")


def run(args: argparse.Namespace) -> int:
    """Import."""
    from comem_jax.checkpoints import import_

    import_(args.model, args.out)
    print(f"Written to {args.out}.")
    return 0
