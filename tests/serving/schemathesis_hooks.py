"""Hooks of schemathesis: most requests name the model that is there, or nearly all would end at a 404."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Put the served model's name where a body names any."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 4 != 3:
        return body | {"model": "tiny"}
    return body
