"""Score a checkpoint of any task on a split, or predict where there are no labels, on any number of processes and machines.

    accelerate launch examples/evaluate.py --model runs/vqa/best --output_dir runs/vqa_test
    accelerate launch --multi_gpu --num_processes 8 examples/evaluate.py --model uclanlp/visualbert-vqa \\
        --data_dir data/vqa2 --split test2015 --features_dir data/regions --output_dir runs/vqa_test2015 --mixed_precision bf16

Writes metrics.json, predictions_<split>.jsonl and, for VQA, NLVR2 and both models of VCR, results_<split>.json or .csv for the
evaluation server. `visualbert evaluate` does the same in one process; `visualbert evaluate --help` lists all options.
"""

import sys

from modeling_visualbert.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
