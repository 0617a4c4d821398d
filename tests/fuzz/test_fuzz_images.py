"""Images of strangers through every door that reads one: files, bytes, addresses, opened images, commands, tables, the demo."""

import base64
import io
import warnings
from dataclasses import replace
from functools import cache

import pytest
from campaign import attempt, examples, judge
from datasets import Dataset, Features, Value
from hypothesis import given, strategies
from image_mutations import encoded, image, mutate_image
from PIL import Image
from test_fuzz_checkpoints import by_command
from tiny_checkpoints import save_checkpoint_and_image

from modeling_visualbert import load_image
from modeling_visualbert.data.table_images import TableImages
from modeling_visualbert.data.tables import Table
from modeling_visualbert.demo.inputs import open_image
from modeling_visualbert.features.extract import unreadable
from modeling_visualbert.features.images import list_images
from modeling_visualbert.hub_code.image_processing_visualbert import FORMATS, MAX_PIXELS
from modeling_visualbert.tasks.regions import _load_named

GOOD = encoded(image(), "PNG")
LARGEST = (
    8 * MAX_PIXELS / (1 << 20)
)  # megabytes of the largest image that these doors take; others have limits of their own
QUESTION = "Is there a red star?"


def opened(path):
    """An image as callers pass it: open, or closed in one of several ways."""
    content = path.read_bytes()
    if content.startswith((b"II*", b"GIF8")) and len(content) > 1_000_000:
        return None  # what Pillow makes of that when the caller opens it, and the seconds that it takes, are not ours
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except Exception:  # which is Pillow's affair
        return None
    if len(content) % 3 == 1:
        picture.close()
    elif len(content) % 3 == 2:
        picture.fp.close()
    return load_image(picture, f"{path}").size


def in_table(path, as_bytes):
    """The first image of a table, which holds its path or its bytes."""
    cell = path.read_bytes() if as_bytes else path.name
    rows = Dataset.from_dict({"image": [cell]}, features=Features({"image": Value("binary" if as_bytes else "string")}))
    images, table = TableImages(), Table(str(path.with_suffix(".parquet")), rows, path.parent)
    ((key,),) = images.add(table, "image")
    return _load_named(images, key).size


def extracted(path):
    """What `visualbert extract` finds of a folder, or why it cannot be read."""
    (why,) = unreadable(dict(list_images(path.parent)), num_workers=1).values() or [None]
    if why is not None:
        raise ValueError(why)


DOORS = {
    "file": lambda path, _: load_image(path).size,
    "bytes": lambda path, _: load_image(path.read_bytes(), str(path)).size,
    "address": lambda path, _: load_image(f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}").size,
    "opened image": lambda path, _: opened(path),
    "table of paths": lambda path, _: in_table(path, False),
    "table of bytes": lambda path, _: in_table(path, True),
    "extract": lambda path, _: extracted(path),
    "demo": lambda path, _: open_image(path).size,
    "pipeline": lambda path, world: len(world[1](image=str(path), question=QUESTION)),
    "ask": lambda path, world: len(by_command("ask", "--model", str(world[0] / "vqa"), str(path), QUESTION, "--json")),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from transformers import pipeline

    folder = save_checkpoint_and_image(tmp_path_factory.mktemp("images"), "fuzz")
    return folder, pipeline("visual-question-answering", model=str(folder / "vqa"))


@cache
def usual_of(door, path, world):
    path.write_bytes(GOOD)
    usual = attempt(lambda: DOORS[door](path, world))
    return replace(usual, megabytes=usual.megabytes + LARGEST)


@pytest.mark.parametrize("door", DOORS)
@examples(16)
@given(random=strategies.randoms(use_true_random=False))
def test_images(door, random, world, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"images {door}" / "photo.jpg"
    path.parent.mkdir(exist_ok=True)
    usual = usual_of(door, path, world)
    path.write_bytes(mutate_image(random))

    def quietly():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about damage that it makes up for
            return DOORS[door](path, world)

    names = [str(path), "data:image/png;base64", "photo.parquet"]
    for_visitors = ["The image", "The file"]  # the message names no path of the server
    judge(f"images: {door}", attempt(quietly), for_visitors if door == "demo" else names, usual)
