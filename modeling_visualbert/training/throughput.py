"""How fast a run goes and what holds it up, for people and trackers; and a trace of a few steps for a viewer.

Nothing here waits for the device: the clock is read where the log reads the loss, which waits for all steps before it. Numbers
that depend on the clock are not in `log.jsonl`, which is equal for equal runs.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile, schedule

from ..hub_code.configuration_visualbert import VisualBertConfig
from ..system import peak_memory_bytes
from .task import Batch

logger = logging.getLogger(__name__)

# Multiplications and additions a second of dense matrices in bf16 or fp16, by a part of `torch.cuda.get_device_name()`: NVIDIA's
# data sheets, which often print the double, for sparse matrices. The first that fits counts.
PEAK_FLOPS = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}
PROFILE_WARMUP = 3  # steps before those of the trace: the first ones allocate memory and choose kernels


def forward_flops(config: VisualBertConfig, sequences: int, tokens: int, regions: int) -> int:
    """
    Multiplications and additions of the matrix products of `VisualBertModel.forward`, padding included, its pooler too; heads are
    left out. Appendix B of the PaLM paper (arXiv 2204.02311) counts in the same way, and a training step as three forward passes.

    Args:
        sequences: Number of sequences: examples, times the choices of multiple choice.
        tokens: Length of their text.
        regions: Number of their regions.
    """
    hidden, length = config.hidden_size, tokens + regions
    # Query, key, value and output; the two layers after them.
    dense = 4 * hidden**2 + 2 * hidden * config.intermediate_size
    layer = 2 * length * dense + 2 * 2 * length**2 * hidden
    projection = 2 * regions * config.visual_embedding_dim * hidden
    return sequences * (config.num_hidden_layers * layer + projection + 2 * hidden**2)


def peak_flops(accelerator: Accelerator) -> float | None:
    """What the device can do in a second in the precision of the run; None if that is not known."""
    if accelerator.device.type != "cuda" or accelerator.mixed_precision not in ("bf16", "fp16"):
        return None
    name = torch.cuda.get_device_name(accelerator.device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most MiB that this process has used: of the host, as far as the system counts them, and of its GPU."""
    used = peak_memory_bytes()
    memory = {} if used is None else {"peak_memory_mib": round(used / 2**20)}
    if device.type == "cuda":
        memory["peak_device_memory_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return memory


class Throughput:
    """Counts what the steps of this process take in, and tells rates over all processes at every entry of the log.

    Args:
        model: The task's own model, not wrapped.
        accelerator: Has the trackers.
        batch_size: Examples in a step, over all processes.
    """

    def __init__(self, model: torch.nn.Module, accelerator: Accelerator, batch_size: int):
        self.accelerator, self.batch_size = accelerator, batch_size
        self.config: VisualBertConfig | None = _counted_config(model)
        self.peak = peak_flops(accelerator)
        self.began = time.perf_counter()
        self.window: dict[str, float] = defaultdict(float)  # since the last entry of the log, of this process
        self.total: dict[str, float] = defaultdict(float)  # over all processes, up to that entry
        self._running_since: float | None = None

    def fetch(self, batches: Iterator[Batch], count: int) -> list[Batch]:
        """The next micro-batches: those of a step. Starts the clock if it stands still."""
        start = time.perf_counter()
        if self._running_since is None:
            self._running_since = start
        fetched = [next(batches) for _ in range(count)]
        self.window["waited"] += time.perf_counter() - start
        self.window["steps"] += 1
        for batch in fetched:
            _add(self.window, self._contents(batch))
        return fetched

    def pause(self) -> None:
        """Stop the clock until the next step, for an evaluation or a checkpoint."""
        if self._running_since is not None:
            self.window["seconds"] += time.perf_counter() - self._running_since
        self._running_since = None

    def log(self, step: int, last_step: int) -> dict[str, str]:
        """Send the rates since the last entry of the log to the trackers. All processes call it, after a wait for the device.

        Returns:
            What the progress bar shows.
        """
        self.pause()
        names = ("waited", "tokens", "regions", "flops")
        numbers = [float(self.window[name]) for name in names]
        sums = self.accelerator.reduce(
            torch.tensor(numbers, device=self.accelerator.device, dtype=torch.float64), "sum"
        )
        window = {**self.window, **dict(zip(names, sums.tolist(), strict=True))}  # the clock is that of this process
        _add(self.total, window)
        self.window.clear()
        rates = self._rates(window)
        left = (time.perf_counter() - self.began) / self.total["steps"] * (last_step - step)
        values = {**rates, **peak_memory(self.accelerator.device), "hours_left": round(left / 3600, 3)}
        self.accelerator.log({f"throughput/{name}": value for name, value in values.items()}, step=step)
        shown = {"examples/s": f"{rates['examples_per_second']:.4g}", "waiting": f"{rates['waiting_share']:.0%}"}
        return shown | ({"MFU": f"{rates['flops_utilisation']:.0%}"} if "flops_utilisation" in rates else {})

    def summary(self) -> dict[str, float]:
        """The rates over all steps since the run was started or resumed, for `metrics.json`; empty if it took none."""
        return self._rates(self.total) if self.total["steps"] else {}

    def _contents(self, batch: Batch) -> dict[str, int]:
        """Counted on the host, before the batch is copied to the device."""
        text, visual = batch.get("attention_mask"), batch.get("visual_attention_mask")
        counts = {name: int(mask.sum()) for name, mask in (("tokens", text), ("regions", visual)) if mask is not None}
        if self.config is not None and text is not None and visual is not None:
            sequences = text.numel() // text.shape[-1]
            # One picture for all choices, or two for one text.
            regions = max(visual.shape[-1], visual.numel() // sequences)
            counts["flops"] = 3 * forward_flops(self.config, sequences, text.shape[-1], regions)
        return counts

    def _rates(self, counts: Mapping[str, float]) -> dict[str, float]:
        seconds, processes = counts["seconds"], self.accelerator.num_processes
        rates = {"examples_per_second": round(self.batch_size * counts["steps"] / seconds, 2)}
        for name in ("tokens", "regions"):
            if counts[name]:
                rates[f"{name}_per_second"] = round(counts[name] / seconds, 1)
        rates["waiting_share"] = round(counts["waited"] / (seconds * processes), 4)
        if self.peak is not None and counts["flops"]:
            rates["flops_utilisation"] = round(counts["flops"] / (seconds * processes * self.peak), 4)
        return rates


def _add(sums: dict[str, float], values: Mapping[str, float]) -> None:
    for name, value in values.items():
        sums[name] += value


def _counted_config(model: torch.nn.Module) -> VisualBertConfig | None:
    """Of a model whose steps `forward_flops` counts: no encoder of pictures inside, nothing frozen, no shortcut."""
    config: Any = getattr(model, "config", None)
    is_counted = (
        isinstance(config, VisualBertConfig)
        and config.region_encoder_config is None
        and not config.bypass_transformer
        and all(parameter.requires_grad for parameter in model.parameters())
    )
    return config if is_counted else None


@contextmanager
def profiler(steps: int | None, output_dir: Path, accelerator: Accelerator) -> Iterator[profile | None]:
    """
    A `torch.profiler` of so many steps of the main process, after [`PROFILE_WARMUP`] others; its `step` is called after each step
    of the run. The trace is `output_dir/profile/trace.json`, for https://ui.perfetto.dev or
    `chrome://tracing`. None profiles nothing.
    """
    if steps is None or not accelerator.is_main_process:
        yield None
        return
    path = output_dir / "profile" / "trace.json"

    def write(finished: profile) -> None:
        path.parent.mkdir(exist_ok=True)
        finished.export_chrome_trace(str(path))
        logger.warning("wrote a trace of %d steps to %s", finished.step_num - PROFILE_WARMUP, path)

    activities = [ProfilerActivity.CPU]
    if accelerator.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    cycle = schedule(wait=0, warmup=PROFILE_WARMUP, active=steps, repeat=1)
    with profile(activities=activities, schedule=cycle, on_trace_ready=write) as trace:
        yield trace
    if trace.step_num <= PROFILE_WARMUP:
        logger.warning(
            "--profile %d: no trace, because the run had %d steps left and the first %d are not traced",
            *(steps, trace.step_num, PROFILE_WARMUP),
        )


__all__ = ["PEAK_FLOPS", "PROFILE_WARMUP", "Throughput", "forward_flops", "peak_flops", "peak_memory", "profiler"]
