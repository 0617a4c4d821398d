"""Published detectors -> ours: recorded weights under every spelling, published sizes tensor by tensor, files to refuse."""

import json
import pickle
import re
import shutil
from collections import OrderedDict

import numpy as np
import pytest
import torch
import yaml
from detector_golden import C4, COCO, VCR, VG, detector, golden, published_shapes
from helpers import inputs_for, tiny_model

from modeling_visualbert import RegionDetector, RegionDetectorConfig, RegionDetectorImageProcessor
from modeling_visualbert.cli import main
from modeling_visualbert.convert.checkpoint_files import summarise
from modeling_visualbert.convert.detector_families import FAMILIES, _longest_suffix
from modeling_visualbert.convert.region_detector import (
    _config,
    _depths,
    _sizes_from_shapes,
    convert_region_detector,
    detector_from_weights,
    load_arrays,
    name_outputs,
)
from modeling_visualbert.convert.visualbert import convert_original_checkpoint
from modeling_visualbert.data.plain_yaml import parse_yaml

TOLERANT = {"canonical_scale": 44}  # of the recorded pyramids; no yaml tells it


FAMILY = {family.name: family for family in FAMILIES}


def original_names(config, family, names):
    return FAMILY[family].original_names(names, config.depths)


def with_detectron_names():
    return {key: value.numpy() for key, value in golden(COCO).group("state_dict/").items()}


def write_frcnn(folder):
    torch.save(OrderedDict(golden(C4).group("state_dict/")), folder / "pytorch_model.bin")
    (folder / "config.yaml").write_text(yaml.safe_dump(golden(C4).config["source_config"]))
    return folder


def write_maskrcnn(folder, spelling="state_dict/", prefix=""):
    weights = {prefix + key: value for key, value in golden(VG).group(spelling).items()}
    weights["roi_heads.box.predictor.attr_linear1.weight"] = torch.ones(2, 3)  # only used in training
    torch.save({"model": weights, "iteration": 7}, folder / "detectron_model.pth")
    (folder / "detectron_model.yaml").write_text(yaml.safe_dump(golden(VG).config["source_config"]))
    return folder / "detectron_model.pth"


def write_detectron(folder, protocol=2, **extra):
    blobs = {**with_detectron_names(), "conv1_w_momentum": np.zeros((8, 3, 7, 7), np.float32), **extra}
    content = {"blobs": blobs, "cfg": yaml.safe_dump(golden(COCO).config["source_config"])}
    (folder / "model_final.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    return folder / "model_final.pkl"


def assert_same_network(found, name):
    expected = detector(name).state_dict()
    assert found.state_dict().keys() == expected.keys()
    for key, value in found.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0, msg=key)


# --------------------------------------------------------------------------------------------------- files that convert


def test_frcnn_folder(tmp_path):
    found, processor, report = convert_region_detector(write_frcnn(tmp_path))
    assert_same_network(found, C4)
    assert found.config.to_dict() == detector(C4).config.to_dict()
    assert found.config.max_regions == 24 and not found.training
    assert dict(processor.size) == {"shortest_edge": 208, "longest_edge": 320}
    skipped = {item.original for item in report if item.status == "skipped"}
    assert all(name.endswith("num_batches_tracked") or "cell_anchors" in name for name in skipped)
    assert {item.status for item in report} == {"loaded", "skipped"}
    assert len(report) == len(golden(C4).group("state_dict/"))


