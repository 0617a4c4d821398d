"""Region detectors against numbers recorded from the original code bases: every stage from the stored stage before, and the
whole way from the image. Limits are those of the recorded set; a stage alone has a tenth of them. In the small set large stages
are samples: the next stage then starts from what ours gives."""

import pytest
import torch
from detector_golden import C4, COCO, VCR, VG, Sample, detector, fields, golden, golden_set, image_processor, sample  # noqa: F401
from PIL import Image
from torch.nn import functional as F

from modeling_visualbert.convert.region_detector import detector_from_weights
from modeling_visualbert.features.extract import ExtractionOptions, extract_store
from modeling_visualbert.features.store import FeatureStore
from modeling_visualbert.hub_code.detection_ops import clip_boxes, decode_boxes
from modeling_visualbert.hub_code.modeling_region_detector import BOX_DELTA_WEIGHTS, Described

pytestmark = pytest.mark.usefixtures("golden_set")

LIMITS = {
    "pixels": 1e-3,
    "maps": 5e-4,
    "rpn": 1e-3,
    "boxes": 2e-2,
    "pooled": 2e-3,
    "features": 2e-3,
    "logits": 5e-3,
    "probabilities": 5e-4,
}
PYRAMIDS = (VG, COCO)
LEVELS = (2, 3, 4, 5, 6)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def assert_close(found, recorded, quantity, share=1.0):
    """Same shape, no number further off than the limit (or a share of it)."""
    assert found.shape == recorded.shape
    if isinstance(recorded, Sample):
        found, recorded = sample(found), recorded.values
    difference = (found.double() - recorded.double()).abs().max().item() if found.numel() else 0.0
    assert difference <= LIMITS[quantity] * share, f"{quantity}: {difference:.2g}"


def images(name, batch=False):
    case = golden(name)
    if batch:
        return [case[f"inputs/batch2/image{i}_rgb_uint8"].numpy() for i in range(2)]
    return case["inputs/image_rgb_uint8"].numpy()


def true_size(name):
    return golden(name)["inputs/image_preprocessed"].shape[2:]


def pixels_of(name):
    """The recorded input of the network, or ours."""
    return golden(name).whole("inputs/image_preprocessed", image_processor(name)(images(name))["pixel_values"])


def rois_of(boxes):
    return F.pad(boxes, (1, 0))


# ------------------------------------------------------------------------------------------------------------ pixels


@pytest.mark.parametrize("name", [C4, VG, COCO])
def test_preprocessing(name):
    case, inputs = golden(name), image_processor(name)(images(name))
    assert_close(inputs["pixel_values"], case["inputs/image_preprocessed"], "pixels")
    height, width = inputs["image_sizes"][0].tolist()
    x1, y1, x2, y2 = inputs["picture_windows"][0].tolist()
    assert (x1, y1) == (0, 0)
    if name == C4:
        assert [[y2, x2]] == case["inputs/sizes_hw"].tolist()
        assert [height / y2, width / x2] == pytest.approx(case["inputs/scales_yx"][0].tolist())
    else:
        assert [x2 / width, y2 / height] == pytest.approx([case["inputs/im_scale"].item()] * 2)


def test_preprocessing_of_two_sizes():
    case, inputs = golden(C4), image_processor(C4)(images(C4, batch=True))
    assert inputs["picture_windows"][:, 2:].flip(1).tolist() == case["inputs/batch2/sizes_hw"].tolist()
    sizes = inputs["pixel_mask"].amax(dim=2).sum(dim=1), inputs["pixel_mask"].amax(dim=1).sum(dim=1)
    assert torch.equal(torch.stack(sizes, dim=1), case["inputs/batch2/sizes_hw"])


# ---------------------------------------------------------------------------------------------------------------- C4


def c4_described(case):
    stages = ("feature_pooled", "obj_logits", "box_deltas", "attr_logits")
    return Described(*(case[f"outputs/{stage}"] for stage in stages))


