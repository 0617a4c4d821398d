"""The embedded corpus as NLVR2, VCR, Flickr30k Entities and COCO captions: what is said is judged again by its words alone."""

import json
import math
import re
from collections import Counter, defaultdict
from functools import cache
from itertools import chain, combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_corpus import SPLITS, matching, scenes_of

from modeling_visualbert.corpus.build import CorpusConfig, image_file_name, sample_splits
from modeling_visualbert.corpus.captions import captions_record
from modeling_visualbert.corpus.flickr30k import flickr30k_files
from modeling_visualbert.corpus.nlvr2 import make_pairs, nlvr2_records
from modeling_visualbert.corpus.scenes import COLORS, SHAPES, SIZES, Scene
from modeling_visualbert.corpus.snli_ve import snli_ve_records
from modeling_visualbert.corpus.vcr import vcr_records
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.data.coco import load_coco_captions
from modeling_visualbert.data.files import index_images, index_images_by_name
from modeling_visualbert.data.flickr30k import load_flickr30k, parse_sentence, read_boxes, read_split
from modeling_visualbert.data.nlvr2 import find_nlvr2_file, load_nlvr2
from modeling_visualbert.data.vcr import load_vcr, read_metadata
from modeling_visualbert.metrics.nlvr2 import nlvr2_accuracy

NUMBERS = {word: number for number, word in enumerate(("zero", "one", "two", "three", "four", "five", "six"))}
NLVR2_SPLITS = {"train": "train", "val": "dev", "test": "test1"}
OFFSET = 14.0  # pixels between centres before anything is said about where things are
AXES = {"left": 0, "right": 0, "top": 1, "bottom": 1, "above": 1, "below": 1}
LOW = {"left", "top", "above"}
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


@cache
def sampled():
    """3000 training and 2000 test scenes that are in no file."""
    splits = sample_splits(CorpusConfig(train_scenes=3000, val_scenes=0, test_scenes=2000))
    return splits["train"], splits["test"]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def image_of(corpus, split, image_id):
    return (corpus / "images" / split / f"shapes_{split}_{image_id:012d}.jpg").read_bytes()


def side_of(first, second, axis, by=0.0):
    """-1 if the first is left of (above) the second by more than some pixels, 1 if right of (below) it, else 0."""
    offset = first["center"][axis] - second["center"][axis]
    return 0 if abs(offset) <= by else int(math.copysign(1, offset))


def is_in_half(scene, item, half):
    """Whether an object is clearly in this half; nothing may be said of one in the middle."""
    offset = item["center"][AXES[half]] - (scene["width"], scene["height"])[AXES[half]] / 2
    assert abs(offset) >= OFFSET
    return (offset < 0) == (half in LOW)


def is_related(first, relation, second, by=0.0):
    """Whether "to the left of", "to the right of", "above" or "below" is true of two objects."""
    word = relation.removeprefix("to the ").removesuffix(" of")
    side = side_of(first, second, AXES[word], by)
    assert side != 0
    return (side < 0) == (word in LOW)


# ------------------------------------------------------------------------------------------------------------- NLVR2


def compare(left, right, side, word, kind):
    difference = len(matching(left, kind)) - len(matching(right, kind))
    return (difference if (side == "left") == (word == "more") else -difference) > 0


def number_on(left, right, side, how, number, kind):
    count = len(matching(left if side == "left" else right, kind))
    return count >= NUMBERS[number] if how == "at least" else count == NUMBERS[number]


def shown_on(left, right, side, kind):
    return len(matching(left if side == "left" else right, kind)) > 0


def shown_in(left, right, kind):
    return (len(matching(left, kind)) > 0) + (len(matching(right, kind)) > 0)


COMPARED = r"The (left|right) image contains (more|fewer) (.+) than the (?:left|right) image\."
PAIR_FORMS = {
    r"The (left|right) image shows an? (.+)\.": shown_on,
    r"There is an? (.+) in the (left|right) image\.": lambda a, b, kind, side: shown_on(a, b, side, kind),
    r"An? (.+) is in the (left|right) image\.": lambda a, b, kind, side: shown_on(a, b, side, kind),
    r"Both images show an? (.+)\.": lambda a, b, kind: shown_in(a, b, kind) == 2,
    r"There is an? (.+) in each image\.": lambda a, b, kind: shown_in(a, b, kind) == 2,
    r"Only one of the images shows an? (.+)\.": lambda a, b, kind: shown_in(a, b, kind) == 1,
    r"Neither image shows an? (.+)\.": lambda a, b, kind: shown_in(a, b, kind) == 0,
    r"The (left|right) image contains (exactly|at least) (one|two|three) (.+)\.": number_on,
    r"In the (left|right) image there (?:is|are) (exactly|at least) (one|two|three) (.+)\.": number_on,
    r"There (?:is|are) exactly (one|two|three) (.+) in the two images together\.": (
        lambda a, b, number, kind: len(matching(a, kind)) + len(matching(b, kind)) == NUMBERS[number]
    ),
    COMPARED: compare,
}


def pair_truth(sentence, left, right):
    """(form, truth) of a sentence about two scene graphs."""
    found = [(form, re.fullmatch(form, sentence)) for form in PAIR_FORMS if re.fullmatch(form, sentence)]
    assert len(found) == 1, sentence
    form, match = found[0]
    return form, PAIR_FORMS[form](left, right, *match.groups())


