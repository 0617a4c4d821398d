"""Command-line arguments that every training script shares."""

from __future__ import annotations

import contextlib
from argparse import ArgumentParser
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser


@dataclass
class TrainArgs:
    """How to train. Batches are global: the same run on any number of processes takes the same steps."""

    output_dir: str = field(metadata={"help": "folder for all output; the trained model is in <output_dir>/best"})
    epochs: float = field(default=10.0, metadata={"help": "passes over the training data"})
    max_steps: int | None = field(default=None, metadata={"help": "stop after this many steps instead of epochs"})
    batch_size: int = field(default=64, metadata={"help": "examples in one optimiser step, over all processes"})
    micro_batch_size: int | None = field(
        default=None, metadata={"help": "examples in one forward pass of one process; the rest is accumulated"}
    )
    eval_batch_size: int = field(default=128, metadata={"help": "examples in one forward pass of evaluation"})
    learning_rate: float = field(default=2e-5, metadata={"help": "peak learning rate"})
    warmup_ratio: float = field(default=0.1, metadata={"help": "share of the steps in which the rate rises linearly"})
    schedule: str = field(
        default="linear",
        metadata={"help": "how the rate falls afterwards", "choices": ["linear", "cosine", "constant"]},
    )
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW weight decay; none for biases and LayerNorm"})
    adam_beta2: float = field(default=0.999, metadata={"help": "AdamW beta 2"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are clipped to this norm"})
    mixed_precision: str = field(
        default="no", metadata={"help": "precision of forward and backward passes", "choices": ["no", "bf16", "fp16"]}
    )
    compile: bool = field(
        default=False, metadata={"help": "let torch compile the model; the first steps take longer, later ones less"}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "attention of the model: eager, sdpa (default), flex_attention, flash_attention_2 (a GPU; no padding is "
            "computed, whatever the dropout)"
        },
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "trade time for memory"})
    seed: int = field(default=0, metadata={"help": "decides initialisation, order and dropout"})
    num_workers: int = field(default=0, metadata={"help": "processes that prepare batches"})
    evals_per_epoch: float = field(
        default=1.0, metadata={"help": "evaluations on the dev split in each epoch; 0.25: one in four epochs"}
    )
    patience: int | None = field(
        default=None, metadata={"help": "stop after this many evaluations without improvement"}
    )
    save_steps: int = field(default=500, metadata={"help": "steps between two resumable checkpoints"})
    keep_checkpoints: int = field(default=2, metadata={"help": "older checkpoints are removed"})
    resume: bool = field(
        default=False, metadata={"help": "continue from the newest checkpoint in output_dir, if there is one"}
    )
    log_steps: int = field(default=20, metadata={"help": "steps between two lines of log.jsonl and TensorBoard"})
    cpu: bool = field(default=False, metadata={"help": "stay on the CPU even if there is a GPU"})

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "batch_size", "micro_batch_size", "eval_batch_size", "evals_per_epoch"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name} {value}; expected more than 0")
        for name in ("save_steps", "keep_checkpoints", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}; expected at least 1")


Args = TypeVar("Args", bound=TrainArgs)


def parse_args(
    args_class: type[Args],
    description: str,
    argv: list[str] | None = None,
    recipe_without_data: Path | None = None,
    **defaults,
) -> Args:
    """Parse the command line into `args_class`; `--recipe file.yaml` sets defaults that flags override.

    Args:
        args_class: A dataclass derived from [`TrainArgs`].
        description: What `--help` says first.
        argv: The command line without the program; `sys.argv` when not given.
        recipe_without_data: The recipe when neither `--recipe` nor `--data_dir` is given.
        defaults: Defaults of this script, where they differ from the class.
    """
    first = ArgumentParser(add_help=False)
    first.add_argument("--recipe")
    first.add_argument("--data_dir")
    given = first.parse_known_args(argv)[0]
    recipe = given.recipe or (recipe_without_data if given.data_dir is None else None)
    values = dict(defaults)
    if recipe is not None:
        values |= read_recipe(recipe, args_class)
    parser = HfArgumentParser(args_class, description=description, usage="%(prog)s --output_dir DIR [options]")
    parser.add_argument("--recipe", metavar="FILE", help="YAML file with values for these arguments; flags override it")
    for action in parser._actions:
        action.required = action.required and action.dest not in values
    parser.set_defaults(**values)
    namespace = vars(parser.parse_args(argv))
    namespace.pop("recipe")
    return args_class(**namespace)


def read_recipe(path: str | Path, args_class: type[TrainArgs]) -> dict:
    """The values of a recipe file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no mapping, or names an argument that does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such recipe")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected `name: value` lines")
    known = {f.name: f for f in fields(args_class)}
    hints = get_type_hints(args_class)
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{path}: unknown argument {name!r}; expected one of {', '.join(sorted(known))}")
        values[name] = _checked(value, get_args(hints[name]) or (hints[name],), f"{path}: {name!r}")
        choices = known[name].metadata.get("choices")
        if choices and value not in choices:
            raise ValueError(f"{path}: {name!r} is {value!r}; expected one of {', '.join(choices)}")
    return values


def _checked(value: Any, types: tuple[type, ...], what: str) -> Any:
    if float in types and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(value)  # YAML reads 2e-5 as a string
    if type(value) not in types:
        raise ValueError(f"{what} is {value!r}; expected {' or '.join(t.__name__ for t in types)}")
    return value
