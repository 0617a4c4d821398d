"""The demo under load: answer times for one visitor after a warm-up, then for many visitors at once, and the server's memory.

    python benchmarks/bench_demo.py --model runs/vqa/best --users 50 --seconds 60 --pause 2

Each visitor opens the page, uploads an image and asks one question after another, as a browser does: a POST to the queue, then
a stream of events until the answer arrives. On a busy machine, the times say little; the processor time per answer tells what a
quiet machine would achieve. Server and visitors share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from modeling_visualbert.corpus.scenes import render, sample_scene

QUESTIONS = (
    "How many things are there?",
    "What color is the big thing?",
    "Is there a red square?",
    "Are there more circles than stars?",
)


@dataclass
class Result:
    """Seconds of every answer, errors, the memory of the server in MB, and the processor seconds that it used."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    memory_before: float = 0.0
    memory_peak: float = 0.0
    memory_after: float = 0.0
    processor_seconds: float = 0.0

    def percentile(self, share: float) -> float:
        """Milliseconds within which this share of the answers arrived."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def running_demo(*models: str) -> AbstractContextManager[tuple[str, int]]:
    """Address and process id of a demo of these models on a free port; it ends with the block."""
    flags = [flag for model in models for flag in ("--model", model)]
    return running([sys.executable, "-u", "-m", "modeling_visualbert.cli", "demo", *flags])


@contextmanager
def running(command: list[str], **environment: str) -> Iterator[tuple[str, int]]:
    """Address and process id of a command that serves the demo."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "GRADIO_SERVER_NAME": "127.0.0.1", **environment},
    )
    lines: list[str] = []
    address: list[str] = []
    ready = threading.Event()

    def read() -> None:
        for line in process.stdout or ():
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                address.append(found.group())
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        if not ready.wait(timeout=300) or not address:
            raise RuntimeError("the demo did not start:\n" + "".join(lines))
        yield address[0], process.pid
    finally:
        process.terminate()
        process.wait(timeout=120)
        reader.join(timeout=10)


def memory_mb(process_id: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def processor_seconds(process_id: int) -> float:
    """Processor time of a process, which does not depend on other processes on the machine."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def image_bytes(number: int) -> bytes:
    """A rendered scene as PNG."""
    buffer = io.BytesIO()
    render(sample_scene(number, f"bench/{number}")).save(buffer, "PNG")
    return buffer.getvalue()


class Visitor:
    """One browser: opens the page, uploads an image, asks."""

    def __init__(self, client: httpx.AsyncClient, number: int):
        self.client, self.number = client, number
        self.session = uuid.uuid4().hex[:12]
        self.file: dict = {}

    async def arrive(self) -> None:
        page = await self.client.get("/")
        page.raise_for_status()
        files = {"files": (f"{self.number}.png", image_bytes(self.number))}
        uploaded = await self.client.post("/gradio_api/upload", files=files)
        uploaded.raise_for_status()
        self.file = {"path": uploaded.json()[0], "meta": {"_type": "gradio.FileData"}}

    async def ask(self, question: str) -> None:
        """Ask one question; raises RuntimeError with the message of the server if there is no answer."""
        data = [self.file, question, "", 0, -1, ""]
        body = {"data": data, "fn_index": 0, "session_hash": self.session}
        joined = await self.client.post("/gradio_api/queue/join", json=body)
        if joined.status_code != 200:
            raise RuntimeError(joined.text)
        url = f"/gradio_api/queue/data?session_hash={self.session}"
        async with self.client.stream("GET", url) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    if message["msg"] == "process_completed":
                        if message["success"] and "vb-bars" in message["output"]["data"][0]:
                            return
                        raise RuntimeError(json.dumps(message["output"])[:300])
        raise RuntimeError("the stream ended without an answer")


async def visit(address: str, users: int, seconds: float, pause: float, process_id: int) -> Result:
    """Many visitors at once for some time; each waits `pause` seconds between an answer and the next question."""
    result = Result(memory_before=memory_mb(process_id))
    # Shorter than the server keeps them, so that none is closed while it is used.
    limits = httpx.Limits(max_connections=4 * users, keepalive_expiry=2.0)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits, trust_env=False) as client:
        visitors = [Visitor(client, number) for number in range(users)]
        await asyncio.gather(*(visitor.arrive() for visitor in visitors))
        end, busy_before = time.perf_counter() + seconds, processor_seconds(process_id)

        async def stay(visitor: Visitor) -> None:
            asked = visitor.number
            await asyncio.sleep(pause * visitor.number / users)
            while time.perf_counter() < end:
                start = time.perf_counter()
                try:
                    await visitor.ask(QUESTIONS[asked % len(QUESTIONS)])
                    result.seconds.append(time.perf_counter() - start)
                except (RuntimeError, httpx.HTTPError) as error:
                    result.errors.append(f"{type(error).__name__}: {error}")
                    await asyncio.sleep(0.1)
                asked += 1
                await asyncio.sleep(pause)

        async def watch() -> None:
            while True:
                result.memory_peak = max(result.memory_peak, memory_mb(process_id))
                await asyncio.sleep(0.2)

        watcher = asyncio.create_task(watch())
        await asyncio.gather(*map(stay, visitors))
        watcher.cancel()
        result.processor_seconds = processor_seconds(process_id) - busy_before
    result.memory_after = memory_mb(process_id)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a question answering checkpoint")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between an answer and the next question")
    args = parser.parse_args()
    with running_demo(args.model) as (address, process_id):
        asyncio.run(visit(address, 1, 3.0, 0.0, process_id))  # warm up
        alone = asyncio.run(visit(address, 1, 10.0, 0.2, process_id))
        report("one visitor", alone)
        report(
            f"{args.users} visitors, {args.pause} s between questions",
            asyncio.run(visit(address, args.users, args.seconds, args.pause, process_id)),
        )


def report(name: str, result: Result) -> None:
    print(f"{name}: {len(result.seconds)} answers, {len(result.errors)} errors")
    if result.seconds:
        shares = ", ".join(f"p{round(100 * share)} {result.percentile(share):.0f}" for share in (0.5, 0.95, 0.99))
        print(f"  milliseconds: mean {1000 * statistics.mean(result.seconds):.0f}, {shares}")
        print(
            f"  processor time of the server: {1000 * result.processor_seconds / len(result.seconds):.0f} ms an answer"
        )
    memory = f"before {result.memory_before:.0f}, peak {result.memory_peak:.0f}, after {result.memory_after:.0f}"
    print(f"  server memory in MB: {memory}")
    for error in sorted(set(result.errors))[:5]:
        print(f"  {error}")


if __name__ == "__main__":
    main()
