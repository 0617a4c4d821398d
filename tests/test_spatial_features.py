"""The six spatial numbers that the features of Flickr30k end with: from pixels, TSV and npz, in stores and inside a model."""

import base64
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import tiny_config
from hub_server import Repository, serve
from PIL import Image
from processes import environment
from published_layouts import VOCABULARY, write_checkpoint, write_tokenizer
from test_convert_region_detector import write_frcnn
from test_region_detector import KINDS, batch_for, image, processor_for, tiny_detector
from transformers import AutoImageProcessor, AutoModel, pipeline

from modeling_visualbert import RegionDetectorConfig
from modeling_visualbert.cli import main
from modeling_visualbert.convert.assemble import complete_checkpoint
from modeling_visualbert.features.convert import convert_features
from modeling_visualbert.features.store import FeatureStore, write_store
from modeling_visualbert.hub_code.regions_visualbert import check_regions, find_regions, spatial_features
from modeling_visualbert.tasks.common import DETECTOR

DIM = KINDS["c4"]().region_dim


def plainly(boxes, image_size):
    """The numbers of boxes in pixels, one after the other, as the published features were made."""
    height, width = (float(side) for side in image_size)
    rows = []
    for x1, y1, x2, y2 in boxes.tolist():
        rows.append([x1 / width, y1 / height, x2 / width, y2 / height, (x2 - x1) / width, (y2 - y1) / height])
    return torch.tensor(rows).reshape(-1, 6)


