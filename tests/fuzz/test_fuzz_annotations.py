"""One's own tables in every form: CSV, JSON, JSON Lines and Parquet that are damaged or hold something else. Official annotations
are among the files of text."""

import json
import shutil

import pytest
from campaign import attempt, examples, judge
from datasets import Dataset
from hypothesis import given, strategies
from image_mutations import damage, encoded, image
from mutations import mutate_json, mutate_text
from table_files import write_photos, write_table

from modeling_visualbert.data.table_images import TableImages
from modeling_visualbert.data.tables import open_files
from modeling_visualbert.data.vqa_table import read_vqa_table

ROWS = [
    {"image": f"{number}.png", "question": "what is red?", "answer": "star", "text": "a star", "label": "yes"}
    for number in range(4)
]
VALUES = (
    None,
    "",
    "x" * 3000,
    "\0",
    "../../etc/passwd",
    "/dev/zero",
    "http://127.0.0.1:9/a.png",
    5,
    -1.5,
    True,
    [],
    ["a"],
    {"a": 1},
)


def rows_changed(random):
    """The rows, with another value or another column somewhere."""
    rows = [dict(row) for row in ROWS]
    row, name, value = random.choice(rows), random.choice(list(ROWS[0])), random.choice(VALUES)
    kind = random.randrange(4)
    if kind == 0:
        row[name] = value
    elif kind == 1:
        rows = [{**row, name: value} for row in rows]
    elif kind == 2:
        rows = [{key + "_" * (key == name): content for key, content in row.items()} for row in rows]
    else:
        rows = [{**row, "image": {"bytes": damage(encoded(image(), "PNG"), random), "path": None}} for row in rows]
    return rows


def write_changed(path, random):
    """A table of other rows, in the form that its name says."""
    rows = rows_changed(random)
    if path.suffix == ".parquet":
        try:
            Dataset.from_list(rows).to_parquet(path)
        except Exception:  # rows that no Parquet file can have
            path.write_bytes(b"")
    elif path.suffix == ".csv":
        cells = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
        path.write_text("\n".join(cells) + "\n")
    else:
        listed = (json.dumps(row, default=repr) for row in rows)
        path.write_text("\n".join(listed) if path.suffix == ".jsonl" else f"[{','.join(listed)}]")


def read(path):
    """How many rows there are, with their images found."""
    (table,) = open_files({"train": str(path)}).values()
    return len(read_vqa_table(table, TableImages()))


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
@examples(16)
@given(random=strategies.randoms(use_true_random=False))
def test_tables(suffix, random, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / f"tables {suffix}"
    shutil.rmtree(folder, ignore_errors=True)
    write_photos(folder)
    path = folder / f"train{suffix}"
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(folder / "cache"))
    write_table(path, ROWS)
    usual = attempt(lambda: read(path))
    assert usual.answer is not None, usual
    if random.randrange(2):
        write_changed(path, random)
    else:
        ways = {
            ".parquet": (damage,),
            ".json": (mutate_json, damage),
            ".jsonl": (mutate_text, damage),
            ".csv": (mutate_text,),
        }
        path.write_bytes(random.choice(ways[suffix])(path.read_bytes(), random))
    judge(f"tables: {suffix}", attempt(lambda: read(path)), [str(path)], usual)
