"""Images -> regions, in batches, with any region encoder; and a whole collection of images -> a feature store."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby, islice
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

from ..checkpoints import check_name, open_config, open_image_processor
from ..data.files import read_json
from ..data.image_size import upright_size
from ..hub_code.image_processing_visualbert import load_image
from ..hub_code.modeling_grid_encoder import GridRegionEncoder
from ..hub_code.modeling_region_encoder import RegionEncoder
from ..hub_code.regions_visualbert import encode_boxes, find_regions, given_boxes
from .draft import Failure, StoreDraft, check_plan, make_plan, read_failures, saying_how_to_go_on
from .format import Row, encode_row
from .image_files import ImageFile, find_changes
from .store import FeatureStore, partial_folder

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")
ImageOrFile = (
    Path | str | Image.Image | Callable[[], Path | bytes | Image.Image]
)  # a callable need not decode the image
OnError = Callable[[Any, Exception], None]
Boxes = Sequence[Sequence[float]]


def load_region_encoder(name: str | Path) -> tuple[RegionEncoder, Any]:
    """A region encoder of any kind, in evaluation mode, with its image processor.

    Args:
        name: Folder or Hub name; its `config.json` says which kind it is.

    Raises:
        FileNotFoundError: It can only be a local folder, and there is none.
        ValueError: It is not a region encoder, or its weights are damaged or lack tensors.
    """
    name = str(name)
    check_name(name, "region encoder")
    config = open_config(name)
    encoder = AutoModel.from_pretrained(name) if getattr(config, "region_dim", None) is not None else None
    if not isinstance(encoder, RegionEncoder):
        sees = hasattr(config, "vision_config") or type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
        hint = "; --grid_backbone takes vision models" if sees else ""
        raise ValueError(f"{name} is a {config.model_type!r} checkpoint; expected a region encoder{hint}")
    return encoder.eval(), open_image_processor(name)


def describe_detector(encoder: Any, image_processor: Any) -> dict[str, Any]:
    """The `detector` of a store's index, with hashes by which another detector or other preprocessing is noticed."""
    unrelated = ("_name_or_path", "auto_map", "transformers_version")
    config = {name: value for name, value in encoder.config.to_dict().items() if name not in unrelated}
    unsaved = {"architectures": [type(encoder).__name__], "dtype": "float32"}  # fields that saving fills in
    config |= {name: config.get(name) or value for name, value in unsaved.items()}
    spatial = {"spatial_features": True} if config.get("spatial_features") else {}
    return {
        **encoder.identity(),
        "config_hash": _hash(config),
        "image_processor_hash": image_processor_hash(image_processor),
        **spatial,
    }


def image_processor_fields(image_processor: Any) -> dict[str, Any]:
    """The settings that say what it does to images, without the location of its code."""
    return {k: v for k, v in json.loads(image_processor.to_json_string()).items() if k != "auto_map"}


def image_processor_hash(image_processor: Any) -> str:
    """By which other preprocessing is noticed."""
    return _hash(image_processor_fields(image_processor))


def region_names(encoder: Any) -> dict[str, list[str] | None]:
    """A region encoder's names of `classes` and `attributes`, in the order of their ids; None where it has none."""
    config = encoder.config
    if isinstance(encoder, GridRegionEncoder):
        return {"classes": ["cell"], "attributes": None}
    labels = getattr(getattr(config, "detector_config", None) or config, "id2label", None) or {}
    classes = [str(labels[number]) for number in sorted(labels)]
    if all(name == f"LABEL_{number}" for number, name in enumerate(classes)):
        classes = []
    attributes = getattr(config, "attribute_names", None)
    return {"classes": classes or None, "attributes": None if attributes is None else [str(a) for a in attributes]}


