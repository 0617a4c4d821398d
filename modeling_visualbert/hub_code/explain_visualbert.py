"""Why this answer? Attention rollout, gradient x input, and a direct test: what is the answer without a region?

The first two suggest what the model may have used; only the third removes a region and runs the model again. How often they agree
depends on the checkpoint, see `visualbert check-explanations`.

Letters: B batch, T text tokens, R regions, S = T + R, L labels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from .sequence_visualbert import answer_positions

_ROWS = 128  # batch size when each region in turn is left out


def attention_weights(model: PreTrainedModel, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """
    Attention of every layer, as a tuple of [B, H, S, S] tensors (query, key); rows sum to one.

    With late fusion the layers that read only text give [B, H, T, T]; the last one has the regions too.

    Args:
        model: A VisualBERT with any head.
        inputs: Model inputs.

    Raises:
        ValueError: The model returns no weights; it is of another package.
    """
    return tuple(outputs_with_attention(model, **inputs).attentions)


def outputs_with_attention(model: PreTrainedModel, **inputs: torch.Tensor) -> Any:
    """The model's outputs with `attentions`; see [`attention_weights`]. The model is only read, so that threads may share it."""
    outputs = model(**inputs, output_attentions=True)
    if not outputs.attentions or any(weights is None for weights in outputs.attentions):
        raise ValueError(
            f"{type(model).__name__} returns no attention weights; expected a VisualBERT of this package, or one that was "
            "loaded with attn_implementation='eager'"
        )
    return outputs


@torch.inference_mode()
def attention_rollout(
    model: PreTrainedModel, positions: torch.Tensor | None = None, **inputs: torch.Tensor
) -> torch.Tensor:
    """
    How much of each word piece and region reaches a position through all layers (Abnar and Zuidema, arXiv 2005.00928).

    Each layer passes on half of a state, and half of the mixture that its attention (averaged over heads) makes.

    Args:
        model: A VisualBERT with any head.
        positions: [B] the position that is read. When not given, the one that answers to questions are read from.
        inputs: Model inputs with `visual_embeds` (not pixels) and `attention_mask`.

    Returns:
        [B, S], text before regions; rows sum to one.
    """
    _check_inputs(inputs)
    positions = answer_positions(inputs["attention_mask"]) if positions is None else positions
    attentions = [weights.float().mean(dim=1) for weights in attention_weights(model, **inputs)]
    size = max(weights_BSS.shape[-1] for weights_BSS in attentions)
    same_SS = torch.eye(size, device=attentions[0].device)
    rolled_BSS = same_SS.expand(len(attentions[0]), -1, -1)
    for weights_BSS in attentions:
        mixed_BSS = same_SS.repeat(len(weights_BSS), 1, 1)
        length = weights_BSS.shape[-1]  # less than S in layers that read only text: regions pass unchanged
        mixed_BSS[:, :length, :length] = weights_BSS
        rolled_BSS = (mixed_BSS + same_SS) / 2 @ rolled_BSS
    return rolled_BSS[torch.arange(len(rolled_BSS), device=rolled_BSS.device), positions]