def test_ancestor_of_frcnn(tmp_path):
    """The pickle of arrays that the Hub's file was made of."""
    arrays = {k: v.numpy() for k, v in golden(C4).group("state_dict/").items() if "num_batches" not in k}
    (tmp_path / "faster_rcnn_from_caffe_attr.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol=2))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(golden(C4).config["source_config"]))
    found, _, _ = convert_region_detector(tmp_path / "faster_rcnn_from_caffe_attr.pkl")
    assert_same_network(found, C4)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_maskrcnn_with_full_names(tmp_path, prefix):
    found, processor, report = convert_region_detector(write_maskrcnn(tmp_path, prefix=prefix), **TOLERANT)
    assert_same_network(found, VG)
    assert dict(processor.size) == {"shortest_edge": 800, "longest_edge": 1333}
    (attribute,) = (item for item in report if "attr_linear1" in item.original)
    assert attribute.status == "skipped" and attribute.shape == (2, 3)
    assert not [item for item in report if item.status == "new"]


def test_maskrcnn_with_converted_names(tmp_path):
    """No prefixes and no statistics: the longest key that ends the full name is meant, statistics stay 0 and 1."""
    path = write_maskrcnn(tmp_path, "state_dict_converted/")
    found, _, report = convert_region_detector(path, **TOLERANT)
    assert_same_network(found, VG)
    new = [item.name for item in report if item.status == "new"]
    assert new and all(name.endswith(("running_mean", "running_var")) for name in new)
    names = published_shapes(VG)["X-101-64x4d full name to converted name"]
    assert names["backbone.body.layer1.0.bn1.running_mean"] is None


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_detectron_pickle(tmp_path, protocol):
    found, _, report = convert_region_detector(write_detectron(tmp_path, protocol), min_regions=24, max_regions=24)
    assert_same_network(found, COCO)
    assert found.config.canonical_scale == 44 and found.config.rpn_total == 60
    by_name = {item.original: item for item in report}
    assert by_name["conv1_w_momentum"].status == "skipped"
    assert by_name["fc6_w"].name == "head.fc6.weight"


def test_python_2_strings_are_read(tmp_path):
    """Detectron's pickles come from Python 2: names and array buffers are byte strings, read as latin1."""
    path = tmp_path / "old.pkl"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n"
    array += b"(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00\\xc0'\ntb"
    path.write_bytes(b"(dS'blobs'\n(dS'a_w'\n" + array + b"ss.")
    assert load_arrays(path)["blobs"]["a_w"].tolist() == [1.0, -2.0]


def vcr_weights():
    return {f"detector.{key}": value for key, value in golden(VCR).group("state_dict/").items()}


def test_detector_inside_a_vcr_checkpoint(tmp_path):
    """Alone, and together with the model that it was trained with."""
    region_dim = golden(VCR).config["source_config"]["final_dim"]
    text = tiny_model("vcr", visual_embedding_dim=region_dim)
    weights = {f"bert.{original_spelling(key)}": value for key, value in text.state_dict().items()} | vcr_weights()
    torch.save(weights, tmp_path / "vcr.th")
    found, processor, report = convert_region_detector(tmp_path / "vcr.th")
    assert_same_network(found, VCR)
    assert processor.recipe == "fit" and found.config.id2label[1] == "person"
    assert "skipped" in summarise(report)
    model, report = convert_original_checkpoint(tmp_path / "vcr.th", num_attention_heads=4)
    assert_same_network(model.visual_bert.region_encoder, VCR)
    inputs = {**inputs_for("vcr"), "visual_embeds": torch.randn(3, 6, region_dim)}
    inputs = {key: value for key, value in inputs.items() if "visual" not in key or key == "visual_embeds"}
    torch.testing.assert_close(model(**inputs).logits, text(**inputs).logits)
    assert sorted(item.name for item in report if item.name) == sorted(model.state_dict())
    assert {item.original for item in report if item.original} == weights.keys()


def original_spelling(name):
    name = name.replace("visual_token_type_embeddings", "token_type_embeddings_visual")
    name = name.replace("visual_position_embeddings", "position_embeddings_visual")
    return (
        name.replace("visual_projection", "projection").replace("visual_bert.", "bert.").replace("cls.", "classifier.")
    )


# ------------------------------------------------------------------------------- Detectron files of Pythia's detectors

ATTR_DICT = "!!python/object/new:detectron.utils.collections.AttrDict"
SMALL_RESNEXT = {
    "depths": [1, 2, 1, 1],
    "stem_channels": 8,
    "res2_channels": 16,
    "groups": 4,
    "group_width": 4,
    "fpn_channels": 16,
    "rpn_channels": 16,
    "hidden_dim": 32,
    "num_classes": 20,
}


def write_pythia(folder, cfg=None):
    """A ResNeXt under Detectron's names, as `FAST_RCNN_MLP_DIM2048_FPN_DIM512.pkl` is."""
    network = RegionDetector(RegionDetectorConfig.pythia_x101(**SMALL_RESNEXT)).eval()
    ours = network.state_dict()
    names = original_names(network.config, "detectron", list(ours))
    content = {"blobs": {name: ours[key].numpy() for key, name in names.items() if name is not None}, "cfg": cfg}
    (folder / "fast_rcnn.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return folder / "fast_rcnn.pkl", network


CFG = f"""
{ATTR_DICT}
dictitems:
  FPN: {ATTR_DICT}
    dictitems: {{RPN_ANCHOR_START_SIZE: 16, RPN_ASPECT_RATIOS: !!python/tuple [0.5, 1, 2]}}
    state: {{__immutable__: true}}
  MODEL: !!python/object:detectron.utils.collections.AttrDict {{TYPE: !!python/unicode 'generalized_rcnn'}}
  PIXEL_MEANS: !!python/object/apply:numpy.core.multiarray._reconstruct
    args: [!!python/name:numpy.ndarray '', !!python/tuple [0], b]
    state: !!python/tuple
    - 1
    - !!python/tuple [1, 1, 3]
    - !!python/object/apply:numpy.dtype
      args: [f8, 0, 1]
      state: !!python/tuple [3, <, null, null, null, -1, -1, 0]
    - false
    - !!binary AAAAAAAAAAA=
  RESNETS: {ATTR_DICT}
    dictitems: {{STRIDE_1X1: true, NUM_GROUPS: !!python/long '4'}}
  TEST: {ATTR_DICT}
    dictitems: {{RPN_PRE_NMS_TOP_N: 1000, RPN_POST_NMS_TOP_N: 900, SCALES: !!python/tuple [600], MAX_SIZE: 1000}}
state: {{__immutable__: true}}
"""


def test_pythias_detectron_file_gets_pythias_settings(tmp_path):
    path, network = write_pythia(tmp_path)
    found, _, report = convert_region_detector(path)
    assert found.config.to_dict() == network.config.to_dict()
    assert (found.config.max_regions, found.config.score_threshold, found.config.stride_in_1x1) == (100, None, False)
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(found.feature_maps(pixels)[0], network.feature_maps(pixels)[0])
    assert "skipped" not in {item.status for item in report}


def test_cfg_with_python_objects_is_read_as_plain_data(tmp_path):
    config, processor, report = _config_and_rest(write_pythia(tmp_path, CFG)[0])
    assert config.stride_in_1x1 and config.anchor_sizes == [[16], [32], [64], [128], [256]]
    assert (config.rpn_pre_nms, config.rpn_post_nms, config.rpn_total) == (1000, 900, 900)
    assert dict(processor.size) == {"shortest_edge": 600, "longest_edge": 1000}
    assert config.max_regions == 100 and "cfg" not in {item.original for item in report}


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("!!python/object/apply:os.mkdir [written]", ["written"]),
        ("!!python/object/new:os.mkdir [written]", ["written"]),
        ("!!python/object/apply:os.mkdir {args: [written]}", {"args": ["written"]}),
        ("!!python/object/new:subprocess.Popen {args: [[mkdir, written]], state: {a: 1}}", {"a": 1}),
        ("!!python/object:pathlib.Path {a: !!python/tuple [1, 2]}", {"a": [1, 2]}),
        ("!!python/name:os.mkdir ''", ""),
        ("!!python/module:os ''", ""),
        ("[!!python/long '4', !!python/bool 'yes', !!python/none '', !!python/unicode a]", [4, True, None, "a"]),
    ],
)
def test_tags_of_python_make_no_objects(tmp_path, monkeypatch, text, plain):
    monkeypatch.chdir(tmp_path)
    assert parse_yaml(text, "x.yaml") == plain
    assert not list(tmp_path.iterdir())


