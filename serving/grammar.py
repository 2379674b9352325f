"""Answers of a given form: JSON that fits a schema, text that fits a pattern, calls of given tools.

A form is written as a grammar for llguidance, which says after every token which ones may follow; an end token may
where the form is complete. A model whose vocabulary has the tokens `<think>` and `</think>` may begin with reasoning,
in any words, and the form holds from `</think>` on. A prompt that has opened a `<think>` itself is not looked into: the
form holds from the answer's first token on, as for a model that does not reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from llguidance.numpy import fill_next_token_bitmask
from tokenizers import Tokenizer

from comem_jax.errors import UserError
from serving.replies import CALL, CALL_END, THINK, THINK_END

KEPT = 64  # compiled forms
# One blank, or a new line and its indentation, wherever JSON allows white space: without a bound, a model may go on
# with it for ever.
WHITE_SPACE = r"[ ]|\n[ ]{0,16}"
PLACE = re.compile(r"^at \d+\(\d+\): ")
THOUGHT, GAP = "/(?s:.+)/", r"/\n{1,2}/"


@dataclass(frozen=True)
class Form:
    """What an answer is to be: `content`, or calls of `tools`, whichever the model takes where there are both.

    `content` and the arguments beside each tool's name are rules (see `json_rule`); `many` lets one call follow
    another, `reasons` lets reasoning come first.
    """

    content: str | None = None
    tools: tuple[tuple[str, str], ...] = ()
    many: bool = False
    reasons: bool = True


def json_rule(schema: dict[str, Any]) -> str:
    """Return the rule of JSON that fits a schema; `properties` come in their order."""
    return "%json " + json.dumps(schema | {"x-guidance": {"whitespace_pattern": WHITE_SPACE}})


def pattern_rule(pattern: str) -> str:
    """Return the rule of a text that a regular expression (of Rust's kind, without look-around) matches as a whole."""
    return f"/{regex_to_lark(pattern)}/"


def choice_rule(choices: Sequence[str]) -> str:
    """Return the rule of one of some texts."""
    return " | ".join(json.dumps(one) for one in choices)


class Grammar:
    """A compiled form; every answer of it goes its own way through it."""

    def __init__(self, matcher: LLMatcher, ends: np.ndarray) -> None:
        self._matcher = matcher
        self._ends = ends

    def begin(self) -> Guide:
        """Return the beginning of an answer."""
        return Guide(self._matcher.deep_copy(), self._ends)


class Guide:
    """How far one answer is in its form."""

    def __init__(self, matcher: LLMatcher, ends: np.ndarray) -> None:
        self._matcher = matcher
        self._ends = ends

    def take(self, tokens: Sequence[int]) -> None:
        """Go on by tokens that were allowed; what follows the end of the form (`ignore_eos`) changes nothing."""
        for token in tokens:
            if not self._matcher.is_stopped():
                self._matcher.consume_token(token)

    def fill(self, bits: np.ndarray, ends: bool = True) -> None:
        """Set the bits of the tokens that may come next, and no others, in int32 `[vocabulary / 32]`.

        Without `ends` the tokens that end the answer are left out, unless nothing else may come. Raises `RuntimeError`
        where the form has become too complex to follow.
        """
        fill_next_token_bitmask(self._matcher, bits[None])
        if self._matcher.is_error():
            raise RuntimeError(f"the form of the answer cannot be followed: {_sentence(self._matcher.get_error())}")
        if not ends and (others := bits & ~self._ends).any():
            bits[:] = others


class Grammars:
    """Compiles forms for one tokenizer and a model of `vocabulary` ids, `eos_ids` of which end an answer."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, eos_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._eos = list(eos_ids)
        self._ends = _bits(eos_ids, vocabulary)
        self.compile = lru_cache(KEPT)(self._compile)

    def warm_up(self) -> None:
        """Make ready what every form needs, so that no request waits for it: a second for a large vocabulary."""
        assert self._tokens.vocab_size == self._vocabulary

    @cached_property
    def _tokens(self) -> LLTokenizer:
        return LLTokenizer(self._tokenizer.to_str(), n_vocab=self._vocabulary, eos_token=self._eos)

    def _compile(self, form: Form) -> Grammar:
        """Return a form's grammar. Raises `UserError` where llguidance cannot take it."""
        text = LLMatcher.grammar_from_lark(_written(form, self._tokenizer.token_to_id))
        matcher = LLMatcher(self._tokens, text, log_level=0, limits=LLParserLimits(verbose_errors=False))
        begun = matcher.deep_copy()
        begun.compute_bitmask()  # an endless reference shows itself here
        if begun.is_error():
            reason = _sentence(matcher.get_error() or "no text fits it")
            raise UserError(f"An answer of this form cannot be given: {reason}")
        return Grammar(matcher, self._ends)


def _written(form: Form, token_id: Callable[[str], int | None]) -> str:
    """Return a form as a Lark grammar, in which the vocabulary's own tokens stand for the tags of calls and reasoning.

    Reasoning needs such tokens: without them the model was never taught to reason.
    """
    reasons = form.reasons and None not in (token_id(THINK), token_id(THINK_END))
    rules = {"start": "reasoning? answer" if reasons else "answer"}
    rules["answer"] = " | ".join(["content"] * (form.content is not None) + ["calls"] * bool(form.tools))
    if reasons:
        rules["reasoning"] = f"{_tag(THINK, token_id)} THOUGHT? {_tag(THINK_END, token_id)} GAP?"
        rules |= {"THOUGHT": THOUGHT, "GAP": GAP}
    if form.content is not None:
        rules["content"] = form.content
    if form.tools:
        rules |= _calls(form, token_id)
    return "\n".join(f"{name}: {rule}" for name, rule in rules.items())


def _calls(form: Form, token_id: Callable[[str], int | None]) -> dict[str, str]:
    """Return the rules of one call or several; each tool's schema stands alone, so that its `$defs` are its own."""
    begin, end, line = _tag(CALL, token_id), _tag(CALL_END, token_id), json.dumps("\n")
    rules = {"calls": f"call ({line} call)*" if form.many else "call"}
    rules["call"] = f"{begin} {line} ({' | '.join(f'call_{n}' for n in range(len(form.tools)))}) {line} {end}"
    for number, (name, arguments) in enumerate(form.tools):
        head = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
        rules[f"call_{number}"] = f'{json.dumps(head)} arguments_{number} "}}"'
        rules[f"arguments_{number}"] = arguments
    return rules


def _tag(text: str, token_id: Callable[[str], int | None]) -> str:
    number = token_id(text)
    return json.dumps(text) if number is None else f"<[{number}]>"


def _bits(ids: Sequence[int], vocabulary: int) -> np.ndarray:
    """Return int32 `[vocabulary / 32]` with the bits of some ids set."""
    bits = np.zeros(-(-vocabulary // 32) * 32, np.uint8)
    bits[list(ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def _sentence(message: str) -> str:
    """Return what llguidance says of an error in one line, without the grammar and the place in it."""
    lines = message.strip().split("\n")
    reason = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    return f"{PLACE.sub('', lines[0])} {reason}".strip(" .") + "."
