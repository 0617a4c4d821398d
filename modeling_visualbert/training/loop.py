"""The training loop of all tasks, on Accelerate.

A run is a function of its arguments: the order of the examples, dropout and initialisation depend on the seed and the step only,
and batch sizes are global. So one process or many take the same steps, and a run that was killed and resumed ends with the same
bits. What may change when a run is resumed is in `resume.py`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DynamoBackend, broadcast_object_list, gather_object
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.files import read_json_lines
from ..hub_code.compile_visualbert import compile_model
from .args import TrainArgs, recorded_args
from .average import average_of, update_average
from .batches import StepPlan
from .checkpoint import CheckpointWriter, load_checkpoint, newest_checkpoint, read_state, sync_folder
from .loaders import evaluation_batches, training_batches
from .output_folder import claimed
from .preemption import STOPPED_STATUS, RunStoppedError, StopRequestedError, StopWatch
from .resume import changed_args, check_steps, describe_changes, saved_args
from .run_log import RunLog, make_trackers
from .task import Batch, Predictions, Task, to_device
from .towers import merged_weights

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run has come; saved in checkpoints."""

    step: int = 0
    best_metric: float | None = None
    best_step: int = 0
    evals_without_gain: int = 0
    window_loss: float = 0.0  # sum of the losses since the last entry of the log
    window_steps: int = 0
    evaluation_due: bool = False  # the run was stopped before the evaluation after `step`
    is_ending: bool = False  # the run was stopped after its last step, in the final evaluation


@dataclass
class DevResult:
    """Metrics, predictions (on the main process) and the threshold of decisions that some weights have on the dev split."""

    metrics: dict[str, Any]
    predictions: Predictions
    threshold: float | None


_SAMPLE = "dev_sample"


def make_accelerator(args: TrainArgs) -> Accelerator:
    """One accelerator for the run.

    Raises:
        ValueError: Accelerate is set up in a way that the loop does not follow.
        ImportError: A tracker is not installed.
    """
    accelerator = Accelerator(
        cpu=args.cpu,
        mixed_precision=args.mixed_precision,
        log_with=make_trackers(args) or None,
        project_dir=args.output_dir,
    )
    check_launcher(accelerator)
    check_accelerator(accelerator, args)
    return accelerator


def check_launcher(accelerator: Accelerator) -> None:
    """
    Raises:
        ValueError: `accelerate launch --cpu` was asked for several processes, which it leaves to MPI: it starts one.
    """
    given = os.environ
    if (
        accelerator.num_processes == 1
        and given.get("ACCELERATE_USE_CPU", "").lower() == "true"
        and "MASTER_ADDR" in given
        and given.get("WORLD_SIZE", "1") == "1"
    ):
        raise ValueError(
            "`accelerate launch --cpu` was to start several processes, but leaves that to mpirun and started one; expected "
            "`torchrun --nproc_per_node N SCRIPT --cpu ...`, or --num_processes 1"
        )


def check_accelerator(accelerator: Accelerator, args: TrainArgs) -> None:
    """
    Raises:
        ValueError: The accelerator would divide the gradients for an accumulation of its own, compile the model, or has another
            precision than the arguments.
    """
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"Accelerate is set up for {accelerator.gradient_accumulation_steps} gradient accumulation steps "
            "(ACCELERATE_GRADIENT_ACCUMULATION_STEPS, or its configuration); expected 1 and --micro_batch_size, which "
            "accumulates gradients up to --batch_size"
        )
    if (backend := accelerator.state.dynamo_plugin.backend) != DynamoBackend.NO:
        raise ValueError(  # it would wrap the model, whose weights could not be read again
            f"Accelerate is set up to compile with {backend.value.lower()} (ACCELERATE_DYNAMO_BACKEND, or its configuration); "
            "expected no backend and --compile"
        )
    if accelerator.mixed_precision != args.mixed_precision:
        raise ValueError(
            f"--mixed_precision {args.mixed_precision}, but the accelerator has {accelerator.mixed_precision}; expected the same"
        )