def save_detector(folder, kind="c4", **fields):
    tiny_detector(kind, **fields).save_pretrained(folder)
    processor_for(kind).save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path):
    """Two images of different sizes in a folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (width, height) in enumerate([(80, 60), (50, 70)]):
        Image.fromarray(image(width, height, seed=number)).save(folder / f"{number}.png")
    return folder


# ------------------------------------------------------------------------------------------------------------- numbers


def test_the_numbers_are_corners_width_and_height():
    boxes = torch.tensor([[8.0, 6.0, 40.0, 60.0], [0.0, 0.0, 80.0, 60.0], [20.0, 30.0, 20.0, 30.0]])
    numbers = spatial_features(boxes / torch.tensor([80.0, 60.0, 80.0, 60.0]))
    expected = [[0.1, 0.1, 0.5, 1.0, 0.4, 0.9], [0, 0, 1, 1, 1, 1], [0.25, 0.5, 0.25, 0.5, 0, 0]]
    torch.testing.assert_close(numbers, torch.tensor(expected))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_detector_appends_the_numbers_of_the_boxes_that_it_hands_out(kind):
    plain, spatial, inputs = tiny_detector(kind), tiny_detector(kind, spatial_features=True), batch_for(kind)
    assert spatial.config.region_dim == plain.config.region_dim + 6
    for without, found in zip(find_regions(plain, inputs), find_regions(spatial, inputs), strict=True):
        assert torch.equal(found["visual_embeds"][:, :-6], without["visual_embeds"])
        assert torch.equal(found["boxes"], without["boxes"])
        numbers = plainly(found["boxes"], found["image_size"])
        torch.testing.assert_close(found["visual_embeds"][:, -6:], numbers, atol=1e-6, rtol=0)
        assert numbers.min() >= 0.0 and numbers.max() <= 1.0
    outputs = spatial(**inputs)
    assert not outputs["visual_embeds"][~outputs["visual_attention_mask"].bool()].any()


@torch.no_grad()
def test_given_boxes_have_their_own_numbers():
    boxes = torch.tensor([[8.0, 6.0, 40.0, 60.0], [0.0, 0.0, 80.0, 60.0]])
    detector = tiny_detector("c4", spatial_features=True)
    (found,) = find_regions(detector, processor_for("c4")(image(), boxes=boxes))
    torch.testing.assert_close(found["visual_embeds"][:, -6:], plainly(boxes, (60, 80)), atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_numbers_have_the_type_of_the_features():
    detector = tiny_detector("c4", spatial_features=True).to(torch.bfloat16)
    inputs = batch_for("c4")
    found = detector(**{**inputs, "pixel_values": inputs["pixel_values"].to(torch.bfloat16)})
    assert found["visual_embeds"].dtype == torch.bfloat16


def test_the_option_is_saved_and_no_weight_depends_on_it(tmp_path):
    detector = tiny_detector("c4", spatial_features=True)
    detector.save_pretrained(tmp_path / "spatial")
    again = AutoModel.from_pretrained(tmp_path / "spatial")
    assert again.config.spatial_features and again.fingerprint() == detector.fingerprint()
    plain = tiny_detector("c4")
    plain.load_state_dict(again.state_dict())
    assert plain.fingerprint() != again.fingerprint()
    plain.config.spatial_features = True
    assert plain.fingerprint() == again.fingerprint()
    nested = tiny_config("flickr").to_dict() | {"region_encoder_config": detector.config.to_dict()}
    nested.pop("visual_embedding_dim")
    config = type(tiny_config("flickr"))(**nested)
    assert config.region_encoder_config.spatial_features and config.visual_embedding_dim == DIM + 6
    config.save_pretrained(tmp_path / "model")
    assert type(config).from_pretrained(tmp_path / "model").region_encoder_config.spatial_features


def test_where_it_is_off_hashes_of_the_configuration_stay_as_they_were():
    assert "spatial_features" not in RegionDetectorConfig().to_dict()
    assert RegionDetectorConfig(spatial_features=True).to_dict()["spatial_features"] is True


# ------------------------------------------------------------------------------------------------- the three ways to them


def write_tsv(path, store, ids):
    """As bottom-up attention does: name, width, height, number of boxes, boxes, features without spatial numbers."""
    lines = []
    for image_id in ids:
        regions = store[image_id]
        height, width = regions["image_size"].tolist()
        arrays = (regions["boxes"], regions["visual_embeds"][:, :DIM])
        encoded = [base64.b64encode(array.numpy().astype("<f4").tobytes()).decode() for array in arrays]
        lines.append("\t".join([image_id, str(width), str(height), str(len(regions["boxes"])), *encoded]) + "\n")
    path.write_text("".join(lines))


def write_npz(folder, store, ids, transposed):
    folder.mkdir()
    for image_id in ids:
        regions = store[image_id]
        height, width = regions["image_size"].tolist()
        features = regions["visual_embeds"][:, :DIM].numpy()
        np.savez(
            folder / f"{image_id}.npz",
            x=features.T if transposed else features,
            bbox=regions["boxes"].numpy(),
            num_bbox=len(features),
            image_h=height,
            image_w=width,
        )


def assert_same_store(found, expected, dim, atol=0.0):
    assert found.dim == expected.dim == dim and sorted(found) == sorted(expected)
    for image_id in expected:
        mine, other = found[image_id], expected[image_id]
        torch.testing.assert_close(mine["visual_embeds"], other["visual_embeds"], atol=atol, rtol=0)
        assert torch.equal(mine["boxes"], other["boxes"]) and torch.equal(mine["image_size"], other["image_size"])


def test_pixels_tsv_and_npz_give_the_same_features(images, tmp_path):
    detector, options = str(save_detector(tmp_path / "detector")), ["--spatial", "--dtype", "float32"]
    assert (
        main(["extract", str(images), str(tmp_path / "pixels"), "--region_encoder", detector, "--cpu", *options]) == 0
    )
    from_pixels = FeatureStore(tmp_path / "pixels")
    assert from_pixels.detector["spatial_features"] is True
    card = (tmp_path / "pixels" / "README.md").read_text()
    assert f"dim {DIM + 6} (float32), the last six of them spatial numbers" in card
    for image_id in from_pixels:
        regions = from_pixels[image_id]
        numbers = plainly(regions["boxes"], regions["image_size"])
        assert len(numbers) > 2
        torch.testing.assert_close(regions["visual_embeds"][:, -6:], numbers, atol=1e-6, rtol=0)
    (tmp_path / "parts").mkdir()
    write_tsv(tmp_path / "parts" / "train.tsv.1", from_pixels, ["1"])
    write_tsv(tmp_path / "parts" / "train.tsv.0", from_pixels, ["0"])
    write_npz(tmp_path / "milvlg", from_pixels, ["0", "1"], transposed=False)
    write_npz(tmp_path / "mcan", from_pixels, ["0", "1"], transposed=True)
    for name in ("parts", "milvlg", "mcan"):
        source, target = str(tmp_path / name), str(tmp_path / f"{name}_store")
        assert main(["convert-features", source, target, *options]) == 0
        store = FeatureStore(target)
        assert store.detector["spatial_features"] is True and store.detector["fingerprint"] is None
        assert_same_store(store, from_pixels, DIM + 6, atol=1e-6)


def test_numbers_of_a_file_without_image_sizes_are_taken_from_it(tmp_path):
    """BAN's HDF5 files of Flickr30k hold the six numbers, but no sizes of images."""
    h5py = pytest.importorskip("h5py")
    generator = np.random.default_rng(0)
    features, numbers = generator.random((5, 4), dtype=np.float32), generator.random((5, 6), dtype=np.float32)
    with h5py.File(tmp_path / "test.hdf5", "w") as file:
        file["image_features"], file["spatial_features"] = features, numbers
        file["image_bb"], file["pos_boxes"] = np.tile([3.0, 5.0, 40.0, 50.0], (5, 1)), [[0, 2], [2, 5]]
    (tmp_path / "test.txt").write_text("11\n12\n")
    store = convert_features(tmp_path / "test.hdf5", tmp_path / "store", dtype="float32", spatial=True, progress=False)
    expected = torch.from_numpy(np.concatenate((features, numbers), axis=1))
    assert torch.equal(torch.cat([store["11"]["visual_embeds"], store["12"]["visual_embeds"]]), expected)
    plain = convert_features(tmp_path / "test.hdf5", tmp_path / "plain", dtype="float32", progress=False)
    assert torch.equal(plain["12"]["visual_embeds"], expected[2:, :4])