def test_c4_backbone():
    case, network = golden(C4), detector(C4)
    pixels = pixels_of(C4)
    before = network.backbone.stem(pixels)
    assert_close(before, case["outputs/stem"], "maps", 0.1)
    before = case.whole("outputs/stem", before)
    for stage, name in zip(network.backbone.stages, ("res2", "res3", "res4"), strict=True):
        after = stage(before)
        assert_close(after, case[f"outputs/{name}"], "maps", 0.1)
        before = case.whole(f"outputs/{name}", after)
    for found, stage in zip(network.backbone(pixels), ("res2", "res3", "res4"), strict=True):
        assert_close(found, case[f"outputs/{stage}"], "maps")


def test_c4_stem_before_its_activation():
    before_relu = detector(C4).backbone.stem.conv(pixels_of(C4))
    assert_close(before_relu, golden(C4)["outputs/stem_conv1_bn"], "maps", 0.1)


def test_c4_proposals():
    case, network = golden(C4), detector(C4)
    logits, deltas = network.rpn(case["outputs/res4"])
    assert_close(logits, case["outputs/rpn_objectness_logits"], "rpn", 0.1)
    assert_close(deltas, case["outputs/rpn_anchor_deltas"], "rpn", 0.1)
    anchors = network.rpn.anchors(0, logits)
    assert_close(anchors[None, None], case["outputs/anchors"], "boxes", 1e-3)
    logits = case.whole("outputs/rpn_objectness_logits", logits)
    deltas = case.whole("outputs/rpn_anchor_deltas", deltas)
    codes = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)[0]
    decoded = decode_boxes(codes, anchors, (1.0, 1.0, 1.0, 1.0))
    assert_close(decoded[None, None], case["outputs/rpn_decoded_boxes"], "boxes", 0.1)
    ((boxes, scores),) = network.rpn.best_of_levels([network.rpn.level_proposals(0, logits, deltas, [true_size(C4)])])
    assert_close(boxes, case["outputs/proposals"], "boxes", 0.1)
    assert_close(scores, case["outputs/proposal_logits"], "rpn", 0.1)


def test_c4_head():
    case, network = golden(C4), detector(C4)
    maps, rois = [case["outputs/res4"]], rois_of(case["outputs/proposals"])
    pooled = network.head.pool(maps, rois)
    assert_close(pooled, case["outputs/roi_pooled"], "pooled", 0.0)
    assert_close(network.head.res5(pooled[:2]), case["outputs/roi_res5_first2"], "pooled", 0.1)
    found = network.head(maps, rois)
    assert_close(found.features, case["outputs/feature_pooled"], "features", 0.1)
    assert_close(found.class_logits, case["outputs/obj_logits"], "logits", 0.1)
    assert_close(found.box_deltas, case["outputs/box_deltas"], "logits", 0.1)
    assert_close(found.attribute_logits, case["outputs/attr_logits"], "logits", 0.1)
    assert_close(found.class_logits.softmax(dim=1), case["outputs/obj_probs_all"], "probabilities", 0.1)


def test_c4_selection():
    case, network = golden(C4), detector(C4)
    proposals, described = case["outputs/proposals"], c4_described(case)
    all_boxes = decode_boxes(described.box_deltas, proposals, BOX_DELTA_WEIGHTS)
    assert_close(clip_boxes(all_boxes, true_size(C4)), case["outputs/boxes_all_clipped"], "boxes", 0.1)
    found = network.select(described, proposals, true_size(C4), torch.ones(2))
    kept = case["outputs/nms_keep"]
    assert torch.equal(found["visual_embeds"], described.features[kept])
    assert_close(found["scores"], case["outputs/final/obj_probs"][0, : len(kept)], "probabilities", 0.1)


