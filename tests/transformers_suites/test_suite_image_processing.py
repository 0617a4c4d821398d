"""`ImageProcessingTestMixin` of `transformers` with both image processors."""

import unittest

import numpy as np
import pytest
from transformers_tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin

from modeling_visualbert import VisualBertImageProcessor
from modeling_visualbert.hub_code.image_processing_region_detector import RegionDetectorImageProcessor

pytestmark = pytest.mark.suites


class VisualBertImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent):
        super().__init__(parent, size={"height": 20, "width": 24})

    def _get_image_processing_classes(self):
        return {"pil": VisualBertImageProcessor}


class RegionDetectorImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent):
        # No side gets shorter than the 8 pixels that the image processor keeps of very long images.
        super().__init__(parent, min_resolution=80, size={"shortest_edge": 40, "longest_edge": 66})

    def _get_image_processing_classes(self):
        return {"pil": RegionDetectorImageProcessor}

    def expected_output_image_shape(self, images):
        """The detectors round sides to the nearest pixel, `transformers` cuts them off."""
        sides = [_height_width(image) for image in images]
        factors = [min(self.size["shortest_edge"] / min(side), self.size["longest_edge"] / max(side)) for side in sides]
        scaled = [[int(s * factor + 0.5) for s in side] for side, factor in zip(sides, factors, strict=True)]
        return (self.num_channels, *np.max(scaled, axis=0))


def _height_width(image):
    if isinstance(image, np.ndarray):
        return image.shape[:2]
    return image.shape[1:] if hasattr(image, "shape") else image.size[::-1]


class VisualBertImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = VisualBertImageProcessingTester


class RegionDetectorImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = RegionDetectorImageProcessingTester
