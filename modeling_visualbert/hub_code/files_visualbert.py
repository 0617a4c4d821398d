"""The files of a checkpoint, looked at before anything else reads them: JSON of a bounded size, numbers that a model can have.
Errors of any kind become one line that names the file."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerFast

# What `transformers` reads beside configuration and weights.
IMAGE_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
# What the Hub's library writes in front of what is wrong with a field.
_OF_FIELDS = re.compile(r"^(Class v|V)alidation error for (validator|field) '\w+': \w+: ")
_MAX_BYTES = 10 << 20  # tokenizers of BERT have a few megabytes at most
# A model is built, part by part, before weights are compared with it. These bound the time that it takes.
_MAX_SIZE = 1_000_000_000
_MAX_PARTS = 256
_MAX_LABELS = 100_000
_PARTS = re.compile(r"(^|[._])(layers?|depths?|blocks?|stages?|levels?)$")


def check_json_files(folder: str | Path, *names: str) -> None:
    """Look at JSON files of a local checkpoint; one that is not there is not missed.

    Raises:
        ValueError: One is damaged, or too large to be what it is called.
    """
    for name in names:
        if (path := Path(folder) / name).is_file():
            read_json_object(path)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is too large, not UTF-8, or not JSON, or holds something else; the message names the file and the place.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes; expected at most {_MAX_BYTES:,}")
    try:
        found = json.loads(path.read_bytes().decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or thousands of nested brackets
        raise ValueError(f"{path}: malformed JSON: {str(error).partition(';')[0]}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}; expected a JSON object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def check_sizes(value: Any, name: str = "") -> None:
    """Refuse the configuration of a model that nobody can have, before it is built.

    Args:
        value: The content of `config.json`, or of a part of it.
        name: Name of the part.

    Raises:
        ValueError: A number is too large for the size, the number of layers or of labels that it is, or no probability.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in ("id2label", "label2id"):
                check_sizes(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for item in value:
            check_sizes(item, name)
    elif isinstance(value, (int, float)):
        most = _MAX_LABELS if name.endswith("num_labels") else _MAX_PARTS if _PARTS.search(name) else _MAX_SIZE
        if not abs(value) <= most:  # nor is it NaN
            raise ValueError(f"{name} is {value:.20g}; expected at most {most:,}")
        if name.endswith("dropout") and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; expected a probability")


def config_file(name: Any) -> str:
    """What to call the configuration of a folder or Hub name in an error."""
    return str(name) if str(name).endswith(".json") else f"{name}/config.json"


def tokenizer_file(folder: str | Path) -> str:
    """Which file is to blame if the tokenizer in a folder cannot be opened: `tokenizer.json` if that cannot be read alone."""
    path, config = Path(folder) / "tokenizer.json", f"{folder}/tokenizer_config.json"
    if not path.is_file():
        return config
    try:
        PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception:  # of any type: that is what it is asked for
        return str(path)
    return config


@contextmanager
def naming(file: str | Path, *others: str | Path) -> Iterator[None]:
    """Turn any error inside into one line that names `file`, unless it already names that or one of the `others`.

    For calls into other libraries, where damaged files and wrong fields raise errors of any type and length.

    Raises:
        ValueError: Something failed.
        OSError: A file is missing or cannot be read, as the error itself says.
        ImportError: A package is missing.
    """
    try:
        yield
    except Exception as error:
        text = _OF_FIELDS.sub("", " ".join(str(error).split()))
        if isinstance(error, OSError) and (error.errno is not None or text == str(error)):
            raise
        if isinstance(error, (OSError, ImportError)):
            kind: type[Exception] = OSError if isinstance(error, OSError) else ImportError
            raise kind(f"{file}: {text:.500}") from error
        if isinstance(error, ValueError) and str(error).startswith(tuple(f"{name}" for name in (file, *others))):
            raise
        what = "" if isinstance(error, (ValueError, StrictDataclassError)) and text else f"{type(error).__name__}: "
        raise ValueError(f"{file}: cannot be used: {what}{text:.500}".removesuffix(": ")) from error


__all__ = [
    "IMAGE_PROCESSOR_FILES",
    "TOKENIZER_FILES",
    "check_json_files",
    "check_sizes",
    "config_file",
    "naming",
    "read_json_object",
    "tokenizer_file",
]
