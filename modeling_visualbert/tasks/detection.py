"""Object detection as a task of the training loop: COCO-format boxes -> a detector -> a region encoder.

The annotations are those of https://cocodataset.org/#format-data::

    {"images": [{"id": 17, "file_name": "17.jpg", "width": 160, "height": 128}],
     "annotations": [{"id": 1, "image_id": 17, "category_id": 3, "bbox": [x, y, width, height], "area": 304.0, "iscrowd": 0}],
     "categories": [{"id": 3, "name": "red star"}]}
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import ImageOps
from transformers import AutoConfig, AutoModelForObjectDetection, DFineConfig, PretrainedConfig, RTDetrResNetConfig

from ..corpus.build import CorpusConfig, ensure_corpus
from ..data.files import read_json, require, require_path
from ..hub_code.image_processing_visualbert import VisualBertImageProcessor, load_image
from ..hub_code.modeling_region_encoder import QueryRegionEncoder, best_classes
from ..hub_code.regions_visualbert import box_iou, center_to_corners
from ..training.args import TrainArgs
from ..training.task import Batch, Predictions, Rows, Task


@dataclass
class DetectionArgs(TrainArgs):
    """Arguments of detector training. Without annotation files it trains on the embedded corpus."""

    train_annotations: str | None = field(default=None, metadata={"help": "COCO-format JSON to train on"})
    train_images: str | None = field(default=None, metadata={"help": "folder with its images"})
    dev_annotations: str | None = field(default=None, metadata={"help": "COCO-format JSON to choose the weights with"})
    dev_images: str | None = field(default=None, metadata={"help": "folder with its images"})
    detector: str | None = field(
        default=None,
        metadata={"help": "checkpoint of any detector of transformers to start from (default: a tiny D-FINE)"},
    )
    image_height: int = field(default=128, metadata={"help": "the tiny D-FINE sees images of this height"})
    image_width: int = field(default=160, metadata={"help": "and this width"})
    num_queries: int = field(default=20, metadata={"help": "most objects in an image, for the tiny D-FINE"})
    score_threshold: float = field(default=0.2, metadata={"help": "regions below this confidence are dropped"})
    nms_threshold: float = field(default=0.5, metadata={"help": "of two boxes with a larger IoU one is dropped"})
    max_regions: int = field(default=20, metadata={"help": "regions kept in an image"})
    flip: bool = field(default=True, metadata={"help": "mirror half of the training images"})


class CocoDetection:
    """Images with boxes from a COCO-format file, by index.

    Raises:
        FileNotFoundError: The file or an image is missing.
        ValueError: A key is missing, an id occurs twice, or a box has no area or lies outside; names file and record.
    """

    def __init__(self, annotations_file: str | Path, images_dir: str | Path):
        self.file, self.images_dir = str(annotations_file), Path(images_dir)
        self.content = read_json(annotations_file)
        self.images = require(self.content, "images", self.file, list)
        names = {
            require(category, "id", self.file, int): require(category, "name", self.file, str)
            for category in require(self.content, "categories", self.file, list)
        }
        self.names = dict(sorted(names.items()))
        self.label_of = {category_id: label for label, category_id in enumerate(self.names)}
        self.category_of = dict(enumerate(self.names))
        sizes = dict(self._id_and_size(image, f"{self.file}: image {n}") for n, image in enumerate(self.images))
        if len(sizes) != len(self.images):
            raise ValueError(f"{self.file}: an image id occurs twice")
        self.objects: dict[int, list[dict]] = defaultdict(list)
        for number, record in enumerate(require(self.content, "annotations", self.file, list)):
            where = f"{self.file}: annotation {number}"
            if require(record, "image_id", where, int) not in sizes:
                raise ValueError(f"{where}: image {record['image_id']} is not listed")
            if require(record, "category_id", where, int) not in self.names:
                raise ValueError(f"{where}: category {record['category_id']} is not listed")
            self._check_box(require(record, "bbox", where, list), sizes[record["image_id"]], where)
            if not record.get("iscrowd", 0):
                self.objects[record["image_id"]].append(record)

    @staticmethod
    def _id_and_size(image: Any, where: str) -> tuple[int, tuple[int, int]]:
        require_path(image, "file_name", where)
        width, height = (require(image, side, where, int) for side in ("width", "height"))
        if width < 1 or height < 1:
            raise ValueError(f"{where}: {width} x {height} pixels; expected at least 1 x 1")
        return require(image, "id", where, int), (width, height)

    @staticmethod
    def _check_box(box: list[float], size: tuple[int, int], where: str) -> None:
        if len(box) != 4 or not all(type(number) in (int, float) for number in box):
            raise ValueError(f"{where}: bbox {box!r:.60}; expected four numbers x, y, width, height")
        x, y, width, height = box
        inside = x >= -1 and y >= -1 and x + width <= size[0] + 1 and y + height <= size[1] + 1
        if not (width > 0 and height > 0 and inside):
            raise ValueError(f"{where}: bbox {box} in an image of {size}; expected x, y, width, height inside it")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`id`, `image` (PIL), `class_labels` [N] and `boxes` [N, 4] (centre x, y, width, height in units of the image)."""
        image = self.images[index]
        objects = self.objects[image["id"]]
        boxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).reshape(-1, 4)
        boxes = torch.cat((boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]), dim=1)
        return {
            "id": image["id"],
            "image": load_image(self.images_dir / image["file_name"]),
            "class_labels": torch.tensor([self.label_of[o["category_id"]] for o in objects], dtype=torch.long),
            "boxes": boxes / torch.tensor([image["width"], image["height"]] * 2),
        }


