"""What is refused when weights are loaded: tensors that are missing, left over, of another shape, or not finite.

`transformers` warns and goes on with random weights, and a model with random weights answers as readily as a trained one.
"""

import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from itertools import chain
from math import prod
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from .files_visualbert import config_file, naming, read_json_object

# Beginnings of the names of a head's tensors; one of its parts may be new without the others.
_HEAD_PARTS = ("cls.", "fusion.", "cls.predictions.", "cls.seq_relationship.", "attention.")
# They start as copies of the text's (`special_visual_initialize`).
_REGION_TABLES = ("embeddings.visual_token_type_embeddings.", "embeddings.visual_position_embeddings.")
_INNER_PARTS = ("embeddings.", "encoder.", "additional_layer.", "region_encoder.")
# A pooler may be left out; the others are buffers of older checkpoints, 0, 1, 2, ... and zeros.
_HARMLESS = ("pooler.", "embeddings.position_ids", "embeddings.token_type_ids")
_INTEGERS = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")  # as safetensors has them
_MAX_HEADER = 10 << 20  # bytes of a safetensors file in front of its numbers
# Numbers that a model may have beside those of its files; small parts are told by name once it is loaded.
_MAX_NEW = 64 << 20
_ARCHIVE = b"PK\x03\x04"
_LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # in the first pickle of a file that an older torch.save wrote
_MOST_COPIES = 4  # of the numbers in a file: tied weights are there twice
_CHECKED_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_SHOWN = 5
Part = str | tuple[str, ...]

_new_parts: ContextVar[Sequence[Part]] = ContextVar("new_parts", default=())  # of the model that is being loaded


class CheckedModel(PreTrainedModel):
    """A model whose weights files are compared with it before memory is taken for it."""

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs):
        # Here `transformers` has found the files, on the disk or on the Hub, and the model has no memory yet.
        if checkpoint_files and state_dict is None:
            _check_stored(model, checkpoint_files, _new_parts.get())
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)


