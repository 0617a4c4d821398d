"""Features that others published: each form is read value by value, and damage is named with file and row."""

import base64
import io
import json
import logging
import pickle
import re
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import shared
from test_store import contents

from modeling_visualbert.cli import main
from modeling_visualbert.convert.array_pickles import load_chunk
from modeling_visualbert.features.arrays import _warn_of_unit_boxes
from modeling_visualbert.features.convert import convert_features
from modeling_visualbert.features.draft import StoreDraft
from modeling_visualbert.features.store import FeatureStore, partial_folder

ROOT = Path(__file__).parents[1]
DIM = 5


def image(seed, count=None):
    """The arrays of an image, as bottom-up attention finds them."""
    rng = np.random.default_rng(seed)
    count = 2 + seed % 3 if count is None else count
    return {
        "features": rng.random((count, DIM), dtype=np.float32),
        "boxes": np.sort(rng.random((count, 2, 2), dtype=np.float32) * 30, axis=1).reshape(count, 4),
        "scores": rng.random(count, dtype=np.float32),
        "class_ids": rng.integers(0, 1600, count),
        "attribute_ids": rng.integers(0, 400, count),
        "attribute_scores": rng.random(count, dtype=np.float32),
    }


LXMERT = ("name", "h", "w", "class_ids", "scores", "attribute_ids", "attribute_scores", "num", "boxes", "features")


def coded(array):
    """How a TSV holds an array."""
    return base64.b64encode(array.tobytes()).decode()


def line(name, arrays, **changes):
    """A line of LXMERT's TSV."""
    text = {key: coded(value) for key, value in arrays.items()}
    text |= {"name": name, "h": "30", "w": "40", "num": str(len(arrays["scores"])), **changes}
    return "\t".join(text[key] for key in LXMERT) + "\n"


def assert_holds(store, image_id, arrays):
    read = store[image_id]
    for key, value in arrays.items():
        stored = read["visual_embeds" if key == "features" else key]
        assert np.array_equal(stored.numpy(), value), key


def write_tsv(path, names=("COCO_val2014_000000000007", "COCO_val2014_000000000042", "COCO_val2014_000000000009")):
    path.write_text("".join(line(name, image(i)) for i, name in enumerate(names)))
    return path


# TSV


def test_the_real_tsv_value_by_value(tmp_path):
    source = shared("real/bottom_up/train2014_obj36.tsv")
    names = {"classes": source.parent / "objects_vocab.txt", "attributes": source.parent / "attributes_vocab.txt"}
    store = convert_features(source, tmp_path / "exact", dtype="float32", images_per_shard=4, progress=False, **names)
    half = convert_features(source, tmp_path / "half", ids="number", progress=False)
    assert len(store) == 10
    for row in source.read_text().splitlines():
        name, height, width, class_ids, scores, attribute_ids, attribute_scores, count, boxes, features = row.split(
            "\t"
        )
        regions = store[name]
        assert regions["image_size"].tolist() == [int(height), int(width)]
        expected = {
            "visual_embeds": (features, "<f4", (int(count), 2048)),
            "boxes": (boxes, "<f4", (int(count), 4)),
            "scores": (scores, "<f4", (int(count),)),
            "class_ids": (class_ids, "<i8", (int(count),)),
            "attribute_ids": (attribute_ids, "<i8", (int(count),)),
            "attribute_scores": (attribute_scores, "<f4", (int(count),)),
        }
        for key, (text, dtype, shape) in expected.items():
            array = np.frombuffer(base64.b64decode(text), dtype).reshape(shape)
            assert np.array_equal(regions[key].numpy(), array), (name, key)
            if key == "visual_embeds":
                rounded = half.arrays(int(name[-12:]))["visual_embeds"]
                assert np.array_equal(rounded, array.astype(np.float16))
    assert store.info["classes"][72] == "sky"
    assert len(store.info["attributes"]) == 400
    store.verify()


def test_lxmert_tsv(tmp_path):
    store = convert_features(write_tsv(tmp_path / "a.tsv"), tmp_path / "store", ids="number", dtype="float32")
    assert list(store) == ["42", "7", "9"]
    assert store["7"]["image_size"].tolist() == [30, 40]
    for number, image_id in enumerate(("7", "42", "9")):
        assert_holds(store, image_id, image(number))


@pytest.mark.parametrize("last", [[], ["class_ids"]], ids=["bottom-up-attention", "nlvr2 script"])
def test_tsv_of_other_scripts_has_the_width_first(tmp_path, last):
    arrays = image(0)
    text = [base64.b64encode(arrays[key].tobytes()).decode() for key in ["boxes", "features", *last]]
    (tmp_path / "a.tsv").write_text("\t".join(["150367", "40", "30", "2", *text]) + "\n")
    store = convert_features(tmp_path / "a.tsv", tmp_path / "store", dtype="float32")
    assert store[150367]["image_size"].tolist() == [30, 40]
    assert_holds(store, 150367, {key: arrays[key] for key in ["boxes", "features", *last]})
    assert "scores" not in store[150367]


def test_empty_lines_at_the_end_of_a_tsv_are_no_images(tmp_path):
    (tmp_path / "a.tsv").write_text(line("a", image(0)) + line("b", image(1)) + "\n \n\n")
    assert list(convert_features(tmp_path / "a.tsv", tmp_path / "store", progress=False)) == ["a", "b"]


def test_an_image_without_boxes(tmp_path):
    (tmp_path / "a.tsv").write_text(line("none", image(0, count=0)) + line("some", image(1)))
    store = convert_features(tmp_path / "a.tsv", tmp_path / "store", dtype="float32")
    assert store["none"]["visual_embeds"].shape == (0, DIM)
    assert_holds(store, "some", image(1))
    (tmp_path / "b.tsv").write_text(line("none", image(0, count=0)))
    with pytest.raises(ValueError, match=r"b.tsv: no image with regions in it"):
        convert_features(tmp_path / "b.tsv", tmp_path / "other")


def broken(**changes):
    """A third line, of four boxes, with something wrong."""
    return line(**{"name": "third", "arrays": image(2), **changes})


