"""Images per second of `visualbert extract`, from the files to the regions, beside the network alone.

    python benchmarks/bench_extract.py PHOTOS --grid_backbone FOLDER
    python benchmarks/bench_extract.py            # the detector of the embedded corpus, on its pictures

The ways take turns in one process; the best of `--rounds` counts. "Network alone" has its pixels ready.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from modeling_visualbert.corpus.build import CorpusConfig, build_corpus
from modeling_visualbert.corpus.vocabulary import ASSETS
from modeling_visualbert.features.extract import extract_regions, load_region_encoder, sample_sizes
from modeling_visualbert.features.images import list_images
from modeling_visualbert.hub_code.image_processing_visualbert import load_image
from modeling_visualbert.towers import open_tower


def ways(args: argparse.Namespace, folder: str) -> tuple[int, dict[str, Callable[[], object]]]:
    """How many images there are, and what is timed."""
    images = list(islice(list_images(folder), args.images))
    images *= max(1, args.images // len(images))
    if args.grid_backbone:
        encoder, processor = open_tower(args.grid_backbone, None, None, sample_sizes(path for _, path in images))
    else:
        encoder, processor = load_region_encoder(args.region_encoder or ASSETS / "shapes_detector")
    numbered = [(number, path) for number, (_, path) in enumerate(images)]
    size = args.batch_size
    pixels = [
        dict(processor([load_image(path) for _, path in numbered[start : start + size]], return_tensors="pt"))
        for start in range(0, min(len(numbered), 4 * size), size)
    ]
    repeats = -(-len(numbered) // (len(pixels) * size))

    def extract(num_workers: int) -> None:
        for _ in extract_regions(encoder, processor, numbered, size, progress=False, num_workers=num_workers):
            pass

    @torch.inference_mode()
    def network() -> None:
        for _ in range(repeats):
            for batch in pixels:
                encoder(batch["pixel_values"])

    workers = {f"{n} worker threads": lambda n=n: extract(n) for n in args.num_workers}
    return len(numbered), {**workers, "network alone": network}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", help="folder of images (default: pictures of the embedded corpus)")
    parser.add_argument("--grid_backbone")
    parser.add_argument("--region_encoder")
    parser.add_argument("--images", type=int, default=96, help="how many; they are repeated if there are fewer")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if args.folder is None:
            build_corpus(Path(name) / "corpus", CorpusConfig(train_scenes=100), progress=False)
        count, timed = ways(args, args.folder or f"{name}/corpus/images/train")
        best = dict.fromkeys(timed, float("inf"))
        for _ in range(args.rounds):
            for way, call in timed.items():
                start = time.perf_counter()
                call()
                best[way] = min(best[way], time.perf_counter() - start)
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {count} images, batches of {args.batch_size}\n"
    )
    print("| way | images/s |\n|---|---|")
    for way, seconds in best.items():
        print(f"| {way} | {count / seconds:.1f} |")


if __name__ == "__main__":
    main()