def tiny_detector_config(names: list[str], num_queries: int) -> PretrainedConfig:
    """D-FINE with half a million parameters, which learned fastest of all detectors of its size."""
    backbone = RTDetrResNetConfig(
        embedding_size=24,
        hidden_sizes=[24, 48, 96],
        depths=[1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3"],
    )
    return DFineConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[48, 96],
        feat_strides=[8, 16],
        encoder_hidden_dim=64,
        encoder_ffn_dim=128,
        encoder_attention_heads=4,
        encode_proj_layers=[1],
        hidden_expansion=0.5,
        depth_mult=0.34,
        d_model=64,
        num_queries=num_queries,
        decoder_in_channels=[64, 64],
        decoder_ffn_dim=128,
        num_feature_levels=2,
        decoder_layers=2,
        decoder_attention_heads=4,
        num_denoising=num_queries,
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
    )


def detection_task(args: DetectionArgs, accelerator: Accelerator) -> Task:
    """Load annotations and detector."""
    with accelerator.main_process_first():
        splits = _splits(args)
    names = list(splits["train"].names.values())
    torch.manual_seed(args.seed)
    if args.detector is None:
        model = AutoModelForObjectDetection.from_config(tiny_detector_config(names, args.num_queries))
        image_processor = VisualBertImageProcessor(size={"height": args.image_height, "width": args.image_width})
    else:
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
        config = AutoConfig.from_pretrained(args.detector, **labels)
        model = AutoModelForObjectDetection.from_pretrained(args.detector, config=config, ignore_mismatched_sizes=True)
        image_processor = VisualBertImageProcessor.from_detector(args.detector)

    def collate(rows: Rows) -> Batch:
        batch = dict(image_processor([row["image"] for row in rows]))
        del batch["image_sizes"]
        return {**batch, "labels": [{"class_labels": row["class_labels"], "boxes": row["boxes"]} for row in rows]}

    def predict(outputs: Any, rows: Rows) -> Predictions:
        return detections(outputs, len(names), rows)

    def score(predictions: Predictions, split: str) -> dict[str, Any]:
        return coco_scores(predictions, splits[split])

    return Task(
        "detector",
        model,
        image_processor,
        splits,
        collate,
        predict,
        score,
        "map50",
        augment=mirror if args.flip else None,
    )