def load_checked(
    load: Callable, name: Any, args: Sequence[Any], kwargs: dict[str, Any], new_parts: Sequence[Part] = ()
) -> Any:
    """Load a model and refuse a checkpoint whose weights are not those of the model.

    Args:
        load: `from_pretrained` of `transformers` for the class.
        name, args, kwargs: Its arguments.
        new_parts: Beginnings of names, counted from the base model. The checkpoint may lack the tensors that begin so, or in one
            of several ways, if it lacks all of them. A head may be new if the checkpoint is of another class.

    Returns:
        What `load` returns.

    Raises:
        ValueError: The weights file is damaged; or tensors are missing, left over, of another shape or not finite.
    """
    if torch.get_default_device().type == "meta":  # no fault of the files; `transformers` says what it is
        return load(name, *args, **kwargs)
    check_files(Path(str(name)))
    wants_info = kwargs.pop("output_loading_info", False)
    may_mismatch = kwargs.pop("ignore_mismatched_sizes", False)
    token = _new_parts.set((*new_parts, *_HEAD_PARTS))
    try:
        with naming(name), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # which do not fit the weights
            model, info = load(name, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    finally:
        _new_parts.reset(token)
    if name is None and kwargs.get("state_dict") == {}:  # no checkpoint is meant: all weights are new
        return (model, info) if wants_info else model
    if kwargs.get("key_mapping"):  # is for reading only; `save_pretrained` would change the names back
        model._weight_conversions = None
    if not may_mismatch:
        for key, found, expected in info["mismatched_keys"]:
            raise ValueError(f"{name}: {key!r} has shape {tuple(found)}, expected {tuple(expected)}")
    is_same_class = _first_architecture(model.config, name) == type(model).__name__
    if not is_same_class:
        new_parts = (*new_parts, *_HEAD_PARTS)
    if not is_same_class or model.base_model is model:  # no trained head
        new_parts = (*new_parts, _REGION_TABLES)
    check_missing(model, info["missing_keys"], info["unexpected_keys"], new_parts, name)
    _check_left_over(model, info["unexpected_keys"], is_same_class, name)
    check_finite(model, name)
    return (model, info) if wants_info else model


def _first_architecture(config: Any, name: Any) -> str | None:
    listed = config.architectures or [None]
    if not isinstance(listed, list):
        raise ValueError(f"{name}: config.json: architectures is {listed!r:.60}; expected a list of names")
    return listed[0]


def check_files(folder: Path) -> None:
    """Look at the weights files of a local folder before `transformers` reads them; it fails on some without their names.

    Raises:
        FileNotFoundError: A file that an index lists is missing.
        ValueError: A file is damaged, or holds something else than tensors by name.
    """
    whole = folder / "model.safetensors"
    for path in [whole] if whole.is_file() else sorted(folder.glob("model-*-of-*.safetensors")):
        check_safetensors(path)
    if whole.is_file():  # which is read first
        return
    for index in sorted(folder.glob("*.index.json")):
        _check_index(index)
    for path in sorted(folder.glob("pytorch_model*.bin")):
        is_archive = check_archive(path)
        try:
            found = load_tensors(path, "meta", is_archive)
        except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, AttributeError) as error:
            said = "it holds Python objects, but weights only are read" if "GLOBAL" in str(error) else "it is damaged"
            raise ValueError(
                f"{path}: cannot be used: {said}; expected tensors by name, as torch.save wrote them"
            ) from error
        if not isinstance(found, dict):
            raise ValueError(f"{path}: holds a {type(found).__name__}; expected tensors by name")
        for key, value in found.items():
            if not isinstance(key, str):
                raise ValueError(f"{path}: has the key {key!r:.80}; expected tensors by name")
            # Others are told as left over: they may be what surrounds the weights in the file of a training run.
            if not isinstance(value, (torch.Tensor, dict, list)):
                raise ValueError(f"{path}: {key!r} is a {type(value).__name__}; expected a tensor")
        check_repeated(path, [value for value in found.values() if isinstance(value, torch.Tensor)])


def load_tensors(path: str | Path, device: str, mapped: bool) -> Any:
    """The content of a file of `torch.save`, without running code from it, and without torch's warning of pickles that are
    newer than its own.

    Args:
        path: The file.
        device: Where the tensors lie.
        mapped: Whether they are mapped into memory instead of read, which only an archive allows.

    Raises:
        Exception: It is damaged, or could run code; torch fails in many ways.
    """
    with Path(path).open("rb") as file:
        start = file.read(64)
    if not start.startswith(_ARCHIVE) and _LEGACY_MAGIC not in start:
        raise pickle.UnpicklingError("not written by torch.save")  # torch would go through all of it before it says so
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        return torch.load(path, map_location=device, weights_only=True, mmap=mapped)


def check_repeated(path: Path, tensors: Iterable[torch.Tensor]) -> None:
    """Refuse tensors that repeat the few numbers of a file: copied into a model, they would take any amount of memory.

    Raises:
        ValueError: They are several times as large as the file.
    """
    claimed, held = sum(value.numel() * value.element_size() for value in tensors), path.stat().st_size
    if claimed > _MOST_COPIES * held + (1 << 20):
        raise ValueError(
            f"{path}: tensors of {claimed:,} bytes in a file of {held:,}; expected one that holds its tensors"
        )


