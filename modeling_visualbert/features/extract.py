"""Images -> regions, in batches, through any region encoder; and a whole collection of images -> a feature store."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import ExifTags, Image
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from ..checkpoints import check_name
from ..convert.checkpoint_files import naming
from ..data.files import read_json
from ..hub_code.image_processing_visualbert import load_image
from ..hub_code.modeling_region_encoder import RegionEncoder
from ..hub_code.regions_visualbert import encode_boxes, find_regions
from .draft import StoreDraft, check_plan, make_plan, plan_keys, read_failures
from .format import Row, encode_row
from .store import partial_folder

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)
ImageOrFile = Path | str | Image.Image | Callable[[], Image.Image]  # a callable opens the image, but need not read it
OnError = Callable[[Any, Exception], None]


def load_region_encoder(name: str | Path) -> tuple[RegionEncoder, Any]:
    """A region encoder of any kind, in evaluation mode, with its image processor.

    Args:
        name: Folder or Hub name; its `config.json` says which kind it is.

    Raises:
        FileNotFoundError: It looks like a folder of this machine and is not there.
        ValueError: It is something else than a region encoder, or its weights are damaged or lack tensors.
    """
    name = str(name)
    check_name(name, "region encoder")
    config = AutoConfig.from_pretrained(name)
    encoder, info = None, {}
    if getattr(config, "region_dim", None) is not None:
        with naming(name):  # safetensors' errors name no file
            encoder, info = AutoModel.from_pretrained(name, output_loading_info=True)
    if not isinstance(encoder, RegionEncoder):
        raise ValueError(f"{name} is a {config.model_type!r} checkpoint; expected a region encoder")
    if missing := sorted(info["missing_keys"]):  # they would be random numbers
        told = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ValueError(f"{name}: the weights are without {told}; expected every tensor of {type(encoder).__name__}")
    return encoder.eval(), AutoImageProcessor.from_pretrained(name)


def describe_detector(encoder: Any, image_processor: Any) -> dict[str, Any]:
    """What made the regions of a store, for its index: hashes, so that another detector or preprocessing is noticed."""
    config = {
        k: v
        for k, v in encoder.config.to_dict().items()
        if k not in ("_name_or_path", "auto_map", "transformers_version")
    }
    return {
        "name": type(encoder).__name__,
        "fingerprint": encoder.fingerprint(),
        "config_hash": _hash(config),
        "image_processor_hash": _hash(image_processor_fields(image_processor)),
    }


def image_processor_fields(image_processor: Any) -> dict[str, Any]:
    """What it does to images, without what says where its code lies."""
    return {k: v for k, v in json.loads(image_processor.to_json_string()).items() if k != "auto_map"}


def region_names(encoder: Any) -> dict[str, list[str] | None]:
    """Names of a region encoder's `classes` and `attributes`, by their ids; None where it has none."""
    config = encoder.config
    labels = getattr(getattr(config, "detector_config", None) or config, "id2label", None) or {}
    classes = [str(labels[number]) for number in sorted(labels)]
    if all(name == f"LABEL_{number}" for number, name in enumerate(classes)):
        classes = []
    attributes = getattr(config, "attribute_names", None)
    return {
        "classes": classes or None,
        "attributes": None if attributes is None else [str(name) for name in attributes],
    }


