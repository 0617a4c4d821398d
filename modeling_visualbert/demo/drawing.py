"""Answers as HTML: bars, and the image with its regions as SVG, which is sharp on any screen and never written to disk."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from ..visualization import attention_color

_MAX_SIDE = 900  # pixels of the image that is sent to the browser
_LABELLED = 3  # strongest regions that are labelled; the others have a tooltip
# Those of Okabe and Ito's colours, which colour-blind readers can distinguish, that are dark enough for text.
_MARKS = ("#D55E00", "#0072B2", "#009E73", "#9A4F7E", "#7A5C00", "#444444")


@dataclass(frozen=True)
class Bars:
    """Scores in 0..1 by name; `ranked` if they are of rivals, best first."""

    title: str
    rows: Sequence[tuple[str, float]]
    ranked: bool = True


@dataclass(frozen=True)
class View:
    """
    An image and what was found in it.

    Args:
        image: The image.
        boxes: x1, y1, x2, y2 in pixels of the image.
        names: What each region is, if it is known.
        weights: Attention that each region gets, 0..1.
        measure: What a weight is a share of, for the tooltip of a region.
        marks: Regions that are the answer, with a label: the strongest colour goes to the first.
    """

    image: Image.Image
    boxes: Sequence[Sequence[float]]
    names: Sequence[str]
    weights: Sequence[float] | None = None
    marks: Sequence[tuple[int, str]] = ()
    measure: str = "of the attention"


def bars_html(groups: Sequence[Bars]) -> str:
    """Each group as a list of names with bars and percentages."""
    # Not gradio's `Label`: it holds one group (there is one for each [MASK]), sorts the rows (phrases keep the order of the
    # sentence) and keeps them by name, so that of two equal choices or phrases one would be lost.
    return "".join(_group(group) for group in groups)


def _group(group: Bars) -> str:
    rows = "".join(
        f'<li><span class="vb-name">{escape(name)}</span>'
        f'<span class="vb-track"><span class="vb-fill" style="width:{100 * score:.1f}%"></span></span>'
        f'<span class="vb-score">{score:.1%}</span></li>'
        for name, score in group.rows
    )
    title = f'<p class="vb-title">{escape(group.title)}</p>' if group.title else ""
    kind = "vb-bars vb-ranked" if group.ranked else "vb-bars"
    return f'<div class="{kind}">{title}<ol>{rows}</ol></div>'


def views_html(views: Sequence[View], note: str) -> str:
    """Images side by side, and a line of text below. Percentages are shares of the attention that all regions get."""
    weights = [weight for view in views for weight in view.weights or ()]
    strongest, total = max(weights, default=0.0), sum(weights)
    images = "".join(f"<figure>{_svg(view, strongest, total, len(views))}</figure>" for view in views)
    return f'<div class="vb-views vb-{len(views)}">{images}</div><p class="vb-note">{escape(note)}</p>'


def _svg(view: View, strongest: float, total: float, columns: int) -> str:
    width, height = view.image.size
    font = round(max(width / 28, height / 36) * columns**0.6, 1)
    shares = [w / strongest if strongest > 0 else 0.0 for w in view.weights or [0.0] * len(view.boxes)]
    marks = {region: (number, label) for number, (region, label) in enumerate(view.marks)}
    by_strength = sorted(range(len(view.boxes)), key=lambda i: (i in marks, shares[i]))
    labelled = {i for i in by_strength[-_LABELLED:] if view.weights and view.weights[i] >= 0.005 * total > 0}
    boxes, labels = [], []
    for i in by_strength:
        hint = view.names[i]
        if view.weights is not None:
            hint = f"{hint}: {view.weights[i]:.1%} {view.measure}".removeprefix(": ")
        if i in marks:
            number, text = marks[i]
            color, stroke = _MARKS[number % len(_MARKS)], 2.5 + 2.5 * shares[i]
        else:
            loud = 0.0 if marks else shares[i]  # beside the answer's colours, attention is only shading
            color, stroke = "#{:02x}{:02x}{:02x}".format(*attention_color(loud)), 1.5 + 3.0 * loud
            text = f"{view.weights[i] / total:.0%}" if view.weights and i in labelled and not marks else ""
        x1, y1, x2, y2 = view.boxes[i]
        boxes.append(
            f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" stroke="{color}" '
            f'stroke-width="{stroke:.1f}" fill="{color}" fill-opacity="{0.02 + 0.23 * shares[i]:.2f}">'
            f"<title>{escape(hint)}</title></rect>"
        )
        if text:
            labels.append(_label(text, view.boxes[i], color, font, view.image.size))
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="The image with {len(view.boxes)} regions">'
        f'<image href="{_data_uri(view.image)}" width="{width}" height="{height}"/>'
        f"{''.join(boxes)}{''.join(labels)}</svg>"
    )


def _label(text: str, box: Sequence[float], color: str, font: float, size: tuple[int, int]) -> str:
    """Above the box if there is room, else inside it; never beyond the right end of the image."""
    x1, y1, _, _ = box
    left = max(0.3 * font, min(x1, size[0] - 0.58 * font * len(text)))
    base = y1 - 0.35 * font if y1 > 1.4 * font else y1 + 1.1 * font
    return f'<text x="{left:.1f}" y="{base:.1f}" font-size="{font}" fill="{color}">{escape(text)}</text>'


def _data_uri(image: Image.Image) -> str:
    scale = min(1.0, _MAX_SIDE / max(image.size))
    width, height = (max(1, round(scale * side)) for side in image.size)
    # As `thumbnail` does, which changes the image: a copy of a large one would be large.
    small = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0) if scale < 1 else image
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
