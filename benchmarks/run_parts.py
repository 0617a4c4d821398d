"""What the parts of a run take at full size: evaluation, batches, checkpoints, finding regions. See `bench_full_size.py`.

Each function takes a folder to write to and returns what it measured, in processor time on one thread unless a name says
otherwise; processes that prepare batches are included.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_evaluate import DIM, IMAGES, QUESTIONS, REGIONS, processor_time, write_features, write_questions

from modeling_visualbert import VisualBertConfig, VisualBertForQuestionAnswering, VisualBertProcessor
from modeling_visualbert.answers import pythia_answers
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.data.vqa2 import find_vqa_files, load_vqa
from modeling_visualbert.features.store import FeatureStore
from modeling_visualbert.tasks.vqa import make_task
from modeling_visualbert.training.args import TrainArgs
from modeling_visualbert.training.task import Task

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
BATCH, BATCHES, ROUNDS = 64, 150, 3
PICTURES, ALL_PICTURES, PICTURE_SIZE = 5000, 120_000, (64, 64)


def vqa_task(folder: Path, **size: int) -> Task:
    """10,000 questions about 2000 images, ten answers each; regions of full width, 3129 answers. The size is the model's."""
    tokenizer, answers = corpus_tokenizer(), list(pythia_answers())
    if not (folder / "features").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        write_questions(folder, [word for word in tokenizer.get_vocab() if word.isalpha()], answers)
        write_features(folder / "features", IMAGES)
    files = find_vqa_files(folder, "val2014")
    rows = load_vqa(files.questions, files.annotations)
    labels = {"id2label": dict(enumerate(answers)), "label2id": {answer: i for i, answer in enumerate(answers)}}
    config = VisualBertConfig(vocab_size=len(tokenizer), visual_embedding_dim=DIM, **labels, **size)
    processor = VisualBertProcessor(tokenizer=tokenizer, answers=answers, region_dim=DIM)
    splits = {"train": rows, "dev": rows}
    return make_task(
        VisualBertForQuestionAnswering(config), processor, splits, FeatureStore(folder / "features").arrays
    )


def measure_evaluation(folder: Path) -> dict[str, Any]:
    """Evaluating, scoring and writing the predictions, without the model's forward passes."""
    from modeling_visualbert.training.accelerator import make_accelerator
    from modeling_visualbert.training.evaluation import evaluate, with_own_scores, write_predictions

    task, args = vqa_task(folder / "vqa", **SMALL), TrainArgs(str(folder / "out"), cpu=True)
    accelerator, spent, forward = make_accelerator(args), [0.0], task.model.forward

    def timed(*inputs: Any, **options: Any) -> Any:
        started = processor_time()
        outputs = forward(*inputs, **options)
        spent[0] += processor_time() - started
        return outputs

    def once() -> float:
        started, spent[0] = processor_time(), 0.0
        _, predictions = evaluate(task, task.model, "dev", args, accelerator)
        write_predictions(folder / "predictions.jsonl", with_own_scores(task, predictions, "dev"))
        return processor_time() - started - spent[0]

    task.model.forward = timed
    return {"questions": QUESTIONS, "cpu_s": spread(once)}


