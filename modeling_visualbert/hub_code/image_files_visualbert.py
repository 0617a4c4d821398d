"""Image files of strangers: which formats are read, and what is refused before Pillow reads it.

A file of a few megabytes can keep Pillow busy for minutes or fill the memory, in ways that its limit on pixels does not
notice. What is looked at here is the structure of a file, not its pixels.
"""

import io
import logging
import re
import struct
import warnings
from importlib.util import find_spec
from itertools import islice
from typing import IO, Any

from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs, as an error instead of a warning
# Pillow reads more, some through other programs: an EPS file, whatever its name, would start Ghostscript.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000")
if find_spec("PIL.AvifImagePlugin"):
    FORMATS += ("AVIF",)

_HUNGRY = ("WEBP", "JPEG2000")  # 16 bytes for each pixel, others 8
_MOST_SCANS = 64  # of a JPEG; encoders write about ten
_MOST_SEGMENTS = 4096  # of a JPEG; a depth map in its metadata makes some hundreds
_MOST_BLOCKS = 500_000  # of a GIF, of up to 255 bytes
_MOST_COMMENTS = 4096  # blocks of them; Pillow copies all comments for every further block
_OVERLAP = 4  # how often over the entries of a TIFF or EXIF directory may take up the file; damaged ones point anywhere
_ALWAYS = 1 << 20  # bytes of entries that are never too many

_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # of a JPEG, without restarts
_EXIF = re.compile(rb"II\*\0|MM\0\*")  # its start
_PILLOWS_LOG = logging.getLogger("PIL.TiffImagePlugin")  # says that entries are wrong before it refuses a file
_TAG_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_TIFF = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0")


