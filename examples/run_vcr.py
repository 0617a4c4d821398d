"""Fine-tune VisualBERT on VCR, or on the embedded corpus if no data folder is given: Q->A, then QA->R, then both as Q->AR.

    accelerate launch examples/run_vcr.py --output_dir runs/vcr
    accelerate launch examples/run_vcr.py --output_dir runs/vcr_answer --subtask answer \\
        --recipe examples/recipes/vcr_finetune_answer.yaml --data_dir data/vcr --features_dir data/vcr_regions \\
        --init_from visualbert-vcr-pre

On the embedded corpus it starts from `runs/vqa/best` (`make vqa`). Writes the trained models to <output_dir>/answer/best and
<output_dir>/rationale/best with the usual files beside them, and joint.json with the accuracies and leaderboard_<split>.csv to
<output_dir>. With `--subtask answer` or `rationale`, only that sub-task is trained, in <output_dir> itself; `--score_with DIR`
then combines it with the other sub-task, trained earlier in DIR.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from modeling_visualbert.cli.errors import run_script
from modeling_visualbert.disk import write_json
from modeling_visualbert.tasks.common import reads_corpus
from modeling_visualbert.tasks.run import run_task
from modeling_visualbert.tasks.tables import reads_table
from modeling_visualbert.tasks.vcr import SUBTASKS, VcrArgs, joint_scores, rationales_of_every_answer, vcr_task
from modeling_visualbert.training.accelerator import end_run
from modeling_visualbert.training.args import parse_args
from modeling_visualbert.training.report import table

CORPUS_RECIPE = Path(__file__).parent / "recipes" / "vcr_corpus.yaml"


def main() -> None:
    args = parse_args(VcrArgs, __doc__.split("\n")[0], recipe_without_data=CORPUS_RECIPE)
    output_dir = Path(args.output_dir)
    if args.subtask != "both":
        folders = {args.subtask: output_dir}
    else:
        folders = {subtask: output_dir / subtask for subtask in SUBTASKS}
    for subtask, folder in folders.items():
        part = replace(args, subtask=subtask, output_dir=str(folder))
        if part.hub_model_id is not None and args.subtask == "both":
            part.hub_model_id += f"-{subtask}"  # two models, two repositories
        baseline = reads_corpus(args) and not args.text_only
        task, _, accelerator = run_task(partial(vcr_task, labels_of=args.subtask), part, text_baseline=baseline)
        if subtask == "rationale" and not reads_table(args):
            rationales_of_every_answer(task, part, accelerator)
    if args.score_with is not None:
        folders[next(other for other in SUBTASKS if other != args.subtask)] = Path(args.score_with)
    if len(folders) == len(SUBTASKS) and accelerator.is_main_process:
        score_both(folders, task, output_dir)
    end_run(accelerator)


def score_both(folders: dict[str, Path], task, output_dir: Path) -> None:
    """Joint accuracy and leaderboard file of every split, from the predictions of both sub-tasks."""
    joint = {
        split: joint_scores(folders["answer"], folders["rationale"], task.splits[split], split, output_dir)
        for split in task.splits
        if split != "train"
    }
    write_json(output_dir / "joint.json", joint)
    split, scores = list(joint.items())[-1]
    print(f"\n{table([[split, 'VisualBERT'], *([name, f'{value:.1f}'] for name, value in scores.items())])}")


if __name__ == "__main__":
    run_script(main)
