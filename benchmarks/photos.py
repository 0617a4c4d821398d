"""Real photos and real questions, from pixels, on a CPU: DAQUAR with a frozen vision tower and a small BERT.

    python benchmarks/photos.py --data_dir data/daquar --tower data/efficientnet_lite0 --bert data/minilm --output_dir runs/photos

`--data_dir` has `questions.csv` (columns image, question, answer; of several answers joined by ", " the first counts, as
published) and `photos/`. A share of the questions (`--dev_share`) is split off by seed and decides which weights are kept. With
`--test_file`, more questions of the same form are answered at the end. Trains examples/recipes/vqa_photos.yaml with and without
the photos, and adds a line to benchmarks/results/photos.jsonl: accuracies, the most common answer of each kind of question, time
and size. The photos are for research only: nothing of them is kept but figures.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import pipeline

from modeling_visualbert.data.files import read_json
from modeling_visualbert.system import multiplies_bf16
from modeling_visualbert.tasks.run import run_task
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
from modeling_visualbert.training.accelerator import end_run
from modeling_visualbert.training.args import read_recipe

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "examples" / "recipes" / "vqa_photos.yaml"
IMAGE_SIZE, GRID_SIZE = "320x416", "5x7"
TIMED_QUESTIONS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--tower", required=True)
    parser.add_argument("--bert", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--test_file", type=Path)
    parser.add_argument("--dev_share", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_steps", type=int, help="of both runs, for a quick look")
    args = parser.parse_args()
    train, dev = split(read_questions(args.data_dir / "questions.csv"), args.seed, args.dev_share)
    splits = {"train": train, "dev": dev} | ({"test": read_questions(args.test_file)} if args.test_file else {})
    started = time.perf_counter()
    model = args.output_dir / "with_photos"
    scores = run(args, model, splits)
    minutes = (time.perf_counter() - started) / 60
    text_scores = run(args, args.output_dir / "text_only", splits, text_only=True)
    last = "test" if args.test_file else "dev"
    right = {row["id"]: row["label"]["ids"][0] for row in splits[last]}
    result = {
        "questions": {name: len(rows) for name, rows in splits.items()},
        "accuracy": {name: round(scores[name]["accuracy"], 1) for name in splits if name != "train"},
        "text_only": {name: round(text_scores[name]["accuracy"], 1) for name in splits if name != "train"},
        "most_common_of_kind": round(most_common_of_kind(train, splits[last]), 1),
        "of_kind": {kind: round(value, 1) for kind, value in by_kind(model, last, splits[last], right).items()},
        "minutes": round(minutes, 1),
        **size_and_speed(model / "best", args.data_dir / "photos", dev),
        "mixed_precision": precision(),
        "seed": args.seed,
        "max_steps": args.max_steps,
    }
    print(json.dumps(result, indent=1))
    if args.max_steps is None:
        with (ROOT / "benchmarks" / "results" / "photos.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


def read_questions(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {
            "id": f"{path.stem}-{number}",
            "image": row["image"],
            "question": row["question"],
            "label": {"ids": [row["answer"].split(", ")[0]], "weights": [1.0]},
        }
        for number, row in enumerate(rows)
    ]


def split(
    rows: Sequence[dict[str, Any]], seed: int, dev_share: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and dev questions; the photos are the same ones, as in the published split."""
    shuffled = random.Random(seed).sample(rows, len(rows))
    count = max(1, round(dev_share * len(rows)))
    return shuffled[count:], shuffled[:count]


def run(args: argparse.Namespace, folder: Path, splits: dict[str, list[dict]], text_only: bool = False) -> dict:
    """Train, and return the scores of each split.

    Raises:
        FileExistsError: The folder holds another run.
    """
    names = {"train": "train_file", "dev": "validation_file", "test": "test_file"}
    files = {}
    for name, rows in splits.items():
        path = folder.with_name(f"{folder.name}_{name}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files[names[name]] = str(path)
    fields = {
        **read_recipe(RECIPE, VqaArgs),
        **files,
        "output_dir": str(folder),
        "images_dir": str(args.data_dir / "photos"),
        "init_from": args.bert,
        "grid_backbone": args.tower,
        "image_size": IMAGE_SIZE,
        "grid_size": GRID_SIZE,
        "text_only": text_only,
        "seed": args.seed,
        "max_steps": args.max_steps,
        "mixed_precision": precision(),
    }
    _, _, accelerator = run_task(vqa_task, VqaArgs(**fields))
    end_run(accelerator)
    return read_json(folder / "metrics.json")["splits"]


def precision() -> str:
    """That of the recipe where the device multiplies in it; processors without the units take many times as long for it."""
    return "bf16" if multiplies_bf16() else "no"


def kind_of(question: str) -> str:
    words = question.split()
    if words[0] == "how":
        return "number"
    return "colour" if {"color", "colour", "colors", "colours"} & set(words) else "object"


def most_common_of_kind(train: Sequence[dict], rows: Sequence[dict]) -> float:
    """Accuracy in percent of the most common training answer of each kind of question."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        counts[kind_of(row["question"])][row["label"]["ids"][0]] += 1
    best = {kind: count.most_common(1)[0][0] for kind, count in counts.items()}
    return 100 * sum(best[kind_of(row["question"])] == row["label"]["ids"][0] for row in rows) / len(rows)


def by_kind(folder: Path, name: str, rows: Sequence[dict], right: dict[str, str]) -> dict[str, float]:
    """Accuracy in percent of each kind of question."""
    lines = (folder / f"predictions_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    given = {record["id"]: record["answer"] for record in map(json.loads, lines)}
    found: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        found[kind_of(row["question"])].append(given[row["id"]] == right[row["id"]])
    return {kind: 100 * sum(values) / len(values) for kind, values in sorted(found.items())}


def size_and_speed(model: Path, photos: Path, rows: Sequence[dict]) -> dict[str, float]:
    """Millions of parameters, and answers a second from pixels, one question and photo at a time."""
    answer = pipeline("visual-question-answering", model=str(model), device="cpu")
    asked = [(Image.open(photos / row["image"]).convert("RGB"), row["question"]) for row in rows[: TIMED_QUESTIONS + 1]]
    answer(*asked[0])
    started = time.perf_counter()
    for image, question in asked[1:]:
        answer(image, question)
    seconds = time.perf_counter() - started
    millions = sum(parameter.numel() for parameter in answer.model.parameters()) / 1e6
    return {"millions_of_parameters": round(millions, 1), "answers_per_second": round((len(asked) - 1) / seconds, 1)}


if __name__ == "__main__":
    main()
