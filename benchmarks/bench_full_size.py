"""What the official data sets take at their full size.

python benchmarks/bench_full_size.py write FOLDER [--tasks vqa vcr coco nlvr2 flickr30k]
python benchmarks/bench_full_size.py start FOLDER [--tasks ...] [--processes 2] [--note before]
python benchmarks/bench_full_size.py measure FOLDER [--parts evaluation loader checkpoint extraction] [--pictures 120000]
python benchmarks/bench_full_size.py table

`write` makes synthetic files in the official formats, with as many questions, answers, sentences and objects as the official
ones have, and a store with a small feature for each image: texts and boxes are random, their lengths are not. `start` trains one
step in fresh processes and measures processor time, wall time and the highest resident memory of each process from its start to
the end of the first step: the first start with an empty cache, then a later one. `--processes 2` measures both on two processes
that start together. `measure` measures parts of a run, each in a process of its own (`run_parts.py`); regions of small pictures
are found in 5000 of them and extrapolated to 120,000, unless `--pictures` asks for all. Both append a line for each measurement
to `benchmarks/results/full_size.jsonl`, with the note `after` unless another is given. `table` prints what stands there: the
latest measurements of the version before beside those of this one.

The files of all tasks need 4 GB, most of it the 90,000 metadata files of VCR.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ["evaluation", "loader", "checkpoint", "extraction"]  # of `run_parts.py`
RESULTS = Path(__file__).parent / "results" / "full_size.jsonl"
DIM, REGIONS = 16, 4  # of the stores: what is measured is the start, not the features
VQA_IMAGES = {"train2014": 82_783, "val2014": 1000}
VQA_QUESTIONS = {"train2014": 443_757, "val2014": 5000}
VCR_IMAGES = {"train": 80_418, "val": 9929}
VCR_QUESTIONS = {"train": 212_923, "val": 26_534}
COCO_IMAGES = {"train2014": 82_783, "val2014": 40_504}
COCO_CAPTIONS = {"train2014": 414_113, "val2014": 202_654}
NLVR2_SENTENCES = {"train": 86_373, "dev": 6982}
FLICKR30K_IMAGES = {"train": 29_783, "val": 1000}


# --------------------------------------------------------------------------------------------------------- official files


class Texts:
    """Random texts of the words that the corpus' tokenizer knows."""

    def __init__(self, seed: int):
        from modeling_visualbert.corpus.vocabulary import corpus_tokenizer

        self.random = np.random.default_rng(seed)
        self.known = [word for word in corpus_tokenizer().get_vocab() if word.isalpha()]

    def words(self, lengths: np.ndarray) -> Iterator[list[str]]:
        """For each length a list of so many words."""
        drawn = self.random.integers(0, len(self.known), int(lengths.sum()))
        ends = np.cumsum(lengths)
        for start, end in zip(ends - lengths, ends, strict=True):
            yield [self.known[index] for index in drawn[start:end]]


def write_vqa(folder: Path) -> None:
    """Questions of 4 to 9 words with ten answers each: mostly common ones, and a tail of 200,000 different texts."""
    from modeling_visualbert.answers import pythia_answers

    common = np.array(pythia_answers()[1:])
    first = 0
    for seed, (split, count) in enumerate(VQA_QUESTIONS.items()):
        texts = Texts(seed)
        draw = texts.random
        images = np.sort(draw.integers(first, first + VQA_IMAGES[split], count))
        first += VQA_IMAGES[split]
        likely = np.minimum(draw.zipf(1.3, (count, 11)), len(common)) - 1
        agree, rare = draw.random((count, 10)) < 0.6, draw.random((count, 10)) < 0.06
        tail = draw.integers(0, 200_000, (count, 10))
        questions, annotations = [], []
        for number, words in enumerate(texts.words(draw.integers(4, 10, count))):
            about = {"image_id": int(images[number]), "question_id": 1000 * int(images[number]) + number}
            questions.append({**about, "question": f"{' '.join(words)}?"})
            given = common[np.where(agree[number], likely[number, 10], likely[number, :10])].tolist()
            given = [f"{a} {tail[number, i]}" if rare[number, i] else a for i, a in enumerate(given)]
            answers = [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(given, 1)]
            kinds = {"question_type": "what is this", "answer_type": "other", "multiple_choice_answer": given[0]}
            annotations.append({**kinds, "answers": answers, **about})
        head = {"info": {"version": "2.0"}, "data_subtype": split}
        _write_document(folder / f"v2_OpenEnded_mscoco_{split}_questions.json", {**head, "questions": questions})
        _write_document(folder / f"v2_mscoco_{split}_annotations.json", {**head, "annotations": annotations})
    write_features(folder / "features", range(first))