def gradient_x_input(model: PreTrainedModel, labels: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """
    Gradient x input: to first order, how much each word piece and region adds to the log-probability of a label.

    Args:
        model: A VisualBERT whose `logits` are [B, L].
        labels: [B] the labels to explain.
        inputs: Model inputs with `input_ids`, `visual_embeds` (not pixels) and `attention_mask`.

    Returns:
        [B, S], text before regions; negative values speak against the label.
    """
    _check_inputs(inputs)
    # The caller may be in inference mode, whose tensors have no gradients; copies made outside of it do.
    with torch.inference_mode(False), torch.enable_grad():
        copied = {name: tensor.clone() for name, tensor in inputs.items()}
        words_BTD = model.get_input_embeddings()(copied.pop("input_ids")).detach().requires_grad_()
        regions_BRV = copied.pop("visual_embeds").expand(len(words_BTD), -1, -1).clone().requires_grad_()
        logits_BL = model(inputs_embeds=words_BTD, visual_embeds=regions_BRV, **copied).logits
        chosen_B1 = logits_BL.float().log_softmax(dim=-1).gather(1, labels.clone()[:, None])
        gradients = torch.autograd.grad(chosen_B1.sum(), (words_BTD, regions_BRV))
    products = [
        (gradient * given).sum(dim=-1) for gradient, given in zip(gradients, (words_BTD, regions_BRV), strict=True)
    ]
    return torch.cat(products, dim=1).detach()


@torch.inference_mode()
def logits_without_each_region(model: PreTrainedModel, **inputs: torch.Tensor) -> torch.Tensor:
    """
    The logits when one region is left out, for each region: [B, R, L]. For a padded region they are those with all regions.

    Args:
        model: A VisualBERT whose `logits` are [B, L].
        inputs: Model inputs with `visual_embeds` (not pixels) and `attention_mask`.
    """
    _check_inputs(inputs)
    batch, num_regions = len(inputs["attention_mask"]), inputs["visual_embeds"].shape[1]
    if not num_regions:
        return model(**inputs).logits[:, None][:, :0]
    mask_BR = inputs.get("visual_attention_mask")
    mask_BR = inputs["attention_mask"].new_ones(batch, num_regions) if mask_BR is None else mask_BR
    rows = torch.arange(batch * num_regions, device=mask_BR.device)
    found = []
    for part in rows.split(_ROWS):
        example, region = part // num_regions, part % num_regions
        left = {name: tensor.expand(batch, *tensor.shape[1:])[example] for name, tensor in inputs.items()}
        left["visual_attention_mask"] = mask_BR.expand(batch, -1)[example].clone()
        left["visual_attention_mask"][torch.arange(len(part), device=part.device), region] = 0
        found.append(model(**left).logits)
    return torch.cat(found).unflatten(0, (batch, num_regions))


@torch.inference_mode()
def explain_answers(model: PreTrainedModel, processor: Any, inputs: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """
    What the best answer to each question depends on, in three ways.

    Args:
        model: A [`VisualBertForQuestionAnswering`].
        processor: Its processor.
        inputs: Model inputs of questions, with `visual_embeds` (not pixels).

    Returns:
        For each question `{"answer", "score", "words": [...], "regions": [...]}`. Each word piece has its `piece`, `rollout`
        (its share of what reaches the answer, in 0..1) and `gradient` (what it adds to the log-probability of the answer, to
        first order). Each region, in the order of the inputs, has the last two and what happens without it: `drop`, how much
        the probability of the answer falls, and `answer_without`, the best answer then.

    Raises:
        ValueError: The inputs are pixels, or the processor has no answers.
    """
    inputs = dict(inputs)
    _check_inputs(inputs)
    scores_BL = processor.answer_scores(model(**inputs))
    labels_B = scores_BL.argmax(dim=-1)
    rollout_BS = attention_rollout(model, **inputs)
    gradient_BS = gradient_x_input(model, labels_B, **inputs)
    without_BRL = processor.answer_scores(logits_without_each_region(model, **inputs))
    mask_BR = inputs.get("visual_attention_mask")
    explained = []
    for row, label in enumerate(labels_B.tolist()):
        pieces = processor.tokenizer.convert_ids_to_tokens(
            inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        )
        num_regions = without_BRL.shape[1] if mask_BR is None else int(mask_BR[row if len(mask_BR) > 1 else 0].sum())
        rollout, gradient = rollout_BS[row].tolist(), gradient_BS[row].tolist()
        score, first_region = scores_BL[row, label].item(), inputs["input_ids"].shape[1]
        explained.append(
            {
                "answer": processor.answers[label],
                "score": score,
                "words": [
                    {"piece": piece, "rollout": rollout[place], "gradient": gradient[place]}
                    for place, piece in enumerate(pieces)
                ],
                "regions": [
                    {
                        "rollout": rollout[first_region + region],
                        "gradient": gradient[first_region + region],
                        "drop": score - without_BRL[row, region, label].item(),
                        "answer_without": processor.answers[int(without_BRL[row, region].argmax())],
                    }
                    for region in range(num_regions)
                ],
            }
        )
    return explained


def _check_inputs(inputs: Mapping[str, torch.Tensor]) -> None:
    for name in ("visual_embeds", "attention_mask"):
        if name not in inputs:
            raise ValueError(
                f"explanations need `{name}`; expected the processor's outputs for a text and precomputed regions "
                "(`model.get_image_features` finds the regions of images)"
            )


__all__ = [
    "attention_rollout",
    "attention_weights",
    "explain_answers",
    "gradient_x_input",
    "logits_without_each_region",
    "outputs_with_attention",
]