THIRD = r"row 3: image third: "


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (broken(features="AAA*AAAA"), r"row 3: 'features': broken base64"),
        (broken(boxes="AAAAA"), r"row 3: 'boxes': broken base64"),
        (broken(features=coded(image(2)["features"])[:-9]), r"row 3: 'features': broken base64"),
        (broken(features=coded(image(2)["features"])[:-8]), r"row 3: 'features': 75 bytes; expected a multiple of 4"),
        (
            broken(features=coded(np.zeros(19, np.float32))),
            r"row 3: 'features' has 19 numbers; expected \(4, 4\) for 4",
        ),
        (broken(scores=coded(np.zeros(3, np.float32))), r"row 3: 'scores' has 3 numbers; expected \(4,\) for 4 boxes"),
        (broken(num="5"), r"row 3: 'class_ids' has 4 numbers; expected \(5,\) for 5 boxes"),
        (broken(num="many"), r"row 3: 'count' is b'many'; expected a whole number"),
        (broken(num="-4"), r"row 3: 'count' is b'-4'; expected a whole number"),
        (broken(h="1e9"), r"row 3: 'height' is b'1e9'; expected a whole number"),
        (broken(name="first"), r"row 3: image first twice; expected each image once"),
        (broken()[:200], r"row 3: \d columns; expected 6, 7, 10 \(is the file cut off\?\)"),
        ("\n" + line("third", image(2)), r"row 3: 1 columns"),
        (
            broken(features=coded(image(2)["features"][:, :3])),
            THIRD + r"'visual_embeds' has shape \(4, 3\); expected \(4, 5\)",
        ),
        (
            broken(features=coded(np.full((4, DIM), np.nan, np.float32))),
            THIRD + "'visual_embeds' holds NaN or infinity",
        ),
        (
            broken(features=coded(np.full((4, DIM), 1e5, np.float32))),
            THIRD + "'visual_embeds' does not fit into float16",
        ),
        (broken(class_ids=coded(np.full(4, 2**40))), THIRD + "'class_ids' holds 1099511627776; expected whole numbers"),
    ],
)
def test_a_broken_row_is_named(tmp_path, row, message):
    path = tmp_path / "a.tsv"
    path.write_text(line("first", image(0)) + line("second", image(1)) + row)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {message}"):
        convert_features(path, tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


def test_a_repaired_file_goes_on(tmp_path):
    rows = [line(f"i{n}", image(n)) for n in range(9)]
    path = tmp_path / "a.tsv"
    path.write_text("".join([*rows[:7], rows[7].replace("A", "*"), rows[8]]))
    with pytest.raises(ValueError, match="row 8: .*broken base64"):
        convert_features(path, tmp_path / "store", images_per_shard=3, progress=False)
    assert len(list(partial_folder(tmp_path / "store").glob("parts/*"))) == 2
    with pytest.raises(ValueError, match=r'^\S+store.partial was started with dtype "float16", not "float32"'):
        convert_features(path, tmp_path / "store", images_per_shard=3, dtype="float32", progress=False)
    path.write_text("".join(rows))
    convert_features(path, tmp_path / "store", images_per_shard=3, progress=False)
    convert_features(path, tmp_path / "whole", images_per_shard=3, progress=False)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


# Folders of arrays


def info_of(number, **changes):
    """What Pythia and MMF write beside the features of an image."""
    arrays = image(number)
    return {
        "bbox": arrays["boxes"],
        "num_boxes": len(arrays["boxes"]),
        "objects": arrays["class_ids"],
        "cls_prob": np.zeros((len(arrays["boxes"]), 9), np.float32) if number % 2 else None,
        "image_width": np.int64(40),
        "image_height": 30,
    } | changes


def assert_is_that_of_mmf(store, image_id, number):
    arrays = image(number)
    assert_holds(store, image_id, {key: arrays[key] for key in ("features", "boxes", "class_ids")})
    assert store[image_id]["image_size"].tolist() == [30, 40]
    assert sorted(store[image_id]) == ["boxes", "class_ids", "image_size", "visual_embeds"]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pythia_folder(tmp_path, monkeypatch, protocol):
    """With what is known of the boxes beside the features of some images, and once in a dict with them."""
    folder = tmp_path / "fc6" / "train2014"
    folder.mkdir(parents=True)
    dump = pickle.dump
    monkeypatch.setattr(pickle, "dump", lambda value, file, **given: dump(value, file, protocol=protocol))
    for number in range(5):
        name = f"COCO_train2014_00000000000{number}"
        if number == 3:
            np.save(folder / f"{name}.npy", {"image_feat": image(3)["features"], **info_of(3)})
        else:
            np.save(folder / f"{name}.npy", image(number)["features"])
        if number < 3:
            np.save(folder / f"{name}_info.npy", info_of(number))
    (folder / "._COCO_train2014_000000000001.npy").write_bytes(b"of macOS")
    store = convert_features(tmp_path / "fc6", tmp_path / "store", ids="number", dtype="float32", progress=False)
    assert sorted(store) == ["0", "1", "2", "3", "4"]
    for number in range(4):
        assert_is_that_of_mmf(store, number, number)
    assert_holds(store, 4, {"features": image(4)["features"]})
    assert list(store[4]) == ["visual_embeds"]


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (info_of(1, num_boxes=9), "'num_boxes' is 9 beside 'features' of 3 regions"),
        (info_of(1, bbox=image(2)["boxes"]), r"'bbox' has shape \(4, 4\) beside 'features' of 3 regions"),
        (info_of(1, bbox=image(1)["boxes"] + 20), "'bbox': row . .* is outside the image of 40 x 30 pixels"),
        (info_of(1, bbox=Path("evil")), "b_info.npy: cannot be read: it holds Python objects .* it refers to pathlib"),
        (
            ["a list"],
            "b_info.npy: cannot be read: it holds Python objects .* an array of objects; expected numbers, or one",
        ),
        (np.zeros(3), "'features'|features are"),
    ],
)
def test_facts_beside_features_that_contradict_them_are_named(tmp_path, info, message):
    np.save(tmp_path / "a.npy", image(0)["features"])
    np.save(tmp_path / "b.npy", image(1)["features"])
    np.save(tmp_path / "b_info.npy", np.array(info * 2, dtype=object) if isinstance(info, list) else info)
    if isinstance(info, np.ndarray):  # numbers where a dict is expected: the features are those of the image
        assert len(convert_features(tmp_path, tmp_path / "store", progress=False)) == 2
        return
    with pytest.raises(ValueError, match=message) as refused:
        convert_features(tmp_path, tmp_path / "store", progress=False)
    assert str(refused.value).startswith(str(tmp_path / "b"))


def test_npz_of_the_nlvr2_script(tmp_path):
    for number in range(3):
        arrays = image(number)
        np.savez(
            tmp_path / f"dev-{number}-img0.png.npz",
            box_features=arrays["features"],
            cls_boxes=arrays["boxes"],
            max_conf=arrays["scores"],
        )
    store = convert_features(tmp_path, tmp_path / "store", dtype="float32", progress=False)
    for number in range(3):
        assert_holds(store, f"dev-{number}-img0", {key: image(number)[key] for key in ("features", "boxes", "scores")})


def test_npz_of_mcan_is_turned_and_cut(tmp_path):
    arrays = image(0, count=6)
    arrays["features"][4:] = 0  # padding
    np.savez(tmp_path / "a.jpg.npz", x=arrays["features"].T, bbox=arrays["boxes"], num_bbox=4, image_h=30, image_w=40)
    store = convert_features(tmp_path, tmp_path / "store", dtype="float32", progress=False)
    assert_holds(store, "a", {"features": arrays["features"][:4], "boxes": arrays["boxes"][:4]})
    assert store["a"]["image_size"].tolist() == [30, 40]


def test_npz_of_one_row_for_each_box_is_not_turned(tmp_path):
    arrays = image(0, count=6)
    np.savez(tmp_path / "a.npz", x=arrays["features"], bbox=arrays["boxes"], num_bbox=6, image_h=30, image_w=40)
    store = convert_features(tmp_path, tmp_path / "store", dtype="float32", progress=False)
    assert_holds(store, "a", {"features": arrays["features"], "boxes": arrays["boxes"]})


def convert_npz(folder, options=(), **arrays):
    """The command's status for a folder with one npz file of these arrays; the store is beside it."""
    folder.mkdir()
    np.savez(folder / "a.npz", **arrays)
    return main(["convert-features", str(folder), f"{folder}_store", "--dtype", "float32", *options])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", ["x", "features"])
