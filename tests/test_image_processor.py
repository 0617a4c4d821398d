"""Images as users have them: what is accepted and how it looks afterwards, and what is refused by name."""

import base64
import http.server
import io
import re
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import shared
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, DetrImageProcessorPil
from transformers.image_processing_backends import PilBackend

from modeling_visualbert import VisualBertImageProcessor, load_image
from modeling_visualbert.hub_code.image_processing_region_detector import RegionDetectorImageProcessor
from modeling_visualbert.hub_code.image_processing_visualbert import MAX_PIXELS

RED, WHITE = (200, 10, 10), (255, 255, 255)


def noise(height=30, width=40, channels=3, seed=0):
    """uint8 noise [height, width, channels]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image, file_format, **options):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def animation(file_format):
    """The bytes of a file with three frames."""
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
    return encoded(frames[0], file_format, save_all=True, append_images=frames[1:])


def pixels_of(source):
    return np.asarray(load_image(source))


def quarter_turned():
    """A JPEG that lies on its side, as cameras store it: orientation 6 means "turn by 90 degrees clockwise"."""
    exif = Image.Exif()
    exif[0x0112] = 6
    half = Image.new("RGB", (40, 20), WHITE)
    half.paste(RED, (0, 0, 20, 20))
    return encoded(half, "JPEG", exif=exif, quality=100, subsampling=0)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    """A 1-bit PNG that claims a size and holds no pixel."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def file_with(tmp_path, content, name="image.img"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("as_type", [str, Path])
def test_a_path_is_read(tmp_path, as_type):
    path = file_with(tmp_path, encoded(Image.fromarray(noise()), "PNG"))
    assert np.array_equal(pixels_of(as_type(path)), noise())


@pytest.mark.parametrize(
    "source",
    [
        noise(),
        Image.fromarray(noise()),
        noise().transpose(2, 0, 1),
        torch.from_numpy(noise()).permute(2, 0, 1),
        noise() / 255,
        torch.from_numpy(noise()).permute(2, 0, 1).float() / 255,
        (noise() / 255).astype(np.float16),
        np.asfortranarray(noise()),
    ],
    ids=["array", "pil", "array-chw", "tensor-chw", "float64", "tensor-float32", "float16", "fortran"],
)
def test_arrays_and_pil_images_give_the_same_pixels(source):
    assert np.array_equal(pixels_of(source), noise())


@pytest.mark.parametrize(("value", "stored"), [(0.0, 0), (0.003, 1), (0.499, 127), (0.999, 255), (1.0, 255)])
def test_floats_are_rounded(value, stored):
    assert (pixels_of(np.full((20, 20, 3), value)) == stored).all()


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 1), (1, 30, 40)])
def test_grey_arrays_become_three_equal_channels(shape):
    grey = noise()[..., 0]
    assert np.array_equal(pixels_of(grey.reshape(shape)), np.repeat(grey[..., None], 3, axis=2))


def test_transparency_is_shown_on_white(tmp_path):
    image = Image.new("RGBA", (20, 20), (*RED, 0))
    image.paste((*RED, 255), (10, 0, 20, 20))
    image.paste((*RED, 51), (0, 10, 10, 20))
    loaded = load_image(file_with(tmp_path, encoded(image, "PNG")))
    assert loaded.getpixel((2, 2)) == WHITE
    assert loaded.getpixel((15, 2)) == RED
    assert loaded.getpixel((2, 15)) == tuple(round(0.2 * red + 0.8 * 255) for red in RED)


@pytest.mark.parametrize(("mode", "file_format"), [("LA", "PNG"), ("P", "PNG"), ("P", "GIF")])
def test_transparent_grey_and_palette_are_shown_on_white(tmp_path, mode, file_format):
    image = Image.new("RGBA", (20, 20), (50, 50, 50, 0))
    image.paste((60, 60, 60, 255), (10, 0, 20, 20))
    options = {}
    if mode == "P":
        image = image.convert("RGB").quantize(4)
        options["transparency"] = image.getpixel((3, 3))
    loaded = load_image(file_with(tmp_path, encoded(image.convert(mode), file_format, **options)))
    assert loaded.getpixel((3, 3)) == WHITE
    assert loaded.getpixel((15, 3)) == (60, 60, 60)


