"""CoMem's own traffic: what the runs of some agents asked of both servers, recorded between them and kept as a file."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from comem_jax.config import Config, parse_config
from comem_jax.errors import UserError
from serving.proxy.upstream import Upstream
from serving.proxy.usage import AnswerReader
from serving.web import WebThread

Server = Literal["agent", "memory"]
Kind = Literal["step", "prefill", "memory"]
CHAT = b"/chat/completions"


class Call(Config):
    """One request of one session.

    `kind` is what for: the agent's next step, a prefill-ahead on the agent's server, or a summary on the memory
    model's. It was sent `gap` seconds after the end of the session's call number `after` (None: after the recording's
    begin), and after so many finished `steps`. `body` is what was sent, with the answer's real length to be forced.
    """

    session: int
    kind: Kind
    steps: int
    after: int | None
    gap: float
    body: dict[str, Any]

    @property
    def server(self) -> Server:
        """Which server it goes to."""
        return "memory" if self.kind == "memory" else "agent"


@dataclass(frozen=True)
class Heard:
    """A call as it was heard, with its time on the recording's clock in seconds."""

    server: Server
    body: dict[str, Any]
    begin: float
    end: float
    tokens: int

    @property
    def kind(self) -> Kind:
        """What it was for: a prefill-ahead asks for a single token."""
        if self.server == "memory":
            return "memory"
        return "prefill" if self.body.get("max_tokens") == 1 else "step"

    @property
    def session(self) -> str:
        """Whose it was: the task, the first thing that the user says, is in every prompt of a run and in no other's."""
        return next(str(message["content"]) for message in self.body["messages"] if message["role"] == "user")


class Recorder:
    """Stands before a server at `url`, sends everything on to it, and notes the chat completions in `heard`."""

    def __init__(self, server: Server, url: str, heard: list[Heard]) -> None:
        self._server, self._heard = server, heard
        self._upstream = Upstream(url)
        self._web = WebThread(self, "127.0.0.1", 0)
        self.url = self._web.url

    def __enter__(self) -> Recorder:
        self._web.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._web.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path, body = scope["raw_path"].removeprefix(b"/v1"), await Request(scope, receive).body()
        begin = time.monotonic()

        def note(reader: AnswerReader) -> None:
            if path == CHAT:
                times = begin, time.monotonic()
                self._heard.append(Heard(self._server, json.loads(body), *times, reader.completion_tokens))

        await self._upstream.forward(scope, path, body, send, added=[], answered=note)


def sessions_of(heard: Sequence[Heard]) -> list[list[Call]]:
    """Return what was heard by session, each in the order in which its calls were sent.

    A step waits for the step before, and a background call for whatever of its session had ended last.
    """
    ordered = sorted(heard, key=lambda each: (each.session, each.begin))
    start = min((each.begin for each in heard), default=0.0)
    parted = [list(calls) for _, calls in groupby(ordered, key=lambda each: each.session)]
    parted.sort(key=lambda calls: calls[0].begin)
    return [[_call(number, calls, each, start) for each in calls] for number, calls in enumerate(parted)]


def _call(session: int, calls: Sequence[Heard], call: Heard, start: float) -> Call:
    ended = [other for other in calls if other.end <= call.begin]
    steps = [other for other in ended if other.kind == "step"]
    before = max(steps if call.kind == "step" else ended, key=lambda other: other.end, default=None)
    body = {name: value for name, value in call.body.items() if name != "model"}
    return Call(
        session=session,
        kind=call.kind,
        steps=len(steps),
        after=None if before is None else calls.index(before),
        gap=round(call.begin - (start if before is None else before.end), 6),
        body=body | {"max_tokens": call.tokens, "ignore_eos": True},
    )


def write_traffic(sessions: Sequence[Sequence[Call]], path: Path) -> None:
    """Write one call a line, as compressed JSON; the same calls make the same bytes.

    Raises `UserError` where a server did not say how long its answers are.
    """
    lines = [call.model_dump_json() + "\n" for calls in sessions for call in calls]
    if any(not call.body["max_tokens"] for calls in sessions for call in calls):
        raise UserError("an answer of unknown length cannot be replayed: the server gives no usage")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def read_traffic(path: Path) -> list[list[Call]]:
    """Return the sessions of a file of `write_traffic`; raises `UserError` for a file that is none."""
    if not path.is_file():
        raise UserError(f"no recorded traffic {str(path)!r}; `comem bench record` writes one")
    try:
        values = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is no recorded traffic: {error}") from None
    calls = [parse_config(Call, value, f"{path} line {line}") for line, value in enumerate(values, start=1)]
    return [list(session) for _, session in groupby(calls, key=lambda call: call.session)]
