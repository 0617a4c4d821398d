"""Tests of the common suites that cannot apply to this model, with the reason of each; `docs/transformers_suites.md` lists them.

They still run, and have to fail: an entry whose test passes, or is not there any more, is an error.
"""

_IMAGE_PROCESSING = {
    "test_call_numpy_4_channels": "four means for four channels: RGBA is shown on white as RGB",
    "test_new_models_require_torchvision_backend": "torchvision is no dependency: pixels are those of Pillow and OpenCV",
}
# test class -> test -> reason
CANNOT_APPLY: dict[str, dict[str, str]] = {
    "VisualBertImageProcessingTest": _IMAGE_PROCESSING,
    "RegionDetectorImageProcessingTest": _IMAGE_PROCESSING,
}
