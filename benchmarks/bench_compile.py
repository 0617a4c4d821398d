"""Compilation on this machine: the cost of the first call, the gain of later ones, and whether new lengths trigger recompilation.

    python benchmarks/bench_compile.py [--repeats 5]

Runs a VQA model of BERT-base size with random weights, of the stock class and of ours, each eager and compiled, in turns.
Batches with unseen lengths follow one by one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from bench_stock import QA, VQA, Inputs, answering, finetuning_inputs, regions, seconds, texts, training, vqa_inputs
from torch._dynamo.utils import counters

from modeling_visualbert.hub_code.compile_visualbert import compile_model

CASES: dict[str, Callable[[], dict[str, Callable[[], Any]]]] = {
    "forward, 8 x (14 + 36)": lambda: answering(QA, vqa_inputs(8, 36), **VQA),
    # On a CPU, torch 2.13 cannot compile attention with dropout for varying lengths.
    "fine-tuning step, 16 x (8 to 20 + 36)": lambda: training(
        QA, finetuning_inputs(), **VQA, attention_probs_dropout_prob=0.0
    ),
}


def unseen_batches() -> list[Inputs]:
    """Batches of 8 questions, one of them shorter than the others, with lengths that no case has."""
    generator = torch.Generator().manual_seed(0)
    lengths = [(9, 20), (17, 50), (23, 37), (12, 100), (31, 64)]  # text and regions
    return [{**texts(generator, [text] * 7 + [text - 2]), **regions(generator, [count] * 8)} for text, count in lengths]


def wall(call: Callable[[], Any]) -> float:
    """Wall-clock seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(case: str, repeats: int) -> None:
    """Print the rows of a case."""
    calls = {**CASES[case](), **{f"{side}, compiled": call for side, call in CASES[case]().items()}}
    calls["stock, compiled"].model.compile(dynamic=True)  # type: ignore[attr-defined]
    if not compile_model(calls["ours, compiled"].model):  # type: ignore[attr-defined]
        raise SystemExit("nothing to measure")
    first = {name: wall(call) for name, call in calls.items()}
    counters.clear()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    slowest, unseen = {}, unseen_batches()
    for name, call in calls.items():
        model = call.model.eval()  # type: ignore[attr-defined]
        if case.startswith("forward"):
            with torch.inference_mode():
                slowest[name] = f"{max(wall(lambda model=model, one=one: model(**one)) for one in unseen):.2f}"
    for name, spent in times.items():
        ratio = statistics.median(theirs / own for theirs, own in zip(times["stock"], spent, strict=True))
        cells = [case, name, f"{first[name]:.1f}", f"{statistics.median(spent):.3f}", f"**{ratio:.2f}**"]
        print(f"| {' | '.join([*cells, slowest.get(name, '')])} |", flush=True)
    print(f"graphs compiled after the first calls: {counters['stats']['unique_graphs']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| | | first call, s | later, s | times as fast as stock | unseen lengths, slowest, s |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        measure(case, args.repeats)


if __name__ == "__main__":
    main()
