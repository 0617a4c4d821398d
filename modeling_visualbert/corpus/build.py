"""Writes the embedded corpus: rendered scenes and texts about them, in the official file formats of the tasks.

::

    <corpus>/
      corpus.json                                     size and seed
      contact_sheet.png                               some images with one question each, for a quick look
      images/<split>/shapes_<split>_000000000017.jpg  the images
      scenes/<split>.jsonl                            the scene graphs, see `scenes.py`
      detection/instances_<split>.json                boxes, COCO detection format
      vqa/v2_OpenEnded_shapes_<split>_questions.json  VQA v2 questions
      vqa/v2_shapes_<split>_annotations.json          VQA v2 annotations
      vcr/{train,val,test}.jsonl, vcr/vcr1images/     VCR; metadata beside the images
      nlvr2/data/{train,dev,test1}.json, nlvr2/images NLVR2; two images per sentence
      snli_ve/snli_ve_{train,dev,test}.jsonl, images/ SNLI-VE; images named by their number
      flickr30k/shapes_<split>.txt, Sentences/, ...    Flickr30k Entities, with dependency trees in Trees/
      coco/captions_<split>.{json,conllu}             COCO captions and their dependency trees

The splits are train, val and test; no scene (same objects at nearly the same places) is in two of them. Where a dataset names its
images differently, they are hard links. Building takes about a minute, and the result is kept in the user's cache.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from ..cache_dir import default_cache_dir
from ..disk import whole_folder
from .captions import caption_trees, captions_record
from .flickr30k import flickr30k_files
from .nlvr2 import SPLIT_NAMES, make_pairs, nlvr2_records
from .scenes import CLASSES, HEIGHT, WIDTH, Scene, render, sample_scene
from .snli_ve import file_name as snli_ve_file
from .snli_ve import image_name, snli_ve_records
from .vcr import metadata_record, vcr_records
from .vqa import vqa_records

SPLITS = ("train", "val", "test")
FORMAT_VERSION = 4  # increment it when any file of the corpus changes, so that cached corpora are rebuilt


@dataclass(frozen=True)
class CorpusConfig:
    """Size and seed of a corpus; different values give different cache folders.

    With `one_object`, each image shows a single object, which is too little for tasks other than detection and VQA.
    """

    train_scenes: int = 8000
    val_scenes: int = 500
    test_scenes: int = 1000
    questions_per_scene: int = 8
    seed: int = 0
    one_object: bool = False

    def scenes(self, split: str) -> int:
        """Number of scenes of a split."""
        return getattr(self, f"{split}_scenes")


def ensure_corpus(config: CorpusConfig | None = None, cache_dir: Path | None = None, progress: bool = True) -> Path:
    """Folder of the corpus with this configuration; built on first use."""
    config = config or CorpusConfig()
    sizes = "-".join(str(config.scenes(split)) for split in SPLITS)
    name = f"shapes-v{FORMAT_VERSION}-{sizes}-{config.questions_per_scene}q-seed{config.seed}"
    name += "-one-object" * config.one_object
    folder = (cache_dir or default_cache_dir()) / name
    if not (folder / "corpus.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # of two processes, one draws and the other finds the corpus
            if not (folder / "corpus.json").is_file():
                build_corpus(folder, config, progress)
    return folder


def in_corpus(folder: Path) -> bool:
    """Whether a folder is that of an embedded corpus, or lies in one."""
    folder = folder.resolve()
    return any((parent / "corpus.json").is_file() for parent in (folder, *folder.parents))


def build_corpus(folder: Path, config: CorpusConfig, progress: bool = True) -> None:
    """Write a corpus to `folder`, which is only created once the corpus is complete.

    Raises:
        FileExistsError: `folder` exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists but is not a complete corpus; remove it to build it anew")
    try:
        with whole_folder(folder) as draft:
            _write_corpus(draft, config, progress)
    except OSError:
        if not (folder / "corpus.json").is_file():  # otherwise another process was faster and wrote the same corpus
            raise


