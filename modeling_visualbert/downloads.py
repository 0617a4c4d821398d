"""Downloads of what others published: files at public addresses through our cache, other Hub repositories through the Hub's.

Nothing is downloaded that the user did not ask for. What is large is announced with its size and address first; an interrupted
download is continued; with `HF_HUB_OFFLINE` only the caches are used. Files that are converted are removed afterwards, so that
nothing lies on the disk twice.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import filter_repo_objects
from tqdm.auto import tqdm

from .cache_dir import default_cache_dir
from .published import PublishedFile

ANNOUNCED_MEGABYTES = 100  # from here on a download is announced
MIRROR = "VISUALBERT_MIRROR"  # environment variable: an address to use instead of https://dl.fbaipublicfiles.com
_ATTEMPTS = 3
_CHUNK = 1 << 20
_OF_HUB = re.compile(r"https://huggingface\.co/([^/]+/[^/]+)/resolve/main/(.+)")


def hub_folder(name: str, patterns: Sequence[str]) -> Path:
    """
    The local copy of the files of a Hub repository that match `patterns`, downloaded if they are not in the Hub's cache.

    Raises:
        FileNotFoundError: It is not in the cache, and `HF_HUB_OFFLINE` is set.
        ConnectionError: It is not in the cache, and does not exist on the Hub or cannot be reached.
    """
    if not constants.HF_HUB_OFFLINE:
        with suppress(Exception):  # without a network the cache may do; the download below says what is wrong
            _announce_repository(name, patterns)
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except OSError as error:
        if constants.HF_HUB_OFFLINE:
            raise FileNotFoundError(f"{name}: not in the Hub's cache, and HF_HUB_OFFLINE is set") from error
        raise ConnectionError(
            f"{name}: not in the Hub's cache, and cannot be downloaded from {constants.ENDPOINT} ({_reason(error):.200}); "
            "run the command again to continue"
        ) from error


def _announce_repository(name: str, patterns: Sequence[str]) -> None:
    listed = HfApi().model_info(name, files_metadata=True).siblings or []
    wanted = filter_repo_objects(listed, allow_patterns=list(patterns), key=lambda file: file.rfilename)
    sizes = [file.size or 0 for file in wanted if not isinstance(try_to_load_from_cache(name, file.rfilename), str)]
    _announce(f"{name} from {constants.ENDPOINT}", sum(sizes) / 1e6)


def _announce(what: str, megabytes: float) -> None:
    if megabytes >= ANNOUNCED_MEGABYTES:
        print(f"downloading {what} ({megabytes:,.0f} MB)", file=sys.stderr)


@contextmanager
def downloaded(files: Sequence[PublishedFile]) -> Iterator[Path]:
    """
    The folder with files of one address, for as long as it takes to convert them.

    Files that the Hub's cache has are used where they are. Others are downloaded to our cache, and removed when the block ends
    without an error: what was made of them takes their place.

    Raises:
        FileNotFoundError, ConnectionError, OSError, ValueError: See [`fetch`].
    """
    if (cached := _in_hub_cache(files)) is not None:
        yield cached
        return
    folder = _folder(files[0])
    with _lock(folder):
        for file in files:
            fetch(file)
        yield folder
        shutil.rmtree(folder)


def _in_hub_cache(files: Sequence[PublishedFile]) -> Path | None:
    """The folder in the Hub's cache that has all of these files."""
    folders = set()
    for file in files:
        match = _OF_HUB.fullmatch(file.url)
        place = try_to_load_from_cache(match[1], match[2]) if match else None
        if not isinstance(place, str):
            return None
        folders.add(Path(place).parent)
    return folders.pop() if len(folders) == 1 else None


def _folder(file: PublishedFile) -> Path:
    """Where a file is downloaded to; files of one address are side by side."""
    address = file.url.rsplit("/", 1)[0]
    return default_cache_dir() / "downloads" / hashlib.sha256(address.encode()).hexdigest()[:12]


def _lock(folder: Path) -> FileLock:
    """Of two processes, one downloads and the other finds the files. The lock may be taken again inside itself."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{folder}.lock", is_singleton=True)


def fetch(file: PublishedFile) -> Path:
    """
    A file at a public address, downloaded if it is not in the cache (`$MODELING_VISUALBERT_CACHE/downloads`).

    Raises:
        FileNotFoundError: It is not in the cache, and `HF_HUB_OFFLINE` is set.
        ConnectionError: The server cannot be reached, refuses the file or keeps breaking off; what has arrived is kept.
        OSError: There is not enough space on the disk.
        ValueError: The server sends something else, such as an HTML page.
    """
    name, folder = file.url.rsplit("/", 1)[-1], _folder(file)
    path, partial = folder / name, folder / f"{name}.partial"
    if path.is_file():
        return path
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(f"{file.url}: not downloaded yet, and HF_HUB_OFFLINE is set; expected it at {path}")
    with _lock(folder):
        if not path.is_file():
            folder.mkdir(exist_ok=True)
            _announce(file.url, file.megabytes)
            _download(file.url, partial, path)
    return path


def _download(url: str, partial: Path, path: Path) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _continue_download(url, partial)
            break
        except (ConnectionError, TimeoutError, urllib.error.URLError) as error:
            if attempt == _ATTEMPTS or isinstance(error, urllib.error.HTTPError):
                raise ConnectionError(
                    f"{url}: cannot be downloaded ({_reason(error)}); run the command again to continue, or put the "
                    f"file at {path}"
                ) from error
    os.replace(partial, path)


def _continue_download(url: str, partial: Path) -> None:
    """Append to the partial file what is missing of it."""
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(_address(url), headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer: Any = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":  # nothing is missing
            return
        partial.unlink()  # the server has another file by now
        raise ConnectionError(f"the partial file of {have:,} bytes does not fit the file on the server") from error
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise ValueError(f"{url}: the server sent an HTML page; expected the file")
        mode = "ab" if answer.status == 206 else "wb"
        start = have if mode == "ab" else 0
        left = int(answer.headers["Content-Length"] or 0)
        free = shutil.disk_usage(partial.parent).free
        if left > free:
            raise OSError(f"{partial}: {left:,} bytes to download, but {free:,} bytes of free space")
        with (
            partial.open(mode) as out,
            tqdm(
                total=start + left, initial=start, unit="B", unit_scale=True, desc=partial.stem, disable=left < _CHUNK
            ) as bar,
        ):
            while chunk := answer.read(_CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
    if left and partial.stat().st_size != start + left:
        raise ConnectionError(f"broke off after {partial.stat().st_size:,} of {start + left:,} bytes")


def _address(url: str) -> str:
    """Where to ask for it: the Hub's endpoint and the mirror of the other files can be set."""
    servers = {
        "https://huggingface.co": constants.ENDPOINT,
        "https://dl.fbaipublicfiles.com": os.environ.get(MIRROR, "https://dl.fbaipublicfiles.com"),
    }
    for server, instead in servers.items():
        if url.startswith(f"{server}/"):
            return url.replace(server, instead, 1)
    return url


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__


__all__ = ["downloaded", "fetch", "hub_folder"]