def assert_c4_images(found, recorded, sizes_hw):
    counts = found["visual_attention_mask"].sum(dim=1)
    assert torch.equal(counts, recorded["preds_per_image"])
    height, width = sizes_hw.T[:, :, None, None].float()
    boxes = found["boxes_unit"] * torch.cat((width, height, width, height), dim=2)
    longest = counts.max()
    pairs = {
        "features": (found["visual_embeds"], recorded["roi_features"]),
        "boxes": (boxes, recorded["boxes"]),
        "probabilities": (found["scores"], recorded["obj_probs"]),
    }
    for row, count in enumerate(counts.tolist()):
        for quantity, (ours, theirs) in pairs.items():
            assert_close(ours[row, :count], theirs[row, :count], quantity)
            assert not theirs[row, count:].any() and not ours[row, count:].any()
        for key, name in (("class_ids", "obj_ids"), ("attribute_ids", "attr_ids")):
            assert torch.equal(found[key][row, :count], recorded[name][row, :count])
        assert_close(found["attribute_scores"][row, :count], recorded["attr_probs"][row, :count], "probabilities")
    assert found["scores"].shape[1] == longest


def test_c4_from_the_image():
    case, inputs = golden(C4), image_processor(C4)(images(C4))
    recorded = case.group("outputs/final/")
    found = detector(C4)(**inputs)
    assert_c4_images(found, recorded, inputs["image_sizes"])
    count = int(recorded["preds_per_image"])
    assert_close(found["boxes_unit"][0], recorded["normalized_boxes"][0, :count], "boxes", 0.01)
    detected = detector(C4).detect(images(C4), image_processor(C4))
    assert_close(detected["boxes"], recorded["boxes"][0, :count], "boxes")


def test_c4_from_two_images():
    case, inputs = golden(C4), image_processor(C4)(images(C4, batch=True))
    network = detector(C4)
    maps = network.feature_maps(inputs["pixel_values"])
    for i, (boxes, _) in enumerate(network.propose(maps, inputs["pixel_values"], inputs["pixel_mask"])):
        assert_close(boxes, case[f"outputs/batch2/proposals_{i}"], "boxes")
    assert_c4_images(network(**inputs), case.group("outputs/batch2/final/"), inputs["image_sizes"])


# ---------------------------------------------------------------------------------------------------------- pyramids


@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramid_backbone(name):
    case, network = golden(name), detector(name)
    pixels = pixels_of(name)
    before = network.backbone.stem(pixels)
    assert_close(before, case["outputs/stem"], "maps", 0.1)
    before = case.whole("outputs/stem", before)
    for stage, level in zip(network.backbone.stages, LEVELS, strict=False):
        after = stage(before)
        assert_close(after, case[f"outputs/C{level}"], "maps", 0.1)
        before = case.whole(f"outputs/C{level}", after)
    maps = network.backbone(pixels)
    for found, level in zip(maps, LEVELS, strict=False):
        assert_close(found, case[f"outputs/C{level}"], "maps")
    stored = [case.whole(f"outputs/C{level}", found) for level, found in zip(LEVELS, maps, strict=False)]
    for found, level in zip(network.fpn(stored), LEVELS, strict=True):
        assert_close(found, case[f"outputs/P{level}"], "maps", 0.1)
    for found, level in zip(network.fpn(maps), LEVELS, strict=True):
        assert_close(found, case[f"outputs/P{level}"], "maps")


def pyramid_of(name):
    """P2 to P6 as they were recorded, or ours."""
    maps = detector(name).feature_maps(pixels_of(name))
    return [golden(name).whole(f"outputs/P{level}", found) for level, found in zip(LEVELS, maps, strict=True)]


def recorded_proposals(name):
    return golden(name)["outputs/proposals"] if name == VG else golden(name)["outputs/rois"][:, 1:]


def recorded_level_proposals(name):
    """(boxes, scores) of each level, under either spelling."""
    case = golden(name).group("outputs/")
    if name == VG:
        return [(case[f"level_proposals_P{i}"], case[f"level_objectness_P{i}"]) for i in LEVELS]
    return [(case[f"level_rois_P{i}"][:, 1:], case[f"level_roi_probs_P{i}"][:, 0]) for i in LEVELS]


def test_pythia_with_converted_names():
    """Statistics that were folded into weights, and then left out, give the maps and proposals of the full names."""
    case = golden(VG)
    pixels, weights = pixels_of(VG), case.group("state_dict_converted/")
    found, _ = detector_from_weights(weights, case.config["source_config"], VG, **fields(VG, case.config))
    maps = found.feature_maps(pixels)
    assert_close(maps[0], case["outputs/P2"], "maps")
    ((proposals, _),) = found.propose(maps, pixels)
    assert_close(proposals, case["outputs/proposals"], "boxes")


