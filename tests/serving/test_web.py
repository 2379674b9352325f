from __future__ import annotations

import gc
import socket
import struct

import httpx
from starlette.responses import PlainTextResponse

from serving.web import Protocol, WebThread
from tests.serving.test_server import wait_until


def ask_and_reset(port: int) -> None:
    """Ask once, keep the connection alive, then tear it down without a farewell."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")


def connections() -> int:
    gc.collect()
    return sum(isinstance(one, Protocol) for one in gc.get_objects())


def test_nothing_is_kept_of_connections_that_were_reset() -> None:
    web = WebThread(PlainTextResponse("yes"), "127.0.0.1", 0)
    web.start()
    try:
        before = connections()
        for _ in range(30):
            ask_and_reset(web.port)
        wait_until(lambda: connections() <= before + 2)
        assert httpx.get(f"http://127.0.0.1:{web.port}/").text == "yes"
    finally:
        web.stop()
