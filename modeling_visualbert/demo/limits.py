"""Limits on what a visitor may send. Larger files, and files that are not images, are refused before they cost memory.

[`RequestLimits`] stands in front of the whole web application; [`open_image`] and [`check_text`] check what it lets through.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from .clients import Places, RefusedError, client_of_request
from .inputs import (
    MAX_CHARACTERS,
    MAX_CHOICES,
    MAX_PIXELS,
    MAX_UPLOAD_BYTES,
    check_text,
    count_pixels,
    open_image,
    split_choices,
)
from .questions import Questions
from .uploads import Arriving, delete_remains

MAX_BODY_BYTES = 64_000  # of a request without an image
MAX_QUEUE = 64  # questions that wait; more are refused
KEEP_SECONDS = 900  # images of visitors are deleted after this time
MAX_KEPT_BYTES = 500_000_000  # of such images on disk
KEPT_SHARE = 0.5  # of it that is one client's
UPLOAD_SECONDS = 120  # 10 MB over a slow line of 0.7 Mbit/s
BODY_SECONDS = 20  # for the body of any other request
REQUESTS_OF_ONE, UPLOADS_OF_ONE, STREAMS_OF_ONE = 8, 4, 128  # of one client at once; many may stand behind one address
WAITING_OF_ONE, WAIT_SECONDS = 256, 30  # requests and uploads that wait until one of these is done
_FULL = "Too many images at the moment; please try again in some minutes."

# What the page and `gradio_client` ask for. Gradio has more, such as fetching files from elsewhere, which nobody here needs.
# Routes are gradio's internals: these are those of 6.31. tests/fixtures/gradio_routes.json lists what is let through and what is
# not; a test fails when the installed gradio has other routes.
_ROUTES = re.compile(
    r"/(?:|config/?|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(?:assets|static|svelte)/.*"
    r"|gradio_api/(?:info/?|startup-events|theme\.css|heartbeat/\w+|queue/(?:join|data)|upload|upload_progress|cancel|reset/?"
    r"|call/\w+(?:/\w+)?|file=(?!\w+:/).*))"
)

_CALL = re.compile(r"/gradio_api/call/(\w+)")
_ASKS = re.compile(r"/gradio_api/(?:call/\w+|queue/join)")  # POST
_STREAMS = re.compile(r"/gradio_api/(?:heartbeat/\w+|queue/data|upload_progress|call/\w+/\w+)")  # GET: they stay open

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class KeptBytes:
    """How many bytes of uploads are on disk, in all and by client: what has arrived in the last `KEEP_SECONDS`."""

    def __init__(self) -> None:
        self._arrived: deque[tuple[float, int, str | None]] = deque()  # when, bytes, of whom
        self._sum = 0
        self._sums: Counter[str | None] = Counter()

    def has_room(self, size: int, client: str | None = None) -> bool:
        """Whether so many bytes more are accepted, of a client that has an address."""
        before = time.monotonic() - KEEP_SECONDS
        while self._arrived and self._arrived[0][0] < before:
            self._count(-self._arrived[0][1], self._arrived.popleft()[2])
        if client and self._sums[client] + size > KEPT_SHARE * MAX_KEPT_BYTES:
            return False
        return self._sum + size <= MAX_KEPT_BYTES

    def add(self, size: int, client: str | None = None) -> bool:
        """Count bytes that have arrived; False if they are too many."""
        if not self.has_room(size, client):
            return False
        self._arrived.append((time.monotonic(), size, client))
        self._count(size, client)
        return True

    def _count(self, size: int, client: str | None) -> None:
        self._sum += size
        self._sums[client] += size
        if not self._sums[client]:
            del self._sums[client]


class RequestLimits:
    """
    ASGI middleware: only the routes that the page needs, bodies of bounded size that arrive in a bounded time, a bounded amount
    of uploads, a share for each client, and no mention of a file that was not uploaded here.

    Args:
        app: The application behind it.
        uploads: Folder in which uploads are kept.
        calls: Names of what can be called, for which gradio's programs ask by name; of another name gradio makes an error of the
            server. None lets all through.
        queue: Returns gradio's queue, in which questions wait; without it they are not counted.
        is_own_folder: Nobody else writes to `uploads`, so that what is left there of broken uploads is deleted.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        uploads: str | Path,
        calls: Collection[str] | None = None,
        queue: Callable[[], Any] | None = None,
        is_own_folder: bool = False,
    ):
        self.app = app
        self.uploads, self.calls = Path(uploads).resolve(), calls
        self.is_own_folder, self._tidied = is_own_folder, 0.0
        self.kept = KeptBytes()
        self.questions = Questions(queue) if queue is not None else None
        self._requests = Places(REQUESTS_OF_ONE, WAITING_OF_ONE, WAIT_SECONDS, _BUSY)
        self._uploads = Places(UPLOADS_OF_ONE, WAITING_OF_ONE, WAIT_SECONDS, _BUSY)
        self._streams = Places(STREAMS_OF_ONE, 0, 0.1, _MANY_STREAMS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._serve(scope, receive, send)
        except RefusedError as refusal:
            await _refuse(scope, send, refusal.status, str(refusal))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http" or not self._is_served(scope["path"]):
            raise RefusedError(404, "There is nothing here.")
        client = client_of_request(scope)
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            places = self._streams if _STREAMS.fullmatch(scope["path"]) else self._requests
            async with places.taken(client):
                await self.app(scope, receive, send)
        elif scope["path"].endswith("/upload"):
            self._tidy()
            async with self._uploads.taken(client):
                await self._take_upload(scope, receive, send, client)
        else:
            await self._take_body(scope, receive, send, client)

    def _tidy(self) -> None:
        if self.is_own_folder and time.monotonic() > self._tidied + 60:
            self._tidied = time.monotonic()
            delete_remains(self.uploads)

    def _is_served(self, path: str) -> bool:
        called = _CALL.match(path)
        return bool(_ROUTES.fullmatch(path)) and (called is None or self.calls is None or called[1] in self.calls)

    async def _take_upload(self, scope: Scope, receive: Receive, send: Send, client: str) -> None:
        """The body streams through; the number of bytes must be announced, so that it can be judged before. What counts as kept
        is what arrives: visitors who only announce something take nothing from others."""
        announced = _content_length(scope)
        if announced is None:
            raise RefusedError(411, "How large is the upload? Expected a Content-Length.")
        if announced > MAX_UPLOAD_BYTES + MAX_BODY_BYTES:
            most = MAX_UPLOAD_BYTES // 1_000_000
            raise RefusedError(413, f"The upload has {announced / 1e6:.0f} MB; at most {most} MB are accepted.")
        if not self.kept.has_room(announced, client):
            raise RefusedError(503, _FULL)
        arriving = Arriving(receive, lambda size: self.kept.add(size, client), UPLOAD_SECONDS, _FULL)

        async def send_until_then(message: dict[str, Any]) -> None:
            if arriving.refusal is None:
                await send(message)

        try:
            await self.app(scope, arriving.receive, send_until_then)
        except Exception as error:
            if arriving.has_left:
                return
            if isinstance(error, (AttributeError, LookupError, TypeError, ValueError)):  # in gradio's reader of forms
                raise arriving.refusal or RefusedError(400, _NO_UPLOAD) from None
            if arriving.refusal is None:
                raise
        if arriving.refusal is not None:
            raise arriving.refusal

    async def _take_body(self, scope: Scope, receive: Receive, send: Send, client: str) -> None:
        async with self._requests.taken(client):
            body = await _read_body(scope, receive)
        if body is None:
            return  # the visitor has left
        try:
            content = json.loads(body.decode()) if body else None  # of bytes, it would take UTF-16 too
            # Gradio repeats what is wrong in a request, and fails at what JSON or UTF-8 cannot say: infinity, half a character.
            json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
            paths = self._check_files(content)
        except (ValueError, RecursionError) as error:
            message = str(error) if isinstance(error, _ForeignFileError) else "Expected JSON."
            raise RefusedError(400, message) from None
        messages = deque([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> dict[str, Any]:
            return messages.popleft() if messages else await receive()

        if self.questions is None or not _ASKS.fullmatch(scope["path"]):
            async with self._requests.taken(client):
                return await self.app(scope, replay, send)
        answer = bytearray()

        async def listen(message: dict[str, Any]) -> None:
            answer.extend(message.get("body", b""))
            await send(message)

        async def join() -> str | None:
            await self.app(scope, replay, listen)
            return _event_id(answer)

        session = content.get("session_hash") if isinstance(content, dict) else None
        pixels = await asyncio.to_thread(count_pixels, paths) if paths else 0
        await self.questions.ask(client, session if isinstance(session, str) else None, pixels, join)

    def _check_files(self, value: Any) -> list[str]:
        """Every file that JSON data mentions must be one that was uploaded here; nothing else is opened or downloaded.

        Returns:
            Their paths.

        Raises:
            _ForeignFileError: One is not.
        """
        paths = []
        if isinstance(value, dict):
            path, url = value.get("path"), value.get("url")
            if path is not None and not (isinstance(path, str) and self._is_upload(path)):
                raise _ForeignFileError("This file was not uploaded here.")
            address = url.partition("?")[0] if isinstance(url, str) else None
            if address is not None and not (
                address.endswith(f"file={path}") or unquote(address).endswith(f"file={path}")
            ):
                raise _ForeignFileError("This address is not that of a file that was uploaded here.")
            paths += [path] if path is not None else []
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            paths += self._check_files(item)
        return paths

    def _is_upload(self, path: str) -> bool:
        if "\0" in path or "://" in path:
            return False
        try:
            return Path(path).resolve().is_relative_to(self.uploads)
        except (OSError, RuntimeError):  # a name that is too long, a loop of links
            return False


class _ForeignFileError(ValueError):
    pass


_NO_UPLOAD = "This is no upload; expected a form whose `files` are files."
_BUSY = "Many requests from your address are waiting; please try again when some of them are answered."
_MANY_STREAMS = "Many pages from your address are open; please close some."


async def _read_body(scope: Scope, receive: Receive) -> bytes | None:
    """A body of bounded size, in a bounded time; None if the visitor has left."""
    too_long = RefusedError(413, f"The request is too long; at most {MAX_BODY_BYTES // 1000} kB are accepted.")
    if (_content_length(scope) or 0) > MAX_BODY_BYTES:
        raise too_long
    body, end = b"", time.monotonic() + BODY_SECONDS
    while True:
        try:
            message = await asyncio.wait_for(receive(), end - time.monotonic())
        except TimeoutError:
            raise RefusedError(408, f"The request took longer than {BODY_SECONDS} seconds.") from None
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise too_long
        if not message.get("more_body"):
            return body


def _event_id(answer: bytes | bytearray) -> str | None:
    """What gradio calls a question that it has put into its queue; None if it did not."""
    try:
        name = json.loads(answer)["event_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None


def _content_length(scope: Scope) -> int | None:
    lengths: Sequence[bytes] = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if len(lengths) == 1 and lengths[0].isdigit() else None


async def _refuse(scope: Scope, send: Send, status: int, message: str) -> None:
    """An answer of one line of JSON. The rest of what was being sent is not read: the connection is closed."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = json.dumps({"detail": message}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


__all__ = [
    "MAX_CHARACTERS",
    "MAX_CHOICES",
    "MAX_PIXELS",
    "MAX_UPLOAD_BYTES",
    "KeptBytes",
    "RequestLimits",
    "check_text",
    "open_image",
    "split_choices",
]
