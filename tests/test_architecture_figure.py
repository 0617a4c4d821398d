"""docs/architecture.svg is what docs/tools/architecture.py draws."""

import re
import runpy
from xml.etree import ElementTree

from documents import ROOT

FIGURE = ROOT / "docs" / "architecture.svg"


def test_the_figure_is_up_to_date():
    drawn = runpy.run_path(str(ROOT / "docs" / "tools" / "architecture.py"))["draw"]()
    assert drawn == FIGURE.read_text("utf-8"), "run docs/tools/architecture.py"


def test_the_figure_is_inside_its_frame():
    root = ElementTree.fromstring(FIGURE.read_text("utf-8"))
    _, _, width, height = (float(number) for number in root.get("viewBox").split())
    boxes = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    assert len(boxes) > 50
    for box in boxes:
        x, y, w, h = (float(box.get(name)) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width and 0 <= y <= y + h <= height
    words = " ".join(re.findall(r">([^<]+)</text>", FIGURE.read_text("utf-8")))
    assert "[MASK]" in words and "region encoder" in words