def extract_regions(
    region_encoder: RegionEncoder,
    image_processor: Any,
    images: Iterable[tuple[Key, ImageOrFile]],
    batch_size: int = 32,
    total: int | None = None,
    progress: bool = True,
    boxes: Mapping[Key, Sequence[Sequence[float]]] | None = None,
    on_error: OnError | None = None,
    num_workers: int = 0,
    group: Callable[[Key], Hashable] | None = None,
    name_of: Callable[[Key], str] = str,
    bf16: bool = False,
) -> Iterator[tuple[Key, dict[str, torch.Tensor]]]:
    """Yield (image key, regions with boxes in pixels) for each (image key, image), in order.

    Args:
        region_encoder, image_processor: The detector.
        images: Images or image files, each with any hashable key.
        batch_size: Images per forward pass.
        total: Number of images, for the progress bar.
        progress: Whether to show a progress bar.
        boxes: By image key, given boxes x1, y1, x2, y2 in pixels, to be described instead of detected ones.
        on_error: Called with the key and the error of each image that cannot be read, which is then left out; by default
            the error is raised.
        num_workers: Threads that take a batch each, from the files to its regions; they share torch's threads. With 0, this
            one does everything.
        group: Function of the key; only consecutive images with equal results share a batch.
        name_of: Name of the image with this key, for error messages.
        bf16: Whether the detector multiplies in bfloat16.

    Raises:
        ValueError, FileNotFoundError, TypeError: An image cannot be read; see [`load_image`].
        ValueError: A given box is not finite, inverted, in units of the image, or beyond its border; names the image and the box.
        ValueError: The image processor or the region encoder failed; names the images. This is never passed to `on_error`,
            because it may concern all images rather than this one.
    """
    region_encoder.eval()
    turns = (
        contextlib.nullcontext() if region_encoder.device.type == "cpu" else Lock()
    )  # a GPU has its own parallel units

    @torch.inference_mode()
    def read_and_find(batch: list[tuple[Key, ImageOrFile]]) -> _Found[Key]:
        loaded, failed = _load_batch(batch, keep_on=on_error is not None)
        if not loaded:
            return [], failed
        with turns, torch.autocast(region_encoder.device.type, torch.bfloat16, enabled=bf16):
            found = _find(region_encoder, image_processor, loaded, boxes, name_of)
        return list(zip((key for key, _ in loaded), found, strict=True)), failed

    with tqdm(total=total, desc="finding regions", unit="image", disable=not progress) as bar:
        for found, failed in _in_threads(read_and_find, _batches(images, batch_size, group), num_workers):
            bar.update(len(found))
            for key, error in failed:
                if on_error is not None:
                    on_error(key, error)
            yield from found


_Found = tuple[list[tuple[Key, dict[str, torch.Tensor]]], list[tuple[Key, Exception]]]


def _find(
    region_encoder: RegionEncoder,
    image_processor: Any,
    loaded: Sequence[tuple[Key, Image.Image]],
    boxes: Mapping[Key, Sequence[Sequence[float]]] | None,
    name_of: Callable[[Key], str],
) -> list[dict[str, torch.Tensor]]:
    """The regions of the images of a batch."""
    keys, images = zip(*loaded, strict=True)
    if boxes is not None:
        given = [
            given_boxes(boxes[key], (image.height, image.width), f"image {name_of(key)}: given boxes")
            for key, image in loaded
        ]
    try:
        inputs = dict(image_processor(list(images), return_tensors="pt"))
        if boxes is not None:
            inputs |= encode_boxes(given, inputs["image_sizes"].tolist())
        return find_regions(region_encoder, inputs, torch.float32)  # whatever dtype the encoder computes in
    except torch.OutOfMemoryError:
        raise  # the machine is to blame, not these images
    except Exception as error:
        names = ", ".join(name_of(key) for key in keys)
        which = f"image {names}" if len(keys) == 1 else f"one of {len(keys)} images ({names})"
        raise ValueError(f"{which}: no regions can be found ({error})") from error


def _batches(
    images: Iterable[tuple[Key, ImageOrFile]], batch_size: int, group: Callable[[Key], Hashable] | None
) -> Iterator[list[tuple[Key, ImageOrFile]]]:
    for _, members in groupby(images, key=lambda pair: None if group is None else group(pair[0])):
        while batch := list(islice(members, batch_size)):
            yield batch


def _in_threads(work: Callable[[Item], Result], items: Iterable[Item], num_workers: int) -> Iterator[Result]:
    """`map`, on threads that share torch's: two that compute with one thread each are faster than one with two."""
    if not num_workers:
        yield from map(work, items)
        return
    threads, started = torch.get_num_threads(), deque[Future[Result]]()
    share = max(1, threads // num_workers)
    executor = ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(share,))
    try:
        for item in items:
            started.append(executor.submit(work, item))
            if len(started) > num_workers:  # one waits, so that no thread does
                yield started.popleft().result()
        while started:
            yield started.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # of threads to come


