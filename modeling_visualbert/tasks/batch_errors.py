"""What goes wrong while batches are made, in this process or in others: one line that names the example."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..training.task import Batch, Rows
from . import flickr30k


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Of an error in a process that prepares batches, only what it says; and what to do when such a process is killed."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        if "DataLoader worker" not in str(error):
            raise
        raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(
            f"a process that prepares batches died ({str(error).splitlines()[0]}); expected enough memory and shared memory "
            "for --num_workers and --batch_size: pass --num_workers 0, or smaller ones"
        ) from error


def naming_examples(collate: Callable[[Rows], Batch]) -> Callable[[Rows], Batch]:
    """The same, but an error about a batch names the example that is to blame."""

    def run(rows: Rows) -> Batch:
        try:
            return collate(rows)
        except (ValueError, TypeError):
            for row in rows:
                try:
                    collate([row])
                except (ValueError, TypeError) as error:
                    name = _id_of(row)  # that of a row which is masked anew in every epoch is empty
                    raise type(error)(f"example {name}: {error}" if name != "" else str(error)) from error
            raise

    return run


def _id_of(row: Any) -> Any:
    if not isinstance(row, dict):
        return row.id  # pre-training
    for key in ("question_id", "annot_id", "identifier"):
        if key in row:
            return row[key]
    return flickr30k.sentence_id(row)


__all__ = ["naming_examples", "one_line_errors"]
