"""Pre-train VisualBERT on masked words and image-text match.

    accelerate launch examples/run_pretraining.py --output_dir runs/pretraining
    accelerate launch examples/run_pretraining.py --output_dir runs/coco_vqa --recipe examples/recipes/pretrain_coco_vqa.yaml \\
        --data_dir data/coco --train_split train2014+val2014 --dev_split minival --features_dir data/regions \\
        --exclude_images data/minival_ids.txt --init_from bert-base-uncased
    accelerate launch examples/run_pretraining.py --output_dir runs/vqa_pre --recipe examples/recipes/pretrain_vqa.yaml \\
        --data_dir data/vqa2 --features_dir data/regions --init_from runs/coco_vqa/best

On the embedded corpus it starts from `runs/flickr30k/best` (`make flickr30k`). Writes the trained model to <output_dir>/best and,
beside it, metrics.json, predictions_<split>.jsonl, log.jsonl, curves.png and examples.png.
"""

from pathlib import Path

from modeling_visualbert.cli.errors import run_script
from modeling_visualbert.tasks.common import reads_corpus
from modeling_visualbert.tasks.pretraining import PretrainingArgs, pretraining_task
from modeling_visualbert.tasks.run import run_task
from modeling_visualbert.training.accelerator import end_run
from modeling_visualbert.training.args import parse_args

CORPUS_RECIPE = Path(__file__).parent / "recipes" / "pretraining_corpus.yaml"


def main() -> None:
    args = parse_args(PretrainingArgs, __doc__.split("\n")[0], recipe_without_data=CORPUS_RECIPE)
    *_, accelerator = run_task(pretraining_task, args, text_baseline=reads_corpus(args) and not args.text_only)
    end_run(accelerator)


if __name__ == "__main__":
    run_script(main)