@pytest.mark.parametrize("beside", ["num_bbox", "bbox", "scores", "objects_id"])
def test_whatever_lies_beside_features_tells_their_layout(tmp_path, turned, name, beside):
    """Also where there are more regions than numbers in a feature."""
    for count in (3, 9):
        arrays = image(0, count=count)
        features = arrays["features"].T if turned else arrays["features"]
        told = {
            "num_bbox": count,
            "bbox": arrays["boxes"],
            "scores": arrays["scores"],
            "objects_id": arrays["class_ids"],
        }
        folder = tmp_path / str(count)
        assert convert_npz(folder, **{name: features, beside: told[beside]}) == 0
        assert_holds(FeatureStore(f"{folder}_store"), "a", {"features": arrays["features"]})


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": np.ones((3, 5))}, (3, 5)),
        ({"x": np.ones((5, 5)), "bbox": np.ones((5, 4)), "num_bbox": 5}, (5, 5)),
        ({"x": np.vstack([np.ones((3, 5)), np.zeros((3, 5))]), "num_bbox": 3}, (6, 5)),
        ({"features": np.ones((5, 5)), "boxes": np.ones((5, 4))}, (5, 5)),
        ({"features": np.ones((7, 5))}, (7, 5)),
    ],
)
def test_where_nothing_tells_the_layout_a_flag_does(tmp_path, capsys, arrays, told):
    name = next(iter(arrays))
    arrays[name] = arrays[name] * np.arange(1, told[1] + 1)
    assert convert_npz(tmp_path / "asked", **arrays) == 2
    message = (
        f"a.npz: '{name}' has shape {told}, and nothing beside it tells which side the regions are; say --regions_first"
    )
    assert message in capsys.readouterr().err
    assert convert_npz(tmp_path / "first", ["--regions_first"], **arrays) == 0
    kept = int(arrays.get("num_bbox", told[0]))
    assert np.array_equal(FeatureStore(tmp_path / "first_store")["a"]["visual_embeds"].numpy(), arrays[name][:kept])
    if "num_bbox" not in arrays:
        assert convert_npz(tmp_path / "last", ["--features_first"], **arrays) == 0
        assert np.array_equal(FeatureStore(tmp_path / "last_store")["a"]["visual_embeds"].numpy(), arrays[name].T)


def test_a_flag_that_contradicts_the_other_arrays_is_refused(tmp_path, capsys):
    arrays = image(0, count=3)
    assert convert_npz(tmp_path / "a", ["--features_first"], x=arrays["features"], bbox=arrays["boxes"]) == 2
    assert "a.npz: 'bbox' has shape (3, 4) beside 'x' of 5 regions; expected as many" in capsys.readouterr().err
    write_tsv(tmp_path / "a.tsv")
    assert main(["convert-features", str(tmp_path / "a.tsv"), str(tmp_path / "store"), "--features_first"]) == 2
    assert "--features_first with kind tsv, whose rows always hold" in capsys.readouterr().err
    assert main(["convert-features", str(tmp_path / "a.tsv"), str(tmp_path / "store"), "--regions_first"]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bbox": np.ones((35, 4))},
            "'bbox' has shape (35, 4) beside 'x' of 36 regions and 'num_bbox' 36; expected as many",
        ),
        ({"num_bbox": 35}, "'num_bbox' is 35 beside 'x' of 36 regions, but row 35 is no padding"),
        ({"num_bbox": 37}, "'num_bbox' is 37 beside 'x' of 36 regions; expected as many"),
        ({"num_bbox": 35.5}, "'num_bbox' is 35.5; expected a whole number"),
        ({"objects_id": np.ones(35, int)}, "'objects_id' has shape (35,) beside 'x' of 36 regions"),
        ({"objects_conf": np.float32(1)}, "'objects_conf' has shape () beside 'x' of 36 regions"),
        ({"attrs_id": np.ones(1, int)}, "'attrs_id' has shape (1,) beside 'x' of 36 regions"),
        (
            {"features": np.ones((36, 5)) * 2},
            "'x' is of shape (36, 5) beside 'features' of 36 regions; expected the same",
        ),
        (
            {"boxes": np.ones((36, 4)), "bbox": np.ones((35, 4))},
            "'bbox' is of shape (35, 4) beside 'boxes' of 36 regions",
        ),
        ({"num_boxes": 36, "num_bbox": 35}, "'num_bbox' is 35 beside 'num_boxes' of 36 regions; expected the same"),
        ({"image_w": 40}, "'image_w' is the only side of the image; expected height and width, or neither"),
        ({"image_h": 0, "image_w": 40}, "'image_h' is 0; expected a whole number from 1 on"),
        ({"x": np.ones((40, 36)), "bbox": np.ones((38, 4))}, "'bbox' has shape (38, 4) beside 'x' of 36 regions"),
        ({"x": np.ones((36, 5), complex)}, "features are complex128 (36, 5); expected numbers"),
    ],
)
def test_arrays_that_contradict_one_another_are_named(tmp_path, capsys, changes, message):
    arrays = {"x": np.ones((36, 5)), "bbox": np.ones((36, 4)), "num_bbox": 36, **changes}
    assert convert_npz(tmp_path / "a", **arrays) == 2
    assert f"a/a.npz: {message}" in capsys.readouterr().err


SIZE = {"image_h": 30, "image_w": 40}
UNIT = np.array([[0, 0, 0.5, 0.25], [0.25, 0.5, 1, 1]], np.float32)
FULL = UNIT * np.array([40, 30, 40, 30], np.float32)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (
            UNIT,
            "'bbox': all boxes lie in 0..1 (row 0: [0.0, 0.0, 0.5, 0.25]), but the image has 40 x 30 pixels; expected pixels",
        ),
        (
            FULL + [[0, 0, 0, 0], [0, 0, 1.5, 0]],
            "'bbox': row 1 [10.0, 15.0, 41.5, 30.0] is outside the image of 40 x 30 pixels",
        ),
        (FULL[:, [1, 0, 3, 2]], "'bbox': row 1 [15.0, 10.0, 30.0, 40.0] is outside the image of 40 x 30 pixels"),
        (
            FULL - [[1.5, 0, 0, 0], [0, 0, 0, 0]],
            "'bbox': row 0 [-1.5, 0.0, 20.0, 7.5] is outside the image of 40 x 30 pixels",
        ),
        (FULL - [[0, 0, 0, 0], [0, 0, 38, 0]], "'bbox': row 1 is inverted, [10.0, 15.0, 2.0, 30.0]"),
        (FULL[:, :3], "'bbox' has shape (2, 3); expected 4 numbers for each of 2 regions"),
        (np.full((2, 4), np.nan), "'bbox': row 0 holds NaN or infinity"),
    ],
)
def test_boxes_that_are_not_in_pixels_of_the_image_are_named(tmp_path, capsys, boxes, message):
    assert convert_npz(tmp_path / "a", x=np.ones((2, DIM)), bbox=boxes, num_bbox=2, **SIZE) == 2
    assert f"a/a.npz: {message}" in capsys.readouterr().err


def test_boxes_of_a_rounding_beyond_the_image_stay_as_they_are(tmp_path):
    boxes = FULL + np.array([[-1, -0.5, 0, 0], [0, 0, 1, 1]], np.float32)
    assert convert_npz(tmp_path / "a", x=np.ones((2, DIM)), bbox=boxes, **SIZE) == 0
    assert_holds(FeatureStore(tmp_path / "a_store"), "a", {"boxes": boxes})


def test_legacy_boxes_thinner_than_a_pixel_become_flat(tmp_path):
    boxes = np.array([[5, 5, 4.5, 9], [1, 2, 3, 4]], np.float32)
    assert convert_npz(tmp_path / "a", x=np.ones((2, DIM)), bbox=boxes, **SIZE) == 0
    assert_holds(FeatureStore(tmp_path / "a_store"), "a", {"boxes": [[5, 5, 5, 9], [1, 2, 3, 4]]})


def test_normalised_boxes_become_pixels(tmp_path, capsys):
    """With the flag, and UNITER's by their name."""
    flag = ["--normalised_boxes"]
    extent = UNIT[:, 2:] - UNIT[:, :2]
    norm_bb = np.concatenate((UNIT, extent, extent[:, :1] * extent[:, 1:]), axis=1)
    features = image(0, count=2)["features"]
    assert convert_npz(tmp_path / "a", flag, x=features, bbox=UNIT, **SIZE) == 0
    assert convert_npz(tmp_path / "b", features=features, norm_bb=norm_bb, **SIZE) == 0
    for name in ("a_store", "b_store"):
        assert_holds(FeatureStore(tmp_path / name), "a", {"features": features, "boxes": FULL})
    assert convert_npz(tmp_path / "c", flag, x=features, bbox=UNIT) == 2
    assert "'bbox': boxes in units of the image, whose height and width are not beside them" in capsys.readouterr().err
    assert convert_npz(tmp_path / "d", features=features, norm_bb=FULL, **SIZE) == 2
    assert "'norm_bb': row 0 [0.0, 0.0, 20.0, 7.5] is not in 0..1" in capsys.readouterr().err
    assert convert_npz(tmp_path / "e", x=features, bbox=UNIT) == 2
    assert (
        "'bbox': all boxes lie in 0..1 (row 0: [0.0, 0.0, 0.5, 0.25]); expected pixels, or --normal"
        in capsys.readouterr().err
    )