def test_features_without_boxes_or_sizes_are_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "1.npy", np.ones((3, 4), np.float32))
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "1.npz", box_features=np.ones((3, 4)), cls_boxes=np.ones((3, 4)))
    for kind, unknown in (("npy", "the boxes and the size of the image"), ("npz", "the size of the image")):
        target = tmp_path / f"{kind}_store"
        assert main(["convert-features", str(tmp_path / kind), str(target), "--spatial"]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert (
            f"{kind}/1.{kind}: spatial numbers need boxes and image sizes, but {unknown} cannot be read here" in error
        )
        assert not target.exists()


def test_other_kinds_of_encoders_are_refused(images, tmp_path, capsys):
    argv = ["extract", str(images), str(tmp_path / "store"), "--region_encoder", str(DETECTOR), "--spatial"]
    assert main(argv) == 2
    assert "QueryRegionEncoder, which has geometry numbers of its own" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_started_extraction_is_not_continued_with_the_numbers(images, tmp_path, capsys):
    detector = str(save_detector(tmp_path / "detector"))
    argv = ["extract", str(images), str(tmp_path / "store"), "--region_encoder", detector, "--cpu"]
    assert main(argv) == 0
    assert "spatial_features" not in FeatureStore(tmp_path / "store").detector
    assert main([*argv, "--spatial"]) == 2
    assert f"dim {DIM}, not {DIM + 6}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stored", "expected", "message"),
    [
        (DIM, DIM + 6, "the six spatial numbers are missing: make them with --spatial"),
        (DIM + 6, DIM, "they end with six spatial numbers, which this model does not read"),
        (DIM, DIM + 5, f"this model expects {DIM + 5}"),
    ],
)
def test_stores_with_and_without_them_are_told_apart(stored, expected, message, tmp_path):
    regions = {"visual_embeds": torch.zeros(2, stored)}
    write_store(tmp_path / "store", [("1", regions)], stored, "unknown")
    with pytest.raises(ValueError, match=message) as error:
        FeatureStore(tmp_path / "store", expected)
    assert ("spatial" in str(error.value)) == (abs(expected - stored) == 6)
    with pytest.raises(ValueError, match=message):
        check_regions(regions, expected)


# ------------------------------------------------------------------------------------------------------- inside a model


@pytest.fixture
def flickr_model(tmp_path):
    """A checkpoint in the published layout that reads the features of the detector and six spatial numbers."""
    write_tokenizer(tmp_path / "tokenizer", VOCABULARY)
    return write_checkpoint(tmp_path / "flickr", "flickr30k", DIM + 6)


def convert(model, target, *flags):
    return main(["convert", str(model), str(target), "--tokenizer", str(model.parent / "tokenizer"), *map(str, flags)])


