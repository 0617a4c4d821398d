"""How much `visualbert evaluate` takes beside the model's own forward passes.

python benchmarks/bench_evaluate.py [--questions 256 --rounds 3 --threads 2 --num_workers 1 --device cuda]

A VQA model of BERT-base size with random weights and 3129 answers is evaluated on official files of 10,000 questions about 2000
images, with the regions (36 x 2048) from a store. In each round, one process runs the whole command on the first `--questions`,
on one question, and then the same batches, prepared beforehand, through the model alone. What does not depend on the number of
questions (reading all files, opening the model) is counted in full; the rest is extrapolated to 10,000. Appends a line to
`benchmarks/results.jsonl`; the goal is a ratio of at most 1.3 on two cores.

With one thread, processor time is measured, that of the processes which prepare batches included: on cores that all work it is
what decides, and it does not depend on what else runs on the machine. With more threads it is wall time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_stock import PLACE, RESULTS, hardware

from modeling_visualbert import VisualBertConfig, VisualBertForQuestionAnswering, VisualBertProcessor
from modeling_visualbert.answers import pythia_answers
from modeling_visualbert.checkpoints import load_model
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.data.vqa2 import find_vqa_files, load_vqa
from modeling_visualbert.features.store import FeatureStore, write_store
from modeling_visualbert.tasks.evaluate import EvaluateArgs, run_evaluation
from modeling_visualbert.tasks.vqa import make_task

QUESTIONS, IMAGES, REGIONS, DIM = 10_000, 2000, 36, 2048


def write_questions(folder: Path, words: list[str], answers: list[str]) -> None:
    """Official files of a split `val2014`: questions of 6 to 13 words, ten answers each."""
    generator = np.random.default_rng(0)
    questions, annotations = [], []
    for number in range(QUESTIONS):
        about = {"question_id": 1000 * (number % IMAGES) + number // IMAGES, "image_id": number % IMAGES}
        text = " ".join(generator.choice(words, generator.integers(6, 14)))
        given = generator.choice(answers[1:], 10).tolist()
        questions.append({**about, "question": f"{text}?"})
        records = [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(given, 1)]
        annotations.append({**about, "answers": records, "question_type": "what is", "answer_type": "other"})
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": questions}))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": annotations}))


def write_features(folder: Path, images: int) -> None:
    """A store of random regions of the first images."""
    generator = np.random.default_rng(1)
    found = ((n, {"visual_embeds": generator.random((REGIONS, DIM), dtype=np.float32)}) for n in range(images))
    write_store(folder, found, DIM, "benchmark", "float16")


def write_model(folder: Path) -> list[str]:
    """A checkpoint of BERT-base size; returns its answers."""
    tokenizer, answers = corpus_tokenizer(), list(pythia_answers())
    labels = {"id2label": dict(enumerate(answers)), "label2id": {answer: i for i, answer in enumerate(answers)}}
    torch.manual_seed(0)
    config = VisualBertConfig(vocab_size=len(tokenizer), visual_embedding_dim=DIM, **labels)
    VisualBertForQuestionAnswering(config).save_pretrained(folder)
    VisualBertProcessor(tokenizer=tokenizer, answers=answers, region_dim=DIM).save_pretrained(folder)
    return answers


def elapsed(call: Callable[[], Any]) -> float:
    """Seconds: processor time of this process and those it started, or with several threads wall time."""
    clock = processor_time if hardware()["clock"] == "processor" else time.perf_counter
    start = clock()
    call()
    return clock() - start


def processor_time() -> float:
    """Processor time so far of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def forward_alone(folder: Path, args: argparse.Namespace) -> Callable[[], None]:
    """The model over the batches of the first questions, which are prepared here."""
    files = find_vqa_files(folder, "val2014")
    rows = load_vqa(files.questions, files.annotations).select(range(args.questions))
    store, model = FeatureStore(folder / "features"), load_model(folder / "model", "vqa").to(args.device)
    processor = VisualBertProcessor.from_pretrained(folder / "model")
    task = make_task(model, processor, {"val2014": rows}, store.arrays)
    batches = []
    for start in range(0, args.questions, args.batch_size):
        batch = task.collate([rows[i] for i in range(start, min(start + args.batch_size, args.questions))])
        batches.append({name: value.to(args.device) for name, value in batch.items() if name != "labels"})

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            logits = model(**batch).logits
        logits.cpu()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--num_workers", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    PLACE["device"] = torch.device(args.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [word for word in corpus_tokenizer().get_vocab() if word.isalpha()]
        write_questions(folder, words, write_model(folder / "model"))
        write_features(folder / "features", IMAGES)
        forward = forward_alone(folder, args)

        def evaluate(count: int) -> None:
            shutil.rmtree(folder / "out", ignore_errors=True)
            run_evaluation(
                EvaluateArgs(
                    *(str(folder / "model"), str(folder / "out"), "val2014", str(folder)),
                    features_dir=str(folder / "features"),
                    max_eval_samples=count,
                    batch_size=args.batch_size,
                    num_workers=args.num_workers,
                    cpu=args.device == "cpu",
                )
            )

        forward()
        evaluate(args.questions)
        found = [
            (elapsed(lambda: evaluate(args.questions)), elapsed(lambda: evaluate(1)), elapsed(forward))
            for _ in range(args.rounds)
        ]
    report(found, args)


def report(found: list[tuple[float, float, float]], args: argparse.Namespace) -> None:
    """Print the extrapolated times and ratio of the rounds, and append them to the results."""
    share = (QUESTIONS - 1) / (args.questions - 1)
    whole = [one + (many - one) * share for many, one, _ in found]
    alone = [passes * QUESTIONS / args.questions for *_, passes in found]
    ratios = [total / passes for total, passes in zip(whole, alone, strict=True)]
    record = {
        "date": datetime.date.today().isoformat(),
        **hardware(),
        **{"workload": "evaluation", "device": args.device},
        **{"questions": QUESTIONS, "measured_questions": args.questions, "num_workers": args.num_workers},
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "evaluate_s": statistics.median(whole),
        "forward_s": statistics.median(alone),
        "fixed_s": statistics.median(one for _, one, _ in found),
    }
    print("\n| 10,000 questions | evaluate, s | of it fixed, s | forward passes, s | ratio |\n|---|---|---|---|---|")
    how = f"{args.threads} threads, {args.device}, {record['clock']} time"
    times = f"{record['evaluate_s']:.0f} | {record['fixed_s']:.1f} | {record['forward_s']:.0f}"
    ratio = f"{record['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"| {how} | {times} | {ratio} |")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