def _write_corpus(folder: Path, config: CorpusConfig, progress: bool) -> None:
    scenes = sample_splits(config)
    for split in SPLITS:
        _write_images(folder / "images" / split, scenes[split], split, progress)
        _write_lines(folder / "scenes" / f"{split}.jsonl", (scene.to_dict() for scene in scenes[split]))
        _write_json(folder / "detection" / f"instances_{split}.json", detection_record(scenes[split], split))
        _write_vqa(folder, scenes[split], split, config)
        if not config.one_object:
            _write_other_tasks(folder, scenes[split], split, config.seed)
    _write_json(folder / "corpus.json", {"format_version": FORMAT_VERSION, **asdict(config)})


def sample_splits(config: CorpusConfig) -> dict[str, list[Scene]]:
    """The scenes of all splits; a scene that looks like one of an earlier split is drawn again."""
    num_objects = (1, 1) if config.one_object else (3, 6)
    taken: set[tuple] = set()
    splits: dict[str, list[Scene]] = {}
    image_id = 0
    for split in reversed(SPLITS):  # test first, so that a larger training set leaves the test set unchanged
        splits[split] = []
        for index in range(config.scenes(split)):
            image_id = _FIRST_ID[split] + index
            attempt = 0
            while (
                scene := sample_scene(image_id, f"{config.seed}/{split}/{index}/{attempt}", num_objects)
            ).key in taken:
                attempt += 1
            splits[split].append(scene)
        taken |= {scene.key for scene in splits[split]}
    return splits


_FIRST_ID = {"train": 1, "val": 1_000_001, "test": 2_000_001}


def image_file_name(split: str, image_id: int) -> str:
    """Named as in COCO: data type, split, id with twelve digits."""
    return f"shapes_{split}_{image_id:012d}.jpg"


