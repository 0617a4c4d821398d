"""VisualBERT done right on the Hugging Face stack: picture + question -> answer."""

from . import quiet  # noqa: F401  (before the imports that it quietens)
from .configuration_grid_encoder import GridRegionEncoderConfig
from .configuration_region_detector import RegionDetectorConfig
from .configuration_region_encoder import QueryRegionEncoderConfig
from .configuration_visualbert import VisualBertConfig
from .image_processing_region_detector import RegionDetectorImageProcessor
from .image_processing_visualbert import VisualBertImageProcessor, load_picture
from .modeling_grid_encoder import GridRegionEncoder
from .modeling_region_detector import RegionDetector
from .modeling_region_encoder import QueryRegionEncoder, RegionEncoder, RegionEncoderOutput
from .modeling_visualbert import (
    VisualBertForMultipleChoice,
    VisualBertForPreTraining,
    VisualBertForPreTrainingOutput,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
    VisualBertModel,
    VisualBertPreTrainedModel,
)
from .pipeline_visualbert import (
    VisualBertGroundingPipeline,
    VisualBertMaskedCaptionPipeline,
    VisualBertMultipleChoicePipeline,
    VisualBertReasoningPipeline,
    VisualBertVQAPipeline,
    ask,
)
from .processing_visualbert import VisualBertProcessor
from .registration import register_auto_classes
from .version import __version__

register_auto_classes()

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
    "load_picture",
    "register_auto_classes",
]
