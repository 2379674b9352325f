"""`comem export`: an Orbax checkpoint to a Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Write the newest step of a training run's checkpoints as a Hugging Face folder."
EXAMPLE = "comem export --checkpoint runs/train/pocket_agent/checkpoints --out models/pocket-agent"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where from and where to."""
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="a run's checkpoints folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the model folder to write")


def run(args: argparse.Namespace) -> int:
    """Export."""
    from comem_jax.checkpoints import export

    export(args.checkpoint, args.out)
    print(f"Written to {args.out}.")
    return 0
