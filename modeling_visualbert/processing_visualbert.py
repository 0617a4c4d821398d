"""Text and picture -> model inputs; logits -> answers. Knows the conventions the checkpoints were trained with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from .image_processing_visualbert import VisualBertImageProcessor
from .regions_visualbert import check_regions, pad_regions, split_regions

UNKNOWN_ANSWER = "<unk>"


class VisualBertProcessor(ProcessorMixin):
    r"""
    Makes VisualBERT's inputs right by construction, and reads its outputs.

    For `task="vqa"` the text is what the authors trained on: the lower-cased question without commas and question marks,
    then `?`, then `[MASK]`, whose state is classified: `[CLS] where is the cat ? [MASK] [SEP]`, segment 0.

    Args:
        image_processor: Image processor of the checkpoint's region encoder; the default one when not given.
        tokenizer: A BERT tokenizer.
        task (`str`): What the text is; `"vqa"`.
        answers (`list[str]`, *optional*): The answer of each logit, the same as `config.id2label`.
        max_length (`int`): Longest text in tokens, special tokens included. Longer text is an error, never cut.
        region_dim (`int`, *optional*): Length of one precomputed region feature; checked when given.
    """

    def __init__(
        self, image_processor=None, tokenizer=None, task="vqa", answers=None, max_length=128, region_dim=None, **kwargs
    ):
        if task != "vqa":
            raise ValueError(f"unknown task {task!r}; expected 'vqa'")
        if answers is not None and len(set(answers)) != len(answers):
            repeated = next(answer for answer in answers if answers.count(answer) > 1)
            raise ValueError(f"answer {repeated!r} is in the vocabulary twice")
        # `transformers` wants one; with precomputed regions it is never used.
        super().__init__(image_processor or VisualBertImageProcessor(), tokenizer, **kwargs)
        self.task = task
        self.answers = None if answers is None else list(answers)
        self.max_length = max_length
        self.region_dim = region_dim

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids",
            "attention_mask",
            "token_type_ids",
            "visual_embeds",
            "visual_attention_mask",
            "pixel_values",
            "pixel_mask",
            "image_sizes",
        ]

    def __call__(self, images=None, text=None, padding=True, return_tensors="pt", **kwargs) -> BatchFeature:
        """
        Args:
            images: Pictures (paths, PIL images, arrays), or precomputed regions: a mapping with `visual_embeds` of shape
                `(regions, dim)` and optionally `boxes`, `scores`, `class_ids`, `image_size`; one or a list of them. What
                `model.get_image_features` returned is accepted as it is. One picture serves all texts.
            text: A question or a list of questions.
            padding, pad_to_multiple_of: As in tokenizers.
            return_tensors: `"pt"`.

        Raises:
            TypeError: A text is no string, or a keyword is unknown.
            ValueError: A text is empty or too long, regions are malformed, or numbers of pictures and texts differ.
        """
        pad_to_multiple_of = kwargs.pop("pad_to_multiple_of", None)
        if kwargs:
            raise TypeError(f"unknown argument {sorted(kwargs)[0]!r}")
        if return_tensors != "pt":
            raise ValueError(f"return_tensors {return_tensors!r}; expected 'pt'")
        if images is None and text is None:
            raise ValueError("nothing to process; expected `images`, `text` or both")
        data: dict[str, torch.Tensor] = {}
        if text is not None:
            if not isinstance(text, (str, list, tuple)):
                raise TypeError(f"text is {type(text).__name__}; expected a question or a list of questions")
            data.update(
                self._encode_texts([text] if isinstance(text, str) else list(text), padding, pad_to_multiple_of)
            )
        if images is not None:
            data.update(self._encode_images(images))
        if text is not None and images is not None:
            num_images = len(data["visual_embeds"] if "visual_embeds" in data else data["pixel_values"])
            if num_images not in (1, len(data["input_ids"])):
                raise ValueError(
                    f"{num_images} pictures for {len(data['input_ids'])} texts; expected one picture for all or one for each"
                )
        return BatchFeature(data)

    def _encode_texts(self, texts: list[str], padding, pad_to_multiple_of) -> dict[str, torch.Tensor]:
        if not texts:
            raise ValueError("no texts; expected at least one question")
        encoded = [self._encode_question(text, f"question {i}") for i, text in enumerate(texts)]
        padded = self.tokenizer.pad(
            {"input_ids": encoded},
            padding=padding,
            max_length=self.max_length if padding == "max_length" else None,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side="right",  # the answer is read at a position counted from the left
            return_tensors="pt",
        )
        mask = padded["attention_mask"]
        return {"input_ids": padded["input_ids"], "attention_mask": mask, "token_type_ids": torch.zeros_like(mask)}

    def _encode_question(self, question: str, name: str) -> list[int]:
        if not isinstance(question, str):
            raise TypeError(f"{name} is {type(question).__name__}; expected a string")
        words = question.lower().replace(",", " ").replace("?", " ").split()
        tokenizer = self.tokenizer
        # A user who writes "[SEP]" gets a bracket, three letters and a bracket, not a control token.
        pieces = tokenizer(" ".join(words), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if not pieces:
            raise ValueError(f"{name} is empty ({question!r}); expected at least one word")
        marks = [tokenizer.convert_tokens_to_ids("?"), tokenizer.mask_token_id]
        ids = [tokenizer.cls_token_id, *pieces, *marks, tokenizer.sep_token_id]
        if len(ids) > self.max_length:
            raise ValueError(f"{name} has {len(ids)} tokens ({question[:40]!r}...); expected at most {self.max_length}")
        return ids

    def _encode_images(self, images: Any) -> dict[str, torch.Tensor]:
        if isinstance(images, Mapping):
            features = images.get("visual_embeds")
            if isinstance(features, torch.Tensor) and features.dim() == 3:
                return self._check_region_batch(images)
            images = [images]
        elif not isinstance(images, (list, tuple)):
            images = [images]
        if not images:
            raise ValueError("no images; expected at least one")
        precomputed = [isinstance(image, Mapping) for image in images]
        if all(precomputed):
            names = [f"regions {i}" for i in range(len(images))]
            return pad_regions([check_regions(i, self.region_dim, name) for i, name in zip(images, names, strict=True)])
        if any(precomputed):
            raise ValueError("pictures and precomputed regions in one batch; expected one kind")
        return dict(self.image_processor(images, return_tensors="pt"))

    def _check_region_batch(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        features = batch["visual_embeds"]
        known = ("visual_embeds", "visual_attention_mask", "boxes_unit", "scores", "class_ids")
        unknown = sorted(set(batch) - set(known))
        if unknown:
            raise ValueError(f"regions: unknown key {unknown[0]!r}; expected {', '.join(known)}")
        if self.region_dim is not None and features.shape[-1] != self.region_dim:
            raise ValueError(f"regions: features have dim {features.shape[-1]}, this model expects {self.region_dim}")
        if not torch.isfinite(features).all():
            raise ValueError("regions: 'visual_embeds' holds NaN or infinity; expected finite numbers")
        mask = batch.get("visual_attention_mask")
        if mask is None:
            mask = torch.ones(features.shape[:2], dtype=torch.long, device=features.device)
        mask = torch.as_tensor(mask, device=features.device)
        if mask.shape != features.shape[:2]:
            raise ValueError(
                f"regions: 'visual_attention_mask' has shape {tuple(mask.shape)}; expected {tuple(features.shape[:2])}"
            )
        return {"visual_embeds": features, "visual_attention_mask": mask}

    def post_process_question_answering(self, outputs: Any, top_k: int = 5) -> list[list[dict[str, Any]]]:
        """
        The best answers of each question, `[{"answer": "red", "score": 0.97}, ...]`, scores falling and in 0..1.

        `<unk>` is never an answer; the scores are the probabilities of the others.

        Args:
            outputs: Output of [`VisualBertForQuestionAnswering`], or its logits of shape `(batch_size, num_labels)`.
            top_k: How many answers; all when there are fewer.

        Raises:
            ValueError: The processor has no answers, or their number differs from that of the logits.
        """
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs["logits"]
        if self.answers is None:
            raise ValueError("this processor has no answer vocabulary; pass `answers` when it is made")
        if logits.shape[-1] != len(self.answers):
            raise ValueError(
                f"{logits.shape[-1]} logits for a vocabulary of {len(self.answers)} answers; expected as many"
            )
        logits = logits.float()
        if UNKNOWN_ANSWER in self.answers:
            logits = logits.index_fill(
                -1, torch.tensor(self.answers.index(UNKNOWN_ANSWER), device=logits.device), -torch.inf
            )
        known = len(self.answers) - (UNKNOWN_ANSWER in self.answers)
        scores, indices = logits.softmax(dim=-1).topk(min(top_k, known), dim=-1)
        return [
            [{"answer": self.answers[i], "score": score} for i, score in zip(row, row_scores, strict=True)]
            for row, row_scores in zip(indices.tolist(), scores.tolist(), strict=True)
        ]

    def post_process_regions(
        self, features: Mapping[str, torch.Tensor], image_sizes: Sequence[Sequence[int]]
    ) -> list[dict[str, torch.Tensor]]:
        """What `model.get_image_features` returned -> one mapping per picture, boxes in pixels of the original image."""
        return split_regions(features, image_sizes)


__all__ = ["UNKNOWN_ANSWER", "VisualBertProcessor"]