def train(task: Task, args: TrainArgs, accelerator: Accelerator | None = None) -> dict:
    """Train, keep the best weights, evaluate them, and write everything to `args.output_dir`.

    Returns:
        The contents of `metrics.json`.

    Raises:
        FileExistsError: `output_dir` already holds a run and `resume` is not set, or another run is at work in it.
        RunStoppedError: A signal or `--max_hours` stopped the run, which has saved a checkpoint.
        KeyboardInterrupt: Ctrl-C was pressed twice; the message says how to go on.
        ValueError: The task lacks a split, or arguments do not fit together, or not to those of the run that is resumed.
        FloatingPointError: The loss became NaN or infinite.
    """
    started = time.time()
    if missing := {"train", "dev"} - set(task.splits):
        raise ValueError(f"task {task.name!r} has no split {sorted(missing)[0]!r}")
    accelerator = accelerator or make_accelerator(args)
    check_accelerator(accelerator, args)
    output_dir = Path(args.output_dir)
    try:
        with claimed(output_dir, args.resume, accelerator), StopWatch(args, accelerator) as watch:
            record = _train(task, args, accelerator, watch)
            record["run"] |= {
                "train_examples": len(task.splits["train"]),
                **run_facts(task, started, accelerator),
            }
            if accelerator.is_main_process:
                write_json(output_dir / "metrics.json", record)
            accelerator.wait_for_everyone()
            return record
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"interrupted; the same command with --resume goes on from the newest checkpoint in {output_dir / 'checkpoints'}"
        ) from error


def _train(task: Task, args: TrainArgs, accelerator: Accelerator, watch: StopWatch) -> dict:
    """The work of [`train`] in a folder that is claimed."""
    output_dir = Path(args.output_dir)
    plan = StepPlan(
        len(task.splits["train"]), args.batch_size, accelerator.num_processes, args.micro_batch_size, args.seed
    )
    if accelerator.is_main_process:
        tqdm.write(f"{plan}; {plan.num_steps(args.epochs, args.max_steps)} steps", file=sys.stderr)
        _warn_of_few_steps(plan, args)
    if args.gradient_checkpointing:
        # Recent versions of transformers renamed it and warn about the old name.
        name = "activation_checkpointing_enable"
        getattr(task.model, name, task.model.gradient_checkpointing_enable)()
    if args.attn_implementation is not None:
        task.model.set_attn_implementation(args.attn_implementation)
    average = None if args.ema_decay is None else average_of(task.model, accelerator)
    # What a head never reads, models tell data-parallel training themselves.
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=not task.trains_all)
    model, optimizer = accelerator.prepare(task.model, make_optimizer(task.model, args))
    if args.compile:
        compile_model(task.model, training=True)
    progress = _resume(accelerator, output_dir, args, plan) if args.resume else Progress()
    if accelerator.is_main_process:
        list_skipped(task.skipped, output_dir)
    log = RunLog(task.name, args, accelerator, progress.step)
    writer = CheckpointWriter(accelerator, output_dir / "checkpoints", args.keep_checkpoints)
    try:
        with _dev_sample(task, args) as dev:
            best_dev = _run_steps(
                *(task, model, average, optimizer, plan, progress, log, writer, watch, args, accelerator, dev)
            )
        progress.is_ending = True
        return _final_evaluation(task, args, progress, accelerator, watch, best_dev)
    except StopRequestedError:
        writer.save(progress.step, _run_state(progress, args, plan))
    finally:
        log.close()
        writer.wait()
    raise RunStoppedError(_how_to_go_on(watch, progress, args, accelerator))


def _how_to_go_on(watch: StopWatch, progress: Progress, args: TrainArgs, accelerator: Accelerator) -> str:
    reason = next(filter(None, gather_object([watch.reason])))
    if not accelerator.is_main_process:
        return ""
    return (
        f"stopped by {reason} after step {progress.step} and saved in {args.output_dir}; the same command with --resume goes on "
        f"from there (exit status {STOPPED_STATUS})"
    )


