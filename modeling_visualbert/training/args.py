"""Command-line arguments that every training script shares."""

from __future__ import annotations

import contextlib
import os
import time
from argparse import ArgumentParser
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from ..data.plain_yaml import read_yaml
from ..flags import parse_flags
from .recipes import recipe_path

PRECISIONS = ("no", "bf16", "fp16")
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab")

SECRETS = ("hub_token",)  # never written anywhere

DATA_FLAGS = (
    "data_dir",
    "dataset_name",
    "train_file",
    "validation_file",
    "test_file",
)  # without one: the embedded corpus

# Lowest and highest value of every argument that is a real number, in all scripts; round brackets exclude the end.
INTERVALS = {
    **dict.fromkeys(("epochs", "evals_per_epoch", "max_grad_norm", "save_minutes", "max_hours"), "(0, inf)"),
    **dict.fromkeys(
        (
            *("learning_rate", "backbone_learning_rate", "head_learning_rate"),
            *("weight_decay", "initializer_range", "second_segment_std", "mentioned_answers_weight"),
        ),
        "[0, inf)",
    ),
    **dict.fromkeys(("adam_beta2", "dropout", "label_smoothing", "image_fusion_dropout"), "[0, 1)"),
    **dict.fromkeys(("warmup_ratio", "score_threshold", "nms_threshold"), "[0, 1]"),
    "mlm_probability": "(0, 1]",
    **dict.fromkeys(("train_val_split", "ema_decay"), "(0, 1)"),
}


