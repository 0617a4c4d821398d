"""A run's folder belongs to one run at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..system import lock as take

logger = logging.getLogger(__name__)

_LOCK = ".lock"


@contextmanager
def claimed(output_dir: Path, resume: bool, accelerator: Accelerator) -> Iterator[None]:
    """Hold the folder for this run, and mark it as a run's. The lock is the operating system's, so it ends with its process.

    A run that fails before it has logged or saved anything leaves the folder free.

    Raises:
        FileExistsError: The folder holds a run and `resume` is not set, or another run is at work in it.
    """
    lock, refused, log = None, None, output_dir / "log.jsonl"
    if accelerator.is_main_process:
        lock = _locked(output_dir)
        refused = _refusal(output_dir, resume, lock)
    try:
        if refusal := broadcast_object_list([refused])[0]:
            raise FileExistsError(refusal)
        if accelerator.is_main_process:
            if not log.exists():  # under the lock: only one of several runs finds the folder free
                log.touch()
            best, old = output_dir / "best", output_dir / ".best.old"
            if old.exists() and not best.exists():
                old.rename(best)  # the run was killed between the two renames of `save_model`
        accelerator.wait_for_everyone()
        yield
    except Exception:
        if lock is not None and not refused and _is_unused(output_dir):
            log.unlink(missing_ok=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _is_unused(output_dir: Path) -> bool:
    """Whether nothing of a run is there yet that could be continued."""
    log = output_dir / "log.jsonl"
    return not (log.is_file() and log.stat().st_size) and not any((output_dir / "checkpoints").glob("step-*"))


def _refusal(output_dir: Path, resume: bool, lock: int | None) -> str | None:
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    hint = f" (srun started {tasks} tasks that do not know of each other: see docs/scaling.md)" if tasks != "1" else ""
    if lock is None:
        return f"another run is at work in {output_dir}; wait for its end, or pass another --output_dir{hint}"
    if not resume and (output_dir / "log.jsonl").exists():
        return f"{output_dir} already holds a run; pass --resume to continue it, or another --output_dir{hint}"
    return None


def _locked(output_dir: Path) -> int | None:
    """The open lock file, or None if another process holds it. Processes that are forked from this one do not inherit it."""
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = os.open(output_dir / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        take(lock)
    except (BlockingIOError, PermissionError):
        os.close(lock)
        return None
    except OSError as error:  # some network file systems have no locks
        logger.warning("%s cannot be locked (%s): start no other run in it", output_dir, error.strerror)
    return lock


__all__ = ["claimed"]
