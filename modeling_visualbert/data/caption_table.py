"""A table of images and captions -> the rows that pre-training reads.

A caption is a text; several are a list of texts, or rows with the same image. A row of the result, one for each image::

    {"image_id": "photos/17.jpg", "captions": ["A view through a net.", "Two boats behind a net."]}
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from datasets import Dataset, Features, List, Value

from .table_images import TableImages
from .table_rows import Keys, as_list, as_text, only_image, read_rows
from .tables import Table

CAPTION_COLUMNS = ("captions", "caption", "text", "sentences")
FEATURES = Features({"image_id": Value("string"), "captions": List(Value("string"))})


def read_caption_table(
    table: Table,
    images: TableImages,
    image_column: str = "image",
    caption_column: str | None = None,
    needs_labels: bool = True,
    skipped: list[str] | None = None,
) -> Dataset:
    """Read one split, in the order of the first row of each image.

    Args:
        table: Its rows.
        images: Where their images are entered.
        image_column, caption_column: Names of the columns; the first of `CAPTION_COLUMNS` that there is by default.
        needs_labels: Without meaning: captions are all that there is.
        skipped: If given, bad rows are left out and their errors are added to this list instead of being raised.

    Raises:
        FileNotFoundError: An image does not exist.
        ValueError: A column is missing, or a caption is empty or no text; the message names the row.
    """
    image_column = table.column("image_column", image_column)
    names = (caption_column,) if caption_column else CAPTION_COLUMNS
    columns = {"captions": table.column("caption_column", *names)}
    keys = images.add(table, image_column, skipped)
    captions: dict[str, list[str]] = {}
    for row in read_rows(table, columns, keys, partial(_row, image_column), None, skipped):
        captions.setdefault(row["image_id"], []).extend(row["captions"])
    return Dataset.from_dict({"image_id": list(captions), "captions": list(captions.values())}, features=FEATURES)


def _row(image_column: str, values: Mapping[str, Any], keys: Keys, where: str) -> dict[str, Any]:
    found, what = values["captions"], f"{where}: the caption"
    captions = as_list(found, what) if isinstance(found, list) else [found]
    return {
        "image_id": only_image(keys, f"{where}: {image_column!r}"),
        "captions": [as_text(caption, what).strip() for caption in captions],
    }


__all__ = ["CAPTION_COLUMNS", "read_caption_table"]
