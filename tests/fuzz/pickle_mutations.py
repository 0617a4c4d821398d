"""Pickles and files of `torch.save` of others: damaged, bombs, and such as would run something if they were ever unpickled."""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from image_mutations import damage
from test_convert_array_pickles import HOSTILE

ZSTANDARD = 93  # in the headers of an archive; no `zipfile` of Python 3.13 and older writes it
LARGE = 30_000_000  # bytes in some kB of a bomb


class Harm:
    """What writes a file if it is ever unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def legacy(weights: Any) -> bytes:
    """The same content as older versions of torch wrote it."""
    buffer = io.BytesIO()
    torch.save(weights, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def zip_bomb(content: bytes, count: int) -> bytes:
    """The archive, with that many zeros in every file of numbers; only compressed with 0."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(count) if "/data/" in name and count else old.read(name))
    return buffer.getvalue()


def zstandard_bomb(content: bytes, count: int) -> bytes:
    """The archive with that many zeros in every file of numbers, as Zstandard, which Python 3.14 reads."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            inside = bytes(count) if "/data/" in name else old.read(name)
            info = zipfile.ZipInfo(name)
            new.writestr(info, pa.compress(inside, "zstd", asbytes=True))
            info.compress_type, info.file_size, info.CRC = ZSTANDARD, len(inside), zlib.crc32(inside)
    return buffer.getvalue()


def mutate_archive(content: bytes, random: Random, harm: Path) -> bytes:
    """Another file in the place of one of `torch.save`, whatever it holds."""
    held = torch.load(io.BytesIO(content), weights_only=True)
    return random.choice(
        [
            lambda: damage(content, random),
            lambda: damage(legacy(held), random),
            lambda: zip_bomb(content, random.choice([0, 1, LARGE])),
            lambda: zstandard_bomb(content, random.choice([1, LARGE])),
            lambda: pa.compress(random.choice([content, bytes(LARGE)]), "zstd", asbytes=True),
            lambda: pickle.dumps(Harm(harm)),
            lambda: legacy({"a": Harm(harm)}),
            lambda: legacy(random.choice([None, [], {}, {"state_dict": held}, {1: None}, [held] * 2])),
            lambda: hostile_pickle(random),
        ]
    )()


def mutate_pickle(held: dict[str, Any], random: Random, harm: Path) -> bytes:
    """Another pickle in the place of that of a dict of arrays, or of a dict that has one; what it holds is changed too."""
    protocol = random.randrange(5)
    content = pickle.dumps(held, protocol)
    inside = random.choice([held, *(value for value in held.values() if isinstance(value, dict))])
    name = random.choice(list(inside))
    value = inside.pop(name)
    other = random.choice([None, "x", b"", [], {}, -1, 1e400, [value], {"a": value}, np.array([value]), Harm(harm)])
    return random.choice(
        [
            lambda: damage(content, random),
            lambda: pickle.dumps(held, protocol),
            lambda: pickle.dumps((inside.update({name: other}), held)[1], protocol),
            lambda: pickle.dumps(random.choice([None, [], {}, [content], Harm(harm)]), protocol),
            lambda: hostile_pickle(random),
        ]
    )()


def hostile_pickle(random: Random) -> bytes:
    """One of those by which the reader of arrays is tested."""
    content, _ = HOSTILE[random.choice(list(HOSTILE))]
    return content
