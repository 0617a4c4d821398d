"""Tests of the common suites that cannot apply to this model, with the reason of each; `docs/transformers_suites.md` lists them.

They still run, and have to fail: an entry whose test passes, or is not there any more, is an error.
"""

_IMAGE_PROCESSING = {
    "test_call_numpy_4_channels": "four means for four channels: RGBA is shown on white as RGB",
    "test_new_models_require_torchvision_backend": "torchvision is no dependency: pixels are those of Pillow and OpenCV",
}
_PROCESSING = {
    "test_init_arguments_not_in_processor_kwargs": "`max_length` is in every saved processor, and a call may differ from it",
    "test_model_input_names": "names what calls can make: regions or pixels, and a mask only where there is padding",
    "test_processor_text_has_no_visual": "every text of a batch is about an image",
}
_MODELING = {
    "test_model_weights_reload_no_missing_tied_weights": "weights of which every tensor is missing are refused",
}
# test class -> test -> reason
CANNOT_APPLY: dict[str, dict[str, str]] = {
    "VisualBertImageProcessingTest": _IMAGE_PROCESSING,
    "RegionDetectorImageProcessingTest": _IMAGE_PROCESSING,
    "VqaProcessorTest": {
        **_PROCESSING,
        "test_subprocessor_defaults_0_text": "`?` and `[MASK]` follow a question, which the tokenizer alone does not write",
    },
    "ReasoningProcessorTest": _PROCESSING,
    "GroundingProcessorTest": _PROCESSING,
    "PretrainingProcessorTest": _PROCESSING,
    "RegionsModelTest": _MODELING,
    "PixelsModelTest": {
        **_MODELING,
        "test_can_set_attention_dynamically": "a name is for the text model: detectors do not have every implementation",
        "test_config_attn_implementation_setter": "a name is for the text model: detectors do not have every implementation",
    },
}
