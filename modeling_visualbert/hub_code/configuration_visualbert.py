"""VisualBERT configuration."""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PretrainedConfig

from .configuration_grid_encoder import GridRegionEncoderConfig
from .configuration_region_detector import RegionDetectorConfig
from .configuration_region_encoder import PortableConfig, QueryRegionEncoderConfig

_SIZES = (
    *("vocab_size", "hidden_size", "visual_embedding_dim", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings", "type_vocab_size"),
)
_SHARES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "label_smoothing", "image_fusion_dropout")
# By model type: what a model can own to find its regions. `modeling_visualbert.py` has the classes.
REGION_ENCODER_CONFIGS = {
    config_class.model_type: config_class
    for config_class in (QueryRegionEncoderConfig, RegionDetectorConfig, GridRegionEncoderConfig)
}


@strict
class VisualBertConfig(PortableConfig):
    r"""
    Configuration of all VisualBERT models. The defaults are those of BERT base, which the paper starts from.

    Args:
        vocab_size (`int`, *optional*, defaults to 30522):
            Number of word pieces.
        hidden_size (`int`, *optional*, defaults to 768):
            Size of the hidden states of the encoder.
        visual_embedding_dim (`int`, *optional*, defaults to 512):
            Length of one region feature: 2048 in the published VQA checkpoints, 1024 for NLVR2, 512 for VCR, 2054 for
            Flickr30k. Taken from `region_encoder_config` when that is given.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of encoder layers.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number of attention heads of each layer.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Size of the feed-forward layers.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward layers.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout of embeddings, layer outputs and head inputs.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout of the attention weights.
        max_position_embeddings (`int`, *optional*, defaults to 512):
            Longest text. Regions take no text position.
        type_vocab_size (`int`, *optional*, defaults to 2):
            Number of segments. Regions have their own table of the same size: 0 for a single image (VQA, VCR, Flickr30k,
            COCO), 0 and 1 for the two images of NLVR2.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of new weights.
        layer_norm_eps (`float`, *optional*, defaults to 1e-12):
            Epsilon of the layer normalisations.
        bypass_transformer (`bool`, *optional*, defaults to `False`):
            The paper's "without early fusion" ablation: only the text goes through the encoder, one additional layer
            then reads text and regions.
        special_visual_initialize (`bool`, *optional*, defaults to `True`):
            Start the regions' segment and position tables as copies of the text tables, after those were loaded from
            BERT, when the checkpoint has none of its own.
        region_encoder_config (`PretrainedConfig` or `dict`, *optional*):
            A [`QueryRegionEncoderConfig`], [`RegionDetectorConfig`] or [`GridRegionEncoderConfig`]. When given,
            the model owns a region encoder and answers from `pixel_values`.
        freeze_region_encoder (`bool`, *optional*, defaults to `True`):
            Whether the region encoder stays as it is (and in evaluation mode) while the model is trained.
        task_options (`dict`, *optional*):
            Which text and regions the model was trained to read, beside what its processor knows, such as the `subtask` of VCR;
            `visualbert evaluate` follows it.
        feature_detector (`dict`, *optional*):
            What found the regions that the model was trained on: `{"name": ..., "fingerprint": ...}`, as in the index of a
            feature store. Features of two detectors may have the same length; those of another than this one are refused.
        class_weights (`list[float]`, *optional*):
            [`VisualBertForVisualReasoning`]: what the loss of an example is multiplied with, by its label.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            [`VisualBertForVisualReasoning`] and [`VisualBertForMultipleChoice`]: the share of each label that the loss spreads
            over all classes evenly.
        image_fusion_size (`int`, *optional*, defaults to 0):
            [`VisualBertForQuestionAnswering`]: question and image are also multiplied, at this size, and each answer gets a score
            of the product beside that of `[MASK]` (low-rank bilinear pooling, Kim et al., arXiv 1610.04325). 0: they are not.
            Other code than this package, such as the classes of `transformers`, does not read these weights.
        image_fusion_dropout (`float`, *optional*, defaults to 0.5):
            Dropout of what is multiplied and of the product.
        mentioned_answers_weight (`float`, *optional*, defaults to 0.0):
            With `image_fusion_size`: what the loss of `mentioned_answers` is multiplied with; 0 when it is trained without.
        pad_token_id (`int`, *optional*, defaults to 0):
            Word piece that pads texts, BERT's. `bos_token_id` and `eos_token_id` are None: nothing is generated.
        tie_word_embeddings (`bool`, *optional*, defaults to `True`):
            Whether the masked-LM head of [`VisualBertForPreTraining`] shares its weights with the word embeddings.
    """

    model_type = "visual_bert"
    sub_configs: ClassVar[dict[str, Any]] = {"region_encoder_config": AutoConfig}

    vocab_size: int = 30522
    hidden_size: int = 768
    visual_embedding_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    bypass_transformer: bool = False
    special_visual_initialize: bool = True
    region_encoder_config: Any = None
    freeze_region_encoder: bool = True
    task_options: dict[str, Any] | None = None
    feature_detector: dict[str, Any] | None = None
    class_weights: list[float] | None = None
    label_smoothing: float | int = 0.0
    image_fusion_size: int = 0
    image_fusion_dropout: float | int = 0.5
    mentioned_answers_weight: float | int = 0.0
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        if isinstance(self.region_encoder_config, dict):
            self.region_encoder_config = _region_encoder_config(self.region_encoder_config)
        if self.region_encoder_config is not None:
            self.visual_embedding_dim = self.region_encoder_config.region_dim
        super().__post_init__(**kwargs)

    @property
    def _attn_implementation(self):
        return self._attn_implementation_internal

    @_attn_implementation.setter
    def _attn_implementation(self, value: str | dict | None):
        """A name is for VisualBERT itself, because detectors do not support all of them; see [`split_attention_request`]."""
        own, for_region_encoder = split_attention_request(value, self.region_encoder_config)
        if isinstance(value, dict) and own is None:
            own = self.__dict__.get("_attn_implementation_internal")
        self._attn_implementation_internal = own
        if for_region_encoder is not None:
            self.region_encoder_config._attn_implementation = for_region_encoder

    @property
    def output_attentions(self) -> bool:
        """Whether to return attention weights; layers then compute eager attention, whatever the implementation."""
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: bool):
        self._output_attentions = value

    def validate_output_attentions(self) -> None:
        """Nothing to refuse: every implementation goes with attention weights here."""

    def validate_architecture(self) -> None:
        """Part of `validate()`, which runs when the configuration is made and when it is saved.

        Raises:
            ValueError: A size is not positive, or a probability or a scale cannot be one. (That the attention heads divide the
                hidden size is checked where a model is made, as in BERT.)
        """
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}; expected at least 1")
        for name in _SHARES:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}; expected at least 0 and less than 1")
        if self.image_fusion_size < 0:
            raise ValueError(f"image_fusion_size {self.image_fusion_size}; expected at least 0")
        for name in ("initializer_range", "layer_norm_eps", "mentioned_answers_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)}; expected a number of at least 0")


