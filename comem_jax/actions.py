"""An agent's action: one tool with its arguments."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Action:
    """One tool call. `arguments` maps argument names to JSON values; `raw` is the JSON text the model wrote, if any.

    `raw` is kept so that the history is rendered with the very tokens the model produced (and its prefix cache holds).
    """

    tool: str
    arguments: dict[str, Any] = field(default_factory=dict)
    raw: str | None = field(default=None, compare=False)

    def arguments_json(self) -> str:
        """Return the arguments as JSON text, exactly as the model wrote them where that is known."""
        return self.raw if self.raw is not None else json.dumps(self.arguments, ensure_ascii=False)

    @classmethod
    def from_call(cls, call: dict[str, Any]) -> Action:
        """Read an OpenAI tool call (`{"function": {"name", "arguments"}}`).

        Raises `ValueError` where the arguments are not the JSON text of an object.
        """
        function = call["function"]
        text = function.get("arguments") or "{}"
        arguments = json.loads(text)
        if not isinstance(arguments, dict):
            raise ValueError(f"the arguments of {function['name']!r} are not a JSON object: {text[:80]}")
        return cls(function["name"], arguments, text)

    def to_call(self, call_id: str) -> dict[str, Any]:
        """Return the OpenAI tool call with the given id."""
        return {"id": call_id, "type": "function", "function": {"name": self.tool, "arguments": self.arguments_json()}}
