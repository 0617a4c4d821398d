"""The recorded numbers of the original detectors: files, weights, inputs, stages.

There are two sets. The small one (`fixtures/golden/detectors/README.md`) is in the repository; the full one lies beside it
where somebody has it. Tests with the fixture `golden_set` run on each, others on the small set alone.
"""

import gzip
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
from helpers import FIXTURES, SHARED
from safetensors.torch import load

from modeling_visualbert.convert.region_detector import detector_from_weights
from modeling_visualbert.hub_code.image_processing_region_detector import RegionDetectorImageProcessor
from modeling_visualbert.hub_code.modeling_region_detector import RegionDetector

C4, VG, COCO, VCR = "frcnn_vg_c4", "vg_x101_fpn", "coco_r101_fpn_detectron", "vcr_simple_detector"
SMALL_SET = FIXTURES / "golden" / "detectors"
FULL_SET = SHARED / "golden" / "detectors"
SAMPLES = 256

_use_full_set = False


@pytest.fixture(params=["small", "full"] if FULL_SET.exists() else ["small"])
def golden_set(request) -> Iterator[None]:
    """Let [`golden`] and [`detector`] read the small set, then the full one where it is there."""
    global _use_full_set
    _use_full_set = request.param == "full"
    yield
    _use_full_set = False


@dataclass(frozen=True)
class Sample:
    """What the small set holds of a large tensor: its shape and evenly spaced numbers of it."""

    shape: torch.Size
    values: torch.Tensor


def sample(tensor: torch.Tensor) -> torch.Tensor:
    """Numbers of the flattened tensor at an odd distance, so that they do not stay in one column."""
    return tensor.flatten()[:: tensor.numel() // SAMPLES | 1]


@dataclass(frozen=True)
class Golden:
    """One recorded file: its hyper-parameters and all its tensors by name."""

    config: dict
    tensors: dict[str, torch.Tensor | Sample]

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors under a prefix, by the rest of their names."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self.tensors and not _use_full_set:
            pytest.skip(f"{key} is not in the small set")
        return self.tensors[key]

    def whole(self, key: str, otherwise: torch.Tensor) -> torch.Tensor:
        """The stored tensor, or the given one where the small set has a sample of it."""
        stored = self[key]
        return otherwise if isinstance(stored, Sample) else stored


def golden(name: str) -> Golden:
    return _golden(name, _use_full_set)


@lru_cache
def _golden(name: str, full: bool) -> Golden:
    if full:
        content = (FULL_SET / f"{name}.safetensors").read_bytes()
    else:
        content = lzma.decompress((SMALL_SET / f"{name}.safetensors.xz").read_bytes())
    header_size = int.from_bytes(content[:8], "little")
    metadata, tensors = json.loads(content[8 : 8 + header_size])["__metadata__"], load(content)
    for key, shape in json.loads(metadata.get("sampled", "{}")).items():
        tensors[key] = Sample(torch.Size(shape), tensors[key])
    for key, (shape, seed) in json.loads(metadata.get("drawn", "{}")).items():
        tensors[key] = _draw(shape, seed, key)
    return Golden(json.loads(metadata["config"]), dict(sorted(tensors.items())))


def _draw(shape: list[int], seed: int, key: str) -> torch.Tensor:
    """A weight of which the small set has the name and shape only."""
    if key.endswith(("running_mean", "running_var")):  # so that the file without statistics holds the same network
        return torch.full(shape, float(key.endswith("running_var")))
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return numbers / numbers[0].numel() ** 0.5 if len(shape) > 1 else 1 + numbers / 10


@lru_cache
def published_shapes(name: str) -> dict:
    return json.loads(gzip.decompress((SMALL_SET / f"{name}.params.json.gz").read_bytes()))


def detector(name: str) -> RegionDetector:
    """The network of a recorded file, converted from its original names."""
    return _detector(name, _use_full_set)


@lru_cache
def _detector(name: str, full: bool) -> RegionDetector:
    case = _golden(name, full)
    prefix = "detector." if name == VCR else ""
    weights = {prefix + key: value for key, value in case.group("state_dict/").items()}
    return detector_from_weights(weights, case.config["source_config"], name, **fields(name, case.config))[0]


def fields(name: str, config: dict) -> dict:
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
