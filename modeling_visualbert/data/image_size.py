"""The size of an image file, from its header."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from ..hub_code.image_files_visualbert import open_image_file, orientation_of


def upright_size(source: Path | str | bytes) -> tuple[int, int]:
    """Height and width of an image as it is looked at, with its EXIF orientation applied.

    Args:
        source: A file, or the bytes of one.

    Raises:
        Exception: It cannot be read; image readers fail in ways of their own when a file is damaged.
    """
    name = str(source) if isinstance(source, (Path, str)) else "image"
    with warnings.catch_warnings(), io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        warnings.simplefilter("ignore")  # about damage, which is told when the image is loaded
        with open_image_file(file, name) as image:
            lies_on_its_side = orientation_of(image, name) >= 5
            return image.size if lies_on_its_side else image.size[::-1]


__all__ = ["upright_size"]
