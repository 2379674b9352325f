"""google-jetstream 0.2.2 as it can be imported today; everything of it that is used here comes from this module.

The package was archived before the JAX of today. It imports seqio and tiktoken, for tokenizers that are not ours (seqio
brings TensorFlow along): empty modules stand in for them while it is imported, and only then. It calls `jax.tree_map`,
which is no more, in the one function that deletes a prefill's arrays once they are inserted: our prefills are none, so
that there is nothing to delete. It sets the root logger to DEBUG, with a handler of its own, and tells it of every
step: that is undone. The threads of its driver kill the process where they fail: ours do not.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

STAND_INS = {
    "seqio": (),
    "seqio.vocabularies": ("Vocabulary", "SentencePieceVocabulary"),
    "tiktoken": (),
    "tiktoken.load": ("load_tiktoken_bpe",),
}


class QuietThread(threading.Thread):
    """A thread of the driver; JetStream's own kills the whole process where one fails, and some outlive it."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings | {"daemon": True})


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Let empty modules stand in for some that are imported and not used."""
    before = {name: sys.modules.get(name) for name in STAND_INS}
    for name, members in STAND_INS.items():
        sys.modules[name] = module = ModuleType(name)
        for member in members:
            setattr(module, member, type(member, (), {}))
    try:
        yield
    finally:
        for name, module_before in before.items():
            del sys.modules[name]
            if module_before is not None:
                sys.modules[name] = module_before


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Leave the root logger as it was."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


with _stand_ins(), _root_logger_kept():
    from jetstream.core import orchestrator
    from jetstream.core.proto import jetstream_pb2, jetstream_pb2_grpc
    from jetstream.core.utils.return_sample import ReturnSample
    from jetstream.engine import engine_api, tokenizer_api, tokenizer_pb2

orchestrator.logging = logging.getLogger("jetstream")
orchestrator.logging.setLevel(logging.WARNING)
orchestrator.delete_pytree = lambda prefill: None
orchestrator.JetThread = QuietThread

__all__ = [
    "ReturnSample",
    "engine_api",
    "jetstream_pb2",
    "jetstream_pb2_grpc",
    "orchestrator",
    "tokenizer_api",
    "tokenizer_pb2",
]