@pytest.mark.parametrize(("mode", "color"), [("RGB", RED), ("L", 7)])
def test_a_transparent_colour_is_shown_on_white(tmp_path, mode, color):
    path = file_with(tmp_path, encoded(Image.new(mode, (20, 20), color), "PNG", transparency=color))
    assert load_image(path).getpixel((3, 3)) == WHITE


@pytest.mark.parametrize("mode", ["L", "P", "1"])
@pytest.mark.parametrize("file_format", ["PNG", "GIF", "TIFF"])
def test_grey_palette_and_bitmap_files_are_read(tmp_path, mode, file_format):
    image = Image.fromarray(noise()).convert(mode)
    loaded = load_image(file_with(tmp_path, encoded(image, file_format)))
    assert loaded.mode == "RGB"
    assert np.array_equal(np.asarray(loaded), np.asarray(image.convert("RGB")))


def test_orientation_is_applied(tmp_path):
    path = file_with(tmp_path, quarter_turned())
    loaded = load_image(path)
    assert loaded.size == (20, 40)
    assert np.abs(np.asarray(loaded)[:18].astype(int) - RED).max() < 12  # the left half is on top now
    assert np.asarray(loaded)[22:].min() > 243
    assert VisualBertImageProcessor()(path)["image_sizes"].tolist() == [[40, 20]]


def test_a_real_photo():
    path = shared("real/coco_photos") / "COCO_train2014_000000084002.jpg"
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(pixels_of(path), expected)


