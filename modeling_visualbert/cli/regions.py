"""`visualbert regions`, `extract`, `convert-features` and `store`: finding regions and keeping them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .output import add_bf16, check_picture_out, print_records, save_image, tell_slow_bf16

# Those of `features/`, written out here so that the parser imports nothing; a test compares them.
FEATURE_KINDS = ("hdf5", "lmdb", "npy", "npz", "th", "tsv")
IMAGE_IDS = ("name", "number", "stem")
DTYPES = ("float32", "float16")
_REGION_ENCODER = (
    "region encoder: a folder or Hub name, the file or Hub name of a published detector, or pythia-x101, frcnn-vg or "
    "detectron-r101, which are downloaded"
)
_DETECTOR_HELP = (
    "name of the detector (pythia-x101, frcnn-vg, detectron-r101, or any other); models that know theirs read no other"
)
_TOLD = ("scores", "class_ids", "attribute_ids", "attribute_scores")


def add_region_commands(commands: Any) -> None:
    """Add the commands to the parser of `visualbert`."""
    command = commands.add_parser("regions", help="find the regions of an image and draw them")
    command.add_argument("image", help="image file, or its http(s) address")
    _add_encoder_options(command)
    command.add_argument("--max_regions", type=int, help="keep only this many, the most confident")
    command.add_argument("--picture_out", metavar="FILE", help="draw boxes with attribute, class and confidence")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_regions)

    command = commands.add_parser("extract", help="find the regions of many images and store them")
    command.add_argument("source", help="folder of images, text file with their paths, or a dataset (--image_column)")
    command.add_argument("target", help="feature store to write; an interrupted run is continued")
    _add_encoder_options(command)
    _add_store_options(command)
    command.add_argument(
        "--max_regions", type=int, help="store only this many regions of each image, the most confident"
    )
    command.add_argument("--batch_size", type=int, default=8, help="images per batch (default: %(default)s)")
    command.add_argument(
        "--num_workers",
        type=int,
        default=2,
        help="threads that take a batch each, from the files to its regions (default: %(default)s)",
    )
    add_bf16(command)
    command.add_argument("--image_column", help="read the source as a dataset, with the images in this column")
    command.add_argument("--id_column", help="column of the dataset with the image ids (default: the row number)")
    command.add_argument("--split", default="train", help="split of the dataset (default: %(default)s)")
    command.add_argument("--cpu", action="store_true", help="do not use a GPU")
    command.add_argument(
        "--hash_images",
        action="store_true",
        help="record checksums of the images too, not only their sizes and dates, by which changed images are noticed",
    )
    command.add_argument(
        "--skip_bad_records",
        action="store_true",
        help="leave out images whose names give no id, or one that occurred before, too; they are listed like those that "
        "cannot be read",
    )
    command.set_defaults(run=_extract)

    _add_convert_command(commands)

    command = commands.add_parser("store", help="show, check and draw a feature store")
    command.add_argument("folder", help="the feature store")
    command.add_argument("--detector", help=f"set the {_DETECTOR_HELP}, where it is unknown")
    command.add_argument("--verify", action="store_true", help="read every shard and compare checksums")
    command.add_argument("--sheet", metavar="FILE", help="draw some images with their regions; needs --images")
    command.add_argument("--images", help="folder of the images, or text file with their paths")
    command.add_argument("--ids", choices=IMAGE_IDS, default="stem", help="see `extract` (default: %(default)s)")
    command.add_argument("--count", type=int, default=9, help="images on the sheet (default: %(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_store)


def _add_convert_command(commands: Any) -> None:
    command = commands.add_parser("convert-features", help="convert published region features to a feature store")
    command.add_argument(
        "source",
        help="TSV (or its name without .0, .1, ...), .th, LMDB or HDF5 file, or folder of such or of .npy or .npz files",
    )
    command.add_argument("target", help="feature store to write; an interrupted run is continued")
    command.add_argument("--kind", choices=FEATURE_KINDS, help="format of the source (default: from its suffix)")
    _add_store_options(command)
    command.add_argument("--detector", default="unknown", help=_DETECTOR_HELP)
    command.add_argument(
        "--classes", help="text file with the detector's class names, one per line in the order of their ids"
    )
    command.add_argument("--attributes", help="text file with its attribute names, likewise")
    layout = command.add_mutually_exclusive_group()
    for name, shape in (("regions_first", "(regions, dim)"), ("features_first", "(dim, regions)")):
        layout.add_argument(
            f"--{name}",
            dest="layout",
            action="store_const",
            const=name,
            help=f"features are {shape}; only needed where nothing beside them tells",
        )
    command.add_argument(
        "--normalised_boxes",
        action="store_true",
        help="boxes of the source are in 0..1, units of the image; the store holds them in pixels",
    )
    command.add_argument(
        "--skip_bad_records",
        action="store_true",
        help="leave out images that are damaged, contradict themselves or occur twice, and list them in failed.jsonl",
    )
    command.set_defaults(run=_convert_features)


def _add_encoder_options(command: argparse.ArgumentParser) -> None:
    encoder = command.add_mutually_exclusive_group(required=True)
    encoder.add_argument("--region_encoder", help=_REGION_ENCODER)
    encoder.add_argument(
        "--grid_backbone",
        help="cut images into cells instead: a vision model of transformers, or one for images and text, by name or folder",
    )
    command.add_argument(
        "--grid_size",
        help="with --grid_backbone: rows and columns of cells, such as 6 or 6x8 (default: those of its map)",
    )
    command.add_argument(
        "--image_size",
        help="with --grid_backbone: size of the images, such as 224 or 384x512 for height x width (default: its own)",
    )


def _open_encoder(args: argparse.Namespace, images: Iterable[Any], spatial: bool = False) -> tuple[Any, Any]:
    """The region encoder that the arguments name, with its image processor; `images` are some that it will read."""
    from ..convert.published_detectors import add_spatial_features, open_region_encoder
    from ..features.extract import sample_sizes
    from ..towers import open_tower

    if args.grid_backbone is not None:
        found = open_tower(args.grid_backbone, args.grid_size, args.image_size, sample_sizes(images))
        if spatial:
            add_spatial_features(found[0], args.grid_backbone)
        return found
    for name in ("grid_size", "image_size"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} without --grid_backbone; expected both")
    return open_region_encoder(args.region_encoder, spatial)


def _add_store_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--ids",
        choices=IMAGE_IDS,
        default="stem",
        help="image ids of the store: the number at the end of its name (COCO, VQA, Flickr30k), the name without "
        "folder and suffix (NLVR2), or the whole name (default: %(default)s)",
    )
    command.add_argument(
        "--dtype", choices=DTYPES, default="float16", help="data type of the stored features (default: %(default)s)"
    )
    command.add_argument(
        "--spatial",
        action="store_true",
        help="append the six spatial numbers of Flickr30k to each feature: corners, width and height of the box, in units of "
        "the image",
    )
    command.add_argument(
        "--images_per_shard", type=int, default=1000, help="images per file of the store (default: %(default)s)"
    )


def _regions(args: argparse.Namespace) -> None:
    from ..features.extract import extract_regions, region_names
    from ..hub_code.image_processing_visualbert import load_image
    from ..visualization import draw_regions, region_labels

    if args.max_regions is not None and args.max_regions < 1:
        raise ValueError(f"--max_regions {args.max_regions}; expected at least 1")
    check_picture_out(args)
    image = load_image(args.image, download=True)
    encoder, image_processor = _open_encoder(args, [image])
    ((_, found),) = extract_regions(encoder, image_processor, [(args.image, image)], progress=False)
    found = {name: value if name == "image_size" else value[: args.max_regions] for name, value in found.items()}
    names = region_names(encoder)
    labels, boxes = region_labels(found, names["classes"], names["attributes"]), found["boxes"].tolist()
    records = [
        {"label": label, "box": box, **{name: found[name][i].item() for name in _TOLD if name in found}}
        for i, (label, box) in enumerate(zip(labels, boxes, strict=True))
    ]
    lines = [
        f"{', '.join(f'{side:.0f}' for side in box):>24}  {label}" for box, label in zip(boxes, labels, strict=True)
    ]
    print_records(args, records, [f"{len(records)} regions", *lines])
    if args.picture_out:
        weights = found["scores"].tolist() if "scores" in found else None
        save_image(draw_regions(image, boxes, weights, labels), args)


def _extract(args: argparse.Namespace) -> None:
    from ..features.extract import ExtractionOptions, extract_store, launched_processes
    from ..features.images import list_dataset_images, list_images

    for name in ("batch_size", "images_per_shard"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}; expected at least 1")
    skipped: list[str] = []
    if args.image_column:
        images = list_dataset_images(args.source, args.image_column, args.id_column, args.split)
    else:
        images = list_images(args.source, args.ids, skipped if args.skip_bad_records else None)
    # As a feature store has them, so that training takes the same sizes.
    by_id = sorted(images, key=lambda pair: pair[0])
    if args.bf16:
        tell_slow_bf16()
    encoder, image_processor = _open_encoder(args, (image for _, image in by_id), args.spatial)
    processes = launched_processes(args.cpu)
    options = ExtractionOptions(
        *(args.dtype, args.images_per_shard, args.max_regions, args.batch_size, args.num_workers, args.hash_images),
        bf16=args.bf16,
    )
    result = extract_store(args.target, images, encoder, image_processor, options, processes)
    if not processes.is_main:
        return
    rate = result["images"] / max(result["seconds"], 1e-9)
    print(f"{args.target}: regions of {result['num_images']} images ({rate:.1f} images/s in this run)")
    if result["changed"]:
        print(
            f"{result['changed']} images had changed after their regions were found; theirs are those of the images now",
            file=sys.stderr,
        )
    if skipped:
        path = Path(args.target) / "skipped.txt"
        path.write_text("".join(f"{line}\n" for line in skipped), encoding="utf-8")
        print(f"{len(skipped)} images were left out, see {path}", file=sys.stderr)
    if result["failed"]:
        print(
            f"{result['failed']} images could not be read, see {Path(args.target) / 'failed.jsonl'}; "
            "run the command again to retry them",
            file=sys.stderr,
        )


def _convert_features(args: argparse.Namespace) -> None:
    from ..features.convert import convert_features
    from ..features.draft import read_failures

    store = convert_features(
        args.source,
        args.target,
        args.kind,
        args.ids,
        args.dtype,
        args.detector,
        args.images_per_shard,
        args.classes,
        args.attributes,
        spatial=args.spatial,
        layout=args.layout,
        normalised_boxes=args.normalised_boxes,
        skip_bad_records=args.skip_bad_records,
    )
    print(f"{args.target}: regions of {len(store)} images, dim {store.dim}, {store.dtype}")
    if failures := read_failures(Path(args.target)):
        path = Path(args.target) / "failed.jsonl"
        first = failures[0]["image_id"]
        print(f"{len(failures)} bad records were left out ({first}, ...), see {path}", file=sys.stderr)


def _store(args: argparse.Namespace) -> None:
    from ..features.images import list_images
    from ..features.sheet import store_sheet
    from ..features.store import FeatureStore, name_detector

    if args.detector is not None:
        name_detector(args.folder, args.detector)
    store = FeatureStore(args.folder)
    if args.verify:
        store.verify()
    hidden = ("shards", "ids", "images", "classes", "attributes")
    about = {key: value for key, value in store.info.items() if key not in hidden}
    about |= {"shards": len(store.info["shards"]), "bytes": sum(shard["bytes"] for shard in store.info["shards"])}
    about |= {key: len(store.info[key] or []) for key in ("classes", "attributes")}
    files = store.image_files
    about["image_files"] = (
        "not recorded: images that change are not noticed"
        if files is None
        else {"recorded": len(files), "hashed": sum(facts.sha256 is not None for facts in files.values())}
    )
    if args.json:
        print(json.dumps(about, indent=2))
    else:
        print("\n".join(f"{key:18}{json.dumps(value)}" for key, value in about.items()))
    if args.verify:
        print("all checksums and image positions are right", file=sys.stderr)
    images = dict(list_images(args.images, args.ids)) if args.images else {}
    if args.sheet:
        if not args.images:
            raise ValueError("--sheet needs --images: a feature store does not hold the images")
        store_sheet(store, images, args.count).save(args.sheet)
        print(f"drawn: {args.sheet}", file=sys.stderr)
    if args.images:
        paths = {key: path for key, path in images.items() if isinstance(path, Path)}
        store.check_images(paths)
        known = sum(key in (store.image_files or {}) for key in paths)
        print(f"{known} of {len(paths)} images compared with what is recorded of their files", file=sys.stderr)
