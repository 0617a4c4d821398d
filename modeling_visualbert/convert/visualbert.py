"""Checkpoints of others -> ours: the authors' `.th` files and the `uclanlp/visualbert-*` repositories.

The authors save an ordered dict with `torch.save`. Its names carry the `bert.` prefix of a wrapper and older spellings::

    bert.bert.embeddings.token_type_embeddings_visual.weight  ->  visual_bert.embeddings.visual_token_type_embeddings.weight
    bert.bert.embeddings.projection.weight                    ->  visual_bert.embeddings.visual_projection.weight
    bert.classifier.weight                                    ->  cls.weight
    bert.flickr_attention.query.weight                        ->  attention.query.weight

Files are read with `weights_only=True`: a checkpoint that wants to run code is refused.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..answers import pythia_answers
from ..checkpoints import HEAD_CLASSES, architecture
from ..hub_code.configuration_visualbert import VisualBertConfig
from ..hub_code.files_visualbert import naming
from ..hub_code.loading_visualbert import check_finite, check_missing
from ..hub_code.tasks_visualbert import HEADS, TASKS
from .checkpoint_files import KeyReport, load_weights, summarise
from .region_detector import detector_from_weights

_RENAMES = (
    (r"^bert\.(?=(bert|cls|classifier|flickr_attention)\.)", ""),  # the wrapper
    (r"^bert\.", "visual_bert."),
    (r"\.token_type_embeddings_visual\.", ".visual_token_type_embeddings."),
    (r"\.position_embeddings_visual\.", ".visual_position_embeddings."),
    (r"\.embeddings\.projection\.", ".embeddings.visual_projection."),
    (r"^classifier\.", "cls."),
    (r"^flickr_attention\.", "attention."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)


def rename_original_key(key: str) -> str:
    """The name in our models of a tensor in the authors' files."""
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def convert_original_checkpoint(
    path: str | Path, task: str | None = None, **config_kwargs: Any
) -> tuple[PreTrainedModel, list[KeyReport]]:
    """Load one of the authors' `.th` files.

    Args:
        path: The file.
        task: Name of a task; guessed from the head's tensors when not given.
        config_kwargs: Fields of [`VisualBertConfig`] that shapes do not tell; `num_attention_heads` defaults to one for
            each 64 hidden units.

    Returns:
        The model in evaluation mode, with the file's region detector where it holds one (VCR), and a report of every tensor
        of the file and of the model.

    Raises:
        ValueError: The file is unsafe, damaged or of another model, or shapes differ.
    """
    weights = load_weights(path)
    detector, detector_report = None, list[KeyReport]()
    if "detector.backbone.0.weight" in weights:  # VCR's were trained along with theirs
        of_detector = {key: value for key, value in weights.items() if key.startswith("detector.")}
        detector, detector_report = detector_from_weights(of_detector, {}, path)
        weights = {key: value for key, value in weights.items() if key not in of_detector}
        config_kwargs = {"region_encoder_config": detector.config, **config_kwargs}
    renamed: dict[str, torch.Tensor] = {}
    origin: dict[str, str] = {}
    for key, value in weights.items():
        name = rename_original_key(key)
        if name in renamed:
            raise ValueError(f"{path}: {key!r} and {origin[name]!r} both become {name!r}")
        renamed[name], origin[name] = value, key
    with naming(path):
        task = task or _guess_task(renamed, path)
    if task not in HEAD_CLASSES:
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(HEAD_CLASSES)}")
    prefix = "visual_bert.region_encoder."
    with naming(path):
        model = HEAD_CLASSES[task](_config_from_shapes(renamed, task, path, config_kwargs))
        report = [item for item in _fill(model, renamed, origin, path) if not (item.name or "").startswith(prefix)]
    lacking = [item.name for item in report if item.name and item.status == "new"]
    left_over = [item.original for item in report if item.original and item.status == "skipped"]
    check_missing(model, lacking, left_over, (), path)
    check_finite(model, path)
    if detector is not None:
        model.visual_bert.region_encoder.load_state_dict(detector.state_dict())
        report += [replace(item, name=item.name and prefix + item.name) for item in detector_report]
    return model.eval(), report


