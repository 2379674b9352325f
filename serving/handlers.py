"""Every fault of a request or of the server as OpenAI's error object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serving.admission import unavailable
from serving.errors import ApiError
from serving.jobs import UnavailableError


def handle_errors(app: FastAPI) -> None:
    """Let an application answer whatever is raised with an error object."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)


def failure(error: Exception) -> ApiError:
    """Return the answer to a request that was in order and could not be answered."""
    if isinstance(error, UnavailableError):
        return unavailable(str(error))
    return ApiError(500, f"The request failed: {error}", kind="server_error")


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the HTTP answer for an error, which may quote half a surrogate pair that the client has sent."""
    body = json.dumps(error.body, ensure_ascii=False).encode(errors="replace")
    return Response(body, error.status, {**(headers or {}), **error.headers}, "application/json")


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _validation_error(request: Request, error: Exception) -> Response:
    """Answer a body that does not fit with its first fault; the place of it is the field's path."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "json_invalid":
        return error_response(ApiError(400, f"The body is not valid JSON: {message}."))
    place = _place(fault)
    if not place and fault["type"] != "value_error":
        message = "The body is not a JSON object; send one, with Content-Type: application/json."
        return error_response(ApiError(400, message))
    return error_response(ApiError(400, f"{place}: {message}" if place else message, param=place or None))


def _place(fault: Any) -> str:
    return ".".join(str(part) for part in fault["loc"][1:] if not isinstance(part, str) or "[" not in part)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path}"
    return error_response(ApiError(error.status_code, message), error.headers)


async def _internal_error(request: Request, error: Exception) -> Response:
    return error_response(failure(error))
