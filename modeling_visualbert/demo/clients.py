"""A share for each client: what one address may have open at once, so that no client blocks the page for the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any


class RefusedError(Exception):
    """A request is not answered; `status` is that of HTTP, the message is for the visitor."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def client_of(address: str) -> str:
    """Whose share an address takes: its own; that of its network for IPv6, where a single visitor has 2^64 addresses."""
    try:
        number = ip_address(address)
    except ValueError:  # none, as of a Unix socket
        return address
    if not isinstance(number, IPv6Address):
        return str(number)
    if number.ipv4_mapped is not None:
        return str(number.ipv4_mapped)
    return str(ip_network((int(number) >> 64 << 64, 64)))


def client_of_request(scope: Mapping[str, Any]) -> str:
    """Whose share a request takes. Where the demo is told to stand behind a proxy, uvicorn has put in the address that the
    proxy names; what else is said about where a request came from is not believed."""
    client = scope.get("client")
    return client_of(client[0]) if client else ""


@dataclass
class _Held:
    free: asyncio.Semaphore
    count: int = field(default=0)  # places that are taken or waited for


class Places:
    """
    Places of each client. Who finds all of them taken waits until one is free, first come, first served.

    Args:
        at_once: How many a client may take.
        waiting: How many may wait for one.
        seconds: How long one waits.
        refusal: What the others are told.
    """

    def __init__(self, at_once: int, waiting: int, seconds: float, refusal: str):
        self.at_once, self.waiting, self.seconds, self.refusal = at_once, waiting, seconds, refusal
        self._clients: dict[str, _Held] = {}

    @asynccontextmanager
    async def taken(self, client: str) -> AsyncIterator[None]:
        """A place as long as the block lasts.

        Raises:
            RefusedError: With status 429, if too many wait, or none became free in time.
        """
        held = self._clients.setdefault(client, _Held(asyncio.Semaphore(self.at_once)))
        if held.count >= self.at_once + self.waiting:
            raise RefusedError(429, self.refusal)
        held.count += 1
        try:
            try:
                await asyncio.wait_for(held.free.acquire(), self.seconds)
            except TimeoutError:
                raise RefusedError(429, self.refusal) from None
            try:
                yield
            finally:
                held.free.release()
        finally:
            held.count -= 1
            if not held.count:
                del self._clients[client]


__all__ = ["Places", "RefusedError", "client_of", "client_of_request"]
