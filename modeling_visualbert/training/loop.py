"""The training loop of all tasks, on Accelerate.

A run is a function of its arguments: the order of the examples, dropout and initialisation depend on the seed and the step only,
and batch sizes are global. So one process or many take the same steps, and a run that was killed and resumed ends with the same
bits. What may change when a run is resumed is in `resume.py`.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import gather_object
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..disk import telling_full_disks, whole_folder, write_json
from ..hub_code.compile_visualbert import compile_model
from .accelerator import check_accelerator, make_accelerator
from .args import TrainArgs, recorded_args
from .average import average_of, update_average
from .batches import StepPlan
from .checkpoint import CheckpointWriter, load_checkpoint, newest_checkpoint, read_state
from .evaluation import DevResult, dev_sample, evaluate, with_own_scores, write_predictions
from .loaders import training_batches
from .optimizer import make_optimizer, rate_factor, rates_of, set_rates
from .output_folder import claimed
from .preemption import STOPPED_STATUS, RunStoppedError, StopRequestedError, StopWatch
from .resume import changed_args, check_steps, describe_changes, saved_args
from .run_log import RunLog
from .sharding import class_of, fill_shell, is_sharded, shell_of
from .task import Batch, Task, to_device
from .throughput import Throughput, peak_memory, profiler
from .towers import merged_weights

logger = logging.getLogger(__name__)

_ROOM = "make room; the same command with --resume goes on from the newest checkpoint"


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
class _Run:
    """What the steps of a run work with."""

    task: Task
    args: TrainArgs
    accelerator: Accelerator
    plan: StepPlan
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    shell: PreTrainedModel | None  # of a model that is sharded
    progress: Progress
    log: RunLog
    writer: CheckpointWriter
    watch: StopWatch
    speed: Throughput

    @property
    def last_step(self) -> int:
        return self.plan.num_steps(self.args.epochs, self.args.max_steps)

    @property
    def kept(self) -> torch.nn.Module:
        """What is evaluated, and saved if it is the best."""
        return self.model if self.average is None else self.average.module

    @property
    def best_folder(self) -> Path:
        return Path(self.args.output_dir) / "best"

    def save_checkpoint(self) -> None:
        state = {
            "progress": asdict(self.progress),
            **saved_args(self.args),
            "train_examples": self.plan.num_examples,
        }
        self.writer.save(self.progress.step, state)


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
        OSError: The disk is full.
    """
    started = time.time()
    if missing := {"train", "dev"} - set(task.splits):
        raise ValueError(f"task {task.name!r} has no split {sorted(missing)[0]!r}")
    accelerator = accelerator or make_accelerator(args)
    check_accelerator(accelerator, args)
    output_dir = Path(args.output_dir)
    try:
        with (
            claimed(output_dir, args.resume, accelerator),
            telling_full_disks(output_dir, _ROOM),
            StopWatch(args, accelerator) as watch,
        ):
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
    run = _start(task, args, accelerator, watch)
    try:
        with dev_sample(task, args) as dev:
            best_dev = _run_steps(run, dev)
        run.progress.is_ending = True
        return _final_evaluation(run, best_dev)
    except StopRequestedError:
        run.save_checkpoint()
    finally:
        run.log.close()
        run.writer.wait()
    raise RunStoppedError(_how_to_go_on(run))


def _start(task: Task, args: TrainArgs, accelerator: Accelerator, watch: StopWatch) -> _Run:
    """Everything ready for the next step: the first, or that after the newest checkpoint."""
    output_dir = Path(args.output_dir)
    plan = StepPlan(
        len(task.splits["train"]), args.batch_size, accelerator.num_processes, args.micro_batch_size, args.seed
    )
    if accelerator.is_main_process:
        tqdm.write(f"{plan}; {plan.num_steps(args.epochs, args.max_steps)} steps", file=sys.stderr)
        _warn_of_few_steps(plan, args)
    _set_up(task.model, args)
    average = None if args.ema_decay is None else average_of(task.model, accelerator)
    # What a head never reads, models tell data-parallel training themselves.
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=not task.trains_all)
    shell = shell_of(task.model) if is_sharded(accelerator) else None
    model, optimizer = accelerator.prepare(task.model, make_optimizer(task.model, args))
    if args.compile:
        compile_model(task.model, training=True)
    progress = _resume(accelerator, output_dir, args, plan) if args.resume else Progress()
    if accelerator.is_main_process:
        list_skipped(task.skipped, output_dir)
    log = RunLog(task.name, args, accelerator, progress.step)
    writer = CheckpointWriter(accelerator, output_dir / "checkpoints", args.keep_checkpoints)
    speed = Throughput(task.model, accelerator, args.batch_size)
    return _Run(task, args, accelerator, plan, model, optimizer, average, shell, progress, log, writer, watch, speed)


