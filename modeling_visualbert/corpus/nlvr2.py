"""The embedded corpus as official NLVR2 files: sentences about pairs of images, as JSON Lines.

As in NLVR2, a set of eight images makes four pairs, and every sentence is used with all four. It is true of exactly two of them,
so the sentence alone does not reveal the answer; "consistency" counts the sentences that are right for all four pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from .questions import PLURALS
from .scenes import Scene, SceneObject

SPLIT_NAMES = {"train": "train", "val": "dev", "test": "test1"}  # what NLVR2 calls them
PAIRS_PER_SET = 4
SENTENCES_PER_SET = 16
_NUMBERS = ("no", "one", "two", "three", "four")
_SETS_PER_DIRECTORY = 100  # NLVR2 spreads its training images over numbered folders


@dataclass(frozen=True)
class Pair:
    """A pair of images, and where NLVR2 would store it."""

    split: str  # NLVR2's name: "train", "dev" or "test1"
    set_number: int
    number: int
    left: Scene
    right: Scene

    @property
    def name(self) -> str:
        """Identifier without the number of the sentence."""
        return f"shapes_{self.split}-{self.set_number}-{self.number}"

    @property
    def directory(self) -> str:
        """Folder of the images below `images`."""
        return f"train/{self.set_number // _SETS_PER_DIRECTORY}" if self.split == "train" else self.split


def make_pairs(scenes: list[Scene], split: str) -> list[list[Pair]]:
    """Sets of four pairs, in the order of the scenes; an incomplete last set is left out."""
    size = 2 * PAIRS_PER_SET
    sets = [scenes[start : start + size] for start in range(0, len(scenes) - size + 1, size)]
    return [
        [Pair(SPLIT_NAMES[split], number, i, group[2 * i], group[2 * i + 1]) for i in range(PAIRS_PER_SET)]
        for number, group in enumerate(sets)
    ]


def nlvr2_records(sets: list[list[Pair]], seed: int) -> Iterator[dict]:
    """The lines of a split's file."""
    for pairs in sets:
        rng = Random(f"{seed}/nlvr2/{pairs[0].split}/{pairs[0].set_number}")
        for number, (sentence, truth) in enumerate(sample_sentences(pairs, SENTENCES_PER_SET, rng)):
            for pair, is_true in zip(pairs, truth, strict=True):
                record = {
                    "identifier": f"{pair.name}-{number}",
                    "sentence": sentence,
                    "label": str(is_true),
                    "synset": "shape",
                }
                yield {**record, "directory": int(pair.directory.split("/")[1])} if pair.split == "train" else record


def sample_sentences(pairs: list[Pair], count: int, rng: Random) -> list[tuple[str, tuple[bool, ...]]]:
    """Up to `count` different sentences, each true of half of the pairs."""
    found: dict[str, tuple[bool, ...]] = {}
    for _ in range(200 * count):
        if len(found) == count:
            break
        made = rng.choices(_MAKERS, weights=_WEIGHTS)[0](pairs, rng)
        if made is None:
            continue
        sentence, is_true = made
        truth = tuple(is_true(pair.left, pair.right) for pair in pairs)
        if sum(truth) == len(pairs) // 2:
            found.setdefault(sentence, truth)
    return list(found.items())


Truth = Callable[[Scene, Scene], bool]
_Made = tuple[str, Truth]


@dataclass(frozen=True)
class _Kind:
    """The objects that a sentence is about: those with these attributes (None: any)."""

    size: str | None
    color: str | None
    shape: str | None

    def count(self, scene: Scene) -> int:
        wanted = {"size": self.size, "color": self.color, "shape": self.shape}
        return sum(all(v in (None, getattr(o, k)) for k, v in wanted.items()) for o in scene.objects)

    def name(self, plural: bool) -> str:
        """ "small red stars" or "red thing"."""
        noun = self.shape or "thing"
        words = [word for word in (self.size, self.color) if word]
        return " ".join([*words, (PLURALS.get(noun, "things") if plural else noun)])

    def one(self) -> str:
        """ "a red star"."""
        name = self.name(plural=False)
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _sample_kind(pairs: list[Pair], rng: Random, attributes: tuple[tuple[str, ...], ...]) -> _Kind:
    """Attributes of a random object of a random image, so that the kind exists in the set."""
    pair = rng.choice(pairs)
    item: SceneObject = rng.choice(rng.choice((pair.left, pair.right)).objects)
    used = rng.choice(attributes)
    return _Kind(**{name: getattr(item, name) if name in used else None for name in ("size", "color", "shape")})


