"""Which size images get for a vision tower, and into how many cells they are cut: by default, by the data, and by the flags."""

import json
import logging
from uuid import uuid4

import pytest
import torch
from helpers import shared
from hub_server import serve, talk_to
from huggingface_hub import constants
from PIL import Image
from test_grid_encoder import BACKBONES
from test_towers import VIT, answering, made
from transformers import AutoImageProcessor, AutoModel, CLIPVisionConfig, HieraConfig, PvtV2Config, Siglip2VisionConfig

from modeling_visualbert import VisualBertForQuestionAnswering
from modeling_visualbert.cli import main
from modeling_visualbert.features.extract import describe_detector, load_region_encoder, sample_sizes
from modeling_visualbert.features.store import FeatureStore
from modeling_visualbert.tasks.common import DETECTOR
from modeling_visualbert.towers import grid_of, image_size_of, open_tower, read_size, resized

RESNET = BACKBONES["resnet"]  # stride 16
SHORT = {"size": {"shortest_edge": 224}}
CROPPED = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
WIDE = {"size": {"height": 384, "width": 512}}
keeping = {"shortest_edge": 224, "longest_edge": 448}
PHOTOS, SMALL, MIXED = [(480, 640)] * 3, [(64, 64)] * 3, [(40, 60), (60, 40), (50, 50), (30, 90)]


@pytest.mark.parametrize(
    ("config", "fields", "sizes", "expected"),
    [
        # Convolutional towers keep the shape of images, unless their own size is a height and a width.
        (RESNET, SHORT, PHOTOS, keeping),
        (RESNET, CROPPED, PHOTOS, keeping),
        (RESNET, {"size": 224, "crop_size": 224, "do_center_crop": True}, [], keeping),  # older files
        (RESNET, WIDE, PHOTOS, {"height": 384, "width": 512}),
        (RESNET, WIDE, [(315, 420)], {"height": 384, "width": 512}),  # 1.5 times the area
        (RESNET, {**CROPPED, "do_center_crop": False}, PHOTOS, {"shortest_edge": 256, "longest_edge": 512}),
        (RESNET, {**CROPPED, "crop_size": {"height": 200, "width": 300}}, PHOTOS, {"height": 200, "width": 300}),
        (RESNET, {"size": {"longest_edge": 224}}, PHOTOS, keeping),
        (RESNET, {"size": {"height": 100, "width": 400}}, [(200, 210)], {"height": 100, "width": 400}),
        # Small images are not blown up.
        (RESNET, SHORT, SMALL, {"height": 64, "width": 64}),
        (RESNET, WIDE, [(128, 160)] * 2, {"height": 128, "width": 160}),
        (RESNET, SHORT, MIXED, {"shortest_edge": 40, "longest_edge": 80}),
        (
            PvtV2Config(hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4),
            SHORT,
            SMALL,
            {"height": 64, "width": 64},
        ),
        # Learned positions are those of one size.
        (CLIPVisionConfig(**VIT), CROPPED, SMALL, {"height": 224, "width": 224}),
        (CLIPVisionConfig(**VIT), {}, PHOTOS, {"height": 64, "width": 64}),
        (
            Siglip2VisionConfig(hidden_size=32, num_attention_heads=2, num_patches=9, patch_size=16),
            {},
            [],
            {"height": 48, "width": 48},
        ),
        (HieraConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4), SHORT, SMALL, {"height": 224, "width": 224}),
    ],
)
def test_sizes_by_default(config, fields, sizes, expected):
    assert image_size_of(config, fields, None, sizes) == expected


def test_sizes_that_are_asked_for():
    assert image_size_of(RESNET, SHORT, "96", PHOTOS) == {"height": 96, "width": 96}
    assert image_size_of(CLIPVisionConfig(**VIT), SHORT, "96x128", []) == {"height": 96, "width": 128}
    hiera = HieraConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4)
    with pytest.raises(
        ValueError, match=r"^--image_size 256: backbone 'hiera' does not read images of 256 x 256 .* 224 x 224"
    ):
        image_size_of(hiera, SHORT, "256", [])


@pytest.mark.parametrize(
    ("size", "sizes", "given", "expected"),
    [
        ({"height": 64, "width": 64}, SMALL, None, (4, 4)),
        ({"height": 64, "width": 96}, [], None, (4, 6)),  # not square
        (keeping, PHOTOS, None, (7, 10)),  # 14 x 19 are too many, so two by two
        ({"height": 384, "width": 512}, [], None, (6, 8)),  # 24 x 32, twice
        (keeping, PHOTOS, "3", (3, 3)),
        (keeping, PHOTOS, "3x5", (3, 5)),
    ],
)
def test_cells(size, sizes, given, expected):
    assert grid_of(RESNET, size, given, sizes) == expected


