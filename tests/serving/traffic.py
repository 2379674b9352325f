"""Clients that ask a server for this and that, and often go away before it is there."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import httpx

Client = Callable[["Visitor"], Awaitable[str]]


class Visitor:
    """One connection's worth of chance, and how it reaches the server."""

    def __init__(self, url: str, model: str, seed: int) -> None:
        self.url, self.model, self.chance = url, model, random.Random(seed)
        self.http = httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_keepalive_connections=1))

    def body(self, stream: bool) -> dict:
        """Return a chat that fits any window of 200 tokens."""
        words = " ".join(self.chance.choices(["fox", "dog", "the lazy", "日本"], k=self.chance.randint(1, 12)))
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": words}],
            "max_tokens": self.chance.randint(1, 80),
            "n": self.chance.choice([1, 1, 1, 3]),
            "ignore_eos": True,
            "stream": stream,
            "tools": [{"type": "function", "function": {"name": "view"}}],
        }


async def patient(visitor: Visitor) -> str:
    """Wait for the whole answer."""
    answer = await visitor.http.post(visitor.url + "/chat/completions", json=visitor.body(stream=False))
    return str(answer.status_code)


async def impatient(visitor: Visitor) -> str:
    """Go away after a moment."""
    try:
        async with asyncio.timeout(visitor.chance.uniform(0, 0.3)):
            return await patient(visitor)
    except TimeoutError:
        return "gone"


async def listener(visitor: Visitor) -> str:
    """Read some lines of a stream, or all."""
    lines = visitor.chance.choice([0, 1, 3, 1000])
    async with visitor.http.stream("POST", visitor.url + "/chat/completions", json=visitor.body(stream=True)) as answer:
        async for _ in answer.aiter_lines():
            if (lines := lines - 1) < 0:
                return "gone"
    return str(answer.status_code)


async def mumbler(visitor: Visitor) -> str:
    """Hang up in the middle of the question, or right after it."""
    where = urlsplit(visitor.url)
    body = json.dumps(visitor.body(stream=visitor.chance.random() < 0.5)).encode()
    head = f"POST {where.path}/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    question = head.encode() + body
    _, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(question[: visitor.chance.choice([10, len(head) + 5, len(question)])])
    await writer.drain()
    await asyncio.sleep(visitor.chance.uniform(0, 0.05))
    writer.transport.abort()
    return "gone"


async def mistaken(visitor: Visitor) -> str:
    """Ask for what cannot be."""
    answer = await visitor.http.post(visitor.url + "/completions", json={"model": visitor.model, "prompt": []})
    return str(answer.status_code)


LEAST = 5  # requests of each connection, however slow the server is
KINDS: tuple[Client, ...] = (patient, impatient, impatient, listener, listener, mumbler, mistaken)


async def visit(url: str, model: str, connections: int, seconds: float) -> Counter[str]:
    """Keep so many connections busy for so long, and for some requests each; returns how the requests ended."""
    ends: Counter[str] = Counter()
    deadline = time.monotonic() + seconds

    async def one(seed: int) -> None:
        visitor = Visitor(url, model, seed)
        async with visitor.http:
            asked = 0
            while time.monotonic() < deadline or asked < LEAST:
                asked += 1
                ends[await visitor.chance.choice(KINDS)(visitor)] += 1

    await asyncio.gather(*(one(seed) for seed in range(connections)))
    return ends
