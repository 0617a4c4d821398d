"""Opening BERT tokenizers: from a folder or the Hub, and never one that does not fit the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from .checkpoints import check_name
from .hub_code.files_visualbert import TOKENIZER_FILES, check_json_files, naming, tokenizer_file
from .hub_code.text_visualbert import check_special_tokens, check_tokenizer

_FILES = ("tokenizer.json", "vocab.txt")


def open_tokenizer(name: str | Path, vocab_size: int | None = None, task: str | None = None) -> Any:
    """
    A BERT tokenizer.

    Args:
        name: Folder or Hub name of the tokenizer, or of a checkpoint that has one.
        vocab_size: Number of word pieces of the model that it is for, when there is one already.
        task: Task of the processor; VQA needs `?` as a word piece.

    Raises:
        FileNotFoundError: The folder does not exist or has no tokenizer. (`AutoTokenizer` would make up one of five pieces.)
        OSError: The Hub has none of that name, or cannot be reached.
        ValueError: A file is damaged; or it has another size than the model's vocabulary, or lacks a special token.
    """
    check_name(name, "tokenizer")
    if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in _FILES):
        raise FileNotFoundError(f"{name}: no tokenizer in this folder; expected {' or '.join(_FILES)}")
    check_json_files(name, *TOKENIZER_FILES)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError as error:  # its message has many lines, and some do not name the tokenizer
        reason = " ".join(str(error).split())
        raise OSError(f"{name}: no tokenizer can be loaded ({reason:.300})") from error
    except Exception:  # of any type and length
        with naming(tokenizer_file(name)):
            raise
    if vocab_size is None:
        check_special_tokens(tokenizer, task, str(name))
    else:
        check_tokenizer(tokenizer, vocab_size, task, str(name))
    return tokenizer


__all__ = ["open_tokenizer"]
