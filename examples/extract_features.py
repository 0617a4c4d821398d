"""Find the regions of many images and store them, with as many processes and machines as there are.

    accelerate launch examples/extract_features.py images/ regions/ --region_encoder runs/detector/region_encoder
    accelerate launch --multi_gpu --num_processes 8 examples/extract_features.py train2014/ regions/ \\
        --region_encoder runs/detector/region_encoder --ids number --batch_size 16 --num_workers 8

Interrupted at any point, the same command goes on, and it tries again the images that could not be read before (failed.jsonl).
The result is what `--features_dir regions/` of the run_*.py scripts reads; COCO, VQA and Flickr30k call their images by number
(`--ids number`), NLVR2 by name. In one process `visualbert extract` is the same; `visualbert extract --help` lists all options.
"""

import sys

from modeling_visualbert.cli import main

if __name__ == "__main__":
    sys.exit(main(["extract", *sys.argv[1:]]))
