"""Images -> `pixel_values`: loads what users have (paths, PIL images, arrays), refuses what would be read wrongly."""

import base64
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import httpx
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, validate_preprocess_arguments

from .image_files_visualbert import (
    FORMATS,
    MAX_PIXELS,
    check_pixels,
    check_structure,
    open_image_file,
    orientation_of,
)

MIN_SIDE = 8
_MAX_SIDE = 4096  # that a checkpoint may resize images to
MAX_DOWNLOAD = 200_000_000  # bytes
TIMEOUT = 30  # seconds without an answer
_MODES = ("RGB", "RGBA", "L", "LA", "P", "1")
_CHANNELS = (1, 3, 4)  # of an array: grey, RGB, RGBA
_STRIP = 1 << 20  # pixels
_TURNS = {  # that make an image upright, by its EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Settings that say how an image is resized and scaled.
_PREPARATION = (
    *("do_resize", "size", "resample", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std"),
)

ImageSource = Any  # str | Path | bytes | an open file | PIL.Image.Image | numpy.ndarray | torch.Tensor


def load_image(
    source: ImageSource, name: str | None = None, download: bool = False, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """
    Load one image as 8-bit RGB, upright (EXIF orientation applied), transparency shown on white.

    Args:
        source: A path, the bytes of a file, an open file, a PIL image, or an array or tensor: uint8, or float in 0..1;
            (height, width), or with 1, 3 or 4 channels (grey, RGB, RGBA), which come first or last. A string may also be a
            `data:image/...;base64,` address, or `http(s)://` with `download`. So may a mapping with `bytes` or `path`, as
            `datasets` has them before it decodes an image; its path is never fetched.
        name: What to call the image in an error; defaults to its path.
        download: Whether addresses are fetched. Leave it off where others choose the address.
        max_pixels: How many an image may have, in WebP and JPEG 2000 half as many. Loading it takes up to 8 bytes for each.

    Raises:
        FileNotFoundError: The path does not exist.
        OSError: The address cannot be fetched.
        TypeError: `source` is of no supported type.
        ValueError: The file is no image, is truncated or made to keep its reader busy; the image is closed, animated, 16-bit,
            CMYK or of another mode that has no agreed way to RGB, smaller than 8 pixels, or has more than `max_pixels`.
    """
    image = _load(source, name, download, max_pixels)
    return image.copy() if image is source else image


def _load(source: ImageSource, name: str | None, download: bool, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The same; an image that is 8-bit RGB already is not copied."""
    if is_undecoded(source):
        download, source = False, source["path"] if source.get("bytes") is None else source["bytes"]
    name = name or (f"{source!s:.200}" if isinstance(source, (str, Path)) else "image")
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        if not download:
            raise ValueError(f"{name}: images are not downloaded; expected a path, a PIL image or an array")
        source = _download(source)
    elif isinstance(source, str) and source.startswith("data:image/"):
        name, source = f"{source[:30]}...", _decode_base64(source)
    if isinstance(source, (str, Path)):
        if not is_file(source):
            raise FileNotFoundError(f"{name}: no such image file{', but a folder' if os.path.isdir(source) else ''}")
        with open(source, "rb") as file:
            return _read(file, name, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read(io.BytesIO(source), name, max_pixels)
    if isinstance(source, Image.Image):
        return _rgb_of_image(source, name, max_pixels)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _checked_rgb(_image_from_array(_as_array(source), name), name, max_pixels).copy()
    if hasattr(source, "read"):
        return _read(source, name, max_pixels)
    raise TypeError(f"{name}: got {type(source).__name__}; expected a path, a PIL image, an array, a tensor or bytes")


def is_undecoded(source: Any) -> bool:
    """Whether it is an image as `datasets` stores it, `{"bytes": ..., "path": ...}`, and not a mapping with regions."""
    return isinstance(source, Mapping) and bool(source) and set(source) <= {"bytes", "path"}


def list_images(images: Any) -> list[ImageSource]:
    """One image, a list of them, a list of lists of one, or an array of four dimensions, as a flat list.

    Raises:
        ValueError: There is no image, or one of the inner lists has more or less than one.
    """
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        images = list(images)
    if not isinstance(images, Sequence) or isinstance(images, (str, bytes, bytearray, memoryview)):
        return [images]
    if not len(images):
        raise ValueError("no images; expected at least one")
    listed = []
    for i, image in enumerate(images):
        if isinstance(image, (list, tuple)):
            if len(image) != 1:
                raise ValueError(f"images {i}: a list of {len(image)}; expected one image")
            (image,) = image
        listed.append(image)
    return listed


def load_images(images: Any, input_data_format: str | None = None) -> list[Image.Image]:
    """What a person passes as images, see [`list_images`] and [`load_image`], loaded; addresses are fetched.

    Args:
        images: One image or several.
        input_data_format: Where arrays have their channels, "channels_first" or "channels_last"; found out when not given.

    Raises:
        OSError, TypeError, ValueError: One of them cannot be used; the message says which.
    """
    sources = list_images(images)
    loaded = []
    for i, source in enumerate(sources):
        name = None if len(sources) == 1 or isinstance(source, (str, Path)) else f"image {i}"
        if input_data_format is not None and isinstance(source, (np.ndarray, torch.Tensor)):
            _check_layout(tuple(source.shape), ChannelDimension(input_data_format), name or "image")
        loaded.append(_load(source, name, download=True))
    return loaded


def as_tensors(data: Mapping[str, torch.Tensor], return_tensors: str | None) -> BatchFeature:
    """Tensors as asked for: `"pt"`, `"np"`, or for None lists (of arrays where they hold real numbers)."""
    if return_tensors == "pt":
        return BatchFeature(dict(data))
    arrays = {name: _as_array(value) for name, value in data.items()}
    if return_tensors == "np":
        return BatchFeature(arrays)
    return BatchFeature(
        {name: list(value) if value.dtype.kind == "f" else value.tolist() for name, value in arrays.items()}
    )


def check_return_tensors(return_tensors: Any) -> str | None:
    """`"pt"`, `"np"` or None; `transformers` has an enumeration for them too.

    Raises:
        ValueError: It is another one.
    """
    plain = getattr(return_tensors, "value", return_tensors)
    if plain not in ("pt", "np", None):
        raise ValueError(f"return_tensors {plain!r}; expected 'pt', 'np' or None")
    return plain


def is_file(path: str | Path) -> bool:
    """Whether it is the path of a file; text of any other kind is not."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def _read(file: Any, name: str, max_pixels: int) -> Image.Image:
    with _damage_named(name), open_image_file(file, name, max_pixels) as image:
        return _checked_rgb(image, name, max_pixels)


def _rgb_of_image(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """An image that the caller has opened. Until its pixels are read, it needs its file."""
    file = getattr(image, "fp", None)
    try:
        with _damage_named(name):
            check_pixels(image.size, name, max_pixels, image.format)
            if file is not None and image.format in ("MPO", *FORMATS):
                place = file.tell()
                check_structure(file, name, max_pixels)
                file.seek(place)
            return _checked_rgb(image, name, max_pixels)
    except ValueError as error:
        if getattr(file, "closed", file is None) and error.__cause__ is not None:
            raise ValueError(f"{name}: a closed image ({error.__cause__}); expected an open one, or a path") from error
        raise


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Readers of formats fail in their own ways when a file is damaged."""
    try:
        yield
    except Exception as error:
        if str(error).startswith(f"{name}: "):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: damaged or truncated image file ({reason})") from error


def _download(address: str) -> bytes:
    """The file at an address. `load_image` of `transformers` fetches in the same way, but what it returns has lost its
    transparency and all but the first frame of an animation."""
    found = bytearray()
    try:
        with httpx.stream("GET", address, follow_redirects=True, timeout=TIMEOUT) as response:
            if response.is_error:
                raise OSError(f"{address}: the server answers {response.status_code} {response.reason_phrase}")
            for chunk in response.iter_bytes():
                found += chunk
                if len(found) > MAX_DOWNLOAD:
                    raise OSError(f"{address}: more than {MAX_DOWNLOAD // 1_000_000} MB; expected an image file")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(
            f"{address}: cannot be fetched ({' '.join(str(error).split()) or type(error).__name__})"
        ) from error
    return bytes(found)


def _decode_base64(address: str) -> bytes:
    try:
        return base64.b64decode("".join(address.partition(",")[2].split()), validate=True)  # often written in lines
    except ValueError as error:
        raise ValueError(f"{address[:30]}...: not base64 ({error}); expected data:image/...;base64,...") from error


def _checked_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """The image as 8-bit RGB; itself if it is that already."""
    width, height = image.size
    check_pixels(image.size, name, max_pixels, image.format)
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{name}: {width} x {height} pixels; expected at least {MIN_SIDE} on each side")
    if image.format not in (None, "MPO", *FORMATS):
        raise ValueError(f"{name}: image in {image.format} format; expected one of {', '.join(FORMATS)}")
    if (frames := _frames(image)) is not None:
        raise ValueError(f"{name}: animated, {frames} frames; expected a still image (pick one frame)")
    if image.mode not in _MODES:
        kind = "16-bit or 32-bit" if image.mode.startswith(("I", "F")) else image.mode
        raise ValueError(
            f"{name}: {kind} image (mode {image.mode}); expected 8-bit RGB, grey or palette: convert it first"
        )
    image.load()
    turned = _TURNS.get(orientation_of(image, name))
    image = image if turned is None else image.transpose(turned)
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """A transparent image as it looks on white; in strips, which take less memory than whole copies."""
    width, height = image.size
    whole, rows = Image.new("RGB", image.size), max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(height, top + rows))).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        whole.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return whole


def _frames(image: Image.Image) -> str | None:
    """How many frames an animation has, None if it is a still image. Those of GIF and TIFF files are not counted: in one that is
    made for it, that takes minutes."""
    if image.format == "MPO":  # a phone's JPEG with a preview or depth map behind the image, opened as a JPEG
        return None
    if image.format == "GIF":
        return "several" if getattr(image, "is_animated", False) else None
    if image.format == "TIFF":
        try:
            image.seek(1)
        except EOFError:
            return None
        finally:
            image.seek(0)
        return "several"
    frames = getattr(image, "n_frames", 1)
    return str(frames) if frames > 1 else None


def _as_array(value: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # NumPy has no such type


def _check_layout(shape: tuple[int, ...], expected: ChannelDimension, name: str) -> None:
    """Refuse an array whose channels are not where they are said to be."""
    if len(shape) == 3 and shape[0 if expected == ChannelDimension.FIRST else -1] not in _CHANNELS:
        raise ValueError(
            f"{name}: array of shape {shape}; expected 1, 3 or 4 channels as input_data_format={expected.value!r} says"
        )


def _image_from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[0] in _CHANNELS and array.shape[-1] not in _CHANNELS:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in _CHANNELS)) or 0 in array.shape:
        raise ValueError(
            f"{name}: array of shape {array.shape}; expected (height, width), (height, width, channels) or "
            "(channels, height, width), with 1, 3 or 4 (RGBA) channels"
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0.0 or array.max() > 1.0:
            raise ValueError(f"{name}: float array outside 0..1; expected finite values in 0..1, or uint8")
        array = (array * 255.0).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"{name}: array of {array.dtype}; expected uint8, or float in 0..1")
    return Image.fromarray(array)


class VisualBertImageProcessor(PilBackend):
    r"""
    Resizes, scales and pads images for a region encoder.

    The defaults are those of the detector that ships with the package. `size` takes the forms of `transformers`
    (`{"height", "width"}`, or `{"shortest_edge", "longest_edge"}` to keep the aspect ratio).

    Returns a `BatchFeature` with `pixel_values` of shape `(batch_size, 3, height, width)`, `image_sizes` of shape
    `(batch_size, 2)`, the original height and width in pixels, and, only if images had to be padded to the largest,
    `pixel_mask` of shape `(batch_size, height, width)`.
    """

    _auto_class = "AutoImageProcessor"  # its file goes into checkpoints, for `trust_remote_code`
    do_resize = True
    size = {"height": 128, "width": 160}
    resample = Image.Resampling.BILINEAR
    default_to_square = False
    do_convert_rgb = False  # `load_image` did
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.25, 0.25, 0.25]
    do_pad = True
    model_input_names = ["pixel_values", "pixel_mask", "image_sizes"]

    def __init__(self, **kwargs: Any):
        kwargs.pop("auto_map", None)  # saving writes it anew
        super().__init__(**kwargs)
        validate_preprocess_arguments(**{name: getattr(self, name) for name in _PREPARATION})
        known = self.valid_kwargs.__annotations__
        self._checked({name: value for name, value in kwargs.items() if name in known})

    @classmethod
    def from_detector(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "VisualBertImageProcessor":
        """The image processor that treats images as a detector of `transformers` was trained with.

        Args:
            pretrained_model_name_or_path: The detector's checkpoint, by Hub name or folder.
            kwargs: Fields that should differ.
        """
        fields, _ = cls.get_image_processor_dict(pretrained_model_name_or_path)
        return cls(**{**{name: fields[name] for name in _PREPARATION if name in fields}, **kwargs})

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`; the image processor is afterwards what it was before."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        self.__dict__.pop("auto_map", None)  # written for `trust_remote_code`, and left behind in the object
        return saved

    def preprocess(self, images: Any, return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:
        """
        Args:
            images: One image or several, see [`load_images`].
            return_tensors: `"pt"`, `"np"` or None.
            kwargs: Fields of this processor to override; `input_data_format` and `device` as in `transformers`.

        Raises:
            TypeError: A keyword is unknown.
            ValueError: An image cannot be used, or a setting that would move the boxes of regions is asked for.
        """
        return_tensors = check_return_tensors(return_tensors)
        kwargs = self._checked(kwargs)
        sources = list_images(images)
        if kwargs.get("do_rescale") is False and self.do_rescale:
            kwargs |= self._rescaled_by_the_caller(sources)
        layout, device = (kwargs.pop(name, None) or getattr(self, name) for name in ("input_data_format", "device"))
        loaded = load_images(sources, layout)
        image_sizes = torch.tensor([(image.height, image.width) for image in loaded])
        batch = super().preprocess([self._resized(image, kwargs) for image in loaded], return_tensors="pt", **kwargs)
        batch["image_sizes"] = image_sizes
        return as_tensors(batch if device is None else batch.to(device), return_tensors)

    def _resized(self, image: Image.Image, kwargs: Mapping[str, Any]) -> Image.Image:
        """The image in the size that all get, if there is one. `transformers` resizes it as an array, as which a large one is in
        memory several times; what has its size already stays as it is."""
        size = kwargs.get("size", self.size)
        height, width = (size.get("height"), size.get("width")) if hasattr(size, "get") else (None, None)
        if not (kwargs.get("do_resize", self.do_resize) and height and width):
            return image
        return image.resize((width, height), kwargs.get("resample", self.resample))

    def _checked(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a call, None left out. What `transformers` would ignore is refused."""
        known = set(self.valid_kwargs.__annotations__)
        checked = {}
        for name, value in kwargs.items():
            if name not in known:
                raise TypeError(f"unknown argument {name!r}; expected one of {', '.join(sorted(known))}")
            if value is None:
                continue
            checked[name] = _three_numbers(name, value) if name in ("image_mean", "image_std") else value
            try:
                validate_typed_dict(self.valid_kwargs, {name: checked[name]})
            except StrictDataclassError as error:
                raise ValueError(f"{name} {value!r:.60}: {' '.join(str(error).split()):.200}") from error
        for name in ("size", "pad_size", "crop_size"):
            _check_sides(name, checked.get(name))
        factor: Any = checked.get("rescale_factor", 1.0)
        if not 0 < abs(factor) < math.inf:
            raise ValueError(f"rescale_factor {factor!r}; expected a number other than 0")
        if checked.get("resample", 0) not in list(Image.Resampling):
            raise ValueError(f"resample {checked['resample']!r}; expected one of PIL.Image.Resampling")
        if "image_seq_length" in checked:
            raise ValueError("image_seq_length; expected none: regions take the place of image tokens")
        if checked.get("do_center_crop", self.do_center_crop):
            raise ValueError("do_center_crop; expected False: the boxes of regions are those of the whole image")
        layout = checked.get("data_format", self.data_format)
        if layout is not None and layout != ChannelDimension.FIRST:
            raise ValueError(f"data_format {layout!r}; expected 'channels_first', as region encoders read pixels")
        return checked

    @staticmethod
    def _rescaled_by_the_caller(sources: Sequence[ImageSource]) -> dict[str, Any]:
        """`do_rescale=False` says of floats that they are in 0..1 already. They are made 8-bit, so they are brought back."""
        floats = [isinstance(source, (np.ndarray, torch.Tensor)) and _is_float(source) for source in sources]
        if any(floats) and not all(floats):
            raise ValueError("do_rescale=False for floats and 8-bit images in one batch; expected one kind")
        return {"do_rescale": True, "rescale_factor": 1 / 255} if any(floats) else {}

    def _preprocess(self, images, do_pad, pad_size, return_tensors, **kwargs) -> BatchFeature:
        batch = super()._preprocess(images, do_pad=False, pad_size=None, return_tensors=None, **kwargs)
        data = {"pixel_values": batch["pixel_values"]}
        if pad_size is not None or len({image.shape for image in data["pixel_values"]}) > 1:
            if not do_pad:
                raise ValueError("images of different sizes in one batch with do_pad=False; expected equal sizes")
            data["pixel_values"], data["pixel_mask"] = self.pad(data["pixel_values"], pad_size, return_mask=True)
        return BatchFeature(data=data, tensor_type=return_tensors)


def _three_numbers(name: str, value: Any) -> list[float]:
    """Mean or deviation of the three channels, which may be given as one number."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    if (
        not all(isinstance(number, Real) and not isinstance(number, bool) for number in numbers)
        or len(numbers) != 3
        or not np.abs(numbers).max() <= 255  # nor is one NaN
        or (name == "image_std" and min(numbers) <= 0)
    ):
        raise ValueError(
            f"{name} {value!r:.60}; expected a {'positive ' * (name == 'image_std')}number for each of 3 channels"
        )
    return [float(number) for number in numbers]


def _check_sides(name: str, value: Any) -> None:
    """Refuse sizes of images that are none, or take more memory than a machine has."""
    if value is None or isinstance(value, (int, list, tuple)):
        sides = value if isinstance(value, (list, tuple)) else [value]
    else:
        sides = [side for key, side in dict(value).items() if not key.endswith("_pixels")]
    for side in sides:
        if side is not None and not (type(side) is int and 0 < side <= _MAX_SIDE):
            raise ValueError(f"{name} {value!r:.80}; expected sides of 1 to {_MAX_SIDE:,} pixels")


def _is_float(array: np.ndarray | torch.Tensor) -> bool:
    return array.is_floating_point() if isinstance(array, torch.Tensor) else array.dtype.kind == "f"


__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "MIN_SIDE",
    "VisualBertImageProcessor",
    "as_tensors",
    "check_return_tensors",
    "is_file",
    "is_undecoded",
    "list_images",
    "load_image",
    "load_images",
]
