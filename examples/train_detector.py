"""Train a region detector on images with boxes in COCO format, and turn it into a region encoder.

    accelerate launch examples/train_detector.py --output_dir runs/detector                      # embedded corpus
    accelerate launch examples/train_detector.py --output_dir runs/detector \\
        --train_annotations boxes_train.json --train_images images/train \\
        --dev_annotations boxes_dev.json --dev_images images/dev

Pass the result, <output_dir>/region_encoder, to `run_vqa.py --region_encoder`. The first command trained the detector that
ships with the package.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForObjectDetection

from modeling_visualbert import QueryRegionEncoder
from modeling_visualbert.cli.errors import run_script
from modeling_visualbert.disk import write_json
from modeling_visualbert.tasks.detection import DetectionArgs, detection_task, region_scores
from modeling_visualbert.training.accelerator import end_run, make_accelerator
from modeling_visualbert.training.args import parse_args
from modeling_visualbert.training.loop import train
from modeling_visualbert.training.report import plot_curves
from modeling_visualbert.training.task import Task, to_device


def pixel_batches(task: Task, device: torch.device, batch_size: int = 50) -> Iterator[dict]:
    """Batches of the training images, as inputs of the region encoder."""
    rows = task.splits["train"]
    for start in range(0, len(rows), batch_size):
        batch = task.collate([rows[i] for i in range(start, min(start + batch_size, len(rows)))])
        del batch["labels"]
        yield to_device(batch, device)


def main() -> None:
    args = parse_args(
        DetectionArgs,
        __doc__.split("\n")[0],
        batch_size=32,
        epochs=6.0,
        learning_rate=1.5e-3,
        warmup_ratio=0.07,
        schedule="cosine",
        weight_decay=1e-4,
        log_steps=50,
    )
    accelerator = make_accelerator(args)
    task = detection_task(args, accelerator)
    metrics = train(task, args, accelerator)
    if accelerator.is_main_process:
        make_region_encoder(task, args, metrics, accelerator.device)
    end_run(accelerator)


def make_region_encoder(task: Task, args: DetectionArgs, metrics: dict, device: torch.device) -> None:
    """Wrap the best detector as a region encoder, standardise its features, and score its regions."""
    output_dir = Path(args.output_dir)
    encoder = QueryRegionEncoder.from_detector(
        AutoModelForObjectDetection.from_pretrained(output_dir / "best"),
        score_threshold=args.score_threshold,
        nms_threshold=args.nms_threshold,
        max_regions=args.max_regions,
    ).to(device)
    encoder.fit_standardisation(pixel_batches(task, device))
    encoder.save_pretrained(output_dir / "region_encoder")
    task.processor.save_pretrained(output_dir / "region_encoder")
    last = "test" if "test" in task.splits else "dev"
    metrics["regions"] = region_scores(encoder, task.processor, task.splits[last])
    write_json(output_dir / "metrics.json", metrics)
    write_json(output_dir / "region_encoder" / "metrics.json", metrics)
    plot_curves(output_dir, "detector")
    print(f"{last}: {metrics['splits'][last]} {metrics['regions']}\nregion encoder in {output_dir / 'region_encoder'}")


if __name__ == "__main__":
    run_script(main)
