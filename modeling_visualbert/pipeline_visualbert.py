"""Picture + question -> answers in one call."""

from typing import Any

import torch
from transformers import Pipeline

from .image_processing_visualbert import load_picture


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

    def __call__(self, image=None, question: str | list[str] | None = None, **kwargs) -> list:
        """
        Args:
            image: A path, PIL image, array, or mapping of precomputed regions; or, without `question`, what pipelines
                take: a dict with the keys `image` and `question`, or an iterable of such dicts.
            question: One question or a list of questions about the picture.
            top_k: How many answers to each question (5).

        Raises:
            ValueError: The question is missing or empty, or the picture cannot be used.
        """
        if question is None:
            if isinstance(image, dict) and "question" not in image:
                raise ValueError("no question; expected `question=` or a dict with the keys 'image' and 'question'")
            return super().__call__(image, **kwargs)
        return super().__call__({"image": image, "question": question}, **kwargs)

    def _sanitize_parameters(self, top_k: int | None = None, **unknown):
        if unknown:
            raise TypeError(f"unknown argument {sorted(unknown)[0]!r}; expected image, question or top_k")
        return {}, {}, {} if top_k is None else {"top_k": top_k}

    def preprocess(self, inputs: dict[str, Any]) -> dict[str, Any]:
        image, question = inputs["image"], inputs["question"]
        if not isinstance(image, dict):
            image = load_picture(image)
        encoded = self.processor(images=image, text=question)
        return {**encoded, "is_single": isinstance(question, str)}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        is_single = model_inputs.pop("is_single")
        return {"logits": self.model(**model_inputs).logits, "is_single": is_single}

    def postprocess(self, model_outputs: dict[str, Any], top_k: int = 5) -> list:
        answers = self.processor.post_process_question_answering(model_outputs["logits"], top_k=top_k)
        return answers[0] if model_outputs["is_single"] else answers


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