def open_image_file(file: IO[bytes], name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """
    Open an image file without decoding it.

    Args:
        file: The file, open and at any place.
        name: What to call it in an error.
        max_pixels: How many it may have.

    Raises:
        ValueError: It is no image of `FORMATS`, too large, or made to keep a reader busy.
        Exception: It is damaged; Pillow's readers fail in their own ways.
    """
    if not (hasattr(file, "seekable") and file.seekable()):
        file = io.BytesIO(file.read())
    check_structure(file, name, max_pixels)
    file.seek(0)
    try:
        with warnings.catch_warnings():  # of images that are refused below, in one line
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            _PILLOWS_LOG.disabled = True
            image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: not an image that Pillow can read") from error
    finally:
        _PILLOWS_LOG.disabled = False
    check_pixels(image.size, name, max_pixels, image.format)
    return image


def check_pixels(
    size: tuple[int, int], name: str, max_pixels: int = MAX_PIXELS, file_format: str | None = None
) -> None:
    """
    Args:
        size: Width and height.
        name: What to call the image in the error.
        max_pixels: How many it may have; half as many in formats that take twice the memory while they are decoded.
        file_format: Its format in Pillow's words, if it comes from a file.

    Raises:
        ValueError: It is too large.
    """
    width, height = size
    most, where = (max_pixels // 2, f" in {file_format}") if file_format in _HUNGRY else (max_pixels, "")
    if width * height > most:
        raise ValueError(f"{name}: {width} x {height} pixels; expected at most {most:,}{where} (decompression bomb?)")


def check_structure(file: IO[bytes], name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a file that keeps a reader busy, or is larger than it says. What is merely damaged is left to the reader.

    Args:
        file: An open file; it is left at another place.
        name: What to call it in the error.
        max_pixels: How many an icon's image may have.

    Raises:
        ValueError: It is one.
    """
    file.seek(0)
    start = file.read(4)
    if start.startswith(b"\xff\xd8\xff"):
        _check_jpeg(file, name)
    elif start.startswith(b"GIF8"):
        _check_gif(file, name)
    elif start == b"\0\0\1\0":
        _check_icon(file, name, max_pixels)
    elif start in _TIFF:
        _check_directories(file, f"{name}: TIFF")
    elif file.read(4) == b"ftyp":  # AVIF, whose EXIF data Pillow reads when it opens a file
        file.seek(0)
        content = file.read()
        for found in islice(_EXIF.finditer(content), _MOST_SEGMENTS):
            check_exif(content[found.start() :], name)


def orientation_of(image: Image.Image, name: str) -> int:
    """The EXIF orientation of an image: 1 is upright, 5 to 8 lie on their side.

    Args:
        image: The image; its file was checked.
        name: What to call it in an error.

    Raises:
        ValueError: The EXIF data are made to fill the memory.
        Exception: They are damaged.
    """
    exif, as_text = image.info.get("exif"), image.info.get("Raw profile type exif")
    if exif is None and as_text is not None:
        exif = bytes.fromhex("".join(as_text.split("\n")[3:]))  # as Pillow reads it
    check_exif(exif, name)
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if isinstance(found, int) else 1


def check_exif(exif: bytes | None, name: str) -> None:
    """
    Raises:
        ValueError: EXIF data are made to fill the memory.
    """
    while exif and exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    if exif:
        _check_directories(io.BytesIO(exif), f"{name}: EXIF")


def _check_jpeg(file: IO[bytes], name: str) -> None:
    """A small JPEG that goes over its pixels again and again, or is made of metadata, keeps a processor busy for minutes. What
    lies behind the end of the image, such as a phone's film, is none of it."""
    file.seek(0)
    content = file.read()
    scans = segments = gaps = 0
    exif, place = b"", 2
    while (found := _MARKER.search(content, place)) and segments <= _MOST_SEGMENTS:
        marker = content[found.start() + 1]
        if marker == 0xD9 and scans:
            break
        gaps += 0 if scans else found.start() - place
        segments, scans = segments + 1, scans + (marker == 0xDA)  # within a scan, 255 is never followed by this
        place = found.end()
        length = 0 if marker in (0xD8, 0xD9) else max(2, int.from_bytes(content[place : place + 2], "big"))
        if marker == 0xE1 and not scans and content.startswith(b"Exif\0\0", place + 2):  # all of them are read as one
            exif += content[place + 8 : place + length]
        place += length
    if scans > _MOST_SCANS:
        raise ValueError(f"{name}: JPEG of {scans} scans; expected at most {_MOST_SCANS}")
    if segments > _MOST_SEGMENTS or gaps > _ALWAYS:
        raise ValueError(f"{name}: JPEG of {segments:,} segments, {gaps:,} bytes apart; expected fewer, without gaps")
    check_exif(exif, name)


def _check_gif(file: IO[bytes], name: str) -> None:
    """Pillow goes through a GIF up to its second image, block by block, and copies all comments for each that is added."""
    file.seek(0)
    content = file.read()
    place = _after_palette(content, 13, content[10] if len(content) > 10 else 0)
    images = blocks = comments = 0
    while place < len(content) and images < 2:
        kind, place, blocks = content[place], place + 1, blocks + 1
        is_comment = False
        if kind == 0x2C:  # an image: place and size, palette, size of its codes
            images += 1
            place = 1 + _after_palette(content, place + 9, content[place + 8] if place + 8 < len(content) else 0)
        elif kind == 0x21:
            is_comment = content[place : place + 1] == b"\xfe"
            place += 1
        elif kind == 0x3B:
            break
        else:
            continue
        while place < len(content) and (length := content[place]):
            place, blocks, comments = place + 1 + length, blocks + 1, comments + is_comment
        place += 1
        comments += is_comment
        if blocks > _MOST_BLOCKS or comments > _MOST_COMMENTS:
            what = "comments" if comments > _MOST_COMMENTS else "data"
            raise ValueError(f"{name}: GIF of more than {max(blocks, comments):,} blocks of {what}; expected fewer")


def _after_palette(content: bytes, place: int, flags: int) -> int:
    return place + (3 << ((flags & 7) + 1)) if flags & 0x80 else place


def _check_icon(file: IO[bytes], name: str, max_pixels: int) -> None:
    """The directory of an icon says how large its images are, and Pillow believes it; an image itself may be another."""
    file.seek(4)
    (count,) = struct.unpack("<H", file.read(2).ljust(2, b"\0"))
    places = [struct.unpack("<I", entry[12:16])[0] for _ in range(count) if len(entry := file.read(16)) == 16]
    for place in set(places):
        file.seek(place)
        head = file.read(24).ljust(24, b"\0")
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            size = struct.unpack(">II", head[16:24])
        elif head[:4] == b"\x0c\0\0\0":
            size = struct.unpack("<HH", head[4:8])
        else:
            size = tuple(abs(side) for side in struct.unpack("<ii", head[4:12]))
        check_pixels(size, f"{name}: image in an icon", max_pixels)


def _check_directories(file: IO[bytes], what: str) -> None:
    """The entries of a directory may all point to the same bytes, and Pillow copies them for each. It reads the directories of
    the first two pages."""
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    header = file.read(16)
    order, is_big = "<" if header.startswith(b"II") else ">", header[2:3] == b"+"
    number, entry, pointer = ("Q", "HHQQ", 8) if is_big else ("H", "HHLL", 4)
    place = _unpack(order + ("Q" if is_big else "L"), header[pointer : 2 * pointer])
    for _ in range(2):
        if not 0 < place < length:
            return
        file.seek(place)
        count = _unpack(order + number, file.read(struct.calcsize("<" + number)))
        size = struct.calcsize("<" + entry)
        content = file.read(size * min(count, length // size))
        held = 0
        for _, kind, values, target in struct.iter_unpack(order + entry, content[: len(content) // size * size]):
            bytes_of_entry = values * _TAG_SIZES.get(kind, 0)
            if bytes_of_entry > pointer and target + bytes_of_entry <= length:
                held += bytes_of_entry
        if held > max(_ALWAYS, _OVERLAP * length):
            raise ValueError(f"{what} entries of {held:,} bytes in {length:,}; expected that they do not overlap")
        place = _unpack(order + ("Q" if is_big else "L"), file.read(pointer))


def _unpack(form: str, content: bytes) -> Any:
    return struct.unpack(form, content.ljust(struct.calcsize(form), b"\0"))[0]


__all__ = ["FORMATS", "MAX_PIXELS", "check_pixels", "check_structure", "open_image_file", "orientation_of"]
