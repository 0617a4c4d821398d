"""Fine-tune VisualBERT on VQA v2, or on the embedded corpus when no data folder is given.

    accelerate launch examples/run_vqa.py --output_dir runs/vqa
    accelerate launch examples/run_vqa.py --output_dir runs/vqa2 --recipe examples/recipes/vqa_finetune.yaml \\
        --data_dir data/vqa2 --train_split train2014 --dev_split val2014 --features_dir data/regions \\
        --init_from visualbert-vqa-pre

Writes the trained model to <output_dir>/best and, beside it, metrics.json, predictions_<split>.jsonl, the file for the VQA
evaluation server, log.jsonl, TensorBoard logs, curves.png and attention.png.
"""

from dataclasses import replace
from pathlib import Path

import torch

from modeling_visualbert import VisualBertForQuestionAnswering
from modeling_visualbert.tasks.vqa import (
    VqaArgs,
    draw_examples,
    majority_baselines,
    vqa_task,
    write_official_results,
)
from modeling_visualbert.training.args import parse_args
from modeling_visualbert.training.loop import make_accelerator, train, write_json
from modeling_visualbert.training.report import plot_curves, table
from modeling_visualbert.training.task import Task

CORPUS_RECIPE = Path(__file__).parent / "recipes" / "vqa_corpus.yaml"


def main() -> None:
    args = parse_args(VqaArgs, __doc__.split("\n")[0], recipe_without_data=CORPUS_RECIPE)
    accelerator = make_accelerator(args)
    task = vqa_task(args, accelerator)
    metrics = train(task, args, accelerator)
    metrics["baselines"] = {}
    last = list(task.splits)[-1]
    if args.data_dir is None and not args.text_only:
        metrics["baselines"] = majority_baselines(task.splits["train"], task.splits[last])
        question_only = replace(
            args, text_only=True, output_dir=f"{args.output_dir}/question_only", epochs=1.0, evals_per_epoch=2
        )
        # An accelerator of its own: checkpoints and TensorBoard of the two runs stay apart.
        other = make_accelerator(question_only)
        baseline = train(vqa_task(question_only, other), question_only, other)
        metrics["baselines"]["question only"] = baseline["splits"][last]
    if accelerator.is_main_process:
        report(task, args, metrics, last, accelerator.device)
    accelerator.end_training()


def report(task: Task, args: VqaArgs, metrics: dict, last: str, device: torch.device) -> None:
    """Write the figures, pictures and official result files of a run, and print the table."""
    output_dir = Path(args.output_dir)
    write_json(output_dir / "metrics.json", metrics)
    for split in metrics["splits"]:
        write_official_results(output_dir / f"predictions_{split}.jsonl", output_dir / f"vqa_results_{split}.json")
    plot_curves(output_dir, "VQA")
    if task.model.config.region_encoder_config is not None:
        best = VisualBertForQuestionAnswering.from_pretrained(output_dir / "best").to(device).eval()
        draw_examples(best, task, last, args, output_dir / "attention.png")
        print(f"try: visualbert ask --model {output_dir / 'best'} PICTURE QUESTION")
    print(summary(metrics, last))
    print(f"model in {output_dir / 'best'}")


def summary(metrics: dict, split: str) -> str:
    """A table of accuracies in percent: this model and the baselines, over all questions and by type."""
    columns = {"VisualBERT": metrics["splits"][split], **metrics["baselines"]}
    if "accuracy" not in columns["VisualBERT"]:
        return f"{split}: {columns['VisualBERT']['num_examples']} questions answered, no annotations to score against"
    kinds = columns["VisualBERT"]["per_question_type"]
    rows = [[f"{split} accuracy (%)", *columns]]
    rows.append(["all", *(f"{scores['accuracy']:.1f}" for scores in columns.values())])
    rows += [[kind, *(f"{scores['per_question_type'][kind]:.1f}" for scores in columns.values())] for kind in kinds]
    run = metrics["run"]
    return f"\n{table(rows)}\n{run['steps']} steps, {run['seconds']:.0f} s, peak memory {run['peak_memory_mib']} MiB"


if __name__ == "__main__":
    main()
