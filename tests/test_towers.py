"""Vision towers of every family, saved to a folder and loaded from it: alone, and inside a model that answers from pixels."""

import logging
import tempfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoBackbone,
    BeitConfig,
    BeitModel,
    BertConfig,
    BertModel,
    BlipConfig,
    BlipModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextV2Config,
    ConvNextV2Model,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    EfficientNetModel,
    HieraConfig,
    HieraModel,
    ImageGPTConfig,
    ImageGPTModel,
    LevitConfig,
    LevitModel,
    MetaClip2Config,
    MetaClip2Model,
    MobileNetV1Config,
    MobileNetV1Model,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileViTConfig,
    MobileViTModel,
    MobileViTV2Config,
    MobileViTV2Model,
    OwlViTConfig,
    OwlViTModel,
    PvtV2Config,
    PvtV2Model,
    RegNetConfig,
    RegNetModel,
    ResNetBackbone,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
    SwinConfig,
    SwinForImageClassification,
    Swinv2Config,
    Swinv2Model,
    TimesformerConfig,
    TimesformerModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
    YolosConfig,
    YolosForObjectDetection,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from modeling_visualbert import (
    GridRegionEncoder,
    VisualBertConfig,
    VisualBertForQuestionAnswering,
)
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.hub_code.modeling_grid_encoder import mean_in_boxes
from modeling_visualbert.hub_code.towers_visualbert import load_tower, map_shape, tower_map

close = {"atol": 1e-4, "rtol": 1e-4}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {**SIZES, "image_size": 64, "patch_size": 16}
TEXT = {**SIZES, "vocab_size": 50, "max_position_embeddings": 16}
FOUR = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "image_size": 64, "window_size": 4}
EFFICIENT = {
    "in_channels": [32, 16],
    "out_channels": [16, 24],
    "kernel_sizes": [3, 3],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
    "depthwise_padding": [],
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "hidden_dim": 1280,
}
NAFLEX = {**SIZES, "num_patches": 16, "patch_size": 16}

# Family: the model as people save it, channels and sides of the map of 64 x 64 pixels.
TOWERS = {
    "resnet": (lambda: ResNetForImageClassification(ResNetConfig(embedding_size=8, **FOUR)), 32, 2),
    "resnet backbone": (lambda: ResNetBackbone(ResNetConfig(embedding_size=8, **FOUR)), 32, 2),
    "convnext": (lambda: ConvNextForImageClassification(ConvNextConfig(**FOUR)), 32, 2),
    "convnextv2": (lambda: ConvNextV2Model(ConvNextV2Config(**FOUR)), 32, 2),
    "swin": (lambda: SwinForImageClassification(SwinConfig(**SWIN)), 32, 8),
    "swinv2": (lambda: Swinv2Model(Swinv2Config(**SWIN)), 32, 8),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**VIT)), 32, 4),
    "dinov2_with_registers": (lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VIT)), 32, 4),
    "dinov3_vit": (lambda: DINOv3ViTModel(DINOv3ViTConfig(**VIT, num_register_tokens=2)), 32, 4),
    "dinov3_convnext": (lambda: DINOv3ConvNextModel(DINOv3ConvNextConfig(**FOUR)), 32, 2),
    "pvt_v2": (lambda: PvtV2Model(PvtV2Config(**FOUR, num_attention_heads=[1, 1, 2, 2])), 32, 2),
    "hiera": (
        lambda: HieraModel(HieraConfig(embed_dim=8, image_size=[64, 64], depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])),
        64,
        2,
    ),
    "beit": (lambda: BeitModel(BeitConfig(**VIT)), 32, 4),
    "vit": (lambda: ViTForImageClassification(ViTConfig(**VIT)), 32, 4),
    "deit": (lambda: DeiTModel(DeiTConfig(**VIT)), 32, 4),
    "efficientnet": (lambda: EfficientNetModel(EfficientNetConfig(**EFFICIENT)), 1280, 16),
    "efficientnet classifier": (lambda: EfficientNetForImageClassification(EfficientNetConfig(**EFFICIENT)), 1280, 16),
    "mobilenet_v1": (lambda: MobileNetV1Model(MobileNetV1Config(depth_multiplier=0.25)), 256, 2),
    "mobilenet_v2": (lambda: MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.25)), 1280, 2),
    "regnet": (lambda: RegNetModel(RegNetConfig(embedding_size=8, groups_width=8, **FOUR)), 32, 2),
    "mobilevit": (
        lambda: MobileViTModel(
            MobileViTConfig(hidden_sizes=[8, 8, 16], neck_hidden_sizes=[4, 8, 8, 8, 8, 8, 24], num_attention_heads=2)
        ),
        24,
        2,
    ),
    "mobilevitv2": (
        lambda: MobileViTV2Model(MobileViTV2Config(width_multiplier=0.25, n_attn_blocks=[1, 1, 1])),
        128,
        2,
    ),
    "segformer": (lambda: SegformerModel(SegformerConfig(**FOUR, num_attention_heads=[1, 1, 1, 1])), 32, 2),
    "clip": (lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VIT)), 32, 4),
    "clip vision tower": (lambda: CLIPVisionModel(CLIPVisionConfig(**VIT)), 32, 4),
    "clip classifier": (lambda: CLIPForImageClassification(CLIPConfig(text_config=TEXT, vision_config=VIT)), 32, 4),
    "metaclip_2": (lambda: MetaClip2Model(MetaClip2Config(text_config=TEXT, vision_config=VIT)), 32, 4),
    "blip": (lambda: BlipModel(BlipConfig(text_config=TEXT, vision_config=VIT)), 32, 4),
    "owlvit": (lambda: OwlViTModel(OwlViTConfig(text_config=TEXT, vision_config=VIT)), 32, 4),
    "chinese_clip": (lambda: ChineseCLIPModel(ChineseCLIPConfig(text_config=TEXT, vision_config=VIT)), 32, 4),
    "siglip": (lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VIT)), 32, 4),
    "siglip classifier": (
        lambda: SiglipForImageClassification(SiglipConfig(text_config=TEXT, vision_config=VIT)),
        32,
        4,
    ),
    "siglip2": (lambda: Siglip2Model(Siglip2Config(text_config=TEXT, vision_config=NAFLEX)), 32, 4),
}


