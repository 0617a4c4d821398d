"""What the demo asks of a model: images and text -> scores, and the regions that a layer and head look at, or that an answer
rests on."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, PreTrainedModel

from ..checkpoints import HEAD_CLASSES, read_task
from ..features.extract import region_names
from ..hub_code.explain_visualbert import explain_answers
from ..hub_code.regions_visualbert import find_regions
from .drawing import Bars, View

_KEPT_IMAGES = 32  # whose regions are remembered: to ask again, or with another head, finds no regions anew
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

    def __init__(self, name: str):
        task, config = read_task(name)
        if config.region_encoder_config is None:
            raise ValueError(f"{name} has no region encoder, so it cannot read images; expected one that has")
        self.name = name
        self.model: PreTrainedModel = HEAD_CLASSES[task.name].from_pretrained(name).eval()
        self.model.set_attn_implementation("eager")  # the one that returns the weights
        self.processor = AutoProcessor.from_pretrained(name)
        self.task: str = self.processor.task
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
            images: One image; for `"nlvr2"` two.
            text: A question, a sentence about two images, a sentence with its phrases in brackets, or a text with
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
        key = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
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

    def _answer_question(self, images: list, text: str, _: list, look: Look) -> Answer:
        inputs = self.processor(images=[self.regions(images[0])], text=[text])
        outputs = self.model(**inputs, output_attentions=True)
        (best,) = self.processor.post_process_question_answering(outputs, top_k=_TOP_K)
        bars = [Bars("", [(answer["answer"], answer["score"]) for answer in best])]
        if look.explanation is not None:
            (explained,) = explain_answers(self.model, self.processor, inputs)
            reasons, measure, note = _explanation(explained, look.explanation)
            return Answer(bars, [replace(self.view(images[0], reasons), measure=measure)], note)
        reader = int(inputs["attention_mask"].sum()) - 2  # the [MASK] after the question
        weights = _attention(outputs, inputs, 0, [reader], look)
        return Answer(bars, [self.view(images[0], weights)], _note("the answer's [MASK]", weights, look))

    def _judge_sentence(self, images: list, text: str, _: list, look: Look) -> Answer:
        found = [self.regions(image) for image in images]
        inputs = self.processor(images=[found], text=[text])
        outputs = self.model(**inputs, output_attentions=True)
        scores = outputs.logits[0].float().softmax(dim=-1).tolist()
        weights = _attention(outputs, inputs, 0, [0], look)
        count = len(found[0]["boxes"])
        parts = [None, None] if weights is None else [weights[:count], weights[count:]]
        views = [self.view(image, part) for image, part in zip(images, parts, strict=True)]
        rows = sorted(zip(("False", "True"), scores, strict=True), key=lambda row: -row[1])
        return Answer([Bars("", rows)], views, _note("[CLS]", weights, look))

    def _choose(self, images: list, text: str, choices: list, look: Look) -> Answer:
        objects = self.objects(images[0])
        inputs = self.processor(
            images=[images[0]], text=[text], choices=[choices], objects=[list(objects.names)], boxes=[objects.boxes]
        )
        outputs = self.model(**inputs, output_attentions=True)
        (result,) = self.processor.post_process_multiple_choice(outputs)
        whole = int(self.processor.whole_image)
        weights = _attention(outputs, inputs, result["choice"], [0], look)
        view = View(
            objects.image, objects.boxes, objects.names, weights[whole:] if weights else None, marks=objects.marks
        )
        rows = sorted(zip(choices, result["scores"], strict=True), key=lambda row: -row[1])
        return Answer([Bars("", rows)], [view], _note("[CLS] with the best choice", weights, look))

    def _ground_phrases(self, images: list, text: str, _: list, look: Look) -> Answer:
        sentence, phrases, last_words = split_phrases(text)
        regions = self.regions(images[0])
        if not len(regions["boxes"]):
            raise ValueError("Nothing was found in this image that a phrase could mean.")
        inputs = self.processor(images=[regions], text=[sentence], phrases=[last_words])
        outputs = self.model(**inputs, output_attentions=True)
        (grounded,) = self.processor.post_process_phrase_grounding(outputs, [regions], [len(phrases)])
        best = [found[0] for found in grounded]
        weights = _attention(outputs, inputs, 0, inputs["region_to_phrase_position"][0].tolist(), look)
        marks: dict[int, str] = {}  # several phrases may mean one thing
        for phrase, found in zip(phrases, best, strict=True):
            marks[found["region"]] = " = ".join(filter(None, (marks.get(found["region"]), phrase)))
        rows = [(phrase, found["score"]) for phrase, found in zip(phrases, best, strict=True)]
        view = self.view(images[0], weights, list(marks.items()))
        return Answer([Bars("", rows, ranked=False)], [view], _note("the phrases", weights, look))

    def _fill_masks(self, images: list, text: str, _: list, look: Look) -> Answer:
        if "[MASK]" not in text:
            raise ValueError("Please write a text with at least one [MASK] to fill.")
        inputs = self.processor(images=[self.regions(images[0])], text=[text])
        outputs = self.model(**inputs, output_attentions=True)
        (result,) = self.processor.post_process_pretraining(outputs, inputs["input_ids"], top_k=_TOP_K)
        masks = (inputs["input_ids"][0] == self.processor.tokenizer.mask_token_id).nonzero()[:, 0].tolist()
        weights = _attention(outputs, inputs, 0, masks, look)
        bars = [
            Bars(f"[MASK] {number}" if len(masks) > 1 else "", [(word["word"], word["score"]) for word in words])
            for number, words in enumerate(result["words"], start=1)
        ]
        reader = "[MASK]" if len(masks) == 1 else f"all {len(masks)} [MASK]"
        return Answer(bars, [self.view(images[0], weights)], _note(reader, weights, look))


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


def _attention(outputs: Any, inputs: Any, row: int, readers: list[int], look: Look) -> list[float] | None:
    """How strongly some text positions attend to each region, averaged over them; None if this layer sees no regions."""
    weights_HSS = outputs.attentions[look.layer][row]
    text_length = inputs["input_ids"].shape[-1]
    if weights_HSS.shape[-1] == text_length:
        return None  # late fusion: all layers but the last read words only
    weights_SS = weights_HSS.mean(dim=0) if look.head is None else weights_HSS[look.head]
    return weights_SS[readers, text_length:].mean(dim=0).tolist()


def _explanation(explained: dict[str, Any], name: str) -> tuple[list[float], str, str]:
    """What speaks for the answer by region, in units of what, and a line that says it."""
    regions, answer = explained["regions"], explained["answer"]
    weights = [max(0.0, region[name]) for region in regions]
    if name == "rollout":
        note = f"Attention rollout: {sum(weights):.0%} of what reaches the answer's [MASK] comes from regions."
        return weights, "of what reaches the answer", note
    if name == "gradient":
        total = sum(weights) or 1.0
        note = f"Gradient x input: what each region adds to the log-probability of “{answer}”, to first order."
        return [weight / total for weight in weights], "of what regions add", note
    if not any(weights):
        note = f"Asked again without each region, the answer stays as probable as it is: {explained['score']:.0%}."
        return weights, "less probable without it", note
    strongest = regions[weights.index(max(weights))]
    fall = f"“{answer}” falls from {explained['score']:.0%} to {explained['score'] - strongest['drop']:.0%}"
    other = strongest["answer_without"]
    then = f", and the answer would be “{other}”" if other != answer else ""
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
