"""VisualBERT done right on the Hugging Face stack: image + question -> answer.

Public names are imported when they are first used, as in `transformers`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register_auto_classes, register_when_imported
from .version import __version__

if TYPE_CHECKING:
    from .corpus.tables import load_corpus
    from .hub_code.configuration_grid_encoder import GridRegionEncoderConfig
    from .hub_code.configuration_region_detector import RegionDetectorConfig
    from .hub_code.configuration_region_encoder import QueryRegionEncoderConfig
    from .hub_code.configuration_visualbert import VisualBertConfig
    from .hub_code.image_processing_region_detector import RegionDetectorImageProcessor
    from .hub_code.image_processing_visualbert import VisualBertImageProcessor, load_image
    from .hub_code.image_processing_visualbert import load_image as load_picture
    from .hub_code.modeling_grid_encoder import GridRegionEncoder
    from .hub_code.modeling_region_detector import RegionDetector
    from .hub_code.modeling_region_encoder import QueryRegionEncoder, RegionEncoder, RegionEncoderOutput
    from .hub_code.modeling_visualbert import (
        VisualBertForMultipleChoice,
        VisualBertForPreTraining,
        VisualBertForPreTrainingOutput,
        VisualBertForQuestionAnswering,
        VisualBertForRegionToPhraseAlignment,
        VisualBertForVisualReasoning,
        VisualBertModel,
        VisualBertPreTrainedModel,
    )
    from .hub_code.pipeline_visualbert import (
        VisualBertGroundingPipeline,
        VisualBertMaskedCaptionPipeline,
        VisualBertMultipleChoicePipeline,
        VisualBertReasoningPipeline,
        VisualBertVQAPipeline,
        ask,
    )
    from .hub_code.processing_visualbert import VisualBertProcessor

_MODULE_OF = {
    "GridRegionEncoder": "modeling_grid_encoder",
    "GridRegionEncoderConfig": "configuration_grid_encoder",
    "QueryRegionEncoder": "modeling_region_encoder",
    "QueryRegionEncoderConfig": "configuration_region_encoder",
    "RegionDetector": "modeling_region_detector",
    "RegionDetectorConfig": "configuration_region_detector",
    "RegionDetectorImageProcessor": "image_processing_region_detector",
    "RegionEncoder": "modeling_region_encoder",
    "RegionEncoderOutput": "modeling_region_encoder",
    "VisualBertConfig": "configuration_visualbert",
    "VisualBertForMultipleChoice": "modeling_visualbert",
    "VisualBertForPreTraining": "modeling_visualbert",
    "VisualBertForPreTrainingOutput": "modeling_visualbert",
    "VisualBertForQuestionAnswering": "modeling_visualbert",
    "VisualBertForRegionToPhraseAlignment": "modeling_visualbert",
    "VisualBertForVisualReasoning": "modeling_visualbert",
    "VisualBertGroundingPipeline": "pipeline_visualbert",
    "VisualBertImageProcessor": "image_processing_visualbert",
    "VisualBertMaskedCaptionPipeline": "pipeline_visualbert",
    "VisualBertModel": "modeling_visualbert",
    "VisualBertMultipleChoicePipeline": "pipeline_visualbert",
    "VisualBertPreTrainedModel": "modeling_visualbert",
    "VisualBertProcessor": "processing_visualbert",
    "VisualBertReasoningPipeline": "pipeline_visualbert",
    "VisualBertVQAPipeline": "pipeline_visualbert",
    "ask": "pipeline_visualbert",
    "load_image": "image_processing_visualbert",
}
_OLD_NAMES = {"load_picture": "load_image"}
_ELSEWHERE = {"load_corpus": ".corpus.tables"}


def __getattr__(name: str) -> Any:
    current = _OLD_NAMES.get(name, name)
    if current not in _MODULE_OF and current not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _ELSEWHERE.get(current) or f".hub_code.{_MODULE_OF[current]}"
    value = getattr(importlib.import_module(module, __name__), current)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_imported()

__all__ = [
    "GridRegionEncoder",
    "GridRegionEncoderConfig",
    "QueryRegionEncoder",
    "QueryRegionEncoderConfig",
    "RegionDetector",
    "RegionDetectorConfig",
    "RegionDetectorImageProcessor",
    "RegionEncoder",
    "RegionEncoderOutput",
    "VisualBertConfig",
    "VisualBertForMultipleChoice",
    "VisualBertForPreTraining",
    "VisualBertForPreTrainingOutput",
    "VisualBertForQuestionAnswering",
    "VisualBertForRegionToPhraseAlignment",
    "VisualBertForVisualReasoning",
    "VisualBertGroundingPipeline",
    "VisualBertImageProcessor",
    "VisualBertMaskedCaptionPipeline",
    "VisualBertModel",
    "VisualBertMultipleChoicePipeline",
    "VisualBertPreTrainedModel",
    "VisualBertProcessor",
    "VisualBertReasoningPipeline",
    "VisualBertVQAPipeline",
    "__version__",
    "ask",
    "load_corpus",
    "load_image",
    "load_picture",
    "register_auto_classes",
]
