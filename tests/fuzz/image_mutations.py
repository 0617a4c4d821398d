"""Image files that are damaged, lie about their size, or are made to keep a reader busy or fill its memory."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from random import Random

import numpy as np
from PIL import Image

_SIZE = (40, 30)
_DIRECTORY = b"II*\0\x08\0\0\0"
KINDS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF")
_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr", "HSV", "LAB")
_OF_OTHERS = (  # behind the name of an image
    b"",
    b"\0",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n",
    b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
    b"<svg xmlns='http://www.w3.org/2000/svg' width='40' height='30'><image href='file:///etc/passwd'/></svg>",
    b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
    b"PK\x03\x04" + bytes(60),
    b"8BPS\0\x01" + bytes(60),
    b"gimp xcf file\0" + bytes(60),
    b"P3\n40 30\n255\n" + b"1 " * 100,
    b"P1\n99999999 99999999\n",
    b"#define a_width 40\n#define a_height 30\nstatic char a_bits[] = {0};\n",
    b"\x80\x04\x95" + bytes(60),
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF89a",
    b"RIFF\xff\xff\xff\xffWEBPVP8L",
)


def image() -> Image.Image:
    """Noise."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*_SIZE[::-1], 3), dtype=np.uint8))


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def good_file(kind: str) -> bytes:
    """A small file in one of `KINDS`."""
    return encoded(image(), kind)


def mutate_image(random: Random) -> bytes:
    """Damage of a good file, or a file that attacks."""
    if random.randrange(5) < 3:
        return damage(good_file(random.choice(KINDS)), random)
    return random.choice(ATTACKS)(random)


def damage(content: bytes, random: Random) -> bytes:
    """A file that is cut off, or some of whose bytes are others; most of them in its header."""
    place = random.randrange(min(len(content), random.choice([64, len(content)])))
    number = random.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, random.randrange(1 << 32)])
    return random.choice(
        [
            lambda: content[:place],
            lambda: _flip(content, random),
            lambda: content[:place] + bytes(random.choice([1, 9, 500])) + content[place:],
            lambda: content[:place] + content[place + random.choice([1, 2, 8]) :],
            lambda: content[:place] + struct.pack(random.choice("<>") + "I", number) + content[place + 4 :],
            lambda: content[:place] + struct.pack(random.choice("<>") + "H", number & 0xFFFF) + content[place + 2 :],
            lambda: content[:place] + content[:place] + content,
            lambda: content + content,
            lambda: content[:place] + good_file(random.choice(KINDS))[place:],
        ]
    )()