def _set_up(model: PreTrainedModel, args: TrainArgs) -> None:
    """Let the model compute as the arguments ask."""
    if args.gradient_checkpointing:
        # Recent versions of transformers renamed it and warn about the old name.
        name = "activation_checkpointing_enable"
        getattr(model, name, model.gradient_checkpointing_enable)()
    if args.attn_implementation is not None:
        model.set_attn_implementation(args.attn_implementation)


def _how_to_go_on(run: _Run) -> str:
    reason = next(filter(None, gather_object([run.watch.reason])))
    if not run.accelerator.is_main_process:
        return ""
    return (
        f"stopped by {reason} after step {run.progress.step} and saved in {run.args.output_dir}; the same command with --resume "
        f"goes on from there (exit status {STOPPED_STATUS})"
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
        **peak_memory(accelerator.device),
        "torch": torch.__version__,
        "device": str(accelerator.device),
    }


def _run_steps(run: _Run, dev: str) -> DevResult | None:
    """Take all remaining steps, log, evaluate on the split `dev` and save checkpoints; updates the progress.

    Returns:
        What the best weights reached on the whole dev split, if that is known.

    Raises:
        StopRequestedError: The run is to stop. A checkpoint can be saved.
    """
    args, progress, last_step = run.args, run.progress, run.last_step
    best_dev: DevResult | None = None
    eval_steps = args.eval_steps or max(1, round(run.plan.num_steps(1.0) / args.evals_per_epoch))
    batches = training_batches(run.task, run.plan, args, run.accelerator, progress.step, last_step)
    name, is_main = f"training {run.task.name}", run.accelerator.is_main_process
    losses: list[torch.Tensor] = []  # not yet read, because reading one waits for the device
    with (
        tqdm(total=last_step, initial=progress.step, desc=name, disable=not is_main) as bar,  # errors come below it
        profiler(args.profile, Path(args.output_dir), run.accelerator) as trace,
    ):
        if progress.evaluation_due:
            best_dev = _evaluate_dev(run, dev)
        while progress.step < last_step and not _out_of_patience(progress, args):
            loss, grad_norm = _next_step(run, run.speed.fetch(batches, run.plan.accumulation))
            if trace is not None:
                trace.step()
            losses.append(loss)
            bar.update()
            is_last = progress.step == last_step
            logs, evaluates, saves = (
                progress.step % every == 0 or is_last for every in (args.log_steps, eval_steps, args.save_steps)
            )
            stops, saves_now = run.watch.after_step()
            if logs or evaluates or saves or stops or saves_now:
                _read_losses(losses, progress, run.accelerator)
            if logs:
                loss_shown = f"{_log_window(run, grad_norm):.4f}"
                bar.set_postfix({"loss": loss_shown, **run.speed.log(progress.step, last_step)})
            if evaluates or saves or saves_now:
                run.speed.pause()
            progress.evaluation_due = evaluates
            if stops:
                raise StopRequestedError
            if evaluates:
                best_dev = _evaluate_dev(run, dev) or best_dev
            if (saves or saves_now) and not is_last:
                run.save_checkpoint()
                run.watch.note_save()
    # What is saved of compiled models and of adapters computes the same with other roundings.
    is_other = args.compile or getattr(args, "backbone_lora_rank", None) is not None
    return None if is_other or dev != "dev" else best_dev


