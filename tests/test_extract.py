"""Extraction of whole collections: bad images, interruption, several processes, datasets; any kind of region encoder."""

import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import pkgutil
import random
import re
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from helpers import tiny_model
from PIL import Image
from processes import environment, launcher
from safetensors.torch import load_file, save_file
from test_region_detector import processor_for as detector_processor
from test_region_detector import tiny_detector as region_detector
from test_store import assert_equal_regions, contents
from tiny_detectors import CONFIGS, tiny_detector
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PretrainedConfig, ResNetConfig

from modeling_visualbert import (
    GridRegionEncoder,
    GridRegionEncoderConfig,
    QueryRegionEncoder,
    RegionDetector,
    RegionDetectorConfig,
    RegionDetectorImageProcessor,
    VisualBertImageProcessor,
)
from modeling_visualbert.cli import main
from modeling_visualbert.data.files import index_images_by_name
from modeling_visualbert.features.draft import StoreDraft
from modeling_visualbert.features.extract import (
    ExtractionOptions,
    Processes,
    describe_detector,
    extract_regions,
    extract_store,
    load_region_encoder,
    region_names,
)
from modeling_visualbert.features.images import IMAGE_IDS, list_dataset_images, list_images
from modeling_visualbert.features.store import FeatureStore, partial_folder
from modeling_visualbert.hub_code.modeling_region_encoder import RegionEncoder, RegionEncoderOutput
from modeling_visualbert.tasks.common import DETECTOR, TaskArgs
from modeling_visualbert.tasks.regions import prepare_images
from modeling_visualbert.tasks.tables import TaskData

ROOT = Path(__file__).parents[1]
OPTIONS = ExtractionOptions(dtype="float32", images_per_shard=4, batch_size=3)

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


