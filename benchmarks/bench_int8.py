"""int8 and ONNX compared with single precision: agreement of the answers, and speed.

    python benchmarks/bench_int8.py --model runs/vqa/best runs/nlvr2/best runs/vcr/answer/best [--repeats 5]

Agreement is measured on the test split of the embedded corpus, with trained models of any task except pre-training. Without
`--model`, speed is measured on a model of BERT-base size with random weights, in turns. Needs the extras `train`, `int8` and
`onnx`.
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
from stages import TASKS, corpus_args
from torch import nn
from transformers import AutoProcessor
from transformers.modeling_outputs import SequenceClassifierOutput

from modeling_visualbert.checkpoints import load_model
from modeling_visualbert.publish.export import export_onnx, int8_config
from modeling_visualbert.training.accelerator import make_accelerator
from modeling_visualbert.training.evaluation import evaluate


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
    model = load_model(folder)
    with tempfile.TemporaryDirectory() as drafts:
        for name, int8 in (("onnx", False), ("onnx_int8", True)):
            export_onnx(model, Path(drafts) / f"{name}.onnx", int8)
        return {
            "single precision": model,
            "--int8": type(model).from_pretrained(folder, quantization_config=int8_config()).eval(),
            "onnxruntime": OnnxModel(Path(drafts) / "onnx.onnx"),
            "onnxruntime, int8": OnnxModel(Path(drafts) / "onnx_int8.onnx"),
        }


def agreement(folder: Path) -> dict[str, tuple[float, float]]:
    """The metric of the task, and the percentage of test examples with the same prediction as in single precision."""
    build, args_class, changes = TASKS[AutoProcessor.from_pretrained(folder).task]
    args = corpus_args(args_class, Path(tempfile.mkdtemp()), cpu=True, init_from=str(folder), **changes)
    accelerator = make_accelerator(args)
    task = build(args, accelerator)
    found: dict[str, tuple[float, float]] = {}
    expected: list[Any] = []
    for name, model in ways(folder).items():
        metrics, predictions = evaluate(task, model, "test", args, accelerator)
        chosen = [choice(record) for record in predictions]
        expected = expected or chosen
        same = statistics.mean(one == other for one, other in zip(chosen, expected, strict=True))
        found[name] = metrics[task.best_metric], 100.0 * same
    return found


def choice(record: dict[str, Any]) -> Any:
    """A prediction without its score; for ranked regions, the top region of each phrase."""
    if "phrases" in record:
        return [ranked[0]["region"] for ranked in record["phrases"] if ranked]
    return next(record[name] for name in ("answer", "label", "choice") if name in record)


def speed(repeats: int) -> dict[str, float]:
    """Speed of each variant relative to the stock class, for 8 x (14 + 36)."""
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
    parser.add_argument("--model", nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.model:
        print("| | | metric | same prediction |\n|---|---|---|---|")
        for folder in args.model:
            for name, (metric, same) in agreement(Path(folder)).items():
                print(f"| {folder} | {name} | {metric:.2f} | {same:.2f} |", flush=True)
        return
    print("\n| 8 x (14 + 36), base size | times as fast as stock |\n|---|---|")
    for name, ratio in speed(args.repeats).items():
        print(f"| {name} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