@torch.inference_mode()
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
) -> Iterator[tuple[Key, dict[str, torch.Tensor]]]:
    """Yield (image key, regions with boxes in pixels) for each (image key, image), in order.

    Args:
        region_encoder, image_processor: What finds the regions.
        images: Images or their files; keys are what the caller likes.
        batch_size: Images in one forward pass.
        total: Number of images, for the progress bar.
        progress: Whether to show one.
        boxes: By image key, boxes x1, y1, x2, y2 in pixels to describe instead of finding some.
        on_error: Told of images that cannot be used, which are then left out; without it they are raised.
        num_workers: Threads that read the next batches while this one is looked at.
        group: Of an image key; only neighbours with an equal group share a batch.
        name_of: What to call the image of a key in an error.

    Raises:
        ValueError, FileNotFoundError, TypeError: An image cannot be used; see [`load_image`].
        ValueError: Image processor or region encoder fail; names the images. `on_error` is not told: what they can read
            but not use says something about them, and maybe about all images.
    """
    region_encoder.eval()
    with tqdm(total=total, desc="finding regions", unit="image", disable=not progress) as bar:
        for batch in _loaded_batches(_batches(images, batch_size, group), num_workers, on_error):
            bar.update(len(batch))
            keys, loaded = zip(*batch, strict=True)
            try:
                found = _look(
                    region_encoder, image_processor, loaded, None if boxes is None else [boxes[k] for k in keys]
                )
            except torch.OutOfMemoryError:
                raise  # of the machine, not of these images
            except Exception as error:
                raise ValueError(f"{_named(keys, name_of)}: no regions can be found ({error})") from error
            yield from zip(keys, found, strict=True)


def _look(
    region_encoder: RegionEncoder,
    image_processor: Any,
    images: Sequence[Image.Image],
    boxes: Sequence[Sequence[Sequence[float]]] | None,
) -> list[dict[str, torch.Tensor]]:
    """The regions of a batch of images, in float32 whatever the encoder computes in."""
    inputs = dict(image_processor(list(images), return_tensors="pt"))
    given = {} if boxes is None else encode_boxes(boxes, inputs["image_sizes"].tolist())
    return find_regions(region_encoder, {**inputs, **given}, torch.float32)


def _named(keys: Sequence[Key], name_of: Callable[[Key], str]) -> str:
    if len(keys) == 1:
        return f"image {name_of(keys[0])}"
    return f"one of {len(keys)} images ({', '.join(name_of(key) for key in keys)})"


def _batches(
    images: Iterable[tuple[Key, ImageOrFile]], batch_size: int, group: Callable[[Key], Hashable] | None
) -> Iterator[list[tuple[Key, ImageOrFile]]]:
    for _, members in groupby(images, key=lambda pair: None if group is None else group(pair[0])):
        while batch := list(islice(members, batch_size)):
            yield batch


def _loaded_batches(
    batches: Iterable[list[tuple[Key, ImageOrFile]]], num_workers: int, on_error: OnError | None
) -> Iterator[list[tuple[Key, Image.Image]]]:
    """Batches of loaded images, without those that cannot be read (nor batches of such); threads read ahead."""
    batches = iter(batches)
    with ThreadPoolExecutor(max(1, num_workers)) as executor:

        def start(source: ImageOrFile) -> Future | Callable[[], Image.Image]:
            return executor.submit(_load, source) if num_workers else partial(_load, source)

        ahead: deque[list[tuple[Key, Any]]] = deque()
        while True:
            for batch in islice(batches, max(1, 2 * bool(num_workers)) - len(ahead)):
                ahead.append([(key, start(source)) for key, source in batch])
            if not ahead:
                return
            loaded = []
            for key, image in ahead.popleft():
                try:
                    loaded.append((key, image.result() if isinstance(image, Future) else image()))
                except (ValueError, FileNotFoundError, TypeError) as error:
                    if on_error is None:
                        raise
                    on_error(key, error)
            if loaded:
                yield loaded