def test_the_typical_image_is_that_of_median_shape():
    sizes = [(100, 900), (480, 640), (500, 500), (640, 480), (900, 100)]
    assert resized((100, 900), keeping) == (50, 448)
    assert grid_of(RESNET, keeping, None, sizes) == (7, 7)


@pytest.mark.parametrize("value", ["0", "6x", "x6", "6x0", "-1", "6*8", "1.5", "six", ""])
def test_sizes_that_are_none(value):
    with pytest.raises(ValueError, match=r"^--grid_size .*; expected a number, or two such as 6x8 \(height x width\)$"):
        read_size("grid_size", value)


def save_tower(folder, family="resnet", fields=None):
    made(family).save_pretrained(folder)
    if fields is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return folder


def test_a_tower_is_the_same_detector_after_it_was_saved(tmp_path):
    """What a run finds with a new tower serves the evaluation of the model that it saved."""
    encoder, image_processor = open_tower(save_tower(tmp_path / "tower"))
    before = describe_detector(encoder, image_processor)
    encoder.save_pretrained(tmp_path / "saved")
    image_processor.save_pretrained(tmp_path / "saved")
    assert describe_detector(*load_region_encoder(tmp_path / "saved")) == before


NORMAL = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "rescale_factor": 1 / 255, "do_normalize": True}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (0.2 - 0.1) / 0.4),
        ({"include_top": True}, (0.2 - 0.1) / 0.4 / 0.4),  # divided twice
        ({"rescale_offset": True, "rescale_factor": 1 / 127.5}, (0.4 - 1.0 - 0.1) / 0.4),
        ({"do_normalize": None}, 0.2),
        ({"do_normalize": True, "image_mean": None}, 0.2),
        ({"rescale_factor": 1 / 51}, (1.0 - 0.1) / 0.4),
    ],
)
def test_pixels_are_scaled_as_the_tower_was_trained(fields, expected, tmp_path):
    """The first channel of a grey image, against the numbers worked out by hand."""
    save_tower(tmp_path, fields={"size": {"height": 64, "width": 64}, **NORMAL, **fields})
    _, image_processor = open_tower(tmp_path)
    found = image_processor(Image.new("RGB", (32, 32), (51, 51, 51)))["pixel_values"]
    torch.testing.assert_close(found[0, 0], torch.full((64, 64), expected), atol=1e-5, rtol=0)


def test_only_towers_that_say_so_read_blue_green_and_red(tmp_path):
    for flips in (True, False, None):
        encoder, _ = open_tower(save_tower(tmp_path, fields={**SHORT, **NORMAL, "do_flip_channel_order": flips}))
        assert encoder.config.bgr == bool(flips)


def test_a_folder_without_preprocessing_is_read_as_its_family_is_with_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        encoder, image_processor = open_tower(save_tower(tmp_path, "clip"))
    assert "no preprocessor_config.json; images are scaled as is usual for clip_vision_model" in caplog.text
    assert image_processor.image_mean == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert dict(image_processor.size) == {"height": 64, "width": 64}
    assert (encoder.config.grid_rows, encoder.config.grid_columns) == (4, 4)


def test_images_of_many_shapes_are_padded_and_found_as_alone(tmp_path):
    """What the image processor pads takes no part in the cells."""
    encoder, image_processor = open_tower(save_tower(tmp_path, fields={**NORMAL, **SHORT}), "2x3", sizes=MIXED)
    images = [Image.effect_noise(size[::-1], 60).convert("RGB") for size in MIXED]
    together = image_processor(images)
    assert "pixel_mask" in together
    found = encoder(together["pixel_values"], together["pixel_mask"])
    for row, image in enumerate(images):
        alone = image_processor([image])
        filled = together["pixel_mask"][row].sum(dim=0)
        assert [*alone["pixel_values"].shape[2:]] == [int(filled.max()), int((filled > 0).sum())]
        assert encoder(alone["pixel_values"]).boxes_unit[0].equal(found.boxes_unit[row])


def test_a_tower_is_opened_offline_and_answers_inside_a_model(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder, image_processor = open_tower(save_tower(tmp_path / "tower", "siglip", {**NORMAL, "size": 64}), "2")
    model = answering(encoder)
    model.save_pretrained(tmp_path / "model")
    again = VisualBertForQuestionAnswering.from_pretrained(tmp_path / "model").eval()
    inputs = {"input_ids": torch.tensor([[2, 7, 8, 3]]), **image_processor(Image.new("RGB", (99, 50), (9, 99, 200)))}
    inputs.pop("image_sizes")
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)


def photos(folder, size=(64, 96), count=3):
    folder.mkdir()
    for number in range(count):
        Image.effect_noise(size[::-1], 50 + number).convert("RGB").save(folder / f"photo_{number}.png")
    return folder