def made(family):
    """A model of the family, with all its weights at random: with the layer scale of new models, depth would say nothing."""
    torch.manual_seed(0)
    model = TOWERS[family][0]().eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return model


def pixels(height=64, width=64, count=1):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def answering(encoder):
    """A model that answers questions, with this region encoder inside."""
    torch.manual_seed(0)
    config = VisualBertConfig(
        vocab_size=len(corpus_tokenizer()),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
        region_encoder_config=encoder.config.to_dict(),
    )
    model = VisualBertForQuestionAnswering(config).eval()
    model.visual_bert.region_encoder.load_state_dict(encoder.state_dict())
    return model


@pytest.mark.parametrize("family", TOWERS)
def test_every_family_is_loaded_from_its_folder(family, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, (_, channels, side) = made(family), TOWERS[family]
    model.save_pretrained(tmp_path / "tower")
    encoder = GridRegionEncoder.from_tower(tmp_path / "tower", grid_rows=2, grid_columns=2, geometry_features=False)
    assert map_shape(encoder.config.backbone_config, (64, 64)) == (channels, side, side)
    assert str(tmp_path) not in encoder.config.to_json_string()
    found = encoder(pixels()).visual_embeds
    assert found.shape == (1, 4, encoder.config.region_dim) == (1, 4, channels)
    states = own_map(model, family)
    assert states.shape == (1, channels, side, side)
    torch.testing.assert_close(found, mean_in_boxes(states, encoder._cells(pixels())[None]), **close)

    answers = answering(encoder)
    answers.save_pretrained(tmp_path / "model")
    again = VisualBertForQuestionAnswering.from_pretrained(tmp_path / "model").eval()
    inputs = {"input_ids": torch.tensor([[2, 7, 8, 3]]), "pixel_values": pixels()}
    torch.testing.assert_close(again(**inputs).logits, answers(**inputs).logits, **close)


def own_map(model, family):
    """The map as `transformers` makes it from the weights of the saved model."""
    base = getattr(model, "vision_model", model)
    base = base if type(base).__name__.endswith("Model") else base.base_model
    if type(base.config) in MODEL_FOR_BACKBONE_MAPPING:
        backbone = AutoBackbone.from_config(base.config).eval()
        given = base.state_dict()
        for name, value in backbone.state_dict().items():
            same = [name] if name in given else [key for key in given if name.endswith(f".{key}")]
            assert len(same) == 1 or name.startswith("hidden_states_norms."), name
            value.copy_(given[same[0]] if same else value)
        return backbone(pixels()).feature_maps[-1]
    if family == "siglip2":
        patches = pixels().unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1).reshape(1, 16, -1)
        states = base(patches, torch.ones(1, 16, dtype=torch.long), torch.tensor([[4, 4]])).last_hidden_state
    else:
        states = base(pixels()).last_hidden_state
    if states.dim() == 3:
        side = TOWERS[family][2]
        states = states[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
    return states


def test_a_loaded_model_is_wrapped_too():
    """Of CLIP the vision tower; a plain model where `transformers` has a backbone of other names is refused."""
    model = made("clip")
    encoder = GridRegionEncoder.from_backbone(model, grid_rows=4, grid_columns=4, geometry_features=False)
    states = model.vision_model(pixels()).last_hidden_state[:, 1:]
    torch.testing.assert_close(encoder(pixels()).visual_embeds, states, **close)
    with pytest.raises(ValueError, match=r"^BeitModel has no 'beit\..*'; expected a BeitBackbone, or its folder"):
        GridRegionEncoder.from_backbone(made("beit"))


REFUSED = {
    "text": (lambda: BertModel(BertConfig(**TEXT)), "backbone 'bert' does not read images"),
    "pixels as words": (
        lambda: ImageGPTModel(ImageGPTConfig(n_embd=8, n_layer=1, n_head=1)),
        "backbone 'imagegpt' does not read images",
    ),
    "detector": (
        lambda: YolosForObjectDetection(YolosConfig(**{**VIT, "image_size": [64, 64]})),
        "backbone 'yolos' is an object detector, which finds regions itself",
    ),
    "masked": (lambda: ViTMAEModel(ViTMAEConfig(**VIT)), "backbone 'vit_mae' gives states of shape (1, 5, 32)"),
    "pooled": (
        lambda: LevitModel(
            LevitConfig(hidden_sizes=[8, 8, 8], num_attention_heads=[1, 1, 1], key_dim=[8, 8, 8], depths=[1, 1, 1])
        ),
        "backbone 'levit' gives states of shape",
    ),
    "video": (
        lambda: TimesformerModel(TimesformerConfig(**SIZES, image_size=32)),
        "backbone 'timesformer' does not read images of 32 x 32 pixels",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_makes_no_map_is_refused_in_one_line(kind, tmp_path):
    make, message = REFUSED[kind]
    make().save_pretrained(tmp_path)
    with pytest.raises(ValueError) as caught:
        GridRegionEncoder.from_tower(tmp_path)
    told = str(caught.value)
    assert message in told and "expected" in told and "\n" not in told, told


def test_weights_that_are_missing_or_damaged_are_refused(tmp_path):
    made("clip").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    key = "vision_model.encoder.layers.1.mlp.fc1.bias"
    save_file({name: value for name, value in weights.items() if name != key}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"the weights lack .*layers\.1\.mlp\.fc1\.bias; expected every tensor of CLIPVisionModel"
    ):
        load_tower(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="damaged weights"):
        load_tower(tmp_path)


@pytest.mark.parametrize("family", ["vit", "clip", "siglip", "siglip2", "dinov2", "dinov3_vit", "beit"])
def test_patches_beyond_the_last_whole_one_are_padded(family):
    """64 x 70 pixels are 4 x 5 patches of 16, the last of them mostly padding: a cell of the image does not move."""
    model = made(family)
    encoder = GridRegionEncoder.from_backbone(
        load_as_tower(model), grid_rows=1, grid_columns=1, geometry_features=False
    )
    padded = torch.nn.functional.pad(pixels(64, 70), (0, 10))
    values, _ = tower_map(encoder.backbone, encoder.config.backbone_config, padded, encoder.tower_inputs)
    assert values.shape[-2:] == (4, 5)
    found = encoder(pixels(64, 70)).visual_embeds
    torch.testing.assert_close(found, mean_in_boxes(values, torch.tensor([[[0.0, 0.0, 70 / 80, 1.0]]])), **close)


def load_as_tower(model):
    """The model as `load_tower` gives it, through a folder."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_tower(folder)


def test_blue_green_and_red_are_read_in_this_order(tmp_path):
    made("resnet").save_pretrained(tmp_path)
    rgb = GridRegionEncoder.from_tower(tmp_path, geometry_features=False)
    bgr = GridRegionEncoder.from_tower(tmp_path, geometry_features=False, bgr=True)
    torch.testing.assert_close(bgr(pixels()).visual_embeds, rgb(pixels().flip(1)).visual_embeds, **close)
    assert not torch.allclose(bgr(pixels()).visual_embeds, rgb(pixels()).visual_embeds, **close)


def test_what_a_whole_checkpoint_has_beside_its_tower_is_not_listed(tmp_path):
    made("clip").save_pretrained(tmp_path)
    told, log = [], logging.getLogger("transformers.modeling_utils")
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.WARNING)
    try:
        load_tower(tmp_path)
        assert not told
        CLIPVisionModel.from_pretrained(tmp_path)
        assert "text_model" in told[0]  # as it would be
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
