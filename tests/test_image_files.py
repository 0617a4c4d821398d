"""Small files that keep Pillow busy for minutes or fill the memory are refused before it reads them."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from modeling_visualbert import load_image
from modeling_visualbert.data.image_size import upright_size
from modeling_visualbert.hub_code.image_files_visualbert import FORMATS

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
TIFF = b"II*\0\x08\0\0\0"


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_with(segments):
    content = encoded(NOISE, "JPEG")
    return content[:2] + segments + content[2:]


def exif_segments(exif):
    parts = [b"Exif\0\0" + exif[place : place + 60_000] for place in range(0, len(exif), 60_000)]
    return b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)


def directory(entries, size):
    """A TIFF directory whose entries are all the same bytes."""
    start = 8 + 2 + 12 * entries + 4
    tags = b"".join(struct.pack("<HHII", 40_000 + number, 1, size, start) for number in range(entries))
    return TIFF + struct.pack("<H", entries) + tags + bytes(4 + size)


def gif_with(blocks):
    content = encoded(NOISE, "GIF")
    place = 13 + (3 << ((content[10] & 7) + 1))
    return content[:place] + blocks + content[place:]


def icon_of(inner, side=64):
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", side, side, 0, 0, 1, 32, len(inner), 22) + inner


BOMBS = {
    "exif that is copied": (jpeg_with((b"\xff\xe1\0\x0eExif\0\0" + bytes(6)) * 5000), "JPEG of 4,097 segments"),
    "gaps": (jpeg_with(b"\xff" * 2_000_000), r"JPEG of \d+ segments, 2,000,000 bytes apart"),
    "exif that overlaps": (jpeg_with(exif_segments(directory(500, 300_000))), "EXIF entries of 150,000,000 bytes in"),
    "exif of a png": (encoded(NOISE, "PNG", exif=directory(500, 300_000)), "EXIF entries of 150,000,000 bytes in"),
    "exif of a webp": (encoded(NOISE, "WEBP", exif=directory(500, 300_000)), "EXIF entries of 150,000,000 bytes in"),
    "tiff that overlaps": (directory(500, 300_000), "TIFF entries of 150,000,000 bytes in"),
    "comments": (gif_with(b"\x21\xfe\x01x\0" * 5000), "GIF of more than 4,0.. blocks of comments"),
    "one comment": (
        gif_with(b"\x21\xfe" + (b"\xff" + bytes(255)) * 5000 + b"\0"),
        "GIF of more than .* blocks of comments",
    ),
    "blocks": (gif_with(b"\x21\x01" + b"\x01x" * 500_001 + b"\0"), "GIF of more than 500,00. blocks of data"),
    "icon": (
        icon_of(encoded(Image.new("1", (10_000, 10_000)), "PNG")),
        "image in an icon: 10000 x 10000 pixels; expected at most",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_files_that_keep_a_reader_busy_are_refused_before_pillow_reads_them(tmp_path, monkeypatch, name):
    content, message = BOMBS[name]
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    if "png" not in name and "webp" not in name:  # whose headers cost nothing
        monkeypatch.setattr(Image, "open", lambda *args, **options: pytest.fail("opened"))
    monkeypatch.setattr(Image.Exif, "load", lambda *args, **options: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        load_image(path)
    with pytest.raises(ValueError, match=message):
        upright_size(path)


@pytest.mark.parametrize("name", ["exif of a png", "tiff that overlaps"])
def test_images_that_the_caller_has_opened_are_checked_too(name):
    content, message = BOMBS[name]
    if name.startswith("tiff"):
        content = TIFF + struct.pack("<H", 0) + struct.pack("<I", 0)
        image = Image.open(io.BytesIO(encoded(NOISE, "TIFF")))
        image.fp = io.BytesIO(BOMBS[name][0])
    else:
        image = Image.open(io.BytesIO(content))
    with pytest.raises(ValueError, match=f"^image: {message}"):
        load_image(image)


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow reads no AVIF")
def test_exif_data_of_an_avif_are_looked_at_before_pillow_reads_them():
    content = encoded(NOISE, "AVIF", exif=directory(20, 300_000))
    with pytest.raises(ValueError, match="^image: EXIF entries of 6,000,000 bytes in"):
        load_image(content)


def test_what_lies_behind_a_jpeg_is_none_of_it():
    """Such as the film of a phone's "motion photo", in which any bytes may occur."""
    content = encoded(NOISE, "JPEG")
    assert np.array_equal(load_image(content + b"\xff\xda\0\x02" * 5000), load_image(content))


def test_metadata_of_cameras_and_programs_are_no_reason_to_refuse():
    exif = Image.Exif()
    exif[0x010F], exif[0x9286] = "a camera", b"x" * 50_000
    profile = b"\xff\xe2" + struct.pack(">H", 60_002) + bytes(60_000)
    for content in (
        encoded(NOISE, "JPEG", exif=exif)[:2] + profile * 200 + encoded(NOISE, "JPEG", exif=exif)[2:],
        gif_with(
            b"\x21\xfe\xff" + bytes(255) + b"\0" + b"\x21\xff\x0bXMP DataXMP" + (b"\xff" + bytes(255)) * 3000 + b"\0"
        ),
        encoded(NOISE, "TIFF", exif=exif),
        encoded(NOISE.resize((64, 64)), "ICO"),
        jpeg_with(exif_segments(TIFF + struct.pack("<HHHII", 1, 0x927C, 7, 0xFFFFFF, 26) + bytes(4))),  # cut off
    ):
        assert load_image(content).mode == "RGB"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("close", [lambda image: image.close(), lambda image: image.fp.close()], ids=["image", "file"])
def test_a_closed_image_is_named_and_what_is_expected_is_said(kind, close):
    image = Image.open(io.BytesIO(encoded(NOISE, kind)))
    close(image)
    with pytest.raises(ValueError, match=r"^image 3: a closed image \(.*\); expected an open one, or a path$"):
        load_image(image, "image 3")


def test_a_large_transparent_image_is_whole():
    rows = np.random.default_rng(1).integers(0, 256, (1200, 1000, 4), dtype=np.uint8)  # more than a strip
    image = Image.fromarray(rows, "RGBA")
    white = Image.new("RGBA", image.size, "white")
    assert np.array_equal(load_image(image), Image.alpha_composite(white, image).convert("RGB"))


def test_the_images_of_callers_stay_theirs():
    image = NOISE.copy()
    loaded = load_image(image)
    loaded.paste("white", (0, 0, 40, 30))
    assert np.array_equal(image, NOISE)


def test_formats_whose_readers_take_more_memory_may_have_fewer_pixels():
    image = Image.new("L", (100, 100))
    for kind, most in (("WEBP", 20_000), ("PNG", 10_000)):
        assert load_image(encoded(image, kind), max_pixels=most).size == (100, 100)
        with pytest.raises(ValueError, match="100 x 100 pixels; expected at most"):
            load_image(encoded(image, kind), max_pixels=most - 2)
