"""What a form allows, token by token."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from comem_jax.errors import UserError
from serving.grammar import Form, Grammars, Guide, choice_rule, json_rule, pattern_rule

VOCABULARY = 400  # more than the tokenizer has, as with a padded head
POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}
NAMED = {"type": "object", "properties": {"s": {"type": "string"}}, "required": ["s"], "additionalProperties": False}
CALL = '<tool_call>\n{"name": "a \\"b", "arguments": {"x": 12}}\n</tool_call>'


class Walk:
    """A text on its way through a form."""

    def __init__(self, form: Form, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ends = {tokenizer.token_to_id(name) for name in ("<|im_end|>", "<|endoftext|>")}
        self.guide: Guide = Grammars(tokenizer, VOCABULARY, sorted(self.ends)).compile(form).begin()

    def allowed(self, ends: bool = True) -> set[int]:
        bits = np.zeros(-(-VOCABULARY // 32), np.int32)
        self.guide.fill(bits, ends)
        return set(np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist())

    def write(self, text: str) -> bool:
        """Write a text; whether each of its tokens was allowed in its turn."""
        for token in self.tokenizer.encode(text, add_special_tokens=False).ids:
            if token not in self.allowed():
                return False
            self.guide.take([token])
        return True

    @property
    def complete(self) -> bool:
        return bool(self.ends & self.allowed())


@pytest.fixture(scope="module")
def thinking(tokenizer: Tokenizer) -> Iterator[Tokenizer]:
    other = Tokenizer.from_str(tokenizer.to_str())
    other.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>")])
    yield other


def test_an_end_is_allowed_where_the_json_is_complete_and_nothing_but_ends_then(tokenizer: Tokenizer) -> None:
    walk = Walk(Form(json_rule(POINT)), tokenizer)
    for piece in ("{", '"x"', ": ", "1", "2"):
        assert walk.write(piece)
        assert not walk.complete
    assert walk.write("}")
    assert walk.allowed() == walk.allowed(ends=False) == walk.ends
    walk.guide.take([max(walk.ends)])
    assert walk.allowed() == walk.ends


def test_ends_may_be_left_out_where_the_text_can_go_on(tokenizer: Tokenizer) -> None:
    walk = Walk(Form(pattern_rule("a+")), tokenizer)
    assert walk.write("a")
    assert walk.complete
    assert walk.allowed(ends=False) == walk.allowed() - walk.ends != set()


@pytest.mark.parametrize("text", ['{"y', '{"x": "', '{"x": 1, ', "[", " {", '{\n\n"x"', '{"x":' + " " * 2])
def test_what_does_not_fit_is_not_allowed(tokenizer: Tokenizer, text: str) -> None:
    assert not Walk(Form(json_rule(POINT)), tokenizer).write(text)


def test_json_may_be_indented(tokenizer: Tokenizer) -> None:
    walk = Walk(Form(json_rule(POINT)), tokenizer)
    assert walk.write(json.dumps({"x": -7}, indent=4)) and walk.complete


def test_no_added_token_and_no_id_without_a_token_stands_in_a_string(tokenizer: Tokenizer) -> None:
    walk = Walk(Form(json_rule(NAMED)), tokenizer)
    assert walk.write('{"s": "')
    plain = set(range(tokenizer.get_vocab_size())) - set(tokenizer.get_added_tokens_decoder())
    assert len(walk.allowed()) > 200
    assert walk.allowed() <= plain


@pytest.mark.parametrize("form", [Form(choice_rule(["red", "re/d\n", "é"])), Form(pattern_rule("red|re/d\n|é"))])
def test_a_choice_and_a_pattern(tokenizer: Tokenizer, form: Form) -> None:
    for text, right in (("red", True), ("re/d\n", True), ("é", True), ("re", False), ("d", False)):
        walk = Walk(form, tokenizer)
        assert (walk.write(text) and walk.complete) == right


def test_a_call_has_a_tools_name_its_arguments_and_the_tags_own_tokens(tokenizer: Tokenizer) -> None:
    form = Form(tools=(("a", json_rule(NAMED)), ('a "b', json_rule(POINT))))
    walk = Walk(form, tokenizer)
    assert walk.allowed() == {tokenizer.token_to_id("<tool_call>")}
    assert walk.write(CALL.removesuffix("</tool_call>"))
    assert walk.allowed() == {tokenizer.token_to_id("</tool_call>")}
    assert walk.write("</tool_call>") and walk.allowed() == walk.ends
    assert not Walk(form, tokenizer).write('<tool_call>\n{"name": "a", "arguments": {"x"')
    assert not Walk(form, tokenizer).write('<tool_call>\n{"name": "c"')


def test_several_calls_only_where_they_may_follow(tokenizer: Tokenizer) -> None:
    for many in (True, False):
        walk = Walk(Form(tools=(('a "b', json_rule(POINT)),), many=many), tokenizer)
        assert walk.write(CALL) and walk.complete
        assert (walk.write("\n" + CALL) and walk.complete) == many


def test_a_text_or_a_call_where_both_may_be(tokenizer: Tokenizer) -> None:
    form = Form(json_rule(NAMED), (('a "b', json_rule(POINT)),))
    for text in ('{"s": "é"}', CALL):
        walk = Walk(form, tokenizer)
        assert walk.write(text) and walk.complete


def test_each_tools_references_are_its_own(tokenizer: Tokenizer) -> None:
    def tool(values: list[str]) -> str:
        return json_rule(
            {"type": "object", "properties": {"v": {"$ref": "#/$defs/V"}}, "$defs": {"V": {"enum": values}}}
        )

    form = Form(tools=(("a", tool(["one"])), ("b", tool(["two"]))))
    assert Walk(form, tokenizer).write('<tool_call>\n{"name": "a", "arguments": {"v": "one"}}\n</tool_call>')
    assert Walk(form, tokenizer).write('<tool_call>\n{"name": "b", "arguments": {"v": "two"}}\n</tool_call>')
    assert not Walk(form, tokenizer).write('<tool_call>\n{"name": "b", "arguments": {"v": "o')


def test_a_model_with_tokens_for_reasoning_may_reason_first(tokenizer: Tokenizer, thinking: Tokenizer) -> None:
    form = Form(json_rule(POINT))
    walk = Walk(form, thinking)
    assert walk.write('<think>\n{"no": [form], 日本\n\n')
    assert not walk.complete
    assert walk.write('</think>\n\n{"x": 3}') and walk.allowed() == walk.ends
    assert Walk(form, thinking).write('<think></think>{"x": 3}')
    assert Walk(form, thinking).write('{"x": 3}')
    assert not Walk(form, thinking).write('<think>a</think>{"y"')
    assert not Walk(Form(json_rule(POINT), reasons=False), thinking).write("<think>")
    assert not Walk(form, tokenizer).write("<think>")


def test_answers_of_one_form_go_their_own_ways(tokenizer: Tokenizer) -> None:
    grammars = Grammars(tokenizer, VOCABULARY, [0, 2])
    walks = [Walk(Form(choice_rule(["ab", "cd"])), tokenizer) for _ in range(2)]
    grammar = grammars.compile(Form(choice_rule(["ab", "cd"])))
    assert grammars.compile(Form(choice_rule(["ab", "cd"]))) is grammar
    for walk, text in zip(walks, ("ab", "cd")):
        walk.guide = grammar.begin()
        assert walk.write(text[0])
    for walk, text in zip(walks, ("ab", "cd")):
        assert walk.write(text[1]) and walk.complete


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (json_rule({"type": "strung"}), "strung"),
        (json_rule({"not": {"type": "string"}}), "not"),
        (json_rule({"type": "string", "format": "colour"}), "colour"),
        (json_rule({"$ref": "#/$defs/none"}), "none"),
        (json_rule({"$ref": "#"}), "no text fits it"),
        (json_rule({"allOf": [{"type": "string"}, {"type": "integer"}]}), "type"),
        (pattern_rule("(?=look)a"), "look-around.* not supported"),
        (pattern_rule("(open"), "unclosed group"),
    ],
)
def test_a_form_that_cannot_be_kept_is_said_in_a_sentence(tokenizer: Tokenizer, rule: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        Grammars(tokenizer, VOCABULARY, [0, 2]).compile(Form(rule))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
