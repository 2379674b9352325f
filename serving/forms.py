"""What a request says of the form of its answer, in OpenAI's words and in vLLM's."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from serving.body import Body
from serving.grammar import choice_rule, json_rule, pattern_rule

ANY_OBJECT = {"type": "object"}


def _read(value: Any) -> Any:
    """Read a schema that is given as JSON text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("must be a JSON schema, as an object or as the text of one") from None


Schema = Annotated[dict[str, Any], BeforeValidator(_read, json_schema_input_type=dict[str, Any] | str)]
Choices = Annotated[list[str], Field(min_length=1)]


class JsonSchema(Body):
    """The schema of a `response_format`; answers keep to it whether it is `strict` or not."""

    schema_: dict[str, Any] = Field(alias="schema")
    name: str | None = None
    strict: bool = False


class ResponseFormat(Body):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("a response_format has a json_schema where its type is json_schema, and there alone")
        return self

    def rule(self) -> str | None:
        """Return the rule of the answer's text; None where it may be any."""
        if self.json_schema is not None:
            return json_rule(self.json_schema.schema_)
        return json_rule(ANY_OBJECT) if self.type == "json_object" else None


class StructuredOutputs(Body):
    """The `structured_outputs` of vLLM; one of its fields at a time."""

    model_config = ConfigDict(extra="forbid")

    json_: Schema | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    json_object: bool = False

    def rules(self) -> list[str]:
        """Return the rules that its fields make of the answer's text."""
        schemas = [schema for schema in (self.json_, ANY_OBJECT if self.json_object else None) if schema is not None]
        rules = [json_rule(schema) for schema in schemas]
        rules += [] if self.regex is None else [pattern_rule(self.regex)]
        return rules + ([] if self.choice is None else [choice_rule(self.choice)])


class Formed(Body):
    """The fields that give an answer's text its form; one of them at a time."""

    response_format: ResponseFormat = ResponseFormat()
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Formed:
        if len(self._rules()) > 1:
            raise ValueError("an answer has one form: give one of response_format, structured_outputs and guided_…")
        return self

    def text_rule(self) -> str | None:
        """Return the rule of the answer's text; None where it may be any."""
        return next(iter(self._rules()), None)

    def _rules(self) -> list[str]:
        fields = {"json": self.guided_json, "regex": self.guided_regex, "choice": self.guided_choice}
        said = [StructuredOutputs.model_validate(fields), self.structured_outputs]
        rules = [rule for outputs in said if outputs is not None for rule in outputs.rules()]
        return rules + ([] if (rule := self.response_format.rule()) is None else [rule])


class FunctionSchema(Body):
    """A tool's name, description and JSON schema."""

    model_config = ConfigDict(extra="allow")

    name: str
    parameters: dict[str, Any] = {}


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionSchema

    def rule(self) -> tuple[str, str]:
        """Return its name and the rule of its arguments, which are an object whatever the schema says."""
        return self.function.name, json_rule(self.function.parameters | ANY_OBJECT)


class NamedFunction(Body):
    """The function that a `tool_choice` names."""

    name: str


class NamedTool(Body):
    """A `tool_choice` that names the tool to call."""

    type: Literal["function"]
    function: NamedFunction
