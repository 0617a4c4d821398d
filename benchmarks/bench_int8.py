"""8-bit integers and ONNX files against single precision: the same answers, and how fast.

    python benchmarks/bench_int8.py --model runs/vqa/best [--repeats 5] [--skip_accuracy]

Agreement is measured on all test questions of the embedded corpus with a trained model, speed on a model of BERT-base size with
random weights, the ways taking turns. Needs the extras `train`, `int8` and `onnx`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from bench_stock import QA, VQA, both_models, seconds, vqa_inputs
from stages import corpus_args
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from modeling_visualbert import VisualBertForQuestionAnswering
from modeling_visualbert.export import export_onnx, int8_config
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
from modeling_visualbert.training.loop import evaluate, make_accelerator


class OnnxModel(nn.Module):
    """An exported model, called like ours."""

    def __init__(self, path: Path):
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(self, **inputs: torch.Tensor) -> SequenceClassifierOutput:
        mask = inputs["visual_attention_mask"]
        given = {"visual_token_type_ids": torch.zeros_like(mask), **inputs}
        arrays = {found.name: given[found.name].numpy() for found in self.session.get_inputs()}
        return SequenceClassifierOutput(logits=torch.from_numpy(self.session.run(["logits"], arrays)[0]))


def ways(folder: Path) -> dict[str, nn.Module]:
    """The model of a folder in every form."""
    model = VisualBertForQuestionAnswering.from_pretrained(folder).eval()
    with tempfile.TemporaryDirectory() as drafts:
        for name, int8 in (("onnx", False), ("onnx_int8", True)):
            export_onnx(model, Path(drafts) / f"{name}.onnx", int8)
        return {
            "single precision": model,
            "--int8": VisualBertForQuestionAnswering.from_pretrained(folder, quantization_config=int8_config()).eval(),
            "onnxruntime": OnnxModel(Path(drafts) / "onnx.onnx"),
            "onnxruntime, int8": OnnxModel(Path(drafts) / "onnx_int8.onnx"),
        }


def agreement(models: dict[str, nn.Module]) -> dict[str, tuple[float, float]]:
    """Official accuracy, and the share of the test questions with the same answer as in single precision, in percent."""
    args = corpus_args(VqaArgs, Path(tempfile.mkdtemp()), cpu=True)
    accelerator = make_accelerator(args)
    task = vqa_task(args, accelerator)
    found: dict[str, tuple[float, float]] = {}
    expected: list[Any] = []
    for name, model in models.items():
        metrics, predictions = evaluate(task, model, "test", args, accelerator)
        answers = [record["answer"] for record in predictions]
        expected = expected or answers
        same = statistics.mean(answer == truth for answer, truth in zip(answers, expected, strict=True))
        found[name] = metrics[task.best_metric], 100.0 * same
    return found


def speed(repeats: int) -> dict[str, float]:
    """How many times as fast as the stock class each way answers 8 x (14 + 36)."""
    models: dict[str, nn.Module] = both_models(QA, **VQA)
    with tempfile.TemporaryDirectory() as folder:
        models["ours"].save_pretrained(folder)  # type: ignore[operator]
        models = {"stock": models["stock"].eval(), **ways(Path(folder))}
    inputs = vqa_inputs(8, 36)

    def forward(model: nn.Module) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return model(**inputs)

        return run

    calls = {name: forward(model) for name, model in models.items()}
    for call in calls.values():
        call()
    ratios: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        times = {name: seconds(call) for name, call in calls.items()}
        for name, found in times.items():
            ratios[name].append(times["stock"] / found)
    return {name: statistics.median(values) for name, values in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip_accuracy", action="store_true")
    args = parser.parse_args()
    if not args.skip_accuracy:
        print("| | accuracy | same answer |\n|---|---|---|")
        for name, (accuracy, same) in agreement(ways(Path(args.model))).items():
            print(f"| {name} | {accuracy:.2f} | {same:.2f} |", flush=True)
    print("\n| 8 x (14 + 36), base size | times as fast as stock |\n|---|---|")
    for name, ratio in speed(args.repeats).items():
        print(f"| {name} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
