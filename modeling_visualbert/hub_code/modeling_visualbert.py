"""VisualBERT: one BERT that reads a text and the regions of an image (Li et al., arXiv 1908.03557).

The file reads in the order in which it runs: embeddings, layer, encoder, base model, five heads. Parameter names are
those of the published checkpoints. Numbers agree with the authors' code, see `tests/test_golden.py`.

Letters: B batch, T text tokens, R regions, S = T + R, D hidden size, V region feature, L labels, C choices, A aligned
words per region, E phrases (entities), I images per example.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.dynamic_module_utils import custom_object_save
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MultipleChoiceModelOutput,
    SequenceClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_visualbert import VisualBertConfig
from .linear_visualbert import Linear
from .modeling_grid_encoder import GridRegionEncoder
from .modeling_region_detector import RegionDetector
from .modeling_region_encoder import QueryRegionEncoder, RegionEncoder, RegionEncoderOutput
from .packing_visualbert import Packing, packed_kernel
from .tasks_visualbert import AUTO_MAP, custom_pipelines

REGION_ENCODERS: dict[str, type[RegionEncoder]] = {
    encoder.config_class.model_type: encoder for encoder in (QueryRegionEncoder, RegionDetector, GridRegionEncoder)
}


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
        self.visual_projection = Linear(config.visual_embedding_dim, size)
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
        """Projected feature + segment (0 when not given) + position, [B, R, D], before LayerNorm; each argument for every text of
        the batch or for every image, and then projected once for all texts about it."""
        batch_size = visual_embeds.shape[0] if batch_size is None else batch_size
        regions_BRD = _for_each_text(self.visual_projection(visual_embeds), batch_size)
        if visual_token_type_ids is None:
            # The authors trained segment 0 in every single-image task; `transformers` defaults to the untrained row 1.
            visual_token_type_ids = torch.zeros(visual_embeds.shape[:2], dtype=torch.long, device=visual_embeds.device)
        segments_BRD = self.visual_token_type_embeddings(visual_token_type_ids)
        regions_BRD = regions_BRD + _for_each_text(segments_BRD, batch_size)
        # Every region sits at position 0 of the regions' own table ...
        regions_BRD = regions_BRD + self.visual_position_embeddings.weight[0]
        if image_text_alignment is not None:
            # ... plus the mean *text* position of the words that name it. -1 is padding, anywhere in the row.
            num_regions = visual_embeds.shape[1]
            if image_text_alignment.shape[1] < num_regions:
                raise ValueError(
                    f"alignment of {image_text_alignment.shape[1]} regions; expected at least {num_regions}"
                )
            alignment_BRA = image_text_alignment[:, :num_regions]
            is_word_BRA1 = (alignment_BRA != -1).to(regions_BRD.dtype)[..., None]
            positions_BRAD = self.position_embeddings(alignment_BRA.clamp(min=0)) * is_word_BRA1
            positions_BRD = positions_BRAD.sum(dim=2) / is_word_BRA1.sum(dim=2).clamp(min=1)
            regions_BRD = regions_BRD + _for_each_text(positions_BRD, batch_size)
        return regions_BRD


def _for_each_text(tensor: torch.Tensor, batch_size: int) -> torch.Tensor:
    """[B, ...] from one row for each text, or from one for each image: images serve equally many texts, one after another."""
    num_images = tensor.shape[0]
    if batch_size % num_images:
        raise ValueError(f"{num_images} images for {batch_size} texts; expected equally many texts about each image")
    return tensor[:, None].expand(-1, batch_size // num_images, *tensor.shape[1:]).flatten(0, 1)


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
    """Attention that also returns its weights; the other implementations come from `transformers`."""
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
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.attention_head_size**-0.5
        self.is_causal = False
        self.query = Linear(config.hidden_size, config.hidden_size)
        self.key = Linear(config.hidden_size, config.hidden_size)
        self.value = Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(
        self,
        queries: torch.Tensor,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | Packing | None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (
            layer(states).unflatten(-1, (-1, self.attention_head_size))
            for layer, states in ((self.query, queries), (self.key, hidden_states), (self.value, hidden_states))
        )
        weights = None
        if isinstance(attention_mask, Packing):
            context = attention_mask.attend(
                lambda q, k, v, **lengths: self.attend(q, k, v, None, **lengths, **kwargs)[0], query, key, value
            )
        else:
            query, key, value = (states.transpose(1, 2) for states in (query, key, value))
            context, weights = self.attend(query, key, value, attention_mask, **kwargs)
        return context.reshape(queries.shape).contiguous(), weights

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Context and, where the implementation returns them, weights; heads come second: `(batch, heads, length, size)`."""
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.dropout.p if self.training else 0.0
        return attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)


