"""The oracle: what it takes for an answer, for a clear refusal, and for neither."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from campaign import Outcome, attempt, counts, judge, table

USUAL = Outcome(answer="1", seconds=0.1, megabytes=5.0)


def refuse(error):
    def run():
        raise error

    return run


def fill_memory():
    return len(b"x" * (400 << 20))


def turn_in_circles():
    end = time.process_time() + 2.5
    while time.process_time() < end:
        pass


def outgrow_the_machine():
    return bytearray(1 << 45)


def verdict(outcome, **options):
    try:
        return judge("of the oracle", outcome, ["config.json"], USUAL, **options)
    except AssertionError as error:
        return str(error)
    finally:
        counts.pop("of the oracle")


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda: 1, "answered"),
        (refuse(ValueError("a/config.json: 'x' is 3; expected a text")), "refused clearly"),
        (refuse(FileNotFoundError("a/config.json: no such file")), "refused clearly"),
        (refuse(KeyError("config.json")), "an error of others, KeyError"),
        (refuse(AttributeError("config.json")), "an error of others, AttributeError"),
        (refuse(SystemExit("config.json")), "an error of others, SystemExit"),
        (refuse(ValueError("Expecting value: line 1")), "a message that names none of config.json"),
        (refuse(ValueError("config.json: \nand so on")), "a message of several lines"),
        (refuse(ValueError("config.json: " + 2000 * "x")), "a message of several lines"),
        (fill_memory, "MB; a good input 5 MB"),
        (turn_in_circles, "s; a good input 0.1 s"),
        (outgrow_the_machine, "an error of others, MemoryError"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "an error of others, killed by signal 11"),
        (lambda: os._exit(3), "an error of others, died without a word"),
    ],
)
def test_verdicts(run, said):
    assert said in verdict(attempt(run))


def test_answers_may_be_checked():
    right, wrong = attempt(lambda: "yes"), attempt(lambda: "no")
    assert verdict(right, answers=lambda answer: answer == "'yes'") == "answered"
    assert "another answer: 'no'" in verdict(wrong, answers=lambda answer: answer == "'yes'")


def test_attempts_leave_this_process_as_it_was(tmp_path):
    before = Path.cwd(), dict(os.environ)
    attempt(lambda: (os.chdir(tmp_path), os.environ.update(FUZZ="1")))
    assert (Path.cwd(), dict(os.environ)) == before


def test_the_table_has_a_line_for_each_surface_and_one_for_all():
    found = {"images": Counter({"answered": 2, "bad": 1}), "files": Counter({"refused clearly": 4})}
    assert table(found)[2:] == ["| files | 4 | 0 | 4 | 0 |", "| images | 3 | 2 | 0 | 1 |", "| all | 7 | 2 | 4 | 1 |"]
