"""VisualBERT: one BERT that reads a text and the regions of an image (Li et al., arXiv 1908.03557).

The file is in the order in which the model runs: embeddings, layer, encoder, base model, five heads. Parameter names are those of
the published checkpoints, and numbers agree with the authors' code (`tests/test_golden.py`). Kept elsewhere: checkpoints
(`checkpoint_visualbert`), pixels -> regions (`pixels_visualbert`), masks and read positions (`sequence_visualbert`), and what
makes layers faster without changing their results (`packing_visualbert`, `linear_visualbert`).

Letters: B batch, T text tokens, R regions, S = T + R, D hidden size, V region feature, L labels, C choices, A aligned
words per region, E phrases (entities), P positions that are read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MultipleChoiceModelOutput,
    SequenceClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .checkpoint_visualbert import VisualBertCheckpointModel
from .configuration_visualbert import VisualBertConfig, split_attention_request
from .fusion_visualbert import VisualBertImageFusion
from .linear_visualbert import apply_linear
from .losses_visualbert import (
    binary_cross_entropy,
    check_choices_mask,
    check_classes,
    check_scores,
    choice_cross_entropy,
    cross_entropy,
    kl_divergence,
)
from .packing_visualbert import Packing, choose_kernel, encode, wants_attentions
from .pixels_visualbert import PixelReader, pop_region_inputs
from .sequence_visualbert import (
    answer_positions,
    check_no_other_images,
    check_phrases,
    cls_positions,
    flatten_choices,
    for_each_text,
    joint_mask,
    phrase_and_region_positions,
    text_of,
    word_positions,
)

# How layers know which positions are visible: by the mask that attention implementations take, or in rows without padding.
Mask = torch.Tensor | Packing | None


class VisualBertEmbeddings(nn.Module):
    """Word pieces and regions in one sequence: text first, then regions, one LayerNorm over both (paper, section 3.2)."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size)  # the authors train [PAD] like any other piece
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.visual_token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.visual_position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.visual_projection = nn.Linear(config.visual_embedding_dim, size)
        self.starts_from_text_tables = config.special_visual_initialize

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        visual_embeds: torch.Tensor | None = None,
        visual_token_type_ids: torch.Tensor | None = None,
        image_text_alignment: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns [B, S, D]; see [`VisualBertModel.forward`] for the arguments."""
        states_BSD = self.embed_text(input_ids, token_type_ids, position_ids, inputs_embeds)
        if visual_embeds is not None:
            batch_size = states_BSD.shape[0]
            regions_BRD = self.embed_regions(visual_embeds, visual_token_type_ids, image_text_alignment, batch_size)
            states_BSD = torch.cat((states_BSD, regions_BRD), dim=1)
        return self.dropout(self.LayerNorm(states_BSD))

    def embed_text(self, input_ids, token_type_ids=None, position_ids=None, inputs_embeds=None) -> torch.Tensor:
        """Word + segment (0 when not given) + position, [B, T, D], before LayerNorm."""
        words_BTD = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = torch.arange(words_BTD.shape[1], device=words_BTD.device)[None]
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        return words_BTD + self.token_type_embeddings(token_type_ids) + self.position_embeddings(position_ids)

    def embed_regions(
        self, visual_embeds, visual_token_type_ids=None, image_text_alignment=None, batch_size: int | None = None
    ) -> torch.Tensor:
        """Projected feature + segment (0 when not given) + position, [B, R, D], before LayerNorm. Each argument has a row per
        text or a row per image; the features of an image are projected once for all texts about it."""
        batch_size = visual_embeds.shape[0] if batch_size is None else batch_size
        regions_BRD = for_each_text(self.project_regions(visual_embeds), batch_size)
        if visual_token_type_ids is None:
            # The authors trained segment 0 in every single-image task; `transformers` defaults to the untrained row 1.
            visual_token_type_ids = torch.zeros(visual_embeds.shape[:2], dtype=torch.long, device=visual_embeds.device)
        segments_BRD = self.visual_token_type_embeddings(visual_token_type_ids)
        regions_BRD = regions_BRD + for_each_text(segments_BRD, batch_size)
        # Every region sits at position 0 of the regions' own table ...
        first = torch.zeros(1, 1, dtype=torch.long, device=visual_embeds.device)
        regions_BRD = regions_BRD + self.visual_position_embeddings(first)
        if image_text_alignment is not None:
            # ... plus the mean *text* position of the words that name it.
            words_BRD = self.embed_alignment(image_text_alignment, visual_embeds.shape[1], regions_BRD.dtype)
            regions_BRD = regions_BRD + for_each_text(words_BRD, batch_size)
        return regions_BRD

    def project_regions(self, visual_embeds: torch.Tensor) -> torch.Tensor:
        """[B, R, D] of region features [B, R, V], which may be stored in another precision."""
        expected = self.visual_projection.in_features
        if visual_embeds.dim() != 3 or visual_embeds.shape[-1] != expected:
            raise ValueError(
                f"`visual_embeds` of shape {tuple(visual_embeds.shape)}; expected (batch_size, regions, {expected})"
            )
        dtype = self.visual_position_embeddings.weight.dtype  # that of the projection, unless it is quantised
        return apply_linear(self.visual_projection, visual_embeds.to(dtype))

    def embed_alignment(self, image_text_alignment, num_regions: int, dtype: torch.dtype) -> torch.Tensor:
        """Mean text position of the words that name each region, [B, R, D]; -1 is padding, anywhere in the row."""
        if image_text_alignment.shape[1] < num_regions:
            raise ValueError(f"alignment of {image_text_alignment.shape[1]} regions; expected at least {num_regions}")
        alignment_BRA = image_text_alignment[:, :num_regions]
        is_word_BRA1 = (alignment_BRA != -1).to(dtype)[..., None]
        positions_BRAD = self.position_embeddings(alignment_BRA.clamp(min=0)) * is_word_BRA1
        return positions_BRAD.sum(dim=2) / is_word_BRA1.sum(dim=2).clamp(min=1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that also returns its weights. All other implementations come from `transformers`."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(dim=-1), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class VisualBertSelfAttention(nn.Module):
    """Multi-head attention of every position to every visible position."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        self.config = config
        self.attention_head_size, rest = divmod(config.hidden_size, config.num_attention_heads)
        if rest:
            raise ValueError(
                f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}"
            )
        self.scaling = self.attention_head_size**-0.5
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(
        self, queries: torch.Tensor, hidden_states: torch.Tensor, attention_mask: Mask, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (
            apply_linear(layer, states).view(*states.shape[:-1], -1, self.attention_head_size)
            for layer, states in ((self.query, queries), (self.key, hidden_states), (self.value, hidden_states))
        )
        if isinstance(attention_mask, Packing):  # rows without padding
            context, weights = attention_mask.attend(partial(self.attend_packed, **kwargs), query, key, value), None
        else:
            query, key, value = (states.transpose(1, 2) for states in (query, key, value))
            context, weights = self.attend(query, key, value, attention_mask, **kwargs)
        return context.reshape(queries.shape).contiguous(), weights

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Context `(batch, length, heads, size)` of inputs `(batch, heads, length, size)`, and the weights if the implementation
        returns them."""
        implementation = "eager" if wants_attentions(self.config, **kwargs) else self.config._attn_implementation
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.dropout.p if self.training else 0.0
        return attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)

    def attend_packed(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs) -> torch.Tensor:
        """Context of rows without padding, which need no mask."""
        return self.attend(query, key, value, None, **kwargs)[0]


class VisualBertResidual(nn.Module):
    """Linear layer, dropout, residual, LayerNorm: the end of both halves of a layer."""

    def __init__(self, in_features: int, config: VisualBertConfig):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(apply_linear(self.dense, hidden_states)) + residual)


class VisualBertAttention(nn.Module):
    """First half of a layer: attention. With `places` only those positions are queries."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        self.self = VisualBertSelfAttention(config)
        self.output = VisualBertResidual(config.hidden_size, config)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Mask, places: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        queries = hidden_states if places is None else hidden_states.flatten(0, 1)[places]
        context, _ = self.self(queries, hidden_states, attention_mask, **kwargs)
        return self.output(context, queries)


def activation_of(config: VisualBertConfig) -> nn.Module:
    """
    Raises:
        ValueError: `transformers` has no activation of this name.
    """
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"hidden_act {config.hidden_act!r}; expected one of {', '.join(ACT2FN)}")
    return ACT2FN[config.hidden_act]


