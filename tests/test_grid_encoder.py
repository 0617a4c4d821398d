"""Cells of an image as regions: means over boxes, backbones of several families, training end to end."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModel,
    BertConfig,
    ConvNextConfig,
    Dinov2Config,
    Dinov2Model,
    ResNetBackbone,
    ResNetConfig,
    SwinConfig,
    TimmBackboneConfig,
    ViTConfig,
    ViTMAEConfig,
    ViTModel,
)

from modeling_visualbert import (
    GridRegionEncoder,
    GridRegionEncoderConfig,
    VisualBertConfig,
    VisualBertForQuestionAnswering,
    VisualBertImageProcessor,
)
from modeling_visualbert.features.extract import load_region_encoder
from modeling_visualbert.hub_code.modeling_grid_encoder import mean_in_boxes
from modeling_visualbert.hub_code.regions_visualbert import box_geometry
from modeling_visualbert.tasks.vqa import VqaArgs

BACKBONES = {
    "resnet": ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32], depths=[1, 1, 1], layer_type="basic", out_features=["stage3"]
    ),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1]),
    "swin": SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[1, 2], image_size=64, window_size=4),
    "dinov2": Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16),
    "vit": ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=64, patch_size=16
    ),
}
close = {"atol": 1e-5, "rtol": 1e-5}


def grid_encoder(family="resnet", **fields):
    torch.manual_seed(0)
    return GridRegionEncoder(GridRegionEncoderConfig(backbone_config=BACKBONES[family], **fields)).eval()


def pixels(count=2, height=64, width=64):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_means_are_those_of_the_area():
    """Boxes on a grid eight times as fine as the map: the mean is that of the map's values there, repeated eight times."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 5, 4, 6, generator=generator)
    fine = values.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    low = torch.stack([torch.randint(0, side * 8 - 1, (2, 20), generator=generator) for side in (6, 4)], dim=-1)
    room = torch.tensor([48, 32]) - low
    high = low + 1 + (torch.rand(2, 20, 2, generator=generator) * room).floor().long().clamp(max=room - 1)
    boxes = torch.cat((low, high), dim=-1)
    found = mean_in_boxes(values, boxes / torch.tensor([48.0, 32.0, 48.0, 32.0]))
    for image in range(2):
        for row, (x1, y1, x2, y2) in enumerate(boxes[image].tolist()):
            expected = fine[image, :, y1:y2, x1:x2].mean(dim=(1, 2))
            torch.testing.assert_close(found[image, row], expected, **close)


def test_a_box_without_area_gets_zeros():
    assert mean_in_boxes(torch.randn(1, 3, 4, 4), torch.tensor([[[0.5, 0.5, 0.5, 0.9]]])).tolist() == [[[0.0] * 3]]


@pytest.mark.parametrize("family", BACKBONES)
def test_every_family_gives_cells(family, tmp_path):
    encoder = grid_encoder(family, grid_rows=2, grid_columns=3)
    found = encoder(pixels())
    assert found.visual_embeds.shape == (2, 6, encoder.config.region_dim)
    assert encoder.config.max_regions == 6
    assert found.visual_attention_mask.tolist() == found.scores.tolist() == [[1] * 6] * 2
    assert found.class_ids.tolist() == [[0] * 6] * 2
    assert found.boxes_unit[0, 0].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert found.boxes_unit[1, 5].tolist() == pytest.approx([2 / 3, 1 / 2, 1, 1])
    encoder.save_pretrained(tmp_path)
    VisualBertImageProcessor().save_pretrained(tmp_path)
    again, _ = load_region_encoder(tmp_path)
    assert again.fingerprint() == encoder.fingerprint()
    torch.testing.assert_close(again(pixels()).visual_embeds, found.visual_embeds, **close)