@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramid_proposals(name):
    case, network = golden(name), detector(name)
    merged, found = recorded_proposals(name), []
    for i, (level, stored_map) in enumerate(zip(LEVELS, pyramid_of(name), strict=True)):
        logits, deltas = network.rpn(stored_map)
        assert_close(logits, case[f"outputs/rpn_logits_P{level}"], "rpn", 0.1)
        assert_close(deltas, case[f"outputs/rpn_deltas_P{level}"], "rpn", 0.1)
        if name == VG:
            assert_close(network.rpn.anchors(i, logits), case[f"outputs/anchors_P{level}"], "boxes", 1e-3)
        stored = (
            case.whole(f"outputs/rpn_logits_P{level}", logits),
            case.whole(f"outputs/rpn_deltas_P{level}", deltas),
        )
        found.append(network.rpn.level_proposals(i, *stored, [true_size(name)]))
        ((boxes, scores),) = found[-1]
        recorded_boxes, recorded_scores = recorded_level_proposals(name)[i]
        assert_close(boxes, recorded_boxes, "boxes", 0.1)
        assert_close(scores, recorded_scores, "probabilities", 0.1)
    ((boxes, _),) = network.rpn.best_of_levels(found)
    assert_close(boxes, merged, "boxes", 0.1)
    pixels = pixels_of(name)
    ((boxes, _),) = network.propose(network.feature_maps(pixels), pixels)
    assert_close(boxes, merged, "boxes")


@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramid_head(name):
    case, network = golden(name), detector(name)
    proposals = recorded_proposals(name)
    maps, rois = pyramid_of(name), rois_of(proposals)
    levels = case["outputs/roi_level_index"] if name == VG else case["outputs/roi_level"] - 2
    assert torch.equal(network.head.levels(proposals), levels)
    assert_close(network.head.pool(maps, rois), case["outputs/roi_pooled"], "pooled", 0.1)
    found = network.head(maps, rois)
    assert_close(found.features, case["outputs/fc6"], "features", 0.1)
    assert_close(F.relu(network.head.fc7(found.features)), case["outputs/fc7"], "features", 0.1)
    logits, deltas, probabilities = (
        ("scores", "bbox_deltas", "class_probs") if name == VG else ("cls_score", "bbox_pred", "cls_prob")
    )
    assert_close(found.class_logits, case[f"outputs/{logits}"], "logits", 0.1)
    assert_close(found.box_deltas, case[f"outputs/{deltas}"], "logits", 0.1)
    assert_close(found.class_logits.softmax(dim=1), case[f"outputs/{probabilities}"], "probabilities", 0.1)


def described_by(name):
    case = golden(name).group("outputs/")
    proposals = recorded_proposals(name)
    stages = ("fc6", "scores", "bbox_deltas") if name == VG else ("fc6", "cls_score", "bbox_pred")
    return Described(*(case[stage] for stage in stages)), proposals


def test_pythia_selection():
    case, network = golden(VG), detector(VG)
    described, proposals = described_by(VG)
    scale = case["inputs/im_scale"].float().expand(2)
    found = network.select(described, proposals, true_size(VG), scale)
    order = case["outputs/final/order"][: len(found["scores"])]
    assert torch.equal(found["visual_embeds"], described.features[order])
    assert_close(found["scores"], case["outputs/final/max_conf"][order], "probabilities", 0.1)
    assert torch.equal(found["class_ids"], case["outputs/final/objects"])
    assert int((found["scores"] != 0).sum()) == case["outputs/final/num_boxes"]


def test_pythia_as_an_ordinary_detector():
    case, network = golden(VG), detector(VG)
    found = network.ordinary_detections(*described_by(VG), true_size(VG))
    assert torch.equal(found["class_ids"] + 1, case["outputs/detections/labels"])
    assert_close(found["boxes"], case["outputs/detections/boxes"], "boxes", 0.1)
    assert_close(found["scores"], case["outputs/detections/scores"], "probabilities", 0.1)


