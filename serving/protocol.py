"""The OpenAI bodies: what a request may say, and the shape of an error.

A field we do not know is ignored where it cannot change the answer (`user`, `metadata`, a speed hint) and refused where
it would (`best_of`, `suffix`, …): an answer that silently is not what was asked for helps nobody.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from comem_jax.errors import nearest
from serving.body import Body
from serving.forms import Formed, NamedTool, Tool
from serving.grammar import Form
from serving.replies import CALL_END

MAX_TOP_LOGPROBS = 20
MAX_CHOICES = 128

# Fields of the OpenAI and vLLM protocols that change the answer, each with the values that leave it as it is.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "continue_final_message": (None, False),
    "echo": (None, False),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "guided_grammar": (None,),
    "modalities": (None, ["text"]),
    "suffix": (None, ""),
    "web_search_options": (None,),
}


class StreamOptions(Body):
    """What a stream carries besides the answer."""

    include_usage: bool = False


class Sampling(Formed):
    """The fields that chat and plain completions share."""

    model_config = ConfigDict(extra="allow")

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = {}
    min_tokens: int = Field(0, ge=0, lt=2**31)
    stop_token_ids: list[Annotated[int, Field(ge=0)]] = []
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    seed: int | None = None
    stop: list[str] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @field_validator("stop", mode="before", json_schema_input_type=str | list[str])
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("a stop string must not be empty")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _by_token_id(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            if not (name.isascii() and name.isdigit()):
                raise ValueError(f"{name!r} is no token id")
        return value

    @model_validator(mode="after")
    def _no_scores_in_a_stream(self) -> Sampling:
        if self.stream and self.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs is not available in a stream")
        return self

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Sampling:
        for name, value in (self.model_extra or {}).items():
            if name in UNSUPPORTED and value not in UNSUPPORTED[name]:
                raise ValueError(f"{name} is not supported by this server")
        return self


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"] = "text"
    text: str


class Message(Body):
    """One message of a chat; `tool_calls` and `tool_call_id` are as in the OpenAI protocol."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    reasoning_content: str | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @field_validator("content", mode="before", json_schema_input_type=str | list[TextPart] | None)
    @classmethod
    def _text_parts(cls, value: Any) -> Any:
        """Join a list of text parts; anything but text is refused."""
        if not isinstance(value, list):
            return value
        if any(not isinstance(part, dict) or not isinstance(part.get("text"), str) for part in value):
            raise ValueError("only parts of type text are supported in content")
        return "".join(part["text"] for part in value)

    def for_template(self) -> dict[str, Any]:
        """Return the message as chat templates read it."""
        message = self.model_dump(exclude_none=True)
        message["role"] = "system" if self.role == "developer" else self.role
        return message | {"content": self.content or ""}


class CalledFunction(Body):
    """The function of a tool call; `arguments` is JSON text."""

    name: str
    arguments: str = "{}"


class ToolCall(Body):
    """A tool call of an earlier assistant message."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatRequest(Sampling):
    """Body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: list[Tool] = []
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _logprobs_for_top(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @model_validator(mode="after")
    def _has_the_tools_it_wants(self) -> ChatRequest:
        names = [tool.function.name for tool in self.tools]
        if self.tool_choice not in ("none", "auto") and not names:
            raise ValueError("tool_choice asks for a call, and there are no tools")
        if isinstance(self.tool_choice, NamedTool) and (name := self.tool_choice.function.name) not in names:
            raise ValueError(f"tool_choice names {name!r}, which is none of the tools{nearest(name, names)}")
        return self

    def offered(self) -> list[Tool]:
        """Return the tools that the prompt tells of."""
        return [] if self.tool_choice == "none" else self.tools

    def form(self) -> Form | None:
        """Return the form of the answer, or None for any text and any calls.

        A call that is asked for comes first: the form of the text is for the answer that follows the tool's result.
        """
        forced = self.tool_choice not in ("none", "auto")
        text = None if forced else self.text_rule()
        if text is None and not forced:
            return None
        many = self.parallel_tool_calls and not isinstance(self.tool_choice, NamedTool)
        return Form(text, tuple(tool.rule() for tool in self._callable()), many)

    def stops(self) -> list[str]:
        """Return what ends an answer: what the request says and, where one call is enough, the end of a call."""
        one = self.offered() and not self.parallel_tool_calls
        return self.stop + ([CALL_END] if one and not self.form() else [])

    def _callable(self) -> list[Tool]:
        """Return the tools that the answer may call."""
        if isinstance(self.tool_choice, NamedTool):
            return [tool for tool in self.tools if tool.function.name == self.tool_choice.function.name][:1]
        return self.offered()

    def answers(self) -> int:
        """Return how many answers are asked for."""
        return self.n

    def limit(self) -> int | None:
        """Return the most tokens to generate, if the request says."""
        return self.max_completion_tokens or self.max_tokens

    def top(self) -> int | None:
        """Return how many alternatives to report for each token; None for no log-probabilities at all."""
        return self.top_logprobs if self.logprobs else None

    def score(self) -> int | None:
        """Return how many alternatives to find for each token of the prompt; None for no scores at all."""
        return self.prompt_logprobs


TokenIds = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)]


class CompletionRequest(Sampling):
    """Body of `POST /v1/completions`. `prompt` is a text or token ids, or a list of either.

    With `echo` the answer begins with the prompt, and its log-probabilities with the prompt's; `max_tokens` may then be
    0, so that the prompt alone is scored.
    """

    prompt: (
        str
        | TokenIds
        | Annotated[list[Annotated[str, Field(strict=True)]], Field(min_length=1)]
        | Annotated[list[TokenIds], Field(min_length=1)]
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: bool = False

    @field_validator("prompt", mode="wrap")
    @classmethod
    def _one_message(cls, value: Any, check: Any) -> Any:
        """Say one sentence where otherwise each of the four forms would have its own."""
        try:
            return check(value)
        except ValidationError:
            raise ValueError("must be a text or token ids, or a list of either, and not empty") from None

    @model_validator(mode="after")
    def _echo_fits(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens must be at least 1 without echo")
        if self.echo and self.stream:
            raise ValueError("echo is not available in a stream")
        return self

    def form(self) -> Form | None:
        """Return the form of the answer, or None for any text."""
        return None if (rule := self.text_rule()) is None else Form(rule, reasons=False)

    def stops(self) -> list[str]:
        """Return what ends an answer."""
        return self.stop

    def answers(self) -> int:
        """Return how many answers are asked for."""
        return self.n * len(self.prompts())

    def limit(self) -> int:
        """Return the most tokens to generate: 16 where the request does not say, as OpenAI has it."""
        return 16 if self.max_tokens is None else self.max_tokens

    def top(self) -> int | None:
        """Return how many alternatives to report for each token; None for no log-probabilities at all."""
        return self.logprobs

    def echo_top(self) -> int | None:
        """Return how many alternatives to report for each echoed token; None for no log-probabilities at all."""
        return self.logprobs if self.echo else None

    def score(self) -> int | None:
        """Return how many alternatives to find for each token of the prompt; None for no scores at all."""
        asked = [top for top in (self.prompt_logprobs, self.echo_top()) if top is not None]
        return max(asked, default=None)

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)
