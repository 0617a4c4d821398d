"""Opening checkpoints: is it a folder or a Hub name, which task is it for, and the model with the head it was saved with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, PretrainedConfig, PreTrainedModel

from .hub_code import modeling_visualbert
from .hub_code.configuration_visualbert import VisualBertConfig
from .hub_code.files_visualbert import IMAGE_PROCESSOR_FILES, check_json_files, config_file, naming
from .hub_code.modeling_region_encoder import RegionEncoder
from .hub_code.pixels_visualbert import REGION_ENCODERS
from .hub_code.tasks_visualbert import HEADS, VisualBertTask

HEAD_CLASSES: dict[str, type[PreTrainedModel]] = {  # by task
    task.name: getattr(modeling_visualbert, task.head) for task in HEADS.values()
}


_FILES = (".bin", ".ckpt", ".json", ".pkl", ".pt", ".pth", ".safetensors", ".th", ".yaml")  # no Hub name ends so


def check_name(name: str | Path, what: str = "checkpoint") -> None:
    """Refuse a mistyped path before anything asks the Hub for it. A Hub name is "model" or "user/model".

    Raises:
        FileNotFoundError: It can only be a path, and there is nothing.
    """
    name = str(name)
    if Path(name).exists() and name:
        return
    if not name or Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise FileNotFoundError(f"{name!s}: no such {what} folder" if name else f"no name is given; expected a {what}")
    if Path(name).suffix in _FILES:
        raise FileNotFoundError(f"{name}: no such file")


def open_config(name: str | Path) -> Any:
    """The configuration of a checkpoint of any kind, by folder or Hub name.

    Raises:
        OSError: There is none, or the Hub cannot be reached.
        ValueError: It is damaged; the message names the file.
    """
    check_json_files(name, "config.json")
    with naming(config_file(name)):
        return AutoConfig.from_pretrained(name)


def open_image_processor(name: str | Path) -> Any:
    """The image processor of a checkpoint or of its region encoder, by folder or Hub name.

    Raises:
        OSError: There is none, or the Hub cannot be reached.
        ValueError: It is damaged; the message names the file.
    """
    check_json_files(name, *IMAGE_PROCESSOR_FILES)
    file = next((file for file in IMAGE_PROCESSOR_FILES if (Path(name) / file).is_file()), IMAGE_PROCESSOR_FILES[0])
    with naming(f"{name}/{file}"):
        return AutoImageProcessor.from_pretrained(name)


def architecture(config: PretrainedConfig, default: str = "unknown") -> str:
    """Name of the class that a checkpoint was saved as; `default` when its configuration does not say."""
    return (config.architectures or [default])[0]


def trained_labels(name: str | None, head: type[PreTrainedModel]) -> list[str] | None:
    """The answers or labels of a checkpoint, in the order of its logits; None without a checkpoint, or if it has another head."""
    if name is None:
        return None
    config = open_config(name)
    if architecture(config) != head.__name__:
        return None
    return [config.id2label[index] for index in sorted(config.id2label)]


def check_checkpoint_name(name: str | Path) -> None:
    """
    What names a checkpoint; see [`check_name`].

    Raises:
        FileNotFoundError: It looks like a folder and is not there, or has no checkpoint.
        ValueError: It cannot be a name.
    """
    check_name(name)
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        best = folder / "best"
        hint = f"; the model of this training run is in {best}" if (best / "config.json").is_file() else ""
        raise FileNotFoundError(f"{name}: no config.json; expected the folder of a checkpoint{hint}")


def check_task(name: str | Path, expected: str | None = None) -> VisualBertTask:
    """
    The task of a checkpoint.

    Args:
        name: Folder or Hub name.
        expected: Name of the task that it has to be for, such as "vqa"; any when not given.

    Raises:
        FileNotFoundError: It looks like a folder and is not there.
        ValueError: It has no head of ours, or that of another task.
    """
    check_checkpoint_name(name)
    check_json_files(name, "config.json")
    try:
        fields, _ = PretrainedConfig.get_config_dict(name)
    except OSError as error:
        what = "" if Path(name).exists() else "no folder of this name is here, and the Hub's cannot be opened: "
        raise OSError(f"{name}: {what}{' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{config_file(name)}: holds a {type(fields).__name__}; expected a JSON object")
    if (kind := fields.get("model_type")) != VisualBertConfig.model_type:
        raise ValueError(f"{name}: config.json has model_type {kind!r:.60}; expected {VisualBertConfig.model_type!r}")
    listed = fields.get("architectures") or ["unknown"]
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise ValueError(f"{config_file(name)}: architectures is {listed!r:.60}; expected a list of names")
    found = listed[0]
    wanted = list(HEADS) if expected is None else [task.head for task in HEADS.values() if task.name == expected]
    if found not in wanted:
        one_of = "one of " if len(wanted) > 1 else ""
        raise ValueError(f"{name} is a {found} checkpoint; expected {one_of}{', '.join(wanted)}")
    return HEADS[found]


def read_task(name: str | Path, expected: str | None = None) -> tuple[VisualBertTask, Any]:
    """The task of a checkpoint and its configuration; see [`check_task`] for what is refused."""
    return check_task(name, expected), open_config(name)


def load_model(name: str | Path, expected: str | None = None) -> PreTrainedModel:
    """
    The model of a checkpoint with the head that it was saved with, in evaluation mode; see [`check_task`] for what is refused.
    """
    task, _ = read_task(name, expected)
    return HEAD_CLASSES[task.name].from_pretrained(name).eval()


def load_inner_region_encoder(name: str | Path) -> RegionEncoder | None:
    """
    The region encoder inside a VisualBERT checkpoint, in evaluation mode, without reading the rest of the weights; None if there
    is none inside.
    """
    config = open_config(name)
    inner = getattr(config, "region_encoder_config", None)
    if inner is None:
        return None
    prefix = {r"^(visual_bert\.)?region_encoder\.": ""}
    return REGION_ENCODERS[inner.model_type].from_pretrained(name, config=inner, key_mapping=prefix).eval()


__all__ = [
    "HEAD_CLASSES",
    "architecture",
    "check_checkpoint_name",
    "check_name",
    "check_task",
    "load_inner_region_encoder",
    "load_model",
    "open_config",
    "open_image_processor",
    "read_task",
]