def check_safetensors(path: Path) -> None:
    """Look at the header of a safetensors file.

    Raises:
        ValueError: It is damaged, or does not fit the file.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if _MAX_HEADER < length < path.stat().st_size:
        raise ValueError(f"{path}: a header of {length:,} bytes; expected at most {_MAX_HEADER:,}")
    try:
        with safe_open(path, "pt"):
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{path}: damaged weights, expected safetensors ({error}); the file is truncated or of another format"
        ) from error


def _check_index(index: Path) -> None:
    found = read_json_object(index)
    files = found.get("weight_map")
    is_map = isinstance(files, dict) and all(isinstance(file, str) for file in files.values())
    if not files or not is_map or not isinstance(found.get("metadata"), dict):
        raise ValueError(
            f"{index}: no index of weights files; expected `metadata` and a `weight_map` of names and files"
        )
    for file in sorted(set(files.values())):
        if PurePath(file).name != file:
            raise ValueError(f"{index}: names the file {file!r}; expected files beside it")
        if not (index.parent / file).is_file():
            raise FileNotFoundError(f"{index.parent / file}: no such file; expected it because {index.name} lists it")


def check_archive(path: Path) -> bool:
    """Whether a file is an archive of `torch.save`; older ones are plain pickles.

    `torch` maps the bytes of the tensors as they lie in the file, so what others have made of an archive would be read as
    other numbers.

    Raises:
        ValueError: It is an archive, but not as `torch.save` wrote it.
    """
    with path.open("rb") as file:
        if file.read(4) != _ARCHIVE:
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path}: a damaged archive ({error}); expected it as torch.save wrote it") from error
    if problem := _archive_problem(members):
        raise ValueError(f"{path}: {problem}; expected it as torch.save wrote it")
    return True


def _archive_problem(members: Sequence[zipfile.ZipInfo]) -> str | None:
    """What distinguishes an archive from those of `torch.save`: one folder, each name once, nothing compressed."""
    names = Counter(member.filename for member in members)
    folder = members[0].filename.partition("/")[0] if members else ""
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED and f"{folder}/constants.pkl" not in names:
            return "an archive that was compressed again"
        if names[member.filename] > 1:
            return f"an archive with {member.filename} twice"
        if not member.filename.startswith(f"{folder}/"):
            return f"an archive with {member.filename} beside the folder {folder}"
    if f"{folder}/constants.pkl" in names:
        return "an archive of TorchScript, which holds code"
    if f"{folder}/data.pkl" not in names:
        return "an archive without data.pkl"
    if f"{folder}/version" not in names and f"{folder}/.data/version" not in names:
        return "an archive without version"
    return None


def check_missing(
    model: PreTrainedModel, keys: Iterable[str], unexpected: Iterable[str], new_parts: Sequence[Part], name: Any
) -> None:
    """Refuse missing tensors, unless all of a part that may be new are missing.

    Args:
        model: The model that the weights were read into.
        keys: Names of its tensors that the weights lack.
        unexpected: Names in the file that the model has no place for.
        new_parts: As for [`load_checked`].
        name: What was loaded, for the message.

    Raises:
        ValueError: Tensors are missing.
    """
    missing = {_in_base(model, key) for key in keys}
    if not missing:
        return
    tied = {_in_base(model, key) for key in model.all_tied_weights_keys}  # copies, which are never missing
    ours = {_in_base(model, key) for key in model.state_dict()} - tied
    present = ours - missing
    may_lack = [part for part in new_parts if not any(key.startswith(part) for key in present)]
    wrong = sorted(key for key in keys if not any(_in_base(model, key).startswith(part) for part in may_lack))
    if len(wrong) > len(present):
        others = ", ".join(map(repr, sorted(unexpected)[:3]))
        raise ValueError(
            f"{name}: {len(present)} of the {len(ours)} tensors of {type(model).__name__} are in it; expected its checkpoint"
            + (f", found {others}" if others else "")
        )
    if wrong:
        raise ValueError(f"{name}: the weights lack {_listed(wrong)}; expected every tensor of {type(model).__name__}")


def _check_left_over(model: PreTrainedModel, unexpected: Iterable[str], is_same_class: bool, name: Any) -> None:
    """Refuse tensors that the checkpoint's own configuration has no place for: it is that of another model, which computes
    something else. Another class than the one that was saved may leave a head."""
    is_ours = model.base_model_prefix == "visual_bert"  # towers are read out of larger models
    parts = ("",) if is_ours and is_same_class else _INNER_PARTS if is_ours else ("encoder.layer.", "region_encoder.")
    names = {key: _in_base(model, key) for key in unexpected}
    extra = sorted(key for key, name in names.items() if name.startswith(parts) and not name.startswith(_HARMLESS))
    if not extra:
        return
    saved, _ = type(model.config).get_config_dict(name)
    if all(
        saved.get(field) == getattr(model.config, field, None) for field in ("num_hidden_layers", "bypass_transformer")
    ):
        raise ValueError(
            f"{name}: its configuration has no place for the weights {_listed(extra)}; expected the configuration that they "
            "were saved with"
        )


def _check_stored(model: PreTrainedModel, files: Sequence[str], new_parts: Sequence[Part]) -> None:
    """Compare a model without memory with what its weights files say that they hold.

    Raises:
        ValueError: A file holds integers in the place of real numbers, which would be taken as they are: quantised weights
            without their scales. Or the model is much larger than its files.
    """
    is_quantised = getattr(model.config, "quantization_config", None) is not None
    real = {_in_base(model, key) for key, value in model.state_dict().items() if value.is_floating_point()}
    stored: dict[str, int] = {}  # most numbers, by every end of a name: files have prefixes that the model has not
    for path, key, dtype, shape in _stored(files):
        if dtype in _INTEGERS and not is_quantised and _in_base(model, key) in real:
            raise ValueError(f"{path}: {key!r} holds {dtype} numbers; expected floating point")
        parts = key.split(".")
        for start in range(len(parts)):
            end = ".".join(parts[start:])
            stored[end] = max(stored.get(end, 0), prod(shape))
    may_lack = tuple(part for part in new_parts if not any(end.startswith(part) for end in stored))
    lacking = {
        key: value
        for key, value in chain(model.named_parameters(), model.named_buffers())
        if value.numel() > stored.get(_in_base(model, key), 0)
        and not any(map(_in_base(model, key).startswith, may_lack))
    }
    if not is_quantised and sum(value.numel() for value in lacking.values()) > _MAX_NEW:
        key = max(lacking, key=lambda key: lacking[key].numel())
        raise ValueError(
            f"{config_file(model.name_or_path)}: {key} would have shape {tuple(lacking[key].shape)}; expected sizes that fit the "
            f"weights in {Path(files[0]).name}"
        )


def _stored(files: Sequence[str]) -> Iterator[tuple[str, str, str, Sequence[int]]]:
    """File, name, type and shape of the tensors in weights files."""
    for path in files:
        if path.endswith(".safetensors"):
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 (it is no mapping)
                    tensor = file.get_slice(key)
                    yield path, key, tensor.get_dtype(), tensor.get_shape()
        elif path.endswith(".bin"):
            found = load_tensors(path, "meta", check_archive(Path(path)))
            for key, value in found.items():
                if isinstance(value, torch.Tensor):
                    yield path, key, str(value.dtype), value.shape


def check_finite(model: PreTrainedModel, name: Any) -> None:
    """Read every weight once. Weights that are not in memory (offloaded to disk) or are quantised are not read.

    Raises:
        ValueError: One holds NaN or infinity.
    """
    for key, value in model.state_dict().items():
        is_plain = type(value) is torch.Tensor and value.dtype in _CHECKED_DTYPES and value.device.type != "meta"
        if is_plain and value.numel() and not all(bound.isfinite() for bound in torch.aminmax(value)):
            raise ValueError(f"{name}: {key!r} holds NaN or infinity; expected finite weights")


def _in_base(model: PreTrainedModel, key: str) -> str:
    return key.removeprefix(f"{model.base_model_prefix}.")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


__all__ = [
    "CheckedModel",
    "check_archive",
    "check_files",
    "check_finite",
    "check_missing",
    "check_repeated",
    "check_safetensors",
    "load_checked",
    "load_tensors",
]
