"""Why this answer? Attention rollout, gradient x input, and what happens without a region.

Letters: B batch, T text tokens, R regions, S = T + R, H heads, L layers.
"""

import torch
from transformers import PreTrainedModel


def attention_weights(model: PreTrainedModel, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """
    Attention of every layer, as a tuple of [B, H, S, S] tensors (query, key); rows sum to one.

    With late fusion the layers that read only text give [B, H, T, T]; the last one has the regions too.

    Args:
        model: A VisualBERT of any head. Only "eager" attention returns its weights, so the model is switched to it for the
            call.
        inputs: Model inputs.

    Raises:
        ValueError: The model returns no weights even then.
    """
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        attentions = model(**inputs, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(implementation)
    if not attentions or any(weights is None for weights in attentions):
        raise ValueError(
            f"{type(model).__name__} returns no attention weights (it was loaded with {implementation!r} attention); "
            "expected a model that can run with attn_implementation='eager'"
        )
    return tuple(attentions)


__all__ = ["attention_weights"]
