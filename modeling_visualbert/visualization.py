"""Images that show regions: where they are, and how much attention the answer paid to each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from .hub_code.explain_visualbert import attention_weights
from .hub_code.modeling_visualbert import VisualBertForQuestionAnswering
from .hub_code.sequence_visualbert import answer_positions

_MIN_WIDTH = 480  # small images are enlarged to this width, so that boxes and labels are legible
_MAX_HEIGHT = 4096  # narrow images are not enlarged beyond this height
_QUIET, _LOUD = (90, 140, 190), (230, 85, 13)


@torch.inference_mode()
def answer_attention(model: VisualBertForQuestionAnswering, **inputs: torch.Tensor) -> torch.Tensor:
    """
    How strongly the answer's `[MASK]` token attends to each region in the last layer, averaged over heads.

    Args:
        model: The model; its attention implementation is switched to "eager" for this call, since only that returns weights.
        inputs: Model inputs with `visual_embeds` (not pixels).

    Returns:
        Float tensor of shape `(batch_size, regions)`. Rows do not sum to one: the remaining attention goes to words.
    """
    weights = attention_weights(model, **inputs)[-1].mean(dim=1)
    text_length = inputs["input_ids"].shape[1]
    rows = torch.arange(len(weights), device=weights.device)
    return weights[rows, answer_positions(inputs["attention_mask"]), text_length:]


def attention_color(share: float) -> tuple[int, int, int]:
    """RGB colour from blue (0) to orange (1), which colour-blind readers can distinguish."""
    red, green, blue = (round(quiet + (loud - quiet) * share) for quiet, loud in zip(_QUIET, _LOUD, strict=True))
    return red, green, blue


def draw_regions(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    weights: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
) -> Image.Image:
    """Draw boxes on a copy of the image, which is enlarged to a width of 480 pixels if it is smaller (or to a height of 4096
    pixels, if that comes first).

    Args:
        image: The image.
        boxes: x1, y1, x2, y2 in pixels of the image.
        weights: Weight of each region: the strongest is drawn thick and orange, weak ones thin and blue.
        labels: Text of each box.

    Raises:
        ValueError: Numbers of boxes, weights and labels differ.
    """
    for name, values in (("weights", weights), ("labels", labels)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"{len(values)} {name} for {len(boxes)} boxes; expected one for each")
    canvas = _enlarged(image)
    scale = canvas.width / image.width
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    strongest = max(weights, default=0.0) if weights is not None else 0.0
    for i in sorted(range(len(boxes)), key=lambda i: weights[i] if weights is not None else 0.0):
        share = weights[i] / strongest if weights is not None and strongest > 0 else 1.0
        color = attention_color(share)
        box = [side * scale for side in boxes[i]]
        draw.rectangle(box, outline=color, width=round(1 + 4 * share))
        if labels is not None:
            # Keep the label inside the image.
            left = max(0.0, min(box[0], canvas.width - font.getlength(labels[i])))
            anchor = (left, max(0.0, box[1] - 17))
            draw.rectangle(draw.textbbox(anchor, labels[i], font=font), fill="white")
            draw.text(anchor, labels[i], fill=color, font=font)
    return canvas


def region_labels(
    regions: Mapping[str, torch.Tensor], classes: Sequence[str] | None = None, attributes: Sequence[str] | None = None
) -> list[str]:
    """Label of each region, such as "red car 93%": attribute, class and confidence, as far as they are known.

    Args:
        regions: Regions of an image; `class_ids`, `attribute_ids` and `scores` may be missing.
        classes, attributes: Their names by id; without them, a label reads "class 5".
    """
    parts = []
    for key, names, unnamed in (("attribute_ids", attributes, "attribute"), ("class_ids", classes, "class")):
        if key in regions:
            ids = regions[key].tolist()
            known = [name.split(",")[0] for name in names or []]  # of synonyms such as "gray,grey", take the first
            parts.append([known[i] if i < len(known) else f"{unnamed} {i}" for i in ids])
    if "scores" in regions:
        parts.append([f"{score:.0%}" for score in regions["scores"].tolist()])
    return [" ".join(words) for words in zip(*parts, strict=True)] if parts else [""] * len(regions["boxes"])


def captioned(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """The image, enlarged as in [`draw_regions`], with lines of text below it; long lines wrap with an indent."""
    image = _enlarged(image)
    font, height, margin = ImageFont.load_default(size=15), 20, 4
    wrapped = [part for line in lines for part in _wrap(line, font, image.width - 2 * margin)]
    canvas = Image.new("RGB", (image.width, image.height + height * len(wrapped) + 2 * margin), "white")
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, line in enumerate(wrapped):
        draw.text((margin, image.height + margin + height * i), line, fill="black", font=font)
    return canvas


def _enlarged(image: Image.Image) -> Image.Image:
    scale = max(1.0, min(_MIN_WIDTH / image.width, _MAX_HEIGHT / image.height))
    size = round(image.width * scale), round(image.height * scale)
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _wrap(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    first, *words = line.split(" ")
    rows = [first]
    for word in words:
        if font.getlength(f"{rows[-1]} {word}") > width:
            rows.append(f"    {word}")
        else:
            rows[-1] += f" {word}"
    return rows


def grid(images: Sequence[Image.Image], columns: int = 3, gap: int = 8) -> Image.Image:
    """Images in a grid whose cells have the size of the largest image.

    Raises:
        ValueError: There are no images.
    """
    if not images:
        raise ValueError("no images to lay out")
    columns = min(columns, len(images))
    width, height = max(i.width for i in images) + gap, max(i.height for i in images) + gap
    sheet = Image.new("RGB", (columns * width + gap, -(-len(images) // columns) * height + gap), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (gap + number % columns * width, gap + number // columns * height))
    return sheet