def test_a_model_grounds_phrases_from_pixels(flickr_model, images, tmp_path, capsys):
    detector, complete = save_detector(tmp_path / "detector"), tmp_path / "complete"
    assert convert(flickr_model, complete, "--region_encoder", detector, "--spatial") == 0
    argv = ["ground", "--model", str(complete), str(images / "0.png"), "a red star", "a red star", "--json"]
    capsys.readouterr()
    assert main(argv) == 0
    (found,) = json.loads(capsys.readouterr().out)
    # From a store that was extracted with the option, the same.
    argv = ["extract", str(images), str(tmp_path / "store"), "--region_encoder", str(detector), "--cpu", "--spatial"]
    assert main([*argv, "--dtype", "float32"]) == 0
    ground = pipeline("phrase-grounding", model=str(complete))
    encoder = ground.model.visual_bert.region_encoder
    store = FeatureStore(tmp_path / "store", encoder.config.region_dim, encoder.fingerprint())
    regions = store["0"]
    (again,) = ground(regions, "a red star", ["a red star"], top_k=len(found["regions"]))
    assert [box["region"] for box in again["regions"]] == [box["region"] for box in found["regions"]]
    scores = [torch.tensor([box["score"] for box in answer["regions"]]) for answer in (again, found)]
    torch.testing.assert_close(*scores, atol=1e-5, rtol=0)


def test_a_detector_without_the_numbers_is_refused_with_the_way_out(flickr_model, tmp_path, capsys):
    detector = save_detector(tmp_path / "detector")
    assert convert(flickr_model, tmp_path / "complete", "--region_encoder", detector) == 2
    error = capsys.readouterr().err
    assert f"makes features of {DIM} numbers, the model reads {DIM + 6}" in error
    assert "the six spatial numbers are missing: make them with --spatial" in error
    assert convert(flickr_model, tmp_path / "complete", "--spatial") == 2
    error = capsys.readouterr().err
    assert "is a 'visual_bert' checkpoint; expected a region encoder; for a checkpoint, name its detector with" in error
    assert not (tmp_path / "complete").exists()


def test_a_published_detector_is_converted_with_the_option_by_its_name(tmp_path):
    """In a process of its own, which asks a Hub on this machine for `unc-nlp/frcnn-vg-finetuned`."""
    source = tmp_path / "source"
    source.mkdir()
    files = {path.name: path.read_bytes() for path in write_frcnn(source).iterdir()}
    target = tmp_path / "detector"
    with serve() as hub:
        hub.repositories["unc-nlp/frcnn-vg-finetuned"] = Repository()
        hub.repositories["unc-nlp/frcnn-vg-finetuned"].commit("main", files, "weights")
        settings = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        argv = ["convert", "frcnn-vg", str(target), "--spatial"]
        done = subprocess.run(
            [sys.executable, "-m", "modeling_visualbert.cli", *argv],
            env=environment() | settings | {"HF_HUB_DISABLE_XET": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("RegionDetector: ") and (target / "key_report.txt").is_file()
    config = AutoModel.from_pretrained(target).config
    assert config.spatial_features and config.region_dim == config.appearance_dim + 6


def test_a_converted_detector_gets_the_option(tmp_path, capsys):
    detector, target = save_detector(tmp_path / "detector"), tmp_path / "spatial"
    assert main(["convert", str(detector), str(target), "--spatial"]) == 0
    assert re.search(r"RegionDetector: \d+ loaded; every key in", capsys.readouterr().out)
    found = AutoModel.from_pretrained(target)
    assert found.fingerprint() == tiny_detector("c4", spatial_features=True).fingerprint()
    assert AutoImageProcessor.from_pretrained(target).size == processor_for("c4").size
    assert main(["convert", str(detector), str(tmp_path / "other"), "--spatial", "--tokenizer", "any"]) == 2
    assert "is a region detector; expected no --tokenizer" in capsys.readouterr().err


def test_a_detector_by_its_name_takes_no_tokenizer(tmp_path, capsys):
    assert main(["convert", "frcnn-vg", str(tmp_path / "detector"), "--tokenizer", "any"]) == 2
    assert "frcnn-vg is a region detector; expected no --tokenizer" in capsys.readouterr().err


def test_a_detector_with_the_option_completes_a_bare_checkpoint(flickr_model, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path / "cache"))
    detector = save_detector(tmp_path / "detector", spatial_features=True)
    folder = complete_checkpoint(flickr_model, detector, flickr_model.parent / "tokenizer", "flickr30k")
    assert pipeline("phrase-grounding", model=str(folder)).model.config.visual_embedding_dim == DIM + 6
