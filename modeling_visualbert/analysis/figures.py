"""The figures of the paper's analysis, as PNG and SVG: accuracy of heads by layer, and word x region matrices beside images.

The colours are those of Okabe and Ito, which colour-blind readers can distinguish; a caption states the numbers of every figure.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .probes import DIRECTIONS
from .report import LOW_SHARE, best_direction

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
# The names of a relation in different treebanks: the first that occurs is drawn.
PAPER_RELATIONS = (("pobj", "obl", "nmod"), ("amod",), ("nsubj",), ("dobj", "obj"))
MAX_REGIONS = 12
MAX_IMAGE_LAYERS = 6
_STYLES = {DIRECTIONS[0]: ("o", BLUE), DIRECTIONS[1]: ("^", ORANGE)}


def draw_entities(report: Mapping[str, Any], stem: str | Path) -> list[Path]:
    """Entity grounding of every head by layer (paper, Figure 3): one dot per head, small and light if less than 20% of its
    attention goes to regions.

    Args:
        report: The result of [`grounding_report`].
        stem: Path of the files to write, without suffix.

    Returns:
        Paths of the files.
    """
    found = report["entities"]["all"]
    best, baseline = found["best"], found["baseline"]
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(max(5.6, 0.55 * len(report["layers"]) + 3), 4.2), layout="constrained")
    _dots(axis, found["heads"], report["layers"], "o", BLUE)
    _baselines(axis, found)
    axis.annotate(
        f"head {best['layer']}-{best['head']}: {best['accuracy']:.1f}%",
        (best["layer"], best["accuracy"]),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        color=BLUE,
    )
    _finish_axis(axis, report["layers"], [head["accuracy"] for head in found["heads"]], found["upper_bound"])
    axis.set_title("Entity grounding: does a head attend to the phrase's region?", fontsize=11)
    handles = _legend(baseline, found["chance"])
    figure.legend(handles=handles, fontsize=8, loc="outside upper center", ncols=2, frameon=False)  # clear of all dots
    low, high = best["interval"]
    times = f"{best['accuracy'] / baseline:.1f} times" if baseline else "beside"
    caption = (
        f"{found['probes']} phrases of {found['images']} images. Best head, chosen on {report['heads_chosen_on']}: layer "
        f"{best['layer']}, head {best['head']}, {best['accuracy']:.1f}% (95% interval {low:.1f} to {high:.1f}), "
        f"{times} the most confident region ({baseline:.1f}%); a random region has "
        f"{found['chance']:.1f}%, and for {found['upper_bound']:.1f}% of the phrases some region is right. Best head of each "
        "layer: "
        + ", ".join(f"{head['layer']}: {head['accuracy']:.1f}%" for head in found["best_of_each_layer"])
        + f". {_LIGHT}"
    )
    return _save(figure, stem, caption)


def draw_relations(report: Mapping[str, Any], stem: str | Path) -> list[Path]:
    """Syntactic grounding for four relations (paper, Figure 4), in both directions.

    Args:
        report: The result of [`grounding_report`].
        stem: Path of the files to write, without suffix.

    Returns:
        Paths of the files; none if there are no trees.
    """
    relations = four_relations(report["syntax"])
    if not relations:
        return []
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(2, 2, figsize=(8.4, 6.4), layout="constrained", squeeze=False)
    for axis in axes.flat[len(relations) :]:
        axis.axis("off")
    parts = []
    for axis, relation in zip(axes.flat, relations, strict=False):
        directions = report["syntax"][relation]
        accuracies, bounds = [], []
        for direction, found in directions.items():
            marker, colour = _STYLES[direction]
            shift = -0.13 if direction == DIRECTIONS[0] else 0.13
            _dots(axis, found["heads"], report["layers"], marker, colour, shift)
            axis.axhline(found["baseline"], color=colour, linestyle="--", linewidth=1.2)
            accuracies += [head["accuracy"] for head in found["heads"]] + [found["baseline"]]
            bounds.append(found["upper_bound"])
        _finish_axis(axis, report["layers"], accuracies, max(bounds))
        axis.set_title(relation, fontsize=11)
        chosen = best_direction(directions)
        best = chosen["best"]
        low, high = best["gain_interval"]
        parts.append(
            f"{relation} ({chosen['probes']} words): head {best['layer']}-{best['head']} {chosen['direction']} "
            f"{best['accuracy']:.1f}%, baseline {chosen['baseline']:.1f}%, difference {best['gain']:+.1f} "
            f"[{low:+.1f}, {high:+.1f}]"
        )
    handles = [
        _marker("o", BLUE, "at the dependent, to the head's region"),
        _marker("^", ORANGE, "at the head, to the dependent's region"),
        _line("--", GREY, "most confident region, in the same colour"),
    ]
    figure.legend(handles=handles, fontsize=8, loc="outside upper center", ncols=3, frameon=False)
    caption = (
        f"Syntactic grounding. Best head and direction, chosen on {report['heads_chosen_on']}, with the 95% interval of the "
        f"difference: {'; '.join(parts)}. {_LIGHT}"
    )
    return _save(figure, stem, caption)


def four_relations(syntax: Mapping[str, Any]) -> list[str]:
    """The relations of the paper's Figure 4 that occur, by their names in this treebank."""
    found = (next((name for name in names if name in syntax), None) for names in PAPER_RELATIONS)
    return [name for name in found if name is not None]


