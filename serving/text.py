"""Generated token ids to text, a few at a time: whole characters only, and nothing past a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tokenizers import Tokenizer

from comem_jax.errors import UserError


class TokenBytes:
    """The bytes of every token id of a byte-level tokenizer.

    `text[id]` is what the token adds to an answer (nothing, for a special token such as the end of a turn), `name[id]`
    what it is called, special or not. Raises `UserError` for a tokenizer that is not byte-level.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if type(tokenizer.decoder).__name__ != "ByteLevel":
            raise UserError(
                f"the tokenizer decodes with {type(tokenizer.decoder).__name__}; the server needs a byte-level one"
            )
        alphabet = _byte_alphabet()
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        size = max(vocabulary.values()) + 1
        self.name = [b""] * size
        for token, token_id in vocabulary.items():
            self.name[token_id] = _token_bytes(token, alphabet)
        self.text = list(self.name)
        for token_id, added in tokenizer.get_added_tokens_decoder().items():
            if added.special:
                self.text[token_id] = b""

    def text_of(self, token_id: int) -> bytes:
        """Return the bytes a token adds to an answer; an id beyond the vocabulary (a padded head) adds none."""
        return self.text[token_id] if token_id < len(self.text) else b""

    def name_of(self, token_id: int) -> bytes:
        """Return the bytes of a token itself, special tokens included."""
        return self.name[token_id] if token_id < len(self.name) else b""


class Detokenizer:
    """Text from the tokens of one answer, as they come. Bytes that are no UTF-8 become U+FFFD, as in a full decode."""

    def __init__(self, tokens: TokenBytes) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the characters that the token completes."""
        return self._decoder.decode(self._tokens.text_of(token_id))

    def flush(self) -> str:
        """Return what is left at the end: one U+FFFD where the answer broke off within a character."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Passes text on until one of the stop strings has appeared in it, however the text is cut into pieces.

    The first stop string to be complete wins; nothing of it is passed on. An end of text that may still become a stop
    string is held back until it is known.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Return the text that is safe to pass on; sets `stopped` where a stop string is complete."""
        if not self._stops or not text:
            return text
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return the text still held back, at the end of an answer."""
        text, self._held = self._held, ""
        return text

    def _undecided(self, text: str) -> int:
        longest = min(len(text), max(len(stop) for stop in self._stops) - 1)
        for size in range(longest, 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0


def _byte_alphabet() -> dict[str, int]:
    """Return the printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if byte not in set(plain))
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


def _token_bytes(token: str, alphabet: dict[str, int]) -> bytes:
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:  # an added token stands for itself
        return token.encode()
