"""Other forms of a checkpoint: 8-bit integers for CPUs, and ONNX files for other runtimes.

An ONNX file holds the model without its region encoder: text and region features in, logits out, with dynamic numbers of texts,
words and regions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TorchAoConfig

from ..disk import folder_for_drafts, sync
from ..hub_code.modeling_visualbert import (
    VisualBertForMultipleChoice,
    VisualBertForPreTraining,
    VisualBertForRegionToPhraseAlignment,
)

_NEEDS = 'ONNX export needs more packages: pip install "modeling-visualbert[onnx]"'


def export_onnx(model: PreTrainedModel, path: str | Path, int8: bool = False) -> list[str]:
    """Write a model with a head as an ONNX file with dynamic axes, for onnxruntime or others.

    Args:
        model: Any of the five heads.
        path: The file to write; must not exist.
        int8: Store and multiply the weights of linear layers as 8-bit integers (activations are quantised as they come).

    Returns:
        Names of the inputs, which are arguments of the model's `forward`; masks and segments are all needed.

    Raises:
        ImportError: The packages of the extra `onnx` are missing.
        FileExistsError: There is a file or folder of that name.
        FileNotFoundError: There is no folder for it.
        ValueError: The model has no head, or was saved with quantised weights, which ONNX does not know.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists; choose another file or remove it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")
    if not hasattr(model, "visual_bert"):
        raise ValueError(f"{type(model).__name__} has no head to export; expected one of the five heads")
    if getattr(model.config, "quantization_config", None) is not None:
        raise ValueError(
            f"{model.config.name_or_path or type(model).__name__} has quantised weights; expected single precision (ONNX files "
            "are quantised with `int8` instead)"
        )
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ImportError(_NEEDS) from error
    inputs, axes = _example_inputs(model)
    is_pretraining = isinstance(model, VisualBertForPreTraining)
    names = ["prediction_logits", "seq_relationship_logits"] if is_pretraining else ["logits"]
    with folder_for_drafts(path) as folder:
        draft = folder / "model.onnx"
        with torch.no_grad():
            torch.onnx.export(
                model.eval(),
                kwargs=inputs,
                f=str(draft),
                input_names=list(inputs),
                output_names=names,
                dynamic_shapes=axes,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        _check_axes(draft, axes)
        if int8:
            # Weights of 7 bits: sums of products of 8 bits overflow on processors without VNNI, and the file is for any.
            options = {"per_channel": True, "weight_type": QuantType.QInt8, "reduce_range": True}
            quantize_dynamic(draft, folder / "int8.onnx", **options)
            draft = folder / "int8.onnx"
        sync(draft)
        draft.replace(path)
    return list(inputs)


def _check_axes(path: Path, axes: dict[str, Any]) -> None:
    """
    Raises:
        RuntimeError: A size that may differ has become that of the example, which the exporter does not say.
    """
    import onnx

    for given in onnx.load(path, load_external_data=False).graph.input:
        sizes = given.type.tensor_type.shape.dim
        if fixed := [place for place in axes.get(given.name, ()) if not sizes[place].dim_param]:
            raise RuntimeError(
                f"{given.name}: axis {fixed[0]} of the ONNX file is {sizes[fixed[0]].dim_value} for good; expected any size"
            )


def int8_config() -> TorchAoConfig:
    """Configuration for `from_pretrained(..., quantization_config=int8_config())`: the encoder's linear layers in 8-bit integers,
    weights quantised per row, activations dynamically per position. Region encoder, visual projection and head keep
    their precision. A checkpoint saved in this form loads without the argument.

    Raises:
        ImportError: The packages of the extra `int8` are missing.
    """
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    except ImportError as error:
        raise ImportError('int8 needs one more package: pip install "modeling-visualbert[int8]"') from error
    kept = [f"{prefix}{name}" for name in ("embeddings", "region_encoder", "pooler") for prefix in ("", "visual_bert.")]
    return TorchAoConfig(
        Int8DynamicActivationInt8WeightConfig(), modules_to_not_convert=[*kept, "attention", "cls", "fusion"]
    )


def _example_inputs(model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Inputs of a head, no two sizes equal, and the names of their axes."""
    batch, choices, words, regions, phrases, aligned = 2, 3, 9, 7, 5, 4
    size = {name: torch.export.Dim(name, min=2, max=512) for name in ("words", "regions", "phrases", "aligned")}
    size["batch"] = torch.export.Dim("batch", max=65536)
    size["choices"] = torch.export.Dim("choices", max=512)
    rows: tuple[int, ...] = (batch,)
    row_axes: tuple[str, ...] = ("batch",)
    shared: dict[str, tuple[torch.Tensor, tuple[str, ...]]] = {}
    if isinstance(model, VisualBertForMultipleChoice):
        rows, row_axes = (batch, choices), ("batch", "choices")
        shared["image_text_alignment"] = (
            torch.zeros(*rows, regions, aligned, dtype=torch.long),
            (*row_axes, "regions", "aligned"),
        )
    if isinstance(model, VisualBertForRegionToPhraseAlignment):
        shared["region_to_phrase_position"] = torch.ones(batch, phrases, dtype=torch.long), ("batch", "phrases")
    ones, seen = torch.ones(*rows, words, dtype=torch.long), torch.ones(batch, regions, dtype=torch.long)
    features = torch.randn(batch, regions, model.config.visual_embedding_dim)
    given = {
        "input_ids": (ones, (*row_axes, "words")),
        "attention_mask": (ones, (*row_axes, "words")),
        "token_type_ids": (torch.zeros_like(ones), (*row_axes, "words")),
        "visual_embeds": (features, ("batch", "regions", None)),
        "visual_attention_mask": (seen, ("batch", "regions")),
        "visual_token_type_ids": (torch.zeros_like(seen), ("batch", "regions")),
        **shared,
    }
    inputs = {name: tensor.clone() for name, (tensor, _) in given.items()}
    axes = {
        name: {i: size[axis] for i, axis in enumerate(names) if axis is not None} for name, (_, names) in given.items()
    }
    return inputs, axes


__all__ = ["export_onnx", "int8_config"]
