"""The embedded corpus as official Flickr30k Entities files: five marked sentences and the boxes of each image.

A phrase refers to exactly one object or, in the plural, to all objects of a kind (several boxes); `scene` and `notvisual` phrases
have no box. `Trees/` contains the dependency trees of the sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from .grammar import Node, conjunction, conllu, full_stop, noun_phrase, stands, with_case, with_subject, you_can_see
from .questions import PLURALS, describe
from .scenes import Scene, SceneObject

SENTENCES_PER_SCENE = 5
_ENTITIES_PER_SCENE = 20  # entity ids are unique over the corpus
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
_RELATIONS = (("to the left of", "to the right of"), ("above", "below"))


class EntityTable:
    """Numbers the entities of one scene and remembers their boxes; the same objects always get the same number."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.ids: dict[tuple[int, ...], int] = {}

    def mark(self, objects: list[SceneObject], words: str) -> Node:
        """ "[/EN#412/other the red star]"."""
        key = tuple(sorted(self.scene.objects.index(item) for item in objects))
        return _marked(f"{self._number(key)}/other", words)

    def mark_scene(self, words: str) -> Node:
        """A phrase for the whole image: an entity without boxes."""
        return _marked(f"{self._number(())}/scene", words)

    def boxes(self) -> dict[int, list[SceneObject]]:
        """Objects by entity number; the scene has none."""
        return {number: [self.scene.objects[i] for i in key] for key, number in self.ids.items()}

    def _number(self, key: tuple[int, ...]) -> int:
        return self.ids.setdefault(key, self.scene.image_id * _ENTITIES_PER_SCENE + len(self.ids) + 1)


def _marked(entity: str, words: str) -> Node:
    phrase = noun_phrase(words)
    first, *_, last = [*phrase.in_order(), phrase]
    first.opens, last.closes = f"[/EN#{entity} ", "]"
    return phrase


def flickr30k_files(scenes: list[Scene], seed: int) -> Iterator[tuple[int, str, str, str]]:
    """(image id, contents of its files of sentences, annotations and trees)."""
    for scene in scenes:
        rng = Random(f"{seed}/flickr30k/{scene.image_id}")
        entities = EntityTable(scene)
        sentences = [full_stop(rng.choice(_MAKERS)(scene, entities, rng)) for _ in range(SENTENCES_PER_SCENE)]
        lines = "".join(f"{sentence.text()}\n" for sentence in sentences)
        trees = "".join(conllu(sentence, f"{scene.image_id}-{i}") for i, sentence in enumerate(sentences))
        yield scene.image_id, lines, _annotation(scene, entities), trees


def _name(scene: Scene, item: SceneObject, rng: Random) -> str | None:
    phrase = describe(scene, item, rng)
    return None if phrase is None else f"the {phrase}"


def _relation_sentence(scene: Scene, entities: EntityTable, rng: Random) -> Node:
    first, second = rng.sample(scene.objects, k=2)
    names = _name(scene, first, rng), _name(scene, second, rng)
    if names[0] is None or names[1] is None:
        return _scene_sentence(scene, entities, rng)
    axis = max((0, 1), key=lambda i: abs(first.center[i] - second.center[i]))
    relation = _RELATIONS[axis][first.center[axis] > second.center[axis]]
    subject = names[0].replace("the", "The", 1)
    return stands(entities.mark([first], subject), relation, entities.mark([second], names[1]))


def _list_sentence(scene: Scene, entities: EntityTable, rng: Random) -> Node:
    chosen = rng.sample(scene.objects, k=rng.randint(2, 3))
    named = [(item, name) for item in chosen if (name := _name(scene, item, rng)) is not None]
    if not named:
        return _scene_sentence(scene, entities, rng)
    phrases = [entities.mark([item], name) for item, name in named]
    sentence = you_can_see(conjunction(phrases))
    sentence.after.append(("obl", with_case("in", entities.mark_scene("the picture"))))
    return sentence


def _plural_sentence(scene: Scene, entities: EntityTable, rng: Random) -> Node:
    """A sentence about several objects: "The two red things" are one entity with two boxes."""
    attribute = rng.choice(("color", "shape"))
    counts = Counter(getattr(item, attribute) for item in scene.objects)
    repeated = sorted(value for value, count in counts.items() if count > 1)
    if not repeated:
        return _list_sentence(scene, entities, rng)
    value = rng.choice(repeated)
    group = [item for item in scene.objects if getattr(item, attribute) == value]
    words = f"The {_NUMBERS[len(group)]} {PLURALS[value] if attribute == 'shape' else f'{value} things'}"
    others = [item for item in scene.objects if item not in group]
    other = rng.choice(others) if others else None
    name = None if other is None else _name(scene, other, rng)
    if other is None or name is None:
        return with_subject(entities.mark(group, words), with_case("in", entities.mark_scene("the picture")), "are")
    image = with_case("in", noun_phrase("one picture"))
    subject = entities.mark(group, words)
    image.after.append(("nmod", with_case("with", entities.mark([other], name))))
    return with_subject(subject, image, "are")


def _scene_sentence(scene: Scene, entities: EntityTable, rng: Random) -> Node:
    """A sentence with a `notvisual` phrase, whose entity number is 0, as in the release."""
    things = entities.mark(list(scene.objects), f"The {_NUMBERS[len(scene.objects)]} things")
    nothing = Node("nothing", "PRON", opens="[/EN#0/notvisual ", closes="]")
    nothing.after.append(("acl", Node("do", "VERB", before=[("mark", Node("to", "PART"))])))
    return Node("have", "VERB", before=[("nsubj", things)], after=[("obj", nothing)])


def _annotation(scene: Scene, entities: EntityTable) -> str:
    """The XML file: coordinates are whole pixels from 1, as in the release; entities that share a box share an `object`."""
    root = Element("annotation")
    SubElement(root, "filename").text = f"{scene.image_id}.jpg"
    size = SubElement(root, "size")
    for name, value in (("width", scene.width), ("height", scene.height), ("depth", 3)):
        SubElement(size, name).text = str(value)
    names_of: dict[int, list[int]] = {i: [] for i in range(len(scene.objects))}
    for number, objects in entities.boxes().items():
        for item in objects:
            names_of[scene.objects.index(item)].append(number)
        if not objects:
            node = SubElement(root, "object")
            SubElement(node, "name").text = str(number)
            SubElement(node, "scene").text = "1"
            SubElement(node, "nobndbox").text = "1"
    for index, numbers in names_of.items():
        if not numbers:
            continue
        node = SubElement(root, "object")
        for number in numbers:
            SubElement(node, "name").text = str(number)
        box = SubElement(node, "bndbox")
        for side, place in zip(("xmin", "ymin", "xmax", "ymax"), scene.objects[index].box(), strict=True):
            SubElement(box, side).text = str(round(place) + 1)
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


_MAKERS = (_relation_sentence, _relation_sentence, _list_sentence, _list_sentence, _plural_sentence)