def test_patch_states_are_where_the_patches_are():
    """ViT without layers' mixing: as many cells as patches, so a cell is its patch's state, without the class token."""
    torch.manual_seed(0)
    model = ViTModel(BACKBONES["vit"], add_pooling_layer=False).eval()
    encoder = GridRegionEncoder.from_backbone(model, grid_rows=4, grid_columns=4, geometry_features=False)
    torch.testing.assert_close(
        encoder(pixels()).visual_embeds, model(pixels()).last_hidden_state[:, 1:], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("size", [(32, 64), (64, 32)])
def test_patches_of_wide_and_tall_images(size):
    """A vision model without position embeddings that fit is asked to make them: one state for each patch, row by row."""
    model = Dinov2Model(Dinov2Config(**{**BACKBONES["dinov2"].to_dict(), "num_hidden_layers": 1})).eval()
    rows, columns = (side // 16 for side in size)
    fields = {"grid_rows": rows, "grid_columns": columns, "geometry_features": False}
    encoder = GridRegionEncoder.from_backbone(model, **fields)
    states = model(pixels(1, *size)).last_hidden_state[:, 1:]
    torch.testing.assert_close(encoder(pixels(1, *size)).visual_embeds, states, atol=1e-4, rtol=1e-4)


def test_a_wrapped_backbone_forgets_its_folder(tmp_path):
    ViTModel(BACKBONES["vit"], add_pooling_layer=False).save_pretrained(tmp_path)
    encoder = GridRegionEncoder.from_backbone(ViTModel.from_pretrained(tmp_path, add_pooling_layer=False))
    assert str(tmp_path) not in encoder.config.to_json_string()


def test_cells_are_means_of_the_map():
    torch.manual_seed(0)
    backbone = ResNetBackbone(BACKBONES["resnet"]).eval()
    encoder = GridRegionEncoder.from_backbone(backbone, grid_rows=2, grid_columns=2, geometry_features=False)
    (values,) = backbone(pixels()).feature_maps
    expected = F.adaptive_avg_pool2d(values, (2, 2)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(pixels()).visual_embeds, expected, **close)


def test_geometry_is_standardised_from_the_start():
    found = grid_encoder(geometry_weight=2.0)(pixels())
    places = found.visual_embeds[0, :, -9:-3]
    torch.testing.assert_close(places.mean(dim=0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(places.std(dim=0, correction=0), torch.full((6,), 2.0), **close)
    torch.testing.assert_close(found.visual_embeds[0, :, -3:], torch.zeros(36, 3), atol=1e-5, rtol=0)


def test_padding_takes_no_part():
    """An image padded to twice its size has cells of the image alone."""
    encoder = grid_encoder(geometry_features=False)
    padded, mask = F.pad(pixels(1), (0, 64, 0, 64)), F.pad(torch.ones(1, 64, 64, dtype=torch.long), (0, 64, 0, 64))
    values = encoder.backbone(padded).feature_maps[-1][:, :, :4, :4]
    found = encoder(padded, mask)
    alone = mean_in_boxes(values, encoder._cells(padded)[None])
    torch.testing.assert_close(found.visual_embeds, alone, **close)
    torch.testing.assert_close(found.boxes_unit, encoder(pixels(1)).boxes_unit)


def test_given_boxes_are_described():
    encoder = grid_encoder(grid_rows=2, grid_columns=2)
    cells = encoder(pixels())
    order = [3, 0, 1]
    boxes, mask = cells.boxes_unit[:, order], torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = encoder(pixels(), boxes_unit=boxes, boxes_mask=mask)
    torch.testing.assert_close(found.visual_embeds[0], cells.visual_embeds[0, order], **close)
    assert found.visual_embeds[1, 2].abs().sum() == 0
    own = (box_geometry(boxes[0]) - encoder.feature_mean[-9:]) / encoder.feature_std[-9:]
    torch.testing.assert_close(found.visual_embeds[0, :, -9:], own, **close)


def test_a_field_of_a_later_version_leaves_stores_as_they_are(monkeypatch):
    encoder, to_dict = grid_encoder(), GridRegionEncoderConfig.to_dict
    before = encoder.fingerprint()
    encoder.config.bgr = True
    assert encoder.fingerprint() != before
    monkeypatch.setattr(
        GridRegionEncoderConfig, "to_dict", lambda self: {k: v for k, v in to_dict(self).items() if k != "bgr"}
    )
    assert encoder.fingerprint() == before  # as of a version without it


@pytest.mark.parametrize("frozen", [False, True])
def test_it_is_trained_with_the_text_model_or_frozen(frozen, tmp_path):
    config = VisualBertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
        region_encoder_config=GridRegionEncoderConfig(backbone_config=BACKBONES["resnet"]),
        freeze_region_encoder=frozen,
    )
    model = VisualBertForQuestionAnswering(config).train()
    inputs = {"input_ids": torch.randint(1, 50, (2, 5)), "pixel_values": pixels()}
    model(**inputs, labels=torch.rand(2, 3)).loss.backward()
    grads = [p.grad for p in model.visual_bert.region_encoder.parameters()]
    assert all(g is None for g in grads) if frozen else all(g is not None and g.abs().sum() > 0 for g in grads)
    model.eval().save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(again.region_encoder, GridRegionEncoder)
    expected = model.visual_bert(**inputs).last_hidden_state
    torch.testing.assert_close(again(**inputs).last_hidden_state, expected, **close)


def test_wrong_configurations_are_named():
    with pytest.raises(ValueError, match="0 x 6 cells"):
        GridRegionEncoderConfig(backbone_config=BACKBONES["resnet"], grid_rows=0)
    with pytest.raises(ValueError, match="backbone_config"):
        GridRegionEncoder(GridRegionEncoderConfig())
    with pytest.raises(ValueError, match="model_type"):
        GridRegionEncoderConfig(backbone_config={"hidden_size": 3})
    early = ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8, out_features=["stage1"])
    with pytest.raises(ValueError, match="last stage"):
        GridRegionEncoder(GridRegionEncoderConfig(backbone_config=early))
    with pytest.raises(ValueError, match="region_encoder_config"):
        VisualBertConfig(region_encoder_config={"model_type": "bert"})


def test_the_flag_goes_with_no_other_source_of_regions(tmp_path):
    with pytest.raises(ValueError, match="grid_backbone"):
        VqaArgs(str(tmp_path), grid_backbone="small", features_dir="somewhere")
    args = VqaArgs(str(tmp_path), grid_backbone="small")
    assert args.from_pixels and args.train_region_encoder


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (lambda: TimmBackboneConfig(backbone="resnet18"), r"backbone 'timm_backbone': .* timm"),
        (
            lambda: BertConfig(),
            r"backbone 'bert' does not read images; expected a backbone of transformers \(ResNet, .*\(ViT",
        ),
    ],
)
def test_backbones_of_other_kinds_are_refused_by_name(backbone, message):
    with pytest.raises(ValueError, match=message):
        GridRegionEncoder(GridRegionEncoderConfig(backbone_config=backbone()))


def test_a_model_that_leaves_patches_out_is_refused_by_name():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    backbone = ViTMAEConfig(**sizes, image_size=64, patch_size=16)
    with pytest.raises(
        ValueError, match=r"'vit_mae' gives states of shape \(1, 5, 32\), not one for each of 4 x 4 patches"
    ):
        GridRegionEncoder(GridRegionEncoderConfig(backbone_config=backbone))
