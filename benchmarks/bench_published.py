"""Published checkpoints and detectors of published size with random weights: memory to convert them, processor time to ask.

    python benchmarks/bench_published.py --folder /tmp/published

The files (2.5 GB, and as much again for what is made of them) are written once. Each measurement is a process of its own. Times
are processor time (user and system) of all threads; memory is the largest resident size, of which 0.4 GB are PyTorch and
`transformers`. Of a question, the detector's own forward pass and the import of PyTorch and `transformers` are told separately.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modeling_visualbert import RegionDetector, RegionDetectorConfig, VisualBertConfig, VisualBertForQuestionAnswering
from modeling_visualbert.convert.detector_families import FAMILIES

PICKLE, PTH = "FAST_RCNN_MLP_DIM2048_FPN_DIM512.pkl", "detectron_model.pth"
FURTHER = 10  # questions
REPEATS = 3  # the median of which is told
COMMAND = """
import json, os, resource, sys
from modeling_visualbert.cli import main
MODULE = "modeling_visualbert.hub_code.modeling_region_detector"
used = lambda: sum(os.times()[:2])
seconds = {"detector": 0.0}
def time_detector(forward):
    def timed(self, *args, **kwargs):
        start = used()
        found = forward(self, *args, **kwargs)
        seconds["detector"] += used() - start
        return found
    return timed
class Finder:  # to import the detector before the command does would change what is measured
    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(spec for spec in others if spec is not None)
        execute = spec.loader.exec_module
        def execute_and_time(module):
            execute(module)
            seconds["imports"] = used()  # PyTorch and transformers are among them
            module.RegionDetector.forward = time_detector(module.RegionDetector.forward)
        spec.loader.exec_module = execute_and_time
        return spec
sys.meta_path.insert(0, Finder())
status = main()  # with the arguments of this process, as the command
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
print(json.dumps({"status": status, "memory": memory, **seconds}), file=sys.stderr)
"""


class PickleOfPython2(pickle._Pickler):  # the Python implementation: the other one cannot be changed
    """Writes texts and bytes as Python 2 did, as byte strings."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        length = bytes([len(content)]) if len(content) < 256 else struct.pack("<i", len(content))
        self.write((b"U" if len(content) < 256 else b"T") + length + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def write_files(folder: Path) -> None:
    """Write a checkpoint, a tokenizer, Pythia's detector in both of its formats, and an image, unless they are there."""
    if (folder / "image.png").is_file():
        return
    torch.manual_seed(0)
    (folder / "vqa").mkdir(parents=True)
    config = VisualBertConfig(visual_embedding_dim=2048, num_labels=3129)
    told = config.to_dict() | {"architectures": ["VisualBertForQuestionAnswering"], "pad_token_id": 1}
    (folder / "vqa" / "config.json").write_text(json.dumps(told))
    torch.save(VisualBertForQuestionAnswering(config).state_dict(), folder / "vqa" / "pytorch_model.bin")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", "what", "is", "this"]
    words += [f"word{number}" for number in range(config.vocab_size - len(words))]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    preset = RegionDetectorConfig.pythia_x101()
    weights, families = RegionDetector(preset).state_dict(), {family.name: family for family in FAMILIES}
    names = families["maskrcnn"].original_names(weights, preset.depths)
    torch.save({"model": {old: weights[new] for new, old in names.items() if old is not None}}, folder / PTH)
    names = families["detectron"].original_names(weights, preset.depths)
    blobs = {old: weights[new].numpy() for new, old in names.items() if old is not None}
    blobs |= {f"{old}_momentum": np.ones_like(value) for old, value in blobs.items()}
    with (folder / PICKLE).open("wb") as file:
        PickleOfPython2(file, protocol=2).dump({"blobs": blobs})
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 480)).save(folder / "image.png")


def measure(folder: Path, *arguments: str) -> dict[str, float]:
    """Run `visualbert` with these arguments: status, peak memory in MB, processor time of the whole process (start and end
    included), of the detector, and until all is imported."""
    environment = {**os.environ, "MODELING_VISUALBERT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", COMMAND, *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(done.stderr.splitlines()[-1])
    if found["status"]:
        raise SystemExit(done.stderr)
    return {**found, "all": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def median_of(measured: list[dict[str, float]]) -> dict[str, float]:
    """The measurement with the median of the time beside the detector."""
    return sorted(measured, key=lambda found: found["all"] - found["detector"])[len(measured) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the files are, or are written to")
    folder = parser.parse_args().folder.resolve()
    writer = multiprocessing.Process(
        target=write_files, args=(folder,)
    )  # children inherit the peak memory of this process
    writer.start()
    writer.join()
    print("| file | MB | peak memory, MB | times the file | s |\n|---|---|---|---|---|")
    for name in (PICKLE, PTH):
        target = folder / f"{name}.converted"
        shutil.rmtree(target, ignore_errors=True)
        found, size = measure(folder, "convert", name, target.name), (folder / name).stat().st_size / 1e6
        print(f"| {name} | {size:.0f} | {found['memory']:.0f} | {found['memory'] / size:.1f} | {found['all']:.1f} |")
    ask = ("ask", "--model", "vqa", "--tokenizer", "tokenizer", "--region_encoder", PTH, "image.png")
    first = measure(folder, *ask, "what is this")
    print(f"\nask for the first time: {first['memory']:.0f} MB")
    questions = [f"word{i}" for i in range(1 + FURTHER)]
    one = median_of([measure(folder, *ask, questions[0]) for _ in range(REPEATS)])
    many = median_of([measure(folder, *ask, *questions) for _ in range(REPEATS)])
    own, own_of_many = (found["all"] - found["detector"] - found["imports"] for found in (one, many))
    print(f"one question in a new process: {one['imports'] + own:.2f} s beside the detector's {one['detector']:.1f} s")
    print(f"  of it importing PyTorch and transformers: {one['imports']:.2f} s; memory {one['memory']:.0f} MB")
    print(f"each further question: {(own_of_many - own) / FURTHER:.2f} s")


if __name__ == "__main__":
    main()
