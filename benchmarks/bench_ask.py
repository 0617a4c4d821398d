"""Time from an image and a question to an answer, with a trained, warmed-up model.

python benchmarks/bench_ask.py --model runs/vqa/best --image image.jpg
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

from modeling_visualbert import ask

QUESTIONS = [f"How many {color} things are there?" for color in ("red", "green", "blue", "cyan", "black")] * 4


def milliseconds(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and 90th percentile of repeated calls, after three to warm up."""
    times = []
    for number in range(repeats + 3):
        start = time.perf_counter()
        call()
        if number >= 3:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times), statistics.quantiles(times, n=10)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--repeats", type=int, default=50)
    args = parser.parse_args()
    model = AutoModelForVisualQuestionAnswering.from_pretrained(args.model).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    cases = {
        "one image, one question": lambda: ask(model, processor, args.image, QUESTIONS[:1]),
        "one image, 20 questions": lambda: ask(model, processor, args.image, QUESTIONS),
        "20 times one question": lambda: [ask(model, processor, args.image, [question]) for question in QUESTIONS],
    }
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, from the image file, milliseconds")
    print("| case | median | 90th percentile |\n|---|---|---|")
    for name, call in cases.items():
        median, high = milliseconds(call, args.repeats)
        print(f"| {name} | {median:.1f} | {high:.1f} |")


if __name__ == "__main__":
    main()
