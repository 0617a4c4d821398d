"""The recorded numbers of the original detectors: files, weights, inputs, stages (`golden/detectors/README.md`)."""

import json
from dataclasses import dataclass
from functools import lru_cache

import torch
from helpers import shared
from safetensors import safe_open

from modeling_visualbert.convert.region_detector import detector_from_weights
from modeling_visualbert.hub_code.image_processing_region_detector import RegionDetectorImageProcessor
from modeling_visualbert.hub_code.modeling_region_detector import RegionDetector

C4, VG, COCO, VCR = "frcnn_vg_c4", "vg_x101_fpn", "coco_r101_fpn_detectron", "vcr_simple_detector"


@dataclass(frozen=True)
class Golden:
    """One recorded file: its hyper-parameters and all its tensors by name."""

    config: dict
    tensors: dict[str, torch.Tensor]

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors under a prefix, by the rest of their names."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]


@lru_cache
def golden(name: str) -> Golden:
    with safe_open(shared(f"golden/detectors/{name}.safetensors"), "pt") as file:
        config, names = json.loads(file.metadata()["config"]), file.keys()
        return Golden(config, {name: file.get_tensor(name) for name in names})


@lru_cache
def published_shapes(name: str) -> dict:
    return json.loads(shared(f"golden/detectors/{name}.params.json").read_text())


@lru_cache
def detector(name: str) -> RegionDetector:
    """The network of a recorded file, converted from its original names."""
    case = golden(name)
    prefix = "detector." if name == VCR else ""
    weights = {prefix + key: value for key, value in case.group("state_dict/").items()}
    found, _ = detector_from_weights(weights, case.config["source_config"], name, **_fields(name, case.config))
    return found


def _fields(name: str, config: dict) -> dict:
    """What the recorded hyper-parameters say beyond the yaml of the original code."""
    if name == C4:
        return {}
    if name == VCR:
        return {"mask_size": config["source_config"]["mask_size"]}
    fields = {"canonical_scale": config["fpn"]["canonical_scale"], "nms_thresholds": [config["selection_nms"]]}
    if name == VG:
        return {**fields, "min_regions": config["num_features"], "max_regions": config["num_features"]}
    return {**fields, "min_regions": config["min_bboxes"], "max_regions": config["max_bboxes"]}


def image_processor(name: str) -> RegionDetectorImageProcessor:
    source, preprocess = golden(name).config["source_config"], golden(name).config.get("preprocess")
    if name == VCR:
        size = {"height": source["desired_height"], "width": source["desired_width"]}
    elif name == C4:
        size = {"shortest_edge": source["input"]["min_size_test"], "longest_edge": source["input"]["max_size_test"]}
    else:
        size = {"shortest_edge": preprocess["min_size"], "longest_edge": preprocess["max_size"]}
    return RegionDetectorImageProcessor.for_config(detector(name).config, size=size)