def files_to_refuse():
    """Content by the reason why it is refused."""
    image = Image.fromarray(noise(100, 100))
    jpeg, png = encoded(image, "JPEG"), encoded(image, "PNG")
    return {
        "not an image": (b"GIF? no, text", "not an image that Pillow can read"),
        "empty": (b"", "not an image that Pillow can read"),
        "truncated jpeg": (jpeg[: len(jpeg) // 2], "damaged or truncated image file"),
        "truncated png": (png[: len(png) // 2], "damaged or truncated image file"),
        "animated gif": (animation("GIF"), "animated, several frames"),
        "tiff of several pages": (animation("TIFF"), "animated, several frames"),
        "animated png": (animation("PNG"), "animated, 3 frames"),
        "16-bit": (encoded(Image.fromarray(noise()[..., 0].astype(np.uint16) * 257), "PNG"), "16-bit.* expected 8-bit"),
        "float": (
            encoded(Image.fromarray(noise()[..., 0].astype(np.float32)), "TIFF"),
            "32-bit .*; expected 8-bit RGB",
        ),
        "cmyk": (encoded(image.convert("CMYK"), "JPEG"), "CMYK image .*; expected 8-bit RGB, grey or palette"),
        "1x1": (encoded(Image.new("RGB", (1, 1)), "PNG"), "1 x 1 pixels; expected at least 8 on each side"),
        "flat": (encoded(Image.new("RGB", (100, 7)), "PNG"), "100 x 7 pixels; expected at least 8 on each side"),
        "bomb": (png_header(10_000, 10_000), r"10000 x 10000 pixels; expected at most 89,478,485"),
        "huge bomb": (png_header(60_000, 60_000), r"3600000000 pixels.*decompression bomb"),
    }


@pytest.mark.parametrize("name", files_to_refuse())
def test_a_file_that_would_be_read_wrongly_is_refused(tmp_path, name):
    content, message = files_to_refuse()[name]
    path = file_with(tmp_path, content)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: .*{message}"):
        load_image(path)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    width = MAX_PIXELS // 8 + 1
    with warnings.catch_warnings(), pytest.raises(ValueError, match="expected at most 89,478,485"):
        warnings.simplefilter("error")
        load_image(file_with(tmp_path, png_header(width, 8)))


def jpeg_of_scans(extra):
    """A progressive JPEG whose last scan is repeated."""
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, "JPEG", progressive=True)
    content = whole.getvalue()
    start, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    return content[:end] + content[start:end] * extra + content[end:]


def test_a_jpeg_that_keeps_its_reader_busy_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    load_image(file_with(tmp_path, jpeg_of_scans(54)))  # 64 of them
    content = jpeg_of_scans(55)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for source in (file_with(tmp_path, content), content, Image.open(io.BytesIO(content))):
        with pytest.raises(ValueError, match=": JPEG of 65 scans; expected at most 64"):
            load_image(source)


def test_scans_are_counted_across_blocks_and_the_file_is_read_from_where_it_was(tmp_path):
    plain = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    comment = b"\xff\xfe" + (65_000).to_bytes(2, "big") + bytes(64_998)  # pushes the scans over the border of a block
    content = plain[:2] + comment * 16 + comment[:2] + (8_000).to_bytes(2, "big") + bytes(7_998) + plain[2:]
    assert np.array_equal(pixels_of(file_with(tmp_path, content)), pixels_of(file_with(tmp_path, plain)))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_file_starts_another_program(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: pytest.fail("a program was started"))
    path = tmp_path / "photo.jpg"
    path.write_bytes(EPS)
    for source in (path, EPS, io.BytesIO(EPS)):
        with pytest.raises(ValueError, match="not an image that Pillow can read"):
            load_image(source)
    with pytest.raises(ValueError, match="image in EPS format; expected one of JPEG, "):
        load_image(Image.open(path))


def stumps():
    """Files that end too early for Pillow to say so itself."""
    image = Image.fromarray(noise())
    return {
        "jpeg tables": encoded(image, "JPEG")[:200],
        "webp": encoded(image, "WEBP")[:-40],
        "animated gif": animation("GIF")[: len(animation("GIF")) * 2 // 5],
        "tiff pages": animation("TIFF")[: len(animation("TIFF")) // 2],
        "ico": encoded(image, "ICO")[:-200],
    }


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL.TiffImagePlugin")
@pytest.mark.parametrize("name", stumps())
def test_a_stump_of_a_file_is_refused_by_name(tmp_path, name):
    path = file_with(tmp_path, stumps()[name])
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: "):
        load_image(path)


@pytest.mark.parametrize("content", [b"P6\n40 4o\n255\n" + bytes(4800), b"P6\n40 "], ids=["number", "end"])
def test_a_damaged_header_is_refused_by_name(tmp_path, content):
    path = file_with(tmp_path, content)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: "):
        load_image(path)


@pytest.mark.parametrize("name", ["nowhere.png", "."])
def test_a_path_without_a_file_is_refused(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(tmp_path / name))}: no such image file"):
        load_image(tmp_path / name)


@pytest.mark.parametrize("url", ["http://example.org/cat.jpg", "https://example.org/cat.jpg"])
def test_images_are_not_downloaded(url):
    with pytest.raises(
        ValueError, match=rf"{url}: images are not downloaded; expected a path, a PIL image or an array"
    ):
        load_image(url)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((20, 20, 3), 1.5), "float array outside 0..1; expected finite values in 0..1, or uint8"),
        (np.full((20, 20, 3), -0.1, dtype=np.float32), "float array outside 0..1"),
        (np.full((20, 20, 3), np.nan), "float array outside 0..1; expected finite values"),
        (noise().astype(np.int32), "array of int32; expected uint8, or float in 0..1"),
        (noise() > 9, "array of bool; expected uint8"),
        (noise()[None], r"array of shape \(1, 30, 40, 3\); expected \(height, width\), \(height, width, c"),
        (noise()[..., :2], r"array of shape \(30, 40, 2\); expected \(height, width\)"),
        (np.zeros((30, 40, 5), np.uint8), r"array of shape \(30, 40, 5\); expected"),
        (np.zeros((0, 40, 3), np.uint8), r"array of shape \(0, 40, 3\); expected"),
        (np.zeros(40, np.uint8), r"array of shape \(40,\); expected"),
        (noise()[:4], "40 x 4 pixels; expected at least 8 on each side"),
        (noise()[:3, :, :3], "40 x 3 pixels; expected at least 8 on each side"),
        (noise().transpose(2, 0, 1)[:, :3], "40 x 3 pixels; expected at least 8 on each side"),
    ],
    ids=[
        "above",
        "below",
        "nan",
        "int32",
        "bool",
        "4-dims",
        "2-channels",
        "5-channels",
        "empty",
        "1-dim",
        "small",
        "small-hwc",
        "small-chw",
    ],
)
@pytest.mark.parametrize("as_type", [np.asarray, torch.from_numpy])
def test_a_wrong_array_is_refused(array, message, as_type):
    with pytest.raises(ValueError, match=f"image: {message}"):
        load_image(as_type(np.ascontiguousarray(array)))


@pytest.mark.parametrize("channels_first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("as_type", [np.asarray, torch.from_numpy])
def test_arrays_of_grey_rgb_and_rgba_are_read_in_both_layouts(as_type, channels, channels_first):
    pixels = noise(20, 30, channels)
    shown = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    array = np.ascontiguousarray(pixels.transpose(2, 0, 1) if channels_first else pixels)
    np.testing.assert_array_equal(load_image(as_type(array)), load_image(shown))


@pytest.mark.parametrize("value", [None, 5, ["a.png"], {"image": "a.png"}])
def test_what_is_no_image_is_refused(value):
    with pytest.raises(TypeError, match=f"image: got {type(value).__name__}; expected a path, a PIL image, an array"):
        load_image(value)


@pytest.mark.parametrize("mode", ["CMYK", "I;16", "F", "HSV", "LAB"])
def test_pil_images_of_other_modes_are_refused(mode):
    with pytest.raises(ValueError, match=rf"image: .*\(mode {re.escape(mode)}\); expected 8-bit RGB, grey or palette"):
        load_image(Image.new(mode, (20, 20)))


def test_pixel_values_are_those_of_a_plain_computation():
    image = Image.fromarray(noise(300, 200))
    batch = VisualBertImageProcessor()(image)
    resized = np.asarray(image.resize((160, 128), Image.Resampling.BILINEAR), dtype=np.float64)
    expected = ((resized / 255 - 0.5) / 0.25).transpose(2, 0, 1)
    assert sorted(batch) == ["image_sizes", "pixel_values"]
    assert batch["pixel_values"].shape == (1, 3, 128, 160)
    assert batch["pixel_values"].dtype == torch.float32
    np.testing.assert_allclose(batch["pixel_values"][0], expected, atol=1e-6)
    assert batch["image_sizes"].tolist() == [[300, 200]]


def test_fields_can_be_overridden_for_a_call():
    batch = VisualBertImageProcessor()(
        Image.fromarray(noise()), do_resize=False, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    np.testing.assert_allclose(batch["pixel_values"][0], noise().transpose(2, 0, 1) / 255, atol=1e-6)


def test_different_sizes_are_padded_and_masked():
    processor = VisualBertImageProcessor(size={"shortest_edge": 40, "longest_edge": 90})
    tall, wide = Image.fromarray(noise(300, 200)), Image.fromarray(noise(30, 50))
    batch = processor([tall, wide])
    assert batch["pixel_values"].shape == (2, 3, 60, 66)
    assert batch["image_sizes"].tolist() == [[300, 200], [30, 50]]
    for row, (image, (height, width)) in enumerate(((tall, (60, 40)), (wide, (40, 66)))):
        assert batch["pixel_mask"][row].sum() == height * width
        assert batch["pixel_mask"][row, :height, :width].all()
        alone = processor(image)
        assert "pixel_mask" not in alone
        assert torch.equal(batch["pixel_values"][row, :, :height, :width], alone["pixel_values"][0])
        assert not batch["pixel_values"][row, :, height:].any()
        assert not batch["pixel_values"][row, :, :, width:].any()


def test_different_sizes_without_padding_are_refused():
    processor = VisualBertImageProcessor(do_resize=False)
    with pytest.raises(ValueError, match="images of different sizes in one batch with do_pad=False; expected equal"):
        processor([noise(), noise(20, 20)], do_pad=False)


def test_a_batch_is_its_images_side_by_side():
    images = [noise(seed=i, width=40 + i) for i in range(3)]
    batch = VisualBertImageProcessor()(images)
    alone = [VisualBertImageProcessor()(image)["pixel_values"] for image in images]
    assert torch.equal(batch["pixel_values"], torch.cat(alone))
    assert batch["image_sizes"].tolist() == [[30, 40], [30, 41], [30, 42]]


def test_the_bad_image_of_a_batch_is_named(tmp_path):
    processor = VisualBertImageProcessor()
    with pytest.raises(ValueError, match=r"image 1: array of shape \(3, 3, 3, 3\)"):
        processor([noise(), np.ones((3, 3, 3, 3))])
    with pytest.raises(FileNotFoundError, match="nowhere.png: no such image file"):
        processor([noise(), tmp_path / "nowhere.png"])
    with pytest.raises(ValueError, match="no images; expected at least one"):
        processor([])


def test_numpy_in_place_of_tensors():
    batch = VisualBertImageProcessor()([noise()], return_tensors="np")
    assert isinstance(batch["pixel_values"], np.ndarray)
    assert batch["image_sizes"].tolist() == [[30, 40]]
    assert np.array_equal(batch["pixel_values"], VisualBertImageProcessor()([noise()])["pixel_values"].numpy())


def test_saved_and_loaded_again(tmp_path):
    processor = VisualBertImageProcessor(size={"height": 24, "width": 16}, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is VisualBertImageProcessor
    assert torch.equal(loaded(noise())["pixel_values"], processor(noise())["pixel_values"])


def test_a_pil_image_of_a_truncated_file_is_refused():
    """Pillow reads the pixels only when they are asked for."""
    content = encoded(Image.fromarray(noise(100, 100)), "PNG")
    with pytest.raises(ValueError, match=r"^image: damaged or truncated image file \("):
        load_image(Image.open(io.BytesIO(content[: len(content) // 2])))


def test_image_sizes_come_in_the_asked_form():
    assert isinstance(VisualBertImageProcessor()([noise()])["image_sizes"], torch.Tensor)
    assert isinstance(VisualBertImageProcessor()([noise()], return_tensors="np")["image_sizes"], np.ndarray)


def test_images_are_treated_as_a_detector_of_transformers_wants_them(tmp_path):
    size = {"shortest_edge": 40, "longest_edge": 90}
    theirs = DetrImageProcessorPil(size=size, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], rescale_factor=0.5)
    theirs.save_pretrained(tmp_path)
    ours = VisualBertImageProcessor.from_detector(tmp_path)
    assert dict(ours.size) == size and ours.rescale_factor == 0.5
    assert (list(ours.image_mean), list(ours.image_std)) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    wide = Image.fromarray(noise(60, 100))
    torch.testing.assert_close(ours(wide)["pixel_values"], theirs(wide, return_tensors="pt")["pixel_values"])
    assert dict(VisualBertImageProcessor.from_detector(tmp_path, size={"height": 8, "width": 9}).size)["width"] == 9


# ---------------------------------------------------------------------------- what users of transformers have in hand

PROCESSORS = {
    "fixed": VisualBertImageProcessor,
    "detector": lambda: RegionDetectorImageProcessor(size={"shortest_edge": 40, "longest_edge": 60}),
}


@pytest.fixture(scope="module")
def transparent():
    """A PNG with transparency, as bytes."""
    return encoded(Image.fromarray(noise(30, 40, 4)), "PNG")


@pytest.fixture
def website(tmp_path, transparent):
    """A web server of this machine: an image, a redirect to it, a page, and what is not there."""

    class Website(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answers = {"/a.png": (200, transparent), "/moved": (302, b""), "/page": (200, b"<html>")}
            status, body = answers.get(self.path, (404, b"no such page"))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/a.png")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Website) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "form",
    [
        "bytes",
        "bytearray",
        "memoryview",
        "buffer",
        "read buffer",
        "file",
        "data address",
        "stored bytes",
        "stored path",
    ],
)
def test_images_in_memory_are_those_of_the_file(form, transparent, tmp_path):
    (tmp_path / "a.png").write_bytes(transparent)
    buffer = io.BytesIO(transparent)
    if form == "read buffer":
        buffer.seek(0, io.SEEK_END)  # as `image.save(buffer)` leaves it
    forms = {
        **{"bytes": transparent, "bytearray": bytearray(transparent), "memoryview": memoryview(transparent)},
        **{"buffer": buffer, "read buffer": buffer},
        **{"stored bytes": {"bytes": transparent, "path": "b.png"}, "stored path": {"path": str(tmp_path / "a.png")}},
        "data address": f"data:image/png;base64,{base64.b64encode(transparent).decode()}",
        "data address in lines": f"data:image/png;base64,{base64.encodebytes(transparent).decode()}",
    }
    expected = pixels_of(tmp_path / "a.png")
    if form == "file":
        with open(tmp_path / "a.png", "rb") as file:
            np.testing.assert_array_equal(pixels_of(file), expected)
        return
    for _ in range(2):  # a buffer is not used up
        np.testing.assert_array_equal(pixels_of(forms[form]), expected)


@pytest.mark.parametrize("broken", [b"", b"not an image", io.BytesIO(b"GIF89a"), io.StringIO("text")])
def test_what_is_in_memory_but_no_image_is_refused(broken):
    with pytest.raises(ValueError, match="^image: (not an image that Pillow can read|damaged or truncated image file)"):
        load_image(broken)


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        (
            "data:image/png;base64,%%%",
            ValueError,
            r"data:image/png;base64,%%%\.\.\.: not base64 \(.*\); expected data:image",
        ),
        ("x" * 5000, FileNotFoundError, "x{200}: no such image file"),
    ],
)
def test_long_strings_are_named_in_short(address, error, message):
    with pytest.raises(error, match=f"^{message}") as caught:
        load_image(address)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("page", ["a.png", "moved"])
def test_image_processors_fetch_what_a_person_points_at(website, transparent, page, kind):
    fetched = PROCESSORS[kind]()([f"{website}/{page}", transparent])
    assert torch.equal(fetched["pixel_values"][0], fetched["pixel_values"][1])


def test_addresses_in_stored_rows_are_not_fetched(website):
    with pytest.raises(ValueError, match="^http.*a.png: images are not downloaded; expected a path"):
        VisualBertImageProcessor()({"bytes": None, "path": f"{website}/a.png"})


@pytest.mark.parametrize("kind", PROCESSORS)
def test_an_address_without_an_image_is_refused_in_one_line(website, kind):
    read = PROCESSORS[kind]()
    for page, error, message in (
        (f"{website}/nothing.png", OSError, "the server answers 404 Not Found"),
        (f"{website}/page", ValueError, "not an image that Pillow can read"),
        ("http://127.0.0.1:1/a.png", OSError, r"cannot be fetched \(.+\)"),
        ("http://", OSError, r"cannot be fetched \(.+\)"),
    ):
        with pytest.raises(error, match=f"^{re.escape(page)}: {message}$") as caught:
            read(page)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_arrays_and_lists_hold_what_the_tensors_hold(kind):
    read, images = PROCESSORS[kind](), [noise(30, 40), noise(40, 30)]
    tensors = read(images)
    for name, array in read(images, return_tensors="np").items():
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, tensors[name])
    for name, listed in read(images, return_tensors=None).items():
        assert isinstance(listed, list)
        np.testing.assert_array_equal(np.asarray(listed), tensors[name])


@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_place_of_channels_may_be_said_and_is_checked(kind):
    read, array = PROCESSORS[kind](), noise()
    found = read(array)["pixel_values"]
    assert torch.equal(read(array, input_data_format="channels_last")["pixel_values"], found)
    first = np.ascontiguousarray(array.transpose(2, 0, 1))
    assert torch.equal(read(torch.from_numpy(first), input_data_format="channels_first")["pixel_values"], found)
    with pytest.raises(
        ValueError, match=r"^image: array of shape \(3, 30, 40\); expected 1, 3 or 4 channels as input_data"
    ):
        read(first, input_data_format="channels_last")


def test_floats_that_need_no_rescaling_are_taken_as_they_are():
    """Pixels of 0..1 with `do_rescale=False`, as `transformers` asks for, are not divided by 255 again, nor multiplied by it."""
    array = noise().astype(np.float32) / 255
    read = VisualBertImageProcessor()
    torch.testing.assert_close(read(array, do_rescale=False)["pixel_values"], read(array)["pixel_values"])
    with pytest.raises(
        ValueError, match="^do_rescale=False for floats and 8-bit images in one batch; expected one kind$"
    ):
        read([array, noise()], do_rescale=False)
    assert read(noise(), do_rescale=False)["pixel_values"].max() > 100


def test_images_are_padded_to_a_size_that_is_asked_for():
    read = VisualBertImageProcessor(size={"height": 20, "width": 24})
    batch = read(noise(), pad_size={"height": 32, "width": 40})
    assert batch["pixel_values"].shape == (1, 3, 32, 40)
    assert torch.equal(batch["pixel_values"][..., :20, :24], read(noise())["pixel_values"])
    assert batch["pixel_mask"].sum() == 20 * 24 and batch["pixel_mask"][0, :20, :24].all()


@pytest.mark.parametrize("kind", PROCESSORS)
def test_results_are_on_the_device_that_is_asked_for(kind):
    assert {value.device.type for value in PROCESSORS[kind]()(noise(), device="meta").values()} == {"meta"}


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"foo": 1}, TypeError, "unknown argument 'foo'; expected one of "),
        ({"size": "large"}, ValueError, "size 'large': "),
        ({"do_center_crop": True}, ValueError, "do_center_crop; expected False"),
        ({"data_format": "channels_last"}, ValueError, "data_format 'channels_last'; expected 'channels_first'"),
        ({"return_tensors": "tf"}, ValueError, "return_tensors 'tf'; expected 'pt', 'np' or None"),
        ({"resample": "bicubic"}, ValueError, "resample 'bicubic'; expected one of PIL.Image.Resampling"),
        ({"image_mean": [0.5, 0.5]}, ValueError, r"image_mean \[0.5, 0.5\]; expected a number for each of 3 channels"),
        (
            {"image_std": [1, 0, 1]},
            ValueError,
            r"image_std \[1, 0, 1\]; expected a positive number for each of 3 channels",
        ),
        ({"image_seq_length": 3}, ValueError, "image_seq_length; expected none"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_would_be_ignored_are_refused(kind, settings, error, message):
    with pytest.raises(error, match=f"^{message}") as caught:
        PROCESSORS[kind]()(noise(), **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_mean_and_deviation_may_be_one_number_and_integers(kind):
    read = PROCESSORS[kind]()
    whole = read(noise(), image_mean=[1.0, 1.0, 1.0], image_std=[2.0, 2.0, 2.0], do_resize=None)["pixel_values"]
    assert torch.equal(read(noise(), image_mean=1, image_std=(2, 2, 2))["pixel_values"], whole)


@pytest.mark.parametrize(
    ("name", "value"),
    [("do_resize", False), ("do_normalize", False), ("do_rescale", True), ("resample", 0), ("do_pad", False)],
)
def test_the_recipe_of_a_detector_cannot_be_left(name, value):
    message = f"^{name} {value!r}; expected .*: recipe 'interpolate' says how images are prepared$"
    with pytest.raises(ValueError, match=message):
        RegionDetectorImageProcessor(**{name: value})
    with pytest.raises(ValueError, match=message):
        PROCESSORS["detector"]()(noise(), **{name: value})


def test_saving_leaves_the_image_processor_as_it_was(tmp_path):
    read = VisualBertImageProcessor()
    before = read.to_dict()
    read.save_pretrained(tmp_path)
    assert read.to_dict() == before


@pytest.mark.parametrize("size", [{"height": 64, "width": 80}, {"height": 33, "width": 200}, {"shortest_edge": 50}])
@pytest.mark.parametrize("resample", list(Image.Resampling))
def test_resizing_early_changes_no_bit(size, resample):
    """What `transformers` does with the image as an array."""
    image = Image.fromarray(noise(130, 90))
    processor = VisualBertImageProcessor(size=size, resample=resample)
    expected = PilBackend.preprocess(processor, [image], return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(images=[image])["pixel_values"], expected)
    assert torch.equal(
        VisualBertImageProcessor()(images=[image], size=size, resample=resample)["pixel_values"], expected
    )