class VisualBertResidual(nn.Module):
    """Linear layer, dropout, residual, LayerNorm: the end of both halves of a layer."""

    def __init__(self, in_features: int, config: VisualBertConfig):
        super().__init__()
        self.dense = Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + residual)


class VisualBertAttention(nn.Module):
    """Attention half of a layer."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        self.self = VisualBertSelfAttention(config)
        self.output = VisualBertResidual(config.hidden_size, config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | Packing | None,
        places: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        queries = hidden_states if places is None else hidden_states.flatten(0, 1)[places]
        context, _ = self.self(queries, hidden_states, attention_mask, **kwargs)
        return self.output(context, queries)


class VisualBertDense(nn.Module):
    """Linear layer and activation."""

    def __init__(self, out_features: int, config: VisualBertConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, out_features)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(hidden_states))


class VisualBertLayer(GradientCheckpointingLayer):
    """One BERT layer; with `places` [B, P] in the flattened states, all but keys and values is computed for those only."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        self.attention = VisualBertAttention(config)
        self.intermediate = VisualBertDense(config.intermediate_size, config)
        self.output = VisualBertResidual(config.intermediate_size, config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | Packing | None,
        places: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        hidden_states = self.attention(hidden_states, attention_mask, places, **kwargs)
        return self.output(self.intermediate(hidden_states), hidden_states)


class VisualBertEncoder(nn.Module):
    """The stack of layers; the last one computes only what is read."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        self.layer = nn.ModuleList(VisualBertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | Packing | None,
        places: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        for layer in self.layer[:-1]:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return self.layer[-1](hidden_states, attention_mask, places, **kwargs)


class VisualBertPooler(nn.Module):
    """tanh of a linear layer over the [CLS] state."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.dense(hidden_states[:, 0]))


class VisualBertPredictionHeadTransform(nn.Module):
    """What the masked-LM head does before it compares a state with the word embeddings."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.activation(self.dense(hidden_states)))


class VisualBertLMPredictionHead(nn.Module):
    """Scores of every word piece; the decoder is tied to the word embeddings."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        self.transform = VisualBertPredictionHeadTransform(config)
        self.decoder: nn.Linear = Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.transform(hidden_states))


class VisualBertPreTrainingHeads(nn.Module):
    """Masked-LM head and sentence-image head."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        self.predictions = VisualBertLMPredictionHead(config)
        self.seq_relationship = Linear(config.hidden_size, 2)


class VisualBertPreTrainedModel(PreTrainedModel):
    """What all VisualBERT models share: configuration, initialisation, ways to load."""

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

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisualBertLMPredictionHead):
            init.zeros_(module.bias)
        elif isinstance(module, VisualBertEmbeddings) and module.starts_from_text_tables:
            # `init.copy_` leaves tables alone that came from the checkpoint. Runs after the text tables were loaded.
            init.copy_(module.visual_token_type_embeddings.weight, module.token_type_embeddings.weight)
            init.copy_(module.visual_position_embeddings.weight, module.position_embeddings.weight)

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs) -> None:
        """Choose eager, sdpa, flex or flash attention. Given by name, it is that of the text model: detectors do not have
        them all, so a region encoder keeps its own."""
        if isinstance(attn_implementation, dict) or self.config.region_encoder_config is None:
            super().set_attn_implementation(attn_implementation, **kwargs)
        else:
            self.config._attn_implementation_internal = self._check_and_adjust_attn_implementation(
                attn_implementation, is_init_check=False
            )

    def get_image_features(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None, **kwargs):
        """Regions of images, to encode once and ask many times; see [`VisualBertModel.get_image_features`]."""
        return self.visual_bert.get_image_features(pixel_values, pixel_mask, **kwargs)

    def attach_region_encoder(self, region_encoder: RegionEncoder) -> None:
        """
        Give a model without a region encoder one that lies elsewhere. The processor needs its image processor too.

        Raises:
            ValueError: There is one already, or it makes features of another length than the model reads.
        """
        if self.config.region_encoder_config is not None:
            raise ValueError("the model has a region encoder already; expected one without")
        if region_encoder.config.region_dim != self.config.visual_embedding_dim:
            raise ValueError(
                f"the region encoder makes features of {region_encoder.config.region_dim} numbers, the model reads "
                f"{self.config.visual_embedding_dim}; expected the one that the model was trained with"
            )
        self.config.region_encoder_config = region_encoder.config
        base: Any = getattr(self, self.base_model_prefix, self)
        base.region_encoder = region_encoder.to(self.device, self.dtype)
        base.region_encoder.requires_grad_(not self.config.freeze_region_encoder)
        base.train(base.training)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in `transformers`. The code of model and pipeline is copied beside the weights, and the configuration says where it
        is, so that the folder opens with `trust_remote_code` where this package is not installed."""
        entries: dict[str, dict] = {"auto_map": dict(AUTO_MAP)}
        if own := custom_pipelines(type(self).__name__):
            entries["custom_pipelines"] = own
        before = {name: getattr(self.config, name, None) for name in entries}
        for name, value in entries.items():
            setattr(self.config, name, value)
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
            _save_pipeline_code(save_directory)
        finally:
            for name, old in before.items():
                delattr(self.config, name) if old is None else setattr(self.config, name, old)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in `transformers`; a damaged or disguised weights file is named.

        Raises:
            ValueError: A `.safetensors` file is truncated, or is something else such as a pickle.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(
                f"{pretrained_model_name_or_path}: damaged weights, expected safetensors ({error}); "
                "the file is truncated or of another format"
            ) from error

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For code from outside `transformers` modules without parameters of their own are skipped, and with them the copy
        # of the text tables below. `_init_weights` looks at every tensor itself, so nothing needs skipping.
        super()._initialize_weights(module, is_custom_code=False)

    @classmethod
    def from_bert(cls, pretrained_model_name_or_path, **config_kwargs) -> "VisualBertPreTrainedModel":
        """
        Start from a BERT checkpoint, as the paper does: the text part is loaded, the regions' segment and position tables
        become copies of the text ones (`special_visual_initialize`), projection and head are new.

        Args:
            pretrained_model_name_or_path: A BERT checkpoint, by Hub name or folder.
            config_kwargs: Fields of [`VisualBertConfig`] that BERT does not have or that should differ, such as
                `visual_embedding_dim`, `region_encoder_config` or `num_labels`.
        """
        bert_fields, _ = VisualBertConfig.get_config_dict(pretrained_model_name_or_path)
        if bert_fields.get("model_type") != "bert":
            raise ValueError(
                f"{pretrained_model_name_or_path} is a {bert_fields.get('model_type')!r} checkpoint; expected 'bert'"
            )
        shared = (
            *("vocab_size", "type_vocab_size", "max_position_embeddings", "pad_token_id", "layer_norm_eps"),
            *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
            *("hidden_dropout_prob", "attention_probs_dropout_prob"),
        )
        fields = {name: bert_fields[name] for name in shared if name in bert_fields}
        config = VisualBertConfig(**{**fields, **config_kwargs})
        return cls.from_pretrained(
            pretrained_model_name_or_path,
            config=config,
            key_mapping={
                r"^bert\.": "visual_bert.",
                r"LayerNorm\.gamma$": "LayerNorm.weight",  # checkpoints of 2018
                r"LayerNorm\.beta$": "LayerNorm.bias",
            },
        )


