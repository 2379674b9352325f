"""The base of what clients send."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


def _null_allowed(schema: dict[str, Any]) -> None:
    """Say in a JSON schema that null stands for a field's default."""
    for name, field in schema.get("properties", {}).items():
        if name not in schema.get("required", []) and {"type": "null"} not in field.get("anyOf", []):
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}]}


class Body(BaseModel):
    """Base of what clients send: types are what JSON says they are ("5" is no number), null is a field's default."""

    model_config = ConfigDict(strict=True, extra="ignore", json_schema_extra=_null_allowed)

    @field_validator("*", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any, info: Any) -> Any:
        field = cls.model_fields[info.field_name]
        return field.get_default(call_default_factory=True) if value is None and not field.is_required() else value