def _flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 3, 20])):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"", depth: int = 1, colour: int = 0, before: bytes = b"") -> bytes:
    """A PNG that claims a size, with packed rows that may be others, and chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@cache
def zeros(count: int) -> bytes:
    """That many zeros, packed."""
    return zlib.compress(bytes(count), 9)


def _large_png(random: Random) -> bytes:
    side, (depth, colour) = (
        random.choice([100, 3000, 4900]),
        random.choice([(1, 0), (8, 0), (8, 2), (8, 6), (8, 4), (16, 2)]),
    )
    of_pixel = {0: 1, 2: 3, 4: 2, 6: 4}[colour] * depth
    packed = zeros(side * (1 + (side * of_pixel + 7) // 8))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _png_bomb(random: Random) -> bytes:
    packed = zeros(random.choice([1 << 20, 200 << 20]))
    kind = random.choice([b"iCCP", b"zTXt", b"iTXt", b"IDAT", b"eXIf", b"tEXt"])
    prefix = {b"iCCP": b"a\0\0", b"zTXt": b"Raw profile type exif\0\0", b"iTXt": b"a\0\1\0\0\0", b"tEXt": b"a\0"}.get(
        kind, b""
    )
    return png(*_SIZE, bytes(180), before=chunk(kind, prefix + packed) * random.choice([1, 40]))


def _png_chunks(random: Random) -> bytes:
    one = chunk(
        random.choice([b"IDAT", b"abCd", b"tEXt", b"acTL", b"fcTL", b"PLTE", b"tRNS"]), random.choice([b"", b"a\0b"])
    )
    return png(*_SIZE, bytes(180), before=one * random.choice([2, 1000, 100_000]))


def _lying_png(random: Random) -> bytes:
    width, height = (random.choice([0, 1, 7, 40, 9000, 40_000, (1 << 31) - 1, 1 << 31]) for _ in range(2))
    return png(width, height, bytes(180), random.choice([1, 2, 4, 8, 16, 3]), random.choice([0, 2, 3, 4, 6, 5]))


def _jpeg_scans(random: Random) -> bytes:
    side = random.choice([64, 2000])
    content = encoded(Image.new("RGB", (side, side), "red"), "JPEG", progressive=True)
    start, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    return content[:end] + content[start:end] * random.choice([10, 54, 300, 5000]) + content[end:]


def _jpeg_segments(random: Random) -> bytes:
    content, data = (
        good_file("JPEG"),
        random.choice([b"", b"Exif\0\0xxxx", b"ICC_PROFILE\0\1\1x", b"Photoshop 3.0\0" + b"8BIM" * 9]),
    )
    one = (
        b"\xff"
        + bytes([random.choice([0xE0, 0xE1, 0xE2, 0xED, 0xFE, 0xC0, 0xDB, 0xC4])])
        + struct.pack(">H", len(data) + 2)
        + data
    )
    one = random.choice([one, one, b"\xff", b"\0"])
    return content[:2] + one * random.choice([1, 3, 5000, 300_000]) + content[2:]


def _jpeg_size(random: Random) -> bytes:
    content = good_file("JPEG")
    place = content.index(b"\xff\xc0") + 5
    sides = (random.choice([0, 1, 8, 31, 5000, 65_500]) for _ in range(2))
    return content[:place] + struct.pack(">HH", *sides) + content[place + 4 :]


def _gif_blocks(random: Random) -> bytes:
    content = good_file("GIF")
    place = 13 + (3 << ((content[10] & 7) + 1)) if content[10] & 0x80 else 13
    label = random.choice([b"\xfe", b"\xff", b"\xf9", b"\x01"])
    one = random.choice(
        [b"\x21" + label + b"\x01x\0", b"\x21" + label + b"\xff" + b"x" * 255 + b"\0", b"\0", b"\x2c" + bytes(10)]
    )
    return content[:place] + one * random.choice([1, 100, 5000, 400_000 // len(one) * 5]) + content[place:]


def _gif_screen(random: Random) -> bytes:
    content = bytearray(good_file("GIF"))
    content[6:10] = struct.pack("<HH", *(random.choice([0, 1, 40, 9000, 65_535]) for _ in range(2)))
    return bytes(content)


def _directory(entries: int, size: int) -> bytes:
    """A TIFF directory all of whose entries are the same bytes."""
    start = 8 + 2 + 12 * entries + 4
    tags = b"".join(struct.pack("<HHII", 40_000 + number % 20_000, 1, size, start) for number in range(entries))
    return _DIRECTORY + struct.pack("<H", entries) + tags + bytes(4 + size)


def _exif(random: Random) -> bytes:
    exif = random.choice(
        [
            lambda: _directory(random.choice([1, 2000]), random.choice([100, 900_000])),
            lambda: (
                _DIRECTORY + struct.pack("<HHHII", 1, 0x112, random.randrange(20), random.choice([0, 1, 1 << 31]), 6)
            ),
            lambda: _DIRECTORY + random.randbytes(random.choice([1, 40, 5000])),
            lambda: random.randbytes(100),
            lambda: b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 100,
        ]
    )()
    kind = random.choice(["PNG", "JPEG", "WEBP"])
    if kind != "JPEG":
        return encoded(image(), kind, exif=exif)
    parts = [b"Exif\0\0" + exif[place : place + 60_000] for place in range(0, len(exif), 60_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    return good_file(kind)[:2] + segments + good_file(kind)[2:]


def _tiff(random: Random) -> bytes:
    """A TIFF of 16 x 16 grey pixels with other entries than it should have."""
    value = random.choice([0, 1, 3, 16, 256, 70_000, 0xFFFFFFFF])
    size = random.choice([16, 16, 20_000])
    tags = {256: size, 257: size, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: 256}
    tags[random.choice([*tags, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339, 34665])] = value
    entries = [
        struct.pack("<HHII", tag, 4, random.choice([1, 1, 1, value]), content) for tag, content in sorted(tags.items())
    ]
    following = random.choice([0, 0, 8, 4, 0xFFFFFFFF])
    plain = _DIRECTORY + struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", following) + bytes(300)
    return random.choice([plain, _directory(random.choice([1, 60_000]), random.choice([10, 1_000_000]))])


def _icon(random: Random) -> bytes:
    side = random.choice([0, 64])
    inner = random.choice([_large_png, _lying_png, lambda _: struct.pack("<Iii", 40, 9000, 9000) + bytes(100)])(random)
    entry = struct.pack("<BBBBHHII", side, side, 0, 0, 1, 32, len(inner), 22)
    return b"\0\0\1\0" + struct.pack("<H", random.choice([1, 1, 60_000])) + entry + inner


def _mode(random: Random) -> bytes:
    mode, kind = random.choice(_MODES), random.choice(KINDS)
    picture = (
        Image.new("I;16", _SIZE) if mode == "I;16" else image().convert("L").convert(mode) if mode in "IF" else image()
    )
    if mode in ("LAB", "HSV"):
        kind, picture = "TIFF", image().convert("HSV") if mode == "HSV" else Image.new("LAB", _SIZE)
    elif mode not in ("I;16", "I", "F"):
        picture = image().convert(mode)
    try:
        return encoded(picture, kind)
    except (OSError, ValueError):  # a format without this mode
        return encoded(image().convert("CMYK"), "JPEG")


def _frames(random: Random) -> bytes:
    kind, count = random.choice(["GIF", "PNG", "WEBP", "TIFF", "AVIF"]), random.choice([2, 100])
    frames = [Image.new("RGB", (16, 16), (number, 0, 0)) for number in range(count)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def _of_others(random: Random) -> bytes:
    return random.choice(_OF_OTHERS)


ATTACKS: tuple[Callable[[Random], bytes], ...] = (
    *(
        _large_png,
        _png_bomb,
        _png_chunks,
        _lying_png,
        _jpeg_scans,
        _jpeg_segments,
        _jpeg_size,
        _gif_blocks,
        _gif_screen,
    ),
    *(_exif, _tiff, _icon, _mode, _frames, _of_others),
)
