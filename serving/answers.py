"""OpenAI answers, whole and streamed, from what the scheduler hands out."""

from __future__ import annotations

import copy
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from comem_jax.actions import Action
from serving.jobs import Output
from serving.replies import CallPiece, Piece, ReplyParser
from serving.scores import ScoredPrompt
from serving.text import TokenBytes

Json = dict[str, Any]


@dataclass
class Part:
    """What one output adds to a choice: a piece of the reply, the log-probabilities of its tokens, its tool calls."""

    piece: Piece
    logprobs: list[Json]
    first: bool
    calls: list[Json]

    def __bool__(self) -> bool:
        return bool(self.piece or self.logprobs)


@dataclass
class Choice:
    """One answer under way: what has come of it so far. `parser` is None where text is not looked into."""

    index: int
    parser: ReplyParser | None = None
    content: str = ""
    reasoning: str = ""
    calls: list[Json] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)
    tokens: int = 0
    cached: int = 0
    finish: str | None = None
    echoed: list[Json] = field(default_factory=list)
    prompt_logprobs: list[Json | None] | None = None

    def take(self, output: Output, tokens: TokenBytes) -> Part:
        """Add an output, and return what it adds."""
        piece = Piece(output.text) if self.parser is None else _parse(self.parser, output)
        part = Part(piece, _entries(output, tokens), self.tokens == 0, [self._add(one) for one in piece.calls])
        self.content += piece.content
        self.reasoning += piece.reasoning
        self.logprobs += part.logprobs
        self.tokens += output.tokens
        self.cached = output.cached
        self.finish = "tool_calls" if self.calls and output.finish == "stop" else output.finish
        return part

    def _add(self, piece: CallPiece) -> Json:
        """Add a stretch of a tool call, and return it as a stream tells it: all of the call's head comes first."""
        if piece.name is None:
            self.calls[-1]["function"]["arguments"] += piece.arguments
            return {"index": len(self.calls) - 1, "function": {"arguments": piece.arguments}}
        call = Action(piece.name, raw=piece.arguments).to_call(f"call_{uuid.uuid4().hex[:24]}")
        self.calls.append(call)
        return {"index": len(self.calls) - 1} | copy.deepcopy(call)


class ChatForm:
    """Choices of `/v1/chat/completions`; `tools` says whether tool calls are read out of the text.

    `eager` is for streams: the arguments of a call come in pieces, while they are written. With `prompt_top` the
    prompt's tokens are told with their log-probabilities, and so many alternatives. Calls are `certain` where a grammar
    has seen to them; one that breaks off is told as far as it was written. With `thinking` the prompt has opened the
    block of reasoning itself.
    """

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(
        self,
        tools: bool = False,
        prompt_top: int | None = None,
        *,
        eager: bool = False,
        certain: bool = False,
        thinking: bool = False,
    ) -> None:
        self._new_parser = partial(ReplyParser, tools, eager, certain, thinking)
        self._prompt_top = prompt_top

    def new_choice(self, index: int) -> Choice:
        """Return an empty choice."""
        return Choice(index, self._new_parser())

    def take_prompt(self, choices: list[Choice], prompt: ScoredPrompt, tokens: TokenBytes) -> None:
        """Give the choices of a prompt its scores."""
        _give_prompt_logprobs(choices, prompt, tokens, self._prompt_top)

    def beside(self, choices: list[Choice]) -> Json:
        """Return what a finished answer says beside its choices: here the prompt's log-probabilities, as vLLM does."""
        return {} if self._prompt_top is None else {"prompt_logprobs": choices[0].prompt_logprobs}

    def delta(self, choice: Choice, part: Part) -> Json:
        """Return a choice of a streamed chunk."""
        delta: Json = {"role": "assistant", "content": ""} if part.first else {}
        if part.piece.content:
            delta["content"] = part.piece.content
        if part.piece.reasoning:
            delta["reasoning_content"] = part.piece.reasoning
        if part.calls:
            delta["tool_calls"] = part.calls
        return _choice(choice, "delta", delta, _chat_logprobs(part.logprobs))

    def whole(self, choice: Choice) -> Json:
        """Return the choice of a finished answer."""
        message: Json = {"role": "assistant", "content": choice.content, "refusal": None}
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message |= {"content": choice.content or None, "tool_calls": choice.calls}
        return _choice(choice, "message", message, _chat_logprobs(choice.logprobs))


