"""A chat answer's text, as it comes, into reasoning, content and tool calls.

The pieces of an answer put together are what `parse_reply` makes of the whole text, with two exceptions. A `<think>`
block that the answer broke off in is reasoning here, since it has been streamed as such; and where the prompt has
opened the block itself, as the templates of models that always think do, the answer begins `thinking`. A parser that is
`eager` hands out a call's arguments while they are written, in the model's own words; a call that then breaks off, or
turns out to be no valid JSON after all, stays a call, as far as it was written. Where calls are `certain`, since a
grammar has seen to their form, one ends where its JSON does, whatever tags its strings quote.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from comem_jax.chat import parse_reply
from serving.braces import Braces

THINK, THINK_END = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
# The beginning of a call up to its arguments, where these begin as a JSON object does.
HEAD = re.compile(r'<tool_call>\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{\s*["}])')


@dataclass(frozen=True)
class CallPiece:
    """A stretch of a tool call: the tool's name where it begins (else None), and JSON text of its arguments."""

    name: str | None
    arguments: str


@dataclass(frozen=True)
class Piece:
    """What a stretch of generated text adds to the answer."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)

    def __add__(self, later: Piece) -> Piece:
        calls, more = self.calls, later.calls
        if calls and more and more[0].name is None:
            calls, more = (*calls[:-1], CallPiece(calls[-1].name, calls[-1].arguments + more[0].arguments)), more[1:]
        return Piece(self.content + later.content, self.reasoning + later.reasoning, calls + more)


class ReplyParser:
    """Splits generated text into reasoning, content and (where `tools`) tool calls, in pieces of any size."""

    def __init__(self, tools: bool, eager: bool = False, certain: bool = False, thinking: bool = False) -> None:
        self._tools = tools
        self._eager = eager or certain
        self._certain = certain
        self._state = self._think if thinking else self._start
        self._text = ""
        self._reasoning = _Stripped()
        self._content = _Stripped()
        self._braces = Braces()

    def push(self, text: str) -> Piece:
        """Return what is certain so far; a tool call comes whole, when its closing tag does, unless eager."""
        self._text += text
        whole = Piece()
        while (piece := self._state()) is not None:
            whole += piece
        return whole

    def finish(self) -> Piece:
        """Return what was held back, at the end of the answer; an unclosed tool call counts if it is valid JSON."""
        text, self._text = self._text, ""
        if self._state == self._call:
            return self._whole_call(text)
        if self._state == self._arguments:
            return self._more(text)
        if self._state == self._after_arguments:
            return Piece()
        return Piece(reasoning=self._reasoning.push(text)) if self._state == self._think else self._plain_text(text)

    # Each state takes what it can of the text and returns what that adds; None where it needs more text.

    def _start(self) -> Piece | None:
        text = self._text.lstrip()
        if text.startswith(THINK):
            self._state, self._text = self._think, text.removeprefix(THINK)
        elif THINK.startswith(text):
            return None
        else:
            self._state = self._plain
        return Piece()

    def _think(self) -> Piece | None:
        inside, closed = self._until(THINK_END)
        if closed:
            self._state = self._plain
        return Piece(reasoning=self._reasoning.push(inside)) if inside or closed else None

    def _plain(self) -> Piece | None:
        if not self._tools:
            text, self._text = self._text, ""
            return self._plain_text(text) if text else None
        before, opened = self._until(CALL)
        if opened:
            self._state, self._text = self._call, CALL + self._text
        return self._plain_text(before) if before or opened else None

    def _call(self) -> Piece | None:
        block, closed, rest = self._text.partition(CALL_END)
        if self._eager and (head := HEAD.match(block)) and (name := _string(head.group(1))) is not None:
            self._state = self._certain_arguments if self._certain else self._arguments
            self._text, self._braces = self._text[head.end() :], Braces()
            return Piece(calls=(CallPiece(name, ""),))
        if not closed:
            return None
        self._state, self._text = self._plain, rest
        return self._whole_call(block + closed)

    def _arguments(self) -> Piece | None:
        inside, closed = self._until(CALL_END)
        if not inside and not closed:
            return None
        piece = self._more(inside)
        if closed:
            self._state = self._plain
        elif self._braces.closed:
            self._state = self._after_arguments
        return piece

    def _certain_arguments(self) -> Piece | None:
        text, count = self._text, self._braces.take(self._text)
        self._text = text[count:]
        if self._braces.closed:
            self._state = self._after_arguments
        return Piece(calls=(CallPiece(None, text[:count]),)) if count else None

    def _after_arguments(self) -> Piece | None:
        _, closed = self._until(CALL_END)
        if closed:
            self._state = self._plain
        return Piece() if closed else None

    def _until(self, tag: str) -> tuple[str, bool]:
        """Take the text before a tag, and the tag if it is there; what may be its beginning is left."""
        inside, closed, rest = self._text.partition(tag)
        keep = 0 if closed else _overlap(inside, tag)
        self._text = rest if closed else inside[len(inside) - keep :]
        return inside[: len(inside) - keep], bool(closed)

    def _plain_text(self, text: str) -> Piece:
        return Piece(self._content.push(text))

    def _whole_call(self, block: str) -> Piece:
        calls = tuple(CallPiece(action.tool, action.arguments_json()) for action in parse_reply(block).actions)
        return Piece(calls=calls) if calls else self._plain_text(block)

    def _more(self, text: str) -> Piece:
        text = text[: self._braces.take(text)]
        return Piece(calls=(CallPiece(None, text),)) if text else Piece()


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


def _string(text: str) -> str | None:
    try:
        return str(json.loads(text))
    except ValueError:
        return None


def _overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of the text may be the beginning of the tag."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-size:])), 0)
