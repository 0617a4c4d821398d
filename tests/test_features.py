"""Feature stores: what is written comes back, damage is named; regions found in batches are the encoder's own."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_detectors import tiny_detector

from modeling_visualbert import QueryRegionEncoder, VisualBertImageProcessor
from modeling_visualbert.features.extract import describe_detector, extract_regions
from modeling_visualbert.features.store import FeatureStore, write_store

DIM = 6

pytestmark = pytest.mark.filterwarnings("error:The given NumPy array is not writable")  # torch says so once only


def regions_of(count, seed=0, dim=DIM):
    """Regions of one image of 40 x 30 pixels, as a region encoder finds them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "visual_embeds": torch.randn(count, dim, generator=generator),
        "boxes": torch.rand(count, 4, generator=generator) * 30,
        "scores": torch.rand(count, generator=generator),
        "class_ids": torch.randint(0, 48, (count,), generator=generator),
        "image_size": torch.tensor([30, 40 + seed]),
    }


IMAGES = {7: regions_of(3), 458752: regions_of(0, seed=1), 2**40: regions_of(20, seed=2)}


def write(folder, images=IMAGES, **options):
    """Write a store; returns its folder."""
    write_store(folder, images.items(), dim=DIM, detector="tiny", **options)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_was_written_comes_back(tmp_path, dtype):
    store = FeatureStore(write(tmp_path / "store", dtype=dtype))
    assert len(store) == 3
    assert (store.dim, store.dtype, store.detector) == (DIM, dtype, {"name": "tiny", "fingerprint": None})
    for image_id, written in IMAGES.items():
        read = store[image_id]
        assert list(read) == list(written)
        stored = written["visual_embeds"].to(getattr(torch, dtype)).float()
        assert torch.equal(read["visual_embeds"], stored)
        for name in ("boxes", "scores", "class_ids", "image_size"):
            assert torch.equal(read[name], written[name])
            assert read[name].dtype == written[name].dtype


def test_half_precision_takes_half_the_room_and_is_close(tmp_path):
    sizes = {}
    for dtype in ("float32", "float16"):
        images = {1: {**regions_of(2000), "boxes": torch.zeros(2000, 4)}}
        store = FeatureStore(write(tmp_path / dtype, images, dtype=dtype))
        assert torch.allclose(store[1]["visual_embeds"], images[1]["visual_embeds"], atol=2e-3)
        sizes[dtype] = store.arrays(1)["visual_embeds"].nbytes
    assert sizes == {"float32": 2000 * DIM * 4, "float16": 2000 * DIM * 2}


def test_a_store_can_be_moved_and_its_tensors_changed(tmp_path):
    write(tmp_path / "first").rename(tmp_path / "second")
    store = FeatureStore(tmp_path / "second")
    store[7]["visual_embeds"].zero_()  # a copy: the file stays as it is
    assert torch.equal(store[7]["visual_embeds"], IMAGES[7]["visual_embeds"])


def test_an_image_that_is_not_there_is_named(tmp_path):
    store = FeatureStore(write(tmp_path / "store"))
    assert 7 in store
    assert 8 not in store
    with pytest.raises(KeyError, match="store: no regions of image 8"):
        store[8]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            [(1, regions_of(2)), (2, regions_of(2, dim=5))],
            r"image 2: 'visual_embeds' has shape \(2, 5\); expected \(2, 6\)",
        ),
        ([(1, regions_of(2)), (2, regions_of(1)), (1, regions_of(3))], "image 1 twice; expected each image once"),
    ],
    ids=["dim", "twice"],
)
def test_images_that_do_not_fit_are_refused_and_leave_nothing(tmp_path, images, message):
    with pytest.raises(ValueError, match=message):
        write_store(tmp_path / "store", iter(images), dim=DIM, detector="tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["boxes", "scores", "class_ids"])
def test_numbers_of_boxes_and_features_must_agree(tmp_path, name):
    regions = {**regions_of(3), name: regions_of(2)[name]}
    with pytest.raises(ValueError, match=rf"image 1: .*{name}.*expected"):
        write(tmp_path / "store", {1: regions})


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_features_too_large_for_half_precision_are_refused(tmp_path):
    regions = {**regions_of(3), "visual_embeds": torch.full((3, DIM), 1e6)}
    with pytest.raises(ValueError, match=r"image 1: .*float16"):
        write(tmp_path / "store", {1: regions}, dtype="float16")


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    def images():
        yield 1, regions_of(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "store", images(), dim=DIM, detector="tiny")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "store").mkdir()
    with pytest.raises(FileExistsError, match="store exists; remove it or choose another folder"):
        write(tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


def test_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dtype 'int8'; expected one of float32, float16"):
        write(tmp_path / "store", dtype="int8")


def test_a_store_without_images_is_empty(tmp_path):
    assert len(FeatureStore(write(tmp_path / "store", {}))) == 0


def test_a_folder_without_an_index_is_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no feature store \(index.json is missing\)"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "index.json: format 1; this version reads 3: extract the regions again"),
        ({"dtype": "int8"}, "index.json: dtype 'int8'; expected one of float32, float16"),
        ({"num_images": 5}, "index.json: 5 images, but ids.arrow has 3"),
        ({"dim": None}, "index.json: key 'dim' is missing; expected a record with it"),
        ({"format": None}, "index.json: key 'format' is missing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, change, message):
    index = write(tmp_path / "store") / "index.json"
    record = json.loads(index.read_text()) | change
    index.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        FeatureStore(tmp_path / "store")


def test_a_damaged_index_is_named(tmp_path):
    index = write(tmp_path / "store") / "index.json"
    index.write_text(index.read_text()[:-2])
    with pytest.raises(ValueError, match=r"index.json: malformed JSON at line 29, column"):
        FeatureStore(tmp_path / "store")


def test_another_dim_than_stored_is_found_when_reading(tmp_path):
    index = write(tmp_path / "store") / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"dim": 5}))
    with pytest.raises(ValueError, match=r"image 7: 72 bytes of 'features' stored, expected 60 for .* \(3, 5\)"):
        FeatureStore(tmp_path / "store")[7]


