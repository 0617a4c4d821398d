"""Limits on what a visitor may send. Larger files, and files that are not images, are refused before they cost memory.

[`RequestLimits`] stands in front of the whole web application; [`open_image`] and [`check_text`] check what it lets through.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..hub_code.image_processing_visualbert import FORMATS, load_image

MAX_UPLOAD_BYTES = 10_000_000
MAX_PIXELS = 25_000_000  # what phones take; decoded it is 75 MB
MAX_CHARACTERS = 400
MAX_CHOICES = 8
MAX_BODY_BYTES = 64_000  # of a request without an image
MAX_QUEUE = 64  # questions that wait; more are refused
KEEP_SECONDS = 900  # images of visitors are deleted after this time
MAX_KEPT_BYTES = 500_000_000  # of such images on disk
UPLOAD_SECONDS = 120  # 10 MB over a slow line of 0.7 Mbit/s
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

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def open_image(path: str | Path) -> Image.Image:
    """
    An uploaded file as 8-bit RGB. Its size in bytes and pixels is checked before anything is decoded.

    Raises:
        ValueError: It is not an image, damaged, animated, or too large; the message is for the visitor.
    """
    size = Path(path).stat().st_size
    if size > MAX_UPLOAD_BYTES:
        raise ValueError(f"The image has {size / 1e6:.0f} MB; at most {MAX_UPLOAD_BYTES // 1_000_000} MB are accepted.")
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(
                    f"The image has {width * height / 1e6:.0f} megapixels; at most {MAX_PIXELS // 1_000_000} are accepted."
                )
            return load_image(image, "The image")
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"The file cannot be read as an image; expected {', '.join(FORMATS)}.") from error
    except ValueError:
        raise
    except Exception as error:  # readers of formats fail in their own ways when a file is damaged
        raise ValueError("The image is damaged or cut off.") from error


def check_text(text: Any, what: str) -> str:
    """The text without blanks around it.

    Raises:
        ValueError: It is not a string, empty, or too long; the message is for the visitor.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"Please write {what}.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"The text has {len(text):,} characters; at most {MAX_CHARACTERS} are accepted.")
    return text.strip()


def split_choices(text: Any) -> list[str]:
    """The choices of a question, one a line.

    Raises:
        ValueError: There are too few or too many, or they are too long; the message is for the visitor.
    """
    choices = [line.strip() for line in check_text(text, "the choices").splitlines() if line.strip()]
    if not 2 <= len(choices) <= MAX_CHOICES:
        raise ValueError(f"There are {len(choices)} choices; please write 2 to {MAX_CHOICES}, one a line.")
    return choices


class KeptBytes:
    """How many bytes of uploads are on disk: what has arrived in the last `KEEP_SECONDS`."""

    def __init__(self) -> None:
        self._arrived: deque[tuple[float, int]] = deque()  # when, bytes
        self._sum = 0

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more are accepted."""
        before = time.monotonic() - KEEP_SECONDS
        while self._arrived and self._arrived[0][0] < before:
            self._sum -= self._arrived.popleft()[1]
        return self._sum + size <= MAX_KEPT_BYTES

    def add(self, size: int) -> bool:
        """Count bytes that have arrived; False if they are too many."""
        if not self.has_room(size):
            return False
        self._arrived.append((time.monotonic(), size))
        self._sum += size
        return True


class RequestLimits:
    """
    ASGI middleware: only the routes that the page needs, bodies of bounded size, a bounded amount of uploads, and no mention
    of a file that was not uploaded here.

    Args:
        app: The application behind it.
        uploads: Folder in which uploads are kept.
        calls: Names of what can be called, for which gradio's programs ask by name; of another name gradio makes an error of the
            server. None lets all through.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        uploads: str | Path,
        calls: Collection[str] | None = None,
    ):
        self.app = app
        self.uploads, self.calls = Path(uploads).resolve(), calls
        self.kept = KeptBytes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http" or not self._is_served(scope["path"]):
            await _refuse(scope, send, 404, "There is nothing here.")
        elif scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
        elif scope["path"].endswith("/upload"):
            await self._take_upload(scope, receive, send)
        else:
            await self._take_body(scope, receive, send)

    def _is_served(self, path: str) -> bool:
        called = _CALL.match(path)
        return bool(_ROUTES.fullmatch(path)) and (called is None or self.calls is None or called[1] in self.calls)

    async def _take_upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The body streams through; the number of bytes must be announced, so that it can be judged before. What counts as kept
        is what arrives: visitors who only announce something take nothing from others."""
        announced = _content_length(scope)
        if announced is None:
            return await _refuse(scope, send, 411, "How large is the upload? Expected a Content-Length.")
        if announced > MAX_UPLOAD_BYTES + MAX_BODY_BYTES:
            message = (
                f"The upload has {announced / 1e6:.0f} MB; at most {MAX_UPLOAD_BYTES // 1_000_000} MB are accepted."
            )
            return await _refuse(scope, send, 413, message)
        if not self.kept.has_room(announced):
            return await _refuse(scope, send, 503, _FULL)
        cut_off: tuple[int, str] | None = None
        end = time.monotonic() + UPLOAD_SECONDS

        async def receive_within_limits() -> dict[str, Any]:
            nonlocal cut_off
            try:
                message = await asyncio.wait_for(receive(), end - time.monotonic())
            except asyncio.TimeoutError:
                cut_off = 408, f"The upload took longer than {UPLOAD_SECONDS} seconds."
                return {"type": "http.disconnect"}
            if not self.kept.add(len(message.get("body", b""))):
                cut_off = 503, _FULL
                return {"type": "http.disconnect"}
            return message

        async def send_until_then(message: dict[str, Any]) -> None:
            if cut_off is None:
                await send(message)

        try:
            await self.app(scope, receive_within_limits, send_until_then)
        except Exception:
            if cut_off is None:
                raise
        if cut_off is not None:
            await _refuse(scope, send, *cut_off)

    async def _take_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        too_long = f"The request is too long; at most {MAX_BODY_BYTES // 1000} kB are accepted."
        if (_content_length(scope) or 0) > MAX_BODY_BYTES:
            return await _refuse(scope, send, 413, too_long)
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None  # the visitor has left
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                return await _refuse(scope, send, 413, too_long)
            if not message.get("more_body"):
                break
        try:
            self._check_files(json.loads(body) if body else None)
        except (ValueError, RecursionError) as error:
            return await _refuse(
                scope, send, 400, str(error) if isinstance(error, _ForeignFileError) else "Expected JSON."
            )

        messages = deque([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> dict[str, Any]:
            return messages.popleft() if messages else await receive()

        await self.app(scope, replay, send)

    def _check_files(self, value: Any) -> None:
        """Every file that JSON data mentions must be one that was uploaded here; nothing else is opened or downloaded.

        Raises:
            _ForeignFileError: One is not.
        """
        if isinstance(value, dict):
            path, url = value.get("path"), value.get("url")
            if path is not None and not (isinstance(path, str) and self._is_upload(path)):
                raise _ForeignFileError("This file was not uploaded here.")
            if isinstance(url, str) and not url.partition("?")[0].endswith(f"file={path}"):
                raise _ForeignFileError("This address is not that of a file that was uploaded here.")
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            self._check_files(item)

    def _is_upload(self, path: str) -> bool:
        if "\0" in path or "://" in path:
            return False
        try:
            return Path(path).resolve().is_relative_to(self.uploads)
        except (OSError, RuntimeError):  # a name that is too long, a loop of links
            return False


class _ForeignFileError(ValueError):
    pass


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
