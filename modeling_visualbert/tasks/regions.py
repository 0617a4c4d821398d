"""Where the regions of the data's images come from: found by a region encoder, stored, or read from pixels in every step."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from PIL import Image
from transformers import (
    ResNetConfig,
)

from ..cache_dir import default_cache_dir
from ..checkpoints import load_inner_region_encoder, open_config, open_image_processor
from ..convert.published_detectors import open_region_encoder
from ..corpus.build import in_corpus
from ..data.table_images import TableImages
from ..data.table_stream import StreamedRows
from ..disk import sha256_of
from ..features.batches import StoredRegions
from ..features.extract import (
    Boxes,
    ExtractionOptions,
    Processes,
    describe_detector,
    extract_store,
    image_processor_fields,
    image_processor_hash,
    load_region_encoder,
    sample_sizes,
    unreadable,
)
from ..features.format import FORMAT
from ..features.images import image_id_from_number, image_id_from_stem
from ..features.store import FeatureStore, partial_folder
from ..hub_code.configuration_grid_encoder import GridRegionEncoderConfig
from ..hub_code.configuration_visualbert import VisualBertConfig
from ..hub_code.files_visualbert import naming
from ..hub_code.image_processing_visualbert import VisualBertImageProcessor, load_image
from ..hub_code.modeling_grid_encoder import GridRegionEncoder
from ..hub_code.modeling_region_encoder import RegionEncoder
from ..hub_code.regions_visualbert import check_detector, spatial_hint
from ..published import find_published_checkpoint
from ..towers import SAMPLE, grid_of, image_size_of, open_tower
from .common import CORPUS, DETECTOR, SMALL_BACKBONE, TaskArgs
from .tables import ImageFile, TaskData

_REGION_BYTES = 16 + 4 * 4  # of the box, and of scores, classes and attributes


@dataclass
class Images:
    """Where the regions of the data's images come from.

    Args:
        get: Image key -> regions (a mapping) or the path of the image; None for text only.
        encoder, image_processor: What finds the regions; None when stored features are all there is.
        region_dim: Length of a feature.
        paths: Image files by key, where they are known.
        detector: Name and fingerprint of what found the regions.
    """

    get: Callable[[Hashable], Any] | None
    encoder: RegionEncoder | None
    image_processor: VisualBertImageProcessor | None
    region_dim: int
    paths: Mapping[Any, ImageFile]
    detector: Mapping[str, Any]


def prepare_images(
    args: TaskArgs, data: TaskData, processes: Processes, boxes: Mapping[Any, Boxes] | None = None
) -> tuple[Images, TaskData]:
    """Find the regions of all images of the data, or where they are stored. All processes call this at the same time.

    Args:
        args: The run's arguments.
        data: What the task reads.
        processes: Those that find regions together.
        boxes: Given boxes of each image in pixels, the whole image first, to describe instead of finding some.

    Returns:
        Where the regions are, and the data: with `skip_bad_records` without the rows whose images are missing or cannot be read.

    Raises:
        FileNotFoundError, ValueError: Images or regions are missing.
    """
    with processes.main_first():  # which downloads and converts it, if it has to be
        encoder, image_processor = _region_encoder(args, data)
    made_by = None if encoder is None else encoder.identity()  # computed once: it reads all weights
    store = None if args.features_dir is None else _given_store(args, encoder, made_by)
    dim, detector = _check_features(args, encoder, made_by, store)
    if args.text_only:  # the model is the same, so that a later stage can start from it
        return Images(None, encoder, image_processor, dim, {}, detector), data
    if args.from_pixels:
        if encoder is None:
            raise ValueError("--from_pixels needs a region encoder: pass --region_encoder")
        paths, left_out = _existing(data, args.skip_bad_records)
        _check_images(args, encoder, data.images_dir)
        limit_regions(encoder, args.num_regions)
        if args.skip_bad_records:
            left_out |= _unreadable(paths, paths)
        images = Images(partial(_image_of, paths), encoder, image_processor, dim, paths, detector)
        return images, _rows_with_images(data, left_out)
    if reads_objects(encoder):
        raise ValueError(
            f"{args.region_encoder or args.init_from}: this detector describes objects by their class and outline, which no "
            "feature store has; expected --from_pixels, and the data of VCR"
        )
    paths, left_out = {}, {}
    if store is None:
        assert encoder is not None and image_processor is not None and made_by is not None
        paths, left_out = _existing(data, args.skip_bad_records)
        _check_images(args, encoder, data.images_dir)
        how = args.skip_bad_records, args.hash_images
        store = _stored_regions(paths, boxes, encoder, image_processor, processes, *how)
        left_out |= _unreadable(paths, [key for key in paths if key not in store])
    keys = [key for key in data.all_keys() if key not in left_out]
    id_of = ids_in_store(store, keys)
    if args.features_dir is not None and store.image_files:
        _check_unchanged(store, data, keys, id_of)
    missing = [key for key in keys if id_of(key) not in store]
    if missing and not (args.skip_bad_records and len(missing) < len(keys)):
        raise ValueError(f"{store.folder}: no regions of image {missing[0]} ({len(missing)} are missing)")
    left_out |= {key: f"{store.folder}: no regions of image {key}" for key in missing}

    def regions(key: Hashable) -> StoredRegions:
        found = store.arrays(id_of(key))
        # They are stored by falling confidence.
        kept = {name: found[name][: args.num_regions] for name in ("visual_embeds", "boxes") if name in found}
        return StoredRegions(kept)

    limit_regions(encoder, args.num_regions)  # the trained model, reading pixels, finds as many as were stored
    images = Images(regions, encoder, image_processor, dim, paths, detector)
    return images, _rows_with_images(data, left_out)


def _image_of(paths: Mapping[Any, ImageFile], key: Any) -> ImageFile:
    """The image of a row, which has its key, or if it was streamed the image itself."""
    return key if isinstance(key, (Path, bytes)) else paths[key]


def _rows_with_images(data: TaskData, left_out: Mapping[Hashable, str]) -> TaskData:
    """The data without the rows whose images are left out; each adds an error to `skipped`.

    Raises:
        ValueError: No row of a split is left.
    """
    if not left_out:
        return data
    splits: dict[str, Any] = {}
    skipped = [*data.skipped]
    for role, split in data.splits.items():
        if isinstance(split, StreamedRows):  # left out when they are read
            splits[role] = split
            continue
        kept = []
        for number, keys in enumerate(data.keys(split)):
            reasons = [left_out[key] for key in keys if key in left_out]
            # Rows of a table, which may have been cut into splits, are named in the reasons.
            where = role if data.is_table else f"{role}: row {number}"
            skipped += [f"{where}: {reason}" for reason in reasons[:1]]
            kept += [] if reasons else [number]
        if len(split) and not kept:
            raise ValueError(f"{role}: all {len(split)} rows are left out, the last because of {skipped[-1]}")
        splits[role] = split.select(kept)
    return replace(data, splits=splits, skipped=skipped)


def reads_objects(encoder: RegionEncoder | None) -> bool:
    """Whether it is VCR's detector, see `RegionDetectorConfig.reads_objects`; other region encoders have no such property."""
    return encoder is not None and getattr(encoder.config, "reads_objects", False)


