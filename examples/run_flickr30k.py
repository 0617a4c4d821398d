"""Fine-tune VisualBERT on Flickr30k Entities, or on the embedded corpus if no data folder is given.

    accelerate launch examples/run_flickr30k.py --output_dir runs/flickr30k
    accelerate launch examples/run_flickr30k.py --output_dir runs/flickr30k_full \\
        --recipe examples/recipes/flickr30k_finetune.yaml --data_dir data/flickr30k_entities \\
        --features_dir data/flickr30k_regions --init_from visualbert-flickr30k-pre

Writes the trained model to <output_dir>/best and, beside it, metrics.json (recall at 1, 5, 10 and their upper bound),
predictions_<split>.jsonl, log.jsonl, curves.png and examples.png.
"""

from pathlib import Path

from modeling_visualbert.cli.errors import run_script
from modeling_visualbert.tasks.flickr30k import Flickr30kArgs, confidence_baseline, flickr30k_task
from modeling_visualbert.tasks.run import run_task
from modeling_visualbert.training.accelerator import end_run
from modeling_visualbert.training.args import parse_args
from modeling_visualbert.training.evaluation import read_predictions
from modeling_visualbert.training.task import Task

CORPUS_RECIPE = Path(__file__).parent / "recipes" / "flickr30k_corpus.yaml"


def main() -> None:
    args = parse_args(Flickr30kArgs, __doc__.split("\n")[0], recipe_without_data=CORPUS_RECIPE)
    output_dir = Path(args.output_dir)

    def baselines(task: Task, split: str) -> dict:
        predictions = read_predictions(output_dir / f"predictions_{split}.jsonl")
        return {"most confident region": confidence_baseline(predictions, task.splits[split])}

    *_, accelerator = run_task(flickr30k_task, args, baselines=baselines)
    end_run(accelerator)


if __name__ == "__main__":
    run_script(main)
