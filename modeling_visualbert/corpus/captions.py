"""The embedded corpus as a COCO captions file: five captions for each image.

Captions name objects whose colour determines their shape and vice versa, so that a masked colour or shape can be predicted from
the image and the rest of its phrase, but not from the other words of the caption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from .grammar import Node, conjunction, conllu, full_stop, noun_phrase, stands, with_case, you_can_see
from .scenes import HALVES, Scene, SceneObject, half_of

CAPTIONS_PER_SCENE = 5
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_RELATIONS = (("to the left of", "to the right of"), ("above", "below"))


def captions_record(scenes: list[Scene], file_name: Callable[[Scene], str], seed: int) -> dict:
    """The contents of a captions file."""
    images: list[dict] = []
    annotations: list[dict] = []
    for scene in scenes:
        images.append(
            {"id": scene.image_id, "file_name": file_name(scene), "width": scene.width, "height": scene.height}
        )
        for caption in sample_captions(scene, seed):
            annotations.append({"image_id": scene.image_id, "id": len(annotations) + 1, "caption": caption.text()})
    info = {"description": "Embedded corpus of modeling_visualbert: rendered scenes", "version": "1.0"}
    return {"info": info, "images": images, "annotations": annotations}


def caption_trees(scenes: list[Scene], seed: int) -> Iterator[str]:
    """The captions' dependency trees in CoNLL-U; `sent_id` is the caption's id in the captions file."""
    number = 0
    for scene in scenes:
        for caption in sample_captions(scene, seed):
            number += 1
            yield conllu(caption, str(number))


def sample_captions(scene: Scene, seed: int) -> list[Node]:
    """Five captions of the scene, all different if the scene allows it."""
    rng = Random(f"{seed}/captions/{scene.image_id}")
    captions: list[Node] = []
    said: set[str] = set()
    for attempt in range(10 * CAPTIONS_PER_SCENE):
        if len(captions) == CAPTIONS_PER_SCENE:
            break
        caption = _sample_caption(scene, rng)
        if caption.text() not in said or attempt > 9 * CAPTIONS_PER_SCENE:
            captions.append(caption)
            said.add(caption.text())
    return captions


def _sample_caption(scene: Scene, rng: Random) -> Node:
    names = {item: rng.choice(clear) for item in scene.objects if (clear := _clear_names(scene, item))}
    # Like people, captions mostly mention what is easy to name; only the second object may lack a clear name.
    easily = [item for item in names if names[item].count(" ") == 2]  # "a red circle"
    first = _prefer(easily, list(names) or scene.objects, rng)
    others = [item for item in scene.objects if item is not first]
    second = _prefer([item for item in easily if item is not first], others, rng)
    # An object without a clear name is called "a small thing", so that no masked word has to be guessed.
    one, other = (noun_phrase(names.get(item, f"a {item.size} thing")) for item in (first, second))
    make = rng.choice((_pair, _relation, _relation, _counted))
    return full_stop(make(scene, first, second, one, other, rng), glued=True).capitalised()


def _prefer(these: Sequence[SceneObject], to_those: Sequence[SceneObject], rng: Random) -> SceneObject:
    """One of `these` five times out of six, if there are any; otherwise one of `to_those`."""
    return rng.choice(these if these and rng.random() < 5 / 6 else to_those)


def _clear_names(scene: Scene, item: SceneObject) -> list[str]:
    """Names in which colour determines shape and vice versa; size, then place, are added only if that needs them."""
    halves = [half for axis in (0, 1) if (half := half_of(scene, item, axis)) is not None]
    for size, places in (("", [""]), (item.size, [""]), ("", halves), (item.size, halves)):
        names = []
        for place in places:
            rivals = [
                other
                for other in scene.objects
                if other is not item and size in ("", other.size) and _may_be_in(scene, other, place)
            ]
            if all(other.color != item.color and other.shape != item.shape for other in rivals):
                name = _article(f"{size} {item.class_name}".strip())
                names.append(f"{name} in the {place} half" if place else name)
        if names:
            return names
    return []


def _may_be_in(scene: Scene, item: SceneObject, place: str) -> bool:
    """Whether the object could be said to be in this half: it is, or it lies near the middle."""
    return not place or half_of(scene, item, HALVES.index(place) // 2) in (place, None)


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _pair(scene: Scene, first: SceneObject, second: SceneObject, one: Node, other: Node, rng: Random) -> Node:
    kind = rng.choice(("A picture of {} and {}", "There is {} and {}", "You can see {} with {}"))
    if kind.startswith("You"):
        one.after.append(("nmod", with_case("with", other)))
        return you_can_see(one)
    both = conjunction([one, other])
    if kind.startswith("There"):
        return Node("is", "VERB", before=[("expl", Node("there", "PRON"))], after=[("nsubj", both)])
    image = noun_phrase("a picture")
    image.after.append(("nmod", with_case("of", both)))
    return image


def _relation(scene: Scene, first: SceneObject, second: SceneObject, one: Node, other: Node, rng: Random) -> Node:
    axis = max((0, 1), key=lambda i: abs(first.center[i] - second.center[i]))
    return stands(one, _RELATIONS[axis][first.center[axis] > second.center[axis]], other)


def _counted(scene: Scene, first: SceneObject, second: SceneObject, one: Node, other: Node, rng: Random) -> Node:
    things = noun_phrase(f"{_NUMBERS[len(scene.objects)]} things")
    them = with_case("among", Node("them", "PRON"))  # the predicate of a clause without a verb
    them.before.insert(0, ("nsubj", conjunction([one, other])))
    things.after += [("punct", Node(",", "PUNCT", glued=True)), ("parataxis", them)]
    return things
