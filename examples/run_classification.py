"""Fine-tune VisualBERT to give an image (or two) with a text one of any number of labels; without data, on the embedded corpus.

    accelerate launch examples/run_classification.py --output_dir runs/classification
    accelerate launch examples/run_classification.py --output_dir runs/memes --data_dir data/hateful_memes \\
        --dev_split dev_seen --test_split test_seen --best_metric auroc --class_weights balanced \\
        --init_from google-bert/bert-base-uncased --grid_backbone microsoft/resnet-50
    accelerate launch examples/run_classification.py --output_dir runs/own --train_file data/posts.csv --images_dir data \\
        --init_from google-bert/bert-base-uncased --grid_backbone microsoft/resnet-50

The embedded corpus has entailment in the format of SNLI-VE; the run starts from `runs/vqa/best` (`make vqa`). Otherwise it reads
one's own tables (columns image, text, label) and the files of Hateful Memes and SNLI-VE as they are published. Writes the trained
model to <output_dir>/best and, beside it, metrics.json, predictions_<split>.jsonl, log.jsonl, curves.png, examples.png.
"""

from pathlib import Path

from modeling_visualbert.cli.errors import run_script
from modeling_visualbert.tasks.classification import ClassificationArgs, classification_task, majority_baseline
from modeling_visualbert.tasks.common import reads_corpus
from modeling_visualbert.tasks.run import run_task
from modeling_visualbert.training.accelerator import end_run
from modeling_visualbert.training.args import parse_args

CORPUS_RECIPE = Path(__file__).parent / "recipes" / "classification_corpus.yaml"


def main() -> None:
    args = parse_args(ClassificationArgs, __doc__.split("\n")[0], recipe_without_data=CORPUS_RECIPE)
    corpus = reads_corpus(args) and not args.text_only
    *_, accelerator = run_task(classification_task, args, text_baseline=corpus, baselines=majority_baseline)
    end_run(accelerator)


if __name__ == "__main__":
    run_script(main)
