from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comem_jax.chat import parse_reply
from serving.replies import CallPiece, Piece, ReplyParser

CALL = '<tool_call>\n{"name": "view", "arguments": {"path": "a.py", "lines": [1, 2]}}\n</tool_call>'
BROKEN = '<tool_call>{"name": "view", "arguments": {"path": "a</tool_call>'
JSON = st.recursive(st.none() | st.integers() | st.text('{}[]"\\a<', max_size=5), lambda one: st.lists(one, max_size=3))
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


def parsed(text: str, cuts: list[int], tools: bool = True, eager: bool = False) -> Piece:
    parser = ReplyParser(tools, eager)
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return sum((parser.push(text[a:b]) for a, b in pairwise(bounds)), Piece()) + parser.finish()


def called(piece: Piece) -> list[tuple[str | None, object]]:
    return [(call.name, json.loads(call.arguments)) for call in piece.calls]


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
    assert (piece.content, piece.reasoning) == (reply.content, reply.reasoning)
    assert called(piece) == [(action.tool, action.arguments) for action in reply.actions]


@given(
    parts=st.lists(st.sampled_from((*PARTS, BROKEN, CALL[:-30], CALL[:20])), max_size=8),
    cuts=st.lists(st.integers(0, 300), max_size=10),
)
def test_eager_pieces_do_not_depend_on_the_cuts(parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    assert parsed(text, cuts, eager=True) == parsed(text, [], eager=True)


@given(
    arguments=st.dictionaries(st.text(max_size=6), JSON, max_size=4),
    cuts=st.lists(st.integers(0, 300), max_size=20),
    escaped=st.booleans(),
)
def test_eager_arguments_are_those_that_were_written(arguments: dict, cuts: list[int], escaped: bool) -> None:
    written = json.dumps(arguments, ensure_ascii=escaped)
    text = f'one <tool_call>{{"name": "a b", "arguments": {written}}}</tool_call> two'
    piece = parsed(text, cuts, eager="</tool_call>" not in written)
    assert (piece.content, [(call.name, call.arguments) for call in piece.calls]) == ("one  two", [("a b", written)])


@given(
    arguments=st.dictionaries(st.text(max_size=6) | st.just("</tool_call>"), JSON | st.just(CALL), max_size=4),
    cuts=st.lists(st.integers(0, 300), max_size=20),
)
def test_certain_arguments_may_quote_tags(arguments: dict, cuts: list[int]) -> None:
    written = json.dumps(arguments)
    text = "\n".join([f'<tool_call>\n{{"name": "view", "arguments": {written}}}\n</tool_call>'] * 2)
    parser = ReplyParser(tools=True, certain=True)
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    piece = sum((parser.push(text[a:b]) for a, b in pairwise(bounds)), Piece()) + parser.finish()
    assert (piece.content, piece.calls) == ("", (CallPiece("view", written),) * 2)


def test_eager_arguments_come_while_they_are_written() -> None:
    parser = ReplyParser(tools=True, eager=True)
    assert not parser.push('<tool_call>\n{"name": "view", "arguments": {')
    assert parser.push('"path": "a').calls == (CallPiece("view", '{"path": "a'),)
    assert parser.push('.py", "deep": {"}": "\\"}"}').calls == (CallPiece(None, '.py", "deep": {"}": "\\"}"}'),)
    assert parser.push("}").calls == (CallPiece(None, "}"),)
    assert not parser.push("}\n</tool_call>")
    assert not parser.finish()


@pytest.mark.parametrize("inside", ["no JSON", '{"name": "view"', "{'name': 'view', 'arguments': {}}", '{"name": 3}'])
def test_eager_or_not_what_is_no_call_stays_text(inside: str) -> None:
    text = f"<tool_call>{inside}</tool_call>"
    for eager in (True, False):
        assert parsed(text, [5, 20], eager=eager) == Piece(text)


def test_an_eager_call_that_breaks_off_stays_a_call() -> None:
    assert parsed(CALL[:60], [5, 50], eager=True).calls == (CallPiece("view", CALL[42:60]),)
    assert parsed(BROKEN + " more", [50, 55], eager=True) == Piece("more", calls=(CallPiece("view", '{"path": "a'),))


def test_text_before_a_call_comes_at_once_and_the_call_when_it_is_closed() -> None:
    parser = ReplyParser(tools=True)
    assert parser.push("Let me look.\n").content == "Let me look."
    assert not parser.push(CALL[:-1])
    assert [call.name for call in parser.push(CALL[-1]).calls] == ["view"]


def test_reasoning_is_streamed_and_stays_reasoning_when_cut_off() -> None:
    parser = ReplyParser(tools=True)
    assert parser.push("<think>first ").reasoning == "first"
    assert parser.push("second </thi").reasoning == " second"
    assert parser.finish().reasoning == " </thi"


@pytest.mark.parametrize("cut", [0, 3, 8, 12])
def test_reasoning_that_the_prompt_has_opened(cut: int) -> None:
    parser, text = ReplyParser(tools=False, thinking=True), "so\n</think>\nyes"
    whole = parser.push(text[:cut]) + parser.push(text[cut:]) + parser.finish()
    assert (whole.reasoning, whole.content) == ("so", "yes")


def test_without_tools_a_call_is_text() -> None:
    piece = parsed(f"a {CALL}", random.Random(0).sample(range(80), 5), tools=False)
    assert piece.content == f"a {CALL}"
    assert not piece.calls


def test_a_call_cut_off_counts_if_it_is_complete_json_and_is_text_otherwise() -> None:
    assert [call.name for call in parsed(CALL.removesuffix("</tool_call>"), [3, 30]).calls] == ["view"]
    assert parsed(CALL[:40], [3, 30]).content == CALL[:40]