def _load_batch(
    batch: Iterable[tuple[Key, ImageOrFile]], keep_on: bool
) -> tuple[list[tuple[Key, Image.Image]], list[tuple[Key, Exception]]]:
    """The images that can be read, and why others cannot; the first error is raised unless `keep_on`."""
    loaded, failed = [], []
    for key, found in map(_load, batch):
        if isinstance(found, Image.Image):
            loaded.append((key, found))
        elif keep_on:
            failed.append((key, found))
        else:
            raise found
    return loaded, failed


def unreadable(images: Mapping[Key, ImageOrFile], num_workers: int = 4) -> dict[Key, str]:
    """Read all images, and say why some cannot be read, by key."""

    def why(pair: tuple[Key, ImageOrFile]) -> tuple[Key, str | None]:
        key, image = _load(pair)
        return key, None if isinstance(image, Image.Image) else str(image)

    with ThreadPoolExecutor(num_workers) as executor:
        return {key: reason for key, reason in executor.map(why, images.items()) if reason is not None}


def _load(pair: tuple[Key, ImageOrFile]) -> tuple[Key, Image.Image | Exception]:
    """The image, or the ValueError, FileNotFoundError or TypeError that says why it cannot be read."""
    key, source = pair
    try:
        return key, load_image(source() if callable(source) else source)
    except (ValueError, FileNotFoundError, TypeError) as error:
        return key, error
    except OSError as error:  # from Pillow, when the bytes are not an image
        return key, ValueError(str(error))
    except Exception as error:  # image readers fail in ways of their own when a file is damaged
        return key, ValueError(f"damaged image file ({type(error).__name__}: {error})")


@dataclass(frozen=True)
class Processes:
    """The processes that extract together: the rank and device of this one, and how it waits for the others."""

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")
    wait: Callable[[], None] = lambda: None

    @property
    def is_main(self) -> bool:
        """Whether this process prepares and finishes the store."""
        return self.rank == 0

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs the block before the others do."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()


