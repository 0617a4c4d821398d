"""The embedded corpus as a COCO captions file: five captions for each picture.

Captions name objects whose colour tells the shape and the reverse, so that a masked colour or shape can be read off the
picture, and off nothing else in the caption.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .scenes import Scene, SceneObject

CAPTIONS_PER_SCENE = 5
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_RELATIONS = (("to the left of", "to the right of"), ("above", "below"))


def captions_record(scenes: list[Scene], file_name: Callable[[Scene], str], seed: int) -> dict:
    """The contents of a captions file."""
    images: list[dict] = []
    annotations: list[dict] = []
    for scene in scenes:
        rng = Random(f"{seed}/captions/{scene.image_id}")
        images.append(
            {"id": scene.image_id, "file_name": file_name(scene), "width": scene.width, "height": scene.height}
        )
        for caption in sample_captions(scene, rng):
            annotations.append({"image_id": scene.image_id, "id": len(annotations) + 1, "caption": caption})
    info = {"description": "Embedded corpus of modeling_visualbert: rendered scenes", "version": "1.0"}
    return {"info": info, "images": images, "annotations": annotations}


def sample_captions(scene: Scene, rng: Random) -> list[str]:
    """Five captions of the scene, different ones where there is enough to say."""
    captions: list[str] = []
    for attempt in range(10 * CAPTIONS_PER_SCENE):
        if len(captions) == CAPTIONS_PER_SCENE:
            break
        caption = _sample_caption(scene, rng)
        if caption not in captions or attempt > 9 * CAPTIONS_PER_SCENE:
            captions.append(caption)
    return captions


def _sample_caption(scene: Scene, rng: Random) -> str:
    names = {item: name for item in scene.objects if (name := _clear_name(scene, item, rng)) is not None}
    if not names:
        unclear = rng.choice(scene.objects)
        names = {unclear: _article(unclear.class_name)}
    first = rng.choice(list(names))
    second = rng.choice([item for item in scene.objects if item is not first])
    # An object without a clear name is only "a small thing", so that nothing has to be guessed.
    other = names.get(second, f"a {second.size} thing")
    make = rng.choice((_pair, _relation, _relation, _counted))
    return make(scene, first, second, names[first], other, rng)


def _clear_name(scene: Scene, item: SceneObject, rng: Random) -> str | None:
    """A name whose colour tells its shape and the reverse: among all objects, or among those of its size if that is said."""
    names = []
    for size in ("", f"{item.size} "):
        rivals = [o for o in scene.objects if o is not item and (not size or o.size == item.size)]
        if all(o.color != item.color and o.shape != item.shape for o in rivals):
            names.append(_article(f"{size}{item.class_name}"))
    return rng.choice(names) if names else None


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _pair(scene: Scene, first: SceneObject, second: SceneObject, one: str, other: str, rng: Random) -> str:
    return rng.choice(("A picture of {} and {}.", "There is {} and {}.", "You can see {} with {}.")).format(one, other)


def _relation(scene: Scene, first: SceneObject, second: SceneObject, one: str, other: str, rng: Random) -> str:
    axis = max((0, 1), key=lambda i: abs(first.center[i] - second.center[i]))
    relation = _RELATIONS[axis][first.center[axis] > second.center[axis]]
    return f"{one.capitalize()} is {relation} {other}."


def _counted(scene: Scene, first: SceneObject, second: SceneObject, one: str, other: str, rng: Random) -> str:
    return f"{_NUMBERS[len(scene.objects)].capitalize()} things, {one} and {other} among them."
