"""Our classes compared with those of `transformers`: same weights, same inputs, one process, in turns.

    python benchmarks/bench_stock.py [--only NAME ...] [--repeats 5] [--device cuda --dtype bfloat16]     (`make bench`)

Prints a table and appends a line for each row to `benchmarks/results.jsonl`. Models have BERT-base size and random weights. A
ratio is the median over pairs of consecutive runs, so that other work on the machine affects both sides equally. `share` is the
part of the machine's matrix rate that was reached: products of all linear layers that were computed, divided by the time and by
the rate of one large product in the faster library. Peak memory is what torch allocates on top of the model and its inputs,
from the first call on. With `--same_library`, both sides use the matrix library of the stock classes, which excludes the gain
that depends on the processor.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig
from transformers.models.visual_bert import modeling_visual_bert as stock
from transformers.models.visual_bert.configuration_visual_bert import VisualBertConfig as StockConfig

import modeling_visualbert
from modeling_visualbert import QueryRegionEncoder, VisualBertConfig
from modeling_visualbert.features.store import FeatureStore, write_store
from modeling_visualbert.hub_code import linear_visualbert
from modeling_visualbert.hub_code.linear_visualbert import linear
from modeling_visualbert.training.args import TrainArgs
from modeling_visualbert.training.optimizer import make_optimizer

RESULTS = Path(__file__).parent / "results.jsonl"
PLACE: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}  # device and precision of both sides
Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Workload:
    """
    Args:
        title: What the table says.
        goal: The ratio to reach, or None.
        sides: Builds what takes turns: two functions without arguments, of stock and ours.
        products: Whether time is spent in linear layers (then their share of the machine's rate is shown).
    """

    title: str
    goal: float | None
    sides: Callable[[], dict[str, Callable[[], Any]]]
    products: bool = True


# ------------------------------------------------------------------------------------------------------------ inputs


def texts(generator: torch.Generator, lengths: list[int], padded_to: int | None = None) -> Inputs:
    """Random texts of the given lengths."""
    width = padded_to or max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1000, 30000, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def regions(generator: torch.Generator, counts: list[int], dim: int = 2048) -> Inputs:
    """Random features of the given numbers of regions."""
    mask = (torch.arange(max(counts)) < torch.tensor(counts)[:, None]).long()
    return {
        "visual_embeds": torch.randn(*mask.shape, dim, generator=generator),
        "visual_attention_mask": mask,
        "visual_token_type_ids": torch.zeros_like(mask),
    }


def integers(generator: torch.Generator, low: int, high: int, count: int) -> list[int]:
    """Random integers up to and including `high`."""
    return torch.randint(low, high + 1, (count,), generator=generator).tolist()


def vqa_inputs(batch: int, num_regions: int, padded_to: int | None = None, ragged: bool = False) -> Inputs:
    """Questions of 14 tokens, or of 8 to 20 as in VQA v2."""
    generator = torch.Generator().manual_seed(0)
    lengths = integers(generator, 8, 20, batch) if ragged else [14] * batch
    return {**texts(generator, lengths, padded_to), **regions(generator, [num_regions] * batch)}


def vcr_inputs(batch: int = 4, choices: int = 4) -> Inputs:
    """Four choices each, 20 to 128 tokens, 5 to 30 regions."""
    generator = torch.Generator().manual_seed(0)
    text = texts(generator, integers(generator, 20, 128, batch * choices))
    seen = regions(generator, integers(generator, 5, 30, batch), dim=512)
    return {
        **{name: value.unflatten(0, (batch, choices)) for name, value in text.items()},
        # The stock class expects the image once per choice.
        **{name: value[:, None].expand(-1, choices, *value.shape[1:]).contiguous() for name, value in seen.items()},
    }


def nlvr2_inputs(batch: int = 2) -> Inputs:
    """A sentence, two images of 144 regions each."""
    generator = torch.Generator().manual_seed(0)
    inputs = {**texts(generator, integers(generator, 15, 30, batch)), **regions(generator, [288] * batch, dim=1024)}
    inputs["visual_token_type_ids"] = (torch.arange(288) >= 144).long().expand(batch, -1)
    return inputs


def pretraining_inputs(batch: int = 8) -> Inputs:
    """36 tokens, 100 regions, 15% masked tokens; the labels cover text and regions, as the stock class expects."""
    generator = torch.Generator().manual_seed(0)
    inputs = {**texts(generator, [36] * batch), **regions(generator, [100] * batch)}
    chosen = torch.rand(batch, 36, generator=generator) < 0.15
    labels = torch.where(chosen, inputs["input_ids"], -100)
    inputs["labels"] = nn.functional.pad(labels, (0, 100), value=-100)
    inputs["sentence_image_labels"] = torch.arange(batch) % 2
    return inputs


def finetuning_inputs(batch: int = 16) -> Inputs:
    """Questions as in VQA v2, with targets in which about three of the 3129 answers have a small score."""
    labels = torch.rand(batch, 3129, generator=torch.Generator().manual_seed(0)).clamp(min=0.999) - 0.999
    return {**vqa_inputs(batch, 36, ragged=True), "labels": labels}


def masked_positions(labels: torch.Tensor) -> Inputs:
    """Positions that have labels, as our collator passes them."""
    places = [row.nonzero()[:, 0] for row in labels != -100]
    return {"masked_positions": nn.utils.rnn.pad_sequence(places, batch_first=True, padding_value=-1)}


# ------------------------------------------------------------------------------------------------------------- sides


def both_models(head: str, **config: Any) -> dict[str, nn.Module]:
    """The class of this name in `transformers` and ours, with equal weights."""
    torch.manual_seed(0)
    theirs = getattr(stock, head)(StockConfig(**config, pad_token_id=0))
    ours = getattr(modeling_visualbert, head)(VisualBertConfig(**config))
    ours.load_state_dict(theirs.state_dict())
    return {"stock": theirs.to(**PLACE), "ours": ours.to(**PLACE)}


def placed(inputs: Inputs) -> Inputs:
    """Inputs on the device, with features in the precision of the models."""
    return {
        name: value.to(**PLACE) if value.is_floating_point() else value.to(PLACE["device"])
        for name, value in inputs.items()
    }


def answering(head: str, inputs: Inputs, **config: Any) -> dict[str, Callable[[], Any]]:
    """One forward pass of each side, after checking that they agree."""
    models = {side: model.eval() for side, model in both_models(head, **config).items()}
    inputs = placed(inputs)

    def forward(model: nn.Module) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with torch.inference_mode():
                return model(**inputs).logits

        run.model = model  # type: ignore[attr-defined]
        return run

    sides = {side: forward(model) for side, model in models.items()}
    difference = (sides["stock"]() - sides["ours"]()).abs().max().item()
    assert difference < (1e-5 if PLACE["dtype"] is torch.float32 else 5e-2), f"{head}: logits differ by {difference}"
    return sides


def training(
    head: str,
    inputs: Inputs,
    ours: Inputs | None = None,
    checkpointing: bool = False,
    optimizer: str = "adamw",
    **config: Any,
) -> dict[str, Callable[[], Any]]:
    """One optimiser step of each side: stock with the AdamW of `transformers.Trainer`, ours as in the training loop, with the
    extra inputs of the collator and, if requested, `--gradient_checkpointing` and another `--optimizer`."""
    models = both_models(head, **config)
    if checkpointing:
        models["ours"].activation_checkpointing_enable()  # type: ignore[operator]
    optimizers = {
        "stock": torch.optim.AdamW(models["stock"].parameters(), lr=1e-5, fused=True),
        "ours": make_optimizer(models["ours"], TrainArgs("unused", learning_rate=1e-5, optimizer=optimizer)),  # type: ignore[arg-type]
    }

    batches = {"stock": placed(inputs), "ours": placed({**inputs, **(ours or {})})}

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Inputs) -> Callable[[], float]:
        def run() -> float:
            loss = model.train()(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return float(loss.detach())

        run.model = model  # type: ignore[attr-defined]
        return run

    return {side: step(model, optimizers[side], batches[side]) for side, model in models.items()}


def pretraining(checkpointing: bool = False, optimizer: str = "adamw") -> dict[str, Callable[[], Any]]:
    """A pre-training step; ours gets the masked positions from the collator."""
    inputs = pretraining_inputs()
    places = masked_positions(inputs["labels"])
    return training("VisualBertForPreTraining", inputs, places, checkpointing, optimizer, visual_embedding_dim=2048)


def many_questions() -> dict[str, Callable[[], Any]]:
    """20 questions about one image from pixels. Stock: detector and model once per question; ours: regions once, one batch."""
    torch.manual_seed(0)
    config = {"visual_embedding_dim": 256, "num_labels": 3129}
    models = {side: model.eval() for side, model in both_models("VisualBertForQuestionAnswering", **config).items()}
    detector = DetrForObjectDetection(
        DetrConfig(use_timm_backbone=False, backbone_config=ResNetConfig(out_features=["stage4"]), num_queries=36)
    ).eval()
    encoder = QueryRegionEncoder.from_detector(detector, max_regions=36, score_threshold=0.0).eval()
    detector, encoder = detector.to(**PLACE), encoder.to(**PLACE)
    pixels = torch.randn(1, 3, 480, 640).to(**PLACE)
    text = placed(texts(torch.Generator().manual_seed(0), integers(torch.Generator().manual_seed(0), 8, 20, 20)))

    @torch.inference_mode()
    def one_by_one() -> list[torch.Tensor]:
        answers = []
        for i in range(20):
            states = detector(pixels).last_hidden_state
            length = int(text["attention_mask"][i].sum())
            asked = {name: value[i : i + 1, :length] for name, value in text.items()}
            mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
            answers.append(models["stock"](**asked, visual_embeds=states, visual_attention_mask=mask).logits)
        return answers

    @torch.inference_mode()
    def together() -> torch.Tensor:
        found = encoder(pixels)
        seen = {name: found[name][..., :256] if name == "visual_embeds" else found[name] for name in _REGION_INPUTS}
        return models["ours"](**text, **seen).logits

    return {"stock": one_by_one, "ours": together}


_REGION_INPUTS = ("visual_embeds", "visual_attention_mask")


def feature_loading() -> dict[str, Callable[[], Any]]:
    """Regions of 64 images, 100 x 2048 half-precision numbers each: a `.npy` file for each, or the store."""
    folder = Path(tempfile.mkdtemp(prefix="bench_features_"))
    generator = torch.Generator().manual_seed(0)
    features = {i: torch.randn(100, 2048, generator=generator) for i in range(64)}
    for i, feature in features.items():
        np.save(folder / f"{i}.npy", feature.half().numpy())
    rows = ((i, {"visual_embeds": feature.numpy()}) for i, feature in features.items())
    write_store(folder / "store", rows, 2048, "random", "float16")
    store = FeatureStore(folder / "store")

    return {
        "stock": lambda: torch.stack([torch.from_numpy(np.load(folder / f"{i}.npy")).float() for i in range(64)]),
        "ours": lambda: torch.stack([store[i]["visual_embeds"] for i in range(64)]),
    }


VQA = {"visual_embedding_dim": 2048, "num_labels": 3129}
QA = "VisualBertForQuestionAnswering"
WORKLOADS = {
    "vqa_1": Workload("VQA, one question, 14 + 36", None, lambda: answering(QA, vqa_inputs(1, 36), **VQA)),
    "vqa_8_36": Workload("VQA, 8 x (14 + 36)", 1.25, lambda: answering(QA, vqa_inputs(8, 36), **VQA)),
    "vqa_8_100": Workload("VQA, 8 x (14 + 100)", 1.25, lambda: answering(QA, vqa_inputs(8, 100), **VQA)),
    "vqa_ragged": Workload(
        "VQA, 32 x (8 to 20 + 36)", None, lambda: answering(QA, vqa_inputs(32, 36, ragged=True), **VQA)
    ),
    "vqa_max_length": Workload(
        "VQA, 8 x (14 + 36), padded to 128 text tokens", 4.0, lambda: answering(QA, vqa_inputs(8, 36, 128), **VQA)
    ),
    "vcr": Workload(
        "VCR, 4 x 4 choices, 20 to 128 + 5 to 30",
        1.8,
        lambda: answering("VisualBertForMultipleChoice", vcr_inputs(), visual_embedding_dim=512),
    ),
    "nlvr2": Workload(
        "NLVR2, 2 x (15 to 30 + 288)",
        None,
        lambda: answering("VisualBertForVisualReasoning", nlvr2_inputs(), visual_embedding_dim=1024),
    ),
    "pretraining": Workload("pre-training step, 8 x (36 + 100)", 1.5, pretraining),
    "pretraining_checkpointed": Workload(
        "the same, with gradient checkpointing here", 1.5, lambda: pretraining(checkpointing=True)
    ),
    "pretraining_fp8": Workload(
        "the same, with moments of 8 bits here", 1.5, lambda: pretraining(optimizer="adamw_fp8")
    ),
    "finetuning": Workload(
        "fine-tuning step VQA, 16 x (8 to 20 + 36)",
        None,
        lambda: training(QA, finetuning_inputs(), **VQA),
    ),
    "many_questions": Workload("20 questions about one image, from pixels", 5.0, many_questions, products=False),
    "feature_loading": Workload("features of 64 images, 100 x 2048", None, feature_loading, products=False),
}


# ------------------------------------------------------------------------------------------------------- measurement


def machine_rate(repeats: int = 8) -> float:
    """Median GFLOP/s of one large product, on a CPU with the faster library."""
    rows = 1024 if PLACE["device"].type == "cpu" else 16384
    states, weight = torch.randn(rows, 768).to(**PLACE), torch.randn(3072, 768).to(**PLACE)
    with torch.inference_mode():
        typical = statistics.median(seconds(lambda: linear(states, weight)) for _ in range(repeats))
    return 2 * states.shape[0] * weight.numel() / typical / 1e9


def seconds(call: Callable[[], Any]) -> float:
    """Time of one call: with one thread it is processor time, so that other work on the machine does not count."""
    clock = time.process_time if hardware()["clock"] == "processor" else time.perf_counter
    wait = torch.cuda.synchronize if PLACE["device"].type == "cuda" else lambda: None
    wait()
    start = clock()
    call()
    wait()
    return clock() - start


def product_gflop(call: Callable[[], Any]) -> float:
    """10^9 operations of all linear layers in a call, forward and, for a training step, backward."""
    total = 0.0
    model: nn.Module = call.model  # type: ignore[attr-defined]
    seen: set[nn.Module] = set()

    def count(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        nonlocal total
        backward = model.training and module not in seen  # not again if checkpointing repeats the forward pass
        total += 2.0 * output.numel() * module.in_features * (3 if backward else 1)  # type: ignore[operator]
        seen.add(module)

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Linear)]
    call()
    for hook in hooks:
        hook.remove()
    return total / 1e9


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Times of both sides in turns, after one warm-up run."""
    workload = WORKLOADS[name]
    sides = workload.sides()
    for call in sides.values():
        call()
    times: dict[str, list[float]] = {side: [] for side in sides}
    rates = []
    for number in range(repeats):
        rates.append(machine_rate())
        for side in list(sides)[:: 1 if number % 2 else -1]:
            times[side].append(seconds(sides[side]))
    ratios = [theirs / ours for theirs, ours in zip(times["stock"], times["ours"], strict=True)]
    found: dict[str, Any] = {
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        **{f"{side}_s": statistics.median(values) for side, values in times.items()},
    }
    for side in sides:
        found[f"{side}_mib"] = peak_memory(workload.sides()[side])
    if workload.products:
        found |= {f"{side}_gflop": product_gflop(call) for side, call in sides.items()}
        found["rate"] = statistics.median(rates)
    return found


def peak_memory(call: Callable[[], Any]) -> float:
    """Peak MiB that torch allocates on top of model and inputs during two calls; the first one creates the moments of the
    optimiser."""
    if PLACE["device"].type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
        call()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes, initial=0)) / 2**20