@dataclass(frozen=True)
class Example:
    """A sentence with the attention of chosen heads.

    Args:
        image: The image.
        boxes: [R, 4] boxes of its regions, in pixels.
        labels: Label of each region.
        words: The sentence.
        heads: Name of each head, such as "layer 2, head 3".
        weights: [heads, words, R] attention of each word to each region.
        right: The right regions of each word that stands for regions.
    """

    image: Image.Image
    boxes: Sequence[Sequence[float]]
    labels: Sequence[str]
    words: Sequence[str]
    heads: Sequence[str]
    weights: np.ndarray
    right: Mapping[int, Sequence[int]]


def draw_example(example: Example, stem: str | Path, max_regions: int = MAX_REGIONS) -> list[Path]:
    """The image with its boxes beside the word x region matrix of each head (paper, Figures 1 and 5).

    Of more than `max_regions` regions, only the right ones and those attended to most are drawn, and the caption says so.

    Args:
        example: The example to draw.
        stem: Path of the files to write, without suffix.
        max_regions: Largest number of regions to draw.

    Returns:
        Paths of the files.

    Raises:
        ValueError: There are no regions, or shapes do not fit.
    """
    expected = (len(example.heads), len(example.words), len(example.boxes))
    if example.weights.shape != expected or not len(example.boxes):
        raise ValueError(f"weights of shape {example.weights.shape}; expected {expected}, with at least one region")
    shown = _shown_regions(example, max_regions)
    pyplot = _pyplot()
    columns = min(3, len(example.heads))
    rows = -(-len(example.heads) // columns)
    image_width = 3.6
    panel_width, panel_height = 0.75 + 0.3 * len(shown), 0.75 + 0.2 * len(example.words)
    height = max(rows * panel_height, image_width * example.image.height / example.image.width + 0.4)
    figure = pyplot.figure(figsize=(image_width + columns * panel_width + 0.5, height), layout="constrained")
    left, panels = figure.subfigures(1, 2, width_ratios=(image_width, columns * panel_width))
    _draw_boxes(left.subplots(), example, shown)
    axes = panels.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for number, axis in enumerate(axes.flat):
        if number >= len(example.heads):
            axis.axis("off")
            continue
        weights = example.weights[number][:, shown]
        largest = float(weights.max()) or 1.0  # each head has its own scale: only which region is strongest matters
        image = axis.imshow(weights / largest, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
        axis.set_title(f"{example.heads[number]}\ndarkest: {largest:.0%}", fontsize=8)
        axis.set_xticks(range(len(shown)), [str(region + 1) for region in shown], fontsize=8)
        axis.set_yticks(range(len(example.words)), example.words, fontsize=8)
        axis.tick_params(length=0)
        for word, regions in example.right.items():
            for column in (shown.index(region) for region in regions if region in shown):
                frame = pyplot.Rectangle(
                    (column - 0.46, word - 0.46), 0.92, 0.92, fill=False, edgecolor=ORANGE, linewidth=1.6
                )
                axis.add_patch(frame)
    bar = panels.colorbar(image, ax=axes, shrink=0.7)
    bar.set_label("attention, as a share of the head's darkest", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    hidden = len(example.boxes) - len(shown)
    caption = (
        "Attention of each word (rows) to each region (columns, numbered as in the image). Orange frames: the regions that "
        f"the words stand for. {_frames_hit(example)}"
    )
    if hidden:
        caption += (
            f" {len(shown)} of {len(example.boxes)} regions are shown: the right ones and those attended to most."
        )
    return _save(figure, stem, caption)


def _frames_hit(example: Example) -> str:
    """How many of the words that stand for regions each head gets right."""
    parts = []
    for name, weights in zip(example.heads, example.weights, strict=True):
        hits = sum(int(weights[word].argmax()) in regions for word, regions in example.right.items())
        parts.append(f"{name}: {hits} of {len(example.right)}")
    return f"Strongest region right: {'; '.join(parts)}."


def _shown_regions(example: Example, limit: int) -> list[int]:
    if len(example.boxes) <= limit:
        return list(range(len(example.boxes)))
    right = {region for regions in example.right.values() for region in regions}
    strength = example.weights.max(axis=(0, 1))
    ranked = sorted(range(len(example.boxes)), key=lambda region: (region not in right, -strength[region]))
    return sorted(ranked[:limit])


def _draw_boxes(axis: Any, example: Example, shown: Sequence[int]) -> None:
    axis.imshow(example.image)
    axis.axis("off")
    right = {region for regions in example.right.values() for region in regions}
    scale = max(example.image.size) / 160
    for region in shown:
        x1, y1, x2, y2 = example.boxes[region]
        colour = ORANGE if region in right else GREY
        axis.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=colour, linewidth=1.6)
        # White text on the colour of the box, inside the image.
        axis.text(
            max(x1, 3 * scale),
            max(y1, 5 * scale),
            str(region + 1),
            color="white",
            fontsize=8,
            weight="bold",
            ha="center",
            va="center",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "none"},
        )
    names = [f"{region + 1} {example.labels[region]}" for region in shown if example.labels[region]]
    axis.set_title("\n".join(textwrap.wrap(",  ".join(names), 46)), fontsize=7, loc="left", y=-0.02, va="top")


def _dots(
    axis: Any, heads: Sequence[Mapping[str, Any]], layers: Sequence[int], marker: str, colour: str, shift: float = 0.0
) -> None:
    """One dot per head, side by side within a layer."""
    per_layer = max(1, len(heads) // len(layers))
    for place, head in enumerate(heads):
        light = head["region_share"] < 100 * LOW_SHARE
        spread = 0.22 * ((place % per_layer) / max(1, per_layer - 1) - 0.5)
        axis.plot(
            [head["layer"] + shift + spread],
            [head["accuracy"]],
            marker=marker,
            color=colour,
            markersize=4 if light else 7.5,
            alpha=0.45 if light else 0.95,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linestyle="none",
        )


def _baselines(axis: Any, found: Mapping[str, Any]) -> None:
    axis.axhline(found["baseline"], color=ORANGE, linestyle="--", linewidth=1.4)
    axis.axhline(found["chance"], color=GREEN, linestyle=":", linewidth=1.6)


def _finish_axis(axis: Any, layers: Sequence[int], accuracies: Sequence[float], upper: float) -> None:
    axis.set_xticks(list(layers))
    axis.set_xlim(min(layers) - 0.6, max(layers) + 0.9)
    axis.set_ylim(0, min(105.0, max(*accuracies, 10.0) * 1.3))
    axis.set_xlabel("layer", fontsize=9)
    axis.set_ylabel("accuracy (%)", fontsize=9)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _legend(baseline: float, chance: float) -> list[Any]:
    return [
        _marker("o", BLUE, "a head"),
        _marker("o", BLUE, "less than 20% of its attention on regions", light=True),
        _line("--", ORANGE, f"most confident region: {baseline:.1f}%"),
        _line(":", GREEN, f"random region: {chance:.1f}%"),
    ]


def _marker(marker: str, colour: str, label: str, light: bool = False) -> Any:
    from matplotlib.lines import Line2D

    size, alpha = (4, 0.45) if light else (7.5, 0.95)
    return Line2D([], [], marker=marker, color=colour, linestyle="none", markersize=size, alpha=alpha, label=label)


def _line(style: Any, colour: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=style, label=label)


_LIGHT = "Small light dots: heads that spend less than 20% of their attention on regions."


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    # Keep text as text in SVG, and keep times and random ids out of the file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "visualbert"})
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, stem: str | Path, caption: str) -> list[Path]:
    """Write <stem>.png and <stem>.svg, the caption below the figure."""
    from matplotlib import pyplot

    width = figure.get_size_inches()[0]
    lines = textwrap.wrap(caption, max(40, int(width * 16.5)))
    figure.supxlabel("\n".join(lines), fontsize=8, ha="left", x=0.01, linespacing=1.35)
    paths = []
    for suffix, options in ((".png", {"dpi": 130}), (".svg", {"metadata": {"Date": None}})):
        path = Path(stem).with_name(Path(stem).name + suffix)
        figure.savefig(path, **options)
        paths.append(path)
    pyplot.close(figure)
    return paths


__all__ = ["Example", "draw_entities", "draw_example", "draw_relations", "four_relations"]
