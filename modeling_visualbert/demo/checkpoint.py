"""What the demo shows of a checkpoint: the results of its pipeline as bars, images with regions, and a line about them."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from ..checkpoints import HEAD_CLASSES, read_task
from ..features.extract import region_names
from ..hub_code import pipeline_visualbert
from ..hub_code.processing_visualbert import VisualBertProcessor
from ..hub_code.regions_visualbert import find_regions
from .drawing import Bars, View

_KEPT_IMAGES = 32  # whose regions are remembered: to ask again, or with another head, finds no regions anew
_STRIP = 64  # rows of an image at once
_TOP_K = 5
# What an answer to a question can be explained with beside single layers, see `explain_answers`.
EXPLANATIONS = ("rollout", "gradient", "drop")


@dataclass(frozen=True)
class Look:
    """Whose attention to show: a layer, counted from 0, and a head of it, or the mean of its heads; or, instead, one of the
    model's `explanations`."""

    layer: int
    head: int | None = None
    explanation: str | None = None


@dataclass(frozen=True)
class Answer:
    """Scores, images with regions, and a line that says what the attention is that of."""

    bars: list[Bars]
    views: list[View]
    note: str


class Checkpoint:
    """
    A model for one task with its processor.

    Args:
        name: Folder or Hub name.

    Raises:
        ValueError: It is of an unknown kind, or finds no regions in images by itself.
    """

    def __init__(self, name: str | Path):
        task, config = read_task(name)
        if config.region_encoder_config is None:
            raise ValueError(f"{name} has no region encoder, so it cannot read images; expected one that has")
        self.name = name
        self.model: PreTrainedModel = HEAD_CLASSES[task.name].from_pretrained(name).eval()
        self.model.set_attn_implementation("eager")  # for all calls: several threads share the model
        self.processor = VisualBertProcessor.from_pretrained(name)
        pipeline_class = getattr(pipeline_visualbert, task.pipeline_class)
        self.pipeline = pipeline_class(model=self.model, processor=self.processor, device=self.model.device)
        self.task: str = self.processor.task
        self.num_images: int = self.processor.num_images
        # What the page calls it: a model with labels of its own classifies.
        self.kind: str = "classification" if self.processor.labels is not None else self.task
        self.num_layers: int = config.num_hidden_layers + int(config.bypass_transformer)
        self.num_heads: int = config.num_attention_heads
        self.explanations = EXPLANATIONS if self.task == "vqa" else ()
        self._class_names = region_names(self.model.visual_bert.region_encoder)["classes"]
        self._regions: OrderedDict[bytes, dict[str, torch.Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def answer(
        self, images: Sequence[Image.Image], text: str, choices: Sequence[str] = (), look: Look | None = None
    ) -> Answer:
        """
        Args:
            images: As many images as the checkpoint reads, see `num_images`.
            text: A question, a sentence about one or two images, a sentence with its phrases in brackets, or a text with
                `[MASK]`, as the task has it.
            choices: The choices of a `"vcr"` question.
            look: Whose attention to show; that of the last layer, averaged over heads, when not given.

        Raises:
            ValueError: The text is not what the task expects.
        """
        answer = {
            "vqa": self._answer_question,
            "nlvr2": self._judge_sentence,
            "vcr": self._choose,
            "flickr30k": self._ground_phrases,
            "pretraining": self._fill_masks,
        }[self.task]
        return answer(list(images), text, list(choices), look or Look(self.num_layers - 1))

    @torch.inference_mode()
    def regions(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """Regions of an image with boxes in pixels; those of recent images are remembered."""
        key = _digest(image)
        with self._lock:
            if key in self._regions:
                self._regions.move_to_end(key)
                return self._regions[key]
        pixels = self.processor.image_processor(images=[image], return_tensors="pt")
        (regions,) = find_regions(self.model, pixels)
        with self._lock:
            self._regions[key] = regions
            if len(self._regions) > _KEPT_IMAGES:
                self._regions.popitem(last=False)
        return regions

    def view(
        self, image: Image.Image, weights: Sequence[float] | None = None, marks: Sequence[tuple[int, str]] = ()
    ) -> View:
        """The image with all regions that were found in it."""
        regions = self.regions(image)
        return View(image, regions["boxes"].tolist(), self._names(regions), weights, marks)

    def objects(self, image: Image.Image) -> View:
        """The regions as objects that a text can mention: numbered from left to right."""
        regions = self.regions(image)
        order = regions["boxes"][:, [0, 2]].mean(dim=1).argsort().tolist()
        boxes, names = regions["boxes"][order].tolist(), self._names(regions)
        # What things are called in text is a noun: "square", not "red square".
        nouns = [(names[i].split() or ["object"])[-1] for i in order]
        return View(image, boxes, nouns, marks=[(i, f"[{i}] {noun}") for i, noun in enumerate(nouns)])

    def _names(self, regions: dict[str, torch.Tensor]) -> list[str]:
        if self._class_names is None or "class_ids" not in regions:
            return [""] * len(regions["boxes"])
        return [self._class_names[number] for number in regions["class_ids"].tolist()]

    def _ask(self, look: Look, *args: Any, **options: Any) -> tuple[Any, list[float] | None]:
        """The result of the pipeline, and the attention to each region; None if the layer sees no regions."""
        attention = look.layer if look.head is None else (look.layer, look.head)
        found = self.pipeline(*args, **options, attention=attention)
        return found["result"], found["attention"]

    def _answer_question(self, images: list, text: str, _: list, look: Look) -> Answer:
        regions = self.regions(images[0])
        if look.explanation is None:
            answers, weights = self._ask(look, regions, text, top_k=_TOP_K)
            view, note = self.view(images[0], weights), _note("the answer's [MASK]", weights, look)
        else:
            explained = self.pipeline(regions, text, top_k=_TOP_K, explain=True)
            answers = explained["answers"]
            reasons, measure, note = _explanation(answers[0], explained["regions"], look.explanation)
            view = replace(self.view(images[0], reasons), measure=measure)
        bars = Bars("", [(answer["answer"], answer["score"]) for answer in answers])
        return Answer([bars], [view], note)

    def _judge_sentence(self, images: list, text: str, _: list, look: Look) -> Answer:
        found = [self.regions(image) for image in images]
        labels, weights = self._ask(look, found if self.num_images == 2 else found[0], text, top_k=_TOP_K)
        bars = Bars("", [(label["label"], label["score"]) for label in labels])
        count = len(found[0]["boxes"])
        parts = [None] * len(found) if weights is None else [weights[:count], weights[count:]][: len(found)]
        views = [self.view(image, part) for image, part in zip(images, parts, strict=True)]
        return Answer([bars], views, _note("[CLS]", weights, look))

    def _choose(self, images: list, text: str, choices: list, look: Look) -> Answer:
        objects = self.objects(images[0])
        chosen, weights = self._ask(look, images[0], text, choices, list(objects.names), objects.boxes)
        of_objects = weights[int(self.processor.whole_image) :] if weights else None
        bars = Bars("", [(choice["text"], choice["score"]) for choice in chosen])
        note = _note("[CLS] with the best choice", weights, look)
        return Answer([bars], [replace(objects, weights=of_objects)], note)

    def _ground_phrases(self, images: list, text: str, _: list, look: Look) -> Answer:
        sentence, phrases, last_words = split_phrases(text)
        regions = self.regions(images[0])
        if not len(regions["boxes"]):
            raise ValueError("Nothing was found in this image that a phrase could mean.")
        grounded, weights = self._ask(look, regions, sentence, last_words)
        best = [found["regions"][0] for found in grounded]
        marks: dict[int, str] = {}  # several phrases may mean one thing
        for phrase, found in zip(phrases, best, strict=True):
            marks[found["region"]] = " = ".join(filter(None, (marks.get(found["region"]), phrase)))
        bars = Bars("", [(phrase, found["score"]) for phrase, found in zip(phrases, best, strict=True)], ranked=False)
        view = self.view(images[0], weights, list(marks.items()))
        return Answer([bars], [view], _note("the phrases", weights, look))

    def _fill_masks(self, images: list, text: str, _: list, look: Look) -> Answer:
        if "[MASK]" not in text:
            raise ValueError("Please write a text with at least one [MASK] to fill.")
        filled, weights = self._ask(look, self.regions(images[0]), text, top_k=_TOP_K)
        count = len(filled["words"])
        bars = [
            Bars(f"[MASK] {number}" if count > 1 else "", [(word["word"], word["score"]) for word in words])
            for number, words in enumerate(filled["words"], start=1)
        ]
        reader = "[MASK]" if count == 1 else f"all {count} [MASK]"
        return Answer(bars, [self.view(images[0], weights)], _note(reader, weights, look))


def _digest(image: Image.Image) -> bytes:
    """What identifies the pixels of an image, read in strips: they are not copied as a whole."""
    digest = hashlib.sha256(repr(image.size).encode())
    for top in range(0, image.height, _STRIP):
        digest.update(image.crop((0, top, image.width, min(top + _STRIP, image.height))).tobytes())
    return digest.digest()


def split_phrases(text: str) -> tuple[str, list[str], list[int]]:
    """
    "[The red square] is above [a cross]." -> the sentence as separate words, its phrases, the index of each one's last word.

    Raises:
        ValueError: There are no brackets, they are empty, or they do not match.
    """
    words: list[str] = []
    phrases, last_words = [], []
    for part in re.split(r"(\[[^\[\]]*\])", text):
        is_phrase = part.startswith("[") and part.endswith("]")
        new = (part[1:-1] if is_phrase else part).split()
        if not is_phrase and ("[" in part or "]" in part):
            raise ValueError("A bracket has no partner; expected phrases such as [the red square].")
        words += new
        if is_phrase:
            if not new:
                raise ValueError("There is a phrase without a word; expected phrases such as [the red square].")
            phrases.append(" ".join(new))
            last_words.append(len(words) - 1)
    if not phrases:
        raise ValueError("Please put the phrases to look for in brackets, such as [the red square].")
    return " ".join(words), phrases, last_words


def _explanation(answer: dict[str, Any], regions: list[dict[str, Any]], name: str) -> tuple[list[float], str, str]:
    """What speaks for the answer by region, in units of what, and a line that says it."""
    weights = [max(0.0, region[name]) for region in regions]
    if name == "rollout":
        note = f"Attention rollout: {sum(weights):.0%} of what reaches the answer's [MASK] comes from regions."
        return weights, "of what reaches the answer", note
    if name == "gradient":
        total = sum(weights) or 1.0
        note = (
            f"Gradient x input: what each region adds to the log-probability of “{answer['answer']}”, to first order."
        )
        return [weight / total for weight in weights], "of what regions add", note
    if not any(weights):
        note = f"Asked again without each region, the answer stays as probable as it is: {answer['score']:.0%}."
        return weights, "less probable without it", note
    strongest = regions[weights.index(max(weights))]
    fall = f"“{answer['answer']}” falls from {answer['score']:.0%} to {answer['score'] - strongest['drop']:.0%}"
    other = strongest["answer_without"]
    then = f", and the answer would be “{other}”" if other != answer["answer"] else ""
    note = f"Asked again without each region: without the one that matters most {fall}{then}."
    return weights, "less probable without it", note


def _note(reader: str, weights: list[float] | None, look: Look) -> str:
    head = "all heads" if look.head is None else f"head {look.head + 1}"
    where = f"Layer {look.layer + 1}, {head}"
    if weights is None:
        return f"{where}: this layer reads words only."
    return (
        f"{where}: {sum(weights):.0%} of the attention of {reader} goes to regions: the stronger the colour, the more."
    )
