"""`ProcessorTesterMixin` of `transformers` with the processor of each task that reads one text with an image."""

import unittest

import pytest
from transformers_tests.test_processing_common import ProcessorTesterMixin

from modeling_visualbert import VisualBertImageProcessor, VisualBertProcessor
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer

pytestmark = pytest.mark.suites


class ProcessorTest(ProcessorTesterMixin):
    processor_class = VisualBertProcessor

    @classmethod
    def _setup_image_processor(cls):
        return VisualBertImageProcessor()

    @classmethod
    def _setup_tokenizer(cls):
        return corpus_tokenizer()


class VqaProcessorTest(ProcessorTest, unittest.TestCase):
    pass


class PretrainingProcessorTest(ProcessorTest, unittest.TestCase):
    @staticmethod
    def prepare_processor_dict():
        return {"task": "pretraining"}


class GroundingProcessorTest(ProcessorTest, unittest.TestCase):
    @staticmethod
    def prepare_processor_dict():
        return {"task": "flickr30k"}


class ReasoningProcessorTest(ProcessorTest, unittest.TestCase):
    @staticmethod
    def prepare_processor_dict():
        return {"task": "nlvr2"}

    def prepare_images_inputs(self, batch_size=None, nested=False):
        """A pair of images for each text."""
        image = super().prepare_images_inputs()
        pair = [image, image]
        return pair if batch_size is None else [pair] * batch_size