def test_normalised_boxes_without_image_sizes_are_told_and_give_spatial_numbers(tmp_path, caplog):
    features, norm_bb = image(0, count=2)["features"], np.concatenate((UNIT, UNIT[:, 2:] - UNIT[:, :2]), axis=1)
    _warn_of_unit_boxes.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert convert_npz(tmp_path / "a", features=features, norm_bb=norm_bb) == 0
    assert "'norm_bb' holds boxes in units of the image, whose size is not beside them" in caplog.text
    assert list(FeatureStore(tmp_path / "a_store")["a"]) == ["visual_embeds"]
    assert convert_npz(tmp_path / "b", ["--spatial"], features=features, norm_bb=norm_bb) == 0
    expected = np.concatenate((features, norm_bb), axis=1)
    assert_holds(FeatureStore(tmp_path / "b_store"), "a", {"features": expected})


def test_npy_of_more_regions_than_numbers_needs_a_flag(tmp_path, capsys):
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "a.npy", np.arange(35.0).reshape(7, 5))
    argv = ["convert-features", str(tmp_path / "npy"), str(tmp_path / "store")]
    assert main(argv) == 2
    assert "npy/a.npy: 'features' has shape (7, 5), and nothing beside it tells" in capsys.readouterr().err
    assert main([*argv, "--features_first"]) == 0
    assert FeatureStore(tmp_path / "store")["a"]["visual_embeds"].shape == (5, 7)


def test_a_tsv_in_parts_is_one_source(tmp_path):
    (tmp_path / "parts").mkdir()
    for number in (1, 0):
        (tmp_path / "parts" / f"train.tsv.{number}").write_text(line(str(number), image(number)))
    (tmp_path / "parts" / "notes.1").write_text("not a part")
    store = convert_features(tmp_path / "parts", tmp_path / "store", dtype="float32", progress=False)
    assert sorted(store) == ["0", "1"]
    assert_holds(store, "1", {key: image(1)[key] for key in ("features", "boxes")})
    one = convert_features(tmp_path / "parts" / "train.tsv.1", tmp_path / "one", dtype="float32", progress=False)
    assert list(one) == ["1"]
    (tmp_path / "parts" / "train.tsv.2").write_text("cut off\n")
    with pytest.raises(ValueError, match=r"train.tsv.2: row 1: 1 columns; expected"):
        convert_features(tmp_path / "parts", tmp_path / "broken", progress=False)


OBJECTS = r"it holds Python objects \(pickle\)"


HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 2048), }"
HUGE = b"\x93NUMPY\x01\x00\x76\x00" + HEADER.ljust(117) + b"\n"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: np.save(path, np.zeros(5)), r"features are float64 \(5,\); expected numbers \(regions, dim\)"),
        (lambda path: np.save(path, np.array([["a", "b"]])), r"features are <U1 \(1, 2\); expected numbers"),
        (lambda path: path.write_bytes(b"no array"), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: np.save(path, {"image_feat": {1, 2}}), f"cannot be read: {OBJECTS}"),
        (lambda path: np.save(path, {"image_feat": 1}), r"features are int64 \(\); expected numbers \(regions, dim\)"),
        (lambda path: np.save(path, {"other": 1}), "no features among other; expected one of"),
        (
            lambda path: path.write_bytes(HUGE),
            r"cannot be read: an array of shape \(99999999999, 2048\) takes \d+ bytes, of which 0 are",
        ),
    ],
)
def test_a_broken_npy_is_named(tmp_path, write, message):
    np.save(tmp_path / "a.npy", image(0)["features"])
    write(tmp_path / "b.npy")
    with pytest.raises(ValueError, match=f"b.npy: {message}"):
        convert_features(tmp_path, tmp_path / "store", progress=False)


