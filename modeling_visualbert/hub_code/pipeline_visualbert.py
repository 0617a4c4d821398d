"""Image + text -> answers in one call: a pipeline for each of the five tasks.

What a call does: image -> regions (once, whatever is asked about them) -> processor -> model -> plain dicts.
"""

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoTokenizer, Pipeline, PreTrainedModel

from .compile_visualbert import compile_model
from .explain_visualbert import explain_answers, outputs_with_attention
from .image_processing_visualbert import MAX_PIXELS, is_undecoded, load_image
from .modeling_visualbert import (
    VisualBertForMultipleChoice,
    VisualBertForPreTraining,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
)
from .processing_visualbert import VisualBertProcessor
from .regions_visualbert import check_regions, find_regions, join_regions, pad_regions
from .rows_visualbert import holds_many, is_streamed, named_errors, prepared_batches
from .sequence_visualbert import answer_positions
from .tasks_visualbert import TASKS, VisualBertTask, own_labels, own_num_images

_HEADS = {
    head.__name__: head
    for head in (
        VisualBertForMultipleChoice,
        VisualBertForPreTraining,
        VisualBertForQuestionAnswering,
        VisualBertForRegionToPhraseAlignment,
        VisualBertForVisualReasoning,
    )
}


class VisualBertPipeline(Pipeline):
    """
    What the pipelines share. A call is about one image with one text or a list of texts; or about a list of images (a column of
    a data set too) with a text, which gives a list with the result of each image, or with a list of texts, which gives the
    results of the first text for all images, then those of the second, and so on, in one list.

    Or it gets a dict with these keys, or many dicts, such as the rows of a data set, of which `batch_size` go through the model
    at once; other keys than those of the task are ignored. In place of an image it takes precomputed regions: a mapping with
    `visual_embeds` of shape `(regions, dim)` and the other keys that [`VisualBertProcessor`] accepts, or what `find_regions`
    returned. Results are plain dicts; those of a list of texts are a list.

    A list of dicts or a data set of `datasets` gives a list. A generator, or a data set of PyTorch, gives an iterator that
    computes while it is read. `num_workers` processes load and prepare images of what has a length; without them, and for
    generators, this process does.

    With `attention=layer` or `attention=(layer, head)`, both counted from 0, each result is a dict: `"result"` is what the call
    returns otherwise, `"attention"` is how strongly the position that it is read from attends to each region in this layer,
    averaged over the layer's heads or in one head. Each pipeline says which position this is; the weights of several are
    averaged. What is missing to 1 goes to words. For a layer that reads no regions (late fusion) it is None. A model whose
    attention is not "eager", the only one that returns weights, is switched to it for the call.

    `padding` and `truncation` are those of [`VisualBertProcessor`].

    When the pipeline is made, it takes the `processor` that is given, else the one beside the model; a `tokenizer` or
    `image_processor` that is given replaces that of the processor. A model that was never saved needs a processor or both of
    these. With `compile=True`, the model is compiled in place (see [`compile_model`]).

    Raises (when called):
        TypeError: An item is not a dict, an argument is unknown, or a text is not a string.
        ValueError: Something is missing or empty, or the image cannot be used.
    """

    _load_processor = (
        None  # if `pipeline(...)` finds none under the name that it was given, the one beside the model is meant
    )
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    about: VisualBertTask  # the row of the table of tasks
    image_key = "image"
    keys: tuple[str, ...] = ("image", "question")  # of an item
    optional_keys: tuple[str, ...] = ()
    _results: Callable[..., list]  # what the model and its processor found, options -> the result of each text

    def __init__(
        self,
        model,
        tokenizer=None,
        feature_extractor=None,
        image_processor=None,
        processor=None,
        device=None,
        compile: bool = False,
        **kwargs,
    ):
        parts = {"tokenizer": tokenizer, "image_processor": image_processor or feature_extractor}
        if device is not None:
            _check_device(device)
        super().__init__(model, processor=self._with_parts(processor, model, **parts), device=device, **kwargs)
        found = type(self.model).__name__
        if found != self.about.head or not hasattr(self.model, "get_image_features"):
            # `transformers` has classes of the same names that cannot read images. `pipeline` goes on to them when ours refuses a
            # checkpoint, and forgets why, so it is asked again.
            if Path(self.model.name_or_path or "no folder").is_dir():
                _HEADS[self.about.head].from_pretrained(self.model.name_or_path)
            raise ValueError(
                f"the model is {type(self.model).__module__}.{found}; expected this package's {self.about.head}"
            )
        if self.processor is None or self.processor.task != self.about.name:
            task = None if self.processor is None else self.processor.task
            raise ValueError(f"the processor is for task {task!r}; expected {self.about.name!r}")
        self.processor.check_model(self.model.config, f"the processor for {self.model.name_or_path or 'the model'}")
        if compile:
            compile_model(self.model)

    def _with_parts(self, processor: Any, model: Any, tokenizer: Any, image_processor: Any) -> Any:
        """The processor, or the one beside the model, with the parts that were given, by name too; else one made of them."""
        if isinstance(tokenizer, (str, Path)):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        if isinstance(image_processor, (str, Path)):
            image_processor = AutoImageProcessor.from_pretrained(image_processor)
        has_parts = tokenizer is not None and image_processor is not None
        if processor is None and getattr(model, "name_or_path", None):
            try:
                processor = VisualBertProcessor.from_pretrained(model.name_or_path)
            except OSError:
                if not has_parts:
                    raise
        if processor is None:
            if not has_parts or self.about.name == "vcr":  # whose processor says how tags are aligned with regions
                parts = "" if self.about.name == "vcr" else ", or `tokenizer` and `image_processor`"
                raise ValueError(f"no processor is given or beside the model; expected `processor`{parts}")
            dim = getattr(model.config, "visual_embedding_dim", None)
            num_images = None
            if self.about.name == "nlvr2":
                num_images = own_num_images(model.config, model.name_or_path or "the model")
            processor = VisualBertProcessor(
                image_processor, tokenizer, task=self.about.name, num_images=num_images, region_dim=dim
            )
        given = _given(tokenizer=tokenizer, image_processor=image_processor)
        if self.about.name == "vqa" and processor.answers is None:
            given["answers"] = [name for _, name in sorted(model.config.id2label.items())]
        if self.about.name == "nlvr2" and processor.labels is None:
            given |= _given(labels=own_labels(model.config.id2label))
        if given:
            processor = copy.copy(processor)  # the caller's stays as it is
            for name, value in given.items():
                setattr(processor, name, value)
        return processor

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """
        Save all that is needed to answer: the model with its code, labels and region encoder, and the processor with its
        tokenizer and image processor. `push_to_hub` sends the same.

        Args:
            save_directory: Folder.
            kwargs: See `save_pretrained` of models.

        Raises:
            FileExistsError: There is a file of that name.
        """
        if Path(save_directory).is_file():
            raise FileExistsError(f"{save_directory} is a file; expected a folder")
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    @torch.inference_mode()
    def find_regions(self, image, **objects) -> dict[str, torch.Tensor]:
        """
        The regions of one image, which any number of calls take in place of the image.

        Args:
            image: A path, PIL image or array.
            objects: Multiple choice: the `objects` whose regions are wanted, with `boxes` and `polygons`.

        Returns:
            `visual_embeds` and, for each region, `boxes` (x1, y1, x2, y2 in pixels of the image), `scores`, `class_ids` and what
            else the region encoder finds; `image_size` (height, width). All on the CPU.
        """
        prepared = self._ensure_tensor_on_device(self._prepare({"image": image, **objects}, image), self.device)
        return self._ensure_tensor_on_device(self._regions_of([prepared])[0], torch.device("cpu"))

    @staticmethod
    def load_image(source: Any, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """An image as a call loads it, see [`load_image`], where strangers send it: nothing is fetched, and a call takes what is
        returned in place of the image."""
        return load_image(source, name, max_pixels=max_pixels)

    def _sanitize_parameters(
        self, top_k: int | None = None, attention: int | tuple[int, int] | None = None, padding=None, truncation=None
    ):
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k {top_k!r}; expected at least 1")
        numbers = attention if isinstance(attention, (list, tuple)) and len(attention) == 2 else [attention]
        if attention is not None and not all(type(number) is int for number in numbers):
            raise ValueError(f"attention {attention!r}; expected a layer or a pair (layer, head), counted from 0")
        return _given(padding=padding, truncation=truncation), _given(attention=attention), _given(top_k=top_k)

    def _run(self, first: Any, rest: dict[str, Any], batch_size: int | None, num_workers: int | None, **options) -> Any:
        """The result of a call's arguments: one image or many with texts, an item as a dict, or an iterable of dicts."""
        read, forward, shown = self._sanitize_parameters(**options)
        read = {**self._preprocess_params, **read}
        answer = partial(
            self._answer,
            forward={**self._forward_params, **forward},
            shown={**self._postprocess_params, **shown},
        )
        given = _given(**rest)
        texts: Any = given.get(self.about.text_key)
        if given and not isinstance(texts, (str, list, tuple)):
            raise TypeError(
                f"{self.about.text_key} is {type(texts).__name__}; expected a string or a list (of rows that have images and "
                "texts, give the data set itself)"
            )
        is_many = self._holds_many_images(first) if given else holds_many(first)
        if not is_many:
            if not given and not isinstance(first, Mapping):
                raise ValueError(f"no {self.about.text_key}; expected {self._expected()}")
            (result,) = answer(self.preprocess([{self.image_key: first, **given} if given else first], **read))
            return result
        batches = prepared_batches(
            first,
            partial(self._without_model()._prepare_rows, given=given, options=read),
            _first_given(batch_size, self._batch_size, 1),
            _first_given(num_workers, self._num_workers, 0),
        )
        results = chain.from_iterable(map(answer, batches))
        if not given:
            return results if is_streamed(first) else list(results)
        of_images = list(results)
        if isinstance(texts, str):
            return of_images
        return [of_texts[number] for number in range(len(texts)) for of_texts in of_images]

    def _holds_many_images(self, images: Any) -> bool:
        return holds_many(images)

    def _without_model(self) -> "VisualBertPipeline":
        """What workers get: a model cannot be sent to a process that is not a fork of this one, and they need none."""
        reader = copy.copy(self)
        reader.model = None
        return reader

    def _prepare_rows(
        self, rows: Sequence[tuple[int, Any]], given: Mapping[str, Any], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Numbered rows, or numbered images that the given texts are about, as inputs of the model."""
        if given:
            items = [{self.image_key: image, **given} for _, image in rows]
            return self.preprocess(items, [f"image {number}" for number, _ in rows], **options)
        return self.preprocess([row for _, row in rows], [f"row {number}" for number, _ in rows], **options)

    def _answer(self, prepared: dict[str, Any], forward: dict[str, Any], shown: dict[str, Any]) -> list:
        """Results of a batch of items; the texts of all of them go through the model together."""
        results = iter(self.postprocess(self.forward(prepared, **forward), **shown))
        return [
            next(results) if is_alone else [next(results) for _ in range(count)]
            for is_alone, count in zip(prepared["are_alone"], prepared["counts"], strict=True)
        ]

    def _check_item(self, item: Any) -> None:
        """Refuse what is no item. Other keys are ignored, unless one looks like a mistyped key that may be missing."""
        if not isinstance(item, Mapping):
            raise TypeError(f"got {type(item).__name__}; expected {self._expected()}")
        for key in self.keys:
            if key not in item or (key == self.image_key and item[key] is None):
                found = ", ".join(repr(other) for other in item if item[other] is not None)
                raise ValueError(f"no {key}; expected {self._expected()}" + (f", found {found}" if found else ""))
        absent = [key for key in self.optional_keys if key not in item]
        for key in item.keys() - {*self.keys, *self.optional_keys}:
            if meant := difflib.get_close_matches(str(key), absent, n=1, cutoff=0.8):
                raise TypeError(f"unknown key {key!r}, which looks like {meant[0]!r}; expected {self._expected()}")

    def _expected(self) -> str:
        return f"arguments or dicts with the keys {' and '.join(map(repr, self.keys))}"

    def preprocess(self, items: Sequence[Mapping[str, Any]], names: Sequence[str] = (), **options) -> dict[str, Any]:
        """
        Args:
            items: Dicts as a call takes them, or one.
            names: What to call each in an error.
            options: Of the processor.
        """
        items = [items] if isinstance(items, Mapping) else items
        names = names or [""] * len(items)
        asked, images = [], []
        for item, name in zip(items, names, strict=True):
            with named_errors(name):
                self._check_item(item)
                asked.append(self._text_arguments(item))
                images.append([self._prepare(item, image) for image in self._images(item)])
        arguments = {key: [value for texts in asked for value in texts[key]] for key in asked[0]}
        try:
            inputs = dict(self.processor(**arguments, **options))
        except (TypeError, ValueError):  # it counts the texts of the whole batch: which item is it?
            for texts, name in zip(asked, names, strict=True):
                with named_errors(name):
                    self.processor(**texts, **options)
            raise
        return {
            "inputs": inputs,
            "arguments": arguments,
            "counts": [len(texts["text"]) for texts in asked],
            "are_alone": [isinstance(item[self.about.text_key], str) for item in items],
            "images": images,
        }

    def _text_arguments(self, item: Mapping[str, Any]) -> dict[str, list]:
        """Arguments of the processor for the texts of an item, lists of equal length."""
        text = item[self.about.text_key]
        return {"text": [text] if isinstance(text, str) else _listed(text, self.about.text_key)}

    def _images(self, item: Mapping[str, Any]) -> Sequence[Any]:
        return [item[self.image_key]]

    def _prepare(self, item: Mapping[str, Any], image: Any) -> dict[str, Any]:
        """Checked regions, or pixels and the other inputs of the region encoder."""
        if isinstance(image, Mapping) and not is_undecoded(image):
            return {"regions": check_regions(image, self.processor.region_dim)}
        return dict(self.processor.image_processor(images=[image], return_tensors="pt"))

    def _forward(self, model_inputs: dict[str, Any], attention: int | tuple[int, int] | None = None) -> dict[str, Any]:
        images, counts = model_inputs["images"], model_inputs["counts"]
        found = iter(self._regions_of([image for item in images for image in item]))
        regions = [[next(found) for _ in item] for item in images]
        visual = pad_regions([self._joined(item) for item in regions])
        visual = self._ensure_tensor_on_device(visual, self.device)
        visual["visual_embeds"] = visual["visual_embeds"].to(self.model.dtype)
        # The regions of a single image serve all texts as they are.
        if len(images) > 1:
            repeats = torch.tensor(counts, device=self.device)
            visual = {name: value.repeat_interleave(repeats, dim=0) for name, value in visual.items()}
        inputs = self._aligned({**model_inputs["inputs"], **visual})
        result = {
            "inputs": model_inputs["inputs"],
            "visual": visual,
            "arguments": model_inputs["arguments"],
            "regions": [item[0] for item, count in zip(regions, counts, strict=True) for _ in range(count)],
        }
        if attention is None:
            return {**result, "outputs": dict(self.model(**inputs))}
        outputs = dict(outputs_with_attention(self.model, **inputs))
        weights = self._attention_to_regions(outputs.pop("attentions"), outputs, inputs, attention)
        return {**result, "outputs": outputs, "attention": weights}

    def _attention_to_regions(
        self,
        attentions: Sequence[torch.Tensor],
        outputs: dict[str, torch.Tensor],
        inputs: dict[str, torch.Tensor],
        attention: int | tuple[int, int],
    ) -> list[list[float] | None]:
        """For each text the weights of the regions, see the class."""
        layer, head = (attention, None) if isinstance(attention, int) else attention
        if not 0 <= layer < len(attentions) or not (head is None or 0 <= head < attentions[layer].shape[1]):
            raise ValueError(
                f"attention {attention!r}; expected a layer from 0 to {len(attentions) - 1}, or such a layer and a head from 0 "
                f"to {attentions[0].shape[1] - 1}"
            )
        weights_NHSS, text_length = attentions[layer], inputs["input_ids"].shape[-1]
        readers = self._readers(outputs, inputs)
        if weights_NHSS.shape[-1] == text_length:
            return [None] * len(readers)  # late fusion: all layers but the last read words only
        num_regions = inputs["visual_attention_mask"].sum(dim=1).expand(len(readers)).tolist()
        found: list[list[float] | None] = []
        for (row, positions), count in zip(readers, num_regions, strict=True):
            weights_SS = weights_NHSS[row].mean(dim=0) if head is None else weights_NHSS[row, head]
            found.append(weights_SS[positions, text_length : text_length + count].mean(dim=0).tolist())
        return found

    def _readers(
        self, outputs: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]
    ) -> list[tuple[int, list[int]]]:
        """For each text its row in the batch and the positions that its result is read from: here `[CLS]`."""
        return [(row, [0]) for row in range(len(inputs["input_ids"]))]

    def _joined(self, regions: Sequence[Mapping[str, torch.Tensor]]) -> Mapping[str, torch.Tensor]:
        """The regions of an item's images as those of one."""
        return regions[0]

    def _aligned(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return inputs

    def postprocess(self, found: dict[str, Any], **options) -> list:
        results = self._results(found, **options)
        if "attention" not in found:
            return results
        return [
            {"result": result, "attention": weights}
            for result, weights in zip(results, found["attention"], strict=True)
        ]

    def _regions_of(self, images: Sequence[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        """Regions of each image. Not every detector ignores padding, so only images of one size share a batch."""
        unseen = [image for image in images if "regions" not in image]
        shapes = {tuple((name, value.shape) for name, value in image.items()) for image in unseen}
        batches = [unseen] if len(shapes) == 1 else [[image] for image in unseen]
        seen = iter([regions for batch in batches for regions in self._look(batch)])
        return [image["regions"] if "regions" in image else next(seen) for image in images]

    def _look(self, images: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        return find_regions(self.model, {name: torch.cat([image[name] for image in images]) for name in images[0]})


class VisualBertVQAPipeline(VisualBertPipeline):
    """
    Visual question answering, task "visual-question-answering".

    ```python
    >>> ask = pipeline("visual-question-answering", model="runs/vqa/best")
    >>> ask(image="image.png", question="How many red things are there?", top_k=2)
    [{'answer': '2', 'score': 0.98}, {'answer': '1', 'score': 0.01}]
    ```
    """

    about = TASKS["vqa"]

    def __call__(
        self,
        image: Any = None,
        question: str | list[str] | None = None,
        top_k: int | None = None,
        batch_size: int | None = None,
        explain: bool | None = None,
        attention: int | tuple[int, int] | None = None,
        num_workers: int | None = None,
        **options: Any,
    ) -> Any:
        """
        Args:
            image: A path, PIL image, array or regions; or, without `question`, a dict with the keys `image` and `question`, or
                an iterable of such dicts.
            question: One question or a list of questions about the image.
            top_k: How many answers to each question; 5 when not given.
            batch_size: How many dicts of an iterable go through the model at once; 1 when not given.
            explain: Whether to say what the best answer rests on.
            attention: A layer, or a layer and a head, whose attention is returned too, see [`VisualBertPipeline`]: that of the
                `[MASK]` that the answer is read from.

        Returns:
            For each question `[{"answer": "red", "score": 0.97}, ...]`, scores falling and in 0..1. With `explain`
            `{"answers": [...], "words": [...], "regions": [...]}`, see [`explain_answers`]; regions have their `box` too,
            where it is known.

        Raises (beside those of [`VisualBertPipeline`]):
            FileNotFoundError: There is no image file of this name.
            ValueError: A text is too long, or regions have features of another length than the model reads.
        """
        options |= {"top_k": top_k, "explain": explain, "attention": attention}
        return self._run(image, {"question": question}, batch_size, num_workers, **options)

    def _sanitize_parameters(
        self, top_k=None, attention=None, padding=None, truncation=None, explain: bool | None = None
    ):
        *rest, options = super()._sanitize_parameters(top_k, attention, padding, truncation)
        return *rest, {**options, **_given(explain=explain)}

    def _readers(self, outputs, inputs):
        return [(row, [position]) for row, position in enumerate(answer_positions(inputs["attention_mask"]).tolist())]

    def _results(self, found: dict[str, Any], top_k: int = 5, explain: bool = False) -> list:
        answers = self.processor.post_process_question_answering(found["outputs"]["logits"], top_k=top_k)
        if not explain:
            return answers
        inputs = {name: tensor.to(self.device) for name, tensor in {**found["inputs"], **found["visual"]}.items()}
        explained = explain_answers(self.model, self.processor, inputs)
        return [
            {"answers": best, "words": why["words"], "regions": _with_boxes(why["regions"], regions)}
            for best, why, regions in zip(answers, explained, found["regions"], strict=True)
        ]


def _with_boxes(explained: list[dict], regions: Mapping[str, torch.Tensor]) -> list[dict]:
    if "boxes" not in regions:
        return explained
    return [{"box": box, **region} for box, region in zip(regions["boxes"].tolist(), explained, strict=True)]


class VisualBertMultipleChoicePipeline(VisualBertPipeline):
    """
    Multiple choice about tagged objects (VCR), task "visual-multiple-choice".

    ```python
    >>> choose = pipeline("visual-multiple-choice", model="runs/vcr/answer/best")
    >>> choose("image.png", "What color is [0]?", ["[0] is red.", "[0] is blue."], objects=["star"], boxes=[[5, 9, 40, 44]])
    [{'index': 1, 'text': '[0] is blue.', 'score': 0.99}, {'index': 0, 'text': '[0] is red.', 'score': 0.01}]
    ```
    """

    about = TASKS["vcr"]
    keys = ("image", "question", "choices")
    optional_keys = ("objects", "boxes", "polygons")

    def __call__(
        self,
        image: Any = None,
        question: str | list[str] | None = None,
        choices: list | None = None,
        objects: list[str] | None = None,
        boxes: list | None = None,
        polygons: list | None = None,
        top_k: int | None = None,
        batch_size: int | None = None,
        attention: int | tuple[int, int] | None = None,
        num_workers: int | None = None,
        **options: Any,
    ) -> list:
        """
        Args:
            image: A path, PIL image, array or regions (that of the whole image first, if the checkpoint has it, then those of
                the objects); or, without a question, a dict with the other arguments as keys, or an iterable of such dicts.
            question: One question or a list of questions; `[0]` or `[0,2]` in them stand for objects.
            choices: The choices of the question, with tags too; for a list of questions, a list of such lists.
            objects: Class names of the objects of the image.
            boxes: Their boxes, x1, y1, x2, y2 in pixels of the image. Not needed with regions, nor for a checkpoint that was
                trained without (`processor.whole_image` is False), which reads the regions that it finds.
            polygons: For each object the polygons that outline it, lists of (x, y) in pixels; read by the detector of the
                published checkpoints only, and its box when not given.
            top_k: How many choices to return; all when not given.
            batch_size: How many dicts of an iterable go through the model at once; 1 when not given.
            attention: A layer, or a layer and a head, whose attention is returned too, see [`VisualBertPipeline`]: that of
                `[CLS]` where the question is read with its best choice.

        Returns:
            For each question `[{"index": 2, "text": "[0] is red.", "score": 0.96}, ...]`, scores falling and in 0..1.

        Raises (beside those of [`VisualBertPipeline`]):
            FileNotFoundError: There is no image file of this name.
            ValueError: A tag names no object, a box is inverted or outside the image, or there are no choices.
        """
        rest = {"question": question, "choices": choices, "objects": objects, "boxes": boxes, "polygons": polygons}
        if self._holds_many_images(image) and any(_given(objects=objects, boxes=boxes, polygons=polygons)):
            raise ValueError("objects of many images; expected a dict for each image, with its own objects")
        return self._run(image, rest, batch_size, num_workers, top_k=top_k, attention=attention, **options)

    def _text_arguments(self, item: Mapping[str, Any]) -> dict[str, list]:
        arguments = super()._text_arguments(item)
        choices = [item["choices"]] if isinstance(item["question"], str) else _listed(item["choices"], "choices")
        if len(choices) != len(arguments["text"]):
            raise ValueError(f"choices for {len(choices)} questions, but {len(arguments['text'])} questions")
        return {**arguments, "choices": choices, "objects": [item.get("objects") or []] * len(choices)}

    def _prepare(self, item: Mapping[str, Any], image: Any) -> dict[str, Any]:
        names = item.get("objects") or []
        if isinstance(image, Mapping) and not is_undecoded(image):
            prepared = super()._prepare(item, image)
            count = len(prepared["regions"]["visual_embeds"]) - self.processor.whole_image
            if count < len(names):
                raise ValueError(f"{len(names)} objects, but regions for {count}")
            return prepared
        boxes = item.get("boxes") or []
        finds_regions = not self.processor.whole_image and not getattr(
            self.processor.image_processor, "reads_objects", False
        )
        if finds_regions and not boxes and not names:
            return super()._prepare(item, image)
        if len(boxes) != len(names):
            raise ValueError(f"{len(boxes)} boxes for {len(names)} objects; expected as many")
        polygons = None if item.get("polygons") is None else [item["polygons"]]
        inputs = dict(self.processor(images=[image], objects=[names], boxes=[boxes], polygons=polygons))
        return {"boxes_mask" if name == "visual_attention_mask" else name: value for name, value in inputs.items()}

    def _aligned(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Alignment for as many regions as there are: without objects regions were given that no word names."""
        missing = inputs["visual_embeds"].shape[1] - inputs["image_text_alignment"].shape[2]
        alignment = F.pad(inputs["image_text_alignment"], (0, 0, 0, max(0, missing)), value=-1)
        return {**inputs, "image_text_alignment": alignment}

    def _readers(self, outputs, inputs):
        num_choices = inputs["input_ids"].shape[1]
        best = self.processor.post_process_multiple_choice(outputs)
        return [(row * num_choices + result["choice"], [0]) for row, result in enumerate(best)]

    def _results(self, found: dict[str, Any], top_k: int | None = None) -> list:
        results = []
        scored = self.processor.post_process_multiple_choice(found["outputs"]["logits"])
        for result, choices in zip(scored, found["arguments"]["choices"], strict=True):
            rows = [
                {"index": i, "text": choice if isinstance(choice, str) else " ".join(choice), "score": score}
                for i, (choice, score) in enumerate(zip(choices, result["scores"], strict=True))
            ]
            results.append(sorted(rows, key=lambda row: -row["score"])[:top_k])
        return results


class VisualBertReasoningPipeline(VisualBertPipeline):
    """
    Is a statement true of two images (NLVR2)? Or: which label does a text with its image, or its two images, get
    (classification)? Task "visual-reasoning".

    ```python
    >>> reason = pipeline("visual-reasoning", model="runs/nlvr2/best")
    >>> reason(images=("left.png", "right.png"), statement="Both images show a star.")
    {'label': 'True', 'score': 0.98}
    ```

    The processor says which labels there are and how many images to a text (`num_images`). Where it is one, items have the key
    `image`: `classify(image="image.png", statement="Nobody is outside.", top_k=2)`.
    """

    about = TASKS["nlvr2"]
    image_key = "images"
    keys = ("images", "statement")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.processor.num_images == 1:
            self.image_key = "image"
            self.keys = ("image", "statement")

    def __call__(
        self,
        images: Any = None,
        statement: str | list[str] | None = None,
        top_k: int | None = None,
        batch_size: int | None = None,
        attention: int | tuple[int, int] | None = None,
        num_workers: int | None = None,
        image: Any = None,
        **options: Any,
    ) -> list | dict:
        """
        Args:
            images: The left and the right image: paths, PIL images, arrays or regions; or, without `statement`, a dict with
                the keys `images` and `statement`, or an iterable of such dicts. The only image, if texts are about one.
            statement: One text or a list of texts about the image or images.
            top_k: Return a list of so many labels for each text: the answer first, then by falling score.
            batch_size: How many dicts of an iterable go through the model at once; 1 when not given.
            attention: A layer, or a layer and a head, whose attention is returned too, see [`VisualBertPipeline`]: that of
                `[CLS]` to the regions of the left image, then of the right one.
            image: The same as `images`.

        Returns:
            For each statement `{"label": "True", "score": 0.98}`, the label "True" or "False" or one that the processor names,
            the score being its probability; with `top_k` a list of these.

        Raises (beside those of [`VisualBertPipeline`]):
            FileNotFoundError: There is no image file of this name.
            ValueError: There are not as many images to a text as the model reads.
        """
        if image is not None and images is not None:
            raise TypeError("image and images; expected one of them")
        given = images if image is None else image
        options |= {"attention": attention, "top_k": top_k}
        return self._run(given, {"statement": statement}, batch_size, num_workers, **options)

    def _holds_many_images(self, images: Any) -> bool:
        """Whether these are many pairs, or many images where there is one to a text."""
        if self.processor.num_images == 2 and isinstance(images, (list, tuple)):
            return any(isinstance(pair, (list, tuple)) for pair in images)
        return holds_many(images)

    def _images(self, item: Mapping[str, Any]) -> Sequence[Any]:
        images = item[self.image_key]
        if self.processor.num_images == 1:
            return [images]
        if not isinstance(images, (list, tuple)) or len(images) != 2:
            raise ValueError(f"images: {type(images).__name__}; expected a pair of images")
        return images

    def _joined(self, regions: Sequence[Mapping[str, torch.Tensor]]) -> Mapping[str, torch.Tensor]:
        return join_regions(regions) if self.processor.num_images == 2 else super()._joined(regions)

    def _results(self, found: dict[str, Any], top_k: int | None = None) -> list:
        return self.processor.post_process_visual_reasoning(found["outputs"]["logits"], top_k)


class VisualBertGroundingPipeline(VisualBertPipeline):
    """
    Which regions do the phrases of a sentence mean (Flickr30k Entities)? Task "phrase-grounding".

    ```python
    >>> ground = pipeline("phrase-grounding", model="runs/flickr30k/best")
    >>> ground("image.png", "the star is above the red square", phrases=["the star"])
    [{'phrase': 'the star',
      'regions': [{'score': 0.99, 'box': {'xmin': 5.1, 'ymin': 9.0, 'xmax': 40.2, 'ymax': 44.8}, 'region': 3}]}]
    ```
    """

    about = TASKS["flickr30k"]
    keys = ("image", "sentence", "phrases")

    def __call__(
        self,
        image: Any = None,
        sentence: str | list[str] | None = None,
        phrases: list | None = None,
        top_k: int | None = None,
        batch_size: int | None = None,
        attention: int | tuple[int, int] | None = None,
        num_workers: int | None = None,
        **options: Any,
    ) -> list:
        """
        Args:
            image: A path, PIL image, array or regions (with `boxes`); or, without a sentence, a dict with the keys `image`,
                `sentence` and `phrases`, or an iterable of such dicts.
            sentence: One sentence or a list of sentences about the image.
            phrases: Phrases of the sentence (their first occurrence is meant), or indices of their last words; for a list of
                sentences, a list of such lists.
            top_k: How many regions for each phrase; 1 when not given.
            batch_size: How many dicts of an iterable go through the model at once; 1 when not given.
            attention: A layer, or a layer and a head, whose attention is returned too, see [`VisualBertPipeline`]: the mean over
                the last word pieces of the phrases.

        Returns:
            For each sentence a list with, for each phrase, `{"phrase": ..., "regions": [{"score": 0.8, "box": {"xmin": ...,
            "ymin": ..., "xmax": ..., "ymax": ...}, "region": 3}, ...]}`: scores falling and in 0..1, boxes in pixels of the
            image, `region` the number of the region. No regions where none was found in the image.

        Raises (beside those of [`VisualBertPipeline`]):
            FileNotFoundError: There is no image file of this name.
            ValueError: A phrase is not in its sentence.
        """
        rest = {"sentence": sentence, "phrases": phrases}
        return self._run(image, rest, batch_size, num_workers, top_k=top_k, attention=attention, **options)

    def _text_arguments(self, item: Mapping[str, Any]) -> dict[str, list]:
        arguments = super()._text_arguments(item)
        phrases = [item["phrases"]] if isinstance(item["sentence"], str) else _listed(item["phrases"], "phrases")
        for given in phrases:
            if not isinstance(given, (list, tuple)) or not given:
                raise ValueError(f"phrases {given!r:.60}; expected a list of phrases for each sentence")
        return {**arguments, "phrases": phrases}

    def _prepare(self, item: Mapping[str, Any], image: Any) -> dict[str, Any]:
        prepared = super()._prepare(item, image)
        if "regions" in prepared and "boxes" not in prepared["regions"]:
            raise ValueError("regions without 'boxes'; expected x1, y1, x2, y2 in pixels for each region")
        return prepared

    def _readers(self, outputs, inputs):
        return [(row, places[places >= 0].tolist()) for row, places in enumerate(inputs["region_to_phrase_position"])]

    def _results(self, found: dict[str, Any], top_k: int = 1) -> list:
        phrases = found["arguments"]["phrases"]
        grounded = self.processor.post_process_phrase_grounding(
            found["outputs"]["logits"], found["regions"], [len(given) for given in phrases], top_k
        )
        return [
            [
                {"phrase": phrase, "regions": [_with_named_sides(region) for region in best]}
                for phrase, best in zip(given, regions, strict=True)
            ]
            for given, regions in zip(phrases, grounded, strict=True)
        ]


class VisualBertMaskedCaptionPipeline(VisualBertPipeline):
    """
    Fill `[MASK]` in a text about an image (pre-trained checkpoints), task "visual-fill-mask".

    ```python
    >>> fill = pipeline("visual-fill-mask", model="runs/pretraining/best")
    >>> fill("image.png", "There is a [MASK] diamond.", top_k=1)
    {'words': [[{'word': 'orange', 'score': 0.97}]], 'match': 0.93}
    ```
    """

    about = TASKS["pretraining"]
    keys = ("image", "text")
    optional_keys = ("text_pair",)

    def __call__(
        self,
        image: Any = None,
        text: str | list[str] | None = None,
        text_pair: str | list[str] | None = None,
        top_k: int | None = None,
        batch_size: int | None = None,
        attention: int | tuple[int, int] | None = None,
        num_workers: int | None = None,
        **options: Any,
    ) -> list | dict:
        """
        Args:
            image: A path, PIL image, array or regions; or, without a text, a dict with the other arguments as keys, or an
                iterable of such dicts.
            text: One text or a list of texts about the image, with or without `[MASK]`.
            text_pair: A second text for each: two captions are what the match head was trained on.
            top_k: How many words for each mask; 5 when not given.
            batch_size: How many dicts of an iterable go through the model at once; 1 when not given.
            attention: A layer, or a layer and a head, whose attention is returned too, see [`VisualBertPipeline`]: the mean over
                all `[MASK]`; that of `[CLS]` for a text without one.

        Returns:
            For each text `{"words": [[{"word": "red", "score": 0.9}, ...], ...], "match": 0.97}`: for each mask the best word
            pieces, and the probability that text and image belong together.

        Raises (beside those of [`VisualBertPipeline`]):
            FileNotFoundError: There is no image file of this name.
            ValueError: A text is empty or too long.
        """
        rest = {"text": text, "text_pair": text_pair}
        return self._run(image, rest, batch_size, num_workers, top_k=top_k, attention=attention, **options)

    def _text_arguments(self, item: Mapping[str, Any]) -> dict[str, list]:
        arguments = super()._text_arguments(item)
        second = item.get("text_pair")
        if second is None:
            pairs: list = [None] * len(arguments["text"])
        else:
            pairs = [second] if isinstance(item["text"], str) else _listed(second, "text_pair")
        if len(pairs) != len(arguments["text"]):
            raise ValueError(f"{len(pairs)} second texts for {len(arguments['text'])} texts; expected as many")
        return {**arguments, "text_pair": pairs}

    def _readers(self, outputs, inputs):
        is_mask = inputs["input_ids"] == self.processor.tokenizer.mask_token_id
        return [(row, places.nonzero()[:, 0].tolist() or [0]) for row, places in enumerate(is_mask)]

    def _results(self, found: dict[str, Any], top_k: int = 5) -> list:
        return self.processor.post_process_pretraining(found["outputs"], found["inputs"]["input_ids"], top_k)


def ask(
    model: PreTrainedModel, processor: VisualBertProcessor, image: Any, questions: list[str], top_k: int = 5
) -> tuple[list[list[dict[str, Any]]], dict[str, Any]]:
    """
    Answers to questions about one image, and the regions they were answered from. The regions are found once.

    Args:
        model: A [`VisualBertForQuestionAnswering`] with a region encoder.
        processor: Its [`VisualBertProcessor`].
        image: A path, PIL image or array.
        questions: Any number of questions.
        top_k: How many answers to each.

    Returns:
        For each question its best answers, and the image's regions with boxes in pixels: `visual_embeds` of shape
        `(regions, dim)`, `boxes` of shape `(regions, 4)`.

    Raises:
        FileNotFoundError: There is no image file of this name.
        ValueError: The image cannot be used, the model has no region encoder, or there are no questions.
    """
    answering = VisualBertVQAPipeline(model=model, processor=processor, device=model.device)
    regions = answering.find_regions(image)
    return answering(image=regions, question=questions, top_k=top_k), regions


def _check_device(device: Any) -> None:
    """Refuse a device that is not here. `transformers` would take the CPU for the number of a missing one.

    Raises:
        ValueError: PyTorch does not know the device, or does not find it on this machine.
    """
    if isinstance(device, int) and device < 0:  # the CPU, or where the model is
        return
    try:
        wanted = torch.device("cpu" if isinstance(device, int) else device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r}; expected 'cpu', 'cuda', a number or a torch.device") from error
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = 0 if found is None else torch.accelerator.device_count()
    is_number = isinstance(device, int)
    is_known = found is not None and (is_number or found.type == wanted.type)
    is_there = is_known and ((device if is_number else wanted.index) or 0) < count
    if not is_there and (is_number or wanted.type not in ("cpu", "meta")):
        gpus = "" if found is None else f", or {found.type} 0 to {count - 1}"
        raise ValueError(f"device {device!r}: PyTorch does not find it on this machine; expected 'cpu'{gpus}")


def _first_given(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def _listed(values: Any, name: str) -> list:
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{name} is {type(values).__name__}; expected a string or a list")
    return list(values)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _with_named_sides(region: dict[str, Any]) -> dict[str, Any]:
    sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), region["box"], strict=True))
    return {"score": region["score"], "box": sides, "region": region["region"]}


__all__ = [
    "VisualBertGroundingPipeline",
    "VisualBertMaskedCaptionPipeline",
    "VisualBertMultipleChoicePipeline",
    "VisualBertPipeline",
    "VisualBertReasoningPipeline",
    "VisualBertVQAPipeline",
    "ask",
]