def image(seed, size=None):
    """A picture of coarse patches, of one of some sizes."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    return patches.resize(size or [(96, 64), (64, 96), (90, 60), (80, 80)][seed % 4], Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """A saved region encoder whose image processor keeps proportions, so that images are padded in a batch."""
    folder = tmp_path_factory.mktemp("encoder")
    QueryRegionEncoder.from_detector(tiny_detector(), max_regions=8, score_threshold=0.3).save_pretrained(folder)
    VisualBertImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finder(encoder_folder):
    return load_region_encoder(encoder_folder)


@pytest.fixture
def folder(tmp_path):
    """Ten images of four sizes."""
    for number in range(10):
        image(number).save(tmp_path / f"p-{number}.png")
    return tmp_path


def extract(folder, finder, name="store", options=OPTIONS, **arguments):
    return extract_store(folder / name, list_images(folder), *finder, options, progress=False, **arguments)


# Region encoders


def without(folder, count):
    """Take the last tensors out of the weights of a saved encoder; their names."""
    weights = load_file(folder / "model.safetensors")
    dropped = sorted(weights)[-count:]
    save_file({k: v for k, v in weights.items() if k not in dropped}, folder / "model.safetensors", {"format": "pt"})
    return dropped


@pytest.mark.parametrize("family", CONFIGS)
def test_an_encoder_of_every_family_is_complete(tmp_path, family):
    QueryRegionEncoder.from_detector(tiny_detector(family)).save_pretrained(tmp_path)
    VisualBertImageProcessor().save_pretrained(tmp_path)
    load_region_encoder(tmp_path)
    (dropped,) = without(tmp_path, 1)
    with pytest.raises(ValueError, match=f"lack .*{re.escape(dropped)}.*; expected every tensor of QueryRegionEncoder"):
        load_region_encoder(tmp_path)


@pytest.mark.parametrize("preset", ["bottom_up_attention_vg", "pythia_x101", "vcr_resnet50"])
def test_a_detector_without_some_tensors_is_refused(tmp_path, preset):
    small = {"depths": [1, 1, 1, 1], "stem_channels": 8, "res2_channels": 16, "groups": 1, "group_width": 4}
    config = getattr(RegionDetectorConfig, preset)(**small, fpn_channels=8, rpn_channels=8, mask_channels=4)
    RegionDetector(config).save_pretrained(tmp_path)
    RegionDetectorImageProcessor.for_config(config).save_pretrained(tmp_path)
    load_region_encoder(tmp_path)
    dropped = without(tmp_path, 7)
    with pytest.raises(ValueError, match=rf"lack {', '.join(map(re.escape, dropped[:5]))} and 2 more; expected every"):
        load_region_encoder(tmp_path)


def test_the_encoder_of_the_package_loads_by_its_type():
    encoder, image_processor = load_region_encoder(DETECTOR)
    assert type(encoder) is QueryRegionEncoder
    assert not encoder.training
    assert type(image_processor) is VisualBertImageProcessor
    classes = region_names(encoder)["classes"]
    assert len(classes) == 48 and "red circle" in classes
    assert region_names(encoder)["attributes"] is None


def test_what_is_no_region_encoder_is_refused(tmp_path):
    tiny_model("vqa").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="is a 'visual_bert' checkpoint; expected a region encoder"):
        load_region_encoder(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="nowhere: no such region encoder folder"):
        load_region_encoder(tmp_path / "nowhere")


class QuarterConfig(PretrainedConfig):
    model_type = "test_quarters"
    region_dim = 3


class QuarterEncoder(RegionEncoder):
    """Mean colours of the four quarters as regions, with attributes: another kind of region encoder."""

    config_class = QuarterConfig

    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(3))
        self.post_init()

    def forward(self, pixel_values, pixel_mask=None, boxes_unit=None, boxes_mask=None):
        batch = len(pixel_values)
        means = torch.nn.functional.adaptive_avg_pool2d(pixel_values, 2).flatten(2).mT * self.scale
        boxes = torch.tensor([[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]])
        ids = torch.arange(4).expand(batch, 4)
        output = RegionEncoderOutput(means, torch.ones(batch, 4), boxes.expand(batch, 4, 4), ids / 4, ids)
        output["attribute_ids"], output["attribute_scores"] = 3 - ids, ids / 8
        return output

    def fingerprint(self):
        return "quarters"


@pytest.fixture(scope="module")
def quarters(tmp_path_factory):
    AutoConfig.register("test_quarters", QuarterConfig, exist_ok=True)
    AutoModel.register(QuarterConfig, QuarterEncoder, exist_ok=True)
    AutoImageProcessor.register(QuarterConfig, image_processor_classes={"pil": VisualBertImageProcessor}, exist_ok=True)
    folder = tmp_path_factory.mktemp("quarters")
    config = QuarterConfig(id2label=dict(enumerate("abcd")), attribute_names=[f"very {i}" for i in range(4)])
    QuarterEncoder(config).save_pretrained(folder)
    VisualBertImageProcessor().save_pretrained(folder)
    return folder


def test_another_kind_of_region_encoder_with_attributes(folder, quarters):
    encoder, image_processor = load_region_encoder(quarters)
    assert type(encoder) is QuarterEncoder
    extract_store(folder / "store", list_images(folder), encoder, image_processor, OPTIONS, progress=False)
    store = FeatureStore(folder / "store", expect_dim=3, expect_detector="quarters")
    assert store["p-3"]["attribute_ids"].tolist() == [3, 2, 1, 0]
    assert store["p-3"]["attribute_scores"].tolist() == [0.0, 0.125, 0.25, 0.375]
    assert store["p-3"]["boxes"][3].tolist() == [40, 40, 80, 80]
    assert store.info["classes"] == ["a", "b", "c", "d"]
    assert store.info["attributes"] == ["very 0", "very 1", "very 2", "very 3"]


# Stores


def test_names_of_classes_and_attributes_of_a_region_detector(folder, capsys):
    names = {"id2label": {i: f"thing {i}" for i in range(5)}, "attribute_names": ["red", "tall", "wet"]}
    region_detector("c4", **names).save_pretrained(folder / "detector")
    detector_processor("c4").save_pretrained(folder / "detector")
    finder = load_region_encoder(folder / "detector")
    assert region_names(finder[0]) == {
        "classes": list(names["id2label"].values()),
        "attributes": ["red", "tall", "wet"],
    }
    extract(folder, finder)
    assert FeatureStore(folder / "store").info["attributes"] == ["red", "tall", "wet"]
    assert main(["regions", str(folder / "p-3.png"), "--region_encoder", str(folder / "detector"), "--json"]) == 0
    for record in json.loads(capsys.readouterr().out):
        attribute = ["red", "tall", "wet"][record["attribute_ids"]]
        assert record["label"].startswith(f"{attribute} thing {record['class_ids']} ")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["c4", "fpn", "query", "grid"])
def test_an_encoder_of_half_precision(folder, kind, dtype, capsys):
    if kind in ("c4", "fpn"):
        encoder, image_processor = region_detector(kind), detector_processor(kind)
    elif kind == "query":
        encoder = QueryRegionEncoder.from_detector(tiny_detector("detr"), max_regions=8, score_threshold=0.1)
        image_processor = VisualBertImageProcessor(size={"height": 64, "width": 96})
    else:
        backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        encoder = GridRegionEncoder(GridRegionEncoderConfig(backbone_config=backbone)).eval()
        image_processor = VisualBertImageProcessor(size={"height": 64, "width": 96})
    encoder.to(dtype).save_pretrained(folder / "half")
    image_processor.save_pretrained(folder / "half")
    loaded, image_processor = load_region_encoder(folder / "half")
    assert loaded.dtype == dtype and loaded.fingerprint() == encoder.fingerprint()
    result = extract(folder, (loaded, image_processor), options=ExtractionOptions("float16", 4, None, 3))
    assert result["num_images"] == 10
    regions = FeatureStore(folder / "store", expect_detector=encoder.fingerprint())["p-3"]
    assert len(regions["boxes"]) and regions["visual_embeds"].isfinite().all()
    assert main(["regions", str(folder / "p-3.png"), "--region_encoder", str(folder / "half")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{len(regions['boxes'])} regions"


@pytest.mark.parametrize("kind", ["c4", "fpn", "query"])
def test_regions_in_bfloat16_are_those_of_the_same_detector(folder, kind, capsys):
    if kind == "query":
        encoder = QueryRegionEncoder.from_detector(tiny_detector("detr"), max_regions=8, score_threshold=0.0)
        image_processor = VisualBertImageProcessor(size={"height": 64, "width": 96})
    else:
        encoder, image_processor = region_detector(kind), detector_processor(kind)
    encoder.save_pretrained(folder / "detector")
    image_processor.save_pretrained(folder / "detector")
    stores = {}
    for name, options in (("exact", []), ("fast", ["--bf16"])):
        argv = ["extract", str(folder), str(folder / name), "--region_encoder", str(folder / "detector"), *options]
        assert main([*argv, "--dtype", "float32", "--ids", "name"]) == 0
        stores[name] = FeatureStore(folder / name, expect_detector=encoder.fingerprint())
    assert "computed_in" not in stores["exact"].detector
    assert stores["fast"].detector["computed_in"] == "bfloat16"
    pairs = [(stores["exact"][image_id], stores["fast"][image_id]) for image_id in stores["exact"]]
    assert any(not torch.equal(exact["visual_embeds"], fast["visual_embeds"]) for exact, fast in pairs)
    means = [torch.stack([regions["visual_embeds"].mean(0) for regions in side]) for side in zip(*pairs, strict=True)]
    assert torch.cosine_similarity(*means).min() > 0.98
    # A store is gone on with only as it was begun.
    assert main(["extract", *argv[1:-1], "--dtype", "float32", "--ids", "name"]) == 2
    assert "computed_in" in capsys.readouterr().err


def test_the_store_holds_what_the_encoder_finds(folder, finder):
    result = extract(folder, finder)
    store = FeatureStore(folder / "store", finder[0].config.region_dim, finder[0].fingerprint())
    assert (result["images"], result["num_images"], result["failed"]) == (10, 10, 0)
    assert list(store) == [f"p-{number}" for number in range(10)]
    assert store.detector == describe_detector(*finder)
    found = dict(extract_regions(*finder, list_images(folder), batch_size=1, progress=False))
    assert sum(len(regions["scores"]) for regions in found.values()) > 10
    for image_id, regions in found.items():
        assert store[image_id]["image_size"].tolist() == regions["image_size"].tolist()
        assert len(store[image_id]["scores"]) == len(regions["scores"])
        torch.testing.assert_close(store[image_id]["visual_embeds"], regions["visual_embeds"], atol=2e-3, rtol=1e-3)
    store.verify()
    assert not (folder / "store" / "failed.jsonl").exists()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_given_boxes_are_those_of_their_image_in_pixels(batch_size):
    """A wide and a tall image, whose boxes are given in another order; a colour says which part was described."""
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    torch.manual_seed(0)
    encoder = GridRegionEncoder(GridRegionEncoderConfig(backbone_config=backbone)).eval()
    image_processor = VisualBertImageProcessor(size={"height": 64, "width": 96})
    boxes = {"tall": [[4.0, 80.0, 12.0, 128.0]], "wide": [[100.0, 8.0, 160.0, 16.0], [0.0, 0.0, 40.0, 24.0]]}
    images = {"wide": image(0, (160, 32)), "tall": image(1, (16, 160))}
    found = dict(
        extract_regions(encoder, image_processor, images.items(), batch_size=batch_size, progress=False, boxes=boxes)
    )
    assert list(found) == ["wide", "tall"]
    normalised = {"wide": [[0.625, 0.25, 1.0, 0.5], [0.0, 0.0, 0.25, 0.75]], "tall": [[0.25, 0.5, 0.75, 0.8]]}
    for name, regions in found.items():
        torch.testing.assert_close(regions["boxes"], torch.tensor(boxes[name]))
        pixels = image_processor(images[name])["pixel_values"]
        with torch.no_grad():
            expected = encoder(pixels, boxes_unit=torch.tensor([normalised[name]]))["visual_embeds"][0]
        torch.testing.assert_close(regions["visual_embeds"], expected)
        assert regions["image_size"].tolist() == list(images[name].size[::-1])


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0.0, 0.0, 161.5, 16.0], r"row 1 \[0.0, 0.0, 161.5, 16.0\] is outside the image of 160 x 32 pixels; expected"),
        ([-3.0, 0.0, 10.0, 16.0], r"row 1 \[-3.0, 0.0, 10.0, 16.0\] is outside the image of 160 x 32 pixels; expected"),
        ([40.0, 8.0, 10.0, 16.0], r"row 1 is inverted, \[40.0, 8.0, 10.0, 16.0\]; expected x1 <= x2 and y1 <= y2"),
        (
            [math.nan, 8.0, 10.0, 16.0],
            r"row 1 holds NaN or infinity, \[nan, 8.0, 10.0, 16.0\]; expected finite numbers",
        ),
        ([0.0, 0.0, 10.0], "expected numbers of shape"),
        ("all", r"all boxes lie in 0..1 \(row 0: \[0.0, 0.0, 0.5, 1.0\]\), but the image has 160 x 32 pixels"),
    ],
)
def test_given_boxes_that_are_none_of_the_image_are_refused_by_name(finder, box, message):
    boxes = {"tall": [[4.0, 80.0, 12.0, 128.0]], "wide": [[100.0, 8.0, 160.5, 16.0], box]}  # half a pixel is rounding
    if box == "all":
        boxes["wide"] = [[0.0, 0.0, 0.5, 1.0], [0.2, 0.2, 0.5, 1.0]]
    images = {"tall": image(1, (16, 160)), "wide": image(0, (160, 32))}
    with pytest.raises(ValueError, match=f"^image wide: given boxes: .*{message}"):
        list(extract_regions(*finder, images.items(), progress=False, boxes=boxes))


def test_images_of_one_size_share_a_batch_and_are_not_padded(folder, finder, monkeypatch):
    shapes = []
    forward = type(finder[0]).forward
    monkeypatch.setattr(
        type(finder[0]),
        "forward",
        lambda self, **inputs: shapes.append(inputs["pixel_values"].shape) or forward(self, **inputs),
    )
    extract(folder, finder, options=ExtractionOptions(images_per_shard=100, batch_size=3))
    # Three of 64 x 96, two of 80 x 80, two of 90 x 60, three of 96 x 64; those of 90 x 60 are resized to 96 x 64 as well.
    assert [tuple(shape) for shape in shapes] == [(3, 3, 96, 64), (2, 3, 64, 64), (2, 3, 64, 96), (3, 3, 64, 96)]


def test_images_that_are_resized_to_one_size_need_no_sorting(folder, finder, monkeypatch):
    batches = []
    forward = type(finder[0]).forward
    monkeypatch.setattr(
        type(finder[0]),
        "forward",
        lambda self, **inputs: batches.append(len(inputs["pixel_values"])) or forward(self, **inputs),
    )
    one_size = VisualBertImageProcessor(size={"height": 64, "width": 96})
    extract(folder, (finder[0], one_size), options=ExtractionOptions(images_per_shard=100, batch_size=4))
    assert batches == [4, 4, 2]


def test_worker_threads_share_those_of_torch(folder, finder, monkeypatch):
    forward, seen, before = type(finder[0]).forward, set(), torch.get_num_threads()

    def count_threads(self, **inputs):
        seen.add(torch.get_num_threads())
        return forward(self, **inputs)

    monkeypatch.setattr(type(finder[0]), "forward", count_threads)
    torch.set_num_threads(4)
    try:
        found = extract_regions(*finder, list_images(folder), batch_size=2, progress=False, num_workers=2)
        assert len(list(found)) == 10 and seen == {2} and torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_threads_change_nothing(folder, finder):
    (folder / "p-5.png").write_bytes(b"no image")
    extract(folder, finder)
    extract(folder, finder, name="threads", options=ExtractionOptions("float32", 4, None, 3, num_workers=3))
    assert contents(folder / "store") == contents(folder / "threads")


@pytest.mark.parametrize("count", [1, 3])
def test_only_the_most_confident_regions(folder, finder, count):
    extract(folder, finder)
    extract(folder, finder, name="few", options=ExtractionOptions("float32", 4, count, 3))
    whole, few = FeatureStore(folder / "store"), FeatureStore(folder / "few", expect_detector=finder[0].fingerprint())
    for image_id in whole:
        expected = {key: v if key == "image_size" else v[:count] for key, v in whole[image_id].items()}
        assert_equal_regions(few[image_id], expected)


# Bad images


def spoil(folder):
    """Make images that cannot be used; returns what the reasons are by id."""
    (folder / "p-1.png").write_bytes(b"no image")
    (folder / "p-4.png").write_bytes((folder / "p-4.png").read_bytes()[:-60])
    Image.new("RGB", (1, 1)).save(folder / "p-6.png")
    Image.new("1", (12000, 12000)).save(folder / "p-9.png")
    return {
        "p-1": "not an image that Pillow can read",
        "p-4": "damaged or truncated image file",
        "p-6": "1 x 1 pixels; expected at least 8 on each side",
        "p-9": "12000 x 12000 pixels; expected at most 89,478,485",
    }


def failures(store):
    return [json.loads(line) for line in (store / "failed.jsonl").read_text().splitlines()]


def test_bad_images_are_listed_and_tried_again(folder, finder, caplog):
    extract(folder, finder, name="good")
    good = {number: (folder / f"p-{number}.png").read_bytes() for number in range(10)}
    dates = {number: (folder / f"p-{number}.png").stat().st_mtime_ns for number in range(10)}
    reasons = spoil(folder)
    result = extract(folder, finder)
    assert (result["num_images"], result["failed"]) == (6, 4)
    assert list(FeatureStore(folder / "store")) == ["p-0", "p-2", "p-3", "p-5", "p-7", "p-8"]
    listed = failures(folder / "store")
    assert [record["image_id"] for record in listed] == list(reasons)
    for record in listed:
        assert record["name"] == str(folder / f"{record['image_id']}.png")
        assert reasons[record["image_id"]] in record["reason"]
        assert record["reason"] in caplog.text
    # Nothing has changed: nothing is done.
    before = contents(folder / "store")
    assert extract(folder, finder)["images"] == 0
    assert contents(folder / "store") == before
    # One is repaired, then the others: only their shards are made again.
    (folder / "p-6.png").write_bytes(good[6])
    os.utime(folder / "p-6.png", ns=(0, dates[6]))
    assert extract(folder, finder)["images"] == 4
    assert [record["image_id"] for record in failures(folder / "store")] == ["p-1", "p-4", "p-9"]
    for number in (1, 4, 9):
        (folder / f"p-{number}.png").write_bytes(good[number])
        os.utime(folder / f"p-{number}.png", ns=(0, dates[number]))
    assert extract(folder, finder)["failed"] == 0
    assert contents(folder / "store") == contents(folder / "good")


def raising(error):
    def source():
        raise error

    return source


def test_whatever_goes_wrong_with_an_image_of_a_dataset_is_listed(folder, finder):
    bomb = io.BytesIO()
    Image.new("1", (14000, 14000)).save(bomb, "png")  # beyond twice Pillow's limit: its error is of no built-in type
    sources = {
        "bomb": (lambda: Image.open(bomb), "exceeds limit"),
        "webp": (raising(SyntaxError("not a TIFF file")), "SyntaxError: not a TIFF file"),
        "jpeg": (raising(struct.error("unpack requires a buffer")), "error: unpack requires"),
        "text": (lambda: Image.open(io.BytesIO(b"text")), "cannot identify image"),
        "lost": (raising(KeyError("bytes")), "KeyError: 'bytes'"),
    }
    images = [*list_images(folder), *((name, source) for name, (source, _) in sources.items())]
    for workers in (0, 2):
        store = folder / f"store{workers}"
        options = replace(OPTIONS, num_workers=workers)
        assert extract_store(store, images, *finder, options, progress=False)["failed"] == 5
        reasons = {record["image_id"]: record["reason"] for record in failures(store)}
        for name, (_, reason) in sources.items():
            assert reason in reasons[name]


def test_an_image_whose_regions_cannot_be_stored_stops_with_its_name(folder, quarters):
    encoder, image_processor = load_region_encoder(quarters)
    torch.nn.init.constant_(encoder.scale, 1e6)
    with pytest.raises(ValueError, match=r"image p-\d: 'visual_embeds' does not fit into float16"):
        extract(folder, (encoder, image_processor), options=ExtractionOptions("float16", 4, None, 3))


def test_an_image_that_the_encoder_fails_on_is_named(folder, quarters):
    encoder, image_processor = load_region_encoder(quarters)
    sources = list_images(folder)

    def fail(pixel_values, **_):
        raise IndexError("index 7 is out of range")

    encoder.forward = fail
    for batch_size, names in ((1, "image p-0"), (3, r"one of 3 images \(p-0, p-1, p-2\)")):
        options = replace(OPTIONS, batch_size=batch_size)
        with pytest.raises(ValueError, match=f"^{names}: no regions can be found .*index 7 is out of range"):
            extract_store(folder / "store", sources, encoder, image_processor, options, progress=False)


def test_a_shard_of_bad_images_only(folder, finder):
    for number in range(4, 8):
        (folder / f"p-{number}.png").write_bytes(b"no image")
    assert extract(folder, finder)["failed"] == 4
    store = FeatureStore(folder / "store")
    assert [shard["file"] for shard in store.info["shards"]] == ["data/shard-00000.arrow", "data/shard-00002.arrow"]
    assert list(store) == ["p-0", "p-1", "p-2", "p-3", "p-8", "p-9"]
    store.verify()
    image(5).save(folder / "p-5.png")
    extract(folder, finder)
    assert "p-5" in FeatureStore(folder / "store")
    assert len(FeatureStore(folder / "store").info["shards"]) == 3


def test_bad_images_only(folder, finder):
    for number in range(10):
        (folder / f"p-{number}.png").write_bytes(b"no image")
    assert extract(folder, finder)["failed"] == 10
    assert len(FeatureStore(folder / "store")) == 0


def test_images_without_regions_have_none(folder, encoder_folder, finder):
    encoder = QueryRegionEncoder.from_detector(finder[0].detector, score_threshold=1.0)
    extract(folder, (encoder, finder[1]))
    regions = FeatureStore(folder / "store")["p-0"]
    assert regions["visual_embeds"].shape == (0, encoder.config.region_dim)
    assert regions["boxes"].shape == (0, 4)


# Interruption


class Interruption:
    """Images that stop the run when one of them is read."""

    def __init__(self, images, at):
        def stop():
            raise KeyboardInterrupt

        # Headers are read to sort by size; the second look is the reading.
        self.looks, self.stop = 0, stop
        self.images = [(key, self._open(path) if n == at else path) for n, (key, path) in enumerate(images)]

    def _open(self, path):
        def open_or_stop():
            self.looks += 1
            return Image.open(path) if self.looks == 1 else self.stop()

        return open_or_stop


@pytest.mark.parametrize("at", [0, 3, 4, 9])
def test_a_run_that_stopped_goes_on(folder, finder, at):
    images = list_images(folder)
    with pytest.raises(
        KeyboardInterrupt, match=f"the same command goes on with the complete shards in {folder}/store.partial"
    ):
        extract_store(folder / "store", Interruption(images, at).images, *finder, OPTIONS, progress=False)
    assert not (folder / "store").exists()
    done = extract(folder, finder)["images"]
    assert done == 10 - at // 4 * 4
    extract(folder, finder, name="whole")
    assert contents(folder / "store") == contents(folder / "whole")
    assert not partial_folder(folder / "store").exists()


@pytest.mark.parametrize("step", range(1, 13))
def test_interrupted_while_failed_images_are_tried_again(folder, finder, monkeypatch, step):
    """A complete store is opened again for the shard of a repaired image; any step of that may be the last."""
    extract(folder, finder, name="whole")
    date = (folder / "p-5.png").stat().st_mtime_ns
    (folder / "p-5.png").write_bytes(b"no image")
    extract(folder, finder)
    image(5).save(folder / "p-5.png")
    os.utime(folder / "p-5.png", ns=(0, date))
    whole, steps = contents(folder / "whole"), itertools.count(1)

    def interrupted(original):
        return lambda *args, **kwargs: _interrupt() if next(steps) == step else original(*args, **kwargs)

    with monkeypatch.context() as patch:
        for name in ("write_json", "Path.unlink", "Path.rename"):
            target = f"modeling_visualbert.features.draft.{name}"
            patch.setattr(target, interrupted(pkgutil.resolve_name(target)))
        with contextlib.suppress(KeyboardInterrupt):
            extract(folder, finder)
    assert extract(folder, finder)["failed"] == 0
    assert contents(folder / "store") == whole
    assert not partial_folder(folder / "store").exists()


def _interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, r"started with dtype \"float32\", not \"float16\""),
        ({"images_per_shard": 5}, "started with images_per_shard 4, not 5"),
        ({"max_regions": 2}, r"started with source .*\"max_regions\": null.*, not .*\"max_regions\": 2"),
    ],
)
@pytest.mark.parametrize("complete", [False, True])
def test_other_options_do_not_go_on_with_it(folder, finder, options, message, complete):
    images = list_images(folder)
    if complete:
        extract(folder, finder)
    else:
        with pytest.raises(KeyboardInterrupt):
            extract_store(folder / "store", Interruption(images, 9).images, *finder, OPTIONS, progress=False)
    changed = ExtractionOptions(**{"dtype": "float32", "images_per_shard": 4, "batch_size": 3, **options})
    with pytest.raises(ValueError, match=message):
        extract(folder, finder, options=changed)


def test_other_images_or_detectors_do_not_go_on_with_it(folder, finder):
    extract(folder, finder)
    stricter = QueryRegionEncoder.from_detector(finder[0].detector, score_threshold=0.4)
    with pytest.raises(ValueError, match=r"was started with detector .*, not "):
        extract(folder, (stricter, finder[1]))
    image(1).save(folder / "p-99.png")
    with pytest.raises(ValueError, match=r"was started with source \{\"images\": 10.* not \{\"images\": 11"):
        extract(folder, finder)


def test_a_folder_that_is_no_store_is_left_alone(folder, finder):
    (folder / "store").mkdir()
    (folder / "store" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="store exists and is no feature store"):
        extract(folder, finder)
    assert (folder / "store" / "mine.txt").read_text() == "keep"


# Which images


@pytest.mark.parametrize(
    ("kind", "name", "image_id"),
    [
        ("number", "train/COCO_train2014_000000132417.jpg", "132417"),
        ("number", "36979.JPG", "36979"),
        ("stem", "a/b/dev-1-0-img0.png", "dev-1-0-img0"),
        ("stem", "dev-1-0-img0.png.npz", "dev-1-0-img0"),
        ("stem", "v1.5.png", "v1.5"),
        ("name", "a/b.png", "a/b.png"),
    ],
)
def test_image_ids(kind, name, image_id):
    assert IMAGE_IDS[kind](name) == image_id


def test_a_folder_is_listed_in_order(tmp_path):
    for name in ("b/2.png", "a/10.jpg", "a/9.PNG", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list_images(tmp_path) == [
        ("10", tmp_path / "a/10.jpg"),
        ("9", tmp_path / "a/9.PNG"),
        ("2", tmp_path / "b/2.png"),
    ]
    assert [key for key, _ in list_images(tmp_path, "name")] == ["a/10.jpg", "a/9.PNG", "b/2.png"]


def test_a_list_names_images_beside_it_or_anywhere(tmp_path, folder, finder):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "some.txt").write_text(f"../p-3.png\n{folder / 'p-1.png'}\n\n../missing.png\n")
    images = list_images(tmp_path / "lists" / "some.txt")
    assert [key for key, _ in images] == ["p-3", "p-1", "missing"]
    result = extract_store(tmp_path / "store", images, *finder, OPTIONS, progress=False)
    assert (result["num_images"], result["failed"]) == (2, 1)
    assert "missing.png: no such image file" in failures(tmp_path / "store")[0]["reason"]


@pytest.mark.parametrize(
    ("files", "ids", "message"),
    [
        (["a/1.png", "b/1.jpg"], "stem", "1.jpg: image id '1' occurs twice"),
        (["a_7.png", "b_07.png"], "number", "b_07.png: image id '7' occurs twice"),
        (["a.png"], "number", "a.png: image name 'a.png' does not end in a number; choose other ids"),
        ([], "stem", "no images; expected files ending in .jpg"),
    ],
)
def test_images_that_cannot_be_told_apart_are_refused(tmp_path, files, ids, message):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        list_images(tmp_path, ids)


def saved_dataset(folder):
    """A dataset of four images, one of which is none, and one missing."""

    def encoded(seed):
        file = io.BytesIO()
        image(seed).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    rows = {"name": list("wxyz"), "photo": [encoded(0), {"bytes": b"no image", "path": None}, encoded(2), None]}
    Dataset.from_dict(rows, features=Features({"name": Value("string"), "photo": ImageColumn()})).save_to_disk(folder)
    return folder


def test_the_image_column_of_a_dataset(tmp_path, finder, capsys):
    images = list_dataset_images(str(saved_dataset(tmp_path / "data")), "photo", "name")
    extract_store(tmp_path / "store", images, *finder, OPTIONS, progress=False)
    store = FeatureStore(tmp_path / "store")
    assert list(store) == ["w", "y"]
    (_, direct), *_ = extract_regions(*finder, [("w", image(0))], progress=False)
    assert len(store["w"]["scores"]) == len(direct["scores"])
    reasons = {record["image_id"]: record["reason"] for record in failures(tmp_path / "store")}
    assert "cannot identify image" in reasons["x"]
    assert "there is no image in this row" in reasons["z"]
    assert [key for key, _ in list_dataset_images(str(tmp_path / "data"), "photo")] == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match="no column 'image' in split train; expected one of name, photo"):
        list_dataset_images(str(tmp_path / "data"), "image")


# Who reads the store


def ten_images(images_dir, find_paths=index_images_by_name):
    """Rows of a task, one for each image of the store."""
    rows = Dataset.from_dict({"image": [f"p-{number}" for number in range(10)]})
    return TaskData({"train": rows}, {"train": "train"}, "image", find_paths, images_dir, [])


def test_a_task_takes_the_store_of_its_detector_and_no_other(folder, finder, encoder_folder, tmp_path):
    extract(folder, finder)
    fields = {"features_dir": str(folder / "store"), "cpu": True}
    data = ten_images(folder, find_paths=lambda folder, wanted: {})

    def images(**more):
        args = TaskArgs(str(tmp_path / "run"), **fields, **more)
        return prepare_images(args, data, Processes())[0]

    assert images(region_encoder=str(encoder_folder)).region_dim == finder[0].config.region_dim
    found = images(num_regions=2).get("p-0")
    assert sorted(found) == ["boxes", "visual_embeds"] and len(found["boxes"]) <= 2
    with pytest.raises(ValueError, match=r"store: features of dim \d+, this model expects \d+"):
        images(region_encoder=str(DETECTOR))
    stricter = QueryRegionEncoder.from_detector(finder[0].detector, max_regions=8, score_threshold=0.4)
    stricter.save_pretrained(tmp_path / "stricter")
    finder[1].save_pretrained(tmp_path / "stricter")
    message = f"detector QueryRegionEncoder {finder[0].fingerprint()}, this model has the region encoder {stricter.fingerprint()}"
    with pytest.raises(ValueError, match=message):
        images(region_encoder=str(tmp_path / "stricter"))


# Images that change


def replace_image(path, seed, size=None, later=True):
    """Another picture under the same name, of this many bytes."""
    before = path.stat()
    image(seed).save(path)
    if size is not None:
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9 * later))


def stored(folder, finder, **options):
    extract(folder, finder, options=replace(OPTIONS, **options))
    return FeatureStore(folder / "store")


@pytest.mark.parametrize("hash_images", [False, True])
def test_a_store_knows_the_files_of_its_images(folder, finder, hash_images):
    (folder / "p-3.png").write_bytes(b"no image")
    store = stored(folder, finder, hash_images=hash_images)
    assert sorted(store.image_files) == sorted(store) and len(store) == 9
    path = folder / "p-7.png"
    facts = store.image_files["p-7"]
    assert (facts.bytes, facts.modified) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert facts.sha256 == (hashlib.sha256(path.read_bytes()).hexdigest() if hash_images else None)
    store.verify()
    records = folder / "store" / "images.arrow"
    records.write_bytes(records.read_bytes()[:-8] + b"\1" * 8)
    with pytest.raises(ValueError, match=r"images.arrow: checksum"):
        FeatureStore(folder / "store").verify()
    records.unlink()
    with pytest.raises(ValueError, match=r"images.arrow: missing, but the index names it"):
        FeatureStore(folder / "store")


# What happens to the image p-5 of a store: (change, hashed) -> refused, told or unnoticed.
CHANGES = {
    "another size": (lambda path: replace_image(path, 17), False, "refused"),
    "another size, same date": (lambda path: replace_image(path, 17, later=False), False, "refused"),
    "same size": (lambda path: replace_image(path, 17, path.stat().st_size), False, "told"),
    "same size, hashed": (lambda path: replace_image(path, 17, path.stat().st_size), True, "refused"),
    "copied": (lambda path: os.utime(path, (1, 1)), False, "told"),
    "copied, hashed": (lambda path: os.utime(path, (1, 1)), True, None),
    "whole seconds": (lambda path: os.utime(path, ns=(1, path.stat().st_mtime_ns // 10**9 * 10**9)), False, None),
    "gone": (Path.unlink, False, None),
    "nothing": (lambda path: None, False, None),
}


@pytest.mark.parametrize("case", CHANGES)
def test_stored_regions_of_changed_images_are_refused_or_told(folder, finder, encoder_folder, tmp_path, caplog, case):
    change, hashed, outcome = CHANGES[case]
    for number in range(10):  # all pictures are a little smaller than their files
        path = folder / f"p-{number}.png"
        path.write_bytes(path.read_bytes() + b"\0" * 500)
    stored(folder, finder, hash_images=hashed)
    change(folder / "p-5.png")
    args = TaskArgs(
        str(tmp_path / "run"), features_dir=str(folder / "store"), region_encoder=str(encoder_folder), cpu=True
    )

    def prepare(images_dir=folder):
        return prepare_images(args, ten_images(images_dir), Processes())[0]

    if outcome == "refused":
        with pytest.raises(
            ValueError, match=r"^\S+/store: 1 of 10 images changed after their regions .*image p-5: \S+p-5.png"
        ):
            prepare()
        assert prepare(folder / "none")  # not to compare with
    else:
        assert prepare().get("p-5")["boxes"] is not None
        told = [r.getMessage() for r in caplog.records if "have another date" in r.getMessage()]
        assert len(told) == (outcome == "told") and all("1 of 10 images" in line and "p-5.png" in line for line in told)


@pytest.mark.parametrize("case", ["another size", "same size", "same size, hashed"])
def test_extracting_again_finds_the_regions_of_changed_images_anew(folder, finder, case):
    change, hashed, _ = CHANGES[case]
    for number in range(10):
        path = folder / f"p-{number}.png"
        path.write_bytes(path.read_bytes() + b"\0" * 500)
    options = replace(OPTIONS, hash_images=hashed)
    before = {key: FeatureStore(folder / "store")[key] for key in stored(folder, finder, hash_images=hashed)}
    assert extract(folder, finder, options=options)["images"] == 0
    change(folder / "p-5.png")
    result = extract(folder, finder, options=options)
    assert (result["changed"], result["images"], result["num_images"]) == (1, 4, 10)  # a shard of four
    after = FeatureStore(folder / "store")
    after.verify()
    for key in before:
        same = len(before[key]["boxes"]) == len(after[key]["boxes"]) and torch.equal(
            before[key]["visual_embeds"], after[key]["visual_embeds"]
        )
        assert same == (key != "p-5")
    assert after.image_files["p-5"].bytes == (folder / "p-5.png").stat().st_size
    assert extract(folder, finder, options=options)["images"] == 0


def test_an_interrupted_extraction_notices_images_that_change_meanwhile(folder, finder, monkeypatch):
    write_shard = StoreDraft.write_shard

    def fail(draft, number, *args):
        if number == 2:
            raise KeyboardInterrupt
        write_shard(draft, number, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreDraft, "write_shard", fail)
        extract(folder, finder)
    replace_image(folder / "p-1.png", 17)
    result = extract(folder, finder)
    assert (result["changed"], result["images"]) == (1, 6)  # its shard of four, and the last two images


def test_stores_without_facts_about_images_stay_as_they_are(folder, finder, capsys):
    """Such as those of earlier versions."""
    stored(folder, finder)
    (folder / "store" / "images.arrow").unlink()
    index = json.loads((folder / "store" / "index.json").read_text())
    del index["images"]
    (folder / "store" / "index.json").write_text(json.dumps(index))
    replace_image(folder / "p-1.png", 17)
    store = FeatureStore(folder / "store")
    assert store.image_files is None
    store.verify()
    store.check_images({"p-1": folder / "p-1.png"})
    assert extract(folder, finder)["images"] == 0
    assert main(["store", str(folder / "store")]) == 0
    assert "not recorded: images that change are not noticed" in capsys.readouterr().out


def test_the_store_command_compares_images(folder, finder, capsys):
    stored(folder, finder)
    assert main(["store", str(folder / "store"), "--images", str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["image_files"] == {"recorded": 10, "hashed": 0}
    assert "10 of 10 images compared with what is recorded of their files" in err
    replace_image(folder / "p-1.png", 17)
    assert main(["store", str(folder / "store"), "--images", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "store: 1 of 10 images changed after their regions were found (image p-1: " in line
    assert "run `visualbert extract` again" in line


def test_names_that_are_no_ids_can_be_left_out(folder, encoder_folder, capsys):
    (folder / "more").mkdir()
    shutil.copy(folder / "p-1.png", folder / "more" / "p-1.jpg")
    (folder / "cover.png").write_bytes((folder / "p-2.png").read_bytes())
    command = [
        "extract",
        str(folder),
        str(folder / "store"),
        "--region_encoder",
        str(encoder_folder),
        "--ids",
        "number",
    ]
    assert main(command) == 2
    assert "cover.png: image name 'cover.png' does not end in a number" in capsys.readouterr().err
    assert main([*command, "--skip_bad_records", "--cpu"]) == 0
    assert "2 images were left out, see" in capsys.readouterr().err
    cover, twice = (folder / "store" / "skipped.txt").read_text().splitlines()
    assert "cover.png: image name 'cover.png' does not end in a number" in cover
    assert twice.endswith(f"p-1.png: image id '1' occurs twice, first as {folder}/more/p-1.jpg; expected it only once")
    assert len(FeatureStore(folder / "store")) == 10


# The commands


def test_extract_store_and_sheet_from_the_command_line(folder, encoder_folder, tmp_path, capsys):
    spoil(folder)
    argv = ["extract", str(folder), str(tmp_path / "out"), "--region_encoder", str(encoder_folder)]
    assert main([*argv, "--images_per_shard", "4", "--cpu"]) == 0
    captured = capsys.readouterr()
    assert "regions of 6 images (" in captured.out and "images/s" in captured.out
    assert "4 images could not be read, see" in captured.err
    sheet = tmp_path / "sheet.png"
    assert (
        main(["store", str(tmp_path / "out"), "--verify", "--json", "--sheet", str(sheet), "--images", str(folder)])
        == 0
    )
    captured = capsys.readouterr()
    about = json.loads(captured.out)
    assert (about["num_images"], about["shards"], about["dtype"], about["classes"]) == (6, 3, "float16", 0)
    assert "all checksums and image positions are right" in captured.err
    assert Image.open(sheet).width > 960
    assert main(["store", str(tmp_path / "out")]) == 0
    assert "num_images        6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["extract", "{folder}", "{folder}/out", "--region_encoder", "{folder}/none"], "none: no such region encoder"),
        (["extract", "{folder}/none", "{folder}/out", "--region_encoder", "{encoder}"], "none: no such file"),
        (
            ["extract", "{folder}", "{folder}/out", "--region_encoder", "{encoder}", "--batch_size", "0"],
            "--batch_size 0",
        ),
        (["extract", "{folder}", "{folder}/out", "--region_encoder", "{encoder}", "--max_regions", "0"], "0 regions"),
        (["store", "{folder}"], "no feature store"),
        (["regions", "{folder}/none.png", "--region_encoder", "{encoder}"], "none.png: no such image file"),
        (["regions", "{folder}/p-0.png", "--region_encoder", "{encoder}", "--max_regions", "0"], "--max_regions 0"),
    ],
)
def test_what_users_get_wrong_ends_with_status_2_and_one_line(folder, encoder_folder, capsys, argv, message):
    assert main([part.format(folder=folder, encoder=encoder_folder) for part in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"visualbert {argv[0]}: ") and message in error and error.count("\n") == 1


def test_a_damaged_store_is_found_from_the_command_line(folder, finder, capsys):
    extract(folder, finder)
    path = folder / "store" / "data" / "shard-00001.arrow"
    content = path.read_bytes()
    path.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    assert main(["store", str(folder / "store"), "--verify"]) == 2
    assert "shard-00001.arrow: " in capsys.readouterr().err
    path.write_bytes(content[:-1])
    assert main(["store", str(folder / "store")]) == 2
    assert "shard-00001.arrow: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["classes", "attributes"])
def test_an_index_without_names_is_refused(folder, finder, capsys, key):
    extract(folder, finder)
    index = folder / "store" / "index.json"
    info = json.loads(index.read_text())
    del info[key]
    index.write_text(json.dumps(info))
    assert main(["store", str(folder / "store")]) == 2
    assert f"{index}: key '{key}' is missing" in capsys.readouterr().err
    index.write_text(json.dumps({**info, key: "red"}))
    assert main(["store", str(folder / "store")]) == 2
    assert f"{index}: '{key}' is 'red'; expected list" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["regions", "extract"])
def test_an_encoder_that_is_cut_off_is_named(folder, encoder_folder, tmp_path, capsys, command):
    damaged = shutil.copytree(encoder_folder, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    sources = {"regions": [str(folder / "p-3.png")], "extract": [str(folder), str(tmp_path / "out")]}
    assert main([command, *sources[command], "--region_encoder", str(damaged)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"visualbert {command}: {weights}: damaged weights, expected safetensors ")


def test_the_current_folder_is_a_store_or_not(folder, finder, monkeypatch):
    extract(folder, finder)
    monkeypatch.chdir(folder / "store")
    assert len(FeatureStore(".")) == 10
    monkeypatch.chdir(folder)
    with pytest.raises(FileNotFoundError, match="no feature store"):
        FeatureStore("")


def test_a_sheet_of_other_images_is_refused(folder, finder, capsys):
    extract(folder, finder)
    image(0, (50, 50)).save(folder / "p-0.png")
    flags = ["--sheet", str(folder / "sheet.jpg")]
    assert main(["store", str(folder / "store"), *flags]) == 2
    assert "--sheet needs --images" in capsys.readouterr().err
    assert main(["store", str(folder / "store"), *flags, "--images", str(folder)]) == 2
    assert "p-0.png: 50 x 50 pixels, but its regions are of 96 x 64 pixels" in capsys.readouterr().err
    assert main(["store", str(folder / "store"), *flags, "--images", str(folder), "--ids", "name"]) == 2
    assert "none of the 10 images is in it" in capsys.readouterr().err


def test_regions_of_an_image(folder, quarters, capsys):
    drawn = folder / "drawn.jpg"
    argv = ["regions", str(folder / "p-3.png"), "--region_encoder", str(quarters)]
    assert main([*argv, "--picture_out", str(drawn)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 regions"
    assert lines[4].split(maxsplit=4) == ["40,", "40,", "80,", "80", "very 0 d 75%"]
    assert Image.open(drawn).size == (480, 480)
    assert main([*argv, "--json", "--max_regions", "1"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record == {
        "label": "very 3 a 0%",
        "box": [0, 0, 40, 40],
        "scores": 0,
        "class_ids": 0,
        "attribute_ids": 3,
        "attribute_scores": 0,
    }


# Processes


def command(folder, encoder_folder, store, *flags, processes=1):
    """The command line of an extraction as users start it."""
    script = [str(ROOT / "examples" / "extract_features.py"), str(folder), str(store), "--cpu"]
    options = ["--region_encoder", str(encoder_folder), "--images_per_shard", "2", "--batch_size", "2", *flags]
    return [*(launcher(processes) if processes > 1 else [sys.executable]), *script, *options]


@pytest.fixture(scope="module")
def many(tmp_path_factory, encoder_folder):
    """60 images, three of them bad, and the store of a run without interruption."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(60):
        image(number).save(folder / f"{number:03d}.png")
    for number in (0, 17, 41):
        (folder / f"{number:03d}.png").write_bytes(b"no image")
    store = tmp_path_factory.mktemp("stores") / "whole"
    options = ExtractionOptions("float16", 2, None, 2)  # 30 shards: enough for ten kills
    extract_store(store, list_images(folder), *load_region_encoder(encoder_folder), options, progress=False)
    return folder, store