def huge_npz(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy", HUGE)


def npz_of_zeros(path):
    """200 MB in 200 kB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("features.npy", "w") as file:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (25600, 2048), }"
        file.write(b"\x93NUMPY\x01\x00\x76\x00" + header.ljust(117) + b"\n")
        for _ in range(200):
            file.write(bytes(1 << 20))


def cut_off_npz():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        whole = io.BytesIO()
        np.save(whole, image(0)["features"])
        archive.writestr("features.npy", whole.getvalue()[:-4])
    return content.getvalue()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: np.savez(path, boxes=np.zeros((2, 4))), "no features among boxes; expected one of"),
        (lambda path: np.savez(path, features=np.array([{}])), f"'features' cannot be read: {OBJECTS}"),
        (lambda path: path.write_bytes(b"PK\3\4 no archive"), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (
            lambda path: np.savez(path, features=np.zeros((2, DIM)), num_boxes=3),
            "'num_boxes' is 3 beside 'features' of 2 regions; expected as many",
        ),
        (
            lambda path: np.savez(path, features=np.zeros((2, DIM)), objects=["a", "b"]),
            "'objects' holds <U1; expected numb",
        ),
        (
            lambda path: np.savez(path, features=np.zeros((2, DIM)), num_boxes=[1, 2]),
            r"'num_boxes' has shape \(2,\); expec",
        ),
        (
            lambda path: np.savez(path, features=np.zeros((2, DIM)), img_h=np.nan, img_w=1),
            "'img_h' is nan; expected a whole",
        ),
        (
            huge_npz,
            r"'features' cannot be read: an array of shape \(99999999999, 2048\) takes \d+ bytes, of which 0 are",
        ),
        (
            npz_of_zeros,
            r"'features' cannot be read: 209715328 bytes of numbers in \d+ bytes of a file; expected features",
        ),
        (lambda path: path.write_bytes(cut_off_npz()), "'features' cannot be read: an array of shape"),
    ],
)
def test_a_broken_npz_is_named(tmp_path, write, message):
    np.savez(tmp_path / "a.npz", features=image(0)["features"], info=np.array([{"unused": "pickle"}]))
    write(tmp_path / "b.npz")
    with pytest.raises(ValueError, match=f"b.npz: {message}"):
        convert_features(tmp_path, tmp_path / "store", progress=False)


# The authors' chunks


@pytest.mark.parametrize("new_format", [True, False])
def test_chunks_of_the_authors(tmp_path, new_format):
    chunk = {}
    for number in range(3):
        arrays = image(number)
        tensors = (torch.from_numpy(arrays[key]) for key in ("features", "boxes", "scores"))
        chunk[f"dev-{number}-img1.png" + ".npz" * (number == 1)] = tuple(tensors)
    torch.save(chunk, tmp_path / "features_chunk_dev.th", _use_new_zipfile_serialization=new_format)
    store = convert_features(tmp_path / "features_chunk_dev.th", tmp_path / "store", dtype="float32", progress=False)
    for number in range(3):
        assert_holds(store, f"dev-{number}-img1", {key: image(number)[key] for key in ("features", "boxes", "scores")})


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_chunks_of_arrays(tmp_path, new_format, module):
    """Of any precision, byte order and layout; as NumPy 1 and 2 name them."""
    one, two = image(0), image(1)
    chunk = {
        "a": (one["features"], one["boxes"].astype(">f8"), one["scores"]),
        "b": {"features": np.asfortranarray(two["features"]), "boxes": torch.from_numpy(two["boxes"])},
    }
    path = tmp_path / "chunk.th"
    torch.save(chunk, path, _use_new_zipfile_serialization=new_format)
    if module == "numpy.core":
        rename_in_pickle(path, b"numpy._core.multiarray", b"numpy.core.multiarray")
    store = convert_features(path, tmp_path / "store", dtype="float32", progress=False)
    assert_holds(store, "a", {key: one[key] for key in ("features", "boxes", "scores")})
    assert_holds(store, "b", {key: two[key] for key in ("features", "boxes")})


def rename_in_pickle(path, old, new):
    if not zipfile.is_zipfile(path):
        path.write_bytes(path.read_bytes().replace(old, new))
        return
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)


RECONSTRUCT = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
RAW = b"c_codecs\nencode\n(X\x08\x00\x00\x00AAAAAAAAX\x06\x00\x00\x00latin1tR"
DTYPE = b"cnumpy\ndtype\n(X\x02\x00\x00\x00%s\x89\x88tR"


def built(dtype, order=b"<", shape=b"K\x01", data=RAW):
    """A pickled array of raw bytes, in the opcodes that torch reads."""
    order = b"(K\x03X\x01\x00\x00\x00" + order + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return RECONSTRUCT + b"(K\x01(" + shape + b"t" + DTYPE % dtype + order + b"\x89" + data + b"tb"


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (built(b"O8"), "dtype 'O8'; expected numbers"),
        (built(b"V8"), "dtype 'V8'; expected numbers"),
        (built(b"f8", order=b"x"), "an unknown byte order"),
        (built(b"f8", data=b"]"), "list as the content of an array; expected bytes"),
        (built(b"f8", shape=b"J\xff\xff\xff\x7f"), r"8 bytes for an array \(2147483647,\) of float64"),
        (RECONSTRUCT, "an array without content"),
        (DTYPE % b"f8", "a type, a function"),
        (b"cnumpy\nndarray\n(K\x09tR", "takes 1 positional argument"),
        (b"cnumpy\nndarray\n", "a type, a function"),
        (
            b"cos\nsystem\n(X\x02\x00\x00\x00lstR",
            "it refers to os.system, which could run code|whose module os is blocked",
        ),
        (b"cpathlib\nPath\n(X\x01\x00\x00\x00.tR", "it refers to pathlib.Path, which could run code"),
    ],
)
def test_hostile_arrays_of_a_chunk_are_refused(tmp_path, pickled, message):
    path = tmp_path / "evil.th"
    write_pickle_of_chunk(path, b"\x80\x02}X\x01\x00\x00\x00a" + pickled + b"s.")
    with pytest.raises(
        ValueError, match=f"evil.th: not a chunk of tensors and arrays of numbers .*({message})"
    ) as caught:
        convert_features(path, tmp_path / "store", progress=False)
    assert "\x1b" not in str(caught.value) and "trust" not in str(caught.value)
    assert np.dtype("f8").byteorder == "=" and np.array([1.0]).tobytes() == b"\0\0\0\0\0\0\xf0?"


def test_what_torch_did_not_write_is_refused_by_its_beginning(tmp_path):
    (tmp_path / "evil.th").write_bytes(b"]" * 2_000_000)  # instructions to torch, which took seconds
    with pytest.raises(ValueError, match=r"evil.th: not a chunk of tensors and .* \(not written by torch.save\)"):
        convert_features(tmp_path / "evil.th", tmp_path / "store", progress=False)


def write_pickle_of_chunk(path, pickled):
    """A file of `torch.save` whose pickle is this one."""
    torch.save({"a": 1}, path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, pickled if name.endswith("data.pkl") else content)


def test_repeated_content_of_a_chunk_takes_no_more_memory_or_time(tmp_path):
    """Arrays of one content by reference, and lists that hold one another twice."""
    content = RAW.replace(b"X\x08\x00\x00\x00AAAAAAAA", b"X\x00\x00\x10\x00" + b"A" * (1 << 20))
    first = built(b"u1", order=b"|", shape=b"J\x00\x00\x10\x00", data=content + b"q\x01")
    again = built(b"u1", order=b"|", shape=b"J\x00\x00\x10\x00", data=b"h\x01")
    write_pickle_of_chunk(tmp_path / "a.th", b"\x80\x02](" + first + again * 300 + b"e.")
    tracemalloc.start()
    try:
        arrays = load_chunk(tmp_path / "a.th")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert len(arrays) == 301 and all(array.shape == (1 << 20,) for array in arrays)
    lists: list = []
    for _ in range(100):
        lists = [lists, lists]
    torch.save(lists, tmp_path / "b.th")
    found = load_chunk(tmp_path / "b.th")
    assert found[0] is found[1]


@pytest.mark.parametrize("new_format", [True, False])
def test_tensors_larger_than_what_is_stored_of_them_are_refused(tmp_path, new_format):
    torch.save(
        {"a": (torch.ones(1, 1).expand(10**6, 2048),)}, tmp_path / "a.th", _use_new_zipfile_serialization=new_format
    )
    with pytest.raises(
        ValueError, match=r"a.th: .*a tensor of shape \(1000000, 2048\) in 4 bytes; expected all its numbers"
    ):
        convert_features(tmp_path / "a.th", tmp_path / "store", progress=False)


def test_a_chunk_that_was_compressed_again_is_refused(tmp_path):
    torch.save({"a": (torch.ones(2, DIM),)}, tmp_path / "a.th")
    with zipfile.ZipFile(tmp_path / "a.th") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "a.th", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with pytest.raises(
        ValueError, match=r"a.th: .*an archive that was compressed again; expected it as torch.save wrote it"
    ):
        convert_features(tmp_path / "a.th", tmp_path / "store", progress=False)


def test_a_hostile_byte_order_changes_nothing_for_others(tmp_path):
    path = tmp_path / "a.th"
    torch.save({"a": (image(0)["features"].astype(">f8"),)}, path)
    convert_features(path, tmp_path / "store", progress=False)
    assert np.dtype("f8").isnative and np.array([1.0]).tobytes() == b"\0\0\0\0\0\0\xf0?"


class Hostile:
    """Would write a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (Path(self.path), "ran"))


@pytest.mark.parametrize("new_format", [True, False])
def test_a_hostile_chunk_is_refused_and_not_run(tmp_path, new_format):
    chunk = {"a": (torch.zeros(2, DIM),), "b": Hostile(tmp_path / "ran.txt")}
    torch.save(chunk, tmp_path / "evil.th", _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r"evil.th: not a chunk of tensors"):
        convert_features(tmp_path / "evil.th", tmp_path / "store", progress=False)
    assert not (tmp_path / "ran.txt").exists()


def test_a_hostile_array_is_refused_and_not_run(tmp_path):
    array = np.array([Hostile(tmp_path / "ran.txt")], dtype=object)
    np.save(tmp_path / "evil.npy", array)
    with pytest.raises(ValueError, match=r"evil.npy: cannot be read: it holds Python objects \(pickle\)"):
        convert_features(tmp_path, tmp_path / "store", kind="npy", progress=False)
    assert not (tmp_path / "ran.txt").exists()


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ([1], "holds a list; expected features by image name"),
        ({"a": (torch.zeros(2, DIM),), "b": 1}, r"image 'b': holds a int; expected \(features, boxes, confidence\)"),
        (
            {"a": (torch.zeros(2, DIM), torch.zeros(3, 4))},
            r"image 'a': 'boxes' has shape \(3, 4\) beside 'features' of 2 regions; expected as many",
        ),
        (
            {"a": (torch.zeros(2, DIM),), "a.npz": (torch.zeros(2, DIM),)},
            "image 'a.npz': image a twice; expected each image once",
        ),
    ],
)
def test_a_chunk_of_something_else_is_named(tmp_path, chunk, message):
    torch.save(chunk, tmp_path / "a.th")
    with pytest.raises(ValueError, match=f"a.th: {message}"):
        convert_features(tmp_path / "a.th", tmp_path / "store", progress=False)