@pytest.mark.parametrize(("prefix", "limits"), [("final", None), ("final_min10_max100", (10, 100))])
def test_detectron_selection(prefix, limits, monkeypatch):
    """The second case is the branch that leaves the regions in the order of the proposals."""
    case, network = golden(COCO), detector(COCO)
    if limits is not None:
        monkeypatch.setattr(network.config, "max_regions", limits[1])
        monkeypatch.setattr(network.config, "min_regions", limits[0])
    described, proposals = described_by(COCO)
    scale = case["inputs/im_scale"].float().expand(2)
    found, recorded = network.select(described, proposals, true_size(COCO), scale), case.group(f"outputs/{prefix}/")
    assert torch.equal(found["visual_embeds"], recorded["region_features"])
    assert_close(found["scores"], recorded["max_conf"], "probabilities", 0.1)
    assert_close(found["boxes_unit"] / scale[0], recorded["boxes"], "boxes", 0.1)
    inside = decode_boxes(described.box_deltas, proposals / scale[0], BOX_DELTA_WEIGHTS, legacy=True)
    size = case["inputs/image_rgb_uint8"].shape[:2]
    assert_close(clip_boxes(inside, size, legacy=True), case["outputs/pred_boxes_original_image"], "boxes", 0.1)


@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramid_from_the_image(name):
    recorded = golden(name).group("outputs/final/")
    found = detector(name).detect(images(name), image_processor(name))
    assert_close(found["visual_embeds"], recorded["region_features"], "features")
    assert_close(found["boxes"], recorded["bbox" if name == VG else "boxes"], "boxes")
    confidence = recorded["max_conf"][recorded["order"]][: len(found["scores"])] if name == VG else recorded["max_conf"]
    assert_close(found["scores"], confidence, "probabilities")
    if name == VG:
        assert torch.equal(found["class_ids"], recorded["objects"])
        assert found["image_size"].flip(0).tolist() == recorded["image_width_height"].tolist()


@pytest.mark.parametrize("name", PYRAMIDS)
def test_a_store_holds_the_boxes_of_the_original_cut_at_the_border(name, tmp_path):
    """Pyramid detectors let some reach into the padding."""
    source = Image.fromarray(golden(name)["inputs/image_rgb_uint8"].numpy())
    recorded = golden(name).group("outputs/final/")["bbox" if name == VG else "boxes"]
    options = ExtractionOptions(dtype="float32")
    extract_store(tmp_path / "s", [("a", source)], detector(name), image_processor(name), options, progress=False)
    border = recorded.new_tensor(source.size * 2)
    assert (recorded - border).max() > 1.5
    assert_close(FeatureStore(tmp_path / "s")["a"]["boxes"], torch.minimum(recorded.clamp(min=0.0), border), "boxes")


def test_pythia_from_two_images():
    """Proposals reach into the padding of the batch, so that the result is not that of each image alone."""
    case = golden(VG)
    found = detector(VG).detect(images(VG, batch=True), image_processor(VG))
    for i, image in enumerate(found):
        recorded = case.group(f"outputs/batch2/{i}/")
        assert_close(image["visual_embeds"], recorded["region_features"], "features")
        assert_close(image["boxes"], recorded["bbox"], "boxes")
        count = len(image["scores"])
        assert_close(image["scores"], recorded["max_conf"][recorded["order"]][:count], "probabilities")
        assert torch.equal(image["class_ids"], recorded["objects"])
        assert image["image_size"].flip(0).tolist() == recorded["image_width_height"].tolist()
    alone = detector(VG).detect(images(VG, batch=True)[0], image_processor(VG))
    assert not torch.allclose(alone["visual_embeds"], found[0]["visual_embeds"], atol=1e-2)


# --------------------------------------------------------------------------------------------------------------- VCR