class TextForm:
    """Choices of `/v1/completions`; `echo` has a text for each of them to begin with, if any.

    `echo_top` and `prompt_top` ask for the log-probabilities of the prompt's tokens, with so many alternatives: in
    OpenAI's form, before those of the answer, and in vLLM's.
    """

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, echo: Sequence[str] = (), echo_top: int | None = None, prompt_top: int | None = None) -> None:
        self._echo = echo
        self._echo_top = echo_top
        self._prompt_top = prompt_top

    def new_choice(self, index: int) -> Choice:
        """Return a choice that has nothing but the echo."""
        return Choice(index, content=self._echo[index] if self._echo else "")

    def take_prompt(self, choices: list[Choice], prompt: ScoredPrompt, tokens: TokenBytes) -> None:
        """Give the choices of a prompt its scores."""
        _give_prompt_logprobs(choices, prompt, tokens, self._prompt_top)
        if self._echo_top is not None:
            entries = prompt.as_entries(tokens, self._echo_top)
            for choice in choices:
                choice.echoed = entries

    def beside(self, choices: list[Choice]) -> Json:
        """Return what a finished answer says beside its choices: nothing."""
        return {}

    def delta(self, choice: Choice, part: Part) -> Json:
        """Return a choice of a streamed chunk."""
        earlier = choice.logprobs[: len(choice.logprobs) - len(part.logprobs)]
        offset = sum(len(entry["token"]) for entry in earlier)
        return _choice(choice, "text", part.piece.content, _text_logprobs(part.logprobs, offset))

    def whole(self, choice: Choice) -> Json:
        """Return the choice of a finished answer."""
        whole = _choice(choice, "text", choice.content, _text_logprobs([*choice.echoed, *choice.logprobs], 0))
        return whole if self._prompt_top is None else whole | {"prompt_logprobs": choice.prompt_logprobs}


class Answer:
    """The answer to one HTTP request: its choices, `per_prompt` of them for each prompt in turn, and its usage."""

    def __init__(self, form: ChatForm | TextForm, model: str, prompts: list[int], per_prompt: int) -> None:
        self._form = form
        self._prompts = prompts  # their lengths in tokens
        self._per_prompt = per_prompt
        self._head = {"id": f"{form.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._choices = [form.new_choice(index) for index in range(len(prompts) * per_prompt)]

    def take(self, index: int, output: Output, tokens: TokenBytes) -> Json | None:
        """Add an output to a choice; returns the streamed chunk, or None where there is nothing to say yet."""
        choice = self._choices[index]
        if output.prompt is not None:
            first = index - index % self._per_prompt
            self._form.take_prompt(self._choices[first : first + self._per_prompt], output.prompt, tokens)
        part = choice.take(output, tokens)
        if not part and not part.first and not output.last:
            return None
        return self._chunk([self._form.delta(choice, part)])

    def whole(self) -> Json:
        """Return the finished answer."""
        choices = [self._form.whole(choice) for choice in self._choices]
        beside = self._form.beside(self._choices)
        return self._head | {"object": self._form.kind, "choices": choices, "usage": self.usage()} | beside

    def usage_chunk(self) -> Json:
        """Return the last chunk of a stream that includes its usage."""
        return self._chunk([]) | {"usage": self.usage()}

    def usage(self) -> Json:
        """Return the tokens used; a prompt counts once, as it was found for the first of its choices."""
        prompt, completion = sum(self._prompts), sum(choice.tokens for choice in self._choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(one.cached for one in self._choices[:: self._per_prompt])},
        }

    def _chunk(self, choices: list[Json]) -> Json:
        return self._head | {"object": self._form.chunk_kind, "choices": choices}


def _parse(parser: ReplyParser, output: Output) -> Piece:
    piece = parser.push(output.text)
    return piece + parser.finish() if output.last else piece


def _choice(choice: Choice, key: str, value: Any, logprobs: Json | None) -> Json:
    return {"index": choice.index, key: value, "logprobs": logprobs, "finish_reason": choice.finish}


def _give_prompt_logprobs(choices: list[Choice], prompt: ScoredPrompt, tokens: TokenBytes, top: int | None) -> None:
    if top is not None:
        written = prompt.in_vllm_form(tokens, top)
        for choice in choices:
            choice.prompt_logprobs = written


def _entries(output: Output, tokens: TokenBytes) -> list[Json]:
    def entry(token: int, logprob: float) -> Json:
        name = tokens.name_of(token)
        return {"token": name.decode(errors="replace"), "logprob": logprob, "bytes": list(name)}

    return [
        entry(token, logprob) | {"top_logprobs": [entry(*one) for one in top]}
        for token, logprob, top in zip(output.ids, output.logprobs, output.top, strict=True)
    ]


def _chat_logprobs(entries: list[Json]) -> Json | None:
    return {"content": entries, "refusal": None} if entries else None


def _text_logprobs(entries: list[Json], offset: int) -> Json | None:
    if not entries:
        return None
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [_named(entry["top_logprobs"]) for entry in entries],
        "text_offset": offsets,
    }


def _named(top: list[Json] | None) -> Json | None:
    """Return the most probable tokens by their text; of those that look the same (half characters) the likeliest."""
    return None if top is None else {one["token"]: one["logprob"] for one in reversed(top)}
