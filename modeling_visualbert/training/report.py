"""Figures and tables of a run."""

from __future__ import annotations

import json
from pathlib import Path


def plot_curves(output_dir: str | Path, title: str) -> Path:
    """Draw `curves.png` from `log.jsonl`: training loss and, on the right axis, the dev metrics."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    output_dir = Path(output_dir)
    lines = [json.loads(line) for line in (output_dir / "log.jsonl").read_text("utf-8").splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    figure, left = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    left.plot(*zip(*losses, strict=True), color="tab:blue", label="training loss")
    left.set(xlabel="step", ylabel="training loss", title=title)
    right = left.twinx()
    names = sorted({name for line in lines for name in line if name.startswith("dev_")})
    for name, style in zip(names, ("o-", "s--", "^:", "d-."), strict=False):
        points = [(line["step"], line[name]) for line in lines if name in line]
        right.plot(*zip(*points, strict=True), style, color="tab:orange", label=name.replace("_", " "))
    right.set_ylabel("dev metric")
    handles = [handle for axis in (left, right) for handle in axis.get_legend_handles_labels()[0]]
    left.legend(handles, [str(handle.get_label()) for handle in handles], loc="center right")
    path = output_dir / "curves.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def table(rows: list[list[str]]) -> str:
    """Left-aligned columns, the first row underlined."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