def pairs_of(scenes):
    """(left, right) by set and pair number: in the order of the scenes, two to a pair, four pairs to a set."""
    scenes = list(scenes)
    return {(i // 8, i % 8 // 2): (scenes[i], scenes[i + 1]) for i in range(0, len(scenes) - len(scenes) % 8, 2)}


def numbers_in(identifier):
    """Set, pair and sentence."""
    return tuple(int(number) for number in identifier.split("-")[1:])


def test_nlvr2_labels_follow_from_the_two_scene_graphs():
    scenes = sampled()[0][:1600]
    graphs = pairs_of(scene.to_dict() for scene in scenes)
    forms, truths, ties, groups = Counter(), Counter(), Counter(), defaultdict(list)
    for record in nlvr2_records(make_pairs(scenes, "train"), seed=0):
        in_set, pair, sentence = numbers_in(record["identifier"])
        form, truth = pair_truth(record["sentence"], *graphs[in_set, pair])
        assert record["label"] == str(truth), record
        forms[form] += 1
        truths[form] += truth
        groups[in_set, sentence].append((record["sentence"], truth))
        if form == COMPARED:
            kind = re.fullmatch(COMPARED, record["sentence"])[3]
            left, right = graphs[in_set, pair]
            ties[in_set, sentence] += len(matching(left, kind)) == len(matching(right, kind))
    assert len(groups) > 0.95 * 16 * 200
    for group in groups.values():
        assert len({text for text, _ in group}) == 1
        assert sorted(truth for _, truth in group) == [False, False, True, True]
    for in_set in range(200):
        assert len({group[0][0] for (number, _), group in groups.items() if number == in_set}) == sum(
            number == in_set for number, _ in groups
        ), "a sentence is asked twice"
    assert all(forms[form] > 80 and truths[form] == forms[form] / 2 for form in PAIR_FORMS), forms
    assert max(ties.values()) == 1, "numbers are compared that are mostly equal"


def test_nlvr2_sentences_are_grammatical():
    for record in nlvr2_records(make_pairs(sampled()[0][:1600], "train"), seed=0):
        sentence = record["sentence"]
        assert not re.search(r"\ba (?=[aeiou])|\ban (?![aeiou])", sentence, re.IGNORECASE), sentence
        assert not re.search(r"\b(exactly|at least) one [\w ]*s\b(?<!cross)( in the two|\.)", sentence), sentence
        assert not re.search(r"are (exactly|at least) one|is (exactly|at least) (two|three)", sentence), sentence


@pytest.mark.parametrize("split", SPLITS)
def test_nlvr2_files_are_those_of_the_release(corpus, split):
    name = NLVR2_SPLITS[split]
    records = lines_of(corpus / "nlvr2" / "data" / f"{name}.json")
    scenes = scenes_of(corpus, split)
    graphs = pairs_of(scenes.values())
    images = corpus / "nlvr2" / "images"
    assert len({record["identifier"] for record in records}) == len(records) == 4 * 16 * (len(scenes) // 8)
    for record in records:
        assert re.fullmatch(rf"shapes_{name}-\d+-[0-3]-(?:\d|1[0-5])", record["identifier"])
        expected = {"identifier", "sentence", "label", "synset", *(("directory",) if split == "train" else ())}
        assert set(record) == expected
        folder = images / ("train/{directory}".format(**record) if split == "train" else name)
        in_set, pair, _ = numbers_in(record["identifier"])
        left, right = graphs[in_set, pair]
        assert pair_truth(record["sentence"], left, right)[1] == (record["label"] == "True")
        for side, scene in enumerate((left, right)):
            file = folder / f"shapes_{name}-{in_set}-{pair}-img{side}.png"
            assert file.read_bytes() == image_of(corpus, split, scene["image_id"])
            with Image.open(file) as image:
                assert image.format == "JPEG"
    drawn = [path for path in images.rglob("*.png") if path.stem.startswith(f"shapes_{name}-")]
    assert len(drawn) == 8 * (len(scenes) // 8)


def test_nlvr2_spreads_its_training_images_over_folders():
    records = list(nlvr2_records(make_pairs(sampled()[0][:1600], "train"), seed=0))
    assert {record["directory"] for record in records} == {0, 1}
    assert all(record["directory"] == numbers_in(record["identifier"])[0] // 100 for record in records)


@pytest.mark.parametrize("split", SPLITS)
def test_nlvr2_loads(corpus, split):
    path = find_nlvr2_file(corpus / "nlvr2", NLVR2_SPLITS[split])
    rows = load_nlvr2(path)
    records = lines_of(path)
    assert [(row["identifier"], bool(row["label"])) for row in rows] == [
        (record["identifier"], record["label"] == "True") for record in records
    ]
    images = index_images_by_name(corpus / "nlvr2")
    assert {name for row in rows for name in row["images"]} <= set(images)
    always = {record["identifier"]: "True" for record in records}
    scored = nlvr2_accuracy(always, {record["identifier"]: record["label"] for record in records})
    assert (scored["accuracy"], scored["consistency"]) == (0.5, 0.0)


# --------------------------------------------------------------------------------------------------------------- VCR

TAG = r"\[(\d)\]"
RELATION = r"(to the left of|to the right of|above|below)"
COLOR = f"({'|'.join(COLORS)})"
HALF = r"in the (left|right|top|bottom) half"
QUESTION_FORMS = {
    "color": rf"What color (?:is {TAG}|does {TAG} have) \?",
    "which color": rf"Which one is {COLOR} \?",
    "which place": rf"Which one is {HALF} \?",
    "direction": rf"Where is {TAG} \?",
    "look": rf"(?:How does {TAG} look|What is {TAG} like) \?",
}


VCR_SCENES = 1500, 1000  # training and test scenes of the sample


def spoken(tokens):
    """Tokens as text, tags as "[2]"."""
    return " ".join(word if isinstance(word, str) else f"[{','.join(map(str, word))}]" for word in tokens)


def claims_of(tokens):
    """(subject, what is said of it) of each half of a statement such as "[0] is red and it is in the left half ."."""
    first, *more = spoken(tokens).removesuffix(" .").split(" and ")
    subject, said = re.fullmatch(rf"{TAG} is (.+)", re.sub(rf"The color of {TAG} is", r"[\1] is", first)).groups()
    return [(int(subject), said), *((int(subject), claim.removeprefix("it is ")) for claim in more)]


def claim_truth(scene, subject, said):
    item = scene["objects"][subject]
    if place := re.fullmatch(HALF, said):
        return is_in_half(scene, item, place[1])
    if relation := re.fullmatch(rf"{RELATION} {TAG}", said):
        return is_related(item, relation[1], scene["objects"][int(relation[2])], OFFSET)
    assert said in (*COLORS, "small", "big"), said
    return said in (item["color"], item["size"])


def statement_truth(scene, tokens):
    return all(claim_truth(scene, subject, said) for subject, said in claims_of(tokens))


def question_kind(tokens):
    (kind,) = (kind for kind, form in QUESTION_FORMS.items() if re.fullmatch(form, spoken(tokens)))
    return kind


def check_vcr_record(scene, record):
    """One answer and one rationale are true, both of the object that is asked about."""
    for name in ("answer", "rationale"):
        choices, label = record[f"{name}_choices"], record[f"{name}_label"]
        assert [statement_truth(scene, choice) for choice in choices] == [i == label for i in range(4)], record
        assert len({spoken(choice) for choice in choices}) == 4, record
    right = record["answer_choices"][record["answer_label"]]
    ((target, said), *_) = claims_of(right)
    for rationale in record["rationale_choices"]:
        assert {subject for subject, _ in claims_of(rationale)} == {target}
        assert not {claim for _, claim in claims_of(rationale)} & {claim for _, claim in claims_of(right)}, record
    halves = zip(*(claims_of(rationale) for rationale in record["rationale_choices"]), strict=True)
    assert [len(set(half)) for half in halves] == [2, 2], record  # one right, one wrong, in all combinations
    question, kind = spoken(record["question"]), question_kind(record["question"])
    tagged = {int(number) for number in re.findall(TAG, question)}
    subjects = [claims_of(choice)[0][0] for choice in record["answer_choices"]]
    if kind.startswith("which"):
        assert question == f"Which one is {said} ?"
        names = [scene["objects"][subject]["shape"] for subject in subjects]
        assert len(set(names)) == 4, "two of the choices have the same name"
        assert {claims_of(choice)[0][1] for choice in record["answer_choices"]} == {said}
    else:
        assert tagged == set(subjects) == {target}
    if kind == "direction":
        said = [claims_of(choice)[0][1].removeprefix("to the ").split()[0] for choice in record["answer_choices"]]
        assert len({word for word in said if AXES[word] == 0}) == len({word for word in said if AXES[word] == 1}), (
            record
        )
        assert sum(AXES[word] for word in said) == 2, record
    return kind


@cache
def vcr_sample():
    """(scene graph, record) of questions that are in no file, of training and of test scenes."""

    def asked(scenes, split):
        graphs = {scene.image_id: scene.to_dict() for scene in scenes}
        records = vcr_records(scenes, split, lambda scene: f"shapes_{split}/{scene.image_id}.jpg", seed=0)
        return [(graphs[int(record["img_id"].split("-")[1])], record) for record in records]

    train, test = sampled()
    return asked(train[: VCR_SCENES[0]], "train"), asked(test[: VCR_SCENES[1]], "test")


def test_one_answer_and_one_rationale_are_true():
    labels, sample = Counter(), vcr_sample()[0]
    for scene, record in sample:
        check_vcr_record(scene, record)
        labels["answer", record["answer_label"]] += 1
        labels["rationale", record["rationale_label"]] += 1
        labels["both", record["answer_label"] == record["rationale_label"]] += 1
    for name in ("answer", "rationale"):
        assert all(0.23 < labels[name, label] / len(sample) < 0.27 for label in range(4)), labels
    assert 0.23 < labels["both", True] / len(sample) < 0.27


def test_nearly_every_scene_gets_three_questions():
    asked = Counter(record["img_id"] for sample in vcr_sample() for _, record in sample)
    assert len(asked) == sum(VCR_SCENES), "a scene has no question"
    assert asked.total() > 2.95 * sum(VCR_SCENES)


def test_all_kinds_of_choices_are_asked():
    kinds = Counter(question_kind(record["question"]) for sample in vcr_sample() for _, record in sample)
    assert set(kinds) == set(QUESTION_FORMS)
    assert min(kinds.values()) >= 0.04 * kinds.total(), kinds
    assert max(kinds.values()) <= 0.5 * kinds.total(), kinds


@pytest.mark.parametrize("split", SPLITS)
def test_vcr_files_are_those_of_the_release(corpus, split):
    scenes = scenes_of(corpus, split)
    records = lines_of(corpus / "vcr" / f"{split}.jsonl")
    assert len({record["annot_id"] for record in records}) == len(records) > 2.9 * len(scenes)
    asked = Counter()
    for index, record in enumerate(records):
        image_id = int(record["img_id"].removeprefix(f"shapes_{split}-"))
        assert record["annot_id"] == f"shapes_{split}-{index}"
        assert record["match_index"] == index
        assert record["question_number"] == asked[image_id]
        asked[image_id] += 1
        scene = scenes[image_id]
        assert record["objects"] == [item["shape"] for item in scene["objects"]]
        check_vcr_record(scene, record)
        image = corpus / "vcr" / "vcr1images" / record["img_fn"]
        assert record["metadata_fn"] == record["img_fn"].replace(".jpg", ".json")
        assert image.read_bytes() == image_of(corpus, split, image_id)
    assert len(asked) == len(scenes)


CORNERS = {"circle": 48, "square": 4, "triangle": 3, "star": 10, "cross": 12, "diamond": 4}


def detected_boxes(corpus, split):
    """x1, y1, x2, y2 by image id, as for detectors; another test compares these with the pixels."""
    boxes = defaultdict(list)
    for item in json.loads((corpus / "detection" / f"instances_{split}.json").read_text())["annotations"]:
        x, y, width, height = item["bbox"]
        boxes[item["image_id"]].append([x, y, x + width, y + height])
    return boxes


def test_vcr_boxes_and_polygons_are_those_of_the_scene(corpus):
    boxes = detected_boxes(corpus, "val")
    for image_id, scene in scenes_of(corpus, "val").items():
        path = corpus / "vcr" / "vcr1images" / "shapes_val" / f"shapes_val_{image_id:012d}.json"
        metadata = read_metadata(path)
        assert (metadata.width, metadata.height) == (scene["width"], scene["height"])
        assert metadata.names == [item["shape"] for item in scene["objects"]]
        assert metadata.scores == [1.0] * len(metadata.names)
        np.testing.assert_allclose(metadata.boxes, boxes[image_id], atol=0.02)
        pixels = np.asarray(Image.open(path.with_suffix(".jpg")), dtype=float)
        for item, box, (polygon,) in zip(scene["objects"], metadata.boxes, metadata.segms, strict=True):
            corners = np.array(polygon)
            np.testing.assert_allclose([*corners.min(axis=0), *corners.max(axis=0)], box, atol=0.06)
            assert len(polygon) == CORNERS[item["shape"]]
            mask = Image.new("1", (scene["width"], scene["height"]))
            ImageDraw.Draw(mask).polygon([tuple(point) for point in polygon], fill=1)
            color = np.median(pixels[np.asarray(mask)], axis=0)
            nearest = min(COLORS, key=lambda name: ((np.array(COLORS[name]) - color) ** 2).sum())
            assert nearest == item["color"]


@pytest.mark.parametrize("split", SPLITS)
def test_vcr_loads(corpus, split):
    path, boxes = corpus / "vcr" / f"{split}.jsonl", detected_boxes(corpus, split)
    rows, all_objects = (load_vcr(path, corpus / "vcr" / "vcr1images", objects) for objects in ("mentioned", "all"))
    for row, whole, record in zip(rows, all_objects, lines_of(path), strict=True):
        image_id = int(record["img_id"].split("-")[1])
        assert (row["annot_id"], row["answer_label"]) == (record["annot_id"], record["answer_label"])
        assert row["rationale_label"] == record["rationale_label"]
        texts = [record["question"], *record["answer_choices"], *record["rationale_choices"]]
        mentioned = sorted({index for text in texts for word in text if isinstance(word, list) for index in word})
        assert row["object_ids"] == mentioned
        np.testing.assert_allclose(row["boxes"], [boxes[image_id][i] for i in mentioned], atol=0.02)
        assert whole["objects"] == record["objects"]


def choice_features(context, choices):
    """Of each choice: its words, pairs of neighbours, its words with those of the question, and how it differs from the others:
    how many of them have a word too ("majority"), and what they say instead."""
    sets = [set(choice) for choice in choices]
    for number, choice in enumerate(choices):
        others = [words for i, words in enumerate(sets) if i != number]
        found = set(zip(choice, choice[1:], strict=False))
        for word in sets[number]:
            found |= {word, ("also in", word, sum(word in other for other in others))}
            found |= {("asked", asked, word) for asked in set(context)}
        instead = Counter((a, b) for other in others for a in sets[number] - other for b in other - sets[number])
        found |= set(instead.items())
        shared = [sum(len(words & other) for other in sets) for words in sets]
        found.add(("rank", sum(count > shared[number] for count in shared)))
        yield found


def chosen_blindly(name, train, test):
    """Hit rates by kind of a naive Bayes classifier that reads question and choices, not the image; ties count in part."""

    def examples(sample):
        for scene, record in sample:
            shapes = [item["shape"] for item in scene["objects"]]

            def words(tokens, shapes=shapes):
                # At the place of a tag the model reads the shape's name; the number, which it does not read, comes too.
                named = ([shapes[i] for i in w] + w if isinstance(w, list) else [w] for w in tokens)
                return list(chain.from_iterable(named))

            context, label = words(record["question"]), record[f"{name}_label"]
            if name == "rationale":
                context += words(record["answer_choices"][record["answer_label"]])
            choices = [words(choice) for choice in record[f"{name}_choices"]]
            yield question_kind(record["question"]), label, choice_features(context, choices)

    right, wrong = Counter(), Counter()
    for _, label, features in examples(train):
        for number, found in enumerate(features):
            (right if number == label else wrong).update(found)
    hits = defaultdict(list)
    for kind, label, features in examples(test):
        scores = [sum(math.log((right[f] + 2) / (wrong[f] / 3 + 2)) for f in found) for found in features]
        best = [number for number, score in enumerate(scores) if score > max(scores) - 1e-9]
        hits[kind].append((label in best) / len(best))
    return hits


@pytest.mark.parametrize("name", ["answer", "rationale"])
def test_text_alone_does_not_tell_the_choice(name):
    hits = chosen_blindly(name, *vcr_sample())
    everything = list(chain.from_iterable(hits.values()))
    assert sum(everything) / len(everything) < 0.30
    for kind, of_kind in hits.items():
        deviation = 0.5 / math.sqrt(len(of_kind))
        assert sum(of_kind) / len(of_kind) < 0.35 + 2 * deviation, (kind, len(of_kind))


def test_statements_about_directions_do_not_tell_on_each_other():
    """Two neighbours are likely on the same side. Where just one axis has opposite words, the true one is likely among these."""
    hits = []
    for _, record in chain(*vcr_sample()):
        if question_kind(record["question"]) == "direction":
            said = [re.search("left|right|above|below", spoken(choice))[0] for choice in record["answer_choices"]]
            axes = [[i for i in range(4) if AXES[said[i]] == axis] for axis in (0, 1)]
            differ = [axis for axis in axes if said[axis[0]] != said[axis[1]]]
            guess = differ[0] if len(differ) == 1 else range(4)
            hits.append((record["answer_label"] in guess) / len(guess))
    assert len(hits) > 500
    assert sum(hits) / len(hits) < 0.30


# -------------------------------------------------------------------------------------------------------- Flickr30k

MARKED = re.compile(r"\[/EN#(\d+)/(\w+) ([^\]]+)\]")


def described(scene, words):
    """Objects that a phrase with "the" fits: one, or, after a number, as many."""
    number, rest = re.fullmatch(r"the (?:(two|three|four|five|six) )?(.+)", words.lower()).groups()
    found = matching(scene, rest)
    assert len(found) == (1 if number is None else NUMBERS[number]), words
    assert (number is None) != rest.endswith(("things", *(f"{shape}s" for shape in SHAPES), "crosses")), words
    return [scene["objects"].index(item) for item in found]


def corners(box):
    """A box in whole pixels counted from 1."""
    return [round(side) + 1 for side in box]


def check_entities(scene, boxes, sentences, annotation):
    """Phrases and boxes agree with the scene; returns (entities, kinds of phrases)."""
    root = ElementTree.fromstring(annotation)
    assert root.findtext("filename") == f"{scene['image_id']}.jpg"
    assert [root.findtext(f"size/{name}") for name in ("width", "height", "depth")] == ["160", "128", "3"]
    without_box, boxed = set(), defaultdict(list)
    for node in root.iter("object"):
        names = [int(name.text) for name in node.findall("name")]
        if node.find("bndbox") is None:
            assert (node.findtext("nobndbox"), node.findtext("scene")) == ("1", "1")
            without_box |= set(names)
        else:
            box = [int(node.find("bndbox").findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")]
            assert 1 <= box[0] < box[2] <= 160 and 1 <= box[1] < box[3] <= 128
            for name in names:
                boxed[name].append(box)
    meant, kinds = {}, Counter()
    for sentence in sentences:
        for number, kind, words in MARKED.findall(sentence):
            kinds[kind] += 1
            number = int(number)
            if kind == "notvisual":
                assert number == 0 and 0 not in without_box and 0 not in boxed
            elif kind == "scene":
                assert number in without_box and number not in boxed
                meant[number] = ()
            else:
                assert kind == "other"
                objects = described(scene, words)
                assert meant.setdefault(number, tuple(objects)) == tuple(objects)
                assert sorted(boxed[number]) == sorted(corners(boxes[i]) for i in objects)
                kinds["plural"] += len(objects) > 1
    assert set(meant) == without_box | set(boxed), "an entity of one file is not in the other"
    assert len(set(meant.values())) == len(meant), "the same objects have two numbers"
    return meant, kinds


def check_sentence(scene, sentence):
    """What is said about the phrases is true; returns the template."""
    phrases = [words for _, _, words in MARKED.findall(sentence)]
    said = MARKED.sub("X", sentence)
    if relation := re.fullmatch(rf"X is {RELATION} X \.", said):
        first, second = (scene["objects"][described(scene, words)[0]] for words in phrases)
        assert is_related(first, relation[1], second), sentence
    else:
        listed = r"You can see X(?:(?: , X)? and X)? in X \."
        plural = r"X are in X \.|X are in one picture with X \."
        assert re.fullmatch(f"{listed}|{plural}|X have X to do \\.", said), sentence
        if said.startswith("X are in one picture"):
            group, other = (described(scene, words) for words in phrases)
            assert not set(group) & set(other)
    return said


def test_flickr30k_phrases_fit_their_boxes_and_sentences_are_true():
    scenes, kinds, templates, numbers = sampled()[0][:1500], Counter(), Counter(), Counter()
    for scene, (image_id, sentences, annotation, _) in zip(scenes, flickr30k_files(scenes, seed=0), strict=True):
        graph, lines = scene.to_dict(), sentences.splitlines()
        assert image_id == scene.image_id
        assert len(lines) == 5
        boxes = [item.box() for item in scene.objects]
        meant, found = check_entities(graph, boxes, lines, annotation)
        templates.update(check_sentence(graph, line) for line in lines)
        kinds += found
        numbers.update(meant.keys())
    assert max(numbers.values()) == 1, "an entity number is used in two images"
    assert kinds["other"] > kinds["plural"] > 500
    assert kinds["scene"] > 500
    assert kinds["notvisual"] > 100
    assert len(templates) >= 9, templates


@pytest.mark.parametrize("split", SPLITS)
def test_flickr30k_loads(corpus, split):
    folder, scenes = corpus / "flickr30k", scenes_of(corpus, split)
    boxes = {image_id: [item.box() for item in Scene.from_dict(graph).objects] for image_id, graph in scenes.items()}
    ids = read_split(folder / f"shapes_{split}.txt")
    assert ids == list(scenes)
    assert set(ids) <= set(index_images(corpus / "images"))
    for image_id in ids:
        lines = (folder / "Sentences" / f"{image_id}.txt").read_text().splitlines()
        annotation = (folder / "Annotations" / f"{image_id}.xml").read_text()
        check_entities(scenes[image_id], boxes[image_id], lines, annotation)
        assert set(read_boxes(folder / "Annotations" / f"{image_id}.xml")) >= {
            int(number) for line in lines for number, kind, _ in MARKED.findall(line) if kind == "other"
        }
    rows = load_flickr30k(folder, ids)
    assert len(rows) == 5 * len(ids)  # every sentence has a phrase with a box
    for row in rows:
        marked = (folder / "Sentences" / f"{row['image_id']}.txt").read_text().splitlines()[row["sentence_number"]]
        words, phrases = parse_sentence(marked)
        assert row["sentence"] == " ".join(words) == MARKED.sub(r"\3", marked)
        boxed = [phrase for phrase in phrases if phrase.types == ("other",)]
        assert row["phrases"] == [" ".join(phrase.words) for phrase in boxed]
        for phrase, last, found in zip(row["phrases"], row["last_words"], row["boxes"], strict=True):
            assert words[last - phrase.count(" ") : last + 1] == phrase.split(" ")
            objects = described(scenes[row["image_id"]], phrase)
            assert sorted(found) == sorted(corners(boxes[row["image_id"]][i]) for i in objects)


# --------------------------------------------------------------------------------------------------------- captions

NAME = rf"\ban? ((?:(?:small|big) )?{COLOR} ({'|'.join(SHAPES)}))(?: {HALF})?\b"
CAPTION_FORMS = (
    r"A picture of X and X\.",
    r"There is X and X\.",
    r"You can see X with X\.",
    rf"X is {RELATION} X\.",
    r"(?P<all>\w+) things, X and X among them\.",
)


def is_clear(scene, item, sizes=("", "small", "big"), halves=(None, "left", "right", "top", "bottom")):
    """Whether a name says which object is meant and its colour and shape tell each other, among all objects or those of
    its size and half; what lies near the middle is in no half for sure, and may be in any."""
    others = [o for o in scene["objects"] if o is not item]
    return any(
        size in ("", item["size"])
        and (half is None or is_surely_in_half(scene, item, half))
        and not any(
            {o["color"], o["shape"]} & {item["color"], item["shape"]}
            for o in others
            if size in ("", o["size"]) and (half is None or not is_surely_in_half(scene, o, OPPOSITE[half]))
        )
        for size in sizes
        for half in halves
    )


def is_surely_in_half(scene, item, half):
    axis = AXES[half]
    offset = item["center"][axis] - (scene["width"], scene["height"])[axis] / 2
    return abs(offset) >= OFFSET and (offset < 0) == (half in LOW)


def meant_by(scene, name, half):
    """Objects that "red star", "big red star" in the left half or "small thing" may mean in a caption."""
    if name.endswith("thing"):  # said only of what has no clear name
        return [item for item in matching(scene, name) if not is_clear(scene, item)]
    (item,) = [o for o in matching(scene, name) if half is None or not is_surely_in_half(scene, o, OPPOSITE[half])]
    assert is_clear(scene, item, sizes=(name.split()[0] if name.count(" ") == 2 else "",), halves=(half,)), name
    return [item]


def check_caption(scene, caption):
    """What a caption says is true of two different objects; returns its form."""
    phrase = rf"{NAME}|\ba ((?:small|big) thing)\b"
    names = [(match[1] or match[5], match[4]) for match in re.finditer(phrase, caption, re.IGNORECASE)]
    said = re.sub(phrase, "X", caption, flags=re.IGNORECASE)
    found = [(form, match) for form in CAPTION_FORMS if (match := re.fullmatch(form, said))]
    assert len(found) == 1, caption
    form, match = found[0]
    assert not names[0][0].endswith("thing") or not any(is_clear(scene, item) for item in scene["objects"]), caption
    firsts, seconds = (meant_by(scene, *name) for name in names)
    both = [(first, second) for first in firsts for second in seconds if first is not second]
    assert any(not form.startswith("X is") or is_related(first, match[1], second) for first, second in both), caption
    if form.startswith("(?P<all>"):
        assert NUMBERS[match["all"].lower()] == len(scene["objects"])
    return form


def captions_of(scenes):
    """(scene graph, caption) of scenes that are in no file."""
    record = captions_record(scenes, lambda scene: image_file_name("train", scene.image_id), seed=0)
    graphs = {scene.image_id: scene.to_dict() for scene in scenes}
    return [(graphs[item["image_id"]], item["caption"]) for item in record["annotations"]]


def test_captions_are_true():
    captions = captions_of(sampled()[0][:1500])
    forms = Counter(check_caption(scene, caption) for scene, caption in captions)
    assert set(forms) == set(CAPTION_FORMS)
    assert min(forms.values()) > 0.05 * len(captions)
    vague = sum(re.search(r"\bthing\b", caption) is not None for _, caption in captions)
    assert 0.1 < vague / len(captions) < 0.4


def test_an_image_has_five_different_captions():
    by_image = defaultdict(list)
    for scene, caption in captions_of(sampled()[0]):
        by_image[scene["image_id"]].append(caption)
    assert {len(captions) for captions in by_image.values()} == {5}
    repeated = [captions for captions in by_image.values() if len(set(captions)) < 5]
    assert len(repeated) <= 0.002 * len(by_image), repeated[0]  # few where there is hardly anything to say


def masked_words(caption):
    """(colour or shape word, "color" or "shape", its name with that word masked, its half, caption with it masked)."""
    for match in re.finditer(NAME, caption, re.IGNORECASE):
        for group, key in ((2, "color"), (3, "shape")):
            start, end = match.span(group)
            rest = re.sub(r"\b[Aa]n?\b", "a", f"{caption[:start]}[MASK]{caption[end:]}")  # "an [MASK]" would tell too
            phrase = match[1].replace(match[group], "[MASK]", 1)
            yield match[group], key, phrase, match[4], rest


def test_a_masked_word_can_be_read_off_the_image():
    for scene, caption in captions_of(sampled()[0][:1500]):
        for word, key, phrase, half, _ in masked_words(caption):
            around = [item for item in scene["objects"] if fits_around(item, phrase, key)]
            possible = [o for o in around if half is None or not is_surely_in_half(scene, o, OPPOSITE[half])]
            assert {item[key] for item in possible} == {word}, (caption, phrase)


def fits_around(item, phrase, key):
    """Whether an object fits the words of a name around the mask of one attribute."""
    said = set(phrase.split()) - {"[MASK]"}
    others = {item["size"], item["color"], item["shape"]} - {item[key]}
    return said <= others


def test_a_masked_word_cannot_be_guessed_without_the_image():
    def features(rest):
        words = re.findall(r"\w+", rest.lower())
        return {*words, *((number - words.index("mask"), word) for number, word in enumerate(words))}

    train, test = (
        [item for _, caption in captions_of(scenes) for item in masked_words(caption)] for scenes in sampled()
    )
    for key, chance in (("color", 1 / 7), ("shape", 1 / 5)):  # the other object is likely to look different
        prior, counts = Counter(), defaultdict(Counter)
        for word, kind, _, _, rest in train:
            if kind == key:
                prior[word] += 1
                for feature in features(rest):
                    counts[word][feature] += 1
        hits = []
        for word, kind, _, _, rest in test:
            if kind == key:
                scores = {
                    guess: math.log(count) + sum(math.log((counts[guess][f] + 1) / (count + 2)) for f in features(rest))
                    for guess, count in prior.items()
                }
                hits.append(max(scores, key=scores.get) == word)
        assert sum(hits) / len(hits) < chance + 0.05, (key, sum(hits) / len(hits))


@pytest.mark.parametrize("split", SPLITS)
def test_captions_load(corpus, split):
    scenes = scenes_of(corpus, split)
    rows = load_coco_captions(corpus / "coco" / f"captions_{split}.json")
    assert [row["image_id"] for row in rows] == list(scenes)
    for row in rows:
        assert len(row["captions"]) == 5
        assert (corpus / "images" / split / row["file_name"]).is_file()
        for caption in row["captions"]:
            check_caption(scenes[row["image_id"]], caption)


# ------------------------------------------------------------------------------------------------------------ SNLI-VE

THING = rf"The (?:({'|'.join(COLORS)}) )?({'|'.join(SHAPES)}|thing)"
ATTRIBUTE = re.compile(rf"{THING} is (?:a )?(\w+)\.")
PLACES = re.compile(rf"{THING} is (?:to the )?(left|right|above|below)(?: of)? {THING.lower()}\.")


def judged(scene, sentence):
    """What an image with these objects says about a sentence, judged by its words alone."""

    def named(color, shape):
        of_color = [item for item in scene["objects"] if color in (None, item["color"])]
        return [item for item in of_color if shape in ("thing", item["shape"])]

    if found := PLACES.fullmatch(sentence):
        first, second = named(found[1], found[2]), named(found[4], found[5])
        if not first or not second:
            return "neutral"
        (first,), (second,) = first, second  # never one of several
        side = side_of(first, second, AXES[found[3]], OFFSET)
        assert side, sentence  # nothing is said of things that are about level
        return "entailment" if side == (-1 if found[3] in LOW else 1) else "contradiction"
    color, shape, said = ATTRIBUTE.fullmatch(sentence).groups()
    about = named(color, shape)
    if not about:
        return "neutral"
    (item,) = about
    return "entailment" if said in (item["color"], item["shape"], item["size"]) else "contradiction"


@pytest.mark.parametrize("split", SPLITS)
def test_gold_labels_are_what_the_image_tells(corpus, split):
    scenes = {str(image_id): scene for image_id, scene in scenes_of(corpus, split).items()}
    records = lines_of(corpus / "snli_ve" / f"snli_ve_{NLVR2_SPLITS[split].removesuffix('1')}.jsonl")
    for record in records:
        assert judged(scenes[record["Flickr30K_ID"]], record["sentence2"]) == record["gold_label"], record
        assert record["pairID"].startswith(record["captionID"]) and record["sentence1"][0].isupper()
    assert len({record["pairID"] for record in records}) == len(records) > 8 * len(scenes)
    number = records[0]["Flickr30K_ID"]
    image = corpus / "snli_ve" / "images" / f"{number}.jpg"
    assert image.read_bytes() == image_of(corpus, split, int(number))


def form_of(words):
    """Which of the four forms a sentence has."""
    if "thing" in words:
        return "shape"
    return "size" if words[-1] in SIZES else "relation" if len(words) > 5 else "colour"


def test_a_sentence_alone_does_not_tell_its_label():
    """As many sentences of each label, in every form; and who knows how often each sentence had which label gains nothing."""
    records = list(snli_ve_records(sampled()[0], seed=0))
    forms = defaultdict(Counter)
    for record in records:
        forms[form_of(record["sentence2"].rstrip(".").split())][record["gold_label"]] += 1
    assert len(forms) == 4 and all(len(counts) == 3 and len(set(counts.values())) == 1 for counts in forms.values())
    half, known = len(records) // 2, defaultdict(Counter)
    for record in records[:half]:
        known[record["sentence2"]][record["gold_label"]] += 1
    guesses = [
        known[record["sentence2"]].most_common(1)[0][0] == record["gold_label"]
        for record in records[half:]
        if record["sentence2"] in known
    ]
    assert len(guesses) > 10_000 and 0.31 < np.mean(guesses) < 0.36


# ----------------------------------------------------------------------------------------------------------- words


def texts_of(scenes):
    """Every text of every format."""
    yield from (record["sentence"] for record in nlvr2_records(make_pairs(scenes, "train"), seed=0))
    for _, record in chain(*vcr_sample()):
        for tokens in (record["question"], *record["answer_choices"], *record["rationale_choices"]):
            yield " ".join(word for word in tokens if isinstance(word, str))
        yield " ".join(record["objects"])
    yield from (record["sentence2"] for record in snli_ve_records(scenes, seed=0))
    for _, sentences, *_ in flickr30k_files(scenes, seed=0):
        yield from MARKED.sub(r"\3", sentences).splitlines()
    yield from (caption for _, caption in captions_of(scenes))


def test_every_text_is_made_of_whole_words():
    tokenizer = corpus_tokenizer()
    words = Counter(chain.from_iterable(re.findall(r"\w+|[^\w\s]", text) for text in texts_of(sampled()[0][:1600])))
    assert len(words) > 80
    for word in words:
        assert tokenizer.tokenize(word) == [word.lower()], word
        assert tokenizer.convert_tokens_to_ids(word.lower()) != tokenizer.unk_token_id


def test_scenes_are_told_apart_by_their_seed_in_every_format():
    scenes = sampled()[0][:40]
    made = {
        seed: [
            [*nlvr2_records(make_pairs(scenes, "train"), seed)],
            [*vcr_records(scenes, "train", lambda scene: "x.jpg", seed)],
            [*flickr30k_files(scenes, seed)],
            [*snli_ve_records(scenes, seed)],
            captions_record(scenes, lambda scene: "x.jpg", seed)["annotations"],
        ]
        for seed in (0, 1)
    }
    assert all(one != other for one, other in zip(made[0], made[1], strict=True))


def test_images_of_two_splits_are_in_no_pair(corpus):
    names = {
        split: {path.stem.split("-")[0] for path in (corpus / "nlvr2" / "images" / folder).rglob("*.png")}
        for split, folder in NLVR2_SPLITS.items()
    }
    assert names == {split: {f"shapes_{name}"} for split, name in NLVR2_SPLITS.items()}
    ids = [set(read_split(corpus / "flickr30k" / f"shapes_{split}.txt")) for split in SPLITS]
    assert all(one.isdisjoint(other) for one, other in combinations(ids, 2))