_BROAD = (("color",), ("shape",))
_NARROW = (("color", "shape"), ("color",), ("shape",), ("size", "color"), ("size", "shape"))


def _on_one_side(pairs: list[Pair], rng: Random) -> _Made:
    kind, side = _sample_kind(pairs, rng, _NARROW), rng.choice(("left", "right"))
    template = rng.choice(
        ("The {side} image shows {one}.", "There is {one} in the {side} image.", "{One} is in the {side} image.")
    )
    sentence = template.format(side=side, one=kind.one(), One=kind.one().capitalize())
    return sentence, lambda left, right: kind.count(left if side == "left" else right) > 0


def _in_how_many(pairs: list[Pair], rng: Random) -> _Made:
    kind = _sample_kind(pairs, rng, _NARROW)
    wanted, template = rng.choice(
        (
            (2, "Both images show {}."),
            (2, "There is {} in each image."),
            (1, "Only one of the images shows {}."),
            (0, "Neither image shows {}."),
        )
    )
    return template.format(kind.one()), lambda left, right: (kind.count(left) > 0) + (kind.count(right) > 0) == wanted


def _number_on_one_side(pairs: list[Pair], rng: Random) -> _Made:
    kind, side, number = _sample_kind(pairs, rng, _BROAD), rng.choice(("left", "right")), rng.randint(1, 3)
    at_least = rng.random() < 0.3
    how_many = f"{'at least' if at_least else 'exactly'} {_NUMBERS[number]} {kind.name(plural=number > 1)}"
    template = rng.choice(("The {} image contains {}.", "In the {} image there are {}."))
    if number == 1:
        template = template.replace("there are", "there is")

    def is_true(left: Scene, right: Scene) -> bool:
        count = kind.count(left if side == "left" else right)
        return count >= number if at_least else count == number

    return template.format(side, how_many), is_true


def _number_in_all(pairs: list[Pair], rng: Random) -> _Made:
    kind, number = _sample_kind(pairs, rng, _BROAD), rng.randint(1, 3)
    verb = "is" if number == 1 else "are"
    sentence = f"There {verb} exactly {_NUMBERS[number]} {kind.name(plural=number > 1)} in the two images together."
    return sentence, lambda left, right: kind.count(left) + kind.count(right) == number


def _more_on_one_side(pairs: list[Pair], rng: Random) -> _Made | None:
    everything = rng.random() < 0.3
    kind = _Kind(None, None, None) if everything else _sample_kind(pairs, rng, _BROAD)
    if sum(kind.count(pair.left) == kind.count(pair.right) for pair in pairs) > 1:
        return None  # mostly equal numbers, so there is little to compare
    side, word = rng.choice(("left", "right")), rng.choice(("more", "fewer"))
    other = {"left": "right", "right": "left"}[side]
    sentence = f"The {side} image contains {word} {kind.name(plural=True)} than the {other} image."

    def is_true(left: Scene, right: Scene) -> bool:
        difference = kind.count(left) - kind.count(right)
        return difference != 0 and (difference > 0) == ((side == "left") == (word == "more"))

    return sentence, is_true


_MAKERS: tuple[Callable[[list[Pair], Random], _Made | None], ...] = (
    _on_one_side,
    _in_how_many,
    _number_on_one_side,
    _number_in_all,
    _more_on_one_side,
)
_WEIGHTS = (
    2.0,
    2.0,
    1.0,
    1.0,
    1.5,
)  # the first two are about existence, like most sentences; the others are about numbers
