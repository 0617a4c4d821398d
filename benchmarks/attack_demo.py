"""The demo while strangers attack it: what they get, the server's memory, and how long a visitor waits meanwhile.

    python benchmarks/attack_demo.py [--model runs/vqa/best --seconds 60 --clients 1 --browser]

The demo runs as a process of its own, with a tiny checkpoint unless a model is given. Another process attacks it in all ways of
`ATTACKS` at once; each way has `--clients` addresses of the loopback network (127.0.0.2, 127.0.0.3, ...), which are different
clients for the demo. Meanwhile a visitor at 127.0.0.1 asks one question after another, as a page does, and with `--browser` one
in Chromium too. Appends a line to `benchmarks/results/demo_attack.jsonl`; the goals are no answer of status 500, less than 1 GB
of memory, and 95% of the visitor's answers within a second.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from bench_demo import QUESTIONS, Result, image_bytes, running_demo, visit
from bench_stock import hardware
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "fuzz")]
from mutations import mutate_json, mutate_text  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "demo_attack.jsonl"
SCRIPTS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    '"><svg onload=alert(3)>',
    "javascript:alert(4)",
    "{{constructor.constructor('alert(5)')()}}",
    "[<iframe srcdoc='<script>parent.alert(6)</script>'>]",
)


class Attacker:
    """A client of the demo: its address, and what it got."""

    def __init__(self, url: str, source: str, end: float, got: Counter[str]):
        self.url, self.source, self.end, self.got = url, source, end, got
        self.random = random.Random(source)
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
        transport = httpx.AsyncHTTPTransport(local_address=source, limits=limits)
        self.http = httpx.AsyncClient(base_url=url, transport=transport, timeout=20, trust_env=False)

    def is_on(self) -> bool:
        return time.monotonic() < self.end

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response | None:
        """Send a request and count the status of its answer; None if there is no answer."""
        try:
            response = await self.http.request(method, path, **options)
        except (httpx.HTTPError, OSError):
            self.got["no answer"] += 1
            return None
        self.count(response.status_code, f"{method} {path}", response.text)
        return response

    def count(self, status: int, what: str, text: str) -> None:
        self.got[str(status)] += 1
        if status == 500:
            print(f"500: {what[:100]}: {text[:200]}", flush=True)

    async def upload(self, content: bytes, name: str = "image.png") -> dict[str, Any] | None:
        response = await self.send("POST", "/gradio_api/upload", files={"files": (name, content)})
        if response is None or response.status_code != 200:
            return None
        return {"path": response.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    async def ask(self, image: Any, text: str, fetch: bool = True) -> None:
        body = {"data": [image, text, "", 0, -1, ""]}
        joined = await self.send("POST", "/gradio_api/call/vqa", json=body)
        if fetch and joined is not None and joined.status_code == 200:
            await self.send("GET", f"/gradio_api/call/vqa/{joined.json()['event_id']}")

    async def drip(self, start: bytes, piece: bytes, seconds: float = 1.0, read: bool = True) -> None:
        """Open a connection and write to it piece by piece, as long as it stays open; with `read=False`, never read."""
        place = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(
            place.hostname, place.port, local_addr=(self.source, 0), limit=1 << 10
        )
        try:
            writer.write(start)
            while self.is_on():
                if piece:
                    writer.write(piece)
                    await writer.drain()
                answer = asyncio.wait_for(reader.read(100), seconds) if read else asyncio.sleep(seconds)
                if read and (line := await _or_none(answer)) is not None:
                    status = line.split()[1].decode() if line.startswith(b"HTTP/") else "no answer"
                    self.got[status] += 1
                    return
                if not read:
                    await answer
            self.got["still open"] += 1
        finally:
            writer.transport.abort()


async def _or_none(answer: Awaitable[bytes]) -> bytes | None:
    try:
        return await answer
    except TimeoutError:
        return None


async def repeat(attacker: Attacker, at_once: int, once: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again, so many times at once, until the attack ends."""

    async def again() -> None:
        while attacker.is_on():
            try:
                await once()
            except OSError:
                attacker.got["no answer"] += 1
            await asyncio.sleep(0.01)

    await asyncio.gather(*(again() for _ in range(at_once)))


