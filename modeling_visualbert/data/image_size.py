"""The size of an image file, from its header."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import ExifTags, Image

from ..hub_code.image_processing_visualbert import FORMATS


def upright_size(source: Path | str | bytes) -> tuple[int, int]:
    """Height and width of an image as it is looked at, with its EXIF orientation applied.

    Args:
        source: A file, or the bytes of one.

    Raises:
        Exception: It cannot be read; image readers fail in ways of their own when a file is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about very large images, which are refused when they are loaded
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            lies_on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size if lies_on_its_side else image.size[::-1]


__all__ = ["upright_size"]
