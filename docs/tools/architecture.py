"""Draws docs/architecture.svg, the model in one picture:  python docs/tools/architecture.py"""

from html import escape
from pathlib import Path

WIDTH, HEIGHT = 960, 640
PIECES = ["[CLS]", "what", "color", "is", "the", "diamond", "?", "[MASK]", "[SEP]"]
REGIONS = [
    ("#f59e0b", "square"),
    ("#1d4ed8", "cross"),
    ("#22c3dd", "cross"),
    ("#dc2626", "square"),
    ("#f97316", "diamond"),
]
# (the piece that is read, what is told about it)
HEADS = [
    ("[CLS]", "NLVR2, labels, VCR: [CLS]", "true or false, a label, a score of each choice"),
    ("diamond", "phrases: the last piece", "which region does it mean?"),
    ("[MASK]", "VQA: [MASK]", "orange 92%, purple 2%, ..."),
]
TEXT, IMAGE, LINE, PALE = "#4051b5", "#b45309", "#475569", "#f8fafc"
CELL, GAP, LEFT, REGIONS_AT = 56, 6, 24, 620


def box(x, y, width, height, fill="white", stroke=LINE, radius=6):
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{fill}" stroke="{stroke}"/>'


def text(x, y, words, size=14, color="#0f172a", anchor="middle", bold=False):
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'
    )


def arrow(x1, y1, x2, y2, color=LINE):
    return f'<path d="M{x1} {y1} L{x2} {y2}" stroke="{color}" stroke-width="1.5" marker-end="url(#tip)" fill="none"/>'


def shape(kind, x, y, size, fill):
    """A square, cross or diamond around a point."""
    half, third = size / 2, size / 6
    if kind == "square":
        return f'<rect x="{x - half}" y="{y - half}" width="{size}" height="{size}" fill="{fill}"/>'
    if kind == "diamond":
        return f'<path d="M{x} {y - half} L{x + half} {y} L{x} {y + half} L{x - half} {y} Z" fill="{fill}"/>'
    bars = [(x - half, y - third, size, 2 * third), (x - third, y - half, 2 * third, size)]
    return "".join(f'<rect x="{a:g}" y="{b:g}" width="{c:g}" height="{d:g}" fill="{fill}"/>' for a, b, c, d in bars)


def piece_x(name):
    """The middle of a word piece's column."""
    return LEFT + PIECES.index(name) * (CELL + GAP) + CELL / 2


def region_x(number):
    """The middle of a region's column."""
    return REGIONS_AT + number * (CELL + GAP) + CELL / 2


def inputs():
    """Question and image, and what makes pieces and regions of them."""
    yield box(LEFT, 16, 552, 54, PALE, TEXT)
    yield text(300, 49, "What color is the diamond?", 18, TEXT)
    yield box(REGIONS_AT, 16, 304, 90, "#dbeafe", IMAGE)
    for number, (color, kind) in enumerate(REGIONS):
        x, y = region_x(number), 46 + (number * 23) % 36
        yield shape(kind, x, y, 24, color)
        yield f'<rect x="{x - 17}" y="{y - 17}" width="34" height="34" fill="none" stroke="{IMAGE}" stroke-dasharray="3 2"/>'
    yield arrow(300, 70, 300, 88)
    yield box(LEFT, 92, 552, 40, "white", TEXT)
    yield text(300, 117, "processor: lower case, “?” and [MASK] appended, word pieces", 14, TEXT)
    yield arrow(772, 106, 772, 118)
    yield box(REGIONS_AT, 122, 304, 40, "white", IMAGE)
    yield text(772, 140, "region encoder: a detector, CLIP, ResNet, ...", 13, IMAGE)
    yield text(772, 156, "or a feature store", 12, IMAGE)
    yield arrow(300, 132, 300, 172)
    yield arrow(772, 162, 772, 172)


def embeddings():
    """Under each piece and each region, what is added up."""
    positions, segments = 220, 252  # y of the rows
    for number, name in enumerate(PIECES):
        x = piece_x(name)
        marked = name == "[MASK]"
        yield box(x - CELL / 2, 180, CELL, 34, "#c7d2fe" if marked else "#e0e7ff", TEXT)
        yield text(x, 202, name, 13, TEXT, bold=marked)
        for y, index in ((positions, number), (segments, 0)):
            yield box(x - CELL / 2, y, CELL, 26, "white", "#a5b4fc")
            yield text(x, y + 17, str(index), 12, TEXT)
    for number, (color, kind) in enumerate(REGIONS):
        x = region_x(number)
        yield box(x - CELL / 2, 180, CELL, 34, "#ffedd5", IMAGE)
        yield shape(kind, x, 197, 20, color)
        for y in (positions, segments):
            yield box(x - CELL / 2, y, CELL, 26, "white", "#fdba74")
            yield text(x, y + 17, "0", 12, IMAGE)
    yield text(LEFT, 296, "word piece + position + segment", 13, TEXT, "start")
    yield text(924, 296, "projected feature + visual position + visual segment", 13, IMAGE, "end")


def encoder():
    """The BERT that reads both."""
    yield arrow(300, 304, 300, 322)
    yield arrow(772, 304, 772, 322)
    yield box(LEFT, 326, 900, 92, "#eef2ff", LINE, 12)
    yield text(480, 362, "one BERT: 12 layers over words and regions together", 19, "#0f172a", bold=True)
    yield text(480, 390, "in every layer, each word attends to each region and each region to each word", 14, LINE)


def heads():
    """What is read from which state."""
    for name in PIECES:
        yield box(piece_x(name) - CELL / 2, 432, CELL, 16, "#e0e7ff", TEXT, 3)
    for number in range(len(REGIONS)):
        yield box(region_x(number) - CELL / 2, 432, CELL, 16, "#ffedd5", IMAGE, 3)
    for place, (read, told, result) in enumerate(HEADS):
        x = 24 + place * 304
        yield arrow(piece_x(read), 448, x + 146, 484)
        yield box(x, 488, 292, 62, "white", "#0f766e")
        yield text(x + 146, 512, told, 14, "#0f766e", bold=True)
        yield text(x + 146, 535, result, 12.5, "#0f172a")
    yield box(24, 568, 900, 48, PALE, "#0f766e")
    told = "pre-training: masked pieces are predicted from words and regions, [CLS] tells whether text and image belong together"
    yield text(474, 597, told, 14, "#0f766e")


def draw():
    """The picture as SVG."""
    head = f'<path d="M0 0 L6 3 L0 6 Z" fill="{LINE}"/>'
    tip = f'<marker id="tip" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto">{head}</marker>'
    title = "VisualBERT: word pieces and regions go through one BERT; each task reads another state"
    parts = [*inputs(), *embeddings(), *encoder(), *heads()]
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="Helvetica, Arial, sans-serif" role="img"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([opening, f"<title>{title}</title>", f"<defs>{tip}</defs>", *parts, "</svg>", ""])


if __name__ == "__main__":
    (Path(__file__).parents[1] / "architecture.svg").write_text(draw(), encoding="utf-8")