def test_extract_and_regions_take_a_tower(tmp_path, capsys):
    tower = str(save_tower(tmp_path / "tower", fields={**NORMAL, **SHORT}))
    images = photos(tmp_path / "photos")
    assert main(["extract", str(images), str(tmp_path / "store"), "--grid_backbone", tower, "--cpu"]) == 0
    store = FeatureStore(tmp_path / "store")
    sizes = sample_sizes(sorted(images.iterdir()))
    assert sizes == [(64, 96)] * 3
    encoder, image_processor = open_tower(tower, sizes=sizes)
    assert (store.dim, store.detector["fingerprint"]) == (encoder.config.region_dim, encoder.fingerprint())
    inputs = image_processor(Image.open(images / "photo_1.png"))
    expected = encoder(inputs["pixel_values"]).visual_embeds[0]
    torch.testing.assert_close(store["photo_1"]["visual_embeds"].float(), expected, atol=2e-3, rtol=2e-3)
    capsys.readouterr()
    image = str(images / "photo_0.png")
    assert main(["regions", image, "--grid_backbone", tower, "--grid_size", "2x3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [record["box"] for record in told][-1] == pytest.approx([64, 32, 96, 64])
    assert len(told) == 6 and {record["label"] for record in told} == {"cell 100%"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grid_backbone", "{folder}/nothing"], "nothing: no such backbone folder"),
        (["--grid_backbone", "{folder}", "--grid_size", "0"], "--grid_size 0; expected a number"),
        (["--region_encoder", "x", "--grid_size", "3"], "--grid_size without --grid_backbone; expected both"),
        (["--region_encoder", "x", "--image_size", "64"], "--image_size without --grid_backbone; expected both"),
        (["--grid_backbone", "{folder}", "--spatial"], "is a GridRegionEncoder, which has geometry numbers of its own"),
    ],
)
def test_wrong_flags_end_in_one_line(flags, message, tmp_path, capsys):
    save_tower(tmp_path, fields={**NORMAL, **SHORT})
    images = photos(tmp_path / "photos")
    capsys.readouterr()
    argv = ["extract", str(images), str(tmp_path / "store"), *(flag.format(folder=tmp_path) for flag in flags)]
    with pytest.raises(SystemExit) as end:
        raise SystemExit(main(argv))
    told = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and len(told) == 1 and message in told[0], told
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("family", ["resnet", "clip"])
def test_a_hub_name_is_opened_online_and_then_offline(family, tmp_path, monkeypatch):
    folder = save_tower(tmp_path / "tower", family, {**NORMAL, **SHORT})
    expected, _ = open_tower(folder)
    name = f"tester/{family}-{uuid4().hex}"  # not in the cache
    with serve() as hub:
        hub.add(name, {path.name: path.read_bytes() for path in folder.iterdir()})
        talk_to(hub, monkeypatch)
        online, _ = open_tower(name)
        assert any("model.safetensors" in request for request in hub.requests)
        hub.requests.clear()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        offline, image_processor = open_tower(name)
        assert not hub.requests
    assert online.fingerprint() == offline.fingerprint() == expected.fingerprint()
    assert [*image_processor.image_mean] == NORMAL["image_mean"]


def test_a_region_encoder_is_no_backbone_and_a_backbone_no_region_encoder(tmp_path):
    with pytest.raises(ValueError, match="shapes_detector: a region encoder already .*; expected a vision model"):
        open_tower(DETECTOR)
    save_tower(tmp_path, "clip")
    with pytest.raises(ValueError, match="is a 'clip' checkpoint; expected a region encoder; --grid_backbone takes"):
        load_region_encoder(tmp_path)


def test_the_map_of_a_real_tower_is_its_own():
    folder = shared("real/efficientnet_lite0")
    encoder, image_processor = open_tower(folder, "12x16", sizes=[(315, 420)])
    assert dict(image_processor.size) == {"height": 384, "width": 512}
    photo = shared("real/coco_photos/000000174375.jpg")
    values = image_processor(photo)["pixel_values"]
    own = AutoImageProcessor.from_pretrained(folder)(Image.open(photo).convert("RGB"), return_tensors="pt")[
        "pixel_values"
    ]
    torch.testing.assert_close(values, own, atol=1e-5, rtol=0)
    with torch.no_grad():
        found = encoder(values).visual_embeds[0, :, :1280]
        states = AutoModel.from_pretrained(folder).eval()(values).last_hidden_state
    assert states.shape == (1, 1280, 12, 16) and states.std() > 0.1
    torch.testing.assert_close(found, states[0].flatten(1).T, atol=1e-4, rtol=1e-4)