class VisualBertModel(VisualBertPreTrainedModel):
    """
    The encoder without a head. With `config.region_encoder_config` it owns a region encoder and also takes pixels.
    """

    _auto_class = "AutoModel"

    def __init__(self, config: VisualBertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = VisualBertEmbeddings(config)
        self.encoder = VisualBertEncoder(config)
        self.pooler = VisualBertPooler(config) if add_pooling_layer else None
        if config.bypass_transformer:
            self.additional_layer = VisualBertLayer(config)
        if config.region_encoder_config is not None:
            self.region_encoder = REGION_ENCODERS[config.region_encoder_config.model_type](config.region_encoder_config)
            self.region_encoder.requires_grad_(not config.freeze_region_encoder)
            self.region_encoder.train(not config.freeze_region_encoder)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def train(self, mode: bool = True) -> "VisualBertModel":
        super().train(mode)
        if self.config.region_encoder_config is not None and self.config.freeze_region_encoder:
            self.region_encoder.eval().requires_grad_(False)  # frozen also means: batch statistics stay as they are
        return self

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        boxes_unit: torch.Tensor | None = None,
        boxes_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> RegionEncoderOutput:
        """
        Find the regions of images: encode once, ask many times.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`):
                Images, as the checkpoint's image processor makes them.
            pixel_mask (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                1 for a pixel of the image, 0 for padding.
            boxes_unit (`torch.FloatTensor` of shape `(batch_size, regions, 4)`, *optional*):
                Boxes to describe instead of finding some; corners in units of the image (0..1).
            boxes_mask (`torch.LongTensor` of shape `(batch_size, regions)`, *optional*):
                1 for a given box, 0 for padding.
            kwargs:
                What the region encoder reads beside these (its `region_inputs`), such as the `image_sizes` and
                `picture_windows` that the image processor of a [`RegionDetector`] returns. Other inputs are not read.

        Returns:
            A mapping with `visual_embeds`, `visual_attention_mask`, `boxes_unit`, `scores` and `class_ids`, and what else
            the region encoder finds.

        Raises:
            ValueError: The model has no region encoder.
        """
        if self.config.region_encoder_config is None:
            raise ValueError(
                "this model has no region encoder (`config.region_encoder_config` is not set), so it cannot read "
                "`pixel_values`; pass precomputed `visual_embeds` instead"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_region_encoder):
            known = {name: kwargs[name] for name in self.region_encoder.region_inputs if kwargs.get(name) is not None}
            return self.region_encoder(pixel_values, pixel_mask, boxes_unit, boxes_mask, **known)

    def _regions_from_pixels(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None,
        boxes_unit: torch.Tensor | None = None,
        boxes_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[RegionEncoderOutput, torch.Tensor | None]:
        """Regions and segments [B, R] of [B, 3, H, W] or, for several images, of [B, I, 3, H, W] pixels."""
        if pixel_values.dim() == 4:
            return self.get_image_features(pixel_values, pixel_mask, boxes_unit, boxes_mask, **kwargs), None
        batch_size, num_images = pixel_values.shape[:2]
        flat_mask = None if pixel_mask is None else pixel_mask.flatten(0, 1)
        flat = {name: value.flatten(0, 1) for name, value in kwargs.items() if value is not None}
        found = self.get_image_features(pixel_values.flatten(0, 1), flat_mask, **flat)
        regions_BIRV = found["visual_embeds"].unflatten(0, (batch_size, num_images))
        mask_BIR = found["visual_attention_mask"].unflatten(0, (batch_size, num_images))
        segments_BIR = torch.arange(num_images, device=mask_BIR.device)[:, None].expand_as(mask_BIR)
        merged = RegionEncoderOutput(
            visual_embeds=regions_BIRV.flatten(1, 2), visual_attention_mask=mask_BIR.flatten(1, 2)
        )
        return merged, segments_BIR.flatten(1, 2)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)  # the last layer's states are those of all positions
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
        **kwargs,
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
                Region features. Fewer images than texts serve equally many texts each, one after another (a batch size
                of 1 serves all); the other arguments about regions likewise, each on its own. Without them (and
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
                With `pixel_values`: boxes to describe instead of finding some, x1, y1, x2, y2 in units of the image
                (0..1); `boxes_mask`, or else `visual_attention_mask`, is then theirs.
            boxes_mask (`torch.LongTensor` of shape `(batch_size, regions)`, *optional*):
                1 for a given box, 0 for padding.
            image_sizes (`torch.LongTensor` of shape `(batch_size, 2)`, *optional*):
                Original sizes, as the processor returns them beside the pixels.
            picture_windows, object_masks, object_classes (`torch.Tensor`, *optional*):
                What a [`RegionDetector`] reads beside these; see its `forward`. Other region encoders do not.
            read_positions (`torch.LongTensor` of shape `(batch_size, positions)`, *optional*):
                Positions in text and regions whose last states are wanted: the last layer computes no others. The pooler
                reads the first of them.

        Returns:
            `last_hidden_state` of shape `(batch_size, text_length + regions, hidden_size)` or, with `read_positions`,
            `(batch_size, positions, hidden_size)`, and `pooler_output`. With late fusion
            (`config.bypass_transformer`) `hidden_states` and `attentions` hold the text-only layers followed by the
            additional layer over text and regions.

        Raises:
            ValueError: Both or none of `input_ids` and `inputs_embeds`, or both `pixel_values` and `visual_embeds`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of `input_ids` and `inputs_embeds`")
        if pixel_values is not None:
            if visual_embeds is not None:
                raise ValueError("pass either `pixel_values` or `visual_embeds`, not both")
            found, segments = self._regions_from_pixels(
                pixel_values,
                pixel_mask,
                boxes_unit,
                visual_attention_mask if boxes_mask is None else boxes_mask,
                image_sizes=image_sizes,
                picture_windows=picture_windows,
                object_masks=object_masks,
                object_classes=object_classes,
            )
            visual_embeds, visual_attention_mask = found["visual_embeds"], found["visual_attention_mask"]
            visual_token_type_ids = segments if visual_token_type_ids is None else visual_token_type_ids

        states_BSD = self.embeddings(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            visual_embeds=visual_embeds,
            visual_token_type_ids=visual_token_type_ids,
            image_text_alignment=image_text_alignment,
        )
        text_length = _text_length(input_ids, inputs_embeds)
        if visual_embeds is None:
            visual_attention_mask = None
        mask_BS = _joint_mask(attention_mask, visual_attention_mask, states_BSD, text_length)
        kernel = self._packed_kernel(states_BSD, mask_BS, read_positions, **kwargs)
        if self.config.bypass_transformer and visual_embeds is not None:
            text_mask_BT = None if mask_BS is None else mask_BS[:, :text_length]
            text_BTD = states_BSD[:, :text_length]
            text_BTD = self._encode(self.encoder, text_BTD, text_mask_BT, None, kernel, **kwargs)
            states_BSD = torch.cat((text_BTD, states_BSD[:, text_length:]), dim=1)
            states_BSD = self._encode(self.additional_layer, states_BSD, mask_BS, read_positions, kernel, **kwargs)
        else:
            states_BSD = self._encode(self.encoder, states_BSD, mask_BS, read_positions, kernel, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=states_BSD,
            pooler_output=self.pooler(states_BSD) if self.pooler is not None else None,
        )

    def _records(self, **kwargs) -> bool:
        """Whether all states or attentions are asked for."""
        names = ("output_attentions", "output_hidden_states")
        return any(kwargs.get(name, getattr(self.config, name, False)) for name in names)

    def _packed_kernel(
        self, states_BSD: torch.Tensor, mask_BS: torch.Tensor | None, read_BP: torch.Tensor | None, **kwargs
    ) -> str | None:
        """What attends to rows without padding; None where padding has to be computed. Whoever takes all states, or reads one of
        padding, gets them as the authors have them."""
        if mask_BS is None or read_BP is None or self._records(**kwargs):
            return None
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        head_size = self.config.hidden_size // self.config.num_attention_heads
        kernel = packed_kernel(states_BSD, head_size, self.config._attn_implementation, dropout)
        return None if kernel is None or not mask_BS.gather(1, read_BP).all() else kernel

    def _encode(
        self,
        layers: nn.Module,
        states_BSD: torch.Tensor,
        mask_BS: torch.Tensor | None,
        read_BP: torch.Tensor | None,
        kernel: str | None,
        **kwargs,
    ) -> torch.Tensor:
        """Last states [B, P, D] of the positions to read or, without them, [B, S, D]. With a `kernel` for packed rows padding is
        not computed, and is zero in [B, S, D]; with positions to read, neither is what the last layer knows of others, unless
        all states or attentions are asked for."""
        if mask_BS is not None and kernel is not None:
            packing = Packing.from_mask(mask_BS, kernel)
            if read_BP is None:
                return packing.unpack(layers(packing.pack(states_BSD), packing, **kwargs))
            return packing.restore_rows(layers(packing.pack(states_BSD), packing, packing.places_of(read_BP), **kwargs))
        mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=states_BSD,
            attention_mask=mask_BS,
            allow_is_bidirectional_skip=states_BSD.device.type == "cpu",  # a GPU would be waited for
        )
        if read_BP is None:
            return layers(states_BSD, mask, **kwargs)
        if self._records(**kwargs) or not (mask is None or self.config._attn_implementation in ("eager", "sdpa")):
            return _gather_states(layers(states_BSD, mask, **kwargs), read_BP)
        batch_size, length = states_BSD.shape[:2]
        places_BP = read_BP + length * torch.arange(batch_size, device=read_BP.device)[:, None]
        return layers(states_BSD, None if mask is None else mask[:, :, :1], places_BP, **kwargs)


def _joint_mask(
    text_mask: torch.Tensor | None, visual_mask: torch.Tensor | None, states_BSD: torch.Tensor, text_length: int
) -> torch.Tensor | None:
    """Bool [B, S] over text and regions; a mask that is not given is all ones; None when neither is."""
    if text_mask is None and visual_mask is None:
        return None
    batch_size, total_length = states_BSD.shape[:2]
    if text_mask is None:
        text_mask = torch.ones(batch_size, text_length, dtype=torch.bool, device=states_BSD.device)
    if visual_mask is None:
        visual_mask = torch.ones(batch_size, total_length - text_length, dtype=torch.bool, device=states_BSD.device)
    return torch.cat((text_mask.to(torch.bool), _for_each_text(visual_mask.to(torch.bool), batch_size)), dim=1)


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


class VisualBertForPreTraining(VisualBertPreTrainedModel):
    """Masked language modelling with the image, and the sentence-image objective (paper, section 3.3)."""

    _auto_class = "AutoModelForPreTraining"
    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "visual_bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: VisualBertConfig):
        super().__init__(config)
        self.visual_bert = VisualBertModel(config)
        self.cls = VisualBertPreTrainingHeads(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

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
        **kwargs,
    ) -> VisualBertForPreTrainingOutput:
        r"""
        Args (beside those of [`VisualBertModel.forward`]):
            labels (`torch.LongTensor` of shape `(batch_size, text_length)`, *optional*):
                Word pieces to predict, -100 elsewhere. Labels over text and regions are accepted too; the part over the
                regions is not read, since regions are never predicted.
            masked_positions (`torch.LongTensor` of shape `(batch_size, masked)`, *optional*):
                Text positions whose word pieces are scored, -1 is padding: the last layer and the head compute no others.
                Labels elsewhere are not read. Whoever makes the labels knows them; scores of all positions are most of the
                memory of a training step.
            sentence_image_labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                1 when the text belongs to the image, 0 when it does not, as the authors trained it (the documentation
                of `transformers` says the opposite); -100 is ignored.
            num_items_in_batch, num_pairs_in_batch (`int`, *optional*):
                What the summed losses are divided by: word pieces to predict and sentence-image labels in the global
                batch. Default to those of this batch.

        Both losses are means over their labels; a batch without labels has loss 0.
        """
        if labels is not None:
            labels = labels[:, : _text_length(input_ids, inputs_embeds)]
        read = None
        if masked_positions is not None:  # and [CLS], for the match
            read = F.pad(masked_positions.clamp(min=0), (1, 0))
        outputs = self.visual_bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            visual_embeds=visual_embeds,
            visual_attention_mask=visual_attention_mask,
            visual_token_type_ids=visual_token_type_ids,
            image_text_alignment=image_text_alignment,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            read_positions=read,
            return_dict=True,
            **kwargs,
        )
        states_BSD = outputs.last_hidden_state if read is None else outputs.last_hidden_state[:, 1:]
        prediction_logits = self.cls.predictions(states_BSD)
        seq_relationship_logits = self.cls.seq_relationship(outputs.pooler_output)
        losses = []
        if labels is not None:
            if masked_positions is not None:
                labels = labels.gather(1, masked_positions.clamp(min=0)).masked_fill(masked_positions < 0, -100)
            losses.append(_cross_entropy(prediction_logits[:, : labels.shape[1]], labels, num_items_in_batch))
        if sentence_image_labels is not None:
            losses.append(_cross_entropy(seq_relationship_logits, sentence_image_labels.view(-1), num_pairs_in_batch))
        return VisualBertForPreTrainingOutput(
            loss=torch.stack(losses).sum() if losses else None,
            prediction_logits=prediction_logits,
            seq_relationship_logits=seq_relationship_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class VisualBertForQuestionAnswering(VisualBertPreTrainedModel):
    """
    VQA: scores of `config.num_labels` answers, read from the `[MASK]` token that the processor appends to the question.
    """

    _auto_class = "AutoModelForVisualQuestionAnswering"

    def __init__(self, config: VisualBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.visual_bert = VisualBertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.cls = Linear(config.hidden_size, config.num_labels)
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
        **kwargs,
    ) -> SequenceClassifierOutput:
        r"""
        Args (beside those of [`VisualBertModel.forward`]):
            labels (`torch.FloatTensor` of shape `(batch_size, num_labels)`, *optional*):
                Score of each answer in 0..1; a row need not sum to one. The loss is the KL divergence of the predicted
                distribution from the scores, summed over answers.
            num_items_in_batch (`int`, *optional*):
                What the summed loss is divided by: the number of questions in the global batch. Defaults to this batch's.
        """
        outputs = self.visual_bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            visual_embeds=visual_embeds,
            visual_attention_mask=visual_attention_mask,
            visual_token_type_ids=visual_token_type_ids,
            image_text_alignment=image_text_alignment,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            # `... ? [MASK] [SEP]`: the answer is read one before the last token.
            read_positions=(_text_lengths(input_ids, inputs_embeds, attention_mask) - 2).clamp(min=0)[:, None],
            return_dict=True,
            **kwargs,
        )
        logits_BL = self.cls(self.dropout(outputs.last_hidden_state[:, 0]))
        loss = None
        if labels is not None:
            count = labels.shape[0] if num_items_in_batch is None else num_items_in_batch
            loss = F.kl_div(logits_BL.float().log_softmax(dim=-1), labels.float(), reduction="sum") / count
        return SequenceClassifierOutput(
            loss=loss, logits=logits_BL, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class VisualBertForMultipleChoice(VisualBertPreTrainedModel):
    """VCR: one score for each choice, read from the pooled [CLS] state."""

    _auto_class = "AutoModelForMultipleChoice"

    def __init__(self, config: VisualBertConfig):
        super().__init__(config)
        self.visual_bert = VisualBertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.cls = Linear(config.hidden_size, 1)
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
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
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
                With `pixel_values`: the whole image and its objects, in units of the image (0..1).
            boxes_mask (`torch.LongTensor` of shape `(batch_size, regions)`, *optional*):
                1 for a given box, 0 for padding; `visual_attention_mask` when not given.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Index of the right choice. While a detector is trained along (`config.freeze_region_encoder` is off), the
                loss includes its class loss, weighted with its `class_loss_weight`.
        """
        batch_size, num_choices = (inputs_embeds if input_ids is None else input_ids).shape[:2]  # type: ignore[union-attr]
        class_loss = None
        if pixel_values is not None:
            if visual_embeds is not None:
                raise ValueError("pass either `pixel_values` or `visual_embeds`, not both")
            boxes_mask = visual_attention_mask if boxes_mask is None else boxes_mask
            found, _ = self.visual_bert._regions_from_pixels(
                pixel_values, pixel_mask, boxes_unit, boxes_mask, **_pop_region_inputs(kwargs)
            )
            visual_embeds, visual_attention_mask = found["visual_embeds"], found["visual_attention_mask"]
            class_loss = found.get("cnn_regularization_loss")
        outputs = self.visual_bert(
            _flatten_choices(input_ids),
            attention_mask=_flatten_choices(attention_mask),
            token_type_ids=_flatten_choices(token_type_ids),
            position_ids=_flatten_choices(position_ids),
            inputs_embeds=_flatten_choices(inputs_embeds),
            visual_embeds=_flatten_choices(visual_embeds, ndim=3),
            visual_attention_mask=_flatten_choices(visual_attention_mask, ndim=2),
            visual_token_type_ids=_flatten_choices(visual_token_type_ids, ndim=2),
            image_text_alignment=_flatten_choices(image_text_alignment, ndim=3),
            read_positions=_cls_position(_flatten_choices(input_ids), _flatten_choices(inputs_embeds)),
            return_dict=True,
            **kwargs,
        )
        logits_BC = self.cls(self.dropout(outputs.pooler_output)).view(-1, num_choices)
        loss = None
        if labels is not None:
            loss = _cross_entropy(logits_BC, labels, num_items_in_batch)
            if class_loss is not None and not self.config.freeze_region_encoder:
                # Of a larger batch that is accumulated, this is the part of these examples.
                part = 1.0 if num_items_in_batch is None else len(labels) / num_items_in_batch
                loss = loss + self.config.region_encoder_config.class_loss_weight * part * class_loss
        return MultipleChoiceModelOutput(
            loss=loss,
            logits=logits_BC,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class VisualBertForVisualReasoning(VisualBertPreTrainedModel):
    """NLVR2: is the sentence true of the two images? Two scores, read from the pooled [CLS] state; 1 is "True"."""

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: VisualBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.visual_bert = VisualBertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.cls = Linear(config.hidden_size, config.num_labels)
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
        **kwargs,
    ) -> SequenceClassifierOutput:
        r"""
        Args (beside those of [`VisualBertModel.forward`]):
            visual_token_type_ids (`torch.LongTensor` of shape `(batch_size, regions)`):
                0 for the regions of the first image, 1 for those of the second.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                1 when the sentence is true of the images, else 0.
        """
        outputs = self.visual_bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            visual_embeds=visual_embeds,
            visual_attention_mask=visual_attention_mask,
            visual_token_type_ids=visual_token_type_ids,
            image_text_alignment=image_text_alignment,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            read_positions=_cls_position(input_ids, inputs_embeds),
            return_dict=True,
            **kwargs,
        )
        logits_BL = self.cls(self.dropout(outputs.pooler_output))
        return SequenceClassifierOutput(
            loss=None if labels is None else _cross_entropy(logits_BL, labels.view(-1), num_items_in_batch),
            logits=logits_BL,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class VisualBertRegionToPhraseAttention(nn.Module):
    """One attention head whose raw scores say which region a phrase means. `value` is in the checkpoints but not used."""

    def __init__(self, config: VisualBertConfig):
        super().__init__()
        head_size = config.hidden_size // config.num_attention_heads
        self.scaling = head_size**-0.5
        self.query = Linear(config.hidden_size, head_size)
        self.key = Linear(config.hidden_size, head_size)
        self.value = Linear(config.hidden_size, head_size)

    def forward(
        self, phrases_BED: torch.Tensor, regions_BRD: torch.Tensor, mask_BR: torch.Tensor | None
    ) -> torch.Tensor:
        scores_BER = torch.matmul(self.query(phrases_BED), self.key(regions_BRD).transpose(1, 2)) * self.scaling
        if mask_BR is None:
            return scores_BER
        return scores_BER + (1.0 - mask_BR.to(scores_BER.dtype))[:, None] * -10000.0


class VisualBertForRegionToPhraseAlignment(VisualBertPreTrainedModel):
    """Flickr30k Entities: which region does each phrase of the sentence mean?"""

    _auto_class = "AutoModelForZeroShotObjectDetection"
    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "visual_bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: VisualBertConfig):
        super().__init__(config)
        self.visual_bert = VisualBertModel(config)
        self.cls = VisualBertPreTrainingHeads(config)  # in the checkpoints, not used for this task
        self.attention = VisualBertRegionToPhraseAttention(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

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
        **kwargs,
    ) -> SequenceClassifierOutput:
        r"""
        Args (beside those of [`VisualBertModel.forward`]):
            region_to_phrase_position (`torch.LongTensor` of shape `(batch_size, phrases)`):
                Text position of the last word piece of each phrase; -1 is padding (its scores mean nothing).
            labels (`torch.FloatTensor` of shape `(batch_size, phrases, regions)`, *optional*):
                For each phrase a distribution over regions, uniform over those that match; all zero for phrases without
                one and for padding. The loss is the KL divergence, summed and divided by the batch size.

        Returns:
            `logits` of shape `(batch_size, phrases, regions)`; about -10000 at padded regions.
        """
        if region_to_phrase_position is None:
            raise ValueError("`region_to_phrase_position` is missing; expected a tensor of shape (batch_size, phrases)")
        if pixel_values is not None:
            if visual_embeds is not None:
                raise ValueError("pass either `pixel_values` or `visual_embeds`, not both")
            boxes_mask = kwargs.pop("boxes_mask", None)
            found, segments = self.visual_bert._regions_from_pixels(
                pixel_values,
                pixel_mask,
                boxes_unit,
                visual_attention_mask if boxes_mask is None else boxes_mask,
                **_pop_region_inputs(kwargs),
            )
            visual_embeds, visual_attention_mask = found["visual_embeds"], found["visual_attention_mask"]
            visual_token_type_ids = segments if visual_token_type_ids is None else visual_token_type_ids
        num_regions = 0 if visual_embeds is None else visual_embeds.shape[1]
        phrases_BE = region_to_phrase_position.clamp(min=0)
        regions_R = _text_length(input_ids, inputs_embeds) + torch.arange(num_regions, device=phrases_BE.device)
        regions_BR = regions_R.expand(phrases_BE.shape[0], -1)
        if visual_attention_mask is not None:  # of a padded region, which gets -10000, any state will do
            regions_BR = regions_BR * _for_each_text(visual_attention_mask.to(torch.bool), phrases_BE.shape[0])
        outputs = self.visual_bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            visual_embeds=visual_embeds,
            visual_attention_mask=visual_attention_mask,
            visual_token_type_ids=visual_token_type_ids,
            image_text_alignment=image_text_alignment,
            read_positions=torch.cat((phrases_BE, regions_BR), dim=1),
            return_dict=True,
            **kwargs,
        )
        phrases_BED, regions_BRD = outputs.last_hidden_state.split((phrases_BE.shape[1], num_regions), dim=1)
        logits_BER = self.attention(phrases_BED, regions_BRD, visual_attention_mask)
        loss = None
        if labels is not None:
            count = labels.shape[0] if num_items_in_batch is None else num_items_in_batch
            loss = F.kl_div(logits_BER.float().log_softmax(dim=-1), labels.float(), reduction="sum") / count
        return SequenceClassifierOutput(
            loss=loss, logits=logits_BER, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def _save_pipeline_code(folder: str) -> None:
    """Copy the pipelines' files beside the weights. Imported here: models do not need their pipelines."""
    from .pipeline_visualbert import VisualBertPipeline

    custom_object_save(VisualBertPipeline, folder)


def _pop_region_inputs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take out what only region encoders read."""
    names = {name for encoder in REGION_ENCODERS.values() for name in encoder.region_inputs}
    return {name: kwargs.pop(name) for name in names & kwargs.keys()}


def _text_length(input_ids: Any, inputs_embeds: Any) -> int:
    return (inputs_embeds if input_ids is None else input_ids).shape[1]


def _text_lengths(input_ids: Any, inputs_embeds: Any, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """[B]: tokens of each text."""
    if attention_mask is not None:
        return attention_mask.long().sum(dim=1)
    words = inputs_embeds if input_ids is None else input_ids
    return torch.full(words.shape[:1], words.shape[1], device=words.device)


def _cls_position(input_ids: Any, inputs_embeds: Any) -> torch.Tensor:
    """[B, 1]: the heads that read the pooled `[CLS]` need no other state."""
    words = inputs_embeds if input_ids is None else input_ids
    return torch.zeros(words.shape[0], 1, dtype=torch.long, device=words.device)


def _gather_states(states_BSD: torch.Tensor, positions_BN: torch.Tensor) -> torch.Tensor:
    """[B, N, D]: the states at the given positions."""
    return states_BSD.gather(1, positions_BN[..., None].expand(-1, -1, states_BSD.shape[-1]))


def _cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Sum over labels that are not -100, divided by their number here or in the global batch; 0 without any."""
    labels = labels.to(logits.device)
    total = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="sum")
    count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return total / (count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1))


def _flatten_choices(tensor: torch.Tensor | None, ndim: int | None = None) -> torch.Tensor | None:
    """[B * C, ...] of [B, C, ...]. What has `ndim` dimensions is of one image per example and stays so."""
    return tensor if tensor is None or tensor.dim() == ndim else tensor.flatten(0, 1)


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
