"""Checkpoints to resume from.

Each is written under another name, brought to disk and then renamed, so that neither a killed run nor a power cut leaves one that
looks complete and is not. `run_state.json` has the size and the checksum of every file, because disks and copies fail as well.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.checkpointing import save_accelerator_state, save_custom_state
from accelerate.utils import broadcast_object_list

from ..data.files import read_json
from ..disk import sync, sync_folder
from .sharding import complete_state, is_sharded

logger = logging.getLogger(__name__)

_STATE = "run_state.json"


class CheckpointWriter:
    """Writes `<folder>/step-00000123` with model, optimiser, scaler and a state, and removes all but the newest `keep`.

    Where every process has the whole model, training waits for a copy in memory only: the main process writes it in a thread.
    Sharded models are written by all processes together, while training waits.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, keep: int):
        self.accelerator, self.folder, self.keep = accelerator, folder, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, state: dict) -> None:
        """Write a checkpoint; to be called by all processes.

        Raises:
            OSError: The one before could not be written.
        """
        self.wait()
        if is_sharded(self.accelerator):
            self._save_sharded(step, state)
        elif self.accelerator.is_main_process:
            parts = _Parts(self.accelerator)
            self._thread = threading.Thread(target=self._write, args=(parts, step, state), name="checkpoint")
            self._thread.start()

    def wait(self) -> None:
        """Wait until the checkpoint is on disk.

        Raises:
            OSError: It could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, parts: _Parts, step: int, state: dict) -> None:
        try:
            draft = self._draft(step)
            parts.write(draft)
            self._publish(draft, step, state)
        except BaseException as error:  # of a thread: raised by `wait`
            self._error = error
            self._remove_drafts()

    def _save_sharded(self, step: int, state: dict) -> None:
        draft = self.folder / f".step-{step:08d}.tmp"
        if self.accelerator.is_main_process:
            self._draft(step)
        self.accelerator.wait_for_everyone()
        for one in self.accelerator._optimizers:
            complete_state(one.optimizer)
        self.accelerator.save_state(str(draft))
        sync_folder(draft)  # by every process: on another machine nobody else can
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._publish(draft, step, state)
        self.accelerator.wait_for_everyone()

    def _draft(self, step: int) -> Path:
        """A new folder to write to; what killed runs have left is removed."""
        self._remove_drafts()
        draft = self.folder / f".step-{step:08d}.tmp"
        draft.mkdir(parents=True)
        return draft

    def _remove_drafts(self) -> None:
        for draft in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(draft)

    def _publish(self, draft: Path, step: int, state: dict) -> None:
        files = {
            path.relative_to(draft).as_posix(): checksum(path) for path in sorted(draft.rglob("*")) if path.is_file()
        }
        (draft / _STATE).write_text(json.dumps({**state, "files": files}, indent=1), encoding="utf-8")
        sync_folder(draft)
        final = self.folder / f"step-{step:08d}"
        if final.exists():
            _remove(final)
        draft.rename(final)
        sync(self.folder)
        for old in list_checkpoints(self.folder)[: -self.keep]:
            _remove(old)


class _Parts:
    """A copy in host memory of what the accelerator saves, in the form in which it is written."""

    def __init__(self, accelerator: Accelerator):
        copies: dict[Any, torch.Tensor] = {}
        # What `Accelerator.save_state` saves; it writes at once and has no other way to take it apart.
        # Of tied weights it writes one, but only where the state is an ordered dict.
        self.models = [
            OrderedDict(to_host(accelerator.get_state_dict(model, unwrap=False), copies))
            for model in accelerator._models
        ]
        self.optimizers = [_Kept(to_host(one.state_dict(), copies)) for one in accelerator._optimizers]
        self.others = [_Kept(to_host(one.state_dict(), copies)) for one in accelerator._custom_objects]
        self.scaler = None if accelerator.scaler is None else _Kept(accelerator.scaler.state_dict())
        self.process, self.step = accelerator.process_index, accelerator.step

    def write(self, folder: Path) -> None:
        save_accelerator_state(str(folder), self.models, self.optimizers, [], [], self.process, self.step, self.scaler)
        for number, one in enumerate(self.others):
            save_custom_state(one, str(folder), number)


class _Kept:
    def __init__(self, state: dict):
        self.state = state

    def state_dict(self) -> dict:
        return self.state


def to_host(value: Any, copies: dict[Any, torch.Tensor]) -> Any:
    """Copies of the tensors of a nested state in host memory. Tied weights stay tied: Accelerate writes them once."""
    if isinstance(value, torch.Tensor):
        # Tensors of other classes, such as those of 8 bits, have their numbers elsewhere.
        is_plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.numel()
        key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride()) if is_plain else id(value)
        if key not in copies:
            copies[key] = value.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(value, Mapping):
        return {key: to_host(item, copies) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_host(item, copies) for item in value)
    return value


def checksum(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    size = value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            size, value = size + len(block), zlib.crc32(block, value)
    return [size, value]


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint; one that is half removed does not look complete."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / _STATE).is_file())


def newest_checkpoint(accelerator: Accelerator, folder: Path) -> Path | None:
    """The newest checkpoint that is whole, the same in all processes; damaged ones are named in the log.

    Raises:
        ValueError: There are checkpoints, but all are damaged.
    """
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        checkpoints = list_checkpoints(folder)
        for path in reversed(checkpoints):
            damage = damage_of(path)
            if damage is None:
                found[0] = str(path)
                break
            logger.warning("damaged: %s; the checkpoint before it is used", damage)
            found[1] = f"{damage}, and no earlier checkpoint is whole; expected one, or a new --output_dir"
    path, damage = broadcast_object_list(found)
    if path is None and damage is not None:
        raise ValueError(damage)
    return None if path is None else Path(path)


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, as a line that names the file. Those of earlier versions have no checksums."""
    try:
        files = read_state(checkpoint).get("files", {})
    except (OSError, ValueError) as error:
        return str(error)
    for name, (size, value) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{path}: no such file"
        found = checksum(path)
        if found[0] != size:
            return f"{path}: {found[0]} bytes, not {size}"
        if found[1] != value:
            return f"{path}: its checksum is another than when it was written"
    return None


def read_state(path: Path) -> dict:
    """What was given to [`CheckpointWriter.save`] as `state`.

    Raises:
        FileNotFoundError: The folder is not a complete checkpoint.
        ValueError: Its state cannot be read.
    """
    if not (path / _STATE).is_file():
        raise FileNotFoundError(f"{path}: not a complete checkpoint ({_STATE} is missing)")
    state = read_json(path / _STATE)
    if not isinstance(state, dict) or "progress" not in state:
        raise ValueError(f"{path / _STATE}: no `progress`; expected the state of a run")
    return state


def load_checkpoint(accelerator: Accelerator, path: Path) -> dict:
    """Load model and optimiser, and return the state.

    Raises:
        FileNotFoundError: The folder is not a complete checkpoint.
        ValueError: It is that of a sharded model and this one is whole, or the other way round.
    """
    state, is_whole = read_state(path), (path / "model.safetensors").is_file()
    if is_whole == is_sharded(accelerator):
        kinds = ("a whole model", "a sharded one") if is_whole else ("a sharded model (FSDP2)", "a whole one")
        raise ValueError(
            f"{path}: checkpoint of {kinds[0]}, but this run trains {kinds[1]}; expected the same configuration of Accelerate, "
            f"or a new --output_dir and --init_from {path.parents[1] / 'best'}"
        )
    accelerator.load_state(str(path))
    return state