def _warn_of_few_steps(plan: StepPlan, args: TrainArgs) -> None:
    """The defaults are those of large data sets; ten rows and a batch of 64 are one step."""
    steps = plan.num_steps(args.epochs, args.max_steps)
    if args.max_steps is None and steps < 20:
        logger.warning(
            "%d examples in %g epochs are %d steps of %d examples, too few to learn much: a smaller --batch_size, more --epochs "
            "or a larger --learning_rate help",
            *(plan.num_examples, args.epochs, steps, args.batch_size),
        )


def run_facts(task: Task, started: float, accelerator: Accelerator) -> dict[str, Any]:
    """What `metrics.json` tells of how a run or an evaluation went; `started` is its `time.time()`."""
    return {
        "skipped_records": len(task.skipped),
        "processes": accelerator.num_processes,
        "seconds": round(time.time() - started, 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "torch": torch.__version__,
        "device": str(accelerator.device),
    }


def _run_steps(
    task: Task,
    model: torch.nn.Module,
    average: AveragedModel | None,
    optimizer: torch.optim.Optimizer,
    plan: StepPlan,
    progress: Progress,
    log: RunLog,
    writer: CheckpointWriter,
    watch: StopWatch,
    args: TrainArgs,
    accelerator: Accelerator,
    dev: str,
) -> DevResult | None:
    """Take all remaining steps, log, evaluate and save checkpoints; updates `progress`.

    Returns:
        What the best weights reached on the whole dev split, if that is known.

    Raises:
        StopRequestedError: The run is to stop. `progress` can be saved as it is.
    """
    best_dev: DevResult | None = None
    kept = model if average is None else average.module  # what is evaluated, and saved if it is the best
    last_step = plan.num_steps(args.epochs, args.max_steps)
    eval_steps = args.eval_steps or max(1, round(plan.num_steps(1.0) / args.evals_per_epoch))
    batches = training_batches(task, plan, args, accelerator, progress.step, last_step)
    bar = tqdm(
        total=last_step, initial=progress.step, desc=f"training {task.name}", disable=not accelerator.is_main_process
    )
    losses: list[torch.Tensor] = []  # not yet read, because reading one waits for the device
    with bar:  # an error is printed below it
        if progress.evaluation_due:
            best_dev = _evaluate_dev(task, kept, progress, log, watch, args, accelerator, dev)
        while progress.step < last_step and not _out_of_patience(progress, args):
            micro_batches = [next(batches) for _ in range(plan.accumulation)]
            set_rates(optimizer, args, rate_factor(progress.step, last_step, args.warmup_ratio, args.schedule))
            torch.manual_seed(_step_seed(args.seed, progress.step, accelerator.process_index))
            loss, grad_norm = train_step(task, model, optimizer, micro_batches, args, accelerator)
            losses.append(loss)
            progress.step += 1
            if average is not None:
                update_average(average, task.model, args, progress.step)
            bar.update()
            is_last = progress.step == last_step
            logs, evaluates, saves = (
                progress.step % every == 0 or is_last for every in (args.log_steps, eval_steps, args.save_steps)
            )
            stops, saves_now = watch.after_step()
            if logs or evaluates or saves or stops or saves_now:
                _read_losses(losses, progress, accelerator)
            if logs:
                mean = progress.window_loss / progress.window_steps
                log.write(progress.step, {"loss": mean, **rates_of(optimizer), "grad_norm": float(grad_norm)})
                bar.set_postfix(loss=f"{mean:.4f}")
                progress.window_loss, progress.window_steps = 0.0, 0
            progress.evaluation_due = evaluates
            if stops:
                raise StopRequestedError
            if evaluates:
                best_dev = _evaluate_dev(task, kept, progress, log, watch, args, accelerator, dev) or best_dev
            if (saves or saves_now) and not is_last:
                writer.save(progress.step, _run_state(progress, args, plan))
                watch.note_save()
    # What is saved of compiled models and of adapters computes the same with other roundings.
    is_other = args.compile or getattr(args, "backbone_lora_rank", None) is not None
    return None if is_other or dev != "dev" else best_dev


def _evaluate_dev(
    task: Task,
    kept: torch.nn.Module,
    progress: Progress,
    log: RunLog,
    watch: StopWatch,
    args: TrainArgs,
    accelerator: Accelerator,
    dev: str,
) -> DevResult | None:
    """Evaluate during training; the result is returned if these are the best weights."""
    metrics, predictions = evaluate(task, kept, dev, args, accelerator, watch)
    _note_evaluation(task, kept, metrics, progress, Path(args.output_dir), accelerator)
    progress.evaluation_due = False
    log.write(progress.step, {f"dev_{k}": v for k, v in metrics.items() if isinstance(v, float)})
    if progress.best_step != progress.step:
        return None
    return DevResult(metrics, predictions, getattr(task.processor, "threshold", None))


def _read_losses(losses: list[torch.Tensor], progress: Progress, accelerator: Accelerator) -> None:
    """Sum the losses of the last steps over processes, add them to the window of the log, and clear them."""
    if not losses:
        return
    first = progress.step - len(losses) + 1
    for step, loss in enumerate(accelerator.reduce(torch.stack(losses), "sum").tolist(), start=first):
        progress.window_steps += 1
        progress.window_loss += loss
        if not math.isfinite(progress.window_loss):
            raise FloatingPointError(f"the loss is {progress.window_loss} at step {step}; lower the learning rate")
    losses.clear()


def train_step(
    task: Task,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    args: TrainArgs,
    accelerator: Accelerator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimiser step.

    The loss is divided by the number of items in the global batch, so it depends neither on accumulation nor on the number of
    processes.

    Returns:
        This process's part of the loss, which sums to the loss over all processes, and the norm of the gradient before clipping.
    """
    model.train()
    world = accelerator.num_processes
    counts: Counter[str] = Counter()
    if task.count_items is not None:
        for batch in micro_batches:
            counts.update(task.count_items(batch))
    # Counted on the host and copied without waiting for the device.
    extra = {
        name: accelerator.reduce(torch.full((), count, device=accelerator.device), "sum")
        for name, count in counts.items()
    }
    total = torch.zeros((), device=accelerator.device, dtype=torch.float64)
    for number, batch in enumerate(micro_batches):
        is_last = number == len(micro_batches) - 1
        with nullcontext() if is_last else accelerator.no_sync(model), accelerator.autocast():
            loss = model(**to_device(batch, accelerator.device), **extra).loss
            if task.count_items is None:  # a mean, in which all micro-batches and processes have equal weight
                loss = loss / (len(micro_batches) * world)
            # Data-parallel training averages gradients over processes; their sum is needed here.
            accelerator.backward(loss * world)
        total += loss.detach()
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total, grad_norm


def evaluate(
    task: Task,
    model: torch.nn.Module,
    split: str,
    args: TrainArgs,
    accelerator: Accelerator,
    watch: StopWatch | None = None,
) -> tuple[dict, Predictions]:
    """Metrics of a split, the same on every process, and on the main one its predictions; each example is predicted once.

    The processes take whole batches in turn, so that the batches, and with them the bits of the scores, do not depend on the
    number of processes.

    Raises:
        StopRequestedError: `watch` says that the run is to stop.
    """
    model.eval()
    predictions: Predictions = []
    batches, is_main = evaluation_batches(task, split, args, accelerator), accelerator.is_main_process
    # The bar does not iterate itself: tqdm would start the processes that prepare batches twice.
    bar = tqdm(total=len(batches), desc=f"evaluating {split}", leave=False, disable=not is_main)
    with bar, torch.inference_mode(), accelerator.autocast():
        for rows, batch in batches:
            predictions += task.predict(accelerator.unwrap_model(model)(**to_device(batch, accelerator.device)), rows)
            bar.update()
            if watch is not None and watch.reason is not None:
                break
    if watch is not None and watch.anyone_stops():
        raise StopRequestedError
    predictions = sorted(_gather_on_main(predictions, accelerator), key=lambda record: record["id"])
    fits = split in ("dev", _SAMPLE) and task.fit_threshold is not None
    result: list[Any] = [None, None]
    if is_main:
        predictions = task.fit_threshold(predictions) if fits and task.fit_threshold is not None else predictions
        result = [task.score(predictions, split), task.processor.threshold if fits else None]
    metrics, threshold = broadcast_object_list(result)
    if fits:
        task.processor.threshold = threshold
    return metrics, predictions


def _gather_on_main(predictions: Predictions, accelerator: Accelerator) -> Predictions:
    """The predictions of all processes; nothing on the others, which have no use for them."""
    if accelerator.num_processes == 1:
        return predictions
    parts: list[Any] | None = [None] * accelerator.num_processes if accelerator.is_main_process else None
    torch.distributed.gather_object(predictions, parts)
    return [record for part in parts or () for record in part]


@contextmanager
def _dev_sample(task: Task, args: TrainArgs) -> Iterator[str]:
    """Name of the split that is evaluated during training: dev, or with `eval_samples` examples of it that are spread evenly."""
    rows = task.splits["dev"]
    if args.eval_samples is None or args.eval_samples >= len(rows):
        yield "dev"
        return
    places = [len(rows) * number // args.eval_samples for number in range(args.eval_samples)]
    task.splits[_SAMPLE] = rows.select(places) if hasattr(rows, "select") else [rows[place] for place in places]
    try:
        yield _SAMPLE
    finally:
        del task.splits[_SAMPLE]


def with_own_scores(task: Task, predictions: Predictions, split: str) -> Predictions:
    """The predictions as they are written: where there are labels, each with its share of the metrics and its group."""
    own = [] if task.score_each is None else task.score_each(predictions, split)
    if not own:
        return predictions
    return [{**record, **scores} for record, scores in zip(predictions, own, strict=True)]


# What is in the names of parameters that may have a learning rate of their own.
PARTS = {
    "backbone_learning_rate": ("region_encoder.", "backbone."),
    "head_learning_rate": ("visual_projection.", "additional_layer.", "cls."),
}


def make_optimizer(model: PreTrainedModel, args: TrainArgs) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, without weight decay for biases and normalisation. Parts of the model that have a
    learning rate of their own have groups of their own."""
    own = {rate: names for rate, names in PARTS.items() if getattr(args, rate) is not None}
    parameters: dict[str, list[torch.nn.Parameter]] = {"learning_rate": [], **{rate: [] for rate in own}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = next((rate for rate, names in own.items() if any(part in name for part in names)), "learning_rate")
            parameters[rate].append(parameter)
    groups: list[dict[str, Any]] = []
    for rate, mine in parameters.items():
        decayed, others = [p for p in mine if p.dim() > 1], [p for p in mine if p.dim() <= 1]
        groups.append({"params": decayed, "weight_decay": args.weight_decay, "rate": rate})
        groups.append({"params": others, "weight_decay": 0.0, "rate": rate})
    # One kernel that reads each parameter once: on a CPU eight times as fast as the default.
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, args.adam_beta2), fused=fused)


def set_rates(optimizer: torch.optim.Optimizer, args: TrainArgs, factor: float) -> None:
    """Set the learning rates to this share of their peaks."""
    for group in optimizer.param_groups:
        group["lr"] = (getattr(args, _rate_of(group)) or 0.0) * factor


def rates_of(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The learning rates, for the log."""
    return {_rate_of(group): group["lr"] for group in optimizer.param_groups}


def _rate_of(group: dict[str, Any]) -> str:
    """The argument with the learning rate of a group. Optimisers of earlier versions mark the vision part only, or nothing."""
    return group.get("rate", "backbone_learning_rate" if group.get("is_vision") else "learning_rate")


def rate_factor(step: int, last_step: int, warmup_ratio: float, schedule: str) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then linear or cosine decay to zero, or constant."""
    warmup = round(warmup_ratio * last_step)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, last_step - warmup)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0 if schedule == "constant" else 1.0 - done


def write_json(path: Path, record: dict) -> None:
    """Write a JSON file atomically."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write one JSON record per line."""
    path.write_text("".join(json.dumps(prediction) + "\n" for prediction in predictions), encoding="utf-8")


def read_predictions(path: Path) -> Predictions:
    """Read what [`write_predictions`] wrote.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return [record for _, record in read_json_lines(path)]


def list_skipped(skipped: Sequence[str], output_dir: Path) -> None:
    """Write `skipped.txt` if bad records were left out, and say so in the log."""
    if skipped:
        (output_dir / "skipped.txt").write_text("".join(f"{line}\n" for line in skipped), encoding="utf-8")
        logger.warning("left out %d bad records; they are listed in %s", len(skipped), output_dir / "skipped.txt")


def _run_state(progress: Progress, args: TrainArgs, plan: StepPlan) -> dict:
    return {"progress": asdict(progress), **saved_args(args), "train_examples": plan.num_examples}


def _resume(accelerator: Accelerator, output_dir: Path, args: TrainArgs, plan: StepPlan) -> Progress:
    """Check that the arguments fit the newest checkpoint and load it; one line of the log says which arguments changed."""
    newest = newest_checkpoint(accelerator, output_dir / "checkpoints")
    if newest is None:
        return Progress()
    state = read_state(newest)
    progress = Progress(**state["progress"])
    changed = changed_args(newest, state, args)
    if not (progress.is_ending or progress.evaluation_due):  # then all steps may have been taken
        check_steps(newest, state, progress.step, args, plan)
    load_checkpoint(accelerator, newest)
    progress.is_ending = False
    if accelerator.is_main_process and changed:
        logger.warning("resuming from %s with %s", newest, describe_changes(changed, args, plan))
    elif accelerator.is_main_process:
        logger.info("resuming from %s", newest)
    return progress


def _step_seed(seed: int, step: int, process: int) -> int:
    return (seed * 1_000_003 + step) * 1009 + process


def _out_of_patience(progress: Progress, args: TrainArgs) -> bool:
    return args.patience is not None and progress.evals_without_gain >= args.patience


def _note_evaluation(
    task: Task, model: torch.nn.Module, metrics: dict, progress: Progress, output_dir: Path, accelerator: Accelerator
) -> None:
    value = float(metrics[task.best_metric])
    if progress.best_metric is not None and value <= progress.best_metric:
        progress.evals_without_gain += 1
        return
    progress.best_metric, progress.best_step, progress.evals_without_gain = value, progress.step, 0
    state_dict = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        save_model(accelerator.unwrap_model(model), task, output_dir / "best", state_dict)
    accelerator.wait_for_everyone()


def save_model(model: PreTrainedModel, task: Task, folder: Path, state_dict: dict | None = None) -> None:
    """Write model and processor to `folder`; what was there is replaced only after everything is written. The weights of adapters
    become part of those that they belong to."""
    draft, old = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft, state_dict=merged_weights(model, state_dict or model.state_dict()))
    task.processor.save_pretrained(draft)
    sync_folder(draft)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)  # the run was killed before the line below that removes it
        folder.rename(old)
    draft.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _final_evaluation(
    task: Task,
    args: TrainArgs,
    progress: Progress,
    accelerator: Accelerator,
    watch: StopWatch,
    best_dev: DevResult | None,
) -> dict:
    """The contents of `metrics.json`: scores of the best weights on every split but train. Predictions are written as well. What
    is known of the dev split is not computed again."""
    output_dir = Path(args.output_dir)
    best = type(task.model).from_pretrained(output_dir / "best").to(accelerator.device)
    record: dict[str, Any] = {
        "task": task.name,
        "best_metric": task.best_metric,
        "splits": {},
        "run": {"steps": progress.step, "best_step": progress.best_step, "args": recorded_args(args)},
    }
    for split in task.splits:
        if split == "train":
            continue
        if split == "dev" and best_dev is not None:
            metrics, predictions = best_dev.metrics, best_dev.predictions
            if task.fit_threshold is not None:
                task.processor.threshold = best_dev.threshold
        else:
            metrics, predictions = evaluate(task, best, split, args, accelerator, watch)
        if accelerator.is_main_process:
            write_predictions(output_dir / f"predictions_{split}.jsonl", with_own_scores(task, predictions, split))
        record["splits"][split] = metrics
    if task.fit_threshold is not None:
        record["run"]["threshold"] = task.processor.threshold
    return record
