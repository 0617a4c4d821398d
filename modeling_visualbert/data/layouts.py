"""Files of well-known data sets that are no tables of our columns: what tells them, and the line that makes a table of each.

VizWiz (a list of records), Hateful Memes, SNLI-VE (JSON lines, see `label_table.py`) and the like are tables, which are read as
they are. VQA-CP and OK-VQA come in the files of VQA v2.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_HEAD = 1 << 16  # bytes that are looked at


@dataclass(frozen=True)
class Layout:
    """
    Args:
        name: The data set.
        keys: Keys that all stand at the beginning of its files.
        columns: What a table of it needs.
        rows: Python expression that makes a dict of each row, for one line of Python in which `json`, `os` and `file` (the open
            file) are known; None for official files that are read from a folder.
    """

    name: str
    keys: tuple[str, ...]
    columns: str
    rows: str | None = None

    def advice(self, path: Path) -> str:
        """What to do with such a file, in one line."""
        if self.rows is None:
            return f"a file of {self.name}, which is read from its folder; expected --data_dir {shlex.quote(str(path.parent))}"
        return (
            f"a file of {self.name}; expected a table with {self.columns}, which this line writes: {self.command(path)}"
        )

    def command(self, path: Path) -> str:
        """A line for the shell that writes `<stem>_table.jsonl`."""
        code = f"import json, os, sys; file = open(sys.argv[1]); [print(json.dumps(row)) for row in {self.rows}]"
        return f"python -c '{code}' {shlex.quote(str(path))} > {shlex.quote(path.stem + '_table.jsonl')}"


LAYOUTS = (
    Layout(
        "GQA",
        ("imageId", "question", "isBalanced"),
        "image, question and answer",
        '({"id": key, "image": q["imageId"] + ".jpg", "question": q["question"], "answer": q.get("answer", "")} '
        "for key, q in json.load(file).items())",
    ),
    Layout(
        "CLEVR",
        ("questions", "image_filename", "question"),
        "image, question and answer",
        '({"image": q["image_filename"], "question": q["question"], "answer": q.get("answer", "")} '
        'for q in json.load(file)["questions"])',
    ),
    Layout(
        "Visual7W",
        ("images", "qa_pairs", "multiple_choices"),
        "image, question, choices and label",
        '({"id": q["qa_id"], "image": i["filename"], "question": q["question"], '
        '"choices": sorted(q["multiple_choices"] + [q["answer"]]), "label": q["answer"]} '
        'for i in json.load(file)["images"] if i["split"] == "train" for q in i["qa_pairs"])',
    ),
    Layout(
        "Karpathy's splits",
        ("images", "sentids", "filename"),
        "image and captions",
        '({"image": os.path.join(i.get("filepath", ""), i["filename"]), "captions": [s["raw"] for s in i["sentences"]]} '
        'for i in json.load(file)["images"] if i["split"] == "train")',
    ),
    Layout("VQA v2", ("task_type", "questions", "question_id"), "image, question and answer"),
    Layout("VQA v2", ("annotations", "data_subtype", "question_id"), "image, question and answer"),
    Layout("VQA-CP", ("coco_split", "question_id", "image_id"), "image, question and answer"),
    Layout("VCR", ("annot_id", "img_fn", "answer_choices"), "image, question, choices and label"),
    Layout("COCO", ("images", "file_name", "license"), "image and captions"),
)


def recognise(path: str | Path) -> Layout | None:
    """The layout of a JSON file, by its beginning; None for others, and for tables that have an `image` column."""
    path = Path(path)
    if not path.is_file() or path.suffix.lower() not in (".json", ".jsonl"):
        return None
    with path.open("rb") as file:
        head = file.read(_HEAD).decode("utf-8", errors="replace")
    keys = set(re.findall(r'"(\w+)"\s*:', head))
    return None if keys & {"image", "image_path"} else next((one for one in LAYOUTS if keys.issuperset(one.keys)), None)


def advice_about(folder: str | Path, columns: str) -> str:
    """How to bring one's own data, where official files were not found in a folder: for the first file in a known layout the line
    that makes a table of it."""
    for path in sorted(Path(folder).glob("*.json*")):
        layout = recognise(path)
        if layout is not None and layout.rows is not None:
            return f"{path} is {layout.advice(path)}"
    return f"for your own data pass --train_file FILE or --dataset_name NAME, a table with {columns}"


__all__ = ["LAYOUTS", "Layout", "advice_about", "recognise"]
