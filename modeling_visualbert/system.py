"""What Linux, macOS, Windows and their processors do differently."""

from __future__ import annotations

import io
import multiprocessing
import signal
import sys

# What asks a process to stop. Windows has no SIGUSR1, which Slurm is told to send before time is up.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


def peak_memory_bytes() -> int | None:
    """The most memory that this process has used; None where the system does not count it."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil  # which accelerate needs

        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def lock(file: int) -> None:
    """
    Take an open file for this process, until it closes the file or ends. Processes that are forked from it do not have the lock.

    Raises:
        BlockingIOError, PermissionError: Another process has the file.
        OSError: The file system has no locks, as some of networks.
    """
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def can_fork() -> bool:
    """Whether a process can be made with all that is in this one."""
    return "fork" in multiprocessing.get_all_start_methods()


def multiplies_bf16() -> bool:
    """Whether this machine multiplies in bfloat16; processors without units for it take many times as long."""
    import torch

    units = torch.cpu.get_capabilities()
    return torch.cuda.is_available() or any(units.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def print_any_letter() -> None:
    """From now on, letters that the encoding of stdout lacks are printed as `\\u...`, where Python would raise an error: on
    Windows, the output of a command that goes to a file or another program has 251 letters."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


__all__ = ["STOP_SIGNALS", "can_fork", "lock", "multiplies_bf16", "peak_memory_bytes", "print_any_letter"]
