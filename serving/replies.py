"""A chat answer's text, as it comes, into reasoning, content and tool calls.

The pieces of a streamed answer put together are what `parse_reply` makes of the whole text, with one exception: a
`<think>` block that the answer broke off in is reasoning here, since it has been streamed as such.
"""

from __future__ import annotations

from dataclasses import dataclass

from comem_jax.actions import Action
from comem_jax.chat import parse_reply

THINK, THINK_END = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"


@dataclass
class Piece:
    """What a stretch of generated text adds to the answer."""

    content: str = ""
    reasoning: str = ""
    actions: tuple[Action, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.actions)


class ReplyParser:
    """Splits generated text into reasoning, content and (where `tools`) tool calls, in pieces of any size."""

    def __init__(self, tools: bool) -> None:
        self._tools = tools
        self._state = "start"
        self._text = ""
        self._reasoning = _Stripped()
        self._content = _Stripped()

    def push(self, text: str) -> Piece:
        """Return what is certain so far; a tool call comes whole, when its closing tag does."""
        self._text += text
        piece = Piece()
        while self._advance(piece):
            pass
        return piece

    def finish(self) -> Piece:
        """Return what was held back, at the end of the answer; an unclosed tool call counts if it is valid JSON."""
        piece = Piece()
        if self._state == "call":
            self._close_call(self._text, piece)
        elif self._state == "think":
            piece.reasoning += self._reasoning.push(self._text)
        else:
            piece.content += self._content.push(self._text)
        self._text = ""
        return piece

    def _advance(self, piece: Piece) -> bool:
        """Take one step in the current state; False where more text is needed."""
        return {"start": self._start, "think": self._think, "content": self._plain, "call": self._call}[self._state](
            piece
        )

    def _start(self, piece: Piece) -> bool:
        text = self._text.lstrip()
        if text.startswith(THINK):
            self._state, self._text = "think", text.removeprefix(THINK)
            return True
        if THINK.startswith(text):
            return False
        self._state = "content"
        return True

    def _think(self, piece: Piece) -> bool:
        inside, closed, rest = self._text.partition(THINK_END)
        keep = 0 if closed else _overlap(inside, THINK_END)
        piece.reasoning += self._reasoning.push(inside[: len(inside) - keep])
        self._text = rest if closed else inside[len(inside) - keep :]
        if closed:
            self._state = "content"
        return bool(closed)

    def _plain(self, piece: Piece) -> bool:
        if not self._tools:
            piece.content += self._content.push(self._text)
            self._text = ""
            return False
        before, opened, rest = self._text.partition(CALL)
        keep = 0 if opened else _overlap(before, CALL)
        piece.content += self._content.push(before[: len(before) - keep])
        self._text = opened + rest if opened else before[len(before) - keep :]
        if opened:
            self._state = "call"
        return bool(opened)

    def _call(self, piece: Piece) -> bool:
        block, closed, rest = self._text.partition(CALL_END)
        if not closed:
            return False
        self._close_call(block + closed, piece)
        self._state, self._text = "content", rest
        return True

    def _close_call(self, block: str, piece: Piece) -> None:
        actions = parse_reply(block).actions
        piece.actions += actions
        if not actions:
            piece.content += self._content.push(block)


class _Stripped:
    """`str.strip` of a text that comes in pieces: white space is held back until something follows it."""

    def __init__(self) -> None:
        self._held = ""
        self._begun = False

    def push(self, text: str) -> str:
        text = self._held + text
        if not self._begun:
            text = text.lstrip()
        out = text.rstrip()
        self._begun = self._begun or bool(out)
        self._held = text[len(out) :]
        return out


def _overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of the text may be the beginning of the tag."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-size:])), 0)
