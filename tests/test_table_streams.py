"""Tables that are larger than the disk: rows are read while they are trained on, as they would be from the whole table."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import processes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from table_files import COLOURS, write_photos, write_table

from modeling_visualbert.data.label_table import LabelTables
from modeling_visualbert.data.table_images import TableImages
from modeling_visualbert.data.table_stream import StreamedRows, stream_dataset, stream_file
from modeling_visualbert.data.tables import open_files
from modeling_visualbert.data.vqa_table import read_vqa_table
from modeling_visualbert.tasks.batch_errors import naming_examples
from modeling_visualbert.tasks.classification import ClassificationArgs, classification_task
from modeling_visualbert.tasks.flickr30k import Flickr30kArgs, flickr30k_task
from modeling_visualbert.tasks.nlvr2 import Nlvr2Args, nlvr2_task
from modeling_visualbert.tasks.pretraining import PretrainingArgs, pretraining_task
from modeling_visualbert.tasks.vcr import VcrArgs, vcr_task
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
from modeling_visualbert.training.accelerator import make_accelerator
from modeling_visualbert.training.batches import StepPlan, StreamedBatches
from modeling_visualbert.training.loop import train

ROWS = 600  # more than one part


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def tables(photos):
    """The same rows in files of every kind, with paths, and in a parquet file with the images inside."""
    rows = [{"image": f"{n % 4}.png", "question": f"what is it {n}", "answer": COLOURS[n % 3]} for n in range(ROWS)]
    files = {kind: write_table(photos / f"rows.{kind}", rows) for kind in ("csv", "jsonl", "json", "parquet")}
    files["tsv"] = write_table(photos / "rows.tsv", rows, separator="\t")
    inside = [{**row, "image": {"bytes": (photos / row["image"]).read_bytes(), "path": None}} for row in rows]
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    files["inside"] = str(photos / "inside.parquet")
    Dataset.from_list(inside, features=features).to_parquet(files["inside"])
    return files


def streamed(stream, buffer_size=50, seed=0, skipped=None):
    return StreamedRows(stream, read_vqa_table, "image_id", ("answers", "answer_scores"), buffer_size, seed, skipped)


def first(rows, count, place=0):
    return [row for row, _ in zip(rows.read_from(place), range(count), strict=False)]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet", "inside"])
def test_an_epoch_has_the_rows_of_the_whole_table(tables, kind):
    rows = streamed(stream_file(tables[kind]))
    images = TableImages()
    whole = read_vqa_table(open_files({"train": tables[kind]})["train"], images)
    assert len(rows) == len(whole) == ROWS
    assert rows["answers"][:] == whole["answers"][:]
    assert rows.column_names == ["answers", "answer_scores"]
    found = sorted(first(rows, ROWS), key=lambda row: row["question_id"])
    for row, other in zip(found, whole, strict=True):
        image = images[other["image_id"]]
        assert row == {**other, "image_id": image}


def test_epochs_are_shuffled_anew_and_a_place_is_found_again(tables):
    rows = streamed(stream_file(tables["inside"]))
    ids = [row["question_id"] for row in first(rows, 2 * ROWS)]
    one, two = ids[:ROWS], ids[ROWS:]
    assert sorted(one) == sorted(two) == list(range(ROWS)) and one != two and one != sorted(one)
    assert [row["question_id"] for row in first(streamed(stream_file(tables["inside"]), seed=1), ROWS)] != one
    for place in (0, 7, ROWS, ROWS + 13):
        assert [row["question_id"] for row in first(rows, 20, place)] == ids[place : place + 20]


def test_a_step_is_the_same_on_any_number_of_processes_and_workers(tables):
    rows = streamed(stream_file(tables["csv"]))

    def ids(processes, workers):
        plan = StepPlan(ROWS, 24, processes, 4, 0)
        batches = []
        for process in range(processes):
            made = StreamedBatches(rows, plan, process, 3, 6, lambda some: [row["question_id"] for row in some])
            loader = torch.utils.data.DataLoader(
                made, batch_size=None, num_workers=workers, multiprocessing_context="fork" if workers else None
            )
            batches.append([batch for batch, _ in loader])
        steps = [
            batches[process][step * plan.accumulation : (step + 1) * plan.accumulation]
            for step in range(3)
            for process in range(processes)
        ]
        return [number for step in steps for batch in step for number in batch]

    expected = [row["question_id"] for row in first(rows, 72, 72)]
    assert ids(1, 0) == ids(2, 0) == ids(3, 2) == expected


def test_streams_of_data_sets(tables, photos, tmp_path):
    rows = Dataset.from_parquet(tables["inside"], cache_dir=str(tmp_path / "cache"))
    DatasetDict({"train": rows, "validation": rows.select(range(40))}).save_to_disk(tmp_path / "saved")
    folder = tmp_path / "parquet"
    folder.mkdir()
    rows.to_parquet(folder / "train-00000.parquet")
    rows.select(range(40)).to_parquet(folder / "validation-00000.parquet")
    pictures = tmp_path / "pictures"
    write_photos(pictures / "train")
    records = [{"file_name": f"{n}.png", "question": "what", "answer": COLOURS[n % 3]} for n in range(4)]
    (pictures / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    contents = {(photos / f"{n}.png").read_bytes() for n in range(4)}
    for name, count, images in (
        (tmp_path / "saved", ROWS, contents),
        (folder, ROWS, contents),
        (pictures, 4, set((pictures / "train").glob("*.png"))),
    ):
        found = streamed(stream_dataset(str(name), None, "train", None))
        assert len(found) == count
        assert {row["image_id"] for row in first(found, count)} == images
    for name in (tmp_path / "saved", folder):
        dev = stream_dataset(str(name), None, "dev", None).whole()
        images = TableImages()
        assert len(read_vqa_table(dev, images)) == 40 and len(images) == 4
        with pytest.raises(ValueError, match="no split 'tset'; there are 'train', 'validation'"):
            stream_dataset(str(name), None, "test", "tset")
        assert stream_dataset(str(name), None, "test", None) is None
    with pytest.raises(FileNotFoundError, match="no such folder"):
        stream_dataset("./none", None, "train", None)


def options(tmp_path, tables, **changes):
    values = {
        **{"output_dir": str(tmp_path / "run"), "train_file": tables["inside"], "validation_file": tables["csv"]},
        **{
            "streaming": True,
            "shuffle_buffer": 20,
            "max_steps": 6,
            "batch_size": 8,
            "max_eval_samples": 8,
            "cpu": True,
        },
        **{"tokenizer": "corpus", "grid_backbone": "small", "hidden_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "intermediate_size": 16, "save_steps": 3, "report_to": ["none"]},
    }
    return {**values, **changes}


def weights(run):
    return (run / "best" / "model.safetensors").read_bytes()


def test_a_run_is_resumed_with_the_same_bits(tmp_path, tables):
    def run(name, **changes):
        args = VqaArgs(**options(tmp_path, tables, output_dir=str(tmp_path / name), **changes))
        accelerator = make_accelerator(args)
        return train(vqa_task(args, accelerator), args, accelerator)

    assert run("whole")["run"]["train_examples"] == ROWS
    run("stopped", max_steps=4, schedule="constant")
    whole = run("straight", schedule="constant")
    resumed = run("stopped", resume=True, schedule="constant")
    assert resumed["splits"] == whole["splits"]
    assert weights(tmp_path / "stopped") == weights(tmp_path / "straight")


def inside_of(photos, numbers):
    return [{"bytes": (photos / f"{number}.png").read_bytes(), "path": None} for number in numbers]


def other_rows(task, photos, count):
    """Rows of tasks other than VQA, with the images inside; those of multiple choice have 2 to 4 choices, and letters."""
    for n in range(count):
        images = inside_of(photos, (n % 4, (n + 1) % 4))
        if task == "nlvr2":
            yield {"left_image": images[0], "right_image": images[1], "text": f"both are {n}", "label": n % 3 == 0}
        else:
            choices = COLOURS[: 2 + n % 3]
            yield {
                "image": images[0],
                "question": f"what is {n}",
                "choices": choices,
                "label": "ABCD"[n % len(choices)],
            }


OTHERS = {"nlvr2": (Nlvr2Args, nlvr2_task), "vcr": (VcrArgs, vcr_task)}


@pytest.mark.parametrize("task", OTHERS)
def test_runs_of_other_tasks(tmp_path, tables, photos, task):
    """The rows and labels of the whole table, resumed with the same bits, the same step on any number of processes; bad rows are
    listed."""
    make_args, make_task = OTHERS[task]
    file = write_table(tmp_path / "train.parquet", list(other_rows(task, photos, 90)))
    dev = write_table(tmp_path / "dev.parquet", list(other_rows(task, photos, 8)))

    def prepared(name, **changes):
        values = options(tmp_path, tables, train_file=file, validation_file=dev, max_steps=6, schedule="constant")
        args = make_args(**{**values, "output_dir": str(tmp_path / name), **changes})
        accelerator = make_accelerator(args)
        return make_task(args, accelerator), args, accelerator

    built, *_ = prepared("streamed")
    whole, *_ = prepared("whole", streaming=False, from_pixels=True)
    label = "label" if task == "nlvr2" else "answer_label"
    rows = built.splits["train"]
    assert rows[label][:] == whole.splits["train"][label][:]
    key = {"nlvr2": "identifier", "vcr": "annot_id"}[task]
    epoch = sorted(first(rows, 90), key=lambda row: row[key])
    image = {"nlvr2": "images", "vcr": "image"}[task]
    assert [{**row, image: 0} for row in epoch] == [{**row, image: 0} for row in whole.splits["train"]]
    steps = [
        [
            [
                row[key]
                for batch, _ in StreamedBatches(rows, StepPlan(90, 12, many, None, 0), one, 2, 5, list)
                for row in batch
            ]
            for one in range(many)
        ]
        for many in (1, 2)
    ]
    halves = [[one[n : n + 6] for n in range(0, 18, 6)] for one in steps[1]]
    assert steps[0][0] == [number for pair in zip(*halves, strict=True) for half in pair for number in half]
    straight = train(*prepared("straight"))
    train(*prepared("stopped", max_steps=4))
    resumed = train(*prepared("stopped", resume=True))
    assert resumed["splits"] == straight["splits"] and resumed["run"]["train_examples"] == 90
    assert weights(tmp_path / "stopped") == weights(tmp_path / "straight")
    bad = list(other_rows(task, photos, 90))
    bad[70] |= {"text" if task == "nlvr2" else "question": " "}
    file = write_table(tmp_path / "bad.parquet", bad)
    with pytest.raises(
        ValueError, match=r"bad.parquet: row 70: the (text|question) is ' '; expected at least one word"
    ):
        prepared("bad")
    train(*prepared("bad", skip_bad_records=True))
    assert "row 70" in (tmp_path / "bad" / "skipped.txt").read_text()


def test_bad_rows_are_listed_once(tmp_path, tables, photos):
    images = [{"bytes": (photos / f"{n}.png").read_bytes(), "path": None} for n in range(4)]
    rows = [{"image": images[n % 4], "text": f"it is {n}", "label": COLOURS[n % 3]} for n in range(40)]
    good = write_table(tmp_path / "good.parquet", rows)
    half = {"bytes": images[1]["bytes"][:60], "path": None}
    rows[3] |= {"text": " "}
    rows[5] |= {"image": None}
    rows[7] |= {"image": half}
    file = write_table(tmp_path / "bad.parquet", rows)
    values = options(tmp_path, tables, train_file=file, validation_file=good, max_steps=15)
    args = ClassificationArgs(**values, skip_bad_records=True)
    accelerator = make_accelerator(args)
    with pytest.raises(ValueError, match=r"bad.parquet: row 3: the text is ' '; expected at least one word"):
        classification_task(ClassificationArgs(**values), accelerator)
    task = classification_task(args, accelerator)
    assert task.processor.labels == sorted(COLOURS[:3])
    record = train(replace(task, collate=naming_examples(task.collate)), args, accelerator)
    lines = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert len(lines) == record["run"]["skipped_records"] == 3
    assert "row 3: the text is ' '" in lines[0]  # known before; the others are found on the way
    assert "row 5: 'image' is empty; expected an image" in lines[1]
    assert lines[2] == "example 7: image: damaged or truncated image file (image file is truncated)"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"validation_file": None}, "--streaming without a validation split, and none is cut from rows that are not all "),
        ({"train_file": None, "validation_file": None}, "--streaming without a table; expected --train_file or --dataset"),
        ({"features_dir": "store"}, "--streaming with --features_dir; expected none"),
        ({"shuffle_buffer": 0}, "--shuffle_buffer 0; expected at least 1"),
        ({"question_column": "quest"}, "inside.parquet: no column 'quest'; there .*: pass --question_column question"),
    ],
)  # fmt: skip
def test_what_cannot_be_streamed_is_refused(tmp_path, tables, changes, message):
    if changes.get("features_dir"):
        changes = {**changes, "grid_backbone": None}
    with pytest.raises(ValueError, match=message):
        args = VqaArgs(**options(tmp_path, tables, **changes))
        vqa_task(args, make_accelerator(args))


def test_boxes_phrases_and_captions_are_not_streamed(tmp_path, tables, photos):
    rows = [{**row, "boxes": [[1, 1, 9, 9]]} for row in other_rows("vcr", photos, 8)]
    file = write_table(tmp_path / "boxes.parquet", rows)
    values = options(tmp_path, tables, train_file=file, validation_file=file)
    with pytest.raises(ValueError, match="boxes.parquet: --streaming reads no boxes; expected --objects found, or"):
        vcr_task(VcrArgs(**values), make_accelerator(VcrArgs(**values)))
    args = VcrArgs(**values, objects="found")
    assert vcr_task(args, make_accelerator(args)).splits["train"]["answer_label"][:] == [0, 1, 2, 1, 1, 1, 0, 1]
    for make_args, make_task, message in (
        (Flickr30kArgs, flickr30k_task, "--streaming: phrase grounding looks at the regions of all images first"),
        (
            PretrainingArgs,
            pretraining_task,
            "--streaming: pre-training reads stored regions, and texts of other images",
        ),
    ):
        args = make_args(
            str(tmp_path / "run"), train_file=file, validation_file=file, streaming=True, tokenizer="corpus"
        )
        with pytest.raises(ValueError, match=message):
            make_task(args, make_accelerator(args))


def test_a_damaged_file_is_named(tmp_path, tables):
    path = tmp_path / "half.parquet"
    path.write_bytes(Path(tables["inside"]).read_bytes()[:-500])
    with pytest.raises(ValueError, match="half.parquet: cannot be read as parquet"):
        stream_file(str(path))


def test_labels_of_all_parts_are_known_before(tmp_path, photos):
    rows = [{"image": "0.png", "text": "a", "label": "first"} for _ in range(299)] + [
        {"image": "0.png", "text": "a", "label": "second"}
    ]
    stream = stream_file(write_table(photos / "late.csv", rows))
    reader = LabelTables()
    reader.find_labels(stream.tables(with_images=False))
    assert reader.labels == ["first", "second"]
    assert StreamedRows(stream, reader, "images", ("label",), 10, 0)["label"][:] == [0] * 299 + [1]


def test_pairs_of_images_inside_a_table(tmp_path, photos):
    content = [(photos / f"{n}.png").read_bytes() for n in range(4)]
    rows = [{"images": content[:2], "text": "a", "label": n % 2} for n in range(8)]
    features = Features({"images": List(Image()), "text": Value("string"), "label": Value("int64")})
    path = tmp_path / "pairs.parquet"
    Dataset.from_list(
        [{**row, "images": [{"bytes": one, "path": None} for one in row["images"]]} for row in rows], features=features
    ).to_parquet(path)
    reader = LabelTables()
    stream = stream_file(str(path))
    reader.find_labels(stream.tables(with_images=False))
    found = first(StreamedRows(stream, reader, "images", ("label",), 4, 0), 8)
    assert reader.num_images == 2 and all(row["images"] == content[:2] for row in found)


MEASURE = """
import re, sys
from modeling_visualbert.data.table_stream import StreamedRows, stream_file
from modeling_visualbert.data.vqa_table import read_vqa_table

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) >> 10