@cache
def hardware() -> dict[str, Any]:
    """The machine and versions of the measurement."""
    gpu = PLACE["device"].type == "cuda"
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        **({"gpu": torch.cuda.get_device_name()} if gpu else {}),
        "dtype": str(PLACE["dtype"]).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "clock": "processor" if torch.get_num_threads() == 1 and not gpu else "wall",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "package": modeling_visualbert.__version__,
    }


def row(name: str, found: dict[str, Any]) -> str:
    """One line of the table."""
    workload = WORKLOADS[name]
    goal = "" if workload.goal is None else f"{workload.goal:g}"
    shares = ["", ""]
    if workload.products:
        shares = [f"{found[f'{side}_gflop'] / found[f'{side}_s'] / found['rate']:.0%}" for side in ("stock", "ours")]
    memory = [f"{found[f'{side}_mib']:.0f}" for side in ("stock", "ours")]
    cells = [workload.title, f"{found['stock_s']:.3f}", f"{found['ours_s']:.3f}", f"**{found['ratio']:.2f}**", goal]
    return f"| {' | '.join([*cells, *shares, *memory])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--same_library", action="store_true", help="use torch's default matrix library on both sides")
    args = parser.parse_args()
    linear_visualbert._PREFERS_ONEDNN &= not args.same_library
    PLACE.update(device=torch.device(args.device), dtype=getattr(torch, args.dtype))
    machine = {"date": datetime.date.today().isoformat(), **hardware(), "same_library": args.same_library}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print("\n| workload | stock s | ours s | times as fast | goal | stock share | ours share | stock MiB | ours MiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.only:
        found = measure(name, args.repeats)
        print(row(name, found), flush=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**machine, "workload": name, **found}) + "\n")


if __name__ == "__main__":
    main()
