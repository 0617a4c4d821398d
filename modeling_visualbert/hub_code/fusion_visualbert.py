"""Question and image, multiplied: scores of answers beside those of the joint sequence (`config.image_fusion_size`).

Where there are few questions, attention over regions learns slowly what an image as a whole says about an answer. A product of
the two learns it fast, and its image side alone can be trained with what is known to be in an image (`mentioned_answers`).

Letters: B batch, T text tokens, R regions, D hidden size, V region feature, F size of the product, L labels.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_visualbert import VisualBertConfig
from .linear_visualbert import apply_linear


class VisualBertImageFusion(nn.Module):
    """Low-rank bilinear pooling of two means: of the states of the words, and of the regions (Kim et al., arXiv 1610.04325,
    without its tanh)."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        size = config.image_fusion_size
        self.question = nn.Linear(config.hidden_size, size)
        self.image = nn.Linear(config.visual_embedding_dim, size, bias=False)  # no image, no score
        self.answers = nn.Linear(size, config.num_labels, bias=False)
        self.image_bias = nn.Parameter(torch.zeros(config.num_labels))
        self.dropout = nn.Dropout(config.image_fusion_dropout)

    @torch.no_grad()
    def start(self) -> None:
        """Start where every question multiplies by one, and an image has about one label."""
        init.ones_(self.question.bias)
        init.constant_(self.image_bias, -math.log(len(self.image_bias)))

    def forward(self, states_BTD: torch.Tensor, mask_BT: torch.Tensor, image_BF: torch.Tensor) -> torch.Tensor:
        """Scores of the answers, [B, L], from the states of the question's word pieces."""
        question_BF = apply_linear(self.question, self.dropout(_normalised_mean(states_BTD, mask_BT)))
        return apply_linear(self.answers, self.dropout(question_BF * image_BF))

    def project_image(self, visual_embeds: torch.Tensor, visual_attention_mask: torch.Tensor | None) -> torch.Tensor:
        """[B, F] of region features [B, R, V]: their mean, projected; zeros where there are no regions."""
        regions_BRV = visual_embeds.to(self.question.bias.dtype)
        mask_BR = visual_embeds.new_ones(visual_embeds.shape[:2])
        mask_BR = mask_BR if visual_attention_mask is None else visual_attention_mask
        return apply_linear(self.image, self.dropout(_normalised_mean(regions_BRV, mask_BR)))

    def image_scores(self, image_BF: torch.Tensor) -> torch.Tensor:
        """Scores of the image alone, [B, L], for the loss of `mentioned_answers`."""
        return apply_linear(self.answers, self.dropout(image_BF)) + self.image_bias


def _normalised_mean(rows_BND: torch.Tensor, mask_BN: torch.Tensor) -> torch.Tensor:
    """Mean of the rows that are there, with mean 0 and variance 1; zeros where there are none."""
    is_there_BN1 = mask_BN.bool()[..., None].to(rows_BND.dtype)
    mean_BD = (rows_BND * is_there_BN1).sum(dim=1) / is_there_BN1.sum(dim=1).clamp(min=1)
    return F.layer_norm(mean_BD, mean_BD.shape[-1:])


__all__ = ["VisualBertImageFusion"]