def split_attention_request(
    request: str | dict | None, region_encoder_config: PretrainedConfig | None
) -> tuple[str | None, str | None]:
    """What is asked of VisualBERT itself, and of its region encoder, by an `attn_implementation`.

    Args:
        request: A name, which is for VisualBERT itself, or a dict with the keys `""` (the same) and `"region_encoder_config"`.
        region_encoder_config: That of the model, if it has a region encoder.

    Raises:
        ValueError: A key is unknown, or names a region encoder that is not there.
    """
    if not isinstance(request, dict):
        return request, None
    if unknown := sorted(request.keys() - {"", "region_encoder_config"}):
        raise ValueError(f"attn_implementation has the key {unknown[0]!r}; expected '' or 'region_encoder_config'")
    for_region_encoder = request.get("region_encoder_config")
    if for_region_encoder is not None and region_encoder_config is None:
        raise ValueError("attn_implementation has the key 'region_encoder_config', but the model has no region encoder")
    return request.get(""), for_region_encoder


def _region_encoder_config(values: dict) -> PretrainedConfig:
    values = dict(values)
    values.pop("_name_or_path", None)  # where it lay on this machine says nothing to others
    model_type = values.pop("model_type", None)
    if model_type not in REGION_ENCODER_CONFIGS:
        raise ValueError(
            f"`region_encoder_config` has model_type {model_type!r:.60}; "
            f"expected {' or '.join(map(repr, REGION_ENCODER_CONFIGS))}"
        )
    return REGION_ENCODER_CONFIGS[model_type](**values)


__all__ = ["REGION_ENCODER_CONFIGS", "VisualBertConfig", "split_attention_request"]
