"""Publishes a checkpoint on the Hub: the repository is built and tried offline, then sent in one commit.

checkpoint folder ──► repository folder ──► run the card's code in a process without this package ──► one commit
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx, validate_repo_id
from transformers import PreTrainedModel

from ..checkpoints import load_model
from ..convert.published_detectors import open_region_encoder
from ..data.files import read_json
from ..disk import whole_folder
from ..hub_code.processing_visualbert import VisualBertProcessor
from ..published import published_tokenizer
from .card import build_card, cards_folder, default_facts, load_facts

MAX_FILE_BYTES = 50 * 10**9  # limit of the Hub


@dataclass(frozen=True)
class Pushed:
    """What was sent, or with `dry_run` would be: sizes in bytes of the `files` by their path in the repository."""

    files: dict[str, int]
    url: str | None


def push_checkpoint(
    source: str | Path,
    repo_id: str,
    *,
    facts: str | Path | None = None,
    metrics: str | Path | None = None,
    region_encoder: str | Path | None = None,
    any_detector: bool = False,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    folder: str | Path | None = None,
    token: str | None = None,
) -> Pushed:
    """
    Build the repository of a checkpoint, try it, and send it to the Hub in one commit.

    Args:
        source: Folder of a checkpoint, or of a training run (its `best` is taken).
        repo_id: "user/name". Created when it does not exist; otherwise files of the same names are replaced.
        facts: Facts for the card: a file, or the name of one in `hub_cards/`; see [`load_facts`].
        metrics: The run's `metrics.json`; by default the one in the folder of the checkpoint or of its run.
        region_encoder: What names a region encoder to put into the checkpoint, if it has none; see [`open_region_encoder`].
        any_detector: Whether a region encoder is accepted that is known to be another than the model's features came from.
        private: Create a private repository; an existing one must be private already.
        revision: Branch to commit to; created when it does not exist.
        create_pr: Open a pull request instead of committing.
        dry_run: Build and try the repository, but send nothing.
        folder: Where to build and keep the repository; must not exist. A temporary folder when not given.
        token: Hub token; that of `hf auth login` or of the variable HF_TOKEN when not given.

    Raises:
        ValueError: The checkpoint cannot be used, does not work when tried, or a file is too large.
        PermissionError: The token is wrong, or may not write to this repository.
        ConnectionError: The Hub cannot be reached, or refused the commit. Nothing was published then.
    """
    check_repo_id(repo_id)
    with tempfile.TemporaryDirectory(prefix="visualbert_push_") as temporary:
        target = Path(temporary) / repo_id.split("/")[1] if folder is None else Path(folder)
        parts: dict[str, Any] = {"region_encoder": region_encoder, "any_detector": any_detector}
        build_repository(source, target, repo_id, facts=facts, metrics=metrics, **parts)
        if dry_run:
            return Pushed(folder_sizes(target), None)
        return push_folder(target, repo_id, private=private, revision=revision, create_pr=create_pr, token=token)


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        ValueError: It is not "user/name".
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not a repository name; expected user/name ({error})") from error
    if "/" not in repo_id:
        raise ValueError(f"{repo_id!r} is not a repository name; expected user/name")


def check_push(repo_id: str, *, private: bool = False, token: str | None = None) -> None:
    """
    Find out whether a push may succeed, before the work whose result is to be pushed. Nothing is sent.

    What a fine-grained token may write is known to the Hub only, when something is written.

    Raises:
        ValueError: `repo_id` is not "user/name", or is to be private and is public already.
        PermissionError: There is no token, it is wrong, or it may not write there.
        ConnectionError: The Hub cannot be reached.
    """
    check_repo_id(repo_id)
    api = HfApi(token=token)
    try:
        account = api.whoami()
        _exists(api, repo_id, private)
    except Exception as error:
        raise _explained(error, api, repo_id, {}) from error
    names = [account["name"], *(group["name"] for group in account.get("orgs", ()))]
    if repo_id.split("/")[0] not in names:
        raise PermissionError(f"{repo_id}: the token is that of {account['name']}; expected {' or '.join(names)}/NAME")
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PermissionError(f"{repo_id}: this token may only read; expected one that may write")


def folder_sizes(folder: str | Path) -> dict[str, int]:
    """Sizes in bytes of the files of a repository folder, by their path in it."""
    return {name: path.stat().st_size for name, path in _files(Path(folder)).items()}


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> Pushed:
    """
    Send a folder that [`build_repository`] made to the Hub in one commit; see [`push_checkpoint`].

    When the commit fails, a repository or branch that was created for it is removed again: a failed push publishes nothing. Where
    the connection is gone by then, the empty one stays, and the next push goes into it.
    """
    files, sizes = _files(Path(folder)), folder_sizes(folder)
    for name, size in sizes.items():
        if size > MAX_FILE_BYTES:
            raise ValueError(f"{name}: {size:,} bytes; the Hub takes at most {MAX_FILE_BYTES:,}")
    api = HfApi(token=token)
    undo: list[Callable[[], None]] = []
    try:
        try:
            if _create(api, repo_id, private):
                undo.append(lambda: api.delete_repo(repo_id))
            if revision is not None and not api.revision_exists(repo_id, revision):
                api.create_branch(repo_id, branch=revision)
                undo.append(lambda: api.delete_branch(repo_id, branch=revision))
            commit = _commit(api, repo_id, files, revision, create_pr)
        except BaseException:
            for step in reversed(undo):
                with suppress(Exception):  # what remains is empty
                    step()
            raise
    except Exception as error:
        raise _explained(error, api, repo_id, sizes) from error
    return Pushed(sizes, str(commit.pr_url or commit.commit_url))


def _commit(api: HfApi, repo_id: str, files: Mapping[str, Path], revision: str | None, create_pr: bool) -> CommitInfo:
    """
    One commit with all files. When its answer is lost, nobody knows whether it was made: it is asked for once more, which makes
    none where the files are there already. A pull request would be opened twice, so that is left to the user.
    """

    def ask() -> CommitInfo:
        operations = [CommitOperationAdd(name, path) for name, path in files.items()]  # they know what the Hub has
        return api.create_commit(
            repo_id, operations, commit_message="Upload VisualBERT", revision=revision, create_pr=create_pr
        )

    try:
        return ask()
    except httpx.TransportError as error:
        if create_pr:
            place = f"{api.endpoint}/{repo_id}/discussions"
            raise ConnectionError(f"{error}; look at {place} whether the pull request was opened") from error
        return ask()


def build_repository(
    source: str | Path,
    target: str | Path,
    repo_id: str,
    *,
    facts: str | Path | None = None,
    metrics: str | Path | None = None,
    region_encoder: str | Path | None = None,
    any_detector: bool = False,
) -> None:
    """
    Write the files of the repository `repo_id` to the folder `target` and try them; see [`push_checkpoint`].

    Raises:
        FileExistsError: `target` exists.
        ValueError: The checkpoint cannot be used, or does not work when tried; there is no `target` then.
    """
    with whole_folder(Path(target)) as draft:
        source = _checkpoint_folder(Path(source))
        measured = _find_metrics(source, metrics)
        model, processor = load_model(source), VisualBertProcessor.from_pretrained(source)
        if region_encoder is not None:
            encoder, processor.image_processor = open_region_encoder(region_encoder)
            model.attach_region_encoder(encoder, any_detector)
        card_facts = default_facts(type(model).__name__, measured, processor) if facts is None else load_facts(facts)
        _check_facts(card_facts, model, source)
        finds_regions = bool(card_facts["region_encoder"]) or model.config.region_encoder_config is not None
        region_dim = None if finds_regions else model.config.visual_embedding_dim
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
        for name in ("handler.py", "requirements.txt"):
            shutil.copyfile(cards_folder() / name, draft / name)
        if measured is not None:
            (draft / "metrics.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        if finds_regions:
            _copy_examples(card_facts, draft / "examples")
        (draft / "README.md").write_text(build_card(repo_id, card_facts, measured, region_dim), encoding="utf-8")
        printed = try_repository(draft, repo_id, offline=not card_facts["region_encoder"])
        card = build_card(repo_id, card_facts, measured, region_dim, printed=printed if finds_regions else None)
        (draft / "README.md").write_text(card, encoding="utf-8")


def try_repository(folder: str | Path, repo_id: str, offline: bool = True) -> str:
    """
    Run the code of the card in a process that cannot import this package, on the folder instead of a download; `offline` unless
    the card refers to other repositories.

    Returns:
        What it printed.

    Raises:
        ValueError: The card has no code, its metadata are malformed, or the code failed.
    """
    folder = Path(folder).resolve()  # the process runs in another one
    text = (folder / "README.md").read_text(encoding="utf-8")
    ModelCard(text, ignore_metadata_errors=False)
    code = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
    if code is None:
        raise ValueError(f"{folder / 'README.md'}: no Python code to try")
    download = f'snapshot_download("{repo_id}")'
    program = f"import sys\nsys.modules['modeling_visualbert'] = None\n{code[1].replace(download, repr(str(folder)))}"
    with tempfile.TemporaryDirectory(prefix="visualbert_modules_") as modules:
        environment = {**os.environ, "HF_MODULES_CACHE": modules, **({"HF_HUB_OFFLINE": "1"} if offline else {})}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [sys.executable, "-X", "utf8", "-c", program],
            cwd=modules,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}"
        raise ValueError(f"the code of the card does not run without this package: {reason}")
    return done.stdout.strip()


def _checkpoint_folder(source: Path) -> Path:
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such checkpoint folder")
    folder = source if (source / "config.json").is_file() else source / "best"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{source}: no config.json; expected a folder with a model and its processor")
    if not (folder / "processor_config.json").is_file():
        raise FileNotFoundError(
            f"{source}: no processor_config.json; expected a folder with a model and its processor, such as `visualbert convert "
            f"{source} FOLDER --tokenizer {published_tokenizer()}` writes"
        )
    return folder


def _find_metrics(folder: Path, given: str | Path | None) -> dict[str, Any] | None:
    """The run's `metrics.json`, with absolute paths of this machine cut to their last part."""
    places = [folder / "metrics.json", folder.parent / "metrics.json"] if given is None else [Path(given)]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        if given is not None:
            raise FileNotFoundError(f"{given}: no such file")
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {type(content).__name__}; expected an object with the scores of a run")
    return _without_folders(content)


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _check_facts(facts: Mapping[str, Any], model: PreTrainedModel, source: Path) -> None:
    """
    Raises:
        ValueError: The facts are of another model.
    """
    if facts["head"] != type(model).__name__:
        raise ValueError(f"{source} is a {type(model).__name__} checkpoint; the facts are of {facts['head']}")
    if facts["region_encoder"] and model.config.region_encoder_config is not None:
        raise ValueError(
            f"the facts refer to {facts['region_encoder']}, but the checkpoint has a region encoder inside"
        )