def megabytes(file):
    rows = StreamedRows(stream_file(file), read_vqa_table, "image_id", ("answers",), 20, 0)
    return sum(len(row["image_id"]) for row, _ in zip(rows.read_from(0), range(len(rows)))) >> 20

small, large = sys.argv[1:]
megabytes(small)  # which imports all that is needed
before = peak()
print(megabytes(large), peak() - before)
"""


def write_large(path, count, group):
    """A parquet file of so many images of 150 kB, in groups of so many."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("question", pa.string()), ("answer", pa.string())])
    # The pages of a file, which are read whole, are of 16 rows; the default of the writer is 1024.
    with pq.ParquetWriter(path, schema, compression="none", write_batch_size=16) as writer:
        for _ in range(count // group):
            images = [{"bytes": os.urandom(150_000), "path": None} for _ in range(group)]
            texts = {"question": ["what is it"] * group, "answer": ["a wall"] * group}
            writer.write_table(pa.table({"image": images, **texts}, schema=schema), row_group_size=group)
    return str(path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
@pytest.mark.parametrize("group", [50, 2000])
def test_memory_does_not_grow_with_the_file(tmp_path, group):
    files = [write_large(tmp_path / "small.parquet", 50, 50), write_large(tmp_path / "large.parquet", 2000, group)]
    command = [sys.executable, "-c", MEASURE, *files]
    done = subprocess.run(command, capture_output=True, text=True, env=processes.environment(), check=True)
    total, more = map(int, done.stdout.split())
    assert total == 286 and more < 120  # a part of 64 rows has 10 MB, and is there as columns, rows and images