def _next_step(run: _Run, micro_batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the next step of the run, see [`train_step`]."""
    args, progress = run.args, run.progress
    set_rates(run.optimizer, args, rate_factor(progress.step, run.last_step, args.warmup_ratio, args.schedule))
    torch.manual_seed(_step_seed(args.seed, progress.step, run.accelerator.process_index))
    result = train_step(run.task, run.model, run.optimizer, micro_batches, args, run.accelerator)
    progress.step += 1
    if run.average is not None:
        update_average(run.average, run.task.model, args, progress.step)
    return result


def _log_window(run: _Run, grad_norm: torch.Tensor) -> float:
    """Log the mean loss since the last entry of the log, and begin anew."""
    progress = run.progress
    mean = progress.window_loss / progress.window_steps
    run.log.write(progress.step, {"loss": mean, **rates_of(run.optimizer), "grad_norm": float(grad_norm)})
    progress.window_loss, progress.window_steps = 0.0, 0
    return mean


def _evaluate_dev(run: _Run, dev: str) -> DevResult | None:
    """Evaluate during training; the result is returned if these are the best weights, which are saved."""
    progress = run.progress
    metrics, predictions = evaluate(run.task, run.kept, dev, run.args, run.accelerator, run.watch)
    value = float(metrics[run.task.best_metric])
    if is_best := progress.best_metric is None or value > progress.best_metric:
        progress.best_metric, progress.best_step, progress.evals_without_gain = value, progress.step, 0
        _save_best(run)
    else:
        progress.evals_without_gain += 1
    progress.evaluation_due = False
    run.log.write(progress.step, {f"dev_{k}": v for k, v in metrics.items() if isinstance(v, float)})
    return DevResult(metrics, predictions, getattr(run.task.processor, "threshold", None)) if is_best else None


def _save_best(run: _Run) -> None:
    state_dict = run.accelerator.get_state_dict(run.kept)
    if run.accelerator.is_main_process:
        if run.shell is None:
            save_model(run.accelerator.unwrap_model(run.kept), run.task, run.best_folder, state_dict)
        else:
            save_model(fill_shell(run.shell, state_dict), run.task, run.best_folder)
    run.accelerator.wait_for_everyone()


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


def list_skipped(skipped: Sequence[str], output_dir: Path) -> None:
    """Write `skipped.txt` if bad records were left out, and say so in the log."""
    if skipped:
        (output_dir / "skipped.txt").write_text("".join(f"{line}\n" for line in skipped), encoding="utf-8")
        logger.warning("left out %d bad records; they are listed in %s", len(skipped), output_dir / "skipped.txt")


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


def save_model(model: PreTrainedModel, task: Task, folder: Path, state_dict: dict | None = None) -> None:
    """Write model and processor to `folder`; what was there is replaced only after everything is written. The weights of adapters
    become part of those that they belong to."""
    with whole_folder(folder, replace=True) as draft:
        model.save_pretrained(draft, state_dict=merged_weights(model, state_dict or model.state_dict()))
        task.processor.save_pretrained(draft)


def _final_evaluation(run: _Run, best_dev: DevResult | None) -> dict:
    """The contents of `metrics.json`: scores of the best weights on every split but train. Predictions are written as well. What
    is known of the dev split is not computed again."""
    task, args, progress = run.task, run.args, run.progress
    best = class_of(task.model).from_pretrained(run.best_folder).to(run.accelerator.device)
    record: dict[str, Any] = {
        "task": task.name,
        "best_metric": task.best_metric,
        "splits": {},
        "run": {
            "steps": progress.step,
            "best_step": progress.best_step,
            "throughput": run.speed.summary(),
            "args": recorded_args(args),
        },
    }
    for split in task.splits:
        if split == "train":
            continue
        if split == "dev" and best_dev is not None:
            metrics, predictions = best_dev.metrics, best_dev.predictions
            if task.fit_threshold is not None:
                task.processor.threshold = best_dev.threshold
        else:
            metrics, predictions = evaluate(task, best, split, args, run.accelerator, run.watch)
        if run.accelerator.is_main_process:
            path = Path(args.output_dir) / f"predictions_{split}.jsonl"
            write_predictions(path, with_own_scores(task, predictions, split))
        record["splits"][split] = metrics
    if task.fit_threshold is not None:
        record["run"]["threshold"] = task.processor.threshold
    return record


__all__ = ["Progress", "list_skipped", "run_facts", "save_model", "train", "train_step"]
