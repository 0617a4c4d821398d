"""Images -> `pixel_values`: loads what users have (paths, PIL images, arrays), refuses what would be read wrongly."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature

MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs, as an error instead of a warning
MIN_SIDE = 8
_MODES = ("RGB", "RGBA", "L", "LA", "P", "1")
_CHANNELS = (1, 3, 4)  # of an array: grey, RGB, RGBA

ImageSource = Any  # str | Path | PIL.Image.Image | numpy.ndarray | torch.Tensor


def load_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """
    Load one image as 8-bit RGB, upright (EXIF orientation applied), transparency shown on white.

    Args:
        source: A path, a PIL image, or an array or tensor: uint8, or float in 0..1; (height, width), or with 1, 3 or 4
            channels (grey, RGB, RGBA), which come first or last.
        name: What to call the image in an error; defaults to its path.

    Raises:
        FileNotFoundError: The path does not exist.
        TypeError: `source` is of no supported type.
        ValueError: The file is no image or is truncated; the image is animated, 16-bit, CMYK or of another mode that
            has no agreed way to RGB, smaller than 8 pixels, or has more than 89 megapixels.
    """
    if isinstance(source, (str, Path)):
        name = name or str(source)
        if str(source).startswith(("http://", "https://")):
            raise ValueError(f"{name}: images are not downloaded; expected a path, a PIL image or an array")
        if not Path(source).is_file():
            raise FileNotFoundError(f"{name}: no such image file")
        try:
            with Image.open(source) as image:
                return _checked_rgb(image, name)
        except UnidentifiedImageError as error:
            raise ValueError(f"{name}: not an image that Pillow can read") from error
        except Exception as error:  # readers of formats fail in their own ways when a file is damaged
            if str(error).startswith(name):
                raise
            raise ValueError(f"{name}: damaged or truncated image file ({error})") from error
    name = name or "image"
    if isinstance(source, Image.Image):
        return _checked_rgb(source, name)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _checked_rgb(_image_from_array(np.asarray(source), name), name)
    raise TypeError(f"{name}: got {type(source).__name__}; expected a path, a PIL image, an array or a tensor")


def _checked_rgb(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name}: {width} x {height} pixels; expected at most {MAX_PIXELS:,} (decompression bomb?)")
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{name}: {width} x {height} pixels; expected at least {MIN_SIDE} on each side")
    # An MPO file is a phone's JPEG with a preview or depth map behind the image.
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        raise ValueError(f"{name}: animated, {frames} frames; expected a still image (pick one frame)")
    if image.mode not in _MODES:
        kind = "16-bit or 32-bit" if image.mode.startswith(("I", "F")) else image.mode
        raise ValueError(
            f"{name}: {kind} image (mode {image.mode}); expected 8-bit RGB, grey or palette: convert it first"
        )
    try:
        image.load()
    except (OSError, SyntaxError) as error:  # Pillow reports a truncated PNG as a SyntaxError
        raise ValueError(f"{name}: damaged or truncated image file ({error})") from error
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


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

    @classmethod
    def from_detector(cls, pretrained_model_name_or_path, **kwargs) -> "VisualBertImageProcessor":
        """The image processor that treats images as a detector of `transformers` was trained with.

        Args:
            pretrained_model_name_or_path: The detector's checkpoint, by Hub name or folder.
            kwargs: Fields that should differ.
        """
        fields, _ = cls.get_image_processor_dict(pretrained_model_name_or_path)
        shared = (
            "do_resize",
            "size",
            "resample",
            "do_rescale",
            "rescale_factor",
            "do_normalize",
            "image_mean",
            "image_std",
        )
        return cls(**{**{name: fields[name] for name in shared if name in fields}, **kwargs})

    def preprocess(self, images, return_tensors="pt", **kwargs) -> BatchFeature:
        """`images`: one image or a list of images, see [`load_image`]; keyword arguments override the fields."""
        sources = images if isinstance(images, (list, tuple)) else [images]
        if not sources:
            raise ValueError("no images; expected at least one")
        if len(sources) == 1:
            loaded = [load_image(sources[0])]
        else:
            names = [str(s) if isinstance(s, (str, Path)) else f"image {i}" for i, s in enumerate(sources)]
            loaded = [load_image(source, name) for source, name in zip(sources, names, strict=True)]
        batch = super().preprocess(loaded, return_tensors=return_tensors, **kwargs)
        sizes = np.asarray([(image.height, image.width) for image in loaded])
        batch["image_sizes"] = torch.from_numpy(sizes) if return_tensors == "pt" else sizes
        return batch

    def _preprocess(self, images, do_pad, return_tensors, **kwargs) -> BatchFeature:
        batch = super()._preprocess(images, do_pad=False, return_tensors=None, **kwargs)
        data = {"pixel_values": batch["pixel_values"]}
        if len({image.shape for image in data["pixel_values"]}) > 1:
            if not do_pad:
                raise ValueError("images of different sizes in one batch with do_pad=False; expected equal sizes")
            data["pixel_values"], data["pixel_mask"] = self.pad(data["pixel_values"], return_mask=True)
        return BatchFeature(data=data, tensor_type=return_tensors)


__all__ = ["MAX_PIXELS", "MIN_SIDE", "VisualBertImageProcessor", "load_image"]