def _config_and_rest(path, *settings):
    found, processor, report = convert_region_detector(path, *settings)
    return found.config, processor, report


# What a Detectron yaml may say, with a value that is not the published one, and the field that it becomes.
SAID = {
    "FPN.RPN_ANCHOR_START_SIZE": (16, "anchor_sizes", [[16], [32], [64], [128], [256]]),
    "FPN.RPN_ASPECT_RATIOS": ([0.25, 1, 4], "anchor_ratios", [0.25, 1, 4]),
    "FPN.ROI_CANONICAL_SCALE": (112, "canonical_scale", 112),
    "FPN.ROI_CANONICAL_LEVEL": (3, "canonical_level", 3),
    "TEST.RPN_PRE_NMS_TOP_N": (70, "rpn_pre_nms", 70),
    "TEST.RPN_POST_NMS_TOP_N": (60, "rpn_post_nms", 60),
    "TEST.RPN_NMS_THRESH": (0.6, "rpn_nms_threshold", 0.6),
    "FAST_RCNN.ROI_XFORM_SAMPLING_RATIO": (1, "sampling_ratio", 1),
    "RESNETS.STRIDE_1X1": (True, "stride_in_1x1", True),
}


@pytest.mark.parametrize("name", SAID)
def test_every_setting_of_a_detectron_file_is_taken(tmp_path, name):
    (section, key), (value, field, expected) = name.split("."), SAID[name]
    path, network = write_pythia(tmp_path, yaml.safe_dump({section: {key: value}}))
    config, _, _ = _config_and_rest(path)
    assert getattr(config, field) == expected != getattr(network.config, field)
    assert (config.rpn_total == expected) == (field == "rpn_post_nms")


