"""Example images with something to ask about each: scenes of the embedded corpus, drawn when the demo starts, or your own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..corpus.scenes import render, sample_scene
from ..data.files import read_json
from .inputs import open_image

_SCENES = {"triangles": 10, "stars": 5, "diamonds": 2, "circles": 8, "suns": 1}  # number of the scene


@dataclass(frozen=True)
class Example:
    """What a visitor can start from: one image, or two for visual reasoning, and a text; choices where there are some."""

    name: str
    images: Sequence[str]
    text: str
    choices: Sequence[str] = ()


@dataclass(frozen=True)
class Examples:
    """Images by name, and the examples of each task."""

    images: dict[str, Image.Image]
    of_task: dict[str, list[Example]] = field(default_factory=dict)


def scene_examples() -> Examples:
    """Scenes of the embedded corpus, of no split."""
    images = {name: render(sample_scene(number, f"demo/{number}")) for name, number in _SCENES.items()}
    return Examples(images, {task: list(examples) for task, examples in _SCENE_EXAMPLES.items()})


def read_examples(path: str | Path) -> Examples:
    """
    Your own examples, a JSON file::

        [{"task": "vqa", "name": "kitchen", "pictures": ["kitchen.jpg"], "text": "Where is the cat?"},
         {"task": "vcr", "name": "party", "pictures": ["party.jpg"], "text": "...", "choices": ["...", "..."]}]

    Images are files beside it.

    Raises:
        ValueError: An entry is malformed or an image cannot be read; the entry is named.
    """
    path = Path(path)
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: {type(entries).__name__}; expected a list of examples")
    examples = Examples({})
    for number, entry in enumerate(entries):
        where = f"{path}: example {number}"
        if not isinstance(entry, dict) or not {"task", "name", "pictures", "text"} <= entry.keys():
            raise ValueError(f"{where}: expected the keys task, name, pictures and text")
        example = Example(entry["name"], entry["pictures"], entry["text"], entry.get("choices", ()))
        if entry["task"] not in _SCENE_EXAMPLES:
            raise ValueError(f"{where}: task {entry['task']!r}; expected one of {', '.join(_SCENE_EXAMPLES)}")
        if not (isinstance(example.text, str) and all(isinstance(choice, str) for choice in example.choices)):
            raise ValueError(f"{where}: text and choices have to be strings")
        if not (isinstance(example.name, str) and example.name.isidentifier()):
            raise ValueError(f"{where}: name {example.name!r}; expected letters, digits and _, as it is part of links")
        if len(example.images) not in _NUM_IMAGES.get(entry["task"], (1,)):
            raise ValueError(f"{where}: {len(example.images)} images; expected one, and two for task 'nlvr2'")
        for image in example.images:
            try:
                examples.images[image] = open_image(path.parent / image)
            except (ValueError, OSError) as error:
                raise ValueError(f"{where}: {image}: {error}") from error
        examples.of_task.setdefault(entry["task"], []).append(example)
    return examples


# Images of an example where it can have others than one.
_NUM_IMAGES = {"nlvr2": (2,), "classification": (1, 2)}

_SCENE_EXAMPLES: dict[str, Sequence[Example]] = {
    "vqa": (
        Example("triangles", ["triangles"], "How many blue triangles are there?"),
        Example("stars", ["stars"], "What color is the diamond?"),
        Example("circles", ["circles"], "Is the black cross to the right of the big circle?"),
        Example("diamonds", ["diamonds"], "What color is the triangle?"),
        Example("suns", ["suns"], "How many circles are there?"),
    ),
    "nlvr2": (
        Example(
            "triangles_stars", ["triangles", "stars"], "The left image contains more triangles than the right image."
        ),
        Example("circles_suns", ["circles", "suns"], "There are exactly three yellow circles in the right image."),
        Example("diamonds_circles", ["diamonds", "circles"], "There is a red square in the left image."),
    ),
    "classification": (
        Example("stars", ["stars"], "The purple diamond is to the left of the black triangle."),
        Example("triangles", ["triangles"], "There is a small blue triangle."),
    ),
    "vcr": (
        Example(
            "stars",
            ["stars"],
            "What color is [2] ?",
            ["[2] is red .", "[2] is purple .", "[2] is green .", "[2] is black ."],
        ),
        Example(
            "circles",
            ["circles"],
            "What is [2] like ?",
            [
                "[2] is small and blue .",
                "[2] is big and orange .",
                "[2] is small and orange .",
                "[2] is big and blue .",
            ],
        ),
        Example(
            "triangles",
            ["triangles"],
            "Which one is red ?",
            ["[0] is red .", "[2] is red .", "[3] is red .", "[5] is red ."],
        ),
    ),
    "flickr30k": (
        Example("stars", ["stars"], "[The black triangle] is to the left of [the purple diamond]."),
        Example(
            "triangles", ["triangles"], "[The red cross] is above [the small blue triangle] and [the cyan triangle]."
        ),
        Example("suns", ["suns"], "You can see [the green star], [the blue star] and [the small yellow circle]."),
    ),
    "pretraining": (
        Example("triangles", ["triangles"], "There is a [MASK] cross and a cyan [MASK]."),
        Example("stars", ["stars"], "A yellow [MASK] is above a black [MASK]."),
        Example("circles", ["circles"], "You can see a big [MASK] circle."),
    ),
}
