"""A complete analysis: checkpoint and data -> numbers and tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..checkpoints import check_name, open_config, open_image_processor
from ..corpus.build import CorpusConfig, ensure_corpus
from ..data.files import index_images
from ..data.flickr30k import read_split
from ..features.extract import Processes, extract_regions, resizes_to_one_size
from ..features.store import FeatureStore
from ..hub_code.modeling_visualbert import VisualBertModel
from ..hub_code.regions_visualbert import check_detector
from ..tokenizer import open_tokenizer
from ..training.report import table
from .grounding import ALONE, Grounding, Regions, RegionsOf, count_grounding
from .report import MIN_PROBES, best_direction, grounding_report
from .trees import Trees, parser_trees, trees_in

TREES = "Trees"  # folder beside Sentences/ and Annotations/


@dataclass(frozen=True)
class AnalysisOptions:
    """Options of an analysis. Without `data`, the embedded corpus is analysed.

    Args:
        model: Folder or Hub name of a checkpoint with any head.
        data: Folder with Sentences/, Annotations/ and <split>.txt, as in Flickr30k Entities.
        images: Folder of the images (default: `data`); used if there are no `features`.
        features: Feature store with the regions of the images.
        trees: Folder with a CoNLL-U file for each image (default: Trees/ in `data`, if it exists).
        parser: Parser that makes the trees instead, such as `spacy:en_core_web_sm` or `stanza:en`.
        split: The split to report.
        dev_split: The split on which the best heads are chosen; empty for none.
        tokenizer: Folder or Hub name of the tokenizer (default: that of the model).
        images_per_batch: Number of images per batch.
        skip_bad_records: Leave out and list records that cannot be read.
        any_detector: Accept features of another detector than the model was trained on.
    """

    model: str
    data: str | None = None
    images: str | None = None
    features: str | None = None
    trees: str | None = None
    parser: str | None = None
    split: str = "test"
    dev_split: str = "val"
    tokenizer: str | None = None
    images_per_batch: int = 8
    skip_bad_records: bool = False
    any_detector: bool = False


@dataclass(frozen=True)
class Material:
    """The loaded checkpoint and data of an analysis."""

    model: PreTrainedModel
    tokenizer: Any
    folder: Path
    image_ids: dict[str, list[int]]  # by role: "test" and, if there is one, "dev"
    regions_of: RegionsOf
    trees: Trees | None
    paths: Mapping[int, Path]  # of the image files; empty if only their regions are known


def load_material(options: AnalysisOptions, processes: Processes = ALONE) -> Material:
    """Open checkpoint and data.

    Raises:
        FileNotFoundError, ValueError: They are not there, or do not fit together.
    """
    if options.trees is not None and options.parser is not None:
        raise ValueError("--trees and --parser were both given; expected only one of them")
    if options.images_per_batch < 1:
        raise ValueError(f"{options.images_per_batch} images per batch; expected at least 1")
    check_name(options.model)
    model_type = open_config(options.model).model_type
    if model_type != VisualBertModel.config_class.model_type:
        raise ValueError(f"{options.model} is a {model_type!r} checkpoint; expected VisualBERT")
    corpus = ensure_corpus(CorpusConfig()) if options.data is None else None
    folder = corpus / "flickr30k" if corpus is not None else Path(options.data or "")
    images_dir = corpus / "images" if corpus is not None else Path(options.images or folder)
    prefix = "shapes_" if corpus is not None else ""
    roles = {"test": options.split, "dev": options.dev_split}
    image_ids = {role: read_split(folder / f"{prefix}{split}.txt") for role, split in roles.items() if split}
    trees = None
    if options.parser is not None:
        trees = parser_trees(options.parser)
    elif options.trees is not None or (folder / TREES).is_dir():
        trees = trees_in(options.trees or folder / TREES)
    model = VisualBertModel.from_pretrained(options.model).eval().to(processes.device)
    wanted = [image_id for ids in image_ids.values() for image_id in ids]
    regions_of, paths = regions_from(
        model,
        options.model,
        options.features,
        images_dir,
        wanted,
        options.images_per_batch,
        options.any_detector,
    )
    tokenizer = open_tokenizer(options.tokenizer or options.model, model.config.vocab_size)
    return Material(model, tokenizer, folder, image_ids, regions_of, trees, paths)


def analyse_grounding(
    material: Material, options: AnalysisOptions, processes: Processes = ALONE, progress: bool = True
) -> dict[str, Any]:
    """Analyse a checkpoint; for the result, see [`grounding_report`]."""
    found: dict[str, Grounding] = {
        role: count_grounding(
            material.model,
            material.tokenizer,
            material.folder,
            image_ids,
            material.regions_of,
            material.trees,
            options.images_per_batch,
            processes=processes,
            skip_bad_records=options.skip_bad_records,
            progress=progress and processes.is_main,
        )
        for role, image_ids in material.image_ids.items()
    }
    about = {
        "model": options.model,
        "data": options.data or "embedded corpus",
        "split": options.split,
        "heads_chosen_on": options.dev_split or options.split,
        "trees": options.parser or ("none" if material.trees is None else "CoNLL-U files"),
    }
    skipped = [line for part in found.values() for line in part.skipped]
    return {**about, **grounding_report(found["test"], found.get("dev")), "skipped_records": skipped}


def grounding_tables(report: Mapping[str, Any]) -> str:
    """The report as text: entities by layer, then every relation in both directions."""
    entities = report["entities"]["all"]
    rows = [["entities", "best head", "accuracy", "95% interval", "attention on regions"]]
    for best in entities["best_of_each_layer"]:
        share = f"{best['region_share']:.0f}%"
        rows.append([f"layer {best['layer']}", f"{best['head']}", *_accuracy(best), share])
    rows.append(
        ["most confident region", "", f"{entities['baseline']:.1f}", _interval(entities["baseline_interval"]), ""]
    )
    rows.append(["random region", "", f"{entities['chance']:.1f}", "", ""])
    rows.append(["any region (upper bound)", "", f"{entities['upper_bound']:.1f}", "", ""])
    text = [f"{entities['probes']} phrases of {entities['images']} images, split {report['split']}", table(rows)]
    if report["syntax"]:
        rows = [
            ["relation", "attention", "words", "best head", "accuracy", "95% interval", "baseline", "gain", "random"]
        ]
        for relation, directions in report["syntax"].items():
            for direction, found in directions.items():
                best = found["best"]
                gain = f"{best['gain']:+.1f} [{best['gain_interval'][0]:+.1f}, {best['gain_interval'][1]:+.1f}]"
                rows.append(
                    [relation, direction, str(found["probes"]), f"{best['layer']}-{best['head']}", *_accuracy(best)]
                    + [f"{found['baseline']:.1f}", gain, f"{found['chance']:.1f}"]
                )
        text += ["", table(rows), "", _verdict(report)]
    return "\n".join(text)


def _verdict(report: Mapping[str, Any]) -> str:
    frequent = {
        relation: best_direction(directions)
        for relation, directions in report["syntax"].items()
        if max(found["probes"] for found in directions.values()) >= MIN_PROBES
    }
    beaten = [relation for relation, found in frequent.items() if found["best"]["beats_baseline"]]
    left = [relation for relation in frequent if relation not in beaten]
    verdict = f"of {len(frequent)} relations that occur at least {MIN_PROBES} times, a head beats the baseline for {len(beaten)}"
    return verdict + (f"; not for {', '.join(left)}" if left else "")


def _accuracy(head: Mapping[str, Any]) -> list[str]:
    return [f"{head['accuracy']:.1f}", _interval(head["interval"])]


def _interval(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.1f} to {bounds[1]:.1f}"


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write `analysis.json` and `analysis.txt`."""
    (folder / "analysis.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "analysis.txt").write_text(grounding_tables(report) + "\n", encoding="utf-8")


def regions_from(
    model: VisualBertModel,
    name: str,
    features: str | None,
    images_dir: Path,
    image_ids: Sequence[int],
    images_per_batch: int = 8,
    any_detector: bool = False,
) -> tuple[RegionsOf, Mapping[int, Path]]:
    """A source of regions: a feature store, or the model's own region encoder applied to the images.

    Args:
        model: The model.
        name: Folder or Hub name of the model, where its image processor is.
        features: The feature store, if there is one.
        images_dir: Folder of the images.
        image_ids: The images whose regions will be requested.
        images_per_batch: Number of images per batch.
        any_detector: Whether features of another detector than the model was trained on are accepted.

    Returns:
        A function that returns the regions of images, and the paths of the image files that are known.

    Raises:
        FileNotFoundError, ValueError: Images or regions are missing, or the model has no region encoder.
    """
    encoder = model.region_encoder if model.config.region_encoder_config is not None else None
    if features is not None:
        store = FeatureStore(features, model.config.visual_embedding_dim)
        if not any_detector:
            check_detector(features, store.detector, name, model.feature_detector())
        missing = next((image_id for image_id in image_ids if image_id not in store), None)
        if missing is not None:
            raise ValueError(f"{features}: no regions for image {missing}; expected some for every image of the split")
        paths = index_images(images_dir, {"": image_ids}) if images_dir.is_dir() else {}
        store.check_images(paths)
        return (lambda ids: ((image_id, store[image_id]) for image_id in ids)), paths
    if encoder is None:
        raise ValueError(f"{name} has no region encoder; expected --features, a store with the regions")
    paths = index_images(images_dir, {"": image_ids})
    missing = next((image_id for image_id in image_ids if image_id not in paths), None)
    if missing is not None:
        raise FileNotFoundError(
            f"{images_dir}: no file for image {missing}; expected one whose name ends in its number"
        )
    image_processor = open_image_processor(name)
    # Images of different sizes are not padded to form a batch: padding changes the regions that a detector finds.
    batch_size = images_per_batch if resizes_to_one_size(image_processor) else 1

    def find(ids: Sequence[int]) -> Iterator[tuple[int, Regions]]:
        images = [(image_id, paths[image_id]) for image_id in ids]
        return extract_regions(encoder, image_processor, images, batch_size, progress=False)

    return find, paths


__all__ = [
    "AnalysisOptions",
    "Material",
    "analyse_grounding",
    "grounding_tables",
    "load_material",
    "regions_from",
    "write_report",
]