@pytest.mark.parametrize("cfg", ["other: 1", "just text", f"{ATTR_DICT} {{}}", ["a list"], 5])
def test_cfg_that_says_nothing_known_is_told(tmp_path, cfg, caplog):
    config, _, report = _config_and_rest(write_pythia(tmp_path, cfg)[0])
    assert not config.stride_in_1x1 and config.max_regions == 100
    assert [str(item) for item in report if item.original == "cfg"] == ["skipped  cfg -> - []"]
    assert "fast_rcnn.pkl: its 'cfg' is not understood" in caplog.text


def test_given_settings_come_before_the_cfg(tmp_path):
    path, _ = write_pythia(tmp_path, CFG)
    assert _config_and_rest(path, {"RESNETS": {"STRIDE_1X1": False}})[0].stride_in_1x1 is False
    (tmp_path / "mine.yaml").write_text("TEST: {RPN_PRE_NMS_TOP_N: 7}")
    assert _config_and_rest(path, tmp_path / "mine.yaml")[0].rpn_pre_nms == 7


@pytest.mark.parametrize(
    "text", ["FPN: [", "FPN: !mine {a: 1}", "a: &a {b: 1}\nc: {<<: *a}", "? [1]\n: 2", "a: " + "[" * 5000, "a: \0"]
)
def test_broken_yaml_is_an_error_that_names_the_file(tmp_path, text):
    with pytest.raises(ValueError, match=r"fast_rcnn\.pkl: 'cfg': not yaml that can be read"):
        convert_region_detector(write_pythia(tmp_path, text)[0])
    with pytest.raises(ValueError, match=r"^(?!.*\n).*detectron_model\.yaml: not yaml that can be read"):
        path = write_maskrcnn(tmp_path)
        path.with_suffix(".yaml").write_text(text)
        convert_region_detector(path)
    write_frcnn(tmp_path)
    (tmp_path / "config.yaml").write_bytes(b"a: \xff\xff")
    with pytest.raises(ValueError, match=r"config\.yaml: not yaml that can be read"):
        convert_region_detector(tmp_path)
    (tmp_path / "config.yaml").write_text("[a, b]")
    with pytest.raises(ValueError, match=r"config\.yaml: expected a mapping of settings, found list"):
        convert_region_detector(tmp_path)


def _detectron_config(preset, **fields):
    """What the shapes of a Detectron file of this network are converted to."""
    published = preset(**fields)
    with torch.device("meta"):
        ours = RegionDetector(published).state_dict()
    names = original_names(published, "detectron", list(ours))
    weights = {name: ours[key] for key, name in names.items() if name is not None}
    keys = {name: name for name in weights}
    depths = _depths(FAMILY["detectron"], keys, "x.pkl")
    sizes = _sizes_from_shapes(FAMILY["detectron"], depths, weights, keys, "x.pkl")
    return _config(FAMILY["detectron"], {"depths": depths, **sizes}, {}, {}), published


@pytest.mark.parametrize("preset", ["pythia_x101", "pythia_x152", "detectron_r101_coco"])
def test_published_sizes_choose_the_settings(preset):
    found, published = _detectron_config(getattr(RegionDetectorConfig, preset))
    assert found.to_dict() == published.to_dict()


def test_resnext_on_coco_keeps_the_names_of_its_classes():
    found, _ = _detectron_config(RegionDetectorConfig.pythia_x101, num_classes=80, hidden_dim=1024)
    assert found.id2label[0] == "person" and len(found.id2label) == 80 and found.groups == 64


# ------------------------------------------------------------------------------------------------------ published sizes