def detection_record(scenes: list[Scene], split: str) -> dict:
    """COCO detection annotations; `bbox` is x, y, width, height in pixels."""
    images: list[dict] = []
    annotations: list[dict] = []
    for scene in scenes:
        name = image_file_name(split, scene.image_id)
        images.append({"id": scene.image_id, "file_name": name, "width": scene.width, "height": scene.height})
        for item in scene.objects:
            x1, y1, x2, y2 = item.box()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": scene.image_id,
                    "category_id": CLASSES.index(item.class_name) + 1,
                    "bbox": [round(x1, 2), round(y1, 2), round(x2 - x1, 2), round(y2 - y1, 2)],
                    "area": round((x2 - x1) * (y2 - y1), 2),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def contact_sheet(scenes: list[Scene], questions: list[dict], columns: int = 5) -> Image.Image:
    """Images in a grid, each with its first question below it."""
    first_question: dict[int, str] = {}
    for question in questions:
        first_question.setdefault(question["image_id"], question["question"])
    rows, cell = -(-len(scenes) // columns), (2 * WIDTH + 12, 2 * HEIGHT + 30)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for i, scene in enumerate(scenes):
        x, y = (i % columns) * cell[0] + 6, (i // columns) * cell[1] + 6
        sheet.paste(render(scene).resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + 2 * HEIGHT + 4), first_question.get(scene.image_id, ""), fill="black", font=font)
    return sheet


def _write_vqa(corpus: Path, scenes: list[Scene], split: str, config: CorpusConfig) -> None:
    questions, annotations = vqa_records(scenes, split, config.questions_per_scene, config.seed)
    _write_json(corpus / "vqa" / f"v2_OpenEnded_shapes_{split}_questions.json", questions)
    _write_json(corpus / "vqa" / f"v2_shapes_{split}_annotations.json", annotations)
    if split == "test":
        contact_sheet(scenes[:20], questions["questions"]).save(corpus / "contact_sheet.png")


def _write_other_tasks(folder: Path, scenes: list[Scene], split: str, seed: int) -> None:
    _write_vcr(folder, scenes, split, seed)
    _write_nlvr2(folder, scenes, split, seed)
    _write_snli_ve(folder / "snli_ve", scenes, split, seed)
    _write_flickr30k(folder / "flickr30k", scenes, split, seed)
    captions = captions_record(scenes, partial(_file_name_of, split), seed)
    _write_json(folder / "coco" / f"captions_{split}.json", captions)
    (folder / "coco" / f"captions_{split}.conllu").write_text("".join(caption_trees(scenes, seed)), encoding="utf-8")


def _write_vcr(corpus: Path, scenes: list[Scene], split: str, seed: int) -> None:
    folder = f"shapes_{split}"
    (corpus / "vcr" / "vcr1images" / folder).mkdir(parents=True)
    for scene in scenes:
        name = _file_name_of(split, scene)
        image = corpus / "vcr" / "vcr1images" / folder / name
        _link(corpus / "images" / split / name, image)
        _write_json(image.with_suffix(".json"), metadata_record(scene))
    records = vcr_records(scenes, split, lambda scene: f"{folder}/{_file_name_of(split, scene)}", seed)
    _write_lines(corpus / "vcr" / f"{split}.jsonl", records)


def _write_nlvr2(corpus: Path, scenes: list[Scene], split: str, seed: int) -> None:
    sets = make_pairs(scenes, split)
    for pair in (pair for pairs in sets for pair in pairs):
        folder = corpus / "nlvr2" / "images" / pair.directory
        folder.mkdir(parents=True, exist_ok=True)
        for side, scene in enumerate((pair.left, pair.right)):
            # A JPEG file with the suffix of a PNG, as in the release.
            _link(corpus / "images" / split / _file_name_of(split, scene), folder / f"{pair.name}-img{side}.png")
    _write_lines(corpus / "nlvr2" / "data" / f"{SPLIT_NAMES[split]}.json", nlvr2_records(sets, seed))


def _write_snli_ve(folder: Path, scenes: list[Scene], split: str, seed: int) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for scene in scenes:
        source = folder.parent / "images" / split / _file_name_of(split, scene)
        _link(source, folder / "images" / image_name(scene))
    _write_lines(folder / snli_ve_file(split), snli_ve_records(scenes, seed))


def _write_flickr30k(folder: Path, scenes: list[Scene], split: str, seed: int) -> None:
    for name in ("Sentences", "Annotations", "Trees"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for image_id, sentences, annotation, trees in flickr30k_files(scenes, seed):
        (folder / "Sentences" / f"{image_id}.txt").write_text(sentences, encoding="utf-8")
        (folder / "Annotations" / f"{image_id}.xml").write_text(annotation, encoding="utf-8")
        (folder / "Trees" / f"{image_id}.conllu").write_text(trees, encoding="utf-8")
    ids = "".join(f"{scene.image_id}\n" for scene in scenes)
    (folder / f"shapes_{split}.txt").write_text(ids, encoding="utf-8")


def _file_name_of(split: str, scene: Scene) -> str:
    return image_file_name(split, scene.image_id)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has hard links
        shutil.copyfile(source, target)


def _write_images(folder: Path, scenes: list[Scene], split: str, progress: bool) -> None:
    folder.mkdir(parents=True)
    write: Callable[[Scene], None] = partial(_write_image, folder, split)
    with ThreadPoolExecutor() as pool:  # Pillow and NumPy release the GIL for most of the work
        for _ in tqdm(
            pool.map(write, scenes),
            total=len(scenes),
            desc=f"drawing {split} scenes",
            unit="image",
            disable=not progress,
        ):
            pass


def _write_image(folder: Path, split: str, scene: Scene) -> None:
    render(scene).save(folder / image_file_name(split, scene.image_id), quality=92, subsampling=0)


def _write_json(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), encoding="utf-8")


def _write_lines(path: Path, records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
