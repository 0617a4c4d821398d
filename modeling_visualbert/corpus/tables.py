"""The embedded corpus as data sets of `datasets`, with the columns that one's own tables have.

>>> data = load_corpus("vqa")
>>> data["train"][0]
{'image': <PIL...>, 'question_id': ..., 'question': 'How many stars are there?', 'answers': ['2', '2', ...], ...}
>>> data.save_to_disk("shapes_vqa")     # run_vqa.py --dataset_name shapes_vqa --tokenizer corpus --region_encoder corpus
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageColumn

from ..data.coco import load_coco_captions
from ..data.files import index_images, index_images_by_name
from ..data.flickr30k import load_flickr30k, read_split
from ..data.label_table import LabelTables
from ..data.nlvr2 import find_nlvr2_file, load_nlvr2
from ..data.table_images import TableImages
from ..data.tables import open_files
from ..data.vcr import load_vcr
from ..data.vqa2 import find_vqa_files, load_vqa
from .build import ensure_corpus
from .snli_ve import LABELS
from .snli_ve import file_name as snli_ve_file

_TEXTS = List(Value("string"))
_BOXES = List(List(Value("float32")))


def load_corpus(task: str = "vqa", folder: str | Path | None = None) -> DatasetDict:
    """The embedded corpus as tables: splits `train`, `validation` and `test`, images as an `Image` column of paths.

    Args:
        task: What the tables are for, and their columns:
            `"vqa"`: image, question_id, question, answers, question_type, answer_type;
            `"vcr"`: image, annot_id, question, choices, label, objects, boxes (answers to choose from; no rationales);
            `"nlvr2"`: images (two), identifier, text, label;
            `"classification"`: image, identifier, text, label (entailment, neutral or contradiction);
            `"flickr30k"`: image, sentence_id, sentence, phrases, boxes;
            `"pretraining"`: image, captions.
        folder: A corpus that `visualbert corpus` wrote; by default that of the scripts, which is drawn on first use (a minute)
            and kept in the cache.

    Raises:
        FileNotFoundError: The folder holds no corpus, or one of single objects, which is for VQA only.
        ValueError: There is no such task.
    """
    if task not in _READERS:
        raise ValueError(f"task {task!r}; expected one of {', '.join(_READERS)}")
    if folder is not None and not (Path(folder) / "corpus.json").is_file():
        raise FileNotFoundError(f"{folder}: no corpus.json; expected a corpus that `visualbert corpus` wrote")
    root = ensure_corpus() if folder is None else Path(folder)
    names = {"train": "train", "validation": "val", "test": "test"}
    return DatasetDict({split: _READERS[task](root, name) for split, name in names.items()})


def _vqa(root: Path, split: str) -> Dataset:
    files = find_vqa_files(root / "vqa", split)
    rows = load_vqa(files.questions, files.annotations)
    paths = index_images(root / "images" / split)
    columns: dict[str, Any] = {"image": [str(paths[key]) for key in rows["image_id"]]}
    columns |= {name: rows[name][:] for name in ("question_id", "question", "answers", "question_type", "answer_type")}
    texts = dict.fromkeys(("question", "question_type", "answer_type"), Value("string"))
    return _table(columns, {"image": ImageColumn(), "question_id": Value("int64"), "answers": _TEXTS, **texts})


def _vcr(root: Path, split: str) -> Dataset:
    folder = root / "vcr" / "vcr1images"
    rows = load_vcr(root / "vcr" / f"{split}.jsonl", folder)
    columns = {
        "image": [str(folder / name) for name in rows["image"]],
        "annot_id": rows["annot_id"][:],
        "question": [" ".join(words) for words in rows["question"]],
        "choices": [[" ".join(words) for words in choices] for choices in rows["answer_choices"]],
        "label": rows["answer_label"][:],
        **{name: rows[name][:] for name in ("objects", "boxes")},
    }
    features = {"image": ImageColumn(), "annot_id": Value("string"), "question": Value("string"), "choices": _TEXTS}
    return _table(columns, {**features, "label": Value("int64"), "objects": _TEXTS, "boxes": _BOXES})


def _nlvr2(root: Path, split: str) -> Dataset:
    name = {"val": "dev", "test": "test1"}.get(split, split)
    rows = load_nlvr2(find_nlvr2_file(root / "nlvr2", name))
    paths = index_images_by_name(root / "nlvr2", {name: {key for pair in rows["images"] for key in pair}})
    columns = {
        "images": [[str(paths[key]) for key in pair] for pair in rows["images"]],
        "identifier": rows["identifier"][:],
        "text": rows["sentence"][:],
        "label": [bool(label) for label in rows["label"]],
    }
    features = {"images": List(ImageColumn()), "identifier": Value("string"), "text": Value("string")}
    return _table(columns, {**features, "label": Value("bool")})


def _classification(root: Path, split: str) -> Dataset:
    (table,) = open_files({split: str(root / "snli_ve" / snli_ve_file(split))}).values()
    tables, images = LabelTables(labels=sorted(LABELS)), TableImages()
    rows = tables(table, images)
    columns = {
        "image": [str(images[key]) for (key,) in rows["images"]],
        "identifier": rows["identifier"][:],
        "text": rows["text"][:],
        "label": rows["label"][:],
    }
    features = {"image": ImageColumn(), "identifier": Value("string"), "text": Value("string")}
    return _table(columns, {**features, "label": ClassLabel(names=sorted(LABELS))})


def _flickr30k(root: Path, split: str) -> Dataset:
    folder = root / "flickr30k"
    rows = load_flickr30k(folder, read_split(folder / f"shapes_{split}.txt"))
    paths = index_images(root / "images" / split)
    columns = {
        "image": [str(paths[key]) for key in rows["image_id"]],
        "sentence_id": [f"{key}-{n}" for key, n in zip(rows["image_id"], rows["sentence_number"], strict=True)],
        **{name: rows[name][:] for name in ("sentence", "phrases", "boxes")},
    }
    features = {"image": ImageColumn(), "sentence_id": Value("string"), "sentence": Value("string")}
    return _table(columns, {**features, "phrases": _TEXTS, "boxes": List(_BOXES)})


def _pretraining(root: Path, split: str) -> Dataset:
    rows = load_coco_captions(root / "coco" / f"captions_{split}.json")
    paths = index_images(root / "images" / split)
    columns = {"image": [str(paths[key]) for key in rows["image_id"]], "captions": rows["captions"][:]}
    return _table(columns, {"image": ImageColumn(), "captions": _TEXTS})


def _table(columns: dict[str, Any], features: dict[str, Any]) -> Dataset:
    return Dataset.from_dict(columns, features=Features({name: features[name] for name in columns}))


_READERS: dict[str, Callable[[Path, str], Dataset]] = {
    "vqa": _vqa,
    "vcr": _vcr,
    "nlvr2": _nlvr2,
    "classification": _classification,
    "flickr30k": _flickr30k,
    "pretraining": _pretraining,
}

__all__ = ["load_corpus"]
