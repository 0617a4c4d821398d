"""How commands and scripts end: a mistake of the user is one line on stderr and exit status 2, not a traceback."""

from __future__ import annotations

import os
import select
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from ..disk import full_disk
from ..system import print_any_letter

DEBUG = "MODELING_VISUALBERT_DEBUG"  # if this variable is set, the traceback is shown as well


def exit_status(name: str, run: Callable[[], object]) -> int:
    """Run a command or a script and return its exit status.

    Args:
        name: What it is called in front of the message.
        run: Does the work.
    """
    print_any_letter()
    try:
        run()
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        print(f"{name}: {error if error.args else 'interrupted; run the same command again'}", file=sys.stderr)
        return 130  # as shells have it
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            return 141  # as shells have it
        if (status := _stopped(error)) is not None:
            if str(error):
                print(f"{name}: {error}", file=sys.stderr)
            return status
        if not _is_mistake(error):
            raise
        if os.environ.get(DEBUG):
            traceback.print_exc()
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)  # the Hub's have many lines
        return 2
    return 0


def _stopped(error: Exception) -> int | None:
    """The exit status of a training run that was asked to stop and has saved."""
    preemption = sys.modules.get("modeling_visualbert.training.preemption")  # needs packages that commands do without
    if preemption is None or not isinstance(error, preemption.RunStoppedError):
        return None
    return preemption.STOPPED_STATUS


def _reader_left() -> bool:
    """Whether nobody reads stdout any more, as after `| head`; what is still to be written to it then goes nowhere."""
    if not hasattr(select, "poll"):  # Windows, where such a pipe has another error
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always reported
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _is_mistake(error: Exception) -> bool:
    """Whether the message says what is wrong with files, arguments or numbers."""
    if isinstance(error, (ValueError, TypeError, OSError, ImportError, FloatingPointError)) or full_disk(error):
        return True
    from huggingface_hub.errors import StrictDataclassError

    return isinstance(error, StrictDataclassError)


def run_script(main: Callable[[], object]) -> None:
    """Run the `main` of a script and end its process."""
    sys.exit(exit_status(Path(sys.argv[0]).name, main))


__all__ = ["DEBUG", "exit_status", "run_script"]