def write_vcr(folder: Path) -> None:
    """Questions of 7 words, answers of 7 and rationales of 13; 10 objects in an image with polygons of 40 points each."""
    features: list[str] = []
    for seed, (split, count) in enumerate(VCR_QUESTIONS.items()):
        texts = Texts(10 + seed)
        draw = texts.random
        names, objects = [], {}
        for number in range(VCR_IMAGES[split]):
            name = f"movie_{split}_{number // 45}/{split}_{number}@0"
            names.append(name)
            objects[name] = ["person"] * int(draw.integers(1, 6)) + ["chair", "cup", "tie"] * int(draw.integers(1, 4))
            path = folder / "vcr1images" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(_metadata(objects[name], draw)))
        features += [f"{name}.jpg" for name in names]
        lengths = np.concatenate([np.full((count, 5), 7), np.full((count, 4), 13)], axis=1).ravel()
        words = texts.words(lengths)
        with (folder / f"{split}.jsonl").open("w") as file:
            for number, image in enumerate(np.sort(draw.integers(0, len(names), count)).tolist()):
                question, *choices = ([[0], *next(words)] for _ in range(9))
                record = {
                    **{"movie": "movie", "objects": objects[names[image]], "interesting_scores": [0, -1]},
                    **{"answer_likelihood": "possible", "annot_id": f"{split}-{number}", "question_number": 0},
                    **{"img_fn": f"{names[image]}.jpg", "metadata_fn": f"{names[image]}.json", "question": question},
                    **{"answer_choices": choices[:4], "answer_label": number % 4, "answer_orig": "the original text"},
                    **{
                        "rationale_choices": choices[4:],
                        "rationale_label": number // 4 % 4,
                        "img_id": f"{split}-{image}",
                    },
                }
                file.write(json.dumps(record) + "\n")
    write_features(folder / "features", features, regions=15)


def _metadata(names: list[str], draw: np.random.Generator) -> dict[str, Any]:
    corners = np.sort(draw.random((len(names), 2, 2)), axis=1) * (1920, 800)
    points = np.round(corners[:, :1] + draw.random((len(names), 40, 2)) * (corners[:, 1:] - corners[:, :1])).astype(int)
    boxes = [[*box.ravel().tolist(), 0.99] for box in corners]
    return {
        "boxes": boxes,
        "segms": [[polygon] for polygon in points.tolist()],
        "names": names,
        "width": 1920,
        "height": 800,
    }


def write_coco(folder: Path) -> None:
    """Captions of 10 words."""
    first = 0
    for seed, (split, count) in enumerate(COCO_CAPTIONS.items()):
        texts, ids = Texts(20 + seed), range(first, first + COCO_IMAGES[split])
        first = ids.stop
        images = [{"id": i, "file_name": f"COCO_{split}_{i:012d}.jpg", "height": 480, "width": 640} for i in ids]
        captions = [
            {"image_id": ids[number % len(ids)], "id": number, "caption": " ".join(words)}
            for number, words in enumerate(texts.words(np.full(count, 10)))
        ]
        _write_document(folder / f"captions_{split}.json", {"info": {}, "images": images, "annotations": captions})
    write_features(folder / "features", range(first))


def write_nlvr2(folder: Path) -> None:
    """Sentences of 15 words, four about each pair of images."""
    names: dict[str, None] = {}
    for seed, (split, count) in enumerate(NLVR2_SENTENCES.items()):
        with (folder / f"{split}.json").open("w") as file:
            for number, words in enumerate(Texts(30 + seed).words(np.full(count, 15))):
                pair = f"{split}-{number // 4}-0"
                names |= {f"{pair}-img{side}": None for side in (0, 1)}
                record = {
                    "identifier": f"{pair}-{number % 4}",
                    "sentence": " ".join(words),
                    "label": str(number % 2 == 0),
                }
                file.write(json.dumps({**record, "left_url": "", "right_url": "", "directory": "1"}) + "\n")
    write_features(folder / "features", names)


