"""What visitors send, an image or a text, as the checkpoints take it; the messages of errors are for the visitor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..hub_code.image_files_visualbert import FORMATS, check_structure, open_image_file
from ..hub_code.image_processing_visualbert import load_image

MAX_UPLOAD_BYTES = 10_000_000
MAX_PIXELS = 25_000_000  # what phones take; decoded it is 75 MB
MAX_CHARACTERS = 400
MAX_CHOICES = 8


def open_image(path: str | Path) -> Image.Image:
    """
    An uploaded file as 8-bit RGB. Its size in bytes and pixels is checked before anything is decoded.

    Raises:
        ValueError: It is not an image, damaged, animated, or too large; the message is for the visitor.
    """
    size = Path(path).stat().st_size
    if size > MAX_UPLOAD_BYTES:
        raise ValueError(f"The image has {size / 1e6:.0f} MB; at most {MAX_UPLOAD_BYTES // 1_000_000} MB are accepted.")
    try:
        with open(path, "rb") as file:
            check_structure(file, "The image", MAX_PIXELS)
            image = Image.open(file, formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(
                    f"The image has {width * height / 1e6:.0f} megapixels; at most {MAX_PIXELS // 1_000_000} are accepted."
                )
            return load_image(image, "The image", max_pixels=MAX_PIXELS)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"The file cannot be read as an image; expected {', '.join(FORMATS)}.") from error
    except Exception as error:  # readers of formats fail in their own ways when a file is damaged
        if str(error).startswith("The image"):
            raise
        raise ValueError("The image is damaged or cut off.") from error


def count_pixels(paths: Sequence[str]) -> int:
    """Pixels that [`open_image`] would decode of these files, as their headers say; files that it refuses have none."""
    count = 0
    for path in paths:
        try:
            with open(path, "rb") as file, open_image_file(file, "The image", MAX_PIXELS) as image:
                count += image.width * image.height
        except Exception:  # readers of formats fail in their own ways when a file is damaged
            continue
    return count


def check_text(text: Any, what: str) -> str:
    """The text without blanks around it.

    Raises:
        ValueError: It is not a string, empty, or too long; the message is for the visitor.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"Please write {what}.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"The text has {len(text):,} characters; at most {MAX_CHARACTERS} are accepted.")
    return text.strip()


def split_choices(text: Any) -> list[str]:
    """The choices of a question, one a line.

    Raises:
        ValueError: There are too few or too many, or they are too long; the message is for the visitor.
    """
    choices = [line.strip() for line in check_text(text, "the choices").splitlines() if line.strip()]
    if not 2 <= len(choices) <= MAX_CHOICES:
        raise ValueError(f"There are {len(choices)} choices; please write 2 to {MAX_CHOICES}, one a line.")
    return choices
