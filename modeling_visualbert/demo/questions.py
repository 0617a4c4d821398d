"""Who waits in gradio's queue: a share for each client, large images one after another, and no answer that nobody fetches.

What gradio's queue holds is read from its own tables, those of 6.31: `event_ids_to_events` has what waits or is computed,
`pending_event_ids_session` by session what was not fetched either.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from .clients import Places, RefusedError

OPEN_OF_ONE = 8  # questions of a client that wait in the queue, are computed, or have an answer that was not fetched
QUESTIONS_WAITING = 64  # that wait until one of these is done
WAIT_SECONDS = 240
SMALL_PIXELS = 1_000_000  # images that need not wait for large ones
PIXELS_AT_ONCE = 25_000_000  # of larger ones in the queue; a question that has more waits until it is alone
UNFETCHED_SECONDS = 60  # in which an answer is fetched
MAX_OPEN = 256  # questions of all, beyond which the oldest unfetched answers go earlier
_POLL_SECONDS = 0.02
_TOO_MANY = "Many questions from your address are waiting; please ask again when some of them are answered."
_TOO_LARGE = "Many large images are waiting; please try again in some minutes, or use a smaller image."


@dataclass
class _Asked:
    client: str
    session: str
    pixels: int
    computed: float | None = None  # when that was noticed


class Questions:
    """
    Lets questions into gradio's queue.

    Args:
        queue: Returns the queue, of a page that may not be launched yet.
    """

    def __init__(self, queue: Callable[[], Any]):
        self._queue = queue
        self._asked: dict[str, _Asked] = {}  # by gradio's id
        self._lines = Places(1, QUESTIONS_WAITING, WAIT_SECONDS, _TOO_MANY)
        self._large = Places(1, MAX_OPEN, WAIT_SECONDS, _TOO_LARGE)

    async def ask(
        self, client: str, session: str | None, pixels: int, join: Callable[[], Awaitable[str | None]]
    ) -> None:
        """
        Let a question in as soon as its client's share and the pixels in the queue allow it.

        Args:
            client: Whose share it takes.
            session: Session that will fetch the answer; its own when None.
            pixels: Of its images.
            join: Puts it into the queue, and returns gradio's id of it, or None if it was not taken.

        Raises:
            RefusedError: Too many questions of this client wait, or it took too long.
        """
        async with self._lines.taken(client):
            await self._wait_until(lambda: self._count(client) < OPEN_OF_ONE, _TOO_MANY)
            if pixels <= SMALL_PIXELS:
                return await self._join(client, session, pixels, join)
            async with self._large.taken(""):  # clients take turns: of each, one question is here
                await self._wait_until(lambda: self._has_room(pixels), _TOO_LARGE)
                await self._join(client, session, pixels, join)

    async def _join(
        self, client: str, session: str | None, pixels: int, join: Callable[[], Awaitable[str | None]]
    ) -> None:
        name = await join()
        if name is not None:
            self._asked[name] = _Asked(client, session or name, pixels)

    async def _wait_until(self, is_true: Callable[[], bool], refusal: str) -> None:
        end = time.monotonic() + WAIT_SECONDS
        await self._forget_what_is_done()
        while not is_true():
            if time.monotonic() > end:
                raise RefusedError(429, refusal)
            await asyncio.sleep(_POLL_SECONDS)
            await self._forget_what_is_done()

    def _count(self, client: str) -> int:
        return sum(asked.client == client for asked in self._asked.values())

    def _has_room(self, pixels: int) -> bool:
        there = self._queue().event_ids_to_events
        sizes = [asked.pixels for name, asked in self._asked.items() if name in there and asked.pixels > SMALL_PIXELS]
        return not sizes or sum(sizes) + pixels <= PIXELS_AT_ONCE

    async def _forget_what_is_done(self) -> None:
        """Answers that were fetched, and those that nobody fetches, with all else of their session."""
        queue, now = self._queue(), time.monotonic()
        unfetched = []
        for name, asked in list(self._asked.items()):
            if name not in queue.pending_event_ids_session.get(asked.session, ()):
                del self._asked[name]
            elif name not in queue.event_ids_to_events:
                asked.computed = asked.computed or now
                unfetched.append(name)
        excess = len(self._asked) - MAX_OPEN
        for number, name in enumerate(unfetched):
            asked = self._asked[name]
            if number < excess or now - (asked.computed or now) > UNFETCHED_SECONDS:
                await queue.clean_events(session_hash=asked.session)
                queue.pending_event_ids_session.pop(asked.session, None)
                queue.pending_messages_per_session.pop(asked.session, None)
