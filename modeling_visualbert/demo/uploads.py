"""Uploads while they arrive, and what is left of those that broke off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from .clients import RefusedError

MAX_FILES = 8  # of an upload; the page sends one or two
REMAINS_SECONDS = 300  # after which nothing more is written to an upload that broke off


class Arriving:
    """
    The body of an upload as the application receives it. It ends as if the visitor had left when it takes too long, has too many
    files, or there is no room; `refusal` says why then.

    Args:
        receive: Of ASGI.
        keep: Counts bytes that have arrived; False if there is no room for them.
        seconds: In which all arrives.
        full: Why there is no room.
    """

    def __init__(
        self, receive: Callable[[], Awaitable[dict[str, Any]]], keep: Callable[[int], bool], seconds: float, full: str
    ):
        self._receive, self._keep, self._seconds, self._full = receive, keep, seconds, full
        self._end = time.monotonic() + seconds
        self._files, self._last = 0, b""
        self.has_left = False
        self.refusal: RefusedError | None = None

    async def receive(self) -> dict[str, Any]:
        """The next message."""
        try:
            message = await asyncio.wait_for(self._receive(), self._end - time.monotonic())
        except TimeoutError:
            return self._refuse(408, f"The upload took longer than {self._seconds} seconds.")
        self.has_left = message["type"] == "http.disconnect"
        body = message.get("body", b"")
        self._files += (self._last + body).count(b"filename=")
        self._last = body[-8:]  # shorter than what is counted
        if self._files > MAX_FILES:
            return self._refuse(400, f"The upload has more than {MAX_FILES} files; the page sends one or two.")
        return message if self._keep(len(body)) else self._refuse(503, self._full)

    def _refuse(self, status: int, reason: str) -> dict[str, Any]:
        self.refusal = RefusedError(status, reason)
        return {"type": "http.disconnect"}


def delete_remains(folder: Path) -> None:
    """Delete the files of uploads that broke off, which gradio forgets. Nobody else may write to the folder."""
    before = time.time() - REMAINS_SECONDS
    for file in folder.glob("tmp*"):
        if file.is_file() and file.stat().st_mtime < before:
            file.unlink(missing_ok=True)
