from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from comem_jax.chat import parse_reply
from serving.replies import Piece, ReplyParser

CALL = '<tool_call>\n{"name": "view", "arguments": {"path": "a.py", "lines": [1, 2]}}\n</tool_call>'
PARTS = (
    " ",
    "\n",
    "text",
    "<",
    "<tool",
    "<tool_call>",
    "</tool_call>",
    CALL,
    '{"name": "x"}',
    "</think>",
    "<think",
    "é",
)


def parsed(text: str, cuts: list[int], tools: bool = True) -> Piece:
    parser, whole = ReplyParser(tools), Piece()
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    pieces = [parser.push(text[a:b]) for a, b in pairwise(bounds)]
    for piece in [*pieces, parser.finish()]:
        whole = Piece(whole.content + piece.content, whole.reasoning + piece.reasoning, whole.actions + piece.actions)
    return whole


@given(
    parts=st.lists(st.sampled_from(PARTS), max_size=12),
    thought=st.none() | st.text(" \nab<", max_size=6),
    cuts=st.lists(st.integers(0, 200), max_size=10),
)
def test_a_reply_in_pieces_is_the_whole_reply(parts: list[str], thought: str | None, cuts: list[int]) -> None:
    text = ("" if thought is None else f"<think>{thought}</think>") + "".join(parts)
    if thought is None and text.lstrip().startswith("<think>"):
        return
    reply, piece = parse_reply(text), parsed(text, cuts)
    assert (piece.content, piece.reasoning, piece.actions) == (reply.content, reply.reasoning, reply.actions)


def test_text_before_a_call_comes_at_once_and_the_call_when_it_is_closed() -> None:
    parser = ReplyParser(tools=True)
    assert parser.push("Let me look.\n").content == "Let me look."
    assert not parser.push(CALL[:-1])
    assert [action.tool for action in parser.push(CALL[-1]).actions] == ["view"]


def test_reasoning_is_streamed_and_stays_reasoning_when_cut_off() -> None:
    parser = ReplyParser(tools=True)
    assert parser.push("<think>first ").reasoning == "first"
    assert parser.push("second </thi").reasoning == " second"
    assert parser.finish().reasoning == " </thi"


def test_without_tools_a_call_is_text() -> None:
    piece = parsed(f"a {CALL}", random.Random(0).sample(range(80), 5), tools=False)
    assert piece.content == f"a {CALL}"
    assert not piece.actions


def test_a_call_cut_off_counts_if_it_is_complete_json_and_is_text_otherwise() -> None:
    assert [action.tool for action in parsed(CALL.removesuffix("</tool_call>"), [3, 30]).actions] == ["view"]
    assert parsed(CALL[:40], [3, 30]).content == CALL[:40]