@pytest.mark.slow
def test_two_processes_make_the_store_of_one(many, encoder_folder, tmp_path):
    folder, whole = many
    done = subprocess.run(
        command(folder, encoder_folder, tmp_path / "store", processes=2),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("regions of 57 images") == 1
    assert contents(tmp_path / "store") == contents(whole)


@pytest.mark.slow
def test_killed_ten_times_at_random(many, encoder_folder, tmp_path):
    folder, whole = many
    rng, kills, shards = random.Random(0), 0, []
    while not (tmp_path / "store").exists():
        argv = command(folder, encoder_folder, tmp_path / "store")
        process = subprocess.Popen(argv, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        partial = partial_folder(tmp_path / "store")
        before = len(list(partial.glob("parts/*")))
        while kills < 10 and process.poll() is None and len(list(partial.glob("parts/*"))) == before:
            time.sleep(0.005)  # until it works
        if kills < 10:
            time.sleep(rng.uniform(0.0, 0.02))
            process.kill()
            kills += 1
            shards.append(len(list(partial.glob("parts/*"))))
        assert process.wait() in (0, -9)
    assert kills >= 5, shards  # where the encoder is fast, the store may be whole before the tenth
    assert contents(tmp_path / "store") == contents(whole)


@pytest.mark.slow
def test_two_processes_go_on_with_what_one_left(many, encoder_folder, tmp_path):
    folder, whole = many
    process = subprocess.Popen(
        command(folder, encoder_folder, tmp_path / "store"),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    partial = partial_folder(tmp_path / "store")
    while len(list(partial.glob("parts/*"))) < 3:
        time.sleep(0.005)
    process.kill()
    process.wait()
    two = command(folder, encoder_folder, tmp_path / "store", processes=2)
    subprocess.run(two, env=environment(), check=True, capture_output=True, timeout=300)
    assert contents(tmp_path / "store") == contents(whole)
