"""How VisualBERT checkpoints are saved, opened, started from BERT and given a region encoder."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.dynamic_module_utils import custom_object_save

from .configuration_visualbert import VisualBertConfig
from .loading_visualbert import CheckedModel, load_checked
from .modeling_region_encoder import RegionEncoder
from .regions_visualbert import check_detector, spatial_hint
from .tasks_visualbert import AUTO_MAP, custom_pipelines

# What VisualBERT's configuration takes over from that of a BERT checkpoint.
_BERT_FIELDS = (
    *("vocab_size", "type_vocab_size", "max_position_embeddings", "pad_token_id", "layer_norm_eps"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
)
_BERT_KEYS = {
    r"^bert\.": "visual_bert.",
    r"LayerNorm\.gamma$": "LayerNorm.weight",  # checkpoints from 2018
    r"LayerNorm\.beta$": "LayerNorm.bias",
}


_NOT_IN_BERT = ("embeddings.visual_projection.", "pooler.", "additional_layer.", "region_encoder.")


class VisualBertCheckpointModel(CheckedModel):
    """A model that is saved with its code, reports damaged files by name, and can start from a BERT."""

    config: VisualBertConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, new_parts: Sequence[str] = (), **kwargs):
        """As in `transformers`, but weights that are not those of the model are refused, see [`load_checked`].

        Args:
            pretrained_model_name_or_path: Folder or Hub name.
            new_parts: Parts that the checkpoint may lack beside a head, such as `"region_encoder."` when one is loaded into the
                model afterwards.

        Raises:
            ValueError: The weights are damaged; or tensors are missing, left over, of another shape or not finite.
        """
        return load_checked(super().from_pretrained, pretrained_model_name_or_path, args, kwargs, new_parts)

    @classmethod
    def from_bert(cls, pretrained_model_name_or_path, **config_kwargs) -> "VisualBertCheckpointModel":
        """
        Start from a BERT checkpoint, as the paper does: the text part is loaded, the regions' segment and position tables
        become copies of the text's (`special_visual_initialize`), and projection and head are new.

        Args:
            pretrained_model_name_or_path: A BERT checkpoint, by Hub name or folder.
            config_kwargs: Fields of [`VisualBertConfig`] that BERT does not have or that should differ, such as
                `visual_embedding_dim`, `region_encoder_config` or `num_labels`.

        Raises:
            ValueError: The checkpoint is not a BERT.
        """
        bert_fields, _ = VisualBertConfig.get_config_dict(pretrained_model_name_or_path)
        if bert_fields.get("model_type") != "bert":
            raise ValueError(
                f"{pretrained_model_name_or_path} is a {bert_fields.get('model_type')!r} checkpoint; expected 'bert'"
            )
        shared = {name: bert_fields[name] for name in _BERT_FIELDS if name in bert_fields}
        config = VisualBertConfig(**{**shared, **config_kwargs})
        return cls.from_pretrained(
            pretrained_model_name_or_path, config=config, key_mapping=_BERT_KEYS, new_parts=_NOT_IN_BERT
        )

    def post_init(self):
        super().post_init()
        # `transformers` adds the names that the parts of a model may ignore in their own files, such as a region encoder the
        # whole rest of a VisualBERT. Here nothing is ignored.
        self._keys_to_ignore_on_load_unexpected = set()

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For code from outside, `transformers` skips modules that have no parameters of their own, and with them the copying
        # of the text tables. `_init_weights` checks each tensor itself, so nothing has to be skipped.
        super()._initialize_weights(module, is_custom_code=False)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in `transformers`. The code of the model and its pipeline is copied beside the weights, and the configuration refers
        to it, so that the folder opens with `trust_remote_code` where this package is not installed."""
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

    def feature_detector(self) -> dict[str, Any] | None:
        """Which detector's features the model reads, for [`check_detector`]: its own, or the one that its configuration names."""
        base: Any = getattr(self, self.base_model_prefix, self)
        if self.config.region_encoder_config is None:
            return self.config.feature_detector
        return base.region_encoder.identity()

    def attach_region_encoder(self, region_encoder: RegionEncoder, any_detector: bool = False) -> None:
        """
        Give a region encoder from another checkpoint to a model that has none. The processor needs its image processor too.

        Args:
            region_encoder: The region encoder whose features the model was trained on.
            any_detector: Whether another one is accepted too, if its features are as long.

        Raises:
            ValueError: The model already has one, or the features are of another length than the model reads, or of another
                detector than it was trained on (see [`check_detector`]).
        """
        if self.config.region_encoder_config is not None:
            raise ValueError("the model has a region encoder already; expected one without")
        made, read = region_encoder.config.region_dim, self.config.visual_embedding_dim
        if made != read:
            raise ValueError(
                f"the region encoder makes features of {made} numbers, the model reads {read}; expected the one that the model "
                f"was trained with{spatial_hint(made, read)}"
            )
        identity = region_encoder.identity()
        if not any_detector:
            model = self.config.name_or_path or "the model"
            check_detector("this region encoder", identity, model, self.config.feature_detector)
        self.config.region_encoder_config = region_encoder.config
        self.config.feature_detector = identity
        base: Any = getattr(self, self.base_model_prefix, self)
        base.region_encoder = region_encoder.to(self.device, self.dtype)
        base.region_encoder.requires_grad_(not self.config.freeze_region_encoder)
        base.train(base.training)


def _save_pipeline_code(folder: str) -> None:
    """Copy the pipelines' files beside the weights.

    The import is inside the function because models do not need their pipelines. `transformers` finds it by scanning this file
    for relative imports, which is how the pipelines' files also come along when the model is opened with `trust_remote_code`.
    """
    from .pipeline_visualbert import VisualBertPipeline

    custom_object_save(VisualBertPipeline, folder)


__all__ = ["VisualBertCheckpointModel"]