@pytest.mark.parametrize("damage", ["truncated", "no folder"])
def test_damaged_data_is_named(tmp_path, damage):
    data = write(tmp_path / "store") / "data"
    if damage == "truncated":
        (arrow,) = data.glob("*.arrow")
        arrow.write_bytes(arrow.read_bytes()[:-500])
    else:
        shutil.rmtree(data)
    with pytest.raises(ValueError, match=r"shard-00000.arrow: (damaged|missing)"):
        FeatureStore(tmp_path / "store")


@pytest.fixture(scope="module")
def found_in_images(tmp_path_factory):
    """Encoder, image processor and image files of different sizes by image id."""
    folder = tmp_path_factory.mktemp("pictures")
    encoder = QueryRegionEncoder.from_detector(tiny_detector(), max_regions=8, score_threshold=0.5).eval()
    paths = {}
    for image_id in (12, 5, 9, 30, 2):
        rng = np.random.default_rng(image_id)
        patches = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        paths[image_id] = folder / f"{image_id}.png"
        patches.resize((90 + image_id, 60), Image.Resampling.NEAREST).save(paths[image_id])
    return encoder, VisualBertImageProcessor(size={"height": 64, "width": 96}), paths


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_extracted_regions_are_those_of_the_encoder(found_in_images, batch_size):
    encoder, image_processor, paths = found_in_images
    extracted = list(extract_regions(encoder, image_processor, paths.items(), batch_size=batch_size, progress=False))
    assert [image_id for image_id, _ in extracted] == list(paths)
    for number, (image_id, regions) in enumerate(extracted):
        start = number - number % batch_size
        batch = list(paths.values())[start : start + batch_size]
        with torch.inference_mode():
            direct = encoder(image_processor(batch)["pixel_values"])
        keep = direct.visual_attention_mask[number - start].bool()
        assert keep.any()
        width, height = 90 + image_id, 60
        pixels = direct.boxes_unit[number - start][keep] * torch.tensor([width, height, width, height])
        assert regions["image_size"].tolist() == [height, width]
        assert torch.equal(regions["boxes"], pixels)
        assert torch.equal(regions["visual_embeds"], direct.visual_embeds[number - start][keep])
        assert torch.equal(regions["scores"], direct.scores[number - start][keep])
        assert torch.equal(regions["class_ids"], direct.class_ids[number - start][keep])


def test_extracted_regions_fit_a_store(found_in_images, tmp_path):
    encoder, image_processor, paths = found_in_images
    extracted = dict(extract_regions(encoder, image_processor, paths.items(), progress=False))
    detector = describe_detector(encoder, image_processor)
    write_store(tmp_path / "store", extracted.items(), encoder.config.region_dim, detector)
    store = FeatureStore(tmp_path / "store", encoder.config.region_dim, encoder.fingerprint())
    assert store.detector == detector
    for image_id in paths:
        assert torch.equal(store[image_id]["visual_embeds"], extracted[image_id]["visual_embeds"])


def test_the_bad_image_is_named(found_in_images, tmp_path):
    encoder, image_processor, paths = found_in_images
    (tmp_path / "7.png").write_text("no image")
    images = [*paths.items(), (7, tmp_path / "7.png")]
    with pytest.raises(ValueError, match=r"7.png: not an image that Pillow can read"):
        list(extract_regions(encoder, image_processor, images, progress=False))


def test_other_weights_or_settings_have_another_fingerprint(found_in_images):
    encoder = found_in_images[0]
    same = QueryRegionEncoder.from_detector(encoder.detector, max_regions=8, score_threshold=0.5)
    stricter = QueryRegionEncoder.from_detector(encoder.detector, max_regions=8, score_threshold=0.6)
    other = QueryRegionEncoder.from_detector(tiny_detector(seed=1), max_regions=8, score_threshold=0.5)
    prints = [item.fingerprint() for item in (encoder, same, stricter, other)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