def convert_published_checkpoint(path: str | Path, **config_kwargs: Any) -> tuple[PreTrainedModel, list[KeyReport]]:
    """Load a `uclanlp/visualbert-*` folder (or Hub name): same parameter names, but a config without answers.

    The published VQA config calls its 3129 answers `LABEL_0` ... `LABEL_3128`; they are Pythia's, in Pythia's order, and
    get their names here.

    Raises:
        OSError: There is no such folder or Hub name.
        ValueError: A file of it is missing, unsafe, damaged or of another model, or shapes differ.
    """
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise ValueError(f"{path}: no config.json; expected one beside the weights of a VisualBERT checkpoint")
    with naming(_file(path, "config.json")):
        config = VisualBertConfig.from_pretrained(path, **config_kwargs)
    found = architecture(config, default=TASKS["pretraining"].head)
    if found not in HEADS:
        raise ValueError(f"{path}: architecture {found!r}; expected one of {', '.join(HEADS)}")
    task = HEADS[found]
    config.pad_token_id = 0  # BERT's; the published configs say 1, which is an ordinary word piece
    answers = pythia_answers()
    if task.name == "vqa" and config.num_labels == len(answers):
        config.id2label = dict(enumerate(answers))
        config.label2id = {answer: index for index, answer in enumerate(answers)}
    with naming(_file(path, "model.safetensors", "pytorch_model.bin")):
        model, info = HEAD_CLASSES[task.name].from_pretrained(path, config=config, output_loading_info=True)
    report = [KeyReport(name, name, tuple(value.shape), "loaded") for name, value in model.state_dict().items()]
    report = [KeyReport(None, r.name, r.shape, "new") if r.name in info["missing_keys"] else r for r in report]
    report += [KeyReport(name, None, (), "skipped") for name in sorted(info["unexpected_keys"])]
    return model.eval(), report


def _file(path: str | Path, *names: str) -> Path | str:
    """The first of `names` that is in this folder, or else the folder (or Hub name), for errors."""
    return next((Path(path) / name for name in names if (Path(path) / name).is_file()), path)


def _guess_task(weights: dict[str, torch.Tensor], path: str | Path) -> str:
    if "attention.query.weight" in weights:
        return "flickr30k"
    if "cls.weight" in weights:
        return {1: "vcr", 2: "nlvr2"}.get(len(weights["cls.weight"]), "vqa")
    if "cls.seq_relationship.weight" in weights:
        return "pretraining"
    raise ValueError(
        f"{path}: no known head among its {len(weights)} tensors; pass the task ({', '.join(HEAD_CLASSES)})"
    )


def _config_from_shapes(
    weights: dict[str, torch.Tensor], task: str, path: str | Path, overrides: dict
) -> VisualBertConfig:
    def shape(name: str) -> torch.Size:
        if name not in weights:
            raise ValueError(f"{path}: {name!r} is missing; this is not a VisualBERT checkpoint for {task}")
        return weights[name].shape

    layers = {match[1] for name in weights if (match := re.match(r"visual_bert\.encoder\.layer\.(\d+)\.", name))}
    hidden_size = shape("visual_bert.embeddings.word_embeddings.weight")[1]
    fields: dict[str, Any] = {
        "vocab_size": shape("visual_bert.embeddings.word_embeddings.weight")[0],
        "hidden_size": hidden_size,
        "visual_embedding_dim": shape("visual_bert.embeddings.visual_projection.weight")[1],
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, hidden_size // 64),
        "intermediate_size": shape("visual_bert.encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": shape("visual_bert.embeddings.position_embeddings.weight")[0],
        "type_vocab_size": shape("visual_bert.embeddings.token_type_embeddings.weight")[0],
        "bypass_transformer": "visual_bert.additional_layer.output.dense.weight" in weights,
    }
    if task in ("vqa", "nlvr2"):
        fields["num_labels"] = shape("cls.weight")[0]
    answers = pythia_answers()
    if task == "vqa" and fields["num_labels"] == len(answers):
        fields["id2label"] = dict(enumerate(answers))
        fields["label2id"] = {answer: index for index, answer in enumerate(answers)}
        del fields["num_labels"]
    return VisualBertConfig(**{**fields, **overrides})


def _fill(model: PreTrainedModel, weights: dict, origin: dict, path: str | Path) -> list[KeyReport]:
    ours = model.state_dict()
    tied = model.all_tied_weights_keys
    for name in weights.keys() & ours.keys():
        if weights[name].shape != ours[name].shape:
            raise ValueError(
                f"{path}: {origin[name]!r} has shape {tuple(weights[name].shape)}, expected {tuple(ours[name].shape)}"
            )
    model.load_state_dict({name: weights[name] for name in weights.keys() & ours.keys()}, strict=False)
    model.tie_weights()
    report = []
    for name, value in weights.items():
        status = "skipped" if name not in ours else "tied" if name in tied else "loaded"
        report.append(KeyReport(origin[name], name if name in ours else None, tuple(value.shape), status))
    for name in sorted(ours.keys() - weights.keys()):
        report.append(KeyReport(None, name, tuple(ours[name].shape), "tied" if name in tied else "new"))
    return report


__all__ = [
    "KeyReport",
    "convert_original_checkpoint",
    "convert_published_checkpoint",
    "load_weights",
    "rename_original_key",
    "summarise",
]