def _copy_examples(facts: Mapping[str, Any], folder: Path) -> None:
    example = facts["example"]
    names = {*example.get("images", []), *(item["image"] for item in facts["widget"])}
    names |= {example["image"]} if "image" in example else set()
    folder.mkdir()
    for name in sorted(names):
        places = [place / "examples" / name for place in (facts["folder"], cards_folder())]
        found = next((path for path in places if path.is_file()), None)
        if found is None or Path(name).name != name:
            raise FileNotFoundError(f"{name}: no such image in {places[0].parent}")
        shutil.copyfile(found, folder / name)


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _create(api: HfApi, repo_id: str, private: bool) -> bool:
    """Make the repository; False if it is there already."""
    if _exists(api, repo_id, private):
        return False
    api.create_repo(repo_id, private=private)
    return True


def _exists(api: HfApi, repo_id: str, private: bool) -> bool:
    """Whether the repository is there, which must be private then if it is to be."""
    exists = api.repo_exists(repo_id)
    if exists and private and not api.repo_info(repo_id).private:
        raise ValueError(f"{repo_id} exists and is public; expected a private one, or a new name")
    return exists


def _explained(error: Exception, api: HfApi, repo_id: str, sizes: Mapping[str, int]) -> Exception:
    """What went wrong with the Hub, in one line."""
    if isinstance(error, LocalTokenNotFoundError):
        return PermissionError(f"{repo_id}: no token; log in with `hf auth login` or set HF_TOKEN")
    if isinstance(error, (ValueError, OfflineModeIsEnabled)) and not isinstance(error, HfHubHTTPError):
        text = " ".join(str(error).split())
        if "too large" in text.lower() or "LFS" in text:
            largest = max(sizes, key=lambda name: sizes[name])
            return ValueError(
                f"{repo_id}: the Hub refused a file; the largest is {largest}, {sizes[largest]:,} bytes ({text})"
            )
        return error if isinstance(error, ValueError) else ConnectionError(f"{api.endpoint} was not contacted: {text}")
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    if cause is None:
        text = " ".join(str(error).split())
        return ConnectionError(
            f"{repo_id}: {api.endpoint} refused the push or cannot be reached ({text}); what may be there is an empty "
            "repository or branch, never half a model: push again with the same command"
        )
    status, said = cause.response.status_code, " ".join((cause.server_message or str(cause)).split())
    if status == 401:
        return PermissionError(
            f"{repo_id}: wrong or missing token; log in with `hf auth login` or set HF_TOKEN ({said})"
        )
    if status == 403:
        return PermissionError(
            f"{repo_id}: this token may not write there; the name may belong to someone else ({said})"
        )
    if status == 413:
        largest = max(sizes, key=lambda name: sizes[name])
        return ValueError(f"{largest}: {sizes[largest]:,} bytes, too large for the Hub ({said})")
    return ConnectionError(f"{repo_id}: the Hub refused the push with status {status} ({said})")


__all__ = [
    "Pushed",
    "build_repository",
    "check_push",
    "check_repo_id",
    "folder_sizes",
    "push_checkpoint",
    "push_folder",
    "try_repository",
]