def _region_encoder(
    args: TaskArgs, data: TaskData
) -> tuple[RegionEncoder, VisualBertImageProcessor] | tuple[None, None]:
    """The region encoder of the run with its image processor: the one asked for, that of the starting point, or, unless
    features of some other detector are given, the one of the embedded corpus."""
    if args.grid_backbone is not None:
        return _grid_encoder(args, data)
    if args.region_encoder == CORPUS:
        return load_region_encoder(DETECTOR)
    if args.region_encoder is not None:
        return open_region_encoder(args.region_encoder)
    if args.init_from is not None:
        with naming(args.init_from):  # safetensors' errors name no file
            encoder = load_inner_region_encoder(args.init_from)
        if encoder is not None:
            return encoder, open_image_processor(args.init_from)
    if args.features_dir is not None:
        return None, None
    return load_region_encoder(DETECTOR)


def _grid_encoder(args: TaskArgs, data: TaskData) -> tuple[RegionEncoder, VisualBertImageProcessor]:
    store = None if args.features_dir is None else FeatureStore(args.features_dir)
    sizes = _some_sizes(data, store)
    if args.grid_backbone != SMALL_BACKBONE:
        encoder, image_processor = open_tower(str(args.grid_backbone), args.grid_size, args.image_size, sizes)
        prepared = None if store is None else store.detector.get("image_processor_hash")
        if prepared not in (None, image_processor_hash(image_processor)) and not args.any_detector:
            raise ValueError(
                f"{args.features_dir}: the images of these features were prepared in another way than here for "
                f"{args.grid_backbone}; expected the --image_size of `visualbert extract`"
            )
        return encoder, image_processor
    torch.manual_seed(args.seed)  # the same new weights in every process
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic", out_features=["stage3"]
    )
    size = image_size_of(config, {}, args.image_size, sizes)
    rows, columns = grid_of(config, size, args.grid_size, sizes)
    encoder = GridRegionEncoder(GridRegionEncoderConfig(backbone_config=config, grid_rows=rows, grid_columns=columns))
    return encoder, VisualBertImageProcessor(size=size)


