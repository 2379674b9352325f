"""What stands before every route: counting answers, the API key, and a bound on the size of a body."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError
from serving.handlers import error_response
from serving.metrics import Metrics

MAX_BODY = 32 * 1024 * 1024  # bytes: more than the longest window can hold, as text and as token ids


class CountAnswers:
    """Counts HTTP answers by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count the status of its answer."""

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["path"].startswith("/v1/"):
                route = scope.get("route")
                self._metrics.answered(getattr(route, "path", "unknown"), message["status"])
            await send(message)

        await self._app(scope, receive, counting)


class RequireKey:
    """Answers 401 to whoever asks anything below `/v1` without the key; `/health` and `/metrics` are for everyone."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, if it may be."""
        if scope["type"] == "http" and scope["path"].startswith("/v1") and not self._knows(Headers(scope=scope)):
            message = "The API key is missing or wrong; send the header Authorization: Bearer KEY."
            fault = ApiError(401, message, kind="authentication_error", code="invalid_api_key")
            response = error_response(fault, {"WWW-Authenticate": "Bearer"})
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._key)


class BoundBody:
    """Refuses bodies over `MAX_BODY` bytes while they come, so that they are never held in memory."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and break off a body that is too long."""
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_BODY:
                raise HTTPException(413, f"The body has more than {MAX_BODY} bytes")
            return message

        await self._app(scope, bounded, send)