@dataclass
class TrainArgs:
    """How to train. Batch sizes are global: a run takes the same steps on any number of processes."""

    output_dir: str = field(metadata={"help": "folder for all output; the trained model is in <output_dir>/best"})
    epochs: float = field(default=10.0, metadata={"help": "passes over the training data"})
    max_steps: int | None = field(default=None, metadata={"help": "stop after this many steps instead of epochs"})
    batch_size: int = field(default=64, metadata={"help": "examples in one optimiser step, on all processes together"})
    micro_batch_size: int | None = field(
        default=None,
        metadata={"help": "examples in one forward pass of one process; gradients are accumulated up to batch_size"},
    )
    eval_batch_size: int = field(default=128, metadata={"help": "examples in one forward pass of evaluation"})
    learning_rate: float = field(default=2e-5, metadata={"help": "peak learning rate"})
    backbone_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "peak learning rate of the vision part, if it is trained: the region encoder of a model, the backbone of a "
            "detector (default: learning_rate)"
        },
    )
    head_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "peak learning rate of what a BERT to start from does not have: the projection of regions, the layer of "
            "--late_fusion and the head (default: learning_rate)"
        },
    )
    warmup_ratio: float = field(
        default=0.1, metadata={"help": "share of the steps in which the learning rate rises linearly"}
    )
    schedule: str = field(
        default="linear",
        metadata={"help": "how the learning rate falls after the warm-up", "choices": ["linear", "cosine", "constant"]},
    )
    weight_decay: float = field(
        default=0.01, metadata={"help": "weight decay of AdamW; biases and LayerNorm have none"}
    )
    optimizer: str = field(
        default="adamw",
        metadata={
            "help": "adamw_8bit and adamw_fp8 keep the moments of AdamW in 8 bits, a quarter of their memory (needs torchao "
            "and a C++ compiler); fp8 is faster on a CPU, and needs a GPU that knows it",
            "choices": ["adamw", "adamw_8bit", "adamw_fp8"],
        },
    )
    adam_beta2: float = field(default=0.999, metadata={"help": "beta 2 of AdamW"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "clip gradients to this norm"})
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "evaluate and keep an exponential moving average of the weights with this decay, such as 0.999 (default: the "
            "weights themselves)"
        },
    )
    mixed_precision: str | None = field(
        default=None,
        metadata={
            "help": "precision of the forward and backward passes (default: that of accelerate launch, or no)",
            "choices": list(PRECISIONS),
        },
    )
    compile: bool = field(
        default=False, metadata={"help": "compile the model with torch: the first steps take longer, later ones less"}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "attention implementation: eager, sdpa (default), flex_attention or flash_attention_2 (needs a GPU; skips "
            "padding even with dropout)"
        },
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "recompute activations in the backward pass: slower, with less memory"}
    )
    seed: int = field(default=0, metadata={"help": "seed of initialisation, order of the data and dropout"})
    num_workers: int | None = field(
        default=None,
        metadata={
            "help": "processes that prepare batches, for each process that trains (default: with a GPU half of its share of the "
            "cores, at most 8; without one 0)"
        },
    )
    evals_per_epoch: float = field(
        default=1.0, metadata={"help": "evaluations on the dev split per epoch; 0.25 evaluates every fourth epoch"}
    )
    eval_steps: int | None = field(
        default=None, metadata={"help": "steps between two evaluations, instead of evals_per_epoch"}
    )
    eval_samples: int | None = field(
        default=None,
        metadata={
            "help": "evaluate only so many examples of the dev split during training, spread evenly; at the end all are evaluated"
        },
    )
    patience: int | None = field(
        default=None,
        metadata={
            "help": "stop after this many evaluations without improvement",
            "aliases": ["--early_stopping_patience"],  # its name in transformers
        },
    )
    save_steps: int = field(default=500, metadata={"help": "steps between two checkpoints to resume from"})
    save_minutes: float | None = field(
        default=None, metadata={"help": "save a checkpoint after this many minutes too, however few steps they were"}
    )
    max_hours: float | None = field(
        default=None,
        metadata={
            "help": "stop after this many hours, loading included, as at SIGTERM: save, and exit with status 75; --resume goes on"
        },
    )
    keep_checkpoints: int = field(default=2, metadata={"help": "number of checkpoints to keep; older ones are removed"})
    resume: bool = field(
        default=False,
        metadata={
            "help": "continue from the newest checkpoint in output_dir, if there is one; length, intervals and folders may change"
        },
    )
    log_steps: int = field(default=20, metadata={"help": "steps between two entries of log.jsonl and the trackers"})
    report_to: list[str] = field(
        default_factory=lambda: ["tensorboard"],
        metadata={
            "help": "experiment trackers that get the numbers of log.jsonl and the arguments; several are possible, `all` are "
            "those that are installed",
            "choices": [*TRACKERS, "all", "none"],
        },
    )
    profile: int | None = field(
        default=None,
        metadata={
            "help": "trace this many steps, after three others, to output_dir/profile; https://ui.perfetto.dev shows it"
        },
    )
    cpu: bool = field(default=False, metadata={"help": "use the CPU even if there is a GPU"})

    def __post_init__(self) -> None:
        self.started = time.monotonic()  # of the job: `max_hours` counts from here
        for name in INTERVALS.keys() & vars(self).keys():
            check_interval(name, getattr(self, name), f"--{name} {getattr(self, name)}")
        for name in (
            "max_steps",
            "batch_size",
            "micro_batch_size",
            "eval_batch_size",
            "eval_steps",
            "eval_samples",
            "profile",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name} {value}; expected more than 0")
        for name in ("save_steps", "keep_checkpoints", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}; expected at least 1")
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"--num_workers {self.num_workers}; expected at least 0")
        self.report_to = _checked_trackers(self.report_to)
        self.mixed_precision = agreed_precision(self.mixed_precision)


def recorded_args(args: TrainArgs) -> dict[str, Any]:
    """The arguments as checkpoints, `metrics.json` and trackers keep them: all but secrets."""
    return {name: value for name, value in asdict(args).items() if name not in SECRETS}


def _checked_trackers(names: str | list[str]) -> list[str]:
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in (*TRACKERS, "all", "none"):
            raise ValueError(f"--report_to {name}; expected one of {', '.join(TRACKERS)}, all or none")
    if "none" in names and len(names) > 1:
        raise ValueError(f"--report_to {' '.join(names)}; expected none alone, or trackers")
    return names


def check_interval(name: str, value: float | None, what: str) -> None:
    """
    Raises:
        ValueError: The value of an argument lies outside its interval, or is NaN; the message starts with `what`.
    """
    if value is None:
        return
    low, high = (float(end) for end in INTERVALS[name][1:-1].split(", "))
    is_above = low <= value if INTERVALS[name][0] == "[" else low < value
    is_below = value <= high if INTERVALS[name][-1] == "]" else value < high
    if not (is_above and is_below):
        raise ValueError(f"{what}; expected a number in {INTERVALS[name]}")