def launched_processes(cpu: bool = False) -> Processes:
    """The processes started by `accelerate launch` or `torchrun`, on one machine or many; otherwise just this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(device=torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu"))
    from accelerate import PartialState

    # The slowest process may be hours behind the others.
    state = PartialState(cpu=cpu, timeout=timedelta(days=30))
    return Processes(state.process_index, state.num_processes, state.device, state.wait_for_everyone)


@dataclass(frozen=True)
class ExtractionOptions:
    """How a store is extracted. A resumed run may use another `batch_size` or `num_workers`.

    Each process keeps the regions of `images_per_shard` images in memory until their shard is written.
    """

    dtype: str = "float16"
    images_per_shard: int = 1000
    max_regions: int | None = None  # per image, the most confident ones; None: all
    batch_size: int = 32
    num_workers: int = 0
    hash_images: bool = False  # record checksums of the image files, not only their sizes and dates
    bf16: bool = False  # the detector multiplies in bfloat16


def extract_store(
    folder: str | Path,
    images: Sequence[tuple[str, ImageOrFile]],
    encoder: Any,
    image_processor: Any,
    options: ExtractionOptions = ExtractionOptions(),
    processes: Processes = Processes(),
    progress: bool = True,
    boxes: Sequence[Boxes] | None = None,
    skip_unreadable: bool = True,
) -> dict[str, Any]:
    """Find the regions of many images and store them. A run that was interrupted, at any point, resumes when called again.

    Each process makes whole shards. Images that cannot be read are listed in the store's `failed.jsonl` and tried again by
    every later call, even when the store is otherwise complete; and where the file of an image has changed since (in size or
    date, or, with `hash_images`, in its checksum), its regions are found anew. While their shards are made again (or until
    the next call, if that is interrupted), the store is back in `<folder>.partial`.

    An image that can be read, but whose regions cannot be found or stored (the encoder fails on it, or a feature is not finite
    or too large for the dtype), stops the run: the encoder or the options are wrong, and other images may be affected too.
    Complete shards are kept.

    Args:
        folder: The store; until it is complete, it is kept in `<folder>.partial`.
        images: (image id, image) pairs with unique ids; the same in every process.
        encoder, image_processor: The detector.
        options: How the regions are found and stored.
        processes: The processes that work together.
        progress: Whether the main process shows a progress bar.
        boxes: For each image, given boxes x1, y1, x2, y2 in pixels, to be described instead of detected ones.
        skip_unreadable: Whether images that cannot be read are listed; otherwise the first one stops the run.

    Returns:
        `num_images` in the store, how many `failed`, how many `images` this run processed and how many of them had `changed`,
        in how many `seconds` (over all processes; only correct in the main process).

    Raises:
        ValueError: An id occurs twice; the folder holds a store, or part of one, with other images or options; or the
            regions of an image cannot be found or stored (names the image).
        OSError: The disk is full.
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
    """
    folder, started = Path(folder), time.time()
    plan = _extraction_plan(images, encoder, image_processor, options, boxes)
    left, changed = _prepare(folder, plan, images) if processes.is_main else (0, 0)
    processes.wait()
    if not (folder / "index.json").is_file():
        draft = StoreDraft(partial_folder(folder), folder)
        per_shard = options.images_per_shard
        num_shards = -(-len(images) // per_shard)
        # By shard number, not by what is left to do: on a network folder, processes may not see the same files yet.
        mine = [n for n in range(processes.rank, num_shards, processes.count) if draft.part(n) is None]
        encoder.to(processes.device)
        shards = {number: range(len(images))[number * per_shard : (number + 1) * per_shard] for number in mine}
        total, hidden = sum(map(len, shards.values())), not (progress and processes.is_main)
        bar = tqdm(total=total, desc="finding regions", unit="image", disable=hidden)
        with saying_how_to_go_on(draft.folder), bar:
            for number, positions in shards.items():
                files = _image_files(positions, images, options.hash_images)
                given = None if boxes is None else {position: boxes[position] for position in positions}
                rows, failed = _extract_shard(
                    positions, images, encoder, image_processor, options, bar, given, skip_unreadable
                )
                files = {row["image_id"]: files[row["image_id"]] for row in rows if row["image_id"] in files}
                draft.write_shard(number, rows, failed, files)
        processes.wait()
        if processes.is_main:
            draft.finish(num_shards)
        processes.wait()
    num_images = read_json(folder / "index.json")["num_images"]
    seconds = time.time() - started
    failures = len(images) - num_images
    return {"images": left, "changed": changed, "seconds": seconds, "num_images": num_images, "failed": failures}


def _extraction_plan(
    images: Sequence[tuple[str, Any]],
    encoder: Any,
    image_processor: Any,
    options: ExtractionOptions,
    boxes: Sequence[Boxes] | None,
) -> dict[str, Any]:
    if options.max_regions is not None and options.max_regions < 1:
        raise ValueError(f"{options.max_regions} regions of an image; expected at least 1")
    ids = [image_id for image_id, _ in images]
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise ValueError(f"image {twice} twice; expected each image once")
    return make_plan(
        encoder.config.region_dim,
        options.dtype,
        describe_detector(encoder, image_processor) | ({"computed_in": "bfloat16"} if options.bf16 else {}),
        options.images_per_shard,
        region_names(encoder),
        {
            **{"images": len(ids), "images_sha256": _hash(ids), "max_regions": options.max_regions},
            **({} if boxes is None else {"boxes_sha256": _hash([[list(box) for box in rows] for rows in boxes])}),
        },
    )


def _prepare(folder: Path, plan: Mapping[str, Any], images: Sequence[tuple[str, ImageOrFile]]) -> tuple[int, int]:
    """Prepare the folder for all processes: it is either complete, or a draft without the shards that are to be redone.

    Returns:
        Number of images to process, and of those that have changed.
    """
    partial, per_shard = partial_folder(folder), plan["images_per_shard"]
    num_changed = 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (partial / "index.json").is_file():  # interrupted after the last shard
        StoreDraft(partial, folder).finish(0)
    if (folder / "index.json").is_file():
        check_plan(folder, read_json(folder / "index.json"), plan)
        redo = _readable_again(read_failures(folder), images)
        changed = _changed(FeatureStore(folder).image_files or {}, images)
        if not redo and not changed:
            return 0, 0
        num_changed = len(changed)
        draft = StoreDraft.reopen(folder, partial, plan, {position // per_shard for position in (*redo, *changed)})
    elif folder.exists():
        raise FileExistsError(f"{folder} exists and is no feature store; remove it or choose another folder")
    else:
        draft = StoreDraft.begin(partial, folder, plan)
    left = 0
    for start in range(0, len(images), per_shard):
        number, own = start // per_shard, images[start : start + per_shard]
        part = draft.part(number)
        if part is not None:
            changed = _changed(draft.image_files(number), own)
            num_changed += len(changed)
            if changed or _readable_again(part["failed"], images):
                draft.discard(number)
                part = None
        left += len(own) if part is None else 0
    return left, num_changed


def _readable_again(failures: Sequence[Mapping[str, Any]], images: Sequence[tuple[str, ImageOrFile]]) -> list[int]:
    """Positions of the images that failed but can be read now."""
    loaded = (_load((failure["position"], images[failure["position"]][1])) for failure in failures)
    return [position for position, image in loaded if isinstance(image, Image.Image)]


def _changed(recorded: Mapping[str, ImageFile], images: Sequence[tuple[str, ImageOrFile]]) -> list[int]:
    """Positions of the images whose files are not those that were recorded."""
    paths = {position: Path(source) for position, (_, source) in enumerate(images) if isinstance(source, (str, Path))}
    by_position = {str(position): recorded[key] for position, (key, _) in enumerate(images) if key in recorded}
    changed, touched = find_changes(by_position, paths)
    for position, how in {**touched, **changed}.items():
        logger.info("image %s changed after its regions were found: %s", images[position][0], how)
    return sorted({*changed, *touched})


def _image_files(
    positions: Sequence[int], images: Sequence[tuple[str, ImageOrFile]], hashed: bool
) -> dict[str, ImageFile]:
    """What is recorded of the image files; looked at before they are read, so that later changes are noticed."""
    files = {}
    for image_id, source in (images[position] for position in positions):
        if isinstance(source, (str, Path)):
            with contextlib.suppress(OSError):  # told when it is read
                files[image_id] = ImageFile.of(Path(source), hashed)
    return files


def _extract_shard(
    positions: Sequence[int],
    images: Sequence[tuple[str, ImageOrFile]],
    encoder: Any,
    image_processor: Any,
    options: ExtractionOptions,
    bar: Any,
    boxes: Mapping[int, Boxes] | None,
    skip_unreadable: bool,
) -> tuple[list[Row], list[Failure]]:
    """The rows of a shard and the images of it that could not be read, both in order."""
    rows: dict[int, Row] = {}
    failed: dict[int, Failure] = {}

    def note(position: int, error: Exception) -> None:
        image_id, source = images[position]
        name = str(source) if isinstance(source, (str, Path)) else image_id
        failed[position] = {"position": position, "image_id": image_id, "name": name, "reason": str(error)}
        logger.warning("%s: %s", image_id, error)
        bar.update()

    # Unless all images are resized to one size, only images of equal size share a batch: with padding, the regions that a
    # detector finds would depend on the other images of the batch.
    size_of = {} if resizes_to_one_size(image_processor) else {p: size_of_image(images[p][1]) for p in positions}
    found = extract_regions(
        encoder,
        image_processor,
        [(position, images[position][1]) for position in sorted(positions, key=lambda p: (size_of.get(p, (0, 0)), p))],
        options.batch_size,
        progress=False,
        boxes=boxes,
        on_error=note if skip_unreadable else None,
        num_workers=options.num_workers,
        group=size_of.get,
        name_of=lambda position: images[position][0],
        bf16=options.bf16,
    )
    for position, regions in found:
        kept = {k: v if k == "image_size" else v[: options.max_regions] for k, v in regions.items()}
        rows[position] = encode_row(images[position][0], kept, encoder.config.region_dim, options.dtype)
        bar.update()
    return [rows[position] for position in sorted(rows)], [failed[position] for position in sorted(failed)]


def resizes_to_one_size(image_processor: Any) -> bool:
    """Whether all images reach the detector in one size, so that any of them may share a batch."""
    size = getattr(image_processor, "size", None) or {}
    return bool(getattr(image_processor, "do_resize", True)) and "height" in dict(size) and "width" in dict(size)


def sample_sizes(images: Iterable[ImageOrFile], count: int = 64) -> list[tuple[int, int]]:
    """Height and width of the first `count` images that can be read."""
    sizes = (size_of_image(image) for image in images)
    return [(height, width) for width, height in islice((size for size in sizes if all(size)), count)]


def size_of_image(source: ImageOrFile) -> tuple[int, int]:
    """Width and height of the upright image, from its header; (0, 0) if it cannot be read, which loading it will report."""
    try:
        found = source() if callable(source) else source
        return found.size if isinstance(found, Image.Image) else upright_size(found)[::-1]
    except Exception:  # image readers fail in ways of their own when a file is damaged
        return 0, 0


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
