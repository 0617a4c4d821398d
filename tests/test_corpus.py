"""The embedded corpus: the same bytes every time, and every answer and box derived again from the scene graph."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from modeling_visualbert import QueryRegionEncoderConfig
from modeling_visualbert.cli import main
from modeling_visualbert.corpus import build
from modeling_visualbert.corpus.build import FORMAT_VERSION, CorpusConfig, build_corpus, ensure_corpus, sample_splits
from modeling_visualbert.corpus.scenes import CLASSES, COLORS, HEIGHT, WIDTH, Scene, render
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer, corpus_vocabulary
from modeling_visualbert.corpus.vqa import vqa_records
from modeling_visualbert.data.files import index_images
from modeling_visualbert.data.vqa2 import find_vqa_files, load_vqa
from modeling_visualbert.metrics.vqa import question_accuracy
from modeling_visualbert.tasks.common import DETECTOR
from modeling_visualbert.tasks.detection import CocoDetection

CONFIG = CorpusConfig(train_scenes=60, val_scenes=20, test_scenes=20)
SPLITS = ("train", "val", "test")
KINDS = {"color", "shape", "size", "count", "exist", "relation", "compare"}
RESPELLED = {"big": "large", "small": "little"} | dict(
    zip("0123456", ("zero", "one", "two", "three", "four", "five", "six"), strict=True)
)
DIGESTS = {  # by format version; of scenes and questions, since version 2 of all files
    1: "2956d0caa64b40e4",
    2: "d21b6de0e5354c32",
    3: "16c1c58db127b8fc",
    4: "3e3098755aaa4154",
}
# A second description of the questions, written from their texts alone.
PHRASE = re.compile(r"(?:(small|big) )?(?:(red|orange|yellow|green|cyan|blue|purple|black) )?(\w+)")
FORMS = {
    "color": (r"What color is the (.+)\?", r"What is the color of the (.+)\?", r"The (.+) is what color\?"),
    "shape": (r"What shape is the (.+)\?", r"What is the shape of the (.+)\?", r"The (.+) is what shape\?"),
    "size": (r"What size is the (.+)\?", r"Is the (.+) small or big\?", r"Is the (.+) big or small\?"),
    "count": (r"How many (.+) are there\?", r"How many (.+) are in the picture\?", r"What number of (.+) are there\?"),
    "exist": (r"Is there an? (.+)\?", r"Is an? (.+) in the picture\?", r"Can you see an? (.+)\?"),
    "relation": (
        r"Is the (.+) in the (left or right|top or bottom) half\?",
        r"Is the (.+) (to the left or right of|above or below) the (.+)\?",
        r"Is the (.+) (to the left of|to the right of|above|below) the (.+)\?",
    ),
    "compare": (
        r"Is the (.+) (bigger|larger|smaller) than the (.+)\?",
        r"Are there (more|fewer) (\w+) things than (\w+) things\?",
    ),
}


def scenes_of(corpus, split):
    """The scene graphs of a split by image id, as plain records."""
    lines = (corpus / "scenes" / f"{split}.jsonl").read_text().splitlines()
    return {scene["image_id"]: scene for scene in map(json.loads, lines)}


def questions_of(corpus):
    """(scene, question, annotation) of all splits."""
    for split in SPLITS:
        scenes = scenes_of(corpus, split)
        questions = json.loads((corpus / "vqa" / f"v2_OpenEnded_shapes_{split}_questions.json").read_text())
        annotations = json.loads((corpus / "vqa" / f"v2_shapes_{split}_annotations.json").read_text())
        pairs = zip(questions["questions"], annotations["annotations"], strict=True)
        yield from ((scenes[asked["image_id"]], asked["question"], said) for asked, said in pairs)


def matching(scene, phrase):
    """Objects that a phrase such as "small red circles" or "red thing" describes."""
    size, color, noun = PHRASE.fullmatch(phrase).groups()
    singular = re.sub(r"(?<=ss)es$|(?<!s)s$", "", noun)
    wanted = {"size": size, "color": color, "shape": None if singular in ("thing", "object") else singular}
    return [o for o in scene["objects"] if all(value in (None, o[key]) for key, value in wanted.items())]


def the_only(scene, phrase):
    """The object that a phrase describes; it must not fit another."""
    (found,) = matching(scene, phrase)
    return found


def derived_answer(scene, kind, text):
    """The answer to a question, from the scene graph and the words of the question only."""
    groups = next(match for form in FORMS[kind] if (match := re.fullmatch(form, text))).groups()
    if kind in ("color", "shape", "size"):
        return the_only(scene, groups[0])[kind]
    if kind == "count":
        return str(len(matching(scene, groups[0])))
    if kind == "exist":
        return "yes" if matching(scene, groups[0]) else "no"
    if groups[0] in ("more", "fewer"):
        first, second = (len(matching(scene, f"{color} things")) for color in groups[1:])
        assert first != second
        return "yes" if (first > second) == (groups[0] == "more") else "no"
    first, relation = the_only(scene, groups[0]), groups[1]
    if kind == "compare":
        assert {first["size"], the_only(scene, groups[2])["size"]} == {"big", "small"}
        return "yes" if (first["size"] == "big") == (relation != "smaller") else "no"
    axis = 0 if "left" in relation or "right" in relation else 1
    middle = (scene["width"] / 2, scene["height"] / 2)
    offset = first["center"][axis] - (the_only(scene, groups[2])["center"] if len(groups) > 2 else middle)[axis]
    assert abs(offset) >= 14.0, "nobody should have to measure"
    if " or " in relation:
        low, high = re.fullmatch(r"(?:to the )?(\w+) or (\w+)(?: of)?", relation).groups()
        return low if offset < 0 else high
    return "yes" if (offset < 0) == (relation in ("to the left of", "above")) else "no"


def test_every_answer_follows_from_the_scene_graph(corpus):
    checked = Counter()
    for scene, text, annotation in questions_of(corpus):
        kind = annotation["question_type"]
        assert derived_answer(scene, kind, text) == annotation["multiple_choice_answer"], (text, scene)
        checked[kind] += 1
    assert set(checked) == KINDS
    assert sum(checked.values()) == 8 * 100
    assert min(checked.values()) > 20


def test_phrases_do_not_tell_the_answer(corpus):
    for _, text, annotation in questions_of(corpus):
        if annotation["question_type"] in ("color", "shape"):
            assert annotation["multiple_choice_answer"] not in text
        if annotation["question_type"] == "size":
            assert sorted(re.findall("small|big", text)) in ([], ["big", "small"])


def test_ten_annotators_and_the_right_answer_is_most_common(corpus):
    disagreeing = 0
    for _, _, annotation in questions_of(corpus):
        right, answers = annotation["multiple_choice_answer"], [a["answer"] for a in annotation["answers"]]
        assert [a["answer_id"] for a in annotation["answers"]] == list(range(1, 11))
        (best, count), *others = Counter(answers).most_common()
        assert best == right
        assert count >= 6 and all(other < count for _, other in others)
        assert sum(answer in (right, RESPELLED.get(right)) for answer in answers) >= 8
        assert question_accuracy(right, annotation["answers"]) == 1.0
        disagreeing += len(others) > 0
    assert 0.2 < disagreeing / 800 < 0.55


def test_records_are_those_of_official_files(corpus):
    for _, _, annotation in questions_of(corpus):
        assert set(annotation) == {
            "question_type",
            "multiple_choice_answer",
            "answers",
            "image_id",
            "answer_type",
            "question_id",
        }
        assert {tuple(a) for a in annotation["answers"]} == {("answer", "answer_confidence", "answer_id")}
        assert {a["answer_confidence"] for a in annotation["answers"]} <= {"yes", "maybe", "no"}
        answer = annotation["multiple_choice_answer"]
        expected = "yes/no" if answer in ("yes", "no") else "number" if answer.isdigit() else "other"
        assert annotation["answer_type"] == expected


@pytest.mark.parametrize("split", SPLITS)
def test_files_load_as_vqa_v2(corpus, split):
    found = find_vqa_files(corpus / "vqa", split)
    rows = load_vqa(found.questions, found.annotations)
    assert len(rows) == 8 * CONFIG.scenes(split)
    images = index_images(corpus / "images" / split)
    assert set(rows["image_id"]) == set(images) == set(scenes_of(corpus, split))
    for path in images.values():
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (WIDTH, HEIGHT))


def test_splits_share_no_scene(corpus):
    keys = {split: {Scene.from_dict(s).key for s in scenes_of(corpus, split).values()} for split in SPLITS}
    ids = [image_id for split in SPLITS for image_id in scenes_of(corpus, split)]
    assert keys["train"].isdisjoint(keys["val"] | keys["test"])
    assert keys["val"].isdisjoint(keys["test"])
    assert len(ids) == len(set(ids)) == 100


def sample_of(count):
    """The first test scenes of the corpus."""
    return sample_splits(CorpusConfig(train_scenes=0, val_scenes=0, test_scenes=count))["test"]


def test_a_scene_of_an_earlier_split_is_drawn_again(monkeypatch):
    first, second, third = (scene.objects for scene in sample_of(3))
    drawn = []

    def few_scenes(image_id, seed, num_objects):
        assert num_objects == (3, 6)
        drawn.append(seed)
        attempt = int(seed.split("/")[-1])
        return Scene(image_id, seed, ((200, 200, 200),) * 2, (first, second, third)[attempt])

    monkeypatch.setattr(build, "sample_scene", few_scenes)
    splits = sample_splits(CorpusConfig(train_scenes=1, val_scenes=1, test_scenes=1))
    assert [splits[split][0].objects for split in ("test", "val", "train")] == [first, second, third]
    assert drawn == ["0/test/0/0", "0/val/0/0", "0/val/0/1", "0/train/0/0", "0/train/0/1", "0/train/0/2"]


def test_key_is_the_same_for_nearly_the_same_places():
    scene = sample_of(1)[0]
    first, *rest = scene.objects
    x, y = (8 * round(side / 8) for side in first.center)
    at = [replace(scene, objects=(*rest, replace(first, center=(x + dx, y)))) for dx in (0, 3, 8)]
    assert at[0].key == at[1].key != at[2].key


def test_building_again_writes_the_same_bytes(corpus, tmp_path):
    code = (
        "import sys; from pathlib import Path; from modeling_visualbert.corpus.build import *;"
        f"build_corpus(Path(sys.argv[1]), CorpusConfig(**{asdict(CONFIG)}), progress=False)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}  # another process, another order of sets
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True, env=environment)
    files = sorted(path.relative_to(corpus) for path in corpus.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in tmp_path.rglob("*") if p.is_file())
    # Images, ten files a split, VCR (image, metadata), NLVR2 (sets of eight), Flickr30k (sentences, boxes, trees), SNLI-VE, two.
    assert len(files) == 100 + 3 * 10 + 2 * 100 + 8 * (7 + 2 + 2) + 3 * 100 + 100 + 2
    for file in files:
        assert (corpus / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_more_training_scenes_leave_dev_and_test_as_they_are():
    small, large = sample_splits(CONFIG), sample_splits(replace(CONFIG, train_scenes=200))
    assert small["val"] == large["val"]
    assert small["test"] == large["test"]
    assert sample_splits(replace(CONFIG, seed=1))["test"] != small["test"]


def test_a_scene_survives_its_file_and_draws_the_same_image(corpus, tmp_path):
    for image_id, record in list(scenes_of(corpus, "val").items())[:5]:
        scene = Scene.from_dict(record)
        assert json.loads(json.dumps(scene.to_dict())) == record
        render(scene).save(tmp_path / "again.jpg", quality=92, subsampling=0)
        stored = corpus / "images" / "val" / f"shapes_val_{image_id:012d}.jpg"
        assert (tmp_path / "again.jpg").read_bytes() == stored.read_bytes()


def drawn_pixels(image, background):
    """Boolean [height, width]: pixels that differ from the background gradient by more than noise and JPEG do."""
    ramp = np.linspace(0.0, 1.0, HEIGHT)[:, None, None]
    first, second = (np.asarray(color, dtype=float) for color in background)
    return np.abs(np.asarray(image, dtype=float) - (first + (second - first) * ramp)).max(axis=-1) > 50


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_are_those_of_the_drawn_pixels(corpus, split):
    scenes = scenes_of(corpus, split)
    record = json.loads((corpus / "detection" / f"instances_{split}.json").read_text())
    objects = defaultdict(list)
    for item in record["annotations"]:
        objects[item["image_id"]].append(item)
    ys, xs = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for image in record["images"]:
        scene = scenes[image["id"]]
        drawn = drawn_pixels(Image.open(corpus / "images" / split / image["file_name"]), scene["background"])
        for item, truth in zip(objects[image["id"]], scene["objects"], strict=True):
            (cx, cy), (x, y, width, height) = truth["center"], item["bbox"]
            mine = drawn & (np.hypot(xs - cx, ys - cy) < truth["radius"] + 2)
            box = xs[mine].min() - 0.5, ys[mine].min() - 0.5, xs[mine].max() + 0.5, ys[mine].max() + 0.5
            assert box == pytest.approx((x, y, x + width, y + height), abs=2.0), (image, item)
            assert min(x, y) >= 0 and x + width <= WIDTH and y + height <= HEIGHT
            assert item["area"] == pytest.approx(width * height, abs=1.0)
            drawn &= ~mine
        assert drawn.sum() < 20, f"{image['file_name']}: something is drawn outside all boxes"


def test_boxes_carry_the_class_that_is_drawn(corpus):
    record = json.loads((corpus / "detection" / "instances_test.json").read_text())
    names = {category["id"]: category["name"] for category in record["categories"]}
    file_of = {image["id"]: image["file_name"] for image in record["images"]}
    assert list(names.values()) == list(CLASSES)
    assert len(CLASSES) == 48
    for item in record["annotations"]:
        x, y, width, height = item["bbox"]
        drawn = Image.open(corpus / "images" / "test" / file_of[item["image_id"]])
        middle = drawn.getpixel((int(x + width / 2), int(y + height / 2)))
        nearest = min(COLORS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLORS[name], middle, strict=True)))
        assert names[item["category_id"]].split()[0] == nearest


def test_boxes_load_as_coco_detection(corpus):
    data = CocoDetection(corpus / "detection" / "instances_val.json", corpus / "images" / "val")
    assert len(data) == 20
    assert sum(len(data[i]["boxes"]) for i in range(20)) == sum(
        len(scene["objects"]) for scene in scenes_of(corpus, "val").values()
    )


def test_every_word_is_one_piece_of_the_shipped_tokenizer(corpus):
    tokenizer = corpus_tokenizer()
    for _, text, annotation in questions_of(corpus):
        for sentence in (text, *(a["answer"] for a in annotation["answers"])):
            assert tokenizer.tokenize(sentence) == re.findall(r"\w+|\?", sentence.lower())
            assert tokenizer.unk_token_id not in tokenizer(sentence)["input_ids"]


def test_other_words_are_spelled():
    tokenizer = corpus_tokenizer()
    assert tokenizer.tokenize("zebra 12") == ["z", "##e", "##b", "##r", "##a", "1", "##2"]


def test_shipped_tokenizer_is_that_of_the_texts():
    pieces = corpus_vocabulary()
    assert len(pieces) == len(set(pieces))
    assert corpus_tokenizer().get_vocab() == {piece: index for index, piece in enumerate(pieces)}
    assert corpus_tokenizer().convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_guessing_without_the_image_does_not_pay():
    scenes = sample_splits(CorpusConfig(train_scenes=500, val_scenes=0, test_scenes=0))["train"]
    by_kind = defaultdict(Counter)
    for annotation in vqa_records(scenes, "train", 8, 0)[1]["annotations"]:
        by_kind[annotation["question_type"]][annotation["multiple_choice_answer"]] += 1
    total = sum(counts.total() for counts in by_kind.values())
    assert total == 4000
    assert sum(counts.most_common(1)[0][1] for counts in by_kind.values()) / total < 0.45
    for kind in ("exist", "relation", "compare"):
        assert 0.45 < by_kind[kind]["yes"] / (by_kind[kind]["yes"] + by_kind[kind]["no"]) < 0.55
    for one, other in (("left", "right"), ("above", "below"), ("top", "bottom")):
        assert 0.4 < by_kind["relation"][one] / (by_kind["relation"][one] + by_kind["relation"][other]) < 0.6
    assert max(by_kind["count"].values()) / by_kind["count"].total() < 0.3


ADDED = {3: lambda path: path.suffix == ".conllu", 4: lambda path: path.parts[0] == "snli_ve"}  # by a format version


def digest_of(corpus, version=FORMAT_VERSION):
    """Names and contents of all files that there were in a version."""
    digest = hashlib.sha256()
    for path in sorted(path for path in corpus.rglob("*") if path.is_file()):
        if any(added(path.relative_to(corpus)) for number, added in ADDED.items() if number > version):
            continue
        digest.update(f"{path.relative_to(corpus).as_posix()}\n".encode())
        if path.suffix not in (".jpg", ".png"):  # how these are compressed is the imaging library's business
            now, then = (f'"format_version": {number}'.encode() for number in (FORMAT_VERSION, version))
            digest.update(path.read_bytes().replace(now, then))
    return digest.hexdigest()[:16]


def test_caches_are_told_apart_when_the_corpus_changes(corpus):
    assert digest_of(corpus) == DIGESTS.get(FORMAT_VERSION), "raise FORMAT_VERSION, then note the new digest here"


@pytest.mark.parametrize("version", [2, 3])
def test_later_versions_only_add_dependency_trees_and_entailment(corpus, version):
    assert digest_of(corpus, version) == DIGESTS[version]


def test_the_shipped_detector_names_what_is_drawn():
    names = QueryRegionEncoderConfig.from_pretrained(DETECTOR).detector_config.id2label
    assert [names[i] for i in range(len(names))] == list(CLASSES)


def test_ensure_corpus_builds_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path))
    config = CorpusConfig(train_scenes=3, val_scenes=1, test_scenes=1)
    folder = ensure_corpus(config, progress=False)
    assert folder.parent == tmp_path
    monkeypatch.setattr(build, "build_corpus", lambda *args: pytest.fail("built again"))
    assert ensure_corpus(config, progress=False) == folder
    assert json.loads((folder / "corpus.json").read_text())["train_scenes"] == 3
    for other in (replace(config, seed=1), replace(config, questions_per_scene=2)):
        with pytest.raises(pytest.fail.Exception, match="built again"):
            ensure_corpus(other, progress=False)


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="mine exists but is not a complete corpus; remove it to build it anew"):
        build_corpus(tmp_path / "mine", CONFIG)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(build, "contact_sheet", fail)
    with pytest.raises(OSError, match="disk full"):
        build_corpus(tmp_path / "shapes", CorpusConfig(2, 1, 1), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_appeared_meanwhile_is_taken(tmp_path, monkeypatch):
    def other_process(*args):
        (tmp_path / "shapes").mkdir()
        (tmp_path / "shapes" / "corpus.json").write_text("{}")
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(build, "contact_sheet", other_process)
    build_corpus(tmp_path / "shapes", CorpusConfig(2, 1, 1), progress=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["shapes", "corpus.json"]


def test_contact_sheet_shows_twenty_images(corpus):
    with Image.open(corpus / "contact_sheet.png") as sheet:
        assert sheet.size == (5 * (2 * WIDTH + 12), 4 * (2 * HEIGHT + 30))
        pixels = np.asarray(sheet.convert("L"))
    cells = pixels.reshape(4, 2 * HEIGHT + 30, 5, 2 * WIDTH + 12).swapaxes(1, 2)
    for cell in cells.reshape(20, *cells.shape[2:]):
        assert cell[6 : 6 + 2 * HEIGHT, 6 : 6 + 2 * WIDTH].std() > 5  # an image
        assert cell[6 + 2 * HEIGHT :].min() < 100  # above a question


def test_corpus_command_prints_the_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path))
    complete = tmp_path / f"shapes-v{FORMAT_VERSION}-8000-500-1000-8q-seed0"
    complete.mkdir()
    (complete / "corpus.json").write_text("{}")
    assert main(["corpus"]) == 0
    assert capsys.readouterr().out == f"{complete}\n"


def test_one_object_corpus(tmp_path):
    """Images of a single thing, with questions that can be asked of it."""
    config = CorpusConfig(train_scenes=12, val_scenes=4, test_scenes=4, one_object=True)
    folder = ensure_corpus(config, cache_dir=tmp_path, progress=False)
    assert folder.name.endswith("-one-object")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"images", "scenes", "detection", "vqa"}
    scenes = {scene["image_id"]: scene for scene in map(json.loads, (folder / "scenes/train.jsonl").open())}
    assert {len(scene["objects"]) for scene in scenes.values()} == {1}
    annotations = json.loads((folder / "vqa/v2_shapes_train_annotations.json").read_text())["annotations"]
    kinds = Counter(item["question_type"] for item in annotations)
    assert {"color", "shape", "size", "relation", "count"} <= set(kinds)
    for item in annotations:
        if item["question_type"] in ("color", "shape", "size"):
            (thing,) = scenes[item["image_id"]]["objects"]
            assert item["multiple_choice_answer"] == thing[item["question_type"]]
