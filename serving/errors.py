"""OpenAI's error object: raised as an exception, and described as a body."""

from __future__ import annotations

from pydantic import BaseModel


class ApiError(Exception):
    """An answer that is an OpenAI error object.

    `kind` is its `type`, `param` the field of the body that is wrong, `retry_after` in how many seconds to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ErrorDetail(BaseModel):
    """What an error object says."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail
