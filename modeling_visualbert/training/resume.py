"""Which arguments may change when a run is resumed.

Every flag of every script is in one of the three sets below; `tests/test_training_resume.py` fails for a flag in none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from .args import TrainArgs, recorded_args
from .batches import StepPlan

# These decide how long, how fast and where a run computes, when it is evaluated, and what is written: never what a step computes,
# except for rounding.
MAY_CHANGE = frozenset(
    [
        *(
            "output_dir",
            "resume",
            "save_steps",
            "save_minutes",
            "max_hours",
            "keep_checkpoints",
            "log_steps",
            "report_to",
            "profile",
        ),
        *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_token"),
        # The learning rate follows the schedule of the new length from the first resumed step on.
        *("epochs", "max_steps", "patience"),
        *(
            "evals_per_epoch",
            "eval_steps",
            "eval_samples",
            "eval_batch_size",
            "test_split",
            "score_with",
            "probe_words",
        ),
        *("num_workers", "cpu", "compile", "attn_implementation", "gradient_checkpointing"),
        *("images_dir", "train_images", "dev_images", "hash_images", "max_eval_samples"),
        # What becomes of a detector after training.
        *("score_threshold", "nms_threshold", "max_regions"),
    ]
)

# Files and folders of the data: another path is the same data in another place, but a path for none (the embedded corpus, regions
# that are computed) is other data.
MAY_MOVE = frozenset(
    [
        *("data_dir", "features_dir", "train_annotations", "dev_annotations", "exclude_images"),
        *("train_file", "validation_file", "test_file"),
    ]
)

# These decide what a step computes: batches, data, inputs, model, loss and optimiser; `dev_split` decides which weights are kept.
# `micro_batch_size` is here because detectors average their loss over micro-batches. Models and tokenizers are here because they
# can be names on the Hub, where another name is another model.
MUST_STAY = frozenset(
    [
        *("batch_size", "micro_batch_size", "seed", "train_split", "dev_split", "skip_bad_records", "flip"),
        *("dataset_name", "dataset_config_name", "image_column", "train_val_split", "max_train_samples"),
        *("streaming", "shuffle_buffer"),
        *("question_column", "answer_column", "text_column", "label_column", "caption_column"),
        *("sentence_column", "phrases_column", "boxes_column", "choices_column", "objects_column"),
        *("rationales_column", "rationale_label_column"),
        *("train_scenes", "val_scenes", "test_scenes", "one_object"),
        *(
            "learning_rate",
            "backbone_learning_rate",
            "head_learning_rate",
            "warmup_ratio",
            "schedule",
            "weight_decay",
            "optimizer",
            "adam_beta2",
            "max_grad_norm",
            "ema_decay",
            "mixed_precision",
        ),
        *("init_from", "tokenizer", "region_encoder", "grid_backbone", "grid_size", "image_size", "detector"),
        *(
            "from_pixels",
            "train_region_encoder",
            "train_backbone_layers",
            "backbone_lora_rank",
            "any_detector",
            "freeze_detector",
            "num_regions",
            "text_only",
            "late_fusion",
        ),
        *(
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "initializer_range",
            "dropout",
        ),
        *(
            "answers",
            "min_answer_count",
            "target_rule",
            "second_segment_std",
            "positions",
            "class_weights",
            "label_smoothing",
            "image_fusion_size",
            "image_fusion_dropout",
            "mentioned_answers_weight",
            "best_metric",
            "threshold",
        ),
        *("subtask", "objects", "whole_image", "alignment", "max_length"),
        *("stage", "no_match", "mlm_probability"),
        *("image_height", "image_width", "num_queries"),
    ]
)


def saved_args(args: TrainArgs) -> dict[str, Any]:
    """What a checkpoint keeps of the arguments: the values, and which of them may change (for versions that do not know them)."""
    values = recorded_args(args)
    return {"args": values, "may_change": sorted(MAY_CHANGE & values.keys())}


def changed_args(checkpoint: Path, saved: Mapping[str, Any], args: TrainArgs) -> dict[str, tuple[Any, Any]]:
    """Compare the arguments of a resumed run with those that its checkpoint was trained with.

    A flag that the checkpoint does not have is newer than the checkpoint, so it had its default. A flag that only the checkpoint
    has belongs to another version of this package: it is ignored if it was off or may change.

    Args:
        checkpoint: Its path, for messages.
        saved: What [`saved_args`] gave for the earlier run, of this version or another.
        args: The arguments now.

    Returns:
        Earlier and new value of every flag that changed.

    Raises:
        ValueError: A flag changed, or is unknown, that decides what a training step computes.
    """
    new = recorded_args(args)
    defaults = {item.name: item.default for item in fields(args) if item.default is not MISSING}
    defaults["mixed_precision"] = "no"  # as long as that of the launcher was not taken
    old = {**defaults, **saved["args"]}
    if old.get("grid_size") is not None:  # earlier versions kept a number, also of runs without a grid
        old["grid_size"] = str(old["grid_size"]) if old.get("grid_backbone") else None
    changed = {name: (old[name], value) for name, value in new.items() if name in old and old[name] != value}
    changed.pop("resume", None)
    refused = [
        f"{name}={before!r}, not {after!r}"
        for name, (before, after) in changed.items()
        if not (name in MAY_CHANGE or (name in MAY_MOVE and None not in (before, after)))
    ]
    if refused:
        raise ValueError(f"{checkpoint} was trained with {' and '.join(refused)}; expected the same")
    for name in sorted(old.keys() - new.keys() - set(saved.get("may_change", ()))):
        if old[name]:
            raise ValueError(
                f"{checkpoint} was trained with {name}={old[name]!r}, which this version does not have; "
                "expected the version that it was trained with"
            )
    return changed


def check_steps(checkpoint: Path, state: Mapping[str, Any], step: int, args: TrainArgs, plan: StepPlan) -> None:
    """
    Raises:
        ValueError: The training data has another size than before, or no step is left after `step`.
    """
    examples = state.get("train_examples", plan.num_examples)  # earlier versions did not save it
    if examples != plan.num_examples:
        raise ValueError(
            f"{checkpoint} was trained on {examples} examples, not {plan.num_examples}; expected the same data"
        )
    last_step = plan.num_steps(args.epochs, args.max_steps)
    if step >= last_step:
        raise ValueError(
            f"{checkpoint} has taken {step} steps, and the run would end after {last_step}; "
            "expected a larger --epochs or --max_steps"
        )


def describe_changes(changed: Mapping[str, tuple[Any, Any]], args: TrainArgs, plan: StepPlan) -> str:
    """The changed arguments in one line, and what a new number of steps means for the learning rate."""
    text = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in changed.items())
    old_epochs, _ = changed.get("epochs", (args.epochs, None))
    old_max_steps, _ = changed.get("max_steps", (args.max_steps, None))
    before, now = plan.num_steps(old_epochs, old_max_steps), plan.num_steps(args.epochs, args.max_steps)
    if before != now:
        text += f"; from here on the learning rate follows the schedule of {now} steps instead of {before}"
    return text