# HDF5


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


def test_hdf5_of_lxmert(tmp_path, h5py):
    images = [image(number, count=4) for number in range(3)]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for key, name in (
            ("features", "features"),
            ("boxes", "boxes"),
            ("class_ids", "objects_id"),
            ("scores", "objects_conf"),
            ("attribute_ids", "attrs_id"),
            ("attribute_scores", "attrs_conf"),
        ):
            file[name] = np.stack([arrays[key] for arrays in images])
    (tmp_path / "a.json").write_text(json.dumps([{"img_id": f"i{n}", "img_h": 30, "img_w": 40} for n in range(3)]))
    store = convert_features(tmp_path / "a.h5", tmp_path / "store", dtype="float32", progress=False)
    for number, arrays in enumerate(images):
        assert_holds(store, f"i{number}", arrays)
        assert store[f"i{number}"]["image_size"].tolist() == [30, 40]


def test_hdf5_of_ban_has_regions_of_all_images_in_a_row(tmp_path, h5py):
    images = [image(number) for number in range(3)]
    ends = np.cumsum([len(arrays["scores"]) for arrays in images])
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["image_features"] = np.concatenate([arrays["features"] for arrays in images])
        file["image_bb"] = np.concatenate([arrays["boxes"] for arrays in images])
        file["spatial_features"] = np.zeros((ends[-1], 6))
        file["pos_boxes"] = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
        file["image_ids"] = np.array([36979, 65567, 81641])
    store = convert_features(tmp_path / "a.hdf5", tmp_path / "store", dtype="float32", progress=False)
    for image_id, arrays in zip((36979, 65567, 81641), images, strict=True):
        assert_holds(store, image_id, {key: arrays[key] for key in ("features", "boxes")})
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["pos_boxes"][1] = [2, 99]
    with pytest.raises(ValueError, match=r"a.hdf5: row 1: 'pos_boxes' says 2 to 99 of \d+ regions"):
        convert_features(tmp_path / "a.hdf5", tmp_path / "other", progress=False)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([[0, 3], [2, 5]], "'pos_boxes' gives regions 2 to 3 to two images"),
        ([[0, 2], [3, 5]], "'pos_boxes' gives no image to 2 to 3"),
        ([[2, 4], [0, 2]], "'pos_boxes' gives no image to 4 to 5"),
        ([[0, 2.5], [2.5, 5]], "'pos_boxes' holds float64; expected whole numbers"),
    ],
)
def test_hdf5_regions_have_one_image_each(tmp_path, h5py, places, message):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["image_features"], file["pos_boxes"], file["image_ids"] = np.ones((5, DIM)), np.array(places), [7, 8]
    with pytest.raises(ValueError, match=f"a.hdf5: {message}"):
        convert_features(tmp_path / "a.hdf5", tmp_path / "store")


def test_hdf5_ids_are_no_real_numbers(tmp_path, h5py):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["features"], file["image_ids"] = np.ones((1, 5, DIM)), np.float32([123456789])
    with pytest.raises(ValueError, match="a.hdf5: 'image_ids' holds float32; expected whole numbers or texts"):
        convert_features(tmp_path / "a.hdf5", tmp_path / "store")


def test_hdf5_with_a_group_for_each_image(tmp_path, h5py):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number in range(3):
            for key, value in image(number).items():
                file[f"i{number}/{key}"] = value
    store = convert_features(tmp_path / "a.h5", tmp_path / "store", dtype="float32", progress=False)
    for number in range(3):
        assert_holds(store, f"i{number}", image(number))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "no names of images; expected 'image_ids' in it, or a .json or .txt file beside it"),
        ("a\nb\n", "2 names for 3 images"),
        ("a\nb\na\n", "row 2: image a twice; expected each image once"),
    ],
)
def test_hdf5_without_names(tmp_path, h5py, names, message):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.ones((3, 2, DIM))
    if names:
        (tmp_path / "a.txt").write_text(names)
    with pytest.raises(ValueError, match=f"a.h5: {message}"):
        convert_features(tmp_path / "a.h5", tmp_path / "store", progress=False)


def damaged_gzip(path, h5py):
    with h5py.File(path, "w") as file:
        features = np.random.default_rng(0).random((2, 50, 60))
        file.create_dataset("features", data=features, compression="gzip", chunks=(1, 50, 60))
        file["image_ids"] = [b"a", b"b"]
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 5000] = bytes(5000)
    path.write_bytes(content)


def hdf5_of(**arrays):
    def write(path, h5py):
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file[name] = values

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (damaged_gzip, r"row \d: cannot be read \(OSError: "),
        (hdf5_of(features=np.zeros((2, 3, DIM)), image_ids=[b"\xff", b"b"]), r"cannot be read \(UnicodeDecodeError"),
        (hdf5_of(features=1.0, image_ids=[b"a"]), r"cannot be read \(TypeError: .*scalar dataset"),
        (
            hdf5_of(image_features=np.zeros((5, DIM)), pos_boxes=[0, 2], image_ids=[b"a", b"b"]),
            r"'pos_boxes' has shape \(2,\); expected \(images, 2\)",
        ),
    ],
)
def test_a_damaged_hdf5_is_named(tmp_path, h5py, write, message):
    write(tmp_path / "a.h5", h5py)
    with pytest.raises(ValueError, match=f"a.h5: {message}"):
        convert_features(tmp_path / "a.h5", tmp_path / "store", progress=False)


def hdf5_in_chunks(path, h5py, rows, **options):
    """Images of three regions, padded to 4, of which only some rows are written; a chunk is one region."""
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", (3, 4, DIM), "f4", chunks=(1, 1, DIM), **options)
        for row in rows:
            features[row, :3] = row + 1
        file["num_boxes"], file["image_ids"] = [3, 3, 3], [b"a", b"b", b"c"]


def test_hdf5_padding_need_not_be_written(tmp_path, h5py):
    hdf5_in_chunks(tmp_path / "a.h5", h5py, range(3), compression="gzip")
    store = convert_features(tmp_path / "a.h5", tmp_path / "store", progress=False)
    for row, name in enumerate("abc"):
        assert_holds(store, name, {"features": np.full((3, DIM), row + 1)})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path, h5py: hdf5_in_chunks(path, h5py, [0, 2]),
            r"row 1: 'features' was never written from \(1, 0, 0\) on",
        ),
        (
            lambda path, h5py: h5py.File(path, "w").create_dataset("a/features", (3, 4), "f4").file.close(),
            "group 'a': 'features' was n",
        ),
        (
            hdf5_of(features=np.stack([np.ones((3, DIM)), np.zeros((3, DIM))]), image_ids=[b"a", b"b"]),
            "row 1: 'features' holds 0.0 everywhere, as if never written",
        ),
        (
            hdf5_of(features=np.ones((2, 3, DIM)), boxes=np.ones((1, 3, 4)), image_ids=[b"a", b"b"]),
            r"'boxes' has shape \(1, 3, 4\) beside 2 images; expected as many",
        ),
        (
            hdf5_of(image_features=np.ones((5, DIM)), image_bb=np.ones((4, 4)), pos_boxes=[[0, 5]], image_ids=[b"a"]),
            r"'image_bb' has shape \(4, 4\) beside 5 rows of 'image_features'; expected as many",
        ),
    ],
)
def test_hdf5_that_was_not_written_to_its_end_is_named(tmp_path, h5py, write, message):
    write(tmp_path / "a.h5", h5py)
    with pytest.raises(ValueError, match=f"a.h5: {message}"):
        convert_features(tmp_path / "a.h5", tmp_path / "store", progress=False)