def write_flickr30k(folder: Path) -> None:
    """Five sentences of 12 words about an image, three phrases with a box in each."""
    texts, first = Texts(40), 1
    for name in ("Sentences", "Annotations"):
        (folder / name).mkdir()
    for split, count in FLICKR30K_IMAGES.items():
        ids = range(first, first + count)
        first = ids.stop
        (folder / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
        words = texts.words(np.full(15 * count, 4))
        for image_id in ids:
            sentences = (
                " ".join(f"[/EN#{entity}/people {' '.join(next(words)[:2])}] a b" for entity in range(3)) + " .\n"
                for _ in range(5)
            )
            (folder / "Sentences" / f"{image_id}.txt").write_text("".join(sentences))
            box = "<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>110</xmax><ymax>220</ymax></bndbox>"
            objects = "".join(f"<object><name>{entity}</name>{box}</object>" for entity in range(3))
            (folder / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
    write_features(folder / "features", range(1, first), boxes=True)


def _write_document(path: Path, content: dict[str, Any]) -> None:
    with path.open("w") as file:
        json.dump(content, file)


def write_features(folder: Path, images: Any, regions: int = REGIONS, boxes: bool = False) -> None:
    """A store with a few small regions for each image."""
    from modeling_visualbert.features.store import write_store

    found: dict[str, Any] = {"visual_embeds": np.zeros((regions, DIM), dtype=np.float32)}
    if boxes:
        found["boxes"] = np.tile(np.array([10.0, 20.0, 110.0, 220.0], dtype=np.float32), (regions, 1))
    write_store(folder, ((image, found) for image in images), DIM, "benchmark", "float16")


WRITERS: dict[str, Callable[[Path], None]] = {
    "vqa": write_vqa,
    "vcr": write_vcr,
    "coco": write_coco,
    "nlvr2": write_nlvr2,
    "flickr30k": write_flickr30k,
}


def write(folder: Path, tasks: list[str]) -> None:
    for task in tasks:
        shutil.rmtree(folder / task, ignore_errors=True)
        (folder / task).mkdir(parents=True)
        started = time.time()
        WRITERS[task](folder / task)
        print(f"{task}: written in {time.time() - started:.0f} s", flush=True)


# -------------------------------------------------------------------------------------------------------------- the start


def start(folder: Path, tasks: list[str], processes: int, note: str, cold: bool = True) -> None:
    """Measure first and later starts and append them to the results."""
    for task in tasks:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            for kind in ("first", "later") if cold else ("later",):
                found = _started(folder / task, task, processes, cache)
                kept = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
                record = {
                    **{"date": datetime.date.today().isoformat(), "workload": f"start_{task}", "start": kind},
                    **{"processes": processes, "note": note, "cpu_s": [one["cpu_s"] for one in found]},
                    "cache_mib": round(kept / 2**20),
                    **{"wall_s": [one["wall_s"] for one in found], "peak_mib": [one["peak_mib"] for one in found]},
                }
                append(record)


def append(record: dict[str, Any]) -> None:
    """Print a measurement and add it to the results."""
    print(json.dumps(record), flush=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _started(folder: Path, task: str, processes: int, cache: str) -> list[dict[str, float]]:
    """What each process of one run says about itself."""
    with tempfile.TemporaryDirectory() as output:
        command = [__file__, "first_step", str(folder), "--tasks", task, "--output", output]
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
        environment = {**os.environ, "MODELING_VISUALBERT_CACHE": cache, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *launcher, *command], check=True, env=environment, stdout=sys.stderr)
        return [json.loads(path.read_text()) for path in sorted(Path(output).glob("process_*.json"))]


def first_step(folder: Path, task_name: str, output: Path) -> None:
    """One process of a run: from nothing to the end of the first step; writes what it took."""
    from modeling_visualbert.tasks.flickr30k import Flickr30kArgs, flickr30k_task
    from modeling_visualbert.tasks.nlvr2 import Nlvr2Args, nlvr2_task
    from modeling_visualbert.tasks.pretraining import PretrainingArgs, pretraining_task
    from modeling_visualbert.tasks.vcr import VcrArgs, vcr_task
    from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
    from modeling_visualbert.training.accelerator import end_run, make_accelerator
    from modeling_visualbert.training.batches import AugmentedRows
    from modeling_visualbert.training.loop import train_step
    from modeling_visualbert.training.optimizer import make_optimizer

    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "vqa": (VqaArgs, vqa_task, {"train_split": "train2014", "dev_split": "val2014"}),
        "vcr": (VcrArgs, vcr_task, {"subtask": "answer"}),
        "coco": (PretrainingArgs, pretraining_task, {"train_split": "train2014", "dev_split": "val2014"}),
        "nlvr2": (Nlvr2Args, nlvr2_task, {"test_split": ""}),
        "flickr30k": (Flickr30kArgs, flickr30k_task, {"test_split": ""}),
    }
    args_class, build, options = kinds[task_name]
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    stored = {"data_dir": str(folder), "features_dir": str(folder / "features"), "tokenizer": "corpus"}
    args = args_class(output_dir=str(output), cpu=True, report_to="none", **small, **stored, **options)
    accelerator = make_accelerator(args)
    task = build(args, accelerator)
    model, optimizer = accelerator.prepare(task.model, make_optimizer(task.model, args))
    rows = AugmentedRows(task.splits["train"], task.augment, args.seed)
    examples = np.random.default_rng(0).choice(len(rows), 64, replace=False).tolist()
    batch = task.collate(rows.__getitems__([(0, example) for example in examples]))
    train_step(task, model, optimizer, [batch], args, accelerator)
    times, status = os.times(), Path("/proc/self/status").read_text()
    found = {
        "cpu_s": round(times.user + times.system, 1),
        "wall_s": round(time.time() - _started_at(), 1),
        "peak_mib": round(int(status.split("VmHWM:")[1].split()[0]) / 1024),
    }
    (output / f"process_{accelerator.process_index}.json").write_text(json.dumps(found))
    end_run(accelerator)


def _started_at() -> float:
    """When this process was started, in seconds since the epoch."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    booted = int(Path("/proc/stat").read_text().split("btime ")[1].split()[0])
    return booted + ticks / os.sysconf("SC_CLK_TCK")


# ------------------------------------------------------------------------------------------- parts of a run, and the table


def measure(folder: Path, parts: list[str], pictures: int, note: str) -> None:
    """Measure each part in a process of its own and append it to the results."""
    for part in parts:
        command = [sys.executable, __file__, "part", str(folder), "--parts", part, "--pictures", str(pictures)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        append({"date": datetime.date.today().isoformat(), "workload": part, "note": note, **found})


def part(folder: Path, name: str, pictures: int) -> None:
    """The process that measures a part."""
    import torch
    from run_parts import PARTS

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(PARTS[name](folder, pictures) if name == "extraction" else PARTS[name](folder)))


def table() -> None:
    """Print the latest measurements before and after."""
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for line in RESULTS.read_text("utf-8").splitlines():
        record = json.loads(line)
        name = record["workload"]
        if "start" in record:
            name += f", {record['start']} start, {record['processes']} process{'es' * (record['processes'] > 1)}"
        latest[name, record["note"]] = record
    print("| | before | after |\n|---|---|---|")
    for name in dict.fromkeys(name for name, _ in latest):
        cells = [_cell(latest.get((name, note))) for note in ("before", "after")]
        print(f"| {name} | {' | '.join(cells)} |")


def _cell(record: dict[str, Any] | None) -> str:
    """What was measured, without what tells when and where."""
    hidden = ("date", "workload", "note", "start", "processes", "wall_s")
    return "; ".join(f"{key} {value}" for key, value in (record or {}).items() if key not in hidden)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["write", "start", "measure", "table", "first_step", "part"])
    parser.add_argument("folder", type=Path, nargs="?", help="for files; not needed for `table`")
    parser.add_argument("--tasks", nargs="+", choices=list(WRITERS), default=list(WRITERS))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--pictures", type=int, default=5000, help="small pictures to find regions in")
    parser.add_argument("--note", default="after", help="goes into the results")
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is None and args.command != "table":
        parser.error(f"{args.command}: expected a FOLDER")
    if args.command == "write":
        write(args.folder, args.tasks)
    elif args.command == "start":
        start(args.folder, args.tasks, args.processes, args.note)
    elif args.command == "measure":
        measure(args.folder, args.parts, args.pictures, args.note)
    elif args.command == "part":
        part(args.folder, args.parts[0], args.pictures)
    elif args.command == "table":
        table()
    else:
        first_step(args.folder, args.tasks[0], args.output)


if __name__ == "__main__":
    main()