def _load(source: ImageOrFile) -> Image.Image:
    """
    Raises:
        ValueError, FileNotFoundError, TypeError: It cannot be used, for whatever reason.
    """
    try:
        return load_image(source() if callable(source) else source)
    except (ValueError, FileNotFoundError, TypeError):
        raise
    except OSError as error:  # Pillow's, of bytes that are no image
        raise ValueError(str(error)) from error
    except Exception as error:  # readers of formats fail in their own ways when a file is damaged
        raise ValueError(f"damaged image file ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class Processes:
    """The processes that extract together: which of them this is, its device, and how it waits for the others."""

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")
    wait: Callable[[], None] = lambda: None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prepares and finishes the store."""
        return self.rank == 0


def launched_processes(cpu: bool = False) -> Processes:
    """The processes that `accelerate launch` or `torchrun` started, on one machine or many; else this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(device=torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu"))
    from accelerate import PartialState

    # A process waits for the slowest one, which may be hours behind.
    state = PartialState(cpu=cpu, timeout=timedelta(days=30))
    return Processes(state.process_index, state.num_processes, state.device, state.wait_for_everyone)


@dataclass(frozen=True)
class ExtractionOptions:
    """How a store is extracted. `batch_size` and `num_workers` may differ between a run and its continuation.

    The regions of `images_per_shard` images are in memory until their shard is written, in each process.
    """

    dtype: str = "float16"
    images_per_shard: int = 1000
    max_regions: int | None = None  # keep only the first of each image: the most confident ones
    batch_size: int = 32
    num_workers: int = 0


def extract_store(
    folder: str | Path,
    images: Sequence[tuple[str, ImageOrFile]],
    encoder: Any,
    image_processor: Any,
    options: ExtractionOptions = ExtractionOptions(),
    processes: Processes = Processes(),
    progress: bool = True,
) -> dict[str, Any]:
    """Find the regions of many images and store them. Interrupted at any point, it goes on where it was.

    Each process makes whole shards. Images that cannot be read are listed in `failed.jsonl` of the store and are tried
    again when it is called again, also when the store is complete otherwise: it is in `<folder>.partial` meanwhile, and if that
    is interrupted, until the next call. An image that can be read but whose regions
    cannot be found or stored (the encoder fails on it, a feature is not finite or too large for the dtype) stops everything:
    the encoder or the options are wrong, and other images may be concerned. The shards that are complete are kept.

    Args:
        folder: The store; until it is complete, it is in `<folder>.partial`.
        images: (image id, image) pairs, ids being unique; the same on every process.
        encoder, image_processor: What finds the regions.
        options: How they are stored.
        processes: The processes that work together.
        progress: Whether the main process shows a progress bar.

    Returns:
        `num_images` in the store, how many `failed`, and how many `images` were looked at this time, in `seconds` (by all
        processes; only the main one knows).

    Raises:
        ValueError: An id comes twice, or the folder holds a store (or the start of one) with other images or options.
            Or the regions of an image cannot be found or stored; names it.
        OSError: The disk is full.
    """
    folder, started = Path(folder), time.time()
    plan = _extraction_plan(images, encoder, image_processor, options)
    left = _prepare(folder, plan, images) if processes.is_main else 0
    processes.wait()
    if not (folder / "index.json").is_file():
        draft = StoreDraft(partial_folder(folder), folder)
        num_shards = -(-len(images) // options.images_per_shard)
        # By number, not by what is left to do: processes need not agree on what they see of a network folder.
        mine = [n for n in range(processes.rank, num_shards, processes.count) if draft.part(n) is None]
        encoder.to(processes.device)
        _extract_shards(draft, mine, images, encoder, image_processor, options, progress and processes.is_main)
        processes.wait()
        if processes.is_main:
            draft.finish(num_shards)
        processes.wait()
    num_images = read_json(folder / "index.json")["num_images"]
    seconds = time.time() - started
    return {"images": left, "seconds": seconds, "num_images": num_images, "failed": len(images) - num_images}


def _extraction_plan(
    images: Sequence[tuple[str, Any]], encoder: Any, image_processor: Any, options: ExtractionOptions
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
        describe_detector(encoder, image_processor),
        options.images_per_shard,
        region_names(encoder),
        {"images": len(ids), "images_sha256": _hash(ids), "max_regions": options.max_regions},
    )


def _prepare(folder: Path, plan: Mapping[str, Any], images: Sequence[tuple[str, ImageOrFile]]) -> int:
    """Bring the folder into the state that all processes go on from: complete, or a draft without shards to be redone.

    Returns:
        Number of images to look at.
    """
    partial, per_shard = partial_folder(folder), plan["images_per_shard"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (partial / "index.json").is_file():  # interrupted after the last shard
        StoreDraft(partial, folder).finish(0)
    if (folder / "index.json").is_file():
        check_plan(folder, {key: read_json(folder / "index.json").get(key) for key in plan_keys()}, plan)
        readable = _readable_again(read_failures(folder), images)
        if not readable:
            return 0
        draft = StoreDraft.reopen(folder, partial, {position // per_shard for position in readable})
    elif folder.exists():
        raise FileExistsError(f"{folder} exists and is no feature store; remove it or choose another folder")
    else:
        draft = StoreDraft.begin(partial, folder, plan)
    left = 0
    for start in range(0, len(images), per_shard):
        part = draft.part(start // per_shard)
        if part is not None and _readable_again(part["failed"], images):
            draft.discard(start // per_shard)
            part = None
        left += 0 if part is not None else len(images[start : start + per_shard])
    return left


def _readable_again(failures: Sequence[Mapping[str, Any]], images: Sequence[tuple[str, ImageOrFile]]) -> list[int]:
    """Positions of images that failed and can be read now."""
    failed: list[int] = []
    positions = [failure["position"] for failure in failures]
    again = ([(position, images[position][1])] for position in positions)
    for _ in _loaded_batches(again, 0, lambda position, error: failed.append(position)):
        pass
    return sorted(set(positions) - set(failed))


def _extract_shards(
    draft: StoreDraft,
    numbers: Sequence[int],
    images: Sequence[tuple[str, ImageOrFile]],
    encoder: Any,
    image_processor: Any,
    options: ExtractionOptions,
    progress: bool,
) -> None:
    """Make these shards."""
    per_shard = options.images_per_shard
    slices = {number: range(number * per_shard, min((number + 1) * per_shard, len(images))) for number in numbers}
    total = sum(len(positions) for positions in slices.values())
    with tqdm(total=total, desc="finding regions", unit="image", disable=not progress) as bar:
        for number, positions in slices.items():
            rows, failed = _extract_shard(positions, images, encoder, image_processor, options, bar)
            draft.write_shard(number, (rows[position] for position in positions if position in rows), failed)


def _extract_shard(
    positions: Sequence[int],
    images: Sequence[tuple[str, ImageOrFile]],
    encoder: Any,
    image_processor: Any,
    options: ExtractionOptions,
    bar: Any,
) -> tuple[dict[int, Row], list[dict[str, Any]]]:
    """Rows by position, and what could not be read, in order."""
    rows: dict[int, Row] = {}
    failed: list[dict[str, Any]] = []

    def note(position: int, error: Exception) -> None:
        image_id, source = images[position]
        name = str(source) if isinstance(source, (str, Path)) else image_id
        failed.append({"position": position, "image_id": image_id, "name": name, "reason": str(error)})
        logger.warning("%s: %s", image_id, error)
        bar.update()

    # Only images of one size share a batch, unless all are resized to one: they are not padded, which would make a
    # detector find other regions beside other images.
    size_of = {} if resizes_to_one_size(image_processor) else {p: _image_size(images[p][1]) for p in positions}
    ordered = sorted(positions, key=lambda position: (size_of.get(position, (0, 0)), position))
    found = extract_regions(
        encoder,
        image_processor,
        ((position, images[position][1]) for position in ordered),
        options.batch_size,
        progress=False,
        on_error=note,
        num_workers=options.num_workers,
        group=size_of.get,
        name_of=lambda position: images[position][0],
    )
    for position, regions in found:
        kept = {k: v if k == "image_size" else v[: options.max_regions] for k, v in regions.items()}
        rows[position] = encode_row(images[position][0], kept, encoder.config.region_dim, options.dtype)
        bar.update()
    return rows, sorted(failed, key=lambda failure: failure["position"])


def resizes_to_one_size(image_processor: Any) -> bool:
    """Whether all images have one size when they reach the detector, so that any of them may share a batch."""
    size = getattr(image_processor, "size", None) or {}
    return bool(getattr(image_processor, "do_resize", True)) and "height" in dict(size) and "width" in dict(size)


def _image_size(source: ImageOrFile) -> tuple[int, int]:
    """Width and height as it is shown, from the image's header; what cannot be read is found out when it is loaded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, which are refused by name later
            if isinstance(source, Image.Image):
                return source.size
            with source() if callable(source) else Image.open(source) as image:
                lies_on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                return image.size[::-1] if lies_on_its_side else image.size
    except Exception:  # readers of formats fail in their own ways when a file is damaged
        return 0, 0


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
