"""Tables as people write them, for tests."""

import json

from datasets import Dataset
from PIL import Image

COLOURS = ("red", "green", "blue", "white")


def write_photos(folder):
    """Four images of different colours, 0.png to 3.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (32, 24), colour).save(folder / f"{number}.png")
    return folder


def write_table(path, records, separator=","):
    """A table of records, as its suffix says."""
    if path.suffix in (".csv", ".tsv"):
        lines = [separator.join(records[0]), *(separator.join(map(_cell, record.values())) for record in records)]
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        Dataset.from_list(records).to_parquet(path)
    return str(path)


def _cell(value):
    return '"' + json.dumps(value).replace('"', '""') + '"' if isinstance(value, list) else str(value)
