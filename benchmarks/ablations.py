"""The ablations of the paper (Table 5) on the embedded corpus: a task with different pre-training and with fewer regions.

    python benchmarks/ablations.py --output_dir runs/ablations        # about half an hour on one CPU core

Every row is the full pipeline with one field or flag changed. The paper starts from BERT; here, a model that was trained on the
questions of the corpus without images takes its place. The paper's task is NLVR2 (`--task nlvr2`), which needs thousands of
steps on the corpus to rise above chance; VQA shows differences after hundreds. Writes benchmarks/ablations.md with our numbers
beside those of the paper.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages import TASKS, corpus_args, run_once

from modeling_visualbert.tasks.pretraining import PretrainingArgs, pretraining_task

ROOT = Path(__file__).parents[1]
BERT_STEPS, COCO_STEPS, FINE_TUNING_STEPS = 300, 600, 500
MASKED = {"mlm_probability": 0.3}  # as in examples/recipes/pretraining_corpus.yaml


@dataclass(frozen=True)
class Variant:
    """One row of the table. `coco` and `task` change arguments of the two stages; `coco=None` leaves out the first."""

    name: str
    flag: str
    paper: float
    coco: dict[str, Any] | None = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    from_bert: bool = True


VARIANTS = [
    Variant("VisualBERT", "", 66.7),
    Variant("without grounded pre-training", "`--text_only` (COCO stage)", 63.9, coco={"text_only": True}),
    Variant("without COCO pre-training", "no `--init_from` of that stage", 62.9, coco=None),
    Variant("without early fusion", "`--late_fusion`", 61.4, coco={"late_fusion": True}, task={"late_fusion": True}),
    Variant("without BERT initialisation", "no `--init_from` in the COCO stage", 64.7, from_bert=False),
    Variant("without the match objective", "`--no_match`", 64.9, coco={"no_match": True}),
]
# The paper uses 9 to 144 regions of photographs; an image of the corpus has at most six objects.
REGIONS = [
    Variant(
        f"{ours} region{'s' * (ours > 1)} (paper: {theirs})",
        f"`--num_regions {ours}`",
        paper,
        task={"num_regions": ours},
    )
    for ours, theirs, paper in ((1, 9, 64.8), (2, 18, 65.5), (3, 36, 66.7), (4, 72, 67.1), (6, 144, 67.4))
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--task", choices=("vqa", "nlvr2"), default="vqa", help="what to fine-tune on (default: vqa)")
    parser.add_argument("--max_steps", type=int, help="of every stage, for a quick look")
    args = parser.parse_args()
    rows = [f"| | flag or field | NLVR2, the paper's dev | {args.task} here, dev |", "|---|---|---|---|"]
    for variant in [*VARIANTS, *REGIONS]:
        accuracy = run_variant(variant, args)
        rows.append(f"| {variant.name} | {variant.flag} | {variant.paper} | {accuracy:.1f} |")
        print("\n".join(rows), flush=True)
    if args.max_steps is None:
        (ROOT / "benchmarks" / "ablations.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


def run_variant(variant: Variant, args: argparse.Namespace) -> float:
    """Dev accuracy of the task after the pipeline of a variant; stages that variants share are run once."""
    start = bert(args) if variant.from_bert else None
    if variant.coco is not None:
        changed = "_".join([*variant.coco, *([] if variant.from_bert else ["no_bert"])]) or "full"
        folder = args.output_dir / f"coco_{changed}"
        changes = {**MASKED, **variant.coco, "init_from": start and str(start)}
        run_once(
            pretraining_task,
            corpus_args(PretrainingArgs, folder, max_steps=args.max_steps or COCO_STEPS, **changes),
        )
        start = folder / "best"
    build, args_class, fields = TASKS[args.task]
    folder = args.output_dir / args.task / "".join(c if c.isalnum() else "_" for c in variant.name)
    steps = args.max_steps or FINE_TUNING_STEPS
    run = corpus_args(args_class, folder, init_from=str(start), max_steps=steps, **fields, **variant.task)
    return run_once(build, run, evaluations=4)["metric"]


def bert(args: argparse.Namespace) -> Path:
    """Folder of the stand-in for BERT, trained on masked words of the questions of the corpus, without images."""
    folder = args.output_dir / "bert"
    steps = args.max_steps or BERT_STEPS
    changes = {"stage": "vqa", "text_only": True, "max_steps": steps, **MASKED}
    run_once(pretraining_task, corpus_args(PretrainingArgs, folder, **changes))
    return folder / "best"


if __name__ == "__main__":
    main()
