"""Fine-tune VisualBERT on VQA v2, or on the embedded corpus if no data folder is given.

    accelerate launch examples/run_vqa.py --output_dir runs/vqa
    accelerate launch examples/run_vqa.py --output_dir runs/vqa2 --recipe examples/recipes/vqa_finetune.yaml \\
        --data_dir data/vqa2 --train_split train2014 --dev_split val2014 --features_dir data/regions \\
        --init_from visualbert-vqa-pre

Writes the trained model to <output_dir>/best and, beside it, metrics.json, predictions_<split>.jsonl, results_<split>.json for
the VQA evaluation server, log.jsonl, TensorBoard logs, curves.png and examples.png.
"""

from pathlib import Path

from modeling_visualbert.cli.errors import run_script
from modeling_visualbert.tasks.common import reads_corpus
from modeling_visualbert.tasks.run import run_task
from modeling_visualbert.tasks.vqa import VqaArgs, majority_baselines, vqa_task
from modeling_visualbert.training.accelerator import end_run
from modeling_visualbert.training.args import parse_args

CORPUS_RECIPE = Path(__file__).parent / "recipes" / "vqa_corpus.yaml"


def main() -> None:
    args = parse_args(VqaArgs, __doc__.split("\n")[0], recipe_without_data=CORPUS_RECIPE)
    corpus = reads_corpus(args) and not args.text_only
    _, _, accelerator = run_task(
        vqa_task,
        args,
        text_baseline=corpus,
        baselines=(lambda task, split: majority_baselines(task.splits["train"], task.splits[split]))
        if corpus
        else None,
    )
    if accelerator.is_main_process and corpus:
        print(f"try: visualbert ask --model {args.output_dir}/best IMAGE QUESTION")
    end_run(accelerator)


if __name__ == "__main__":
    run_script(main)
