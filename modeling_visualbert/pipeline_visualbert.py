"""Picture + question -> answers in one call."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline


class VisualBertVQAPipeline(Pipeline):
    """
    Visual question answering.

    ```python
    >>> ask = pipeline("visual-question-answering", model="runs/vqa/best")
    >>> ask(image="picture.png", question="How many red things are there?", top_k=2)
    [{'answer': '2', 'score': 0.98}, {'answer': '1', 'score': 0.01}]
    ```

    With a list of questions, the regions of the one picture are found once and the result is a list of such lists.
    Precomputed regions (see [`VisualBertProcessor`]) are taken in place of a picture.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __call__(
        self, image=None, question: str | list[str] | None = None, top_k: int = 5, batch_size: int = 1, **unknown
    ) -> list:
        """
        Args:
            image: A path, PIL image, array, or mapping of precomputed regions; or, without `question`, what pipelines
                take: a dict with the keys `image` and `question`, or an iterable of such dicts.
            question: One question or a list of questions about the picture.
            top_k: How many answers to each question.
            batch_size: How many dicts of an iterable go through the model at once.

        Raises:
            ValueError: The question is missing or empty, or the picture cannot be used.
        """
        if unknown:
            raise TypeError(f"unknown argument {sorted(unknown)[0]!r}; expected image, question or top_k")
        if question is not None:
            return self._answer([{"image": image, "question": question}], top_k)[0]
        if isinstance(image, dict):
            return self._answer([image], top_k)[0]
        if isinstance(image, (str, Path, Image.Image, np.ndarray, torch.Tensor)):
            raise ValueError(_NO_QUESTION)
        items = list(image)
        chunks = (items[start : start + batch_size] for start in range(0, len(items), batch_size))
        return [answers for chunk in chunks for answers in self._answer(chunk, top_k)]

    def _answer(self, items: list[dict[str, Any]], top_k: int) -> list:
        """Answers of several pictures at once; each dict holds a picture and one or more questions."""
        for item in items:
            if "question" not in item:
                raise ValueError(_NO_QUESTION)
            if "image" not in item:
                raise ValueError("no picture; expected dicts with the keys 'image' and 'question'")
        answers = iter(self.run_single({"items": items}, {}, {}, {"top_k": top_k}))
        questions = [item["question"] for item in items]
        return [next(answers) if isinstance(q, str) else [next(answers) for _ in q] for q in questions]

    def _sanitize_parameters(self, **kwargs):
        return {}, {}, {}

    def preprocess(self, inputs: dict[str, Any]) -> dict[str, Any]:
        questions = [[q] if isinstance(q, str) else list(q) for q in (item["question"] for item in inputs["items"])]
        images = [item["image"] for item in inputs["items"]]
        prepared = {
            "texts": dict(self.processor(text=[text for asked in questions for text in asked])),
            "questions_per_image": torch.tensor([len(asked) for asked in questions]),
        }
        if any(isinstance(image, Mapping) for image in images):
            return {**prepared, "regions": dict(self.processor(images=images))}
        return {**prepared, "pictures": [self.processor(images=[image])["pixel_values"] for image in images]}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        # Each picture is looked at once, whatever is asked about it.
        regions = model_inputs.get("regions") or self._find_regions(model_inputs["pictures"])
        repeats = model_inputs["questions_per_image"]
        shared = {
            key: regions[key].repeat_interleave(repeats, dim=0) for key in ("visual_embeds", "visual_attention_mask")
        }
        return {"logits": self.model(**model_inputs["texts"], **shared).logits}

    def _find_regions(self, pictures: list[torch.Tensor]) -> Mapping[str, torch.Tensor]:
        if len({picture.shape for picture in pictures}) == 1:
            return self.model.get_image_features(torch.cat(pictures))
        # Not every detector ignores padding, so pictures of different sizes are looked at one by one.
        found = [self.model.get_image_features(picture) for picture in pictures]
        return {key: torch.cat([item[key] for item in found]) for key in ("visual_embeds", "visual_attention_mask")}

    def postprocess(self, model_outputs: dict[str, Any], top_k: int = 5) -> list:
        return self.processor.post_process_question_answering(model_outputs["logits"], top_k=top_k)


_NO_QUESTION = "no question; expected `question=` or a dict with the keys 'image' and 'question'"


@torch.inference_mode()
def ask(model, processor, image, questions: list[str], top_k: int = 5) -> tuple[list[list[dict]], dict]:
    """
    Answers to questions about one picture, and the regions they were answered from. The regions are found once.

    Args:
        model: A [`VisualBertForQuestionAnswering`] with a region encoder.
        processor: Its [`VisualBertProcessor`].
        image: A path, PIL image or array.
        questions: Any number of questions.
        top_k: How many answers to each.

    Returns:
        For each question its best answers, and the picture's regions with boxes in pixels.
    """
    pixels = processor(images=[image]).to(model.device)
    found = model.get_image_features(pixels["pixel_values"], pixels.get("pixel_mask"))
    inputs = processor(images=found, text=questions).to(model.device)
    answers = processor.post_process_question_answering(model(**inputs), top_k=top_k)
    return answers, processor.post_process_regions(found, pixels["image_sizes"])[0]


__all__ = ["VisualBertVQAPipeline", "ask"]
