"""Cut the small set of detector numbers (`fixtures/golden/detectors`) out of the full one, which lies beside the repository.

python tests/make_detector_golden.py FOLDER_OF_THE_FULL_SET
"""

import gzip
import json
import lzma
import sys
from pathlib import Path

import torch
from detector_golden import C4, COCO, SMALL_SET, VCR, VG, sample
from safetensors import safe_open
from safetensors.torch import save

SMALL = 2000  # numbers; tensors with more are sampled
# Large tensors that later stages start from, and small sets of their own.
WHOLE = {
    C4: ("image_rgb_uint8", "res4", "feature_pooled", "obj_logits", "box_deltas", "roi_features"),
    COCO: ("image_rgb_uint8", "fc6", "bbox_pred"),
    VG: ("outputs/fc6", "outputs/bbox_deltas"),
}
LEFT_OUT = {
    C4: ("batch2", "stem_conv1_bn"),
    COCO: ("rpn_probs", "fc7_features", "cell_anchors"),
    VG: (
        *("batch2", "image_rgb", "image_resized", "stem", "rpn_", "level_", "anchors_", "roi_", "fc7", "class_probs"),
        *(f"outputs/{kind}{level}" for kind in "CP" for level in range(2, 7)),
        *("region_features", "cls_prob"),
    ),
    VCR: ("inputs", "outputs"),
}
OPS_LEFT_OUT = ("interpolate", "vcr_resize")
CHANNELS = 2  # of the five of the pooled maps


def main(source: Path) -> None:
    SMALL_SET.mkdir(parents=True, exist_ok=True)
    for name in (C4, COCO, VG, VCR):
        tensors, metadata = read(source / f"{name}.safetensors")
        tensors = {k: v for k, v in tensors.items() if "state_dict" in k or not any(w in k for w in LEFT_OUT[name])}
        if name in (VG, VCR):
            names = json.loads((source / f"{VG}.params.json").read_text())["X-101-64x4d full name to converted name"]
            tensors, metadata["drawn"] = names_of_weights(tensors, names)
        save_small(name, *sampled(tensors, WHOLE.get(name, ())), metadata)
        published = json.loads((source / f"{name}.params.json").read_text())
        packed = gzip.compress(json.dumps(published, separators=(",", ":")).encode(), mtime=0)
        (SMALL_SET / f"{name}.params.json.gz").write_bytes(packed)
    tensors, metadata = read(source / "ops.safetensors")
    save_small("ops", {k: crop_op(k, v) for k, v in tensors.items() if not k.startswith(OPS_LEFT_OUT)}, {}, metadata)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, {"config": file.metadata()["config"]}  # noqa: SIM118


def names_of_weights(tensors: dict[str, torch.Tensor], converted: dict[str, str | None]) -> tuple[dict, str]:
    """The tensors without the weights, and the shapes and seeds of these: one seed for both names of a weight."""
    drawn, seeds = {}, {}
    for key, value in sorted(tensors.items()):
        group, _, name = key.partition("/")
        if group.startswith("state_dict") and "cell_anchors" not in name and value.is_floating_point():
            seed = seeds.setdefault(converted.get(name) or name, len(seeds))
            drawn[key] = (list(value.shape), seed)
    return {key: value for key, value in tensors.items() if key not in drawn}, json.dumps(drawn)


def sampled(tensors: dict[str, torch.Tensor], whole: tuple[str, ...]) -> tuple[dict[str, torch.Tensor], dict]:
    small, shapes = {}, {}
    for key, value in tensors.items():
        if value.numel() > SMALL and not key.startswith("state_dict") and not any(part in key for part in whole):
            small[key], shapes[key] = sample(value).clone(), list(value.shape)
        else:
            small[key] = value
    return small, shapes


def crop_op(key: str, value: torch.Tensor) -> torch.Tensor:
    if key.startswith("roi_") and value.dim() == 4:
        return value[:, :CHANNELS].contiguous()
    if key.endswith("_hwc"):
        return value[..., :1].contiguous()
    return value


def save_small(name: str, tensors: dict[str, torch.Tensor], shapes: dict, metadata: dict[str, str]) -> None:
    """Compressed by a model of four-byte numbers, which saves a quarter."""
    content = save(tensors, {**metadata, "sampled": json.dumps(shapes)})
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 2, "pb": 2}]
    (SMALL_SET / f"{name}.safetensors.xz").write_bytes(lzma.compress(content, filters=filters))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