def _some_sizes(data: TaskData, store: FeatureStore | None) -> list[tuple[int, int]]:
    """Height and width of some images of the data, or of a store's, in the same order as `visualbert extract`."""
    if store is not None:
        found = (store[image_id].get("image_size") for image_id in sorted(store)[:SAMPLE])
        return [(int(size[0]), int(size[1])) for size in found if size is not None]
    keys = data.all_keys()[:SAMPLE]
    wanted = {name: {*keys} & some for name, some in data.wanted().items()}
    paths: Mapping[Any, ImageFile] = {}
    with suppress(FileNotFoundError, ValueError):  # refused where they are read; a run without images needs none
        paths = data.find_paths(data.images_dir, wanted=wanted)
    return sample_sizes(partial(paths.__getitem__, key) for key in keys if key in paths)


def _given_store(args: TaskArgs, encoder: RegionEncoder | None, made_by: Mapping[str, str] | None) -> FeatureStore:
    """The store of `features_dir`; refused if it is known to be of another detector than the model's."""
    if encoder is None or made_by is None:
        return FeatureStore(args.features_dir or "")
    fingerprint = None if args.any_detector else made_by["fingerprint"]
    return FeatureStore(args.features_dir or "", encoder.config.region_dim, fingerprint)


def _check_features(
    args: TaskArgs, encoder: RegionEncoder | None, made_by: Mapping[str, str] | None, store: FeatureStore | None
) -> tuple[int, dict[str, Any]]:
    """Length and detector of the features that the model will read.

    The model to start from, the region encoder and the stored features, as far as there are any, have to agree on both; if not,
    they are refused before any features are made.
    """
    links: list[tuple[str, int, Mapping[str, Any] | None]] = []
    given = args.region_encoder or args.grid_backbone
    if args.init_from is not None:
        start = open_config(args.init_from)
        if isinstance(start, VisualBertConfig) and (given or not start.region_encoder_config):
            published = find_published_checkpoint(args.init_from)
            trained_on = start.feature_detector if published is None else {"name": published.detector.name}
            links.append((args.init_from, start.visual_embedding_dim, trained_on))
    if encoder is not None:
        name = given or args.init_from or "the region encoder of the embedded corpus"
        links.append((name, encoder.config.region_dim, made_by))
    if store is not None:
        links.append((str(store.folder), store.dim, store.detector))
    for (model, wanted, expected), (features, dim, found) in pairwise(links):
        if dim != wanted:
            raise ValueError(
                f"{features}: features of dim {dim}, this model expects {wanted} ({model}){spatial_hint(dim, wanted)}"
            )
        if not args.any_detector:
            check_detector(features, found or {}, model, expected)
    _, dim, found = links[-1]
    return dim, {key: (found or {}).get(key) for key in ("name", "fingerprint")}


def _check_images(args: TaskArgs, encoder: RegionEncoder, images_dir: Path) -> None:
    """Refuse to look for the shapes of the embedded corpus in other images, unless that was asked for."""
    is_default = args.region_encoder is None and encoder.name_or_path == str(DETECTOR)
    if is_default and not in_corpus(images_dir):
        raise ValueError(
            f"{images_dir}: these images are not the embedded corpus; pass --region_encoder or --features_dir"
        )


def ids_in_store(store: FeatureStore, keys: Sequence[Any]) -> Callable[[Any], Any]:
    """How a store calls the images: by their keys, or where these are paths by the names or the numbers of the files, or by their
    paths below a folder, whichever `--ids` of `visualbert extract` made them.

    Raises:
        ValueError: Two images have the same name in the store.
    """
    if not keys or not isinstance(keys[0], str) or keys[0] in store:
        return lambda key: key
    for id_of in (image_id_from_stem, image_id_from_number):
        try:
            ids = [id_of(key) for key in keys]
        except ValueError:  # a name without a number
            continue
        if ids[0] in store:
            name, count = Counter(ids).most_common(1)[0]
            if count > 1:
                raise ValueError(f"{store.folder}: {count} images are called {name!r}; expected different names")
            return id_of
    first = Path(keys[0])
    for base in first.parents:
        if first.relative_to(base).as_posix() in store:
            return lambda key: Path(key).relative_to(base).as_posix() if Path(key).is_relative_to(base) else key
    return lambda key: key


def limit_regions(encoder: RegionEncoder | None, count: int | None) -> None:
    """Let a region encoder find at most `count` regions, the most confident ones."""
    if isinstance(encoder, GridRegionEncoder) and count is not None:
        raise ValueError(f"--num_regions {count}: a grid has all of its cells; choose their number with --grid_size")
    if encoder is not None and count is not None:
        encoder.config.max_regions = min(count, encoder.config.max_regions)


