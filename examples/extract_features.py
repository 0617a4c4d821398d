"""Compute the regions of many images and store them, on any number of processes and machines.

    accelerate launch examples/extract_features.py images/ regions/ --region_encoder runs/detector/region_encoder
    accelerate launch --multi_gpu --num_processes 8 examples/extract_features.py train2014/ regions/ \\
        --region_encoder runs/detector/region_encoder --ids number --batch_size 16 --num_workers 8
    accelerate launch examples/extract_features.py images/ cells/ --grid_backbone openai/clip-vit-base-patch16

After an interruption, the same command resumes; it also retries the images that could not be read before (failed.jsonl). The
run_*.py scripts read the result with `--features_dir regions/`. COCO, VQA and Flickr30k identify images by number
(`--ids number`), NLVR2 by name. `visualbert extract` does the same in one process; `visualbert extract --help` lists all options.
"""

import sys

from modeling_visualbert.cli import main

if __name__ == "__main__":
    sys.exit(main(["extract", *sys.argv[1:]]))
