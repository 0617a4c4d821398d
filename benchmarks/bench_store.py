"""The feature store compared with common file formats: random reads, opening, batches and training steps.

python benchmarks/bench_store.py [--device cuda --num_workers 4 --batch_size 64]
python benchmarks/bench_store.py --batches      # only the batches, on one thread; written to benchmarks/results/batches.json

All files are read once before they are timed, so reads come from the page cache. Images are read in random order; the best of
five rounds counts. The TSV gets an index of its lines, which it lacks by itself.
"""

import argparse
import base64
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from bench_stock import hardware
from torch.utils.data import DataLoader

from modeling_visualbert import VisualBertConfig, VisualBertForQuestionAnswering, VisualBertProcessor
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.features.batches import pad_stored, processor_arguments
from modeling_visualbert.features.store import FeatureStore, write_store

REGIONS, DIM, WORDS, ANSWERS = 100, 2048, 14, 3129


def features(number: int) -> np.ndarray:
    """Features of an image, float16 [REGIONS, DIM]."""
    return np.random.default_rng(number).random((REGIONS, DIM), dtype=np.float32).astype(np.float16)


def images(count: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Regions of images with ids as in COCO."""
    return ((f"{number:012d}", {"visual_embeds": features(number)}) for number in range(count))


def microseconds(ways: dict[str, Callable[[int], object]], order: Sequence[int]) -> dict[str, float]:
    """Time of one read in each format: the best of five rounds over all images, in turns."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(5):
        for name, read in ways.items():
            start = time.perf_counter()
            for number in order:
                read(number)
            best[name] = min(best[name], 1e6 * (time.perf_counter() - start) / len(order))
    return best


def compare_reads(folder: Path, count: int) -> None:
    """Random reads from the store, from one .npy for each image, and from the TSV."""
    write_store(folder / "store", images(count), DIM, "benchmark", "float16")
    offsets = []
    with (folder / "a.tsv").open("wb") as tsv:
        for number in range(count):
            array = features(number)
            np.save(folder / f"{number}.npy", array)
            np.save(folder / f"{number}.f32.npy", array.astype(np.float32))
            offsets.append(tsv.tell())
            # The usual TSV files contain float32.
            tsv.write(b"%d\t%d\t%s\n" % (number, REGIONS, base64.b64encode(array.astype(np.float32).tobytes())))
    store, lines = FeatureStore(folder / "store"), (folder / "a.tsv").open("rb")

    def from_tsv(number: int) -> torch.Tensor:
        lines.seek(offsets[number])
        data = base64.b64decode(lines.readline().split(b"\t")[2])
        return torch.from_numpy(np.frombuffer(data, np.float32).reshape(REGIONS, DIM).copy())

    ids = [f"{number:012d}" for number in range(count)]
    arrays: dict[str, Callable[[int], object]] = {
        "store, copied": lambda n: store.arrays(ids[n])["visual_embeds"].copy(),
        "store, view of the file": lambda n: store.arrays(ids[n])["visual_embeds"],
        "np.load": lambda n: np.load(folder / f"{n}.npy"),
    }
    tensors: dict[str, Callable[[int], object]] = {
        "store": lambda n: store[ids[n]]["visual_embeds"],
        "np.load of float16": lambda n: torch.from_numpy(np.load(folder / f"{n}.npy")).float(),
        "np.load of float32": lambda n: torch.from_numpy(np.load(folder / f"{n}.f32.npy")),
        "TSV": from_tsv,
    }
    order = np.random.default_rng(0).permutation(count).tolist()
    for number in order:
        assert torch.equal(from_tsv(number), store[ids[number]]["visual_embeds"])
    print(f"\n{count} images of {REGIONS} x {DIM}\n")
    print("| read | way | microseconds | reads/s | times the store's |\n|---|---|---|---|---|")
    for kind, ways in (("float16 array", arrays), ("float32 tensor", tensors)):
        times = microseconds(ways, order)
        first = next(iter(times.values()))
        for name, taken in times.items():
            print(f"| {kind} | {name} | {taken:.1f} | {1e6 / taken:,.0f} | {taken / first:.1f} |")


OPEN = """
import json, resource, sys, time
from modeling_visualbert.features.store import FeatureStore
def memory(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
before, start = memory(), time.perf_counter()
store = FeatureStore(sys.argv[1])
opened, after = time.perf_counter() - start, memory()
store["000000077777"]
first = time.perf_counter() - start - opened
for number in range(0, 120000, 100): store[f"{number:012d}"]
print(json.dumps([len(store), 1e3 * opened, after - before, 1e3 * first, memory() - before]))
"""


def open_large_store(folder: Path, count: int = 120_000) -> None:
    """Time to open a store with as many images as COCO has, in a separate process."""
    row = np.zeros((2, 8), np.float32)
    write_store(
        folder / "large", ((f"{n:012d}", {"visual_embeds": row}) for n in range(count)), 8, "benchmark", "float16"
    )
    done = subprocess.run([sys.executable, "-c", OPEN, folder / "large"], check=True, capture_output=True, text=True)
    images, opened, memory, first, later = json.loads(done.stdout)
    print(
        f"\n| images | opening, ms | memory added, MiB | first read, ms | memory after 1200 reads all over it, MiB |\n"
        f"|---|---|---|---|---|\n| {images:,} | {opened:.1f} | {memory:.1f} | {first:.1f} | {later:.1f} |"
    )


def batch_ways(folder: Path, regions: int, size: int = 64) -> dict[str, Callable[[int], object]]:
    """Ways to make a training batch of questions and regions; the store's is what training scripts do."""
    generator, tokenizer = np.random.default_rng(0), corpus_tokenizer()
    count = 4 * size
    found = {n: generator.random((regions, DIM), dtype=np.float32).astype(np.float16) for n in range(count)}
    write_store(folder / "store", ((n, {"visual_embeds": found[n]}) for n in found), DIM, "benchmark", "float16")
    for number, array in found.items():
        np.save(folder / f"{number}.npy", array)
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    questions = [" ".join(generator.choice(words, generator.integers(6, 14))) + "?" for _ in range(count)]
    processor = VisualBertProcessor(tokenizer=tokenizer, region_dim=DIM)
    store = FeatureStore(folder / "store")

    def numbers(batch: int) -> range:
        return range(size * (batch % 4), size * (batch % 4) + size)

    def texts(batch: int) -> list[str]:
        return [questions[n] for n in numbers(batch)]

    def from_files(batch: int) -> list[torch.Tensor]:
        return [torch.from_numpy(np.load(folder / f"{n}.npy")) for n in numbers(batch)]

    return {
        "store": lambda b: processor(text=texts(b), **processor_arguments([store.arrays(n) for n in numbers(b)])),
        "store, each picture through the processor": lambda b: processor(
            images=[{"visual_embeds": store[n]["visual_embeds"]} for n in numbers(b)], text=texts(b)
        ),
        ".npy files, each picture through the processor": lambda b: processor(
            images=[{"visual_embeds": array} for array in from_files(b)], text=texts(b)
        ),
        "store, regions alone": lambda b: pad_stored([[store.arrays(n)] for n in numbers(b)]),
        ".npy files, float32, regions alone": lambda b: torch.stack([array.float() for array in from_files(b)]),
        ".npy files, float16, regions alone": lambda b: torch.stack(from_files(b)),
    }


def compare_batches(folder: Path) -> list[dict[str, object]]:
    """Processor time of batches of 64 questions with regions, in milliseconds: the least and the median of 40."""
    records = []
    print("\n| batch | way | least ms | median ms | times the store's |\n|---|---|---|---|---|")
    for regions in (36, REGIONS):
        (folder / str(regions)).mkdir()
        ways = batch_ways(folder / str(regions), regions)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(41):
            for name, make in ways.items():
                start = time.process_time()
                make(number)
                times[name].append(1e3 * (time.process_time() - start))
        for name, taken in times.items():
            taken = sorted(taken[1:])  # the first one maps the files
            first = "store, regions alone" if name.endswith("alone") else "store"
            ratio = taken[len(taken) // 2] / sorted(times[first][1:])[len(taken) // 2]
            batch = f"64 x ({regions} x {DIM})"
            record = {"batch": batch, "way": name, "least_ms": taken[0], "median_ms": taken[len(taken) // 2]}
            records.append({**record, "times_the_store": ratio})
            print(f"| {batch} | {name} | {taken[0]:.1f} | {taken[len(taken) // 2]:.1f} | {ratio:.1f} |")
    return records


def compare_steps(store: FeatureStore, args: argparse.Namespace) -> None:
    """Training steps with regions from the store and with random tensors, in turns in one process."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    sizes = {"num_hidden_layers": args.layers, "visual_embedding_dim": DIM, "num_labels": ANSWERS}
    model = VisualBertForQuestionAnswering(VisualBertConfig(**sizes)).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids = list(store) * (1 + (args.steps + 8) * args.batch_size // len(store))
    loader = DataLoader(
        ids,
        args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.num_workers,
        pin_memory=device.type == "cuda",
        collate_fn=lambda batch: pad_stored([[store.arrays(image_id)] for image_id in batch]),
    )
    text = {
        "input_ids": torch.randint(1000, 30000, (args.batch_size, WORDS), device=device),
        "labels": torch.rand(args.batch_size, ANSWERS, device=device),
    }
    fixed = {
        "visual_embeds": torch.randn(args.batch_size, REGIONS, DIM, device=device),
        "visual_attention_mask": torch.ones(args.batch_size, REGIONS, dtype=torch.long, device=device),
    }
    batches = iter(loader)

    def step(from_store: bool) -> float:
        start = time.perf_counter()
        regions = {k: v.to(device, non_blocking=True) for k, v in next(batches).items()} if from_store else fixed
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(**text, **regions).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        return time.perf_counter() - start

    for _ in range(2):
        step(False), step(True)
    alone = []
    for _ in range(5):
        start = time.perf_counter()
        next(batches)
        alone.append(time.perf_counter() - start)
    times = {way: [] for way in (False, True)}
    for _ in range(args.steps):
        for way, taken in times.items():
            taken.append(step(way))
    random, stored = (float(np.median(times[way])) for way in (False, True))
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(
        f"\n{parameters:.0f} M parameters, batches of {args.batch_size} x ({WORDS} words + {REGIONS} regions), {device}, "
        f"{args.num_workers} loader processes, median of {args.steps} steps\n\n"
        f"| step with random tensors, ms | step from the store, ms | ratio | a batch alone, ms |\n|---|---|---|---|\n"
        f"| {1e3 * random:.1f} | {1e3 * stored:.1f} | {stored / random:.3f} | {1e3 * min(alone):.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batches", action="store_true", help="measure batches only")
    args = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, NumPy {np.__version__}"
    )
    if args.batches:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as name:
            batches = compare_batches(Path(name))
        record = {"date": datetime.date.today().isoformat(), **hardware(), "clock": "processor", "batches": batches}
        (Path(__file__).parent / "results" / "batches.json").write_text(json.dumps(record, indent=1) + "\n")
        return
    with tempfile.TemporaryDirectory() as name:
        compare_reads(Path(name), args.pictures)
        open_large_store(Path(name))
        compare_steps(FeatureStore(Path(name) / "store"), args)
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
