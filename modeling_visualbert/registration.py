"""Makes the Auto classes and `pipeline(...)` of `transformers` use this package for model type "visual_bert"."""

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY, REMOVED_TASKS

from .hub_code.configuration_grid_encoder import GridRegionEncoderConfig
from .hub_code.configuration_region_detector import RegionDetectorConfig
from .hub_code.configuration_region_encoder import QueryRegionEncoderConfig
from .hub_code.configuration_visualbert import VisualBertConfig
from .hub_code.image_processing_region_detector import RegionDetectorImageProcessor
from .hub_code.image_processing_visualbert import VisualBertImageProcessor
from .hub_code.modeling_grid_encoder import GridRegionEncoder
from .hub_code.modeling_region_detector import RegionDetector
from .hub_code.modeling_region_encoder import QueryRegionEncoder
from .hub_code.modeling_visualbert import (
    VisualBertForMultipleChoice,
    VisualBertForPreTraining,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
    VisualBertModel,
)
from .hub_code.pipeline_visualbert import PIPELINES
from .hub_code.processing_visualbert import VisualBertProcessor


def register_auto_classes() -> None:
    """
    Called when the package is imported; calling it again changes nothing.

    `transformers` has classes of its own for "visual_bert"; after this call its Auto classes resolve to ours. It removed
    the task name "visual-question-answering" in version 5; the name is given back to `pipeline(...)` here.
    """
    AutoConfig.register("visual_bert", VisualBertConfig, exist_ok=True)
    AutoConfig.register("query_region_encoder", QueryRegionEncoderConfig, exist_ok=True)
    AutoConfig.register("grid_region_encoder", GridRegionEncoderConfig, exist_ok=True)
    AutoConfig.register("region_detector", RegionDetectorConfig, exist_ok=True)
    AutoModel.register(VisualBertConfig, VisualBertModel, exist_ok=True)
    AutoModel.register(QueryRegionEncoderConfig, QueryRegionEncoder, exist_ok=True)
    AutoModel.register(RegionDetectorConfig, RegionDetector, exist_ok=True)
    AutoModel.register(GridRegionEncoderConfig, GridRegionEncoder, exist_ok=True)
    AutoModelForPreTraining.register(VisualBertConfig, VisualBertForPreTraining, exist_ok=True)
    AutoModelForVisualQuestionAnswering.register(VisualBertConfig, VisualBertForQuestionAnswering, exist_ok=True)
    AutoModelForMultipleChoice.register(VisualBertConfig, VisualBertForMultipleChoice, exist_ok=True)
    AutoModelForSequenceClassification.register(VisualBertConfig, VisualBertForVisualReasoning, exist_ok=True)
    AutoModelForZeroShotObjectDetection.register(VisualBertConfig, VisualBertForRegionToPhraseAlignment, exist_ok=True)
    for config_class in (VisualBertConfig, QueryRegionEncoderConfig, GridRegionEncoderConfig):
        AutoImageProcessor.register(
            config_class, image_processor_classes={"pil": VisualBertImageProcessor}, exist_ok=True
        )
    AutoImageProcessor.register(
        RegionDetectorConfig, image_processor_classes={"pil": RegionDetectorImageProcessor}, exist_ok=True
    )
    AutoProcessor.register(VisualBertConfig, VisualBertProcessor, exist_ok=True)
    REMOVED_TASKS.pop("visual-question-answering", None)
    for task, (pipeline_class, auto_class) in PIPELINES.items():
        if task not in PIPELINE_REGISTRY.supported_tasks:  # registering again would warn
            PIPELINE_REGISTRY.register_pipeline(
                task, pipeline_class=pipeline_class, pt_model=getattr(transformers, auto_class), type="multimodal"
            )
