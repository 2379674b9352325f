"""`comem serve`: an OpenAI-compatible endpoint on the engine."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

HELP = "Serve a model folder in Hugging Face form as an OpenAI-compatible endpoint."
EXAMPLE = "comem serve --model models/qwen3-0.6b --port 8000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json, weights and tokenizer")
    parser.add_argument("--name", help="the model's name for clients (default: the folder's name)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port, 0 for any free one (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=8, help="requests decoded at a time (default: %(default)s)")
    parser.add_argument("--window", type=int, help="tokens of prompt and answer (default: the model's, at most 4096)")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 (default: %(default)s)")
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when standard input is closed")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted; returns 0. Raises `UserError` for what cannot be served."""
    from serving.running import start_server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("jax").setLevel(logging.WARNING)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    if args.stop_with_stdin:
        threading.Thread(target=_watch_stdin, args=(ended,), daemon=True).start()
    options = {"name": args.name, "slots": args.slots, "window": args.window, "dtype": args.dtype}
    server = start_server(args.model, args.port, host=args.host, **options)
    try:
        # `state` is looked at now and then, so that a server whose engine died does not go on as a husk.
        while not ended.wait(0.5) and server.service.state != "dead":
            pass
    finally:
        server.stop()
    if server.service.error is not None:
        raise server.service.error
    return 0


def _watch_stdin(ended: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    ended.set()
