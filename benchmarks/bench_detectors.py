"""Region detectors of published size with random weights: time and peak memory per image, and which layers take the time.

    python benchmarks/bench_detectors.py --threads 2

Each network runs in its own process, so that peak memory is measured separately. "ResNet" means all convolutions of the ResNet
with their normalisation, "other layers" convolutions and linear layers of FPN, RPN and heads, "the rest" everything else:
activations, anchors, box deltas, NMS, RoI pooling, selection. Shares are of processor time. "In bf16" is processor time
too, under autocast, as `--bf16` computes.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from modeling_visualbert import RegionDetector, RegionDetectorConfig
from modeling_visualbert.hub_code.detection_ops import nms, roi_align, roi_pool
from modeling_visualbert.hub_code.modeling_region_detector import NormedConv

CASES = {
    "R-101-C4, 600 x 800": ("bottom_up_attention_vg", (600, 800)),
    "X-101-FPN, 800 x 1066": ("pythia_x101", (800, 1088)),  # padded to a multiple of 32, as always
}


class Stopwatch:
    """Sums the processor time inside the layers of a model (wall time would include other processes)."""

    def __init__(self, model: nn.Module):
        self.seconds = {"ResNet": 0.0, "other": 0.0}
        self.started = 0.0
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                kind = "ResNet" if isinstance(module, NormedConv) else "other"
                module.register_forward_pre_hook(lambda *_: setattr(self, "started", time.process_time()))
                module.register_forward_hook(lambda *_, kind=kind: self._stop(kind))

    def _stop(self, kind: str) -> None:
        self.seconds[kind] += time.process_time() - self.started


@torch.inference_mode()
def run_network(name: str, repeats: int) -> str:
    """A row of the first table."""
    preset, (height, width) = CASES[name]
    torch.manual_seed(0)
    model = RegionDetector(getattr(RegionDetectorConfig, preset)()).eval()
    weights = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pixels = torch.randn(1, 3, height, width) * 60
    model(pixels)
    times, processor = [], time.process_time()
    for _ in range(repeats):
        start = time.perf_counter()
        found = model(pixels)
        times.append(time.perf_counter() - start)
    processor = (time.process_time() - processor) / repeats
    with torch.autocast("cpu", torch.bfloat16):
        model(pixels)
        in_bf16 = time.process_time()
        model(pixels)
        in_bf16 = time.process_time() - in_bf16
    # Layers that somebody listens to are computed by torch's own call, so the shares are those of another pass.
    stopwatch, listened = Stopwatch(model), time.process_time()
    model(pixels)
    listened = time.process_time() - listened
    shares = [seconds / listened for seconds in stopwatch.seconds.values()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cells = [
        f"{min(times):.2f}",
        f"{processor:.2f}",
        f"{in_bf16:.2f}",
        *(f"{share:.0%}" for share in (*shares, 1 - sum(shares))),
    ]
    return f"| {name} | {' | '.join(cells)} | {weights:.0f} | {peak:.0f} | {found['visual_embeds'].shape[1]} |"


def milliseconds(call: Callable[[], object], repeats: int = 9) -> float:
    """Median time of a call, after one warm-up call."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def boxes(count: int, clusters: int, generator: torch.Generator) -> torch.Tensor:
    """Boxes of a 600 x 800 image, clustered around a few objects like proposals, or scattered if there are as many objects."""
    centers = torch.rand(clusters, 2, generator=generator) * torch.tensor([800.0, 600.0])
    sizes = torch.exp(torch.rand(clusters, 2, generator=generator) * 2.5 + 3)
    own = torch.randint(clusters, (count,), generator=generator)
    jitter = torch.randn(2, count, 2, generator=generator)
    center, size = centers[own] + jitter[0] * sizes[own] * 0.1, sizes[own] * torch.exp(jitter[1] * 0.15)
    return torch.cat((center - size / 2, center + size / 2), dim=1)


@torch.inference_mode()
def operations() -> dict[str, float]:
    """Milliseconds of single operations."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for kind, clusters in (("crowded", 150), ("scattered", 6000)):
        corners, scores = boxes(6000, clusters, generator), torch.rand(6000, generator=generator)
        for threshold in (0.5, 0.7):
            found[f"NMS of 6000 {kind} boxes, IoU {threshold}"] = milliseconds(lambda: nms(corners, scores, threshold))  # noqa: B023
    rois = torch.cat((torch.zeros(1000, 1), boxes(1000, 150, generator)), dim=1)
    maps = torch.randn(1, 256, 200, 272, generator=generator)
    last = maps.contiguous(memory_format=torch.channels_last)
    found["RoIAlign 1000 x 256 x 7 x 7, 2 samples"] = milliseconds(lambda: roi_align(maps, rois, 7, 0.25, 2))
    found["the same, channels_last as in the detectors"] = milliseconds(lambda: roi_align(last, rois, 7, 0.25, 2))
    found["RoIAlign 1000 x 256 x 7 x 7 at 1/16, adaptive"] = milliseconds(
        lambda: roi_align(last[:, :, :38, :50], rois, 7, 1 / 16, 0)
    )
    maps = torch.randn(1, 1024, 38, 50, generator=generator).contiguous(memory_format=torch.channels_last)
    found["RoIPool 300 x 1024 x 14 x 14"] = milliseconds(
        lambda: [roi_pool(maps, some, (14, 14), 1 / 16) for some in rois[:300].split(48)]
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=sorted(CASES), help=argparse.SUPPRESS)  # one network, in its own process
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        print(run_network(args.only, args.repeats))
        return
    print(f"{args.threads} threads, torch {torch.__version__}\n")
    print(
        "| network | seconds | processor seconds | in bf16 | ResNet | other layers | the rest | MiB loaded | MiB peak | regions |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in CASES:
        command = [sys.executable, __file__, "--only", name, "--threads", str(args.threads)]
        print(
            subprocess.run(
                [*command, "--repeats", str(args.repeats)], check=True, capture_output=True, text=True
            ).stdout.strip()
        )
    print("\n| operation | milliseconds |\n|---|---|")
    for name, value in operations().items():
        print(f"| {name} | {value:.1f} |")


if __name__ == "__main__":
    main()
