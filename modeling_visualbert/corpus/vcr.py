"""The embedded corpus as official VCR files: JSON Lines with object tags in the text, metadata with boxes and polygons.

Objects are named by their shapes, so the image is needed for everything else. The four answers make similar statements about the
same or other objects of the image; the four rationales all fit the question and the answer and differ in attributes that neither
of them mentions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from .scenes import CLEAR_OFFSET, COLORS, SIZES, Scene, SceneObject, half_of

Tokens = list[str | list[int]]
QUESTIONS_PER_SCENE = 3
NUM_CHOICES = 4


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with its answers and rationales; the correct ones come first. `kind` is for tests and statistics."""

    kind: str
    question: Tokens
    answers: list[Tokens]
    rationales: list[Tokens]


def vcr_records(scenes: list[Scene], split: str, image_path: Callable[[Scene], str], seed: int) -> Iterator[dict]:
    """The lines of a split's file; `image_path` gives the path of an image below `vcr1images`."""
    total = 0
    for scene in scenes:
        rng = Random(f"{seed}/vcr/{scene.image_id}")
        image = image_path(scene)
        for number, made in enumerate(sample_choice_questions(scene, QUESTIONS_PER_SCENE, rng)):
            answer_order = rng.sample(range(NUM_CHOICES), k=NUM_CHOICES)
            rationale_order = rng.sample(range(NUM_CHOICES), k=NUM_CHOICES)
            yield {
                "movie": "shapes",
                "objects": [item.shape for item in scene.objects],
                "img_fn": image,
                "metadata_fn": image.rsplit(".", 1)[0] + ".json",
                "question": made.question,
                "answer_choices": [made.answers[i] for i in answer_order],
                "answer_label": answer_order.index(0),
                "rationale_choices": [made.rationales[i] for i in rationale_order],
                "rationale_label": rationale_order.index(0),
                "img_id": f"shapes_{split}-{scene.image_id}",
                "question_number": number,
                "annot_id": f"shapes_{split}-{total}",
                "match_fold": f"shapes_{split}-0",
                "match_index": total,
            }
            total += 1


def metadata_record(scene: Scene) -> dict:
    """Metadata of an image: boxes x1, y1, x2, y2, score; one polygon for each object; names; size."""
    return {
        "boxes": [[*(round(side, 2) for side in item.box()), 1.0] for item in scene.objects],
        "segms": [[[[round(x, 1), round(y, 1)] for x, y in item.outline()]] for item in scene.objects],
        "names": [item.shape for item in scene.objects],
        "width": scene.width,
        "height": scene.height,
    }


def sample_choice_questions(scene: Scene, count: int, rng: Random) -> list[ChoiceQuestion]:
    """Up to `count` different questions about the scene."""
    found: dict[str, ChoiceQuestion] = {}
    makers = dict(_MAKERS)
    for _ in range(40):
        if len(found) == count:
            break
        # Choose the kind first and try it many times: some kinds fit few objects and would otherwise be rare.
        make = rng.choices(tuple(makers), weights=tuple(makers.values()))[0]
        made = next((made for _ in range(100) if (made := make(scene, rng)) is not None), None)
        if made is None:
            del makers[make]  # this kind does not fit the image
        else:
            found.setdefault(repr((made.question, made.answers[0])), made)
    return list(found.values())


def _ask_color(scene: Scene, rng: Random) -> ChoiceQuestion | None:
    target = rng.randrange(len(scene.objects))
    right = scene.objects[target].color
    # Prefer colours that occur in the image, so that looking at the whole image is not enough.
    present = sorted({item.color for item in scene.objects} - {right})
    absent = sorted(set(COLORS) - {right, *present})
    wrong = (rng.sample(present, k=len(present)) + rng.sample(absent, k=len(absent)))[: NUM_CHOICES - 1]
    question = _tokens(rng.choice((f"What color is [{target}]", f"What color does [{target}] have")), end="?")
    template = rng.choice(("[{}] is {}", "The color of [{}] is {}"))
    answers = [_statement(template, target, color) for color in (right, *wrong)]
    return _with_rationales("color", scene, question, answers, target, rng, told=("color",))


def _ask_which_color(scene: Scene, rng: Random) -> ChoiceQuestion | None:
    chosen = _differently_named(scene, NUM_CHOICES, rng)
    if chosen is None:
        return None
    color = scene.objects[chosen[0]].color
    if sum(scene.objects[i].color == color for i in chosen) > 1:
        return None
    question = _tokens(f"Which one is {color}", end="?")
    answers = [_statement("[{}] is {}", i, color) for i in chosen]
    return _with_rationales("which color", scene, question, answers, chosen[0], rng, told=("color",))


def _ask_which_place(scene: Scene, rng: Random) -> ChoiceQuestion | None:
    """Which of four objects is in this half? The other three are clearly in the other half."""
    chosen = _differently_named(scene, NUM_CHOICES, rng)
    axis = rng.choice((0, 1))
    if chosen is None or any(half_of(scene, scene.objects[i], axis) is None for i in chosen):
        return None
    halves = [half_of(scene, scene.objects[i], axis) for i in chosen]
    if halves.count(halves[0]) > 1:
        return None
    question = _tokens(f"Which one is in the {halves[0]} half", end="?")
    answers = [_statement("[{}] is in the {} half", i, str(halves[0])) for i in chosen]
    return _with_rationales("which place", scene, question, answers, chosen[0], rng, told=(("left", "top")[axis],))


