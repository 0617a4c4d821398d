"""What every surface of the campaign shares: an attempt in a process of its own, the verdict on it, and the count.

    mutated input ──► attempt ──► Outcome ──► judge ──► answered, refused clearly or bad

A surface is a test with Hypothesis, `@examples(60)` times in CI and `FUZZ_TIMES` as often with `make fuzz`::

    def usual():                    # what the door takes for a good input
        return attempt(lambda: read(GOOD))

    @examples(60)
    @given(strategies.binary())
    def test_files(content):
        path.write_bytes(content)
        judge("text files", attempt(lambda: read(path)), names=[path.name], usual=usual)

An attempt that runs elsewhere, such as in a server, is an `Outcome` that the surface makes itself.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import select
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hypothesis import HealthCheck, settings

SECONDS, MEGABYTES = 2.0, 300.0  # of processor time and of memory, beyond what the door takes for a good input
LONGEST_MESSAGE = 1000  # characters
VERDICTS = ("answered", "refused clearly", "bad")
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))  # as many inputs as in CI, times this; drawn anew if it is more than 1

counts: dict[str, Counter[str]] = defaultdict(Counter)  # verdicts by surface; `conftest.py` prints them

_KILLED_AFTER = 60.0  # seconds, on a busy machine
_ADDRESSES = 16 << 30  # bytes that an attempt may reserve more than there are: it fails before the machine does
_OURS = (ValueError, OSError, ImportError)


@dataclass(frozen=True)
class Outcome:
    """What an attempt ended in.

    Args:
        answer: `repr` of what was returned; None if something was raised.
        error: Type of what was raised, or how the process died.
        said: Its message.
        is_ours: Whether its type is one that our functions raise.
        seconds: Processor time.
        megabytes: Peak memory, less that at the start.
    """

    answer: str | None = None
    error: str = ""
    said: str = ""
    is_ours: bool = False
    seconds: float = 0.0
    megabytes: float = 0.0


def examples(count: int) -> settings:
    """The settings of a surface: the same `count` inputs in every run of CI, others and more of them with `make fuzz`."""
    return settings(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,  # the verdict has its own
        suppress_health_check=list(HealthCheck),
    )


def attempt(run: Callable[[], Any]) -> Outcome:
    """Call `run` in a fork of this process, which may die, hang or take all memory without harm to the others."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            faulthandler.disable()  # how it died is part of the outcome
            sys.settrace(None)  # Hypothesis explains failures by a tracer, with which code takes thirty times as long
            gc.freeze()  # all that a long campaign holds would be looked at, and thereby copied, on the attempt's account
            _limit_addresses()
            outcome = asdict(_outcome_of(run))
            with os.fdopen(writing, "w") as pipe:
                json.dump(outcome, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = _read_in_time(pipe, child)
    _, status = os.waitpid(child, 0)
    if content:
        return Outcome(**json.loads(content))
    how = f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "died without a word"
    return Outcome(error=how)


def _read_in_time(pipe: Any, child: int) -> bytes:
    end, content = time.monotonic() + _KILLED_AFTER, b""
    while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
        block = os.read(pipe.fileno(), 1 << 16)
        if not block:
            return content
        content += block
    os.kill(child, signal.SIGKILL)
    return b""


def _limit_addresses() -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESSES, resource.RLIM_INFINITY))


def _outcome_of(run: Callable[[], Any]) -> Outcome:
    started, memory = time.process_time(), _peak_megabytes()
    answer, error, said, is_ours = None, "", "", False
    try:
        answer = repr(run())
    except BaseException as raised:
        error, said, is_ours = type(raised).__name__, str(raised), isinstance(raised, _OURS)
    return Outcome(answer, error, said, is_ours, time.process_time() - started, _peak_megabytes() - memory)


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def judge(surface: str, outcome: Outcome, names: Sequence[str], usual: Outcome, answers: Any = None) -> str:
    """Count an outcome, and fail if it is bad.

    Args:
        surface: What it counts for.
        outcome: Of the attempt.
        names: The message has to contain one of these: the file, field, key or argument that is wrong.
        usual: Of a good input at the same door.
        answers: Which answers are right, as a function of `Outcome.answer`; any when not given.

    Returns:
        The verdict.
    """
    reason = why_bad(outcome, names, usual, answers)
    verdict = "bad" if reason else "answered" if outcome.answer is not None else "refused clearly"
    counts[surface][verdict] += 1
    assert not reason, f"{surface}: {reason}"
    return verdict


def why_bad(outcome: Outcome, names: Sequence[str], usual: Outcome, answers: Any = None) -> str:
    """What is wrong with an outcome; nothing if it is an answer or a clear refusal."""
    if outcome.seconds > usual.seconds + SECONDS:
        return f"it took {outcome.seconds:.1f} s; a good input {usual.seconds:.1f} s"
    if outcome.megabytes > usual.megabytes + MEGABYTES:
        return f"it took {outcome.megabytes:.0f} MB; a good input {usual.megabytes:.0f} MB"
    if outcome.answer is not None:
        return "" if answers is None or answers(outcome.answer) else f"another answer: {outcome.answer:.300}"
    said = f"{outcome.error}: {outcome.said}"
    if not outcome.is_ours:
        return f"an error of others, {said:.300}"
    if "\n" in outcome.said.strip() or len(outcome.said) > LONGEST_MESSAGE:
        return f"a message of several lines, {said!r:.300}"
    if not any(name in outcome.said for name in names):
        return f"a message that names none of {', '.join(names)}, {said:.300}"
    return ""


def table(found: dict[str, Counter[str]]) -> list[str]:
    """The lines of the table: tried, answered, refused clearly and bad, by surface and in all."""
    rows = sorted((surface, [of_surface[verdict] for verdict in VERDICTS]) for surface, of_surface in found.items())
    rows.append(("all", [sum(column) for column in zip(*(numbers for _, numbers in rows), strict=True)]))
    lines = ["| surface | tried | answered | refused clearly | bad |", "|---|---|---|---|---|"]
    return lines + [f"| {name} | {sum(numbers)} | {' | '.join(map(str, numbers))} |" for name, numbers in rows]