def test_hdf5_that_promises_more_than_it_holds_takes_no_memory(tmp_path, h5py):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", (1, 10**7, 2048), "f4", chunks=(1, 1, 2048))[0, 0] = 1
        file["image_ids"] = [b"a"]
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match=r"a.h5: row 0: 'features' cannot be read: 81920000000 bytes of numbers in \d+ b"
        ):
            convert_features(tmp_path / "a.h5", tmp_path / "store", progress=False)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_what_is_no_hdf5_is_named(tmp_path, h5py):
    (tmp_path / "a.h5").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match="a.h5: not an HDF5 file, or damaged"):
        convert_features(tmp_path / "a.h5", tmp_path / "store", progress=False)


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"HDF5 needs h5py: pip install 'modeling-visualbert\[hdf5\]'"):
        convert_features(tmp_path / "a.h5", tmp_path / "store", progress=False)


# Around them


def test_what_cannot_be_guessed_is_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        convert_features(tmp_path / "nowhere", tmp_path / "store")
    with pytest.raises(ValueError, match="holds no features that are known; say which kind"):
        convert_features(tmp_path, tmp_path / "store")
    (tmp_path / "a.npy").touch()
    (tmp_path / "a.npz").touch()
    with pytest.raises(ValueError, match="holds npy and npz; say which kind to convert"):
        convert_features(tmp_path, tmp_path / "store")


def test_the_command(tmp_path, capsys):
    write_tsv(tmp_path / "a.tsv")
    argv = ["convert-features", str(tmp_path / "a.tsv"), str(tmp_path / "store"), "--ids", "number"]
    assert main([*argv, "--detector", "bottom-up attention"]) == 0
    assert "store: regions of 3 images, dim 5, float16" in capsys.readouterr().out
    store = FeatureStore(tmp_path / "store", expect_dim=5, expect_detector="any")  # what made it is not known exactly
    assert store.detector == {"name": "bottom-up attention", "fingerprint": None}
    assert main(argv) == 2
    assert "store exists; remove it or choose another folder" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_ten_times_at_random(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("".join(line(f"i{n}", image(n)) for n in range(600)))
    convert_features(path, tmp_path / "whole", images_per_shard=7, progress=False)
    argv = ["-m", "modeling_visualbert.cli", "convert-features", str(path), str(tmp_path / "store")]
    rng, kills = np.random.default_rng(0), 0
    while not (tmp_path / "store").exists():
        process = subprocess.Popen(
            [sys.executable, *argv, "--images_per_shard", "7"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        parts = partial_folder(tmp_path / "store") / "parts"
        before = len(list(parts.glob("*")))
        while kills < 10 and process.poll() is None and len(list(parts.glob("*"))) == before:
            time.sleep(0.002)  # until it works
        if kills < 10:
            time.sleep(rng.uniform(0.0, 0.03))
            process.kill()
            kills += 1
        assert process.wait() in (0, -9)
    assert kills == 10
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


# LMDB


@pytest.fixture
def lmdb():
    return pytest.importorskip("lmdb")


def write_lmdb(lmdb, folder, values, keys=None):
    """As MMF's `lmdb_conversion.py` writes it; values are pickled unless they are bytes."""
    environment = lmdb.open(str(folder), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value if isinstance(value, bytes) else pickle.dumps(value))
        listed = [key.encode() for key in values] if keys is None else keys
        if listed is not False:
            transaction.put(b"keys", pickle.dumps(listed))
    environment.close()
    return folder


def item_of(number, **changes):
    return {
        "feature_path": f"train2014/p_{number}",
        "features": image(number)["features"],
        **info_of(number),
        **changes,
    }


@pytest.mark.parametrize("source", ["detectron.lmdb", "detectron.lmdb/data.mdb", "."])
@pytest.mark.parametrize("listed", [True, False])
def test_lmdb_of_mmf(tmp_path, lmdb, source, listed):
    values = {f"train2014/p_{number}": item_of(number) for number in (7, 3, 12)}
    (tmp_path / "in").mkdir()
    write_lmdb(lmdb, tmp_path / "in" / "detectron.lmdb", values, None if listed else False)
    store = convert_features(
        tmp_path / "in" / source, tmp_path / "store", ids="number", dtype="float32", progress=False
    )
    assert store.info["source"]["kind"] == "lmdb" and sorted(store) == ["12", "3", "7"]
    for number in (3, 7, 12):
        assert_is_that_of_mmf(store, number, number)


def test_lmdb_of_vilbert(tmp_path, lmdb):
    arrays = image(1)
    value = {"image_id": "9", "image_h": 30, "image_w": 40, "num_boxes": 3}
    value |= {name: coded(arrays[name]).encode() for name in ("features", "boxes")}
    write_lmdb(lmdb, tmp_path / "a", {"9": value})
    store = convert_features(tmp_path / "a", tmp_path / "store", dtype="float32", progress=False)
    assert_holds(store, "9", {name: arrays[name] for name in ("features", "boxes")})
    write_lmdb(lmdb, tmp_path / "b", {"9": {**value, "num_boxes": 4}})
    with pytest.raises(ValueError, match=r"key '9': 'features' has 15 numbers for 4 boxes; expected a multiple"):
        convert_features(tmp_path / "b", tmp_path / "other", progress=False)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (item_of(1, num_boxes=8), "'num_boxes' is 8 beside 'features' of 3 regions"),
        (b"no pickle", "not a pickle that can be read safely"),
        (pickle.dumps(item_of(1))[:-40], "not a pickle that can be read safely"),
        (["a", "list"], "holds a list; expected a dict of arrays"),
        (item_of(1, bbox=Path("evil")), "it refers to pathlib.* expected arrays and plain containers only"),
        ({"feature_path": "b"}, "no features among feature_path"),
    ],
)
def test_a_bad_value_of_an_lmdb_is_named(tmp_path, lmdb, value, message, capsys):
    source = write_lmdb(lmdb, tmp_path / "a", {"p_1": item_of(0), "p_2": value, "p_3": item_of(2)})
    with pytest.raises(ValueError, match=rf"^{source}/data.mdb: key 'p_2': [^\n]*{message}"):
        convert_features(source, tmp_path / "store", progress=False)
    command = ["convert-features", str(source), str(tmp_path / "other"), "--skip_bad_records"]
    assert main(command) == 0
    assert f"1 bad records were left out (p_2, ...), see {tmp_path}/other/failed.jsonl" in capsys.readouterr().err
    assert list(FeatureStore(tmp_path / "other")) == ["p_1", "p_3"]


def test_an_lmdb_that_lacks_something_is_named(tmp_path, lmdb, monkeypatch):
    source = write_lmdb(lmdb, tmp_path / "a", {"p": item_of(0)}, keys=[b"p", b"q"])
    with pytest.raises(ValueError, match=r"data.mdb: key 'q': listed in 'keys', but not there"):
        convert_features(source, tmp_path / "store", progress=False)
    source = write_lmdb(lmdb, tmp_path / "c", {"p": item_of(0), "q": item_of(1)}, keys=[b"p"])
    with pytest.raises(ValueError, match=r"data.mdb: key 'q' is not listed in 'keys'; expected all keys"):
        convert_features(source, tmp_path / "store", progress=False)
    source = write_lmdb(lmdb, tmp_path / "b", {"p": item_of(0)}, keys={"p": 1})
    with pytest.raises(ValueError, match=r"data.mdb: 'keys' holds dict; expected a list of keys"):
        convert_features(source, tmp_path / "store", progress=False)
    data = source / "data.mdb"
    data.write_bytes(data.read_bytes()[:9000])
    with pytest.raises(ValueError, match=r"data.mdb: 9000 bytes; expected \d+ \(is it cut off\?\)"):
        convert_features(source, tmp_path / "store", progress=False)
    data.write_bytes(b"something else" * 9999)
    with pytest.raises(ValueError, match=r"data.mdb: not an LMDB file, or damaged"):
        convert_features(source, tmp_path / "store", progress=False)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ValueError, match=r"a: LMDB needs lmdb: pip install 'modeling-visualbert\[lmdb\]'$"):
        convert_features(tmp_path / "a", tmp_path / "store", progress=False)