class VisualBertDense(nn.Module):
    """Linear layer and activation."""

    def __init__(self, out_features: int, config: VisualBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, out_features)
        self.activation = activation_of(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(apply_linear(self.dense, hidden_states))


class VisualBertLayer(GradientCheckpointingLayer):
    """
    One BERT layer. With `places` [B, P], which index the flattened states, only those positions are computed (keys and values of
    all positions are needed either way).
    """

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        self.attention = VisualBertAttention(config)
        self.intermediate = VisualBertDense(config.intermediate_size, config)
        self.output = VisualBertResidual(config.intermediate_size, config)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Mask, places: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        hidden_states = self.attention(hidden_states, attention_mask, places, **kwargs)
        return self.output(self.intermediate(hidden_states), hidden_states)


class VisualBertEncoder(nn.Module):
    """The stack of layers. With `places` the last one computes only those positions."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        self.layer = nn.ModuleList(VisualBertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Mask, places: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        for layer in self.layer[:-1]:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return self.layer[-1](hidden_states, attention_mask, places, **kwargs)


class VisualBertPooler(nn.Module):
    """tanh of a linear layer over the [CLS] state."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.tanh(apply_linear(self.dense, hidden_states[:, 0]))


class VisualBertPredictionHeadTransform(nn.Module):
    """Linear layer, activation, LayerNorm: applied to a state before it is compared with the word embeddings."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = activation_of(config)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.activation(apply_linear(self.dense, hidden_states)))


class VisualBertLMPredictionHead(nn.Module):
    """Scores of every word piece; the decoder is tied to the word embeddings."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        self.transform = VisualBertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return apply_linear(self.decoder, self.transform(hidden_states))


class VisualBertPreTrainingHeads(nn.Module):
    """Masked-LM head and sentence-image head."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        self.predictions = VisualBertLMPredictionHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)


class VisualBertPreTrainedModel(VisualBertCheckpointModel):
    """What all VisualBERT models share: configuration, initialisation and (base class) how checkpoints are saved and opened."""

    config_class = VisualBertConfig
    config: VisualBertConfig
    base_model_prefix = "visual_bert"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["VisualBertEmbeddings", "VisualBertLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # `num_items_in_batch` counts examples here. `transformers.Trainer` would pass the number of label elements.
    accepts_loss_kwargs = False
    _can_record_outputs = {"hidden_states": VisualBertLayer, "attentions": VisualBertSelfAttention}
    _unread: tuple[
        str, ...
    ] = ()  # beginnings of the names of parameters that checkpoints have, but the head does not read

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Read by `DistributedDataParallel`, which would wait for gradients that never come (the `Trainer` of `transformers` has
        it look for unused parameters only without gradient checkpointing)."""
        names = (name for name, _ in self.named_parameters(remove_duplicate=False))  # tied ones by each of their names
        return [name for name in names if name.startswith(self._unread)]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisualBertLMPredictionHead):
            init.zeros_(module.bias)
        elif isinstance(module, VisualBertImageFusion):
            module.start()
        elif isinstance(module, VisualBertEmbeddings) and module.starts_from_text_tables:
            # Runs after the text tables were loaded; `init.copy_` does not touch tables that the checkpoint has.
            init.copy_(module.visual_token_type_embeddings.weight, module.token_type_embeddings.weight)
            init.copy_(module.visual_position_embeddings.weight, module.position_embeddings.weight)

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs: Any) -> None:
        """
        Choose eager, sdpa, flex or flash attention.

        Args:
            attn_implementation: A name, for VisualBERT itself; a region encoder keeps its own, because detectors do not support
                all of them. A dict may have the keys `""` (VisualBERT itself) and `"region_encoder_config"`.
            kwargs: As in `transformers`.

        Raises:
            ValueError, ImportError: The implementation is unknown, or cannot run here; or a key is unknown.
        """
        own, for_region_encoder = split_attention_request(attn_implementation, self.config.region_encoder_config)
        if own is not None:
            checked = self._check_and_adjust_attn_implementation(own, is_init_check=False, **kwargs)
            self.config._attn_implementation_internal = checked
        if for_region_encoder is not None:
            self.base_model.region_encoder.set_attn_implementation(for_region_encoder)

    def get_image_features(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Regions of images, to encode once and ask many times; see [`VisualBertModel.get_image_features`]."""
        return self.visual_bert.get_image_features(pixel_values, pixel_mask, **kwargs)


class VisualBertModel(PixelReader, VisualBertPreTrainedModel):
    """The model without a head. With `config.region_encoder_config` it owns a region encoder and also takes pixels."""

    _auto_class = "AutoModel"

    def __init__(self, config: VisualBertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = VisualBertEmbeddings(config)
        self.encoder = VisualBertEncoder(config)
        self.pooler = VisualBertPooler(config) if add_pooling_layer else None
        if config.bypass_transformer:
            self.additional_layer = VisualBertLayer(config)
        self.build_region_encoder()
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)  # `hidden_states[-1]` has all positions, not only those read
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        visual_embeds: torch.Tensor | None = None,
        visual_attention_mask: torch.Tensor | None = None,
        visual_token_type_ids: torch.Tensor | None = None,
        image_text_alignment: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        boxes_unit: torch.Tensor | None = None,
        boxes_mask: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        picture_windows: torch.Tensor | None = None,
        object_masks: torch.Tensor | None = None,
        object_classes: torch.Tensor | None = None,
        read_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, text_length)`):
                Word pieces, padded on the right.
            attention_mask (`torch.Tensor` of shape `(batch_size, text_length)`, *optional*):
                1 for a token, 0 for padding. All ones when not given.
            token_type_ids (`torch.LongTensor` of shape `(batch_size, text_length)`, *optional*):
                Segments of the text. Zeros when not given.
            position_ids (`torch.LongTensor` of shape `(batch_size, text_length)`, *optional*):
                Positions of the text. 0, 1, 2, ... when not given.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, text_length, hidden_size)`, *optional*):
                Word embeddings instead of `input_ids`.
            visual_embeds (`torch.Tensor` of shape `(batch_size, regions, visual_embedding_dim)`, *optional*):
                Region features. With fewer images than texts, each image serves the same number of consecutive texts (a
                batch size of 1 serves all); this holds for each argument about regions separately. Without them (and
                without pixels) the model is BERT.
            visual_attention_mask (`torch.Tensor` of shape `(batch_size, regions)`, *optional*):
                1 for a region, 0 for padding. All ones when not given.
            visual_token_type_ids (`torch.LongTensor` of shape `(batch_size, regions)`, *optional*):
                Segments of the regions, looked up in their own table. Zeros when not given, as the authors trained it.
            image_text_alignment (`torch.LongTensor` of shape `(batch_size, regions, words)`, *optional*):
                Text positions of the words that name each region; -1 is padding. May be padded to more regions than there
                are.
            pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`, *optional*):
                Images instead of `visual_embeds`, for models with a region encoder. With one more dimension,
                `(batch_size, images, channels, height, width)`, the regions of all images of an example follow one
                another with segments 0, 1, ...
            pixel_mask (`torch.LongTensor`, *optional*):
                1 for a pixel of the image, 0 for padding; shaped like `pixel_values` without channels.
            boxes_unit (`torch.FloatTensor` of shape `(batch_size, regions, 4)`, *optional*):
                With `pixel_values`: normalised boxes (x1, y1, x2, y2 in 0..1) to describe instead of finding some.
            boxes_mask (`torch.LongTensor` of shape `(batch_size, regions)`, *optional*):
                1 for a given box, 0 for padding; `visual_attention_mask` when not given.
            image_sizes (`torch.LongTensor` of shape `(batch_size, 2)`, *optional*):
                Original sizes, as the processor returns them beside the pixels.
            picture_windows, object_masks, object_classes (`torch.Tensor`, *optional*):
                Read by a [`RegionDetector`] only; see its `forward`.
            read_positions (`torch.LongTensor` of shape `(batch_size, positions)`, *optional*):
                Positions in text and regions whose last states are wanted; the last layer computes only these. The pooler
                reads the first of them.

        Returns:
            `last_hidden_state` of shape `(batch_size, text_length + regions, hidden_size)` or, with `read_positions`,
            `(batch_size, positions, hidden_size)`, and `pooler_output`. With late fusion
            (`config.bypass_transformer`) `hidden_states` and `attentions` hold the text-only layers followed by the
            additional layer over text and regions.

        Raises:
            ValueError: Both or none of `input_ids` and `inputs_embeds`, or both `pixel_values` and `visual_embeds`; or a
                tensor of another shape.
            TypeError: An image under a name that is not known here.
        """
        check_no_other_images(kwargs)
        text_length = text_of(input_ids, inputs_embeds).shape[1]
        visual_embeds, visual_attention_mask, visual_token_type_ids, _ = self.regions_given_or_found(
            *(visual_embeds, visual_attention_mask, visual_token_type_ids),
            *(pixel_values, pixel_mask, boxes_unit, boxes_mask),
            image_sizes=image_sizes,
            picture_windows=picture_windows,
            object_masks=object_masks,
            object_classes=object_classes,
        )
        states_BSD = self.embeddings(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            visual_embeds=visual_embeds,
            visual_token_type_ids=visual_token_type_ids,
            image_text_alignment=image_text_alignment,
        )
        visual_attention_mask = None if visual_embeds is None else visual_attention_mask
        mask_BS = joint_mask(attention_mask, visual_attention_mask, states_BSD, text_length)
        fused_late = self.config.bypass_transformer and visual_embeds is not None
        states_BSD = self._encode(states_BSD, mask_BS, read_positions, text_length if fused_late else None, **kwargs)
        pooled_BD = None if self.pooler is None else self.pooler(states_BSD)
        return BaseModelOutputWithPooling(last_hidden_state=states_BSD, pooler_output=pooled_BD)

    def _encode(
        self,
        states_BSD: torch.Tensor,
        mask_BS: torch.Tensor | None,
        read_BP: torch.Tensor | None,
        text_length: int | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """All layers over text and regions or, given a `text_length` (late fusion), over the text, then one layer over both."""
        kernel = choose_kernel(self.config, states_BSD, mask_BS, read_BP, self.training, **kwargs)
        run: Callable[..., torch.Tensor] = partial(encode, config=self.config, kernel=kernel, **kwargs)
        if text_length is None:
            return run(self.encoder, states_BSD, mask_BS, read_BP)
        text_mask_BT = None if mask_BS is None else mask_BS[:, :text_length]
        text_BTD = run(self.encoder, states_BSD[:, :text_length], text_mask_BT)
        states_BSD = torch.cat((text_BTD, states_BSD[:, text_length:]), dim=1)
        return run(self.additional_layer, states_BSD, mask_BS, read_BP)


@dataclass
class VisualBertForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Masked-LM loss plus sentence-image loss, of those whose labels were given.
        prediction_logits (`torch.FloatTensor` of shape `(batch_size, text_length + regions, vocab_size)`, *optional*):
            Masked-LM scores before softmax; with `masked_positions`, `(batch_size, masked, vocab_size)` at those.
        seq_relationship_logits (`torch.FloatTensor` of shape `(batch_size, 2)`):
            Sentence-image scores before softmax; index 1 is "the text belongs to the image".
        hidden_states, attentions:
            As in [`VisualBertModel`].
    """

    loss: torch.Tensor | None = None
    prediction_logits: torch.Tensor | None = None
    seq_relationship_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class VisualBertWithPreTrainingHeads(VisualBertPreTrainedModel):
    """A model that has the heads of pre-training, whose decoder is tied to the word embeddings."""

    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "visual_bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: VisualBertConfig):
        super().__init__(config)
        self.visual_bert = VisualBertModel(config)
        self.cls = VisualBertPreTrainingHeads(config)

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias


class VisualBertForPreTraining(VisualBertWithPreTrainingHeads):
    """Masked language modelling with the image, and the sentence-image objective (paper, section 3.3)."""

    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: VisualBertConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        visual_embeds: torch.Tensor | None = None,
        visual_attention_mask: torch.Tensor | None = None,
        visual_token_type_ids: torch.Tensor | None = None,
        image_text_alignment: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        masked_positions: torch.Tensor | None = None,
        sentence_image_labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        num_pairs_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VisualBertForPreTrainingOutput:
        r"""
        Args (beside those of [`VisualBertModel.forward`]):
            labels (`torch.LongTensor` of shape `(batch_size, text_length)`, *optional*):
                Word pieces to predict, -100 elsewhere. Labels over text and regions are accepted too; the part over the
                regions is ignored, since regions are never predicted.
            masked_positions (`torch.LongTensor` of shape `(batch_size, masked)`, *optional*):
                Text positions whose word pieces are scored; -1 is padding. The last layer and the head compute only these, and
                labels elsewhere are ignored. Pass them when training: the scores of all positions would take most of the memory
                of a step.
            sentence_image_labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                1 when the text belongs to the image, 0 when it does not, as the authors trained it (the documentation
                of `transformers` says the opposite); -100 is ignored.
            num_items_in_batch, num_pairs_in_batch (`int`, *optional*):
                What the summed losses are divided by: word pieces to predict and sentence-image labels in the global
                batch. Default to those of this batch.

        Both losses are means over their labels; a batch without labels has loss 0.

        Raises (beside those of [`VisualBertModel.forward`]):
            ValueError: Labels of another shape, or that are no word pieces; or sentence-image labels other than 0, 1 and -100.
        """
        batch_size, text_length = text_of(input_ids, inputs_embeds).shape[:2]
        if labels is not None:
            more = sum(getattr(labels, "shape", ())[1:2]) - text_length
            over_regions = more > 0 if visual_embeds is None else more == visual_embeds.shape[1]
            has_regions = visual_embeds is not None or pixel_values is not None
            length = text_length + (more if has_regions and over_regions else 0)
            check_classes(labels, (batch_size, length), "(batch_size, text_length)", self.config.vocab_size)
        if sentence_image_labels is not None:
            check_classes(sentence_image_labels, (batch_size,), "(batch_size,)", 2, "sentence_image_labels")
        # [CLS], for the sentence-image score, and the masked positions; everything when those are not given.
        read = None if masked_positions is None else F.pad(masked_positions.clamp(min=0), (1, 0))
        outputs = self.visual_bert(
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            *(visual_embeds, visual_attention_mask, visual_token_type_ids, image_text_alignment),
            *(pixel_values, pixel_mask),
            read_positions=read,
            return_dict=True,
            **kwargs,
        )
        states_BSD = outputs.last_hidden_state if read is None else outputs.last_hidden_state[:, 1:]
        prediction_logits = self.cls.predictions(states_BSD)
        seq_relationship_logits = apply_linear(self.cls.seq_relationship, outputs.pooler_output)
        losses = []
        if labels is not None:
            labels = labels[:, :text_length]
            if masked_positions is not None:
                labels = labels.gather(1, masked_positions.clamp(min=0)).masked_fill(masked_positions < 0, -100)
            losses.append(cross_entropy(prediction_logits[:, : labels.shape[1]], labels, num_items_in_batch))
        if sentence_image_labels is not None:
            losses.append(cross_entropy(seq_relationship_logits, sentence_image_labels, num_pairs_in_batch))
        return VisualBertForPreTrainingOutput(
            loss=torch.stack(losses).sum() if losses else None,
            prediction_logits=prediction_logits,
            seq_relationship_logits=seq_relationship_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class VisualBertForQuestionAnswering(VisualBertPreTrainedModel):
    """VQA: scores of `config.num_labels` answers, read from the `[MASK]` token that the processor appends to the question.

    With `config.image_fusion_size`, scores of the product of the question and the image are added.
    """

    _auto_class = "AutoModelForVisualQuestionAnswering"
    _unread = ("visual_bert.pooler.",)

    def __init__(self, config: VisualBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.visual_bert = VisualBertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.cls = nn.Linear(config.hidden_size, config.num_labels)
        self.fusion = VisualBertImageFusion(config) if config.image_fusion_size else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        visual_embeds: torch.Tensor | None = None,
        visual_attention_mask: torch.Tensor | None = None,
        visual_token_type_ids: torch.Tensor | None = None,
        image_text_alignment: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        mentioned_answers: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        Args (beside those of [`VisualBertModel.forward`]):
            labels (`torch.FloatTensor` of shape `(batch_size, num_labels)`, *optional*):
                Score of each answer in 0..1; a row need not sum to one. The loss is the KL divergence of the predicted
                distribution from the scores, summed over answers.
            num_items_in_batch (`int`, *optional*):
                What the summed loss is divided by: the number of questions in the global batch. Defaults to that of this batch.
            mentioned_answers (`torch.FloatTensor` of shape `(batch_size, num_labels)`, *optional*):
                For a model with `config.mentioned_answers_weight`: 1 for each answer that is known to be in the image,
                whatever is asked. Their loss is the binary cross-entropy of what the image alone scores, summed over answers and
                weighted.

        Raises (beside those of [`VisualBertModel.forward`]):
            ValueError: Labels of another shape, or that are no scores; or `mentioned_answers` without regions, or for a model
                that has no loss of them.
        """
        text = text_of(input_ids, inputs_embeds)
        text_mask_BT = text.new_ones(text.shape[:2]) if attention_mask is None else attention_mask
        visual_embeds, visual_attention_mask, *segments, _ = self.visual_bert.regions_given_or_found(
            *(visual_embeds, visual_attention_mask, visual_token_type_ids),
            *(pixel_values, pixel_mask, kwargs.pop("boxes_unit", None), kwargs.pop("boxes_mask", None)),
            **pop_region_inputs(kwargs),
        )
        read_BP = answer_positions(text_mask_BT)[:, None]
        if self.fusion is not None and visual_embeds is not None:
            read_BP = torch.cat((read_BP, word_positions(text_mask_BT)), dim=1)
        outputs = self.visual_bert(
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            *(visual_embeds, visual_attention_mask, *segments, image_text_alignment),
            read_positions=read_BP,
            return_dict=True,
            **kwargs,
        )
        states_BPD, image_BF = outputs.last_hidden_state, None
        logits_BL = apply_linear(self.cls, self.dropout(states_BPD[:, 0]))
        if self.fusion is not None and visual_embeds is not None:
            image_BF = for_each_text(self.fusion.project_image(visual_embeds, visual_attention_mask), text.shape[0])
            logits_BL = logits_BL + self.fusion(states_BPD[:, 1:], text_mask_BT, image_BF)
        loss = None
        if labels is not None:
            check_scores(labels, logits_BL.shape, "(batch_size, num_labels)")
            loss = kl_divergence(logits_BL, labels, num_items_in_batch)
            if mentioned_answers is not None:
                loss = loss + self._mentioned_loss(image_BF, mentioned_answers, num_items_in_batch)
        return SequenceClassifierOutput(
            loss=loss, logits=logits_BL, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _mentioned_loss(
        self,
        image_BF: torch.Tensor | None,
        mentioned_answers: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        if self.fusion is None or image_BF is None or not self.config.mentioned_answers_weight:
            raise ValueError(
                "`mentioned_answers` without regions, or for a model without `image_fusion_size` and "
                "`mentioned_answers_weight`; expected all"
            )
        scores_BL = self.fusion.image_scores(image_BF)
        check_scores(mentioned_answers, scores_BL.shape, "(batch_size, num_labels)", "mentioned_answers")
        return self.config.mentioned_answers_weight * binary_cross_entropy(
            scores_BL, mentioned_answers, num_items_in_batch
        )


class VisualBertForMultipleChoice(VisualBertPreTrainedModel):
    """VCR: one score for each choice, read from the pooled [CLS] state."""

    _auto_class = "AutoModelForMultipleChoice"

    def __init__(self, config: VisualBertConfig):
        super().__init__(config)
        self.visual_bert = VisualBertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.cls = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        visual_embeds: torch.Tensor | None = None,
        visual_attention_mask: torch.Tensor | None = None,
        visual_token_type_ids: torch.Tensor | None = None,
        image_text_alignment: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        boxes_unit: torch.Tensor | None = None,
        boxes_mask: torch.Tensor | None = None,
        choices_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        r"""
        Args (beside those of [`VisualBertModel.forward`]; the text arguments have a second dimension `num_choices`):
            visual_embeds (`torch.Tensor` of shape `(batch_size, regions, visual_embedding_dim)`):
                One image per example, shared by its choices, or one per choice: `(batch_size, num_choices, regions, dim)`.
                The same holds for `visual_attention_mask`, `visual_token_type_ids` and `image_text_alignment`, each on
                its own.
            pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`):
                One image per example.
            boxes_unit (`torch.FloatTensor` of shape `(batch_size, regions, 4)`, *optional*):
                With `pixel_values`: normalised boxes (0..1) of the whole image and its objects.
            boxes_mask (`torch.LongTensor` of shape `(batch_size, regions)`, *optional*):
                1 for a given box, 0 for padding; `visual_attention_mask` when not given.
            choices_mask (`torch.LongTensor` of shape `(batch_size, num_choices)`, *optional*):
                Where questions have different numbers of choices: 1 for a choice, 0 for what fills up their number. Its logits
                are minus infinity, and it has no part in the loss.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Index of the right choice; -100 is ignored. While a detector is trained too (`config.freeze_region_encoder` is
                off), the loss includes its class loss, weighted with its `class_loss_weight`.
            num_items_in_batch (`int`, *optional*):
                What the summed loss is divided by: the number of labels in the global batch. Defaults to that of this batch.

        Returns:
            `logits` of shape `(batch_size, num_choices)`.

        Raises (beside those of [`VisualBertModel.forward`]):
            ValueError: Labels of another shape, or that name no choice; or a `choices_mask` of another shape, or that leaves a
                question without a choice.
        """
        text = text_of(input_ids, inputs_embeds, ("batch_size", "num_choices", "length"))
        regions = (visual_embeds, visual_attention_mask, visual_token_type_ids)
        pixels = (pixel_values, pixel_mask, boxes_unit, boxes_mask)
        *found, class_loss = self.visual_bert.regions_given_or_found(*regions, *pixels, **pop_region_inputs(kwargs))
        about_text = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        # How many dimensions they have with one image per example.
        about_regions = zip((*found, image_text_alignment), (3, 2, 2, 3), strict=True)
        outputs = self.visual_bert(
            *(flatten_choices(tensor) for tensor in about_text),
            *(flatten_choices(tensor, ndim) for tensor, ndim in about_regions),
            read_positions=cls_positions(text.flatten(0, 1)),
            return_dict=True,
            **kwargs,
        )
        logits_BC = apply_linear(self.cls, self.dropout(outputs.pooler_output)).view(-1, text.shape[1])
        if labels is not None:
            check_classes(labels, logits_BC.shape[:1], "(batch_size,)", logits_BC.shape[1])
        if choices_mask is not None:
            check_choices_mask(choices_mask, logits_BC, labels)
            logits_BC = logits_BC.masked_fill(~choices_mask.to(logits_BC.device).bool(), -torch.inf)
        loss, smoothing = None, self.config.label_smoothing
        if labels is not None and choices_mask is not None:
            loss = choice_cross_entropy(logits_BC, labels, choices_mask, num_items_in_batch, smoothing)
        elif labels is not None:
            loss = cross_entropy(logits_BC, labels, num_items_in_batch, label_smoothing=smoothing)
        if labels is not None and class_loss is not None and not self.config.freeze_region_encoder:
            # When this batch is part of a larger one, it counts by its share of the examples.
            share = 1.0 if num_items_in_batch is None else len(labels) / num_items_in_batch
            loss = loss + self.config.region_encoder_config.class_loss_weight * share * class_loss
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits_BC, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class VisualBertForVisualReasoning(VisualBertPreTrainedModel):
    """NLVR2: is the sentence true of the two images? Two scores, read from the pooled [CLS] state; 1 is "True".

    With another number of labels, or one image: any classification of a text with its image (entailment, hateful memes, ...).
    """

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: VisualBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.visual_bert = VisualBertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.cls = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        visual_embeds: torch.Tensor | None = None,
        visual_attention_mask: torch.Tensor | None = None,
        visual_token_type_ids: torch.Tensor | None = None,
        image_text_alignment: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        Args (beside those of [`VisualBertModel.forward`]):
            visual_token_type_ids (`torch.LongTensor` of shape `(batch_size, regions)`):
                0 for the regions of the first image, 1 for those of the second.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                1 when the sentence is true of the images, else 0, or the index of another label; -100 is ignored. In the loss,
                labels have the weights `config.class_weights`, if there are any, and are smoothed by `config.label_smoothing`.
            num_items_in_batch (`int`, *optional*):
                What the summed loss is divided by: the number of labels in the global batch. Defaults to that of this batch.

        Returns:
            `logits` of shape `(batch_size, num_labels)`.

        Raises (beside those of [`VisualBertModel.forward`]):
            ValueError: Labels of another shape, or that are no class numbers.
        """
        outputs = self.visual_bert(
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            *(visual_embeds, visual_attention_mask, visual_token_type_ids, image_text_alignment),
            *(pixel_values, pixel_mask),
            read_positions=cls_positions(text_of(input_ids, inputs_embeds)),
            return_dict=True,
            **kwargs,
        )
        logits_BL = apply_linear(self.cls, self.dropout(outputs.pooler_output))
        if labels is not None:
            check_classes(labels, logits_BL.shape[:1], "(batch_size,)", logits_BL.shape[1])
        weights, smoothing = self.config.class_weights, self.config.label_smoothing
        loss = None if labels is None else cross_entropy(logits_BL, labels, num_items_in_batch, weights, smoothing)
        return SequenceClassifierOutput(
            loss=loss, logits=logits_BL, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class VisualBertRegionToPhraseAttention(nn.Module):
    """One attention head whose raw scores say which region a phrase means. `value` is in the checkpoints but not used."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        head_size = config.hidden_size // config.num_attention_heads
        self.scaling = head_size**-0.5
        self.query = nn.Linear(config.hidden_size, head_size)
        self.key = nn.Linear(config.hidden_size, head_size)
        self.value = nn.Linear(config.hidden_size, head_size)

    def forward(
        self, phrases_BED: torch.Tensor, regions_BRD: torch.Tensor, mask_BR: torch.Tensor | None
    ) -> torch.Tensor:
        query, key = apply_linear(self.query, phrases_BED), apply_linear(self.key, regions_BRD)
        scores_BER = torch.matmul(query, key.transpose(1, 2)) * self.scaling
        if mask_BR is None:
            return scores_BER
        return scores_BER + (1.0 - mask_BR.to(scores_BER.dtype))[:, None] * -10000.0


class VisualBertForRegionToPhraseAlignment(VisualBertWithPreTrainingHeads):
    """Flickr30k Entities: which region does each phrase of the sentence mean? The checkpoints have the heads of pre-training too,
    but this task does not use them."""

    _auto_class = "AutoModelForZeroShotObjectDetection"
    _unread = ("visual_bert.pooler.", "attention.value.", "cls.")

    def __init__(self, config: VisualBertConfig):
        super().__init__(config)
        self.attention = VisualBertRegionToPhraseAttention(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        visual_embeds: torch.Tensor | None = None,
        visual_attention_mask: torch.Tensor | None = None,
        visual_token_type_ids: torch.Tensor | None = None,
        image_text_alignment: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        boxes_unit: torch.Tensor | None = None,
        region_to_phrase_position: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        Args (beside those of [`VisualBertModel.forward`]):
            region_to_phrase_position (`torch.LongTensor` of shape `(batch_size, phrases)`):
                Text position of the last word piece of each phrase; -1 is padding (its scores mean nothing).
            labels (`torch.FloatTensor` of shape `(batch_size, phrases, regions)`, *optional*):
                For each phrase a distribution over regions, uniform over those that match; all zero for phrases without
                one and for padding. The loss is the KL divergence, summed and divided by the batch size.
            num_items_in_batch (`int`, *optional*):
                What the summed loss is divided by instead: the number of sentences in the global batch.

        Returns:
            `logits` of shape `(batch_size, phrases, regions)`; about -10000 at padded regions.

        Raises (beside those of [`VisualBertModel.forward`]):
            ValueError: `region_to_phrase_position` is missing, of another shape, or outside the text; or labels of another
                shape, or that are no scores.
        """
        if region_to_phrase_position is None:
            raise ValueError("`region_to_phrase_position` is missing; expected a tensor of shape (batch_size, phrases)")
        visual_embeds, visual_attention_mask, visual_token_type_ids, _ = self.visual_bert.regions_given_or_found(
            *(visual_embeds, visual_attention_mask, visual_token_type_ids),
            *(pixel_values, pixel_mask, boxes_unit, kwargs.pop("boxes_mask", None)),
            **pop_region_inputs(kwargs),
        )
        batch_size, text_length = text_of(input_ids, inputs_embeds).shape[:2]
        check_phrases(region_to_phrase_position, batch_size, text_length)
        num_regions = 0 if visual_embeds is None else visual_embeds.shape[1]
        phrases_BE = region_to_phrase_position.clamp(min=0)
        outputs = self.visual_bert(
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            *(visual_embeds, visual_attention_mask, visual_token_type_ids, image_text_alignment),
            read_positions=phrase_and_region_positions(phrases_BE, visual_attention_mask, text_length, num_regions),
            return_dict=True,
            **kwargs,
        )
        phrases_BED, regions_BRD = outputs.last_hidden_state.split((phrases_BE.shape[1], num_regions), dim=1)
        logits_BER = self.attention(phrases_BED, regions_BRD, visual_attention_mask)
        if labels is not None:
            check_scores(labels, logits_BER.shape, "(batch_size, phrases, regions)")
        loss = None if labels is None else kl_divergence(logits_BER, labels, num_items_in_batch)
        return SequenceClassifierOutput(
            loss=loss, logits=logits_BER, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "VisualBertForMultipleChoice",
    "VisualBertForPreTraining",
    "VisualBertForPreTrainingOutput",
    "VisualBertForQuestionAnswering",
    "VisualBertForRegionToPhraseAlignment",
    "VisualBertForVisualReasoning",
    "VisualBertModel",
    "VisualBertPreTrainedModel",
]
