"""Questions about a scene, with their answers: colour, shape, size, counting, existence, relation, comparison.

Every question has exactly one correct answer, objects are described by phrases that fit no other object, and half of the yes/no
questions have the answer "yes", so that the text alone reveals little.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import permutations, product
from random import Random

from .scenes import CLEAR_OFFSET, COLORS, SHAPES, SIZES, Scene, SceneObject

PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}
KINDS = ("color", "shape", "size", "count", "exist", "relation", "compare")
OPPOSITES = {"left": "right", "top": "bottom", "above": "below", "small": "big", "yes": "no"}
OPPOSITES |= {opposite: word for word, opposite in OPPOSITES.items()}
_RELATIONS: dict[str, Callable[[SceneObject, SceneObject], float]] = {
    "to the left of": lambda a, b: b.center[0] - a.center[0],
    "to the right of": lambda a, b: a.center[0] - b.center[0],
    "above": lambda a, b: b.center[1] - a.center[1],
    "below": lambda a, b: a.center[1] - b.center[1],
}


@dataclass(frozen=True)
class Question:
    """A question, its correct answer and its kind (one of `KINDS`)."""

    text: str
    answer: str
    kind: str

    @property
    def answer_type(self) -> str:
        """As in VQA v2: "yes/no", "number" or "other"."""
        if self.answer in ("yes", "no"):
            return "yes/no"
        return "number" if self.answer.isdigit() else "other"


def sample_questions(scene: Scene, count: int, seed: str) -> list[Question]:
    """Up to `count` different questions about the scene, of random kinds."""
    rng = Random(seed)
    weights = _ONE_OBJECT_WEIGHTS if len(scene.objects) == 1 else _WEIGHTS
    found: dict[str, Question] = {}
    for _ in range(20 * count):  # some kinds do not fit some scenes
        if len(found) == count:
            break
        kind = rng.choices(tuple(_MAKERS), weights=tuple(weights.values()))[0]
        made = _MAKERS[kind](scene, rng)
        if made is not None:
            text, answer = made
            found.setdefault(text, Question(text, answer, kind))
    return list(found.values())


def describe(scene: Scene, target: SceneObject, rng: Random, avoid: str = "") -> str | None:
    """A phrase such as "small red circle" or "red thing" that fits only `target` and does not mention its attribute `avoid`."""
    phrases = []
    for use_size, use_color, use_shape in product((False, True), repeat=3):
        used = {"size": use_size, "color": use_color, "shape": use_shape}
        if used.get(avoid) or not any(used.values()):
            continue
        fits = [
            o for o in scene.objects if all(getattr(o, key) == getattr(target, key) for key, use in used.items() if use)
        ]
        if len(fits) == 1:
            words = [target.size] * use_size + [target.color] * use_color
            phrases.append(" ".join([*words, target.shape if use_shape else rng.choice(("thing", "object"))]))
    return rng.choice(phrases) if phrases else None


_ATTRIBUTE_TEMPLATES = {
    "color": ("What color is the {}?", "What is the color of the {}?", "The {} is what color?"),
    "shape": ("What shape is the {}?", "What is the shape of the {}?", "The {} is what shape?"),
    "size": ("What size is the {}?", "Is the {} small or big?", "Is the {} big or small?"),
}


def _ask_attribute(attribute: str, scene: Scene, rng: Random) -> tuple[str, str] | None:
    target = rng.choice(scene.objects)
    phrase = describe(scene, target, rng, avoid=attribute)
    if phrase is None:
        return None
    return rng.choice(_ATTRIBUTE_TEMPLATES[attribute]).format(phrase), getattr(target, attribute)


def _ask_count(scene: Scene, rng: Random) -> tuple[str, str]:
    things = rng.choice(("things", "objects"))
    phrases: dict[int, list[str]] = defaultdict(list)
    for size, color, shape in product((None, *SIZES), (None, *COLORS), (None, *SHAPES)):
        asked = {"size": size, "color": color, "shape": shape}
        matching = sum(all(v in (None, getattr(o, k)) for k, v in asked.items()) for o in scene.objects)
        words = [word for word in (size, color) if word]
        phrases[matching].append(" ".join([*words, PLURALS[shape] if shape else things]))
    # Choose the answer before the phrase: otherwise nearly every answer would be 0 or 1.
    answer = rng.choice(tuple(phrases))
    # Short phrases are rare among all combinations, but people prefer them.
    phrase = min(rng.sample(phrases[answer], k=min(3, len(phrases[answer]))), key=lambda p: p.count(" "))
    template = rng.choice(("How many {} are there?", "How many {} are in the picture?", "What number of {} are there?"))
    return template.format(phrase), str(answer)


def _ask_exist(scene: Scene, rng: Random) -> tuple[str, str] | None:
    present = {(o.color, o.shape) for o in scene.objects}
    # Both attributes occur in the scene, but not on the same object.
    absent = {(a.color, b.shape) for a in scene.objects for b in scene.objects} - present
    if not absent:
        return None
    wanted = rng.random() < 0.5
    color, shape = rng.choice(sorted(present if wanted else absent))
    singular = f"{'an' if color[0] in 'aeiou' else 'a'} {color} {shape}"
    template = rng.choice(("Is there {}?", "Is {} in the picture?", "Can you see {}?"))
    return template.format(singular), "yes" if wanted else "no"


def _ask_relation(scene: Scene, rng: Random) -> tuple[str, str] | None:
    # From easy to hard: which half is an object in, in which direction is it from another, is this relation true? Without the
    # first two, the third is not learned from scratch in the available time.
    ask = rng.choices((_ask_half, _ask_direction, _ask_whether), weights=(0.25, 0.4, 0.35))[0]
    return ask(scene, rng)


def _ask_half(scene: Scene, rng: Random) -> tuple[str, str] | None:
    target = rng.choice(scene.objects)
    name = _name(scene, target)
    axis = rng.choice((0, 1))
    offset = target.center[axis] - (scene.width, scene.height)[axis] / 2
    if name is None or abs(offset) < CLEAR_OFFSET:
        return None
    low, high = (("left", "right"), ("top", "bottom"))[axis]
    return f"Is the {name} in the {low} or {high} half?", low if offset < 0 else high


def _ask_direction(scene: Scene, rng: Random) -> tuple[str, str] | None:
    if len(scene.objects) < 2:
        return None
    first, second = rng.sample(scene.objects, k=2)
    names = _name(scene, first), _name(scene, second)
    axis = rng.choice((0, 1))
    offset = first.center[axis] - second.center[axis]
    if None in names or abs(offset) < CLEAR_OFFSET:
        return None
    low, high = (("left", "right"), ("above", "below"))[axis]
    relation = ("to the left or right of", "above or below")[axis]
    return f"Is the {names[0]} {relation} the {names[1]}?", low if offset < 0 else high


def _ask_whether(scene: Scene, rng: Random) -> tuple[str, str] | None:
    if len(scene.objects) < 2:
        return None
    first, second = rng.sample(scene.objects, k=2)
    names = _name(scene, first), _name(scene, second)
    relation = rng.choice(tuple(_RELATIONS))
    offset = _RELATIONS[relation](first, second)
    if None in names or abs(offset) < CLEAR_OFFSET:
        return None
    return f"Is the {names[0]} {relation} the {names[1]}?", "yes" if offset > 0 else "no"


def _name(scene: Scene, target: SceneObject) -> str | None:
    """Colour and shape, such as "red circle", if only one object has both."""
    same = [o for o in scene.objects if o.class_name == target.class_name]
    return target.class_name if len(same) == 1 else None


def _ask_compare(scene: Scene, rng: Random) -> tuple[str, str] | None:
    return rng.choice((_compare_sizes, _compare_numbers))(scene, rng)


def _compare_sizes(scene: Scene, rng: Random) -> tuple[str, str] | None:
    pairs = [(a, b) for a, b in permutations(scene.objects, 2) if a.size == "big" and b.size == "small"]
    if not pairs:
        return None
    phrases = [describe(scene, item, rng, avoid="size") for item in rng.choice(pairs)]
    if None in phrases:
        return None
    wanted, word = rng.random() < 0.5, rng.choice(("bigger", "larger", "smaller"))
    first, second = phrases if (word != "smaller") == wanted else reversed(phrases)
    return f"Is the {first} {word} than the {second}?", "yes" if wanted else "no"


def _compare_numbers(scene: Scene, rng: Random) -> tuple[str, str] | None:
    counts = Counter(item.color for item in scene.objects)
    wanted, word = rng.random() < 0.5, rng.choice(("more", "fewer"))
    pairs = [(a, b) for a, b in permutations(counts, 2) if counts[a] > counts[b]]
    if not pairs:  # all counts are equal, so the answer would always be "no"
        return None
    many, few = rng.choice(pairs)
    first, second = (many, few) if (word == "more") == wanted else (few, many)
    return f"Are there {word} {first} things than {second} things?", "yes" if wanted else "no"


# Relations are the hardest to learn and get the most examples.
_WEIGHTS = {"color": 2.0, "shape": 2.0, "size": 1.0, "count": 2.2, "exist": 1.5, "relation": 5.0, "compare": 2.0}
# Shape is the last thing that a backbone learns from scratch, so it is asked more often, lest colour dominate the training.
_ONE_OBJECT_WEIGHTS = {**_WEIGHTS, "shape": 6.0}
_MAKERS: dict[str, Callable[[Scene, Random], tuple[str, str] | None]] = {
    "color": partial(_ask_attribute, "color"),
    "shape": partial(_ask_attribute, "shape"),
    "size": partial(_ask_attribute, "size"),
    "count": _ask_count,
    "exist": _ask_exist,
    "relation": _ask_relation,
    "compare": _ask_compare,
}