def _existing(data: TaskData, skip: bool) -> tuple[Mapping[Any, ImageFile], dict[Hashable, str]]:
    """The files of the images, and why there are none of others, which is an error unless those are to be skipped."""
    paths, keys = data.find_paths(data.images_dir, wanted=data.wanted()), data.all_keys()
    missing = [key for key in keys if key not in paths]
    if missing and not (skip and len(missing) < len(keys)):
        raise FileNotFoundError(f"{data.images_dir}: no file of image {missing[0]} ({len(missing)} are missing)")
    left_out = {key: f"{data.images_dir}: no file of image {key}" for key in missing}
    if isinstance(paths, TableImages):  # has no others, and reads an image when it is opened
        return paths, left_out
    return {key: paths[key] for key in keys if key in paths}, left_out


def _unreadable(paths: Mapping[Any, ImageFile], keys: Iterable[Any]) -> dict[Hashable, str]:
    """Why some of these images cannot be read, by key."""
    return unreadable({key: partial(_load_named, paths, key) for key in keys})


def _load_named(paths: Mapping[Any, ImageFile], key: Any) -> Image.Image:
    """An image. What is wrong with it names, in a table, the first row about it: where its bytes are there, it has no other
    name."""
    try:
        return load_image(paths[key])
    except (ValueError, OSError) as error:
        if not isinstance(paths, TableImages):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{paths.place(key)}: {error}") from error


def _check_unchanged(store: FeatureStore, data: TaskData, keys: Sequence[Any], id_of: Callable[[Any], Any]) -> None:
    """Refuse stored regions of images that have changed. They need no images, but those that are there are compared."""
    paths: Mapping[Any, ImageFile] = {}
    with suppress(FileNotFoundError, ValueError):
        paths = data.find_paths(data.images_dir, wanted=data.wanted())
    files = {id_of(key): _file(paths, key) for key in keys if key in paths}
    store.check_images({key: path for key, path in files.items() if path is not None})


def _file(paths: Mapping[Any, ImageFile], key: Any) -> Path | None:
    """The file of an image; None if only its bytes are known."""
    path = paths.path(key) if isinstance(paths, TableImages) else paths[key]
    return path if isinstance(path, Path) else None


def _identity(paths: Mapping[Any, ImageFile], key: Any, hash_images: bool) -> Any:
    """What tells whether an image changed: path, size and time of its file and, if asked for, its content; or the hash of its
    bytes."""
    path = _file(paths, key)
    if path is None:
        return key
    status = path.stat()
    content = [sha256_of(path)] if hash_images else []
    return [str(path.resolve()), status.st_size, status.st_mtime_ns, *content]


def _stored_regions(
    paths: Mapping[Any, ImageFile],
    boxes: Mapping[Any, Boxes] | None,
    encoder: RegionEncoder,
    image_processor: VisualBertImageProcessor,
    processes: Processes,
    skip: bool,
    hash_images: bool,
) -> FeatureStore:
    """The regions of all images of the data: found by all processes together on first use, and kept in the cache as long as no
    image changes. What is interrupted goes on with the next run.

    With `skip`, images that cannot be read are not in it.
    """
    files = [_identity(paths, key, hash_images) for key in paths]
    given = None if boxes is None else [boxes[key] for key in paths]
    options = ExtractionOptions(images_per_shard=_shard_size(len(paths)), num_workers=2)
    treatment = json.dumps(image_processor_fields(image_processor), indent=2, sort_keys=True) + "\n"
    detector = describe_detector(encoder, image_processor)
    identity = [FORMAT, options.dtype, list(paths), files, given, detector, treatment, *(["skip"] if skip else [])]
    folder = default_cache_dir() / "regions" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Another run may be about to find the same regions; the other processes of this one wait inside.
    with FileLock(f"{folder}.lock") if processes.is_main else nullcontext():
        if processes.is_main and not (folder / "index.json").is_file():
            _announce(folder, encoder, given, len(paths), processes)
        images = [(str(key), partial(_load_named, paths, key)) for key in paths]
        extract_store(folder, images, encoder, image_processor, options, processes, True, given, skip)
    encoder.cpu()
    return FeatureStore(folder)


def _shard_size(num_images: int) -> int:
    """Images per shard, which is what a kill loses. It depends on nothing else, so that another number of processes can go on."""
    return min(256, max(16, num_images // 64))


def _announce(
    folder: Path, encoder: RegionEncoder, boxes: Sequence[Boxes] | None, num_images: int, processes: Processes
) -> None:
    count = encoder.config.max_regions * num_images if boxes is None else sum(map(len, boxes))
    size = count * (2 * encoder.config.region_dim + _REGION_BYTES)
    found = len(list(partial_folder(folder).glob("parts/*.json"))) * _shard_size(num_images)
    done = f" (of about {min(found, num_images):,} they are there already)" if found else ""
    who = f" with {processes.count} processes" if processes.count > 1 else ""
    print(
        f"finding the regions of {num_images:,} images{who}{done}; they are kept in {folder}, which will have "
        f"{'up to ' if boxes is None else ''}{size / 1e6:,.1f} MB",
        file=sys.stderr,
    )