def mirror(row: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """Flip half of the images from left to right, boxes with them."""
    if torch.rand((), generator=generator) < 0.5:
        return row
    boxes = row["boxes"].clone()
    boxes[:, 0] = 1.0 - boxes[:, 0]
    return {**row, "image": ImageOps.mirror(row["image"]), "boxes": boxes}


def _splits(args: DetectionArgs) -> dict[str, CocoDetection]:
    if args.train_annotations is not None:
        if args.train_images is None or args.dev_annotations is None or args.dev_images is None:
            raise ValueError("--train_annotations needs --train_images, --dev_annotations and --dev_images as well")
        splits = {
            "train": CocoDetection(args.train_annotations, args.train_images),
            "dev": CocoDetection(args.dev_annotations, args.dev_images),
        }
        for role, split in splits.items():
            if not split.objects:
                raise ValueError(f"--{role}_annotations {split.file}: no boxes; expected at least one")
        return splits
    corpus = ensure_corpus(CorpusConfig())
    names = {"train": "train", "dev": "val", "test": "test"}
    return {
        key: CocoDetection(corpus / "detection" / f"instances_{split}.json", corpus / "images" / split)
        for key, split in names.items()
    }


def detections(outputs: Any, num_labels: int, rows: Rows) -> Predictions:
    """Every query's best class: one record per image, boxes x1, y1, x2, y2 in units of the image."""
    scores, labels = best_classes(outputs.logits, num_labels)
    boxes = center_to_corners(outputs.pred_boxes).clamp(0.0, 1.0)
    return [
        {"id": row["id"], "boxes": b.tolist(), "scores": s.tolist(), "labels": k.tolist()}
        for row, b, s, k in zip(rows, boxes, scores, labels, strict=True)
    ]


def coco_scores(predictions: Predictions, data: CocoDetection) -> dict[str, Any]:
    """mAP, mAP50 and recall as `pycocotools` computes them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sizes = {image["id"]: (image["width"], image["height"]) for image in data.images}
    results = []
    for record in predictions:
        width, height = sizes[record["id"]]
        scale = np.array([width, height, width, height])
        for box, score, label in zip(record["boxes"], record["scores"], record["labels"], strict=True):
            x1, y1, x2, y2 = (np.array(box) * scale).tolist()
            results.append(
                {
                    "image_id": record["id"],
                    "category_id": data.category_of[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO()
        truth.dataset = {"info": {}, **data.content}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {
        "map": float(evaluation.stats[0]),
        "map50": float(evaluation.stats[1]),
        "recall_100": float(evaluation.stats[8]),
        "num_examples": len(data),
    }


@torch.inference_mode()
def region_scores(
    encoder: QueryRegionEncoder, image_processor: VisualBertImageProcessor, data: CocoDetection
) -> dict[str, float]:
    """What matters to the text model: are all objects among the regions, once, with the right class?

    Returns:
        `recall50`, the share of objects with a region of IoU >= 0.5; `class_accuracy` of those regions; and `exact_count`, the
        share of images with as many regions as objects.
    """
    found = objects = right = exact = 0
    for start in range(0, len(data), 50):
        rows = [data[i] for i in range(start, min(start + 50, len(data)))]
        pixels = image_processor([row["image"] for row in rows]).to(encoder.device)
        regions = encoder(pixels["pixel_values"], pixels.get("pixel_mask"))
        for i, row in enumerate(rows):
            keep = regions.visual_attention_mask[i].bool()
            exact += int(keep.sum()) == len(row["boxes"])
            objects += len(row["boxes"])
            if not len(row["boxes"]) or not keep.any():
                continue
            iou, best = box_iou(center_to_corners(row["boxes"]), regions.boxes_unit[i][keep].cpu()).max(dim=1)
            hit = iou >= 0.5
            found += int(hit.sum())
            right += int((regions.class_ids[i][keep].cpu()[best] == row["class_labels"])[hit].sum())
    return {"recall50": found / objects, "class_accuracy": right / max(1, found), "exact_count": exact / len(data)}