def assert_every_tensor(config, family, expected, prefix=""):
    """Names and shapes of the network of a configuration are those of the published file, and the other way round."""
    with torch.device("meta"):
        ours = RegionDetector(config).state_dict()
    names = original_names(config, family, list(ours))
    stored = {original: list(ours[name].shape) for name, original in names.items() if original is not None}
    expected = {
        name: shape
        for name, shape in expected.items()
        if not (name.endswith("num_batches_tracked") and name not in stored) and "cell_anchors" not in name
    }
    assert stored == expected


def test_published_frcnn():
    names, settings = published_shapes(C4).values()
    config = RegionDetectorConfig.bottom_up_attention_vg()
    assert_every_tensor(config, "frcnn", names)
    assert settings["roi_heads"]["nms_thresh_test"] == list(config.nms_thresholds)
    assert settings["rpn"]["pre_nms_topk_test"] == config.rpn_pre_nms
    assert settings["rpn"]["post_nms_topk_test"] == config.rpn_post_nms == config.rpn_total
    assert settings["anchor_generator"]["sizes"] == [list(sizes) for sizes in config.anchor_sizes]
    assert settings["max_detections"] == config.max_regions and settings["min_detections"] == config.min_regions
    processor = RegionDetectorImageProcessor.for_config(config)
    assert settings["model"]["pixel_mean"] == list(processor.image_mean)
    assert settings["input"]["format"] == processor.channel_order
    assert settings["input"]["min_size_test"] == processor.size["shortest_edge"]


@pytest.mark.parametrize(
    ("preset", "table"),
    [("pythia_x101", "X-101-64x4d full names"), ("pythia_x152", "X-152-32x8d full names")],
)
def test_published_maskrcnn(preset, table):
    assert_every_tensor(getattr(RegionDetectorConfig, preset)(), "maskrcnn", published_shapes(VG)[table])


def test_published_maskrcnn_with_converted_names():
    """Each full name ends in exactly the converted name that the original table gives it."""
    tables = published_shapes(VG)
    full = tables["X-101-64x4d full name to converted name"]
    shapes = tables["X-101-64x4d names after the Caffe2 conversion script"]
    keys = {name: name for name in shapes}
    for name, converted in full.items():
        if "cell_anchors" not in name:
            assert _longest_suffix(name, keys) == converted, name


def test_published_detectron():
    names = {
        name: shape
        for name, shape in published_shapes(COCO)["Detectron blob names"].items()
        if "mask" not in name  # the mask head says nothing of features
    }
    config = RegionDetectorConfig.detectron_r101_coco()
    assert_every_tensor(config, "detectron", names)
    with torch.device("meta"):
        ours = list(RegionDetector(RegionDetectorConfig.pythia_x101()).state_dict())
    blobs = original_names(RegionDetectorConfig.pythia_x101(), "detectron", ours)
    theirs = published_shapes(VG)["Detectron blob name to converted name"]
    full = original_names(config, "maskrcnn", ours)
    for name, blob in blobs.items():
        if blob is not None:
            assert full[name].endswith(theirs[blob]), name


def test_published_vcr():
    names = published_shapes(VCR)["names inside the VisualBERT VCR model (prefix detector.)"]
    assert_every_tensor(RegionDetectorConfig.vcr_resnet50(), "vcr", names)


# ------------------------------------------------------------------------------------------------------ files to refuse


class Hostile:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


