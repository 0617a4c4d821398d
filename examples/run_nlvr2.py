"""Fine-tune VisualBERT on NLVR2, or on the embedded corpus if no data folder is given.

    accelerate launch examples/run_nlvr2.py --output_dir runs/nlvr2
    accelerate launch examples/run_nlvr2.py --output_dir runs/nlvr2_full --recipe examples/recipes/nlvr2_finetune.yaml \\
        --data_dir data/nlvr2 --features_dir data/nlvr2_regions --init_from visualbert-nlvr2-pre

On the embedded corpus it starts from `runs/vqa/best` (`make vqa`). Writes the trained model to <output_dir>/best and, beside it,
metrics.json, predictions_<split>.jsonl, results_<split>.csv for the official script, log.jsonl, curves.png and examples.png.
"""

from pathlib import Path

from modeling_visualbert.cli.errors import run_script
from modeling_visualbert.tasks.common import reads_corpus
from modeling_visualbert.tasks.nlvr2 import Nlvr2Args, nlvr2_task
from modeling_visualbert.tasks.run import run_task
from modeling_visualbert.training.accelerator import end_run
from modeling_visualbert.training.args import parse_args

CORPUS_RECIPE = Path(__file__).parent / "recipes" / "nlvr2_corpus.yaml"


def main() -> None:
    args = parse_args(Nlvr2Args, __doc__.split("\n")[0], recipe_without_data=CORPUS_RECIPE)
    *_, accelerator = run_task(nlvr2_task, args, text_baseline=reads_corpus(args) and not args.text_only)
    end_run(accelerator)


if __name__ == "__main__":
    run_script(main)
