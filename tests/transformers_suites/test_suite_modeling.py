"""`ModelTesterMixin` and `ConfigTester` of `transformers` with the base model and the five heads, on regions and from pixels."""

import copy
import unittest

import pytest
import torch
from helpers import MODELS, NUM_CHOICES, SIZES, tiny_config
from transformers import ViTConfig
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor

from modeling_visualbert import GridRegionEncoderConfig, VisualBertConfig

pytestmark = pytest.mark.suites

NUM_LABELS = 5
NUM_PHRASES = 4
HEAD_OF = {model_class: head for head, model_class in MODELS.items()}


class RegionsTester:
    """What the mixin asks of a model: its sizes, a configuration, and inputs."""

    is_training = True
    batch_size, seq_length, num_regions, num_choices = 3, 9, 6, NUM_CHOICES
    encoder_seq_length = seq_length + num_regions
    num_hidden_layers, num_attention_heads = SIZES["num_hidden_layers"], SIZES["num_attention_heads"]
    hidden_size, vocab_size = SIZES["hidden_size"], SIZES["vocab_size"]

    def get_config(self):
        return tiny_config(num_labels=NUM_LABELS, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)

    def prepare_config_and_inputs_for_common(self):
        texts, regions = (self.batch_size, self.seq_length), (self.batch_size, self.num_regions)
        return self.get_config(), {
            "input_ids": ids_tensor(texts, self.vocab_size),
            "token_type_ids": ids_tensor(texts, 2),
            "attention_mask": torch.ones(texts, dtype=torch.long),
            "visual_embeds": floats_tensor((*regions, SIZES["visual_embedding_dim"])),
            "visual_token_type_ids": ids_tensor(regions, 2),
            "visual_attention_mask": torch.ones(regions, dtype=torch.long),
        }


class PixelsTester(RegionsTester):
    """A model that finds its regions in pixels: six cells of a ViT whose states are as long as those of the text."""

    vision_config = {"num_hidden_layers": 2}

    def get_config(self):
        vit = ViTConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=32,
            patch_size=16,
        )
        # A region encoder keeps its own attention, and only eager has the weights that tests of image features ask for.
        encoder = GridRegionEncoderConfig(
            backbone_config=vit, grid_rows=2, grid_columns=3, geometry_features=False, attn_implementation="eager"
        )
        config = super().get_config()
        return VisualBertConfig(**{**config.to_dict(), "region_encoder_config": encoder})

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        texts = {name: value for name, value in inputs.items() if not name.startswith("visual_")}
        return config, {**texts, "pixel_values": floats_tensor((self.batch_size, 3, 32, 32))}


class ModelTest(ModelTesterMixin):
    all_model_classes = tuple(MODELS.values())
    # Read positions decide what a head computes, so two heads have parameters from the checkpoints that they do not read.
    test_all_params_have_gradient = False
    test_can_init_all_missing_weights_before_2023 = True
    tester_class = RegionsTester

    def setUp(self):
        self.model_tester = self.tester_class()
        # As the tests of VisualBERT in `transformers` have it: 37 numbers, in 12 attention heads.
        self.config_tester = ConfigTester(self, config_class=VisualBertConfig, hidden_size=37)

    def test_config(self):
        self.config_tester.run_common_tests()

    def _image_features_prepare_config_and_inputs(self):
        config, inputs = PixelsTester().prepare_config_and_inputs_for_common()
        return config, {"pixel_values": inputs["pixel_values"]}

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        head, inputs = HEAD_OF[model_class], copy.deepcopy(inputs_dict)
        if head == "vcr":
            for name, value in inputs.items():
                if isinstance(value, torch.Tensor) and name != "pixel_values":
                    inputs[name] = value[:, None].expand(-1, NUM_CHOICES, *value.shape[1:]).contiguous()
        if head == "flickr30k":
            batch_size = next(len(value) for value in inputs.values() if isinstance(value, torch.Tensor))
            inputs["region_to_phrase_position"] = torch.arange(NUM_PHRASES).repeat(batch_size, 1)
        return {**inputs, **(self._labels(head) if return_labels else {})}

    def _labels(self, head):
        tester = self.model_tester
        batch_size = tester.batch_size
        if head == "base":
            return {}
        if head == "vqa":
            return {"labels": torch.full((batch_size, NUM_LABELS), 0.3)}
        if head == "flickr30k":
            return {"labels": torch.full((batch_size, NUM_PHRASES, tester.num_regions), 1 / tester.num_regions)}
        labels = {"labels": torch.zeros(batch_size, dtype=torch.long)}
        if head == "pretraining":
            labels["sentence_image_labels"] = labels["labels"]
            labels["labels"] = torch.ones(batch_size, tester.seq_length, dtype=torch.long)
        return labels


class RegionsModelTest(ModelTest, unittest.TestCase):
    pass


class PixelsModelTest(ModelTest, unittest.TestCase):
    _is_composite = True
    tester_class = PixelsTester