def agreed_precision(given: str | None) -> str:
    """The precision that a flag or the launcher asks for. The launcher's "no" asks for nothing: it always says something.

    Raises:
        ValueError: They contradict one another, or the launcher asks for one that there is not.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    source = "`accelerate launch` (--mixed_precision, its configuration file, or ACCELERATE_MIXED_PRECISION)"
    if launched not in PRECISIONS:
        raise ValueError(f"mixed precision {launched!r} of {source}; expected one of {', '.join(PRECISIONS)}")
    if given is not None and launched not in ("no", given):
        raise ValueError(
            f"--mixed_precision {given}, but {launched} of {source}; expected only one of them, or the same"
        )
    return given or launched


Args = TypeVar("Args", bound=TrainArgs)


def parse_args(
    args_class: type[Args],
    description: str,
    argv: list[str] | None = None,
    recipe_without_data: Path | None = None,
    **defaults,
) -> Args:
    """Parse the command line into `args_class`. `--recipe file.yaml` sets defaults, which flags override.

    Args:
        args_class: A dataclass derived from [`TrainArgs`].
        description: First line of `--help`.
        argv: The command line without the program name (default: `sys.argv[1:]`).
        recipe_without_data: The recipe to use when neither `--recipe` nor data is given.
        defaults: Defaults of this script that differ from those of the class.
    """
    first = ArgumentParser(add_help=False)
    first.add_argument("--recipe")
    for flag in DATA_FLAGS:
        first.add_argument(f"--{flag}")
    given = vars(first.parse_known_args(argv)[0])
    has_data = any(given[flag] is not None for flag in DATA_FLAGS)
    recipe = given["recipe"] or (None if has_data else recipe_without_data)
    values = dict(defaults)
    if recipe is not None:
        values |= read_recipe(recipe, args_class)
    parser = HfArgumentParser(args_class, description=description, usage="%(prog)s --output_dir DIR [options]")
    parser.add_argument(
        "--recipe",
        metavar="FILE",
        help="YAML file with values for these arguments, or the name of one in examples/recipes; flags override it",
    )
    for action in parser._actions:
        action.required = action.required and action.dest not in values
    parser.set_defaults(**values)
    namespace = vars(parse_flags(parser, argv))
    namespace.pop("recipe")
    return args_class(**namespace)


def read_recipe(path: str | Path, args_class: type[TrainArgs]) -> dict:
    """The values of a recipe file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a mapping, names an argument that does not exist, or has a value of the wrong type or outside
            its interval.
    """
    path = recipe_path(path)
    values = read_yaml(path, "`name: value` lines")
    known = {f.name: f for f in fields(args_class)}
    hints = get_type_hints(args_class)
    for name, value in values.items():
        if name not in known:
            near = ", ".join(get_close_matches(str(name), known)) or "those that --help lists"
            raise ValueError(f"{path}: unknown argument {name!r:.60}; expected one of {near}")
        if get_origin(hints[name]) is list:
            items = value if isinstance(value, list) else [value]
            values[name] = [_checked(item, get_args(hints[name]), f"{path}: {name!r}") for item in items]
        else:
            values[name] = _checked(value, get_args(hints[name]) or (hints[name],), f"{path}: {name!r}")
        if name in INTERVALS:
            check_interval(name, values[name], f"{path}: {name!r} is {value!r:.80}")
        choices = known[name].metadata.get("choices")
        if choices and any(one not in choices for one in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{path}: {name!r} is {value!r:.80}; expected one of {', '.join(choices)}")
    return values


def _checked(value: Any, types: tuple[type, ...], what: str) -> Any:
    if float in types and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(value)  # YAML reads 2e-5 as a string
    if str in types and type(value) is int:
        return str(value)  # and a size, such as 6 where 6x8 is possible, as a number
    if type(value) not in types:
        raise ValueError(f"{what} is {value!r:.60}; expected {' or '.join(t.__name__ for t in types)}")
    return value