def measure_loader(folder: Path) -> dict[str, Any]:
    """Batches as training takes them, one after the other, from a store in the page cache."""
    from modeling_visualbert.training.accelerator import make_accelerator
    from modeling_visualbert.training.batches import StepPlan
    from modeling_visualbert.training.loaders import training_batches

    task = vqa_task(folder / "vqa", **SMALL)
    args = TrainArgs(str(folder / "out"), batch_size=BATCH, cpu=True)
    accelerator, plan = make_accelerator(args), StepPlan(QUESTIONS, BATCH, 1, None, args.seed)

    def prepare(workers: int) -> tuple[float, float]:
        started = processor_time()
        batches = training_batches(task, plan, replace(args, num_workers=workers), accelerator, 0, BATCHES + 1)
        next(batches)
        before, begun = (started, time.perf_counter()) if workers else (processor_time(), time.perf_counter())
        for _ in islice(batches, BATCHES):
            pass
        seconds = time.perf_counter() - begun
        del batches  # processes count when they have ended
        return 1e3 * (processor_time() - before) / BATCHES, BATCHES / seconds

    found = [(prepare(0)[0], *prepare(2)) for _ in range(ROUNDS)]
    own, with_workers, rate = (sorted(values)[ROUNDS // 2] for values in zip(*found, strict=True))
    return {
        **{"batch": [BATCH, REGIONS, DIM], "cpu_ms": round(own, 1), "cpu_ms_2_workers": round(with_workers, 1)},
        "wall_batches_per_s_2_workers": round(rate, 1),
    }


def measure_checkpoint(folder: Path) -> dict[str, Any]:
    """A model of BERT-base size with its optimiser: how long the training loop waits, and how long writing takes."""
    from modeling_visualbert.training.accelerator import make_accelerator
    from modeling_visualbert.training.checkpoint import CheckpointWriter
    from modeling_visualbert.training.optimizer import make_optimizer

    task, args = vqa_task(folder / "vqa"), TrainArgs(str(folder / "out"), cpu=True)
    accelerator = make_accelerator(args)
    model, optimizer = accelerator.prepare(task.model, make_optimizer(task.model, args))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    place = folder / "checkpoints"
    writer = CheckpointWriter(accelerator, place, keep=1)
    blocked, whole, waited = [], [], []
    for step in range(ROUNDS):
        started, begun = processor_time(), time.perf_counter()
        thread = time.thread_time()
        writer.save(step, {"progress": {}})
        blocked.append(time.thread_time() - thread)
        waited.append(time.perf_counter() - begun)
        writer.wait()
        whole.append(processor_time() - started)
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    shutil.rmtree(place)
    middle = ROUNDS // 2
    return {
        **{"checkpoint_mib": round(size / 2**20), "blocked_cpu_s": round(sorted(blocked)[middle], 2)},
        **{"cpu_s": round(sorted(whole)[middle], 2), "blocked_wall_s": round(sorted(waited)[middle], 2)},
    }


def measure_extraction(folder: Path, pictures: int = PICTURES) -> dict[str, Any]:
    """Regions of small pictures by the detector of the embedded corpus. What is not measured is extrapolated, and says so."""
    from PIL import Image

    from modeling_visualbert.features.extract import ExtractionOptions, extract_store, load_region_encoder
    from modeling_visualbert.tasks.common import DETECTOR

    images, draw = folder / "images", np.random.default_rng(0)
    images.mkdir(exist_ok=True)
    width, height = PICTURE_SIZE
    listed = [(f"{number:06d}", images / f"{number:06d}.png") for number in range(pictures)]
    for _, path in listed:
        if not path.exists():
            Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    encoder, image_processor = load_region_encoder(DETECTOR)
    with temporary(folder / "regions"):
        started = processor_time()
        extract_store(
            folder / "regions", listed, encoder, image_processor, ExtractionOptions(num_workers=2), progress=False
        )
        seconds = processor_time() - started
        size = sum(path.stat().st_size for path in (folder / "regions").rglob("*") if path.is_file())
    share = ALL_PICTURES / pictures
    return {
        **{"pictures": pictures, "cpu_s": round(seconds, 1), "cpu_ms_each": round(1e3 * seconds / pictures, 2)},
        **{"store_mib": round(size / 2**20, 1), f"extrapolated_cpu_s_{ALL_PICTURES}": round(seconds * share)},
    }


def spread(call: Callable[[], float]) -> list[float]:
    """Smallest, middle and largest of what it returns."""
    values = sorted(call() for _ in range(ROUNDS))
    return [round(value, 2) for value in (values[0], values[ROUNDS // 2], values[-1])]


@contextlib.contextmanager
def temporary(folder: Path) -> Iterator[None]:
    """Inside the block there is room for a folder, which is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "evaluation": measure_evaluation,
    "loader": measure_loader,
    "checkpoint": measure_checkpoint,
    "extraction": measure_extraction,
}
