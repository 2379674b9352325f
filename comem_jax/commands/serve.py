"""`comem serve`: an OpenAI-compatible endpoint on the engine."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

from comem_jax.errors import UserError

HELP = "Serve a model folder in Hugging Face form as an OpenAI-compatible endpoint."
EXAMPLE = "comem serve --model models/qwen3-0.6b --port 8000"
API_KEY = "COMEM_API_KEY"
GRACE = 30.0
CHOICES = ("dtype", "quantize", "load_format", "kv_cache_dtype", "attention", "driver")
OPTIONS = ("name", "slots", "queue", "window", "cache", "host", *CHOICES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json, weights and tokenizer")
    parser.add_argument("--name", help="the model's name for clients (default: the folder's name)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port, 0 for any free one (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=8, help="requests decoded at a time (default: %(default)s)")
    queue = "answers that may wait for a slot; who asks for more gets 429 (default: %(default)s)"
    parser.add_argument("--queue", type=int, default=256, metavar="N", help=queue)
    parser.add_argument("--window", type=int, help="tokens of prompt and answer (default: the model's, at most 4096)")
    parser.add_argument("--cache", type=int, help="tokens whose keys and values are kept (default: slots x window)")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 (default: %(default)s)")
    quantize = "none, or int8 weights: a quarter of float32's memory; no faster on a CPU (default: %(default)s)"
    parser.add_argument("--quantize", default="none", metavar="HOW", help=quantize)
    dummy = "auto reads the folder's weights, dummy makes random ones, for benchmarks (default: %(default)s)"
    parser.add_argument("--load-format", default="auto", metavar="FORMAT", help=dummy)
    kept = "dtype of kept keys and values: auto is --dtype, float32, bfloat16, or int8 (default: %(default)s)"
    parser.add_argument("--kv-cache-dtype", default="auto", metavar="DTYPE", help=kept)
    attention = (
        "what reads kept keys and values on a GPU: auto and xla are XLA, pallas a kernel that was never measured"
    )
    parser.add_argument("--attention", default="auto", metavar="WAY", help=f"{attention} (default: %(default)s)")
    mesh = "devices to use: tensor of them for each copy of the model, and data copies (default: one device)"
    parser.add_argument("--mesh", metavar="tensor=N,data=M", help=mesh)
    driver = "native, or jetstream for JetStream's orchestrator (extra: jetstream) (default: %(default)s)"
    parser.add_argument("--driver", default="native", help=driver)
    grpc_port = "port of JetStream's gRPC service, 0 for any free one, with --driver jetstream (default: none)"
    parser.add_argument("--grpc-port", type=int, metavar="PORT", help=grpc_port)
    parser.add_argument("--api-key", metavar="KEY", help=f"key that clients must send (default: {API_KEY}, else none)")
    grace = "after SIGTERM, for answers under way; a second SIGTERM ends at once (default: %(default)s)"
    parser.add_argument("--grace", type=float, default=GRACE, metavar="SECONDS", help=grace)
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when standard input is closed")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted, then finish what is under way; returns 0. Raises `UserError` for what cannot be served.

    Raises what ended the engine where it died too often to be begun again.
    """
    from serving.meshes import read_mesh
    from serving.running import start_server

    if args.api_key == "":
        raise UserError("--api-key is empty; leave it out for a server that asks for none")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("jax").setLevel(logging.WARNING)
    asked, alone = threading.Event(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _asked_once(asked))
    if args.stop_with_stdin:
        threading.Thread(target=_watch_stdin, args=(asked, alone), daemon=True).start()
    key = args.api_key or os.environ.get(API_KEY)
    if not key and not _is_loopback(args.host):
        logging.getLogger(__name__).warning("others can reach %s, and no key is asked for: see --api-key", args.host)
    options = {name: getattr(args, name) for name in OPTIONS}
    options["mesh"] = read_mesh(args.mesh) if args.mesh is not None else None
    server = start_server(args.model, args.port, api_key=key, grpc_port=args.grpc_port, **options)
    try:
        # `state` is looked at now and then, so that a server whose engine died does not go on as a husk.
        while not asked.wait(0.5) and server.service.state != "dead":
            pass
        server.drain(args.grace, hurry=alone.is_set)
    finally:
        server.stop()
    if server.service.error is not None and not asked.is_set():
        raise server.service.error
    return 0


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _asked_once(asked: threading.Event) -> None:
    """Note the first signal to end; a second one finds no handler and ends the process at once."""
    asked.set()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _watch_stdin(asked: threading.Event, alone: threading.Event) -> None:
    """Wait until nobody holds the other end of standard input any more: then nobody waits for answers either."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    alone.set()
    asked.set()
