"""Repositories of the published checkpoints, completed: built one after another, and sent if that is asked for.

name in the table ──► completed checkpoint in the cache ──► repository folder with card and code ──► one commit
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..convert.assemble import complete_checkpoint
from ..published import PublishedCheckpoint, published_checkpoints
from .push import Pushed, build_repository, check_repo_id, folder_sizes, push_folder


def push_published(
    namespace: str,
    names: Sequence[str] = (),
    *,
    send: bool = False,
    folder: str | Path | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> Iterator[tuple[PublishedCheckpoint, str, Pushed]]:
    """
    Build the repository of each published checkpoint, with its tokenizer, processor, region encoder and card, and try it.

    A run that broke off goes on where it was: completed checkpoints are in the cache, repositories in `folder`, and the Hub makes
    no commit where nothing has changed.

    Args:
        namespace: User or organisation; the repositories are called "namespace/visualbert-vqa" and so on.
        names: Last parts of the names of the checkpoints; all of them when not given.
        send: Whether to send them to the Hub too.
        folder: Where to build and keep them, as `folder/namespace/name`. When not given, each is built in a temporary folder.
        private, revision, create_pr, token: See [`push_checkpoint`].

    Yields:
        Each checkpoint, the name of its repository, and what was sent or would be.

    Raises:
        ValueError: There is no checkpoint of a name.
        ValueError, PermissionError, ConnectionError: See [`complete_checkpoint`] and [`push_checkpoint`].
    """
    known = {name.split("/")[1]: checkpoint for name, checkpoint in published_checkpoints().items()}
    for name in names:
        if name not in known:
            raise ValueError(f"{name}: no such published checkpoint; expected some of {', '.join(known)}")
    check_repo_id(f"{namespace}/visualbert")
    for name in names or known:
        repo_id = f"{namespace}/{name}"
        with _place(repo_id, folder) as target:
            if not target.is_dir():
                source = complete_checkpoint(known[name].name, needs_images=False)
                build_repository(source, target, repo_id, facts=name)
            if send:
                pushed = push_folder(
                    target, repo_id, private=private, revision=revision, create_pr=create_pr, token=token
                )
            else:
                pushed = Pushed(folder_sizes(target), None)
        yield known[name], repo_id, pushed


@contextmanager
def _place(repo_id: str, folder: str | Path | None) -> Iterator[Path]:
    """Where a repository is built."""
    if folder is not None:
        yield Path(folder) / repo_id
        return
    with tempfile.TemporaryDirectory(prefix="visualbert_push_") as temporary:
        yield Path(temporary) / repo_id.split("/")[1]


__all__ = ["push_published"]