def _ask_direction(scene: Scene, rng: Random) -> ChoiceQuestion | None:
    """Where is it? One statement is true. No two of them contradict each other, which would reveal the answer."""
    chosen = _differently_named(scene, 3, rng)
    if chosen is None:
        return None
    target, others = chosen[0], chosen[1:]
    here = scene.objects[target].center
    statements: list[tuple[bool, Tokens]] = []
    # Opposite words on only one axis would reveal that the true statement is on that axis.
    opposite = rng.random() < 0.5
    says_low_of_first = rng.random() < 0.5, rng.random() < 0.5
    for number, other in enumerate(others):
        there = scene.objects[other].center
        for axis, (low, high) in enumerate((("to the left of", "to the right of"), ("above", "below"))):
            offset = here[axis] - there[axis]
            if abs(offset) < CLEAR_OFFSET:
                return None
            says_low = says_low_of_first[axis] != (opposite and number == 1)
            text = f"[{target}] is {low if says_low else high} [{other}]"
            statements.append(((offset < 0) == says_low, _tokens(text)))
    if sum(is_true for is_true, _ in statements) != 1:
        return None
    answers = [tokens for _, tokens in sorted(statements, key=lambda item: not item[0])]
    question = _tokens(f"Where is [{target}]", end="?")
    return _with_rationales("direction", scene, question, answers, target, rng, told=())


def _ask_size_and_color(scene: Scene, rng: Random) -> ChoiceQuestion | None:
    """Two sizes times two colours; one of the four combinations is correct."""
    target = rng.randrange(len(scene.objects))
    item = scene.objects[target]
    others = sorted({o.color for o in scene.objects} - {item.color})
    if not others:
        return None
    color = rng.choice(others)
    small_or_big = _other_size(item)
    looks = [(item.size, item.color), (small_or_big, item.color), (item.size, color), (small_or_big, color)]
    question = _tokens(rng.choice((f"How does [{target}] look", f"What is [{target}] like")), end="?")
    answers = [_tokens(f"[{target}] is {size} and {name}") for size, name in looks]
    return _with_rationales("look", scene, question, answers, target, rng, told=("size", "color"))


def _with_rationales(
    kind: str,
    scene: Scene,
    question: Tokens,
    answers: list[Tokens],
    target: int,
    rng: Random,
    told: tuple[str, ...],
) -> ChoiceQuestion | None:
    """Four rationales about the object of the answer: two attributes that were not mentioned, each correct or wrong."""
    item = scene.objects[target]
    attributes: dict[str, tuple[str, str]] = {}
    if "size" not in told:
        attributes["size"] = (f"[{target}] is {item.size}", f"[{target}] is {_other_size(item)}")
    if "color" not in told:
        other = rng.choice(
            sorted({o.color for o in scene.objects} - {item.color}) or sorted(set(COLORS) - {item.color})
        )
        attributes["color"] = (f"[{target}] is {item.color}", f"[{target}] is {other}")
    for axis, (low, high) in enumerate((("left", "right"), ("top", "bottom"))):
        half = half_of(scene, item, axis)
        if half is not None and low not in told:
            wrong = high if half == low else low
            attributes[low] = (f"[{target}] is in the {half} half", f"[{target}] is in the {wrong} half")
    if len(attributes) < 2:
        return None
    first, second = rng.sample(sorted(attributes), k=2)
    rationales = [
        _tokens(f"{attributes[first][i]} and {attributes[second][j].replace(f'[{target}]', 'it')}")
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    return ChoiceQuestion(kind, question, answers, rationales)


def _differently_named(scene: Scene, count: int, rng: Random) -> list[int] | None:
    """Objects whose shapes all differ, so that their names distinguish them in the text too."""
    order = rng.sample(range(len(scene.objects)), k=len(scene.objects))
    by_shape = {scene.objects[i].shape: i for i in order}
    chosen = rng.sample(sorted(by_shape.values()), k=len(by_shape))[:count]
    return chosen if len(chosen) == count else None


def _other_size(item: SceneObject) -> str:
    return next(size for size in SIZES if size != item.size)


def _statement(template: str, target: int, value: str) -> Tokens:
    return _tokens(template.format(target, value))


def _tokens(text: str, end: str = ".") -> Tokens:
    """ "[0] is red" -> `[[0], "is", "red", "."]`."""
    return [*([int(word[1:-1])] if word.startswith("[") else word for word in text.split()), end]


_MAKERS: dict[Callable[[Scene, Random], ChoiceQuestion | None], float] = {
    _ask_color: 1.0,
    _ask_which_color: 4.0,  # needs four different shapes
    _ask_which_place: 12.0,  # and they have to be in the right places
    _ask_direction: 1.5,
    _ask_size_and_color: 1.0,
}
