"""What somebody writes who uses the package, checked strictly against it: `mypy --strict tests/typed/user_program.py`."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import torch

import modeling_visualbert
from modeling_visualbert import (
    GridRegionEncoder,
    VisualBertConfig,
    VisualBertForQuestionAnswering,
    VisualBertProcessor,
    ask,
    load_corpus,
    load_image,
)
from modeling_visualbert.convert import KeyReport, convert_original_checkpoint
from modeling_visualbert.data.vqa2 import find_vqa_files, load_vqa
from modeling_visualbert.features.store import FeatureStore
from modeling_visualbert.metrics.vqa import vqa_accuracy


def best_answer(
    model: VisualBertForQuestionAnswering, processor: VisualBertProcessor, image: Path, question: str
) -> str:
    answers, regions = ask(model, processor, load_image(image), [question], top_k=1)
    print(regions["boxes"].shape)
    return str(answers[0][0]["answer"])


def small_model(answers: list[str]) -> VisualBertForQuestionAnswering:
    config = VisualBertConfig(hidden_size=64, num_attention_heads=4, id2label=dict(enumerate(answers)))
    return VisualBertForQuestionAnswering(config)


def logits(
    model: VisualBertForQuestionAnswering, processor: VisualBertProcessor, regions: torch.Tensor
) -> torch.Tensor:
    inputs = processor(images={"visual_embeds": regions}, text="What is it?")
    found: torch.Tensor = model(**inputs).logits
    return found


def score(folder: Path, predicted: dict[int, str]) -> float:
    files = find_vqa_files(folder, "val")
    rows = load_vqa(files.questions, files.annotations)
    return float(vqa_accuracy(predicted, rows.to_list())["overall"])


def features(folder: Path, image_id: str) -> object:
    store = FeatureStore(folder)
    return store[image_id]


def converted(path: Path) -> list[KeyReport]:
    _, report = convert_original_checkpoint(path, task="vqa", num_attention_heads=12)
    return report


def encoder(name: str) -> GridRegionEncoder:
    return GridRegionEncoder.from_tower(name, grid_rows=4)


assert_type(modeling_visualbert.__version__, str)
print(load_corpus("vqa", "validation"))