class HostileSystem:
    """Unpickling this runs a command."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("hostile", [Hostile, HostileSystem])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_pickle_is_refused_and_not_run(tmp_path, hostile, protocol):
    path = write_detectron(tmp_path, protocol, hostile=hostile(tmp_path / "written"))
    with pytest.raises(ValueError, match=r"model_final\.pkl: not a pickle that can be read safely: it refers to"):
        convert_region_detector(path)
    assert not (tmp_path / "written").exists()


def test_hostile_torch_file_is_refused_and_not_run(tmp_path):
    torch.save(
        {"model": {"a": torch.ones(1)}, "hostile": Hostile(tmp_path / "written")}, tmp_path / "detectron_model.pth"
    )
    with pytest.raises(ValueError, match=r"detectron_model\.pth: not a checkpoint that can be read safely"):
        convert_region_detector(tmp_path / "detectron_model.pth")
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "name", ["numpy.load", "builtins.eval", "builtins.getattr", "numpy.f2py", "functools.partial", "codecs.encode"]
)
def test_nothing_else_can_be_asked_for(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    (tmp_path / "x.pkl").write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(ValueError, match=f"it refers to {name}"):
        load_arrays(tmp_path / "x.pkl")


def test_hostile_yaml_is_not_run(tmp_path):
    path = write_maskrcnn(tmp_path)
    text = f"MODEL: !!python/object/apply:os.system ['touch {tmp_path / 'written'}']"
    path.with_suffix(".yaml").write_text(text)
    with pytest.raises(ValueError, match="are not the anchors"):  # the published settings are not those of this network
        convert_region_detector(path)
    assert not (tmp_path / "written").exists()


def test_truncated_files(tmp_path):
    path = write_detectron(tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="not a pickle that can be read safely"):
        convert_region_detector(path)
    path = write_maskrcnn(tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="not a checkpoint that can be read safely"):
        convert_region_detector(path)


def test_a_file_without_a_stage_is_named(tmp_path):
    blobs = {name: array for name, array in with_detectron_names().items() if not name.startswith("res4_")}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    with pytest.raises(ValueError, match=r"model_final\.pkl: tensors of 3 stages of the backbone; expected four"):
        convert_region_detector(tmp_path / "model_final.pkl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc7_w": None}, "'fc7_w' is missing; expected a tensor of shape"),
        ({"fc7_w": np.zeros((40, 41), np.float32)}, r"'fc7_w' has shape \(40, 41\), expected \(40, 40\)"),
        ({"conv_rpn_fpn2_w": None}, "no known detector among its"),
        ({"res5_0_branch2a_w": np.array(["x"])}, "dtype 'U1'; expected numbers .*after 'res5_0_branch2a_w'"),
        ({"res5_0_branch2a_w": np.array([True])}, "'res5_0_branch2a_w' holds no numbers"),
    ],
)
def test_wrong_tensors_are_named(tmp_path, change, message):
    blobs = {key: value for key, value in {**with_detectron_names(), **change}.items() if value is not None}
    content = {"blobs": blobs, "cfg": yaml.safe_dump(golden(COCO).config["source_config"])}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        convert_region_detector(tmp_path / "model_final.pkl")


def write_maskrcnn_without(folder, spelling, dropped):
    path = write_maskrcnn(folder, spelling)
    content = torch.load(path)
    kept = {name: value for name, value in content["model"].items() if not name.endswith(dropped)}
    assert len(kept) < len(content["model"])
    torch.save({"model": kept}, path)
    return path


def test_every_converted_tensor_is_missed():
    """No other tensor is taken for it: the stem's `bn1.bias` is not that of `layer1.0`."""
    complete = golden(VG).group("state_dict_converted/")
    for name in complete:
        weights = {key: value for key, value in complete.items() if key != name}
        with pytest.raises(ValueError, match=rf"x\.pth: '(\w+\.)*{re.escape(name)}' is missing|no known detector"):
            detector_from_weights(weights, golden(VG).config["source_config"], "x.pth")


def test_a_shorter_end_is_another_tensor(tmp_path):
    path = write_maskrcnn_without(tmp_path, "state_dict_converted/", "layer1.0.bn1.bias")
    with pytest.raises(
        ValueError, match=r"pth: 'backbone\.body\.layer1\.0\.bn1\.bias' is missing; expected a tensor of shape"
    ):
        convert_region_detector(path)
    assert _longest_suffix("rpn.head.bbox_pred.bias", {"bbox_pred.bias": "x"}) is None
    assert _longest_suffix("backbone.body.layer1.0.conv1.weight", {"yer1.0.conv1.weight": "x", "1": "y"}) is None


@pytest.mark.parametrize(
    ("name", "prefix", "dropped"),
    [
        (C4, "", "res2.0.conv1.norm.running_mean"),
        (C4, "", "running_var"),
        (VG, "", "layer1.0.bn1.running_var"),
        (VG, "", "running_mean"),
        (VG, "", ("running_mean", "running_var")),
        (VCR, "detector.", "running_var"),
        (VCR, "detector.", "backbone.1.running_mean"),
    ],
)
def test_missing_statistics_are_missing(name, prefix, dropped):
    """Only files that come from Detectron are without means and variances, and then without any."""
    weights = {f"{prefix}{key}": value for key, value in golden(name).group("state_dict/").items()}
    weights = {key: value for key, value in weights.items() if not key.endswith(dropped)}
    with pytest.raises(ValueError, match=r"x\.pth: '\S+\.running_(mean|var)' is missing; expected a tensor of shape"):
        detector_from_weights(weights, golden(name).config["source_config"], "x.pth")