# Parts, and bad records


def write_parts(folder, numbers, name="genome.tsv"):
    folder.mkdir(exist_ok=True)
    for number in numbers:
        (folder / f"{name}.{number}").write_text(line(f"p_{number}", image(number)))
    return folder


@pytest.mark.parametrize("source", ["", "genome.tsv"])
@pytest.mark.parametrize("numbers", [range(3), range(1, 12)])
def test_a_tsv_in_parts(tmp_path, source, numbers, caplog):
    folder = write_parts(tmp_path / "parts", numbers)
    (folder / "._genome.tsv.0").write_bytes(b"of macOS")
    (tmp_path / "more").mkdir()
    if not source:
        write_tsv(tmp_path / "more" / "val.tsv", ["q_1"])
        (folder / "linked").symlink_to(tmp_path / "more")
    store = convert_features(folder / source, tmp_path / "store", dtype="float32", progress=False)
    assert set(store) == {f"p_{number}" for number in numbers} | ({"q_1"} if not source else set())
    assert not caplog.records


def test_parts_that_are_missing_or_left_out_are_told(tmp_path, caplog):
    folder = write_parts(tmp_path / "parts", [0, 1, 3])
    with pytest.raises(ValueError, match=r"genome.tsv: part genome.tsv.2 is missing; expected all from 0 to 3"):
        convert_features(folder / "genome.tsv", tmp_path / "store", progress=False)
    with pytest.raises(ValueError, match=r"genome.tsv: part genome.tsv.2 is missing; expected all from 0 to 3"):
        convert_features(tmp_path, tmp_path / "store", progress=False)
    store = convert_features(folder / "genome.tsv.1", tmp_path / "store", progress=False)
    assert list(store) == ["p_1"]
    assert "genome.tsv.1: one of 3 parts; give the folder, or genome.tsv, to convert all of them" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"other.tsv: no such file or folder"):
        convert_features(folder / "other.tsv", tmp_path / "store", progress=False)


def broken_records(folder):
    """Ten images, of which three are broken and one occurs twice."""
    lines = [line(f"p_{number}", image(number)) for number in range(10)]
    lines[0] = lines[0][:-30] + "\n"  # the first one, from which the length of features is learned
    lines[3] = "p_3\tcut off\n"
    lines[6] = line("p_6", image(6), boxes=coded(np.full((2, 4), np.nan, np.float32)))
    lines[8] = line("p_1", image(8))
    (folder / "a.tsv").write_text("".join(lines))
    return folder / "a.tsv", {
        "p_0": "row 1: 'features': ",
        "p_3": "row 4: 2 columns; expected",
        "p_6": "row 7: 'boxes': row 0 holds NaN or infinity",
        "p_1": "image 'p_1' occurs twice",
    }


@pytest.mark.parametrize("images_per_shard", [2, 1000])
def test_bad_records_are_left_out_and_listed(tmp_path, images_per_shard, capsys):
    source, reasons = broken_records(tmp_path)
    with pytest.raises(ValueError, match="a.tsv: row 1: 'features'"):
        convert_features(source, tmp_path / "store", progress=False)
    command = ["convert-features", str(source), str(tmp_path / "store"), "--images_per_shard", str(images_per_shard)]
    assert main([*command, "--skip_bad_records"]) == 0
    assert f"4 bad records were left out (p_0, ...), see {tmp_path}/store/failed.jsonl" in capsys.readouterr().err
    store = FeatureStore(tmp_path / "store")
    store.verify()
    assert sorted(store) == ["p_1", "p_2", "p_4", "p_5", "p_7", "p_9"]
    listed = [json.loads(text) for text in (tmp_path / "store" / "failed.jsonl").read_text().splitlines()]
    assert [record["image_id"] for record in listed] == list(reasons)
    for record in listed:
        assert reasons[record["image_id"]] in record["reason"]
    assert_holds(FeatureStore(tmp_path / "store"), "p_9", {"scores": image(9)["scores"]})


def test_conversion_without_bad_records_goes_on_after_an_interruption(tmp_path, monkeypatch):
    source, _ = broken_records(tmp_path)
    options = {"images_per_shard": 2, "skip_bad_records": True, "progress": False}
    convert_features(source, tmp_path / "whole", **options)
    write_shard = StoreDraft.write_shard

    def fail(draft, number, *args):
        if number == 3:
            raise KeyboardInterrupt
        write_shard(draft, number, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreDraft, "write_shard", fail)
        convert_features(source, tmp_path / "store", **options)
    convert_features(source, tmp_path / "store", **options)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_bad_records_may_be_left_out_after_they_stopped_a_run_but_not_the_reverse(tmp_path, monkeypatch):
    rows = [line(f"p_{number}", image(number)) for number in range(6)]
    (tmp_path / "a.tsv").write_text("".join([*rows[:4], rows[4][:-30] + "\n", *rows[5:]]))
    options = {"images_per_shard": 2, "progress": False}
    with pytest.raises(ValueError, match="a.tsv: row 5: 'features'"):
        convert_features(tmp_path / "a.tsv", tmp_path / "store", **options)
    store = convert_features(tmp_path / "a.tsv", tmp_path / "store", skip_bad_records=True, **options)
    assert len(store) == 5
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreDraft, "finish", lambda draft, number: (_ for _ in ()).throw(KeyboardInterrupt))
        convert_features(tmp_path / "a.tsv", tmp_path / "other", skip_bad_records=True, **options)
    with pytest.raises(
        ValueError, match="other.partial: bad records were left out of shard 2; leave them out again, or re"
    ):
        convert_features(tmp_path / "a.tsv", tmp_path / "other", **options)


def test_nothing_but_bad_records_is_refused(tmp_path):
    (tmp_path / "a.tsv").write_text("p_1\n" * 3)
    with pytest.raises(ValueError, match="a.tsv: row 1: 1 columns; expected"):
        convert_features(tmp_path / "a.tsv", tmp_path / "store", skip_bad_records=True, progress=False)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("kind", ["npz", "npy", "th"])
def test_bad_files_are_left_out_and_listed(tmp_path, kind):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        arrays = {"features": image(number)["features"]}
        if kind == "npz":
            np.savez(folder / f"p-{number}.npz", **arrays)
        elif kind == "npy":
            np.save(folder / f"p-{number}.npy", arrays["features"])
        else:
            torch.save({f"p-{number}": (arrays["features"],)}, folder / f"p-{number}.th")
    (folder / f"p-1.{kind}").write_bytes(b"broken")
    (folder / f"cover.{kind}").write_bytes((folder / f"p-2.{kind}").read_bytes())  # no number; of `.th`, an image twice
    store = convert_features(folder, tmp_path / "store", ids="number", skip_bad_records=True, progress=False)
    assert sorted(store) == ["0", "2", "3"]
    first, second = (tmp_path / "store" / "failed.jsonl").read_text().splitlines()
    told = [first, second]
    assert sum(f"p-1.{kind}" in text for text in told) == 1
    assert any("does not end in a number" in text or "occurs twice" in text for text in told)


def test_a_list_was_expected_beside_an_hdf5_file(tmp_path, h5py):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.ones((2, 3, DIM), np.float32)
    (tmp_path / "a.json").write_text('{"img_id": 1, "img_h": 2}')
    with pytest.raises(
        ValueError, match=r"a.json: found a record with keys 'img_id', 'img_h'; expected a list of names"
    ):
        convert_features(tmp_path / "a.h5", tmp_path / "store", progress=False)
