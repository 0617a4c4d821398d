"""Checkpoints to resume from. Each is written under another name and then renamed, so a killed run leaves only complete ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from accelerate import Accelerator

from ..data.files import read_json

_STATE = "run_state.json"


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, state: dict, keep: int) -> None:
    """Write `<folder>/step-00000123` with model, optimiser, scaler and `state`; remove all but the newest `keep`."""
    final, draft = folder / f"step-{step:08d}", folder / f".step-{step:08d}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(draft))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (draft / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / _STATE).is_file())


def read_state(path: Path) -> dict:
    """What was given to [`save_checkpoint`] as `state`.

    Raises:
        FileNotFoundError: The folder is not a complete checkpoint.
    """
    if not (path / _STATE).is_file():
        raise FileNotFoundError(f"{path}: not a complete checkpoint ({_STATE} is missing)")
    return read_json(path / _STATE)


def load_checkpoint(accelerator: Accelerator, path: Path) -> dict:
    """Load model and optimiser, and return the state.

    Raises:
        FileNotFoundError: The folder is not a complete checkpoint.
    """
    state = read_state(path)
    accelerator.load_state(str(path))
    return state