def vcr_inputs():
    case, items = golden(VCR), range(2)
    return image_processor(VCR)(
        [case[f"inputs/item{i}/image_rgb_uint8"].numpy() for i in items],
        boxes=[case[f"inputs/item{i}/raw_boxes_xyxy_conf"].numpy() for i in items],
        classes=[case[f"inputs/item{i}/labels"][1:].tolist() for i in items],
        polygons=[case.config["items"][i]["polygons"] for i in items],
    )


def test_vcr_inputs():
    case, inputs = golden(VCR), vcr_inputs()
    assert_close(inputs["pixel_values"], case["inputs/images"], "pixels", 0.01)
    assert torch.equal(inputs["boxes_mask"], case["inputs/box_mask"])
    assert torch.equal(inputs["object_masks"], case["inputs/segms"])
    given = inputs["boxes_mask"].bool()
    assert torch.equal(inputs["object_classes"][given], case["inputs/classes"][given])
    for i in range(2):
        scale, window = case[f"inputs/item{i}/scale"].item(), inputs["picture_windows"][i]
        assert [round(side) for side in window.tolist()] == case[f"inputs/item{i}/window_xyxy"].tolist()
        height, width = inputs["image_sizes"][i].tolist()
        assert (window[2:] - window[:2]).tolist() == pytest.approx([width * scale, height * scale])


def test_vcr_stages():
    case, network, inputs = golden(VCR), detector(VCR), vcr_inputs()
    maps = network.backbone(case["inputs/images"])
    for found, level in zip(maps, (1, 2, 3), strict=True):
        assert_close(found, case[f"outputs/layer{level}"], "maps")
    given = case["inputs/box_mask"].bool()
    boxes = case["inputs/boxes"][given]
    rois = torch.cat((given.nonzero()[:, :1].float(), boxes), dim=1)
    masks = case["inputs/segms"][given]
    stored = [case["outputs/layer3"]]
    assert_close(network.head.masks(masks[:, None] - 0.5), case["outputs/mask_features"], "pooled", 0.1)
    assert_close(network.head.pool(stored, rois, masks), case["outputs/roi_align_plus_mask"], "pooled", 0.1)
    without = network.head.pool(stored, rois, masks)
    without[:, : network.config.mask_channels] -= case["outputs/mask_features"]
    assert_close(without, case["outputs/roi_align"], "pooled", 0.1)
    layer4 = network.head.res5(case["outputs/roi_align_plus_mask"])
    assert_close(layer4, case["outputs/layer4"], "maps", 0.1)
    assert_close(layer4.mean(dim=(2, 3)), case["outputs/obj_reps_raw"], "features", 0.1)
    classes = inputs["object_classes"][given]
    assert torch.equal(classes, case["outputs/obj_labels"])
    found = network.head(stored, rois, masks, classes)
    assert_close(found.class_logits, case["outputs/obj_logits"], "logits", 0.1)
    assert_close(found.features, case["outputs/obj_reps"][given], "features", 0.1)


def test_vcr_from_the_images():
    case, found = golden(VCR), detector(VCR)(**vcr_inputs())
    assert_close(found["visual_embeds"], case["outputs/obj_reps"], "features")
    assert_close(found["cnn_regularization_loss"][None], case["outputs/cnn_regularization_loss"], "logits")
    assert torch.equal(found["visual_attention_mask"], case["inputs/box_mask"])


def test_vcr_with_batch_statistics():
    """What the authors' `freeze_detector` meant in the torch of its time, in evaluation too."""
    case, network = golden(VCR).group("outputs/backbone_batch_statistics/"), detector(VCR)
    frozen = type(network)(type(network.config)(**{**network.config.to_dict(), "norm_statistics": "batch"})).eval()
    frozen.load_state_dict(network.state_dict())
    inputs = vcr_inputs()
    assert_close(frozen.feature_maps(inputs["pixel_values"])[0], case["layer3"], "maps")
    features = []
    frozen.head.res5.register_forward_hook(lambda _, args, maps: features.append(maps.mean(dim=(2, 3))))
    assert_close(frozen(**inputs)["visual_embeds"], case["obj_reps"], "features")
    assert_close(features[0], case["obj_reps_raw"], "features")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in frozen.state_dict().items()), (
        "running statistics moved"
    )
