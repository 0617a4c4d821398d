"""Runs code in a process that cannot import this package and has Hugging Face folders of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

_PRELUDE = "import sys\nsys.modules['modeling_visualbert'] = None\n"


def run_clean(code, home, hub=None, token="hf_tester", **variables):
    """
    Standard output of the code.

    Args:
        code: A Python program; it may read variables from `VARIABLES`, a JSON object.
        home: Folder for caches, made when missing.
        hub: A running `hub_server.Hub`; offline without one.
        token: Of the Hub.
        variables: Content of `VARIABLES`.
    """
    Path(home).mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HF_MODULES_CACHE")}
    environment |= {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1"} if hub is None else hub_environment(hub, token)
    program = f"{_PRELUDE}import json\nVARIABLES = json.loads({json.dumps(json.dumps(variables))})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=home, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def hub_environment(hub, token="hf_tester"):
    """Environment variables that make `huggingface_hub` talk to a server on this machine."""
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
