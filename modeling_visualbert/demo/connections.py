"""Connections of visitors: a bounded number for each client, and time limits for those who write or read slowly."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from .clients import client_of

MAX_CONNECTIONS = 768  # of all; usual machines allow a process 1024 open files
MAX_CONNECTIONS_OF_ONE = 256  # a browser opens up to six; many may stand behind one address
HEADER_SECONDS = 15  # for the first line and the headers of a request
MAX_HEADER_BYTES = 64_000
READ_SECONDS = 60  # in which a visitor takes what was sent, at most some hundred kB at once


# Inside the Hub, as X-Forwarded-For ends with the address that its outermost proxy saw.
_PROXIES_OF_SPACES = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,127.0.0.0/8,fc00::/7,::1"


def believe_proxies() -> None:
    """Say whom uvicorn believes when it names the address that a request came from: the proxies in front of a Space, elsewhere
    those of the environment's FORWARDED_ALLOW_IPS or nobody. By default uvicorn believes every process of this machine."""
    os.environ.setdefault("FORWARDED_ALLOW_IPS", _PROXIES_OF_SPACES if os.environ.get("SPACE_ID") else "")


def guard_connections(server: Any) -> None:
    """Bound the connections that a running `uvicorn.Server` takes from now on.

    Nothing else limits them: uvicorn waits without end for headers, and for visitors who do not read. It closes connections only
    between two requests.
    """
    config = server.config
    config.ws_protocol_class = None  # the page uses no WebSocket
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a crowd could fill the log with warnings
    protocol = config.http_protocol_class  # h11's or httptools'
    config.http_protocol_class = type("Guarded", (_Guard, protocol), {"open_of": Counter()})


class _Guard(asyncio.Protocol):
    """Put in front of a protocol of uvicorn: the limits of this file."""

    open_of: Counter[str]  # connections by client
    transport: Any  # this and what follows is uvicorn's
    loop: Any
    config: Any
    client: Any
    cycle: Any
    _header_bytes = 0
    _refused = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # They run while headers are expected, and while something is not read.
        self._headers, self._reader = _Timer(), _Timer()
        # What is not read yet is seen at once, not only from 64 kB on.
        transport.set_write_buffer_limits(high=0)
        peer = self.client[0] if self.client else ""
        self._name = client_of(peer)
        self.open_of[self._name] += 1
        if self.open_of.total() > MAX_CONNECTIONS:
            self._hang_up("503 Service Unavailable", "Too many visitors at the moment; please try again later.")
        elif self.open_of[self._name] > MAX_CONNECTIONS_OF_ONE and not self._is_proxy(peer):
            self._hang_up("429 Too Many Requests", "Too many connections from your address; please close some.")
        else:
            self._expect_headers()

    def _is_proxy(self, peer: str) -> bool:
        return peer in getattr(self.config.loaded_app, "trusted_hosts", ())

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_of[self._name] -= 1
        if not self.open_of[self._name]:
            del self.open_of[self._name]
        self._headers.stop()
        self._reader.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if not self._is_answering() and not self._headers.runs():
            self._expect_headers()
        super().data_received(data)
        if self._is_answering():
            self._headers.stop()
            return
        self._header_bytes += len(data)
        if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._hang_up("431 Request Header Fields Too Large", "The headers are too long.")

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_headers(self) -> None:
        self._header_bytes = 0
        self._headers.start(self.loop, HEADER_SECONDS, self._hang_up, "408 Request Timeout", "Too slow.")

    def _hang_up(self, status: str, message: str) -> None:
        self._refused = True
        self._headers.stop()
        head = f"HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {len(message)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n{message}".encode())
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.start(self.loop, READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader.stop()


class _Timer:
    """Calls something after a while, unless it is stopped before."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, seconds: float, callback: Callable[..., None], *args: Any) -> None:
        self.stop()
        self._handle = loop.call_later(seconds, callback, *args)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None

    def runs(self) -> bool:
        return self._handle is not None