def test_some_statistics_in_a_converted_file_are_too_few():
    weights = golden(VG).group("state_dict_converted/")
    weights["bn1.running_mean"] = torch.zeros_like(weights["bn1.bias"])
    with pytest.raises(ValueError, match=r"'\S+running_(mean|var)' is missing"):
        detector_from_weights(weights, golden(VG).config["source_config"], "x.pth")


def test_counters_of_batches_may_be_missing():
    weights = {key: value for key, value in vcr_weights().items() if "num_batches" not in key}
    found, _ = detector_from_weights(weights, {}, "vcr.th")
    assert_same_network(found, VCR)


def test_a_tensor_under_two_names(tmp_path):
    weights = golden(VG).group("state_dict/")
    weights["module.rpn.head.conv.bias"] = weights["rpn.head.conv.bias"]
    with pytest.raises(
        ValueError, match=r"'rpn\.head\.conv\.bias' and 'module\.rpn\.head\.conv\.bias' are two tensors"
    ):
        detector_from_weights(weights, golden(VG).config["source_config"], "x.pth")


def test_missing_files(tmp_path):
    for name in ("no.pkl", "no.pth"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such checkpoint file"):
            convert_region_detector(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such settings file"):
        convert_region_detector(write_maskrcnn(tmp_path), tmp_path / "none.yaml")


def test_other_anchors_than_the_stored_ones(tmp_path):
    path = write_maskrcnn(tmp_path)
    path.with_suffix(".yaml").unlink()
    with pytest.raises(ValueError, match=r"cell_anchors\.0' are not the anchors of sizes \[32\]"):
        convert_region_detector(path, **TOLERANT)


# --------------------------------------------------------------------------------------------------------- command line


def test_command_converts_a_detector(tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    write_frcnn(source)
    assert main(["convert", str(source), str(tmp_path / "target")]) == 0
    assert "RegionDetector: " in capsys.readouterr().out
    assert_same_network(RegionDetector.from_pretrained(tmp_path / "target"), C4)
    processor = RegionDetectorImageProcessor.from_pretrained(tmp_path / "target")
    assert processor.size["shortest_edge"] == 208
    assert "roi_heads.box_predictor.cls_score.weight -> head.classes.weight" in (
        tmp_path / "target" / "key_report.txt"
    ).read_text("utf-8")
    assert json.loads((tmp_path / "target" / "config.json").read_text("utf-8"))["model_type"] == "region_detector"
    shutil.rmtree(source)
    assert main(["convert", str(source), str(tmp_path / "other")]) == 2


def test_command_converts_a_folder_with_nothing_but_weights(tmp_path, capsys):
    """Not as a VisualBERT checkpoint without a configuration; weights of no detector are refused."""
    source = write_frcnn(tmp_path)
    weights = {name: value for name, value in golden(C4).group("state_dict/").items() if "cell_anchors" not in name}
    torch.save(weights, source / "pytorch_model.bin")
    (source / "config.yaml").unlink()
    assert main(["convert", str(source), str(tmp_path / "target")]) == 0
    assert "RegionDetector: " in capsys.readouterr().out
    torch.save({"cls.weight": torch.ones(2, 3)}, source / "pytorch_model.bin")
    assert main(["convert", str(source), str(tmp_path / "other")]) == 2
    assert "pytorch_model.bin: no known detector among its 1 tensors" in capsys.readouterr().err


def assert_one_line(capsys, source, target, *parts):
    """The command fails with one line that names the file, and leaves nothing."""
    assert main(["convert", str(source), str(target)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("visualbert convert: ") and not target.exists()
    for part in parts:
        assert part in error


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("min_detections", "many", "min_regions"),
        ("min_detections", 99, "min_regions 99, max_regions 24"),
        ("roi_heads.nms_thresh_test", 0.5, "nms_thresholds"),
        ("anchor_generator.sizes", 5, "anchor_sizes"),
        ("anchor_generator.sizes", [["a", "b", "c", "d"]], "config.yaml: cannot be used"),
        ("anchor_generator.aspect_ratios", 5, "not subscriptable"),
        ("anchor_generator.aspect_ratios", [0.5, 1, 2], "anchor_ratios"),
        ("input.min_size_test", "x", "'x'"),
        ("input.min_size_test", [800], "list"),
        ("model.pixel_mean", "x", "'x'"),
    ],
)
def test_wrong_values_of_a_yaml_are_one_line(tmp_path, capsys, section, value, message):
    settings = yaml.safe_load((write_frcnn(tmp_path) / "config.yaml").read_text())
    *parents, name = section.split(".")
    place = settings
    for parent in parents:
        place = place[parent]
    place[name] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert_one_line(capsys, tmp_path, tmp_path / "out", f"{tmp_path / 'config.yaml'}: cannot be used: ", message)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("conv1_w", np.zeros((), np.float32)),
        ("res2_0_branch2b_w", np.zeros(3, np.float32)),
        ("res2_0_branch2b_w", np.zeros((4, 0, 3, 3), np.float32)),
        ("fc6_w", np.zeros((2, 2, 2), np.float32)),
        ("res4_99999999_branch2a_w", np.zeros((2, 2), np.float32)),
        ("res3_0_branch2a_w", None),
    ],
)
def test_odd_shapes_and_names_are_one_line(tmp_path, capsys, name, value):
    path = write_detectron(tmp_path, **{name: value})
    assert_one_line(capsys, path, tmp_path / "out", f"{path}: ")


def test_vilberts_yaml_is_found(tmp_path, capsys):
    path = write_maskrcnn(tmp_path)
    path.with_suffix(".yaml").rename(tmp_path / "detectron_config.yaml")
    found, _, _ = convert_region_detector(path, **TOLERANT)
    assert found.config.to_dict() == detector(VG).config.to_dict() | {
        name: found.config.to_dict()[name] for name in ("nms_thresholds", "min_regions", "max_regions")
    }
    (tmp_path / "detectron_config.yaml").write_text("MODEL: [")
    assert_one_line(capsys, path, tmp_path / "out", f"{tmp_path / 'detectron_config.yaml'}: not yaml")


def write_names(folder, kind, count):
    path = folder / f"{kind}.txt"
    path.write_text("".join(f"{kind} {number}\n" for number in range(count)), encoding="utf-8")
    return str(path)


def test_command_names_classes_and_attributes(tmp_path, capsys):
    config, target = detector(C4).config, tmp_path / "target"
    source = str(write_frcnn(tmp_path))
    for classes, attributes, message in (
        (config.num_classes - 1, config.num_attributes, f"classes.txt: {config.num_classes - 1} names; expected"),
        (config.num_classes + 1, config.num_attributes, f"names; expected {config.num_classes}, one per line"),
        (config.num_classes, 1, f"attributes.txt: 1 names; expected {config.num_attributes}, one per line"),
    ):
        files = [write_names(tmp_path, "classes", classes), write_names(tmp_path, "attributes", attributes)]
        arguments = ["convert", source, str(target), "--classes", files[0], "--attributes", files[1]]
        assert main(arguments) == 2 and message in capsys.readouterr().err and not target.exists()
    write_names(tmp_path, "attributes", config.num_attributes)
    assert main(arguments) == 0
    found = RegionDetector.from_pretrained(target).config
    assert found.id2label == {number: f"classes {number}" for number in range(config.num_classes)}
    assert found.label2id["classes 3"] == 3
    assert found.attribute_names == [f"attributes {number}" for number in range(config.num_attributes)]


def test_names_where_there_are_none(tmp_path, capsys):
    names = write_names(tmp_path, "classes", 3)
    source = write_maskrcnn(tmp_path)
    with pytest.raises(ValueError, match=r"classes\.txt: a detector with head 'fpn' has no attributes"):
        name_outputs(convert_region_detector(source)[0].config, None, names)
    (tmp_path / "classes.txt").write_text("a\n\nb\n")
    with pytest.raises(ValueError, match=r"classes\.txt: 3 names, 1 of them empty; expected 3, one per line"):
        name_outputs(RegionDetectorConfig(num_classes=3), names, None)
    (tmp_path / "classes.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"classes\.txt: not UTF-8 text at byte 0"):
        name_outputs(RegionDetectorConfig(num_classes=3), names, None)
    torch.save({"cls.weight": torch.ones(2, 3)}, tmp_path / "model.th")
    assert main(["convert", str(tmp_path / "model.th"), str(tmp_path / "out"), "--classes", names]) == 2
    assert "model.th is not a region detector's file" in capsys.readouterr().err
