"""The recorded numbers of the original detectors: files, weights, inputs, stages (`golden/detectors/README.md`)."""

import json
from dataclasses import dataclass
from functools import lru_cache

import torch
from helpers import shared
from safetensors import safe_open

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