async def large_images(attacker: Attacker) -> None:
    """70 connections that all ask about an image of 25 megapixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (5000, 5000), (200, 100, attacker.random.randrange(256))).save(buffer, "PNG")
    image = await attacker.upload(buffer.getvalue())
    await repeat(attacker, 70, lambda: attacker.ask(image, QUESTIONS[0]))


async def questions(attacker: Attacker) -> None:
    """More questions than the queue holds, in sessions whose answers are never fetched."""
    image = await attacker.upload(image_bytes(7))
    await repeat(attacker, 100, lambda: attacker.ask(image, QUESTIONS[1], fetch=attacker.random.random() < 0.5))


async def flood(attacker: Attacker) -> None:
    """200 connections at once for pages, assets and settings."""
    paths = (
        "/",
        "/config",
        "/gradio_api/info",
        "/theme.css",
        "/?task=vqa&example=stars&text=hello&layer=1",
        "/nothing",
    )

    async def once() -> None:
        await attacker.send("GET", attacker.random.choice(paths))

    await repeat(attacker, 200, once)


async def slow_writers(attacker: Attacker) -> None:
    """200 connections that send their headers or bodies byte by byte."""
    post = b"POST /gradio_api/%s HTTP/1.1\r\nhost: x\r\ncontent-type: %s\r\ncontent-length: 60000\r\n\r\n"
    starts = (
        (b"GET / HTTP/1.1\r\nx: ", b"x"),
        (post % (b"queue/join", b"application/json"), b" "),
        (post % (b"upload", b"multipart/form-data; boundary=x"), b"-"),
    )
    await repeat(attacker, 200, lambda: attacker.drip(*attacker.random.choice(starts)))


async def slow_readers(attacker: Attacker) -> None:
    """200 connections that ask for the page or for events and do not read."""
    session = uuid.uuid4().hex
    paths = ("/", "/theme.css", f"/gradio_api/heartbeat/{session}", f"/gradio_api/queue/data?session_hash={session}")

    async def once() -> None:
        request = f"GET {attacker.random.choice(paths)} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        await attacker.drip(request, b"", read=False)

    await repeat(attacker, 200, once)


async def mutations(attacker: Attacker) -> None:
    """Damaged images, uploads, JSON and requests."""
    image = await attacker.upload(image_bytes(8))
    good = json.dumps({"data": [image, QUESTIONS[0], "", 0, -1, ""], "fn_index": 0, "session_hash": "abc"}).encode()
    form = (
        b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n%s\r\n--x--\r\n'
        % image_bytes(8)[:99]
    )
    random = attacker.random

    async def once() -> None:
        kind = random.randrange(4)
        if kind == 0:
            content = bytearray(image_bytes(8))
            for _ in range(random.randrange(1, 20)):
                content[random.randrange(len(content))] = random.randrange(256)
            await attacker.ask(await attacker.upload(bytes(content)), QUESTIONS[0])
        elif kind == 1:
            cut = random.randrange(len(form))
            content = random.choice(
                [form[:cut], form[:cut] + form[cut + 1 :], form.replace(b"; filename", b"; file"), form * 2]
            )
            headers = {
                "content-type": random.choice(["multipart/form-data; boundary=x", "multipart/form-data", "text/html"])
            }
            query = random.choice(["", "?upload_id=abc"])
            await attacker.send("POST", f"/gradio_api/upload{query}", content=content, headers=headers)
        elif kind == 2:
            path = random.choice(["queue/join", "call/vqa", "call/nope", "cancel", "reset"])
            headers = {"content-type": "application/json"}
            content = random.choice([mutate_json, mutate_text])(good, random)
            await attacker.send("POST", f"/gradio_api/{path}", content=content, headers=headers)
        else:
            path = random.choice(
                ["call/vqa/abc", "queue/data", "file=/etc/passwd", "upload_progress?upload_id=%00", "%ff"]
            )
            await attacker.send(random.choice(["GET", "HEAD", "POST", "PUT", "DELETE"]), f"/gradio_api/{path}")

    await repeat(attacker, 8, once)


async def scripts(attacker: Attacker) -> None:
    """HTML and scripts in file names, questions, choices and links."""

    async def once() -> None:
        text = attacker.random.choice(SCRIPTS)
        image = await attacker.upload(image_bytes(9), f"{text}.html")
        await attacker.ask(image, text)
        if image is not None:
            await attacker.send("GET", f"/gradio_api/file={image['path']}")
        await attacker.send("GET", "/", params={"task": text, "example": "stars", "text": text, "layer": text})

    await repeat(attacker, 4, once)


ATTACKS = (large_images, questions, flood, slow_writers, slow_readers, mutations, scripts)


def attack(url: str, seconds: float, clients: int = 1) -> Counter[str]:
    """All attacks at once; how many answers of each status there were."""
    got: Counter[str] = Counter()

    async def all_at_once() -> None:
        end = time.monotonic() + seconds
        kinds = [kind for kind in ATTACKS for _ in range(clients)]
        attackers = [Attacker(url, f"127.0.0.{number}", end, got) for number in range(2, 2 + len(kinds))]
        await asyncio.gather(*(kind(attacker) for kind, attacker in zip(kinds, attackers, strict=True)))

    asyncio.run(all_at_once())
    return got


@contextmanager
def attacked(url: str, seconds: float, clients: int = 1) -> Iterator[Any]:
    """Attack from a process of its own while the block runs; yields the future of what [`attack`] returns."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool.submit(attack, url, seconds, clients)


