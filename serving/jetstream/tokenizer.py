"""A chat format's tokenizer behind JetStream's interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from comem_jax.chat import ChatFormat
from serving.jetstream.package import tokenizer_api


class Tokenizer(tokenizer_api.Tokenizer):
    """Text to token ids and back. Nothing is put before a text, cut off or padded, whatever is asked for."""

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat

    def encode(self, s: str, **settings: Any) -> tuple[np.ndarray, int]:
        """Return int32 token ids `[length]` and their number."""
        ids = np.asarray(self._chat.encode(s), np.int32)
        return ids, len(ids)

    def decode(self, token_ids: Sequence[int], **settings: Any) -> str:
        """Return the text of token ids; of a character's bytes it takes all, in one call."""
        return self._chat.decode(token_ids)

    @property
    def pad_id(self) -> int:
        """The id JetStream pads with: 0, which it insists on. It is never read."""
        return 0

    @property
    def eos_id(self) -> int:
        """The id that ends an answer; the first of them, where there are several."""
        return self._chat.eos_ids[0]

    @property
    def bos_id(self) -> int:
        """Qwen3 begins a prompt with no token of its own; JetStream's interface wants one to be named."""
        return self._chat.eos_ids[-1]

    @property
    def stop_tokens(self) -> set[int]:
        """The ids that end an answer. Token 0, which JetStream counts among them by default, is a word like others."""
        return set(self._chat.eos_ids)
