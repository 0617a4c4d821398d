"""The embedded corpus as SNLI-VE files: sentences that an image entails, contradicts, or says nothing about, as JSON Lines.

An image says nothing about a sentence whose subject it does not show: "The star is red." is entailed by an image with a red
star, contradicted by one with a blue star, and neutral for one without a star. Each scene gets sentences of all three labels in
the same words and forms, so that the sentence alone does not reveal the label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from .captions import sample_captions
from .questions import OPPOSITES
from .scenes import CLEAR_OFFSET, COLORS, SHAPES, SIZES, Scene, SceneObject

SPLIT_NAMES = {"train": "train", "val": "dev", "test": "test"}  # what SNLI-VE calls them
LABELS = ("entailment", "neutral", "contradiction")
ROUNDS_PER_SCENE = 3  # each with a sentence for every label
_RELATIONS = {"to the left of": 0, "to the right of": 0, "above": 1, "below": 1}  # axis
_OTHER_WAY = {"to the left of": "to the right of", "above": "below"}
_OTHER_WAY |= {other: relation for relation, other in _OTHER_WAY.items()}

Sentences = dict[str, str]  # by label


def file_name(split: str) -> str:
    """Name of the file of a split."""
    return f"snli_ve_{SPLIT_NAMES[split]}.jsonl"


def image_name(scene: Scene) -> str:
    """Images are named by a number alone, as in Flickr30k."""
    return f"{scene.image_id}.jpg"


def snli_ve_records(scenes: list[Scene], seed: int) -> Iterator[dict]:
    """The lines of a split's file."""
    for scene in scenes:
        premise = sample_captions(scene, seed)[0].text()
        for number, (label, sentence) in enumerate(sample_hypotheses(scene, seed)):
            yield {
                "Flickr30K_ID": str(scene.image_id),
                "captionID": f"{image_name(scene)}#0",
                "pairID": f"{image_name(scene)}#0r{number}{label[0]}",
                "gold_label": label,
                "annotator_labels": [label] * 5,
                "sentence1": premise,
                "sentence2": sentence,
            }


def sample_hypotheses(scene: Scene, seed: int) -> list[tuple[str, str]]:
    """Labels and different sentences about a scene: in every round a sentence of one form for each label."""
    rng = Random(f"{seed}/snli_ve/{scene.image_id}")
    found: list[tuple[str, str]] = []
    for _ in range(20 * ROUNDS_PER_SCENE):
        if len(found) == len(LABELS) * ROUNDS_PER_SCENE:
            break
        made = rng.choice(_MAKERS)(scene, rng)
        said = {sentence for _, sentence in found}
        if made is not None and not said & set(made.values()):
            found += made.items()
    rng.shuffle(found)
    return found


def _colour(scene: Scene, rng: Random) -> Sentences | None:
    """The colour of the only thing of a shape; neutral: of a shape that there is not."""
    made = _attribute(scene, rng, "shape", SHAPES, "color", tuple(COLORS))
    return None if made is None else {label: f"The {shape} is {color}." for label, (shape, color) in made.items()}


def _shape(scene: Scene, rng: Random) -> Sentences | None:
    """The shape of the only thing of a colour; neutral: of a colour that there is not."""
    made = _attribute(scene, rng, "color", tuple(COLORS), "shape", SHAPES)
    return (
        None if made is None else {label: f"The {color} thing is a {shape}." for label, (color, shape) in made.items()}
    )


def _attribute(
    scene: Scene, rng: Random, known: str, all_known: tuple[str, ...], asked: str, all_asked: tuple[str, ...]
) -> dict[str, tuple[str, str]] | None:
    """By label, what tells an object from all others of the scene, and what is said of it."""
    values = [getattr(item, known) for item in scene.objects]
    singles = [item for item in scene.objects if values.count(getattr(item, known)) == 1]
    absent = [value for value in all_known if value not in values]
    if not singles or not absent:
        return None
    shown, denied = rng.choice(singles), rng.choice(singles)
    return {
        "entailment": (getattr(shown, known), getattr(shown, asked)),
        "neutral": (rng.choice(absent), _said(scene, rng, asked, all_asked)),
        "contradiction": (getattr(denied, known), _said(scene, rng, asked, all_asked, but=getattr(denied, asked))),
    }


def _said(scene: Scene, rng: Random, asked: str, all_asked: tuple[str, ...], but: str | None = None) -> str:
    """An attribute that, half of the time, some object of the scene has, so that its being there gives nothing away."""
    there = [value for item in scene.objects if (value := getattr(item, asked)) != but]
    return rng.choice(there if there and rng.random() < 0.5 else [value for value in all_asked if value != but])


def _size(scene: Scene, rng: Random) -> Sentences | None:
    """The size of an object of its own class; neutral: of a class that there is not."""
    singles = _of_own_class(scene)
    if not singles:
        return None
    shown, denied = rng.choice(singles), rng.choice(singles)
    return {
        "entailment": f"The {shown.class_name} is {shown.size}.",
        "neutral": f"The {_absent_class(scene, rng)} is {rng.choice(tuple(SIZES))}.",
        "contradiction": f"The {denied.class_name} is {OPPOSITES[denied.size]}.",
    }


def _relation(scene: Scene, rng: Random) -> Sentences | None:
    """Where two objects are that share neither colour nor shape; neutral: one of them is not there."""
    singles = _of_own_class(scene)
    pairs = [(a, b) for a in singles for b in singles if a.color != b.color and a.shape != b.shape]
    entailed, denied = _placed(pairs, rng), _placed(pairs, rng)
    if entailed is None or denied is None:
        return None
    there = rng.choice(singles)
    names = [there.class_name, _absent_class(scene, rng, unlike=there)]
    rng.shuffle(names)
    return {
        "entailment": f"The {entailed[0].class_name} is {entailed[1]} the {entailed[2].class_name}.",
        "neutral": f"The {names[0]} is {rng.choice(tuple(_RELATIONS))} the {names[1]}.",
        "contradiction": f"The {denied[0].class_name} is {_OTHER_WAY[denied[1]]} the {denied[2].class_name}.",
    }


def _placed(pairs: list[tuple[SceneObject, SceneObject]], rng: Random) -> tuple[SceneObject, str, SceneObject] | None:
    """Two objects and a relation in which they clearly are."""
    relation = rng.choice(tuple(_RELATIONS))
    axis, is_first_less = _RELATIONS[relation], relation in ("to the left of", "above")
    clear = [
        (a, b)
        for a, b in pairs
        if (b.center[axis] - a.center[axis] if is_first_less else a.center[axis] - b.center[axis]) >= CLEAR_OFFSET
    ]
    if not clear:
        return None
    first, second = rng.choice(clear)
    return first, relation, second


def _of_own_class(scene: Scene) -> list[SceneObject]:
    names = [item.class_name for item in scene.objects]
    return [item for item in scene.objects if names.count(item.class_name) == 1]


def _absent_class(scene: Scene, rng: Random, unlike: SceneObject | None = None) -> str:
    """A class that the scene does not show; of another colour and shape than an object, if one is given."""
    there = {item.class_name for item in scene.objects}
    colors = [color for color in COLORS if unlike is None or color != unlike.color]
    shapes = [shape for shape in SHAPES if unlike is None or shape != unlike.shape]
    return rng.choice([name for color in colors for shape in shapes if (name := f"{color} {shape}") not in there])


_MAKERS: tuple[Callable[[Scene, Random], Sentences | None], ...] = (_colour, _shape, _size, _relation)

__all__ = ["LABELS", "SPLIT_NAMES", "file_name", "image_name", "sample_hypotheses", "snli_ve_records"]
