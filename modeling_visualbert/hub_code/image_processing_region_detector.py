"""Images (and, for VCR, boxes, polygons and classes) -> inputs of a region detector, by the recipe of its training."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs

from .configuration_region_detector import DESIGNS, DetectorDesign, RegionDetectorConfig
from .detection_ops import polygon_mask, resize_by_factor
from .image_processing_visualbert import VisualBertImageProcessor, as_tensors, check_return_tensors, load_images
from .regions_visualbert import check_boxes, normalise_boxes, pad_boxes

_BY_RECIPE = {design.images["recipe"]: design for design in DESIGNS.values()}
# Settings of other image processors that a recipe leaves no choice about.
_FIXED = (
    *("do_resize", "default_to_square", "resample", "do_rescale", "rescale_factor"),
    *("do_normalize", "do_pad", "pad_size", "crop_size"),
)
_MIN_SIDE = 8  # of a resized image, so that very long and thin ones keep some pixels


class RegionDetectorImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Fields of [`RegionDetectorImageProcessor`] in addition to those of `transformers`."""

    recipe: str
    channel_order: str
    pad_to_multiple: int
    random_place: bool
    mask_size: int
    class_names: list[str] | None


class RegionDetectorImageProcessor(VisualBertImageProcessor):
    r"""
    Prepares images as in the training of the published detectors. `recipe` is one of:

    * `"interpolate"` (bottom-up attention): bilinear resize of floats without antialiasing so that the shorter side is
      `size["shortest_edge"]` but the longer at most `size["longest_edge"]`, then mean and deviation, BGR in 0..255.
    * `"factor"` (Pythia, Detectron): the mean is subtracted first, then OpenCV's resize by a factor, BGR in 0..255, padded
      on the right and at the bottom to multiples of `pad_to_multiple`.
    * `"fit"` (VCR): fitted into `size` (height, width) with Pillow's bilinear resize, centred on a black canvas (at a random
      place with `random_place`, for training), RGB in 0..1, then mean and deviation.

    Returns a `BatchFeature` with `pixel_values` of shape `(batch_size, 3, height, width)`; `image_sizes` of shape
    `(batch_size, 2)`, original height and width; `picture_windows` of shape `(batch_size, 4)`, where the image lies in
    `pixel_values` (x1, y1, x2, y2, to a fraction of a pixel); and `pixel_mask` if there is padding. With `boxes` also
    `boxes_unit` (normalised boxes) and `boxes_mask`, and for VCR `object_classes` and `object_masks`, the whole image first.
    """

    valid_kwargs = RegionDetectorImageProcessorKwargs
    recipe = "interpolate"
    size = {"shortest_edge": 800, "longest_edge": 1333}
    image_mean = [102.9801, 115.9465, 122.7717]
    image_std = [1.0, 1.0, 1.0]
    channel_order = "BGR"
    pad_to_multiple = 1
    random_place = False
    mask_size = 14
    class_names = None
    do_rescale = False
    model_input_names = ["pixel_values", "pixel_mask", "image_sizes", "picture_windows"]

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if self.recipe not in _BY_RECIPE:
            raise ValueError(f"recipe {self.recipe!r}; expected one of {', '.join(_BY_RECIPE)}")
        if self.channel_order not in ("BGR", "RGB"):
            raise ValueError(f"channel_order {self.channel_order!r}; expected 'BGR' or 'RGB'")
        for name in _FIXED:
            value, fixed = kwargs.get(name), getattr(type(self), name, None)
            if value is not None and value != fixed:
                raise ValueError(
                    f"{name} {value!r}; expected {fixed!r}: recipe {self.recipe!r} says how images are prepared"
                )
        needed = self.design.images["size"]
        if not all(self.size[name] for name in needed):
            raise ValueError(f"size {dict(self.size)}; expected {' and '.join(needed)} for recipe {self.recipe!r}")

    @property
    def design(self) -> DetectorDesign:
        """What the detectors have in common that are trained with this recipe."""
        return _BY_RECIPE[self.recipe]

    @property
    def reads_objects(self) -> bool:
        """Whether it is the image processor of VCR's detector, see `RegionDetectorConfig.reads_objects`."""
        return self.design.reads_objects

    @classmethod
    def for_config(cls, config: RegionDetectorConfig, **fields: Any) -> "RegionDetectorImageProcessor":
        """The image processor of the published detector with this kind of head; `fields` override its own."""
        published = dict(config.design.images)
        if config.reads_objects:
            published["mask_size"] = config.mask_size
            published["class_names"] = [config.id2label[i] for i in range(config.num_classes)]
        return cls(**{**published, **fields})

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = "pt",
        boxes: Any = None,
        classes: Any = None,
        polygons: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            images: One image or several, see [`load_images`].
            return_tensors: `"pt"`, `"np"` or None.
            boxes: Boxes to describe, x1, y1, x2, y2 in pixels, [R, 4] for each image.
            classes: VCR: the class of each box, by number or name.
            polygons: VCR: for each box a list of polygons, each a list of (x, y) in pixels. Without them every object
                fills its box.
            kwargs: Fields of this processor to override; `input_data_format` and `device` as in `transformers`.

        Raises:
            TypeError: A keyword is unknown.
            ValueError: An image cannot be used, or boxes, classes and polygons do not fit one another.
        """
        return_tensors = check_return_tensors(return_tensors)
        kwargs = self._checked(kwargs)
        layout, device = (kwargs.pop(name, None) or getattr(self, name) for name in ("input_data_format", "device"))
        if kwargs:
            rest = {
                "boxes": boxes,
                "classes": classes,
                "polygons": polygons,
                "input_data_format": layout,
                "device": device,
            }
            return type(self)(**{**self.to_dict(), **kwargs}).preprocess(images, return_tensors, **rest)
        single = not isinstance(images, (list, tuple)) and getattr(images, "ndim", 3) < 4
        loaded = load_images(images, layout)
        prepared = [self._prepare(image) for image in loaded]
        data = self._pad([pixels for pixels, _ in prepared], [window for _, window in prepared])
        data["image_sizes"] = torch.tensor([(image.height, image.width) for image in loaded])
        if boxes is not None:
            given = [[value] if single and value is not None else value for value in (boxes, classes, polygons)]
            data |= self.encode_objects(data["image_sizes"].tolist(), *given)
        elif classes is not None or polygons is not None:
            raise ValueError("classes or polygons without boxes; expected `boxes`, those of the objects")
        return as_tensors(data if device is None else BatchFeature(data).to(device), return_tensors)

    def _prepare(self, image: Image.Image) -> tuple[torch.Tensor, tuple[float, ...]]:
        """Normalised pixels [3, H, W] of one image and its window."""
        prepare = {"interpolate": self._interpolate, "factor": self._by_factor, "fit": self._fit}
        return prepare[self.recipe](image)

    def _floats(self, image: Image.Image) -> np.ndarray:
        pixels_HWC = np.asarray(image, dtype=np.float32)
        return pixels_HWC[..., ::-1] if self.channel_order == "BGR" else pixels_HWC

    def _interpolate(self, image: Image.Image) -> tuple[torch.Tensor, tuple[float, ...]]:
        pixels_HWC = self._floats(image)
        sides, short = pixels_HWC.shape[:2], self.size["shortest_edge"]
        scaled = [short if side == min(sides) else side * (short / min(sides)) for side in sides]
        if max(scaled) > self.size["longest_edge"]:
            scaled = [side * (self.size["longest_edge"] / max(scaled)) for side in scaled]
        height, width = (max(_MIN_SIDE, int(side + 0.5)) for side in scaled)
        pixels_CHW = torch.from_numpy(np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1)))
        resized = F.interpolate(pixels_CHW[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        return (resized - self._column(self.image_mean)) / self._column(self.image_std), (0.0, 0.0, width, height)

    def _by_factor(self, image: Image.Image) -> tuple[torch.Tensor, tuple[float, ...]]:
        pixels_HWC = self._floats(image)
        height, width = pixels_HWC.shape[:2]
        factor = self.size["shortest_edge"] / min(height, width)
        if round(factor * max(height, width)) > self.size["longest_edge"]:
            factor = self.size["longest_edge"] / max(height, width)
        centred = pixels_HWC - np.asarray(self.image_mean, dtype=np.float32)
        resized = torch.from_numpy(resize_by_factor(centred, factor)).permute(2, 0, 1)
        return resized / self._column(self.image_std), (0.0, 0.0, width * factor, height * factor)

    def _fit(self, image: Image.Image) -> tuple[torch.Tensor, tuple[float, ...]]:
        height, width = self.size["height"], self.size["width"]
        scale = min(width / image.width, height / image.height)
        side_w, side_h = (max(1, round(side * scale)) for side in image.size)
        resized = image if scale == 1.0 else image.resize((side_w, side_h), Image.Resampling.BILINEAR)
        left, top = (width - side_w) // 2, (height - side_h) // 2
        if self.random_place:
            left, top = (int(torch.randint(room + 1, ())) for room in (width - side_w, height - side_h))
        canvas = Image.new("RGB", (width, height))
        canvas.paste(resized, (left, top))
        pixels_HWC = np.array(canvas)
        if self.channel_order == "BGR":
            pixels_HWC = pixels_HWC[..., ::-1].copy()
        pixels_CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1).float() / 255
        normalised = (pixels_CHW - self._column(self.image_mean)) / self._column(self.image_std)
        return normalised, (left, top, left + image.width * scale, top + image.height * scale)

    @staticmethod
    def _column(numbers: Sequence[float]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.float32)[:, None, None]

    def _pad(self, pixels: list[torch.Tensor], windows: list[tuple[float, ...]]) -> dict[str, torch.Tensor]:
        """Pad with zeros on the right and at the bottom, to the largest image and a multiple of `pad_to_multiple`."""
        multiple = self.pad_to_multiple
        height, width = (
            math.ceil(max(side) / multiple) * multiple
            for side in zip(*(image.shape[1:] for image in pixels), strict=True)
        )
        values = pixels[0].new_zeros(len(pixels), 3, height, width)
        mask = torch.zeros(len(pixels), height, width, dtype=torch.long)
        for row, (image, window) in enumerate(zip(pixels, windows, strict=True)):
            values[row, :, : image.shape[1], : image.shape[2]] = image
            if self.reads_objects:  # its images are padded on all sides already
                x1, y1, x2, y2 = (round(side) for side in window)
                mask[row, y1:y2, x1:x2] = 1
            else:
                mask[row, : image.shape[1], : image.shape[2]] = 1
        data = {"pixel_values": values, "picture_windows": torch.tensor(windows, dtype=torch.float32)}
        return data if mask.all() else {**data, "pixel_mask": mask}

    def encode_objects(
        self,
        image_sizes: Sequence[Sequence[int]],
        boxes: Sequence,
        classes: Sequence | None = None,
        polygons: Sequence | None = None,
    ) -> dict[str, torch.Tensor]:
        """Boxes in pixels -> normalised boxes, by the `image_sizes` (height, width): `boxes_unit` and `boxes_mask`.

        For VCR the whole image comes first, and there are `object_classes` and `object_masks`. The arguments are lists with
        an item for each image; see [`RegionDetectorImageProcessor.preprocess`].
        """
        with_objects = self.reads_objects
        for name, values in (("boxes", boxes), ("classes", classes), ("polygons", polygons)):
            if values is not None and len(values) != len(image_sizes):
                raise ValueError(f"{name} for {len(values)} images, but {len(image_sizes)} images; expected as many")
        units, masks, ids = [], [], []
        for i, (height, width) in enumerate(image_sizes):
            corners = np.asarray(boxes[i], dtype=np.float64)
            corners = corners.reshape(len(corners), -1 if len(corners) else 4)
            if corners.shape[1] not in (4, 5):  # VCR's end with a confidence
                raise ValueError(f"boxes {i} of shape {corners.shape}; expected (objects, 4), x1, y1, x2, y2 in pixels")
            corners = corners[:, :4]
            check_boxes(torch.from_numpy(corners), (height, width), f"boxes {i}")
            unit = normalise_boxes(torch.from_numpy(corners), (height, width)).float()
            units.append(torch.cat((torch.tensor([[0.0, 0.0, 1.0, 1.0]] * with_objects).reshape(-1, 4), unit)))
            if with_objects:
                ids.append(torch.tensor([0, *self._class_numbers(classes, i, len(corners))]))
                masks.append(self._object_masks(corners, None if polygons is None else polygons[i], i))
        objects = {"object_classes": ids, "object_masks": masks} if with_objects else {}
        return {
            **pad_boxes(units),
            **{name: pad_sequence(values, batch_first=True) for name, values in objects.items()},
        }

    def _class_numbers(self, classes: Sequence | None, i: int, count: int) -> list[int]:
        if classes is None:
            raise ValueError("boxes without classes; expected `classes`, the class of each box")
        if len(classes[i]) != count:
            raise ValueError(f"classes {i}: {len(classes[i])} classes for {count} boxes; expected as many")
        class_names: list[str] = self.class_names or []
        names = {_plain(name): number for number, name in enumerate(class_names)}
        numbers = []
        for value in classes[i]:
            if isinstance(value, str) and _plain(value) not in names:
                raise ValueError(f"classes {i}: unknown class {value!r}; expected one of {len(names)}, or a number")
            numbers.append(names[_plain(value)] if isinstance(value, str) else _class_number(value, class_names, i))
        return numbers

    def _object_masks(self, corners: np.ndarray, polygons: Sequence | None, i: int) -> torch.Tensor:
        """Masks [1 + objects, mask_size, mask_size]; the first is that of the whole image."""
        size = self.mask_size
        if polygons is not None and len(polygons) != len(corners):
            raise ValueError(
                f"polygons {i}: those of {len(polygons)} objects for {len(corners)} boxes; expected as many"
            )
        masks = np.ones((len(corners) + 1, size, size), dtype=np.float32)
        for j, box in enumerate(corners if polygons is not None else ()):
            masks[j + 1] = polygon_mask(box, polygons[j], size)  # type: ignore[index]
        return torch.from_numpy(masks)


def _class_number(value: Any, class_names: Sequence[str], i: int) -> int:
    plain: Any = value.item() if isinstance(value, torch.Tensor) else value
    try:
        number = operator.index(plain)
    except TypeError as error:
        raise ValueError(f"classes {i}: {value!r}; expected a number or a name of a class") from error
    if number < 0 or (class_names and number >= len(class_names)):
        known = f"0 to {len(class_names) - 1}" if class_names else "at least 0"
        raise ValueError(f"classes {i}: class {number}; expected {known}, or a name")
    return number


def _plain(name: str) -> str:
    """A class name in one spelling: COCO writes it with blanks, VCR without."""
    return name.lower().replace(" ", "").replace("_", "")


__all__ = ["RegionDetectorImageProcessor"]
