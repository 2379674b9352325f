"""Hooks of schemathesis: bodies that can be answered, or nearly all requests would end at a first check."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Put the served model's name where a body names any, token ids it has, and something to answer."""
    if not isinstance(body, dict):
        return body
    fitted = dict(body)
    if isinstance(body.get("model"), str) and len(body["model"]) % 4 != 3:
        fitted["model"] = "tiny"
    if body.get("prompt") == "":
        fitted["prompt"] = "fox"
    if body.get("max_tokens") == 0 and body["max_tokens"] is not False:
        fitted["max_tokens"] = 5
    if isinstance(body.get("prompt"), list):
        fitted["prompt"] = [_known(part) for part in body["prompt"]]
    if isinstance(body.get("top_logprobs"), int) and isinstance(body.get("logprobs"), bool | None):
        fitted["logprobs"] = True
    return fitted


def _known(part: Any) -> Any:
    if isinstance(part, list):
        return [_known(one) for one in part]
    return part % 300 if isinstance(part, int) and not isinstance(part, bool) and part > 0 else part
