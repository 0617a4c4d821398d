"""Scripts started as users start them: in processes of their own, through Accelerate's launcher."""

import os
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def launcher(processes=1):
    """The beginning of a command line that runs a script on so many processes of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return command + (["--multi_gpu", "--main_process_port", str(port)] if processes > 1 else [])  # on the CPU too


def environment(**variables):
    """This process' environment with the package of this checkout, one thread, and more."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