def ask_in_browser(url: str, seconds: float) -> tuple[list[float], list[str]]:
    """Seconds of each answer that a page in Chromium gets, and what its scripts did that they should not."""
    from playwright.sync_api import sync_playwright

    times, errors = [], []
    with sync_playwright() as started:
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: (errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(url)
        tab = page.locator("#vb-vqa")
        tab.locator(".vb-seen svg").first.wait_for()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            text = f"Is thing {len(times)} red? {SCRIPTS[len(times) % len(SCRIPTS)]}"
            tab.get_by_label("Question").fill(text)
            start = time.monotonic()
            tab.get_by_role("button", name="Ask").click()
            page.wait_for_function("text => new URLSearchParams(location.search).get('text') === text", arg=text)
            times.append(time.monotonic() - start)
            page.wait_for_timeout(300)
        browser.close()
    return times, errors


def report(
    got: Counter[str], visitor: Result, seen: tuple[list[float], list[str]] | None, args: argparse.Namespace
) -> None:
    """Print the table, and append a line to the results."""
    record = {
        "date": datetime.date.today().isoformat(),
        **hardware(),
        **{"clock": "wall", "workload": "demo_attack", "model": args.model or "tiny"},
        **{"seconds": args.seconds, "clients": args.clients * len(ATTACKS), "answers": dict(sorted(got.items()))},
        **{"memory_before_mb": round(visitor.memory_before), "memory_peak_mb": round(visitor.memory_peak)},
        **{"visitor_answers": len(visitor.seconds), "visitor_errors": len(visitor.errors)},
        **{f"visitor_p{share}_ms": round(visitor.percentile(share / 100)) for share in (50, 95) if visitor.seconds},
    }
    if seen is not None:
        page = Result(seconds=seen[0], errors=seen[1])
        record |= {"page_answers": len(page.seconds), "page_errors": len(page.errors)}
        record |= {f"page_p{share}_ms": round(page.percentile(share / 100)) for share in (50, 95) if page.seconds}
    print("\n| | |\n|---|---|")
    print(f"| requests | {sum(got.values())}: {', '.join(f'{n} x {what}' for what, n in sorted(got.items()))} |")
    print(f"| answers of status 500 | {got['500']} |")
    for name, value in record.items():
        if name.startswith(("memory", "visitor", "page_")):
            print(f"| {name.replace('_', ' ')} | {value} |")
    for error in sorted({*visitor.errors, *(seen[1] if seen else ())})[:5]:
        print(error)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a question answering checkpoint; a tiny one when not given")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=1, help="addresses of each kind of attack")
    parser.add_argument("--browser", action="store_true", help="a page in Chromium asks too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            from tiny_checkpoints import save_tiny_checkpoint

            save_tiny_checkpoint("vqa", folder)
        with running_demo(args.model or folder) as (url, process_id):
            asyncio.run(visit(url, 1, 3.0, 0.0, process_id))  # warm up
            with attacked(url, args.seconds, args.clients) as got, ProcessPoolExecutor(1) as pool:
                page = pool.submit(ask_in_browser, url, args.seconds - 5) if args.browser else None
                time.sleep(2.0)
                visitor = asyncio.run(visit(url, 1, args.seconds - 3, 0.2, process_id))
                report(got.result(), visitor, page.result() if page else None, args)


if __name__ == "__main__":
    main()
