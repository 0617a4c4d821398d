"""VisualBERT done right on the Hugging Face stack: image + question -> answer."""

from . import quiet  # noqa: F401  (before the imports that it quietens)
from .hub_code.configuration_grid_encoder import GridRegionEncoderConfig
from .hub_code.configuration_region_detector import RegionDetectorConfig
from .hub_code.configuration_region_encoder import QueryRegionEncoderConfig
from .hub_code.configuration_visualbert import VisualBertConfig
from .hub_code.image_processing_region_detector import RegionDetectorImageProcessor
from .hub_code.image_processing_visualbert import VisualBertImageProcessor, load_image
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
from .registration import register_auto_classes
from .version import __version__

load_picture = load_image  # its name in the first versions
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
    "load_image",
    "load_picture",
    "register_auto_classes",
]
