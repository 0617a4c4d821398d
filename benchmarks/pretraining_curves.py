"""What each pre-training stage contributes to each task: fine-tuning curves at equal steps on the embedded corpus, two seeds.

    python benchmarks/pretraining_curves.py --output_dir runs/curves        # about an hour on one CPU core

Each task starts from scratch, from the COCO stage, from the COCO stage followed by the stage on the task's own text, and from a
VQA model, which was trained on other texts about the same images. Writes docs/pretraining_curves.png and
benchmarks/pretraining_curves.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stages import TASKS, corpus_args, run_once

from modeling_visualbert.tasks.pretraining import PretrainingArgs, pretraining_task

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1)
COCO_STEPS, STAGE_STEPS, VQA_STEPS, FINE_TUNING_STEPS = 300, 100, 400, 200
MASKED = {"mlm_probability": 0.3}  # as in examples/recipes/pretraining_corpus.yaml
STARTS = ("scratch", "COCO", "COCO + task", "VQA")
COLORS = {"scratch": "tab:gray", "COCO": "tab:blue", "COCO + task": "tab:green", "VQA": "tab:orange"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--max_steps", type=int, help="of every run, for a quick look")
    args = parser.parse_args()
    curves: dict[tuple[str, str], list[list[tuple[int, float]]]] = {}
    for seed in SEEDS:
        folder = args.output_dir / f"seed{seed}"
        starts: dict[str, Path | None] = {"scratch": None, "COCO": pretrain(folder / "coco", "coco", None, seed, args)}
        starts["VQA"] = fine_tune_vqa(folder / "vqa_start", seed, args)
        for name in TASKS:
            starts["COCO + task"] = pretrain(folder / f"stage_{name}", name, starts["COCO"], seed, args)
            for start in STARTS:
                if (name, start) != ("vqa", "VQA"):
                    run = folder / f"{name}_from_{start.replace(' + ', '_').lower()}"
                    curves.setdefault((name, start), []).append(fine_tune(run, name, starts[start], seed, args))
    if args.max_steps is None:
        plot(curves, ROOT / "docs" / "pretraining_curves.png")
        (ROOT / "benchmarks" / "pretraining_curves.md").write_text(table(curves), encoding="utf-8")
    print(table(curves))


def pretrain(folder: Path, stage: str, start: Path | None, seed: int, args: argparse.Namespace) -> Path:
    """Folder of the weights after a pre-training stage."""
    steps = args.max_steps or (COCO_STEPS if stage == "coco" else STAGE_STEPS)
    changes = {"stage": stage, "seed": seed, "max_steps": steps, "init_from": start and str(start), **MASKED}
    run_once(pretraining_task, corpus_args(PretrainingArgs, folder, **changes))
    return folder / "best"


def fine_tune_vqa(folder: Path, seed: int, args: argparse.Namespace) -> Path:
    """Folder of a VQA model, another possible starting point."""
    build, args_class, _ = TASKS["vqa"]
    run_once(build, corpus_args(args_class, folder, seed=seed, max_steps=args.max_steps or VQA_STEPS))
    return folder / "best"


def fine_tune(
    folder: Path, name: str, start: Path | None, seed: int, args: argparse.Namespace
) -> list[tuple[int, float]]:
    """Dev curve of a task from a starting point."""
    build, args_class, changes = TASKS[name]
    changes = {**changes, "seed": seed, "max_steps": args.max_steps or FINE_TUNING_STEPS}
    run_args = corpus_args(args_class, folder, init_from=start and str(start), **changes)
    return run_once(build, run_args, evaluations=6)["curve"]


def plot(curves: dict[tuple[str, str], list[list[tuple[int, float]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(TASKS), figsize=(4 * len(TASKS), 3.6), layout="constrained")
    for axis, name in zip(axes, TASKS, strict=True):
        for start in STARTS:
            for seed, curve in enumerate(curves.get((name, start), ())):
                label = start if seed == 0 else None
                axis.plot(
                    *zip(*curve, strict=True), "o-" if seed == 0 else "o--", color=COLORS[start], label=label, ms=3
                )
        axis.set(title=name, xlabel="fine-tuning step", ylabel="dev metric (%)")
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def table(curves: dict[tuple[str, str], list[list[tuple[int, float]]]]) -> str:
    """First and last point of every curve, for both seeds."""
    rows = ["| task | start | early (seed 0 / 1) | end (seed 0 / 1) |", "|---|---|---|---|"]
    for (name, start), seeds in curves.items():
        early = " / ".join(f"{curve[0][1]:.1f}" for curve in seeds)
        end = " / ".join(f"{curve[-1][1]:.1f}" for curve in seeds)
        rows.append(f"| {name} | {start} | {early} | {end} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
