"""Text and image -> model inputs; logits -> answers, by the conventions that the checkpoints were trained with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file

from .arguments_visualbert import CallSettings, read_arguments
from .files_visualbert import IMAGE_PROCESSOR_FILES, TOKENIZER_FILES, check_json_files, naming, tokenizer_file
from .image_processing_visualbert import VisualBertImageProcessor, as_tensors, is_undecoded, list_images
from .regions_visualbert import check_regions, encode_boxes, join_regions, pad_regions, split_regions
from .tasks_visualbert import TASKS, TRUTH
from .text_visualbert import (
    EncodedText,
    check_special_tokens,
    check_tokenizer,
    encode_choice,
    encode_pair,
    encode_question,
    encode_words,
    find_phrase,
    pad_alignment,
    pad_texts,
    read_choices,
    read_masked_texts,
    read_questions,
    read_texts,
)

UNKNOWN_ANSWER = "<unk>"
MAX_LENGTH = 128
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
_OF_TEXTS = ("choices", "phrases", "text_pair")  # the others describe images
_CUTS_THE_FRONT = ("vcr", "pretraining")  # as the authors do


class VisualBertProcessor(ProcessorMixin):
    r"""
    Prepares VisualBERT's inputs and reads its outputs. The form of a text depends on the task:

    - `"vqa"`: the lower-cased question without commas and question marks, then `?`, then `[MASK]`, whose state is
      classified: `[CLS] where is the cat ? [MASK] [SEP]`, segment 0.
    - `"nlvr2"`: a sentence about two images, or about one if `num_images` says so; the regions of two follow one another with
      segments 0 and 1. It is classified: true or false, or one of `labels`.
    - `"vcr"`: a question and its choices, each `[CLS] question [SEP] choice [SEP]`. Tags such as `[0]` or `[0,2]` name
      objects; the names they become are aligned with the objects' regions. Region 0 is the whole image.
    - `"flickr30k"`: a sentence and phrases of it; each phrase is read at its last word piece.
    - `"pretraining"`: one text or two, in which `[MASK]` is to be filled.

    Args:
        image_processor: Image processor of the checkpoint's region encoder; the default one when not given.
        tokenizer: A BERT tokenizer. Its settings hold: `model_max_length`, what it was loaded with (`padding`, `truncation`,
            `max_length`, ...), `truncation_side` where the task leaves a choice, tokens that were added. Padding on the left
            is refused.
        task (`str`): `"vqa"`, `"nlvr2"`, `"vcr"`, `"flickr30k"` or `"pretraining"`.
        answers (`list[str]`, *optional*): VQA: the answer of each logit, the same as `config.id2label`.
        max_length (`int`, *optional*): Longest text in tokens, special tokens included; what the tokenizer was loaded with or 128
            when not given, and never more than its `model_max_length`. Longer text is an error, unless a call says
            `truncation=True`.
        region_dim (`int`, *optional*): Length of one precomputed region feature; checked when given.
        alignment (`str`): VCR: `"subword"`, or `"original"` for the authors' checkpoints; see [`encode_choice`].
        whole_image (`bool`): VCR: region 0 is the whole image, and the objects follow. Without it, the boxes of images may be
            left out where texts name no objects: the model reads the regions that its region encoder finds.
        num_images (`int`, *optional*): Images that each text is about; only `"nlvr2"` has a choice, 1 or 2 (the default).
        labels (`list[str]`, *optional*): `"nlvr2"`: the name of each logit, the same as `config.id2label`; `"False"` and
            `"True"` when not given.
        threshold (`float`, *optional*): `"nlvr2"` with two labels: the second one is the answer if its probability is at least
            this; the more probable one when not given.
    """

    _auto_class = "AutoProcessor"  # its file goes into checkpoints, for `trust_remote_code`
    text_kwargs = {"padding": True, "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        task: str = "vqa",
        answers: Sequence[str] | None = None,
        max_length: int | None = None,
        region_dim: int | None = None,
        alignment: str = "subword",
        whole_image: bool = True,
        num_images: int | None = None,
        labels: Sequence[str] | None = None,
        threshold: float | None = None,
        **kwargs: Any,
    ):
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
        _check_classification(task, num_images, labels, threshold)
        if alignment not in ("subword", "original"):
            raise ValueError(f"alignment {alignment!r}; expected 'subword' or 'original'")
        if max_length is not None and (type(max_length) is not int or max_length < 1):
            raise ValueError(f"max_length {max_length!r}; expected a number of tokens, at least 1")
        for name, value in (("answers", answers), ("labels", labels)):
            if value is not None and not (isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)):
                raise ValueError(f"{name} {value!r:.60}; expected a list of texts")
        if region_dim is not None and (type(region_dim) is not int or region_dim < 1):
            raise ValueError(f"region_dim {region_dim!r:.60}; expected the length of a region feature, at least 1")
        if not isinstance(whole_image, bool):
            raise ValueError(f"whole_image {whole_image!r:.60}; expected true or false")
        if answers is not None and len(set(answers)) != len(answers):
            repeated = next(answer for answer in answers if answers.count(answer) > 1)
            raise ValueError(f"answer {repeated!r} is in the vocabulary twice")
        # `transformers` requires one; with precomputed regions it is never used.
        super().__init__(image_processor or VisualBertImageProcessor(), tokenizer, **kwargs)
        self.task = task
        self.answers = None if answers is None else list(answers)
        self.max_length = tokenizer.init_kwargs.get("max_length") or MAX_LENGTH if max_length is None else max_length
        self.region_dim = region_dim
        self.alignment = alignment
        self.whole_image = whole_image
        self.num_images = TASKS[task].num_images if num_images is None else num_images
        self.labels = None if labels is None else list(labels)
        self.threshold = threshold

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`, but what a bare checkpoint lacks is told, and no tokenizer is made up.

        Raises:
            OSError: There is no processor of that name, or it cannot be reached.
            ValueError: A file is damaged, or a field cannot be what it is; the message names the file. Or its
                tokenizer lacks special tokens, or has nothing else; or `truncation_side="right"` for a task
                whose texts lose their front.
        """
        name = pretrained_model_name_or_path
        check_json_files(name, *IMAGE_PROCESSOR_FILES, *TOKENIZER_FILES)
        try:
            processor = super().from_pretrained(name, *args, **kwargs)
        except Exception:  # of any type and length, and most do not name the file
            if lacking := _lacking(name, **kwargs):
                raise OSError(f"{name} has no {lacking}") from None
            with naming(_to_blame(name), name):
                raise
        check_special_tokens(processor.tokenizer, processor.task, str(name))
        if processor.task in _CUTS_THE_FRONT and kwargs.get("truncation_side") == "right":
            raise ValueError(
                f"truncation_side 'right'; expected 'left': task {processor.task!r} cuts the front of long texts, as in training"
            )
        return processor

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`; the processor is afterwards what it was before."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        for part in (self, self.image_processor):
            part.__dict__.pop("auto_map", None)  # written for `trust_remote_code`, and left behind in the objects
        return saved

    def check_model(self, config: Any, name: str = "the processor") -> None:
        """
        Refuse a model that this processor is not for.

        Args:
            config: The model's [`VisualBertConfig`].
            name: What to call the processor in an error.

        Raises:
            ValueError: The model has another vocabulary, other answers or labels, or reads features of another length.
        """
        check_tokenizer(self.tokenizer, config.vocab_size, self.task, name)
        if self.region_dim not in (None, config.visual_embedding_dim):
            raise ValueError(
                f"{name}: region_dim {self.region_dim}, but the model reads features of {config.visual_embedding_dim} numbers"
            )
        kind = "answers" if self.task == "vqa" else "labels"
        ours, theirs = getattr(self, kind), [label for _, label in sorted(config.id2label.items())]
        # A model that does not know their names.
        is_numbered = theirs == [f"LABEL_{number}" for number in range(len(theirs))]
        if ours is None or ours == theirs or (is_numbered and len(ours) == len(theirs)):
            return
        if len(ours) != len(theirs):
            raise ValueError(
                f"{name}: {len(ours)} {kind}, but the model has {len(theirs)}; expected those of its id2label"
            )
        number = next(number for number, (our, their) in enumerate(zip(ours, theirs, strict=True)) if our != their)
        raise ValueError(
            f"{name}: {kind}[{number}] is {ours[number]!r:.60}, but the model's is {theirs[number]!r:.60}; expected those of its "
            "id2label"
        )

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids",
            "attention_mask",
            "token_type_ids",
            "visual_embeds",
            "visual_attention_mask",
            "visual_token_type_ids",
            "image_text_alignment",
            "choices_mask",
            "region_to_phrase_position",
            "pixel_values",
            "pixel_mask",
            "boxes_unit",
            "image_sizes",
            "picture_windows",
            "object_classes",
            "object_masks",
        ]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[Any] | None = None,
        *,
        choices: Sequence[Any] | None = None,
        objects: Sequence[Any] | None = None,
        boxes: Any = None,
        polygons: Any = None,
        phrases: Sequence[Any] | None = None,
        regions: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            images: Images (paths, addresses, bytes, PIL images, arrays; see [`load_images`]), or precomputed regions: a mapping
                with `visual_embeds` of shape `(regions, dim)` and optionally `boxes`, `scores`, `class_ids`, `image_size`; one
                or a list of them. What `model.get_image_features` returned is accepted as it is. One image serves all texts.
                NLVR2: a pair of images or of mappings for one text, a list of pairs for a list of texts. VCR: regions start
                with that of the whole image, if there is one.
            text: A text or a list of texts. VCR texts are strings or lists of words, so a text given as words has to be in
                a list of texts.
            choices: VCR: the choices of the question; a list of such lists for a list of questions. Where some have fewer than
                others, the result has a `choices_mask` `(batch_size, num_choices)`, 0 for what fills up the number.
            objects: VCR: class names of the objects that tags stand for; a list of such lists for a list of questions.
            boxes: VCR from pixels: boxes of the objects, x1, y1, x2, y2 in pixels; a list for a list of questions.
            polygons: VCR from pixels, for the detector of the published checkpoints: for each object the polygons that
                outline it, lists of (x, y) in pixels; a list for a list of questions. Without them it fills its box.
            phrases: Flickr30k Entities: the phrases of the sentence, as strings (their first occurrence is meant) or as
                indices of their last words in the sentence split at blanks; a list of such lists for a list of sentences.
            regions: Instead of images, padded regions whose numbers are known to be good (a feature store checks them when it is
                written): `visual_embeds` `(batch_size, regions, dim)` in any precision, `visual_attention_mask` and, for pairs,
                `visual_token_type_ids`. They become part of the result as they are.
            kwargs: As in `transformers`, alone or in the groups `text_kwargs`, `images_kwargs` and `common_kwargs`:
                `text_pair` (pre-training: a second text for each text), `padding`, `max_length`, `truncation`,
                `pad_to_multiple_of`, `return_tensors` (`"pt"`, `"np"` or None), `return_attention_mask`,
                `return_token_type_ids`, and the settings of the image processor. With `truncation`, texts lose their end (or
                front, by the tokenizer's `truncation_side`); in VCR and pre-training they lose their front, as in training.

        Raises:
            TypeError: A text is not a string, or a keyword is unknown.
            ValueError: A text is empty or too long, regions are malformed, numbers of images and texts differ, or a setting
                has no meaning here.
        """
        extra = {"choices": choices, "objects": objects, "boxes": boxes, "polygons": polygons, "phrases": phrases}
        settings = read_arguments(self, kwargs)
        extra["text_pair"] = settings.text_pair
        extra = {name: value for name, value in extra.items() if value is not None}
        if images is None and text is None and regions is None:
            raise ValueError("nothing to process; expected `images`, `text` or both")
        texts, extra = self._listed_texts(text, extra)
        if regions is not None:
            visual = self._check_padded(regions, images)
        else:
            visual = {} if images is None else self._encode_visual(images, isinstance(text, str), settings)
        if "boxes" in extra:
            visual |= self._encode_boxes(extra.pop("boxes"), visual, extra.get("objects"), extra.pop("polygons", None))
        written = {} if texts is None else self._encode_texts(texts, extra, visual, settings)
        if texts is not None and visual:
            num_images = len(visual["visual_embeds"] if "visual_embeds" in visual else visual["pixel_values"])
            if num_images not in (1, len(texts)):
                raise ValueError(
                    f"{num_images} images for {len(texts)} texts; expected one image for all or one for each"
                )
        return BatchFeature(
            {**as_tensors(visual, settings.image_tensors), **as_tensors(written, settings.text_tensors)}
        )

    def _listed_texts(self, text: Any, extra: Mapping[str, Any]) -> tuple[list | None, dict[str, Any]]:
        """Texts and the arguments that belong to them, which have the same form: alone, or in a list."""
        for name in extra:
            if name not in TASKS[self.task].processor_arguments:
                raise TypeError(f"unknown argument {name!r} for task {self.task!r}")
            if name in _OF_TEXTS and text is None:
                raise ValueError(f"{name} without `text`; expected the text that they belong to")
        if text is None:
            return None, dict(extra)
        if isinstance(text, str):
            return [text], {name: [value] for name, value in extra.items()}
        if isinstance(text, (bytes, Mapping)) or not (isinstance(text, Sequence) or hasattr(text, "tolist")):
            raise TypeError(
                f"text is {type(text).__name__}; expected a question or a list of questions, after the images"
            )
        texts = list(text) if isinstance(text, Sequence) else text.tolist()  # a column of a table
        if not texts:
            raise ValueError("no texts; expected at least one question")
        for name, value in extra.items():
            if isinstance(value, str) or not hasattr(value, "__len__"):
                raise TypeError(f"{name} {value!r:.60} for a list of texts; expected a list, one for each text")
            if len(value) != len(texts):
                raise ValueError(f"{len(value)} {name} for {len(texts)} texts; expected as many")
        return texts, dict(extra)

    def _encode_visual(self, images: Any, single: bool, settings: CallSettings) -> dict[str, torch.Tensor]:
        if self.num_images == 2:
            return self._encode_pairs(images, single, settings.images)
        return self._encode_images(images, settings.images)

    def _encode_texts(
        self, texts: list, extra: dict[str, Any], images: Mapping[str, torch.Tensor], settings: CallSettings
    ) -> dict[str, torch.Tensor]:
        if self.task == "vcr":
            return self._encode_choices(texts, extra, images, settings)
        if self.task == "flickr30k":
            return self._encode_phrases(texts, extra.get("phrases"), settings)
        encoded = []
        side = "left" if self.task in _CUTS_THE_FRONT else self.tokenizer.truncation_side
        pairs = extra.get("text_pair") or [None] * len(texts)
        known = (
            read_questions(self.tokenizer, texts)
            if self.task == "vqa"
            else read_masked_texts(self.tokenizer, [*texts, *pairs])
        )
        for i, (first, second) in enumerate(zip(texts, pairs, strict=True)):
            name = f"{'question' if self.task == 'vqa' else 'text'} {i}"
            cut = settings.cut(1 if second is None else 2, name)
            if self.task == "vqa":
                encoded.append(encode_question(self.tokenizer, first, settings.max_length, name, cut, known))
            else:
                encoded.append(encode_pair(self.tokenizer, first, second, settings.max_length, cut, name, side, known))
        return self._pad(encoded, settings)

    def _encode_choices(
        self, texts: list, extra: dict[str, Any], images: Mapping[str, torch.Tensor], settings: CallSettings
    ) -> dict[str, torch.Tensor]:
        if "choices" not in extra:
            raise ValueError("no choices; expected `choices`, a list for each question")
        objects = extra.get("objects") or [[]] * len(texts)
        finds_regions = "pixel_values" in images and "boxes_unit" not in images
        if finds_regions and (self.whole_image or any(map(len, objects))):
            raise ValueError("images without boxes; expected `boxes`, those of the objects of each question")
        encoded = self._pad_choices(self._encode_each_choice(texts, extra["choices"], objects, settings))
        shape = (len(texts), len(encoded) // len(texts))
        padded = {name: tensor.unflatten(0, shape) for name, tensor in self._pad(encoded, settings).items()}
        counts = torch.tensor([len(choices) for choices in extra["choices"]])
        if (counts < shape[1]).any():
            padded["choices_mask"] = (torch.arange(shape[1]) < counts[:, None]).long()
        if finds_regions:  # no word names them
            return padded
        offset = int(self.whole_image)  # no word names the whole image
        mask = images.get("visual_attention_mask")
        num_regions = max(map(len, objects)) + offset if mask is None else mask.shape[1]
        given = [] if mask is None else mask.sum(dim=1).tolist()
        for i, names in enumerate(objects):
            count = given[i if len(given) > 1 else 0] if len(given) in (1, len(texts)) else num_regions
            if len(names) + offset > count:
                raise ValueError(f"question {i}: {len(names)} objects, but regions for {int(count) - offset}")
        alignment = pad_alignment(encoded, num_regions, offset)
        return {**padded, "image_text_alignment": alignment.unflatten(0, shape)}

    def _encode_each_choice(
        self, texts: list, listed: list, objects: list, settings: CallSettings
    ) -> list[list[EncodedText]]:
        """The choices of each question, with the question."""
        words = [text for choices in listed if isinstance(choices, (list, tuple)) for text in choices]
        known = read_choices(self.tokenizer, [*texts, *words], [name for names in objects for name in names])
        encoded = []
        for i, (question, choices, names) in enumerate(zip(texts, listed, objects, strict=True)):
            if not isinstance(choices, (list, tuple)) or not choices:
                raise ValueError(f"question {i}: choices {choices!r:.60}; expected a list of some")
            if isinstance(names, str):
                raise ValueError(f"question {i}: objects {names!r:.60}; expected a list of class names")
            cut = settings.cut(2, f"question {i}")
            encoded.append(
                [
                    encode_choice(
                        *(self.tokenizer, question, choice, names, settings.max_length, self.alignment, cut),
                        name=f"question {i}, choice {j}",
                        known=known,
                    )
                    for j, choice in enumerate(choices)
                ]
            )
        return encoded

    def _pad_choices(self, encoded: list[list[EncodedText]]) -> list[EncodedText]:
        """As many choices for each question, one after another."""
        # One token, as a text of nothing but padding has nothing to attend to where there are no regions.
        padding = EncodedText([self.tokenizer.cls_token_id], [0])
        longest = max(map(len, encoded))
        return [text for choices in encoded for text in (*choices, *[padding] * (longest - len(choices)))]

    def _encode_phrases(
        self, texts: list[str], phrases: list | None, settings: CallSettings
    ) -> dict[str, torch.Tensor]:
        encoded, positions = [], []
        sentences = (sentence.split() for sentence in texts if isinstance(sentence, str))
        known = read_texts(self.tokenizer, (word for words in sentences for word in words))
        for i, sentence in enumerate(texts):
            if not isinstance(sentence, str):
                raise TypeError(f"sentence {i} is {type(sentence).__name__}; expected a string")
            words, name = sentence.split(), f"sentence {i}"
            if phrases is not None and (isinstance(phrases[i], str) or not hasattr(phrases[i], "__iter__")):
                raise TypeError(f"{name}: phrases {phrases[i]!r:.60}; expected a list of phrases")
            cut = settings.cut(1, name)
            text, last_pieces = encode_words(self.tokenizer, words, settings.max_length, name, cut, known)
            encoded.append(text)
            places = []
            for phrase in phrases[i] if phrases is not None else ():
                places.append(last_pieces[_last_word(words, phrase, name)])
                if places[-1] < 0:
                    raise ValueError(f"{name}: phrase {phrase!r} is cut off; expected a larger max_length")
            positions.append(places)
        if phrases is None:
            return self._pad(encoded, settings)
        padded = torch.full((len(texts), max(1, *map(len, positions))), -1)
        for row, places in zip(padded, positions, strict=True):
            row[: len(places)] = torch.tensor(places, dtype=torch.long)
        return {**self._pad(encoded, settings), "region_to_phrase_position": padded}

    def _pad(self, encoded: list[EncodedText], settings: CallSettings) -> dict[str, torch.Tensor]:
        padded = pad_texts(encoded, self.tokenizer, **settings.pad)
        if (length := padded["input_ids"].shape[-1]) > self.tokenizer.model_max_length:
            raise ValueError(
                f"pad_to_multiple_of {settings.pad_to_multiple_of} makes {length} tokens; expected at most "
                f"{self.tokenizer.model_max_length}, the tokenizer's model_max_length"
            )
        for name, assumed in (("attention_mask", 1), ("token_type_ids", 0)):  # what models read where there is none
            if name not in settings.text_outputs and (padded[name] != assumed).any():
                raise ValueError(f"{name} left out; expected return_{name}=True: not all of it is {assumed}")
        return {name: padded[name] for name in settings.text_outputs}

    def _encode_images(self, images: Any, image_settings: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        if isinstance(images, Mapping):
            features = images.get("visual_embeds")
            if isinstance(features, torch.Tensor) and features.dim() == 3:
                return self._check_region_batch(images)
        listed = list_images(images)
        regions = self._check_regions(listed)
        if regions is None:
            return self._pixels(listed, image_settings)
        _refuse_settings(image_settings)
        return pad_regions(regions)

    def _encode_pairs(self, images: Any, single: bool, image_settings: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Images or regions of pairs: pixels [B, 2, 3, H, W], or the regions of both with segments 0 and 1."""
        pairs = [images] if single else images
        if isinstance(pairs, (np.ndarray, torch.Tensor)):
            pairs = list(pairs)
        if not isinstance(pairs, Sequence) or isinstance(pairs, (str, bytes)) or not len(pairs):
            raise ValueError("no images; expected a pair of images for each text")
        for i, pair in enumerate(pairs):
            is_listed = isinstance(pair, (list, tuple)) or getattr(pair, "ndim", 3) == 4
            if not is_listed or len(pair) != 2:
                found = f"a list of {len(pair)}" if is_listed else type(pair).__name__
                raise ValueError(f"images {i}: {found}; expected a pair of images")
        flat = [image for pair in pairs for image in pair]
        regions = self._check_regions(flat)
        if regions is None:
            data = self._pixels(flat, image_settings)
            return {name: value.unflatten(0, (len(pairs), 2)) for name, value in data.items()}
        _refuse_settings(image_settings)
        return pad_regions([join_regions(regions[i : i + 2]) for i in range(0, len(regions), 2)])

    def _pixels(self, images: Sequence[Any], image_settings: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return dict(self.image_processor(images, return_tensors="pt", **image_settings))

    def _check_regions(self, images: Sequence[Any]) -> list[dict[str, torch.Tensor]] | None:
        """Checked regions, or None if these are images."""
        precomputed = [isinstance(image, Mapping) and not is_undecoded(image) for image in images]
        if all(precomputed):
            return [check_regions(image, self.region_dim, f"regions {i}") for i, image in enumerate(images)]
        if any(precomputed):
            raise ValueError("images and precomputed regions in one batch; expected one kind")
        return None

    def _encode_boxes(
        self,
        boxes: Sequence[Any],
        data: Mapping[str, torch.Tensor],
        objects: Sequence[Any] | None,
        polygons: Sequence[Any] | None,
    ) -> dict[str, torch.Tensor]:
        """The box of the whole image and the given ones, normalised [B, R, 4], with their mask; for the detector of the
        published VCR checkpoints also what the objects are."""
        if "pixel_values" not in data:
            raise ValueError("boxes without images; expected images, or regions that were made of these boxes")
        sizes = data["image_sizes"].tolist()
        if len(boxes) != len(sizes):
            raise ValueError(f"boxes for {len(boxes)} images, but {len(sizes)} images; expected as many")
        checked = [
            check_regions(
                {
                    "visual_embeds": torch.zeros(len(given), 1),
                    "boxes": given if len(given) else torch.zeros(0, 4),
                    "image_size": size,
                },
                None,
                f"boxes {i}",
            )["boxes"]
            for i, (given, size) in enumerate(zip(boxes, sizes, strict=True))
        ]
        given = encode_boxes(checked, sizes, self.whole_image)
        # Beside pixels the mask has this name: the regions will be those of the boxes.
        encoded = {"boxes_unit": given["boxes_unit"], "visual_attention_mask": given["boxes_mask"]}
        if getattr(self.image_processor, "reads_objects", False):
            of_objects = self.image_processor.encode_objects(sizes, boxes, objects, polygons)
            encoded |= {name: of_objects[name] for name in ("object_classes", "object_masks")}
        return encoded

    def _check_padded(self, regions: Mapping[str, torch.Tensor], images: Any) -> dict[str, torch.Tensor]:
        """Padded regions as they are: only their keys and sizes are looked at."""
        if images is not None:
            raise ValueError("`regions` with `images`; expected one of them")
        names = ("visual_embeds", "visual_attention_mask", *(["visual_token_type_ids"] if self.num_images == 2 else []))
        if not isinstance(regions, Mapping) or {*regions} != {*names}:
            found = f"keys {', '.join(regions)}" if isinstance(regions, Mapping) else type(regions).__name__
            raise ValueError(f"regions: {found}; expected a mapping with {', '.join(names)}")
        features = regions["visual_embeds"]
        if features.dim() != 3 or self.region_dim not in (None, features.shape[-1]):
            raise ValueError(
                f"regions: 'visual_embeds' has shape {tuple(features.shape)}; expected (batch_size, regions, "
                f"{self.region_dim or 'dim'})"
            )
        for name in names[1:]:
            if regions[name].shape != features.shape[:2]:
                raise ValueError(
                    f"regions: {name!r} has shape {tuple(regions[name].shape)}; expected {tuple(features.shape[:2])}"
                )
        return {name: regions[name] for name in names}

    def _check_region_batch(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        features = batch["visual_embeds"]
        known = (
            *("visual_embeds", "visual_attention_mask", "boxes_unit", "scores", "class_ids"),
            *("attribute_ids", "attribute_scores", "cnn_regularization_loss"),
            *("last_hidden_state", "pooler_output", "hidden_states", "attentions"),  # of `get_image_features`, not read
        )
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

    def answer_scores(self, outputs: Any) -> torch.Tensor:
        """
        VQA: the probability of each answer, of shape `(batch_size, num_labels)`; `<unk>` is never an answer and has 0.

        Args:
            outputs: Output of [`VisualBertForQuestionAnswering`], or its logits of shape `(batch_size, num_labels)`.

        Raises:
            ValueError: The processor has no answers, or their number differs from that of the logits.
        """
        logits = _logits(outputs).float()
        if self.answers is None:
            raise ValueError("this processor has no answer vocabulary; pass `answers` when it is made")
        if logits.shape[-1] != len(self.answers):
            raise ValueError(
                f"{logits.shape[-1]} logits for a vocabulary of {len(self.answers)} answers; expected as many"
            )
        if UNKNOWN_ANSWER in self.answers:
            unknown = torch.tensor(self.answers.index(UNKNOWN_ANSWER), device=logits.device)
            logits = logits.index_fill(-1, unknown, -torch.inf)
        return logits.softmax(dim=-1)

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
        shares, names = self.answer_scores(outputs), self.answers or []
        known = len(names) - (UNKNOWN_ANSWER in names)
        scores, indices = shares.topk(min(top_k, known), dim=-1)
        return [
            [{"answer": names[i], "score": score} for i, score in zip(row, row_scores, strict=True)]
            for row, row_scores in zip(indices.tolist(), scores.tolist(), strict=True)
        ]

    def label_scores(self, outputs: Any) -> torch.Tensor:
        """
        NLVR2 and classification: the probability of each label, of shape `(batch_size, num_labels)`.

        Args:
            outputs: Output of [`VisualBertForVisualReasoning`], or its logits of shape `(batch_size, num_labels)`.

        Raises:
            ValueError: The number of labels differs from that of the logits.
        """
        logits, count = _logits(outputs).float(), len(self.labels or TRUTH)
        if logits.shape[-1] != count:
            raise ValueError(f"{logits.shape[-1]} logits for {count} labels; expected as many")
        return logits.softmax(dim=-1)

    def decide_labels(self, scores: torch.Tensor) -> torch.Tensor:
        """The index of the label that is the answer, by `threshold`: probabilities `(..., num_labels)` -> `(...)`."""
        if self.threshold is None:
            return scores.argmax(dim=-1)
        return (scores[..., 1].double() >= self.threshold).long()

    def post_process_visual_reasoning(self, outputs: Any, top_k: int | None = None) -> list:
        """NLVR2 and classification: `{"label": "True", "score": 0.97}` for each text, the score being the label's probability.

        Args:
            outputs: Output of [`VisualBertForVisualReasoning`], or its logits of shape `(batch_size, num_labels)`.
            top_k: If given, a list of so many labels for each text, or of all when there are fewer: the answer first (with a
                `threshold` it need not be the most probable), then by falling score.

        Raises:
            ValueError: The number of labels differs from that of the logits.
        """
        scores, names = self.label_scores(outputs), self.labels or TRUTH
        results: list = []
        for best, row in zip(self.decide_labels(scores).tolist(), scores.tolist(), strict=True):
            order = sorted(range(len(row)), key=lambda label: (label != best, -row[label]))
            ranked = [{"label": names[label], "score": row[label]} for label in order[: top_k or 1]]
            results.append(ranked[0] if top_k is None else ranked)
        return results

    def post_process_multiple_choice(self, outputs: Any) -> list[dict[str, Any]]:
        """VCR: `{"choice": 2, "scores": [0.01, 0.02, 0.96, 0.01]}` for each question, with as many scores as it has choices; of
        equal scores the first wins.

        Args:
            outputs: Output of [`VisualBertForMultipleChoice`], or its logits of shape `(batch_size, num_choices)`.
        """
        results = []
        for logits in _logits(outputs).float():
            scores = logits[logits != -torch.inf].softmax(dim=-1).tolist()  # what fills up a batch scores nothing
            results.append({"choice": scores.index(max(scores)), "scores": scores})
        return results

    def post_process_phrase_grounding(
        self,
        outputs: Any,
        regions: Sequence[Mapping[str, torch.Tensor]],
        num_phrases: Sequence[int],
        top_k: int | None = 1,
    ) -> list[list[list[dict[str, Any]]]]:
        """
        Flickr30k Entities: the best regions of each phrase of each sentence,
        `[[[{"region": 3, "box": [x1, y1, x2, y2], "score": 0.8}, ...], ...], ...]`, scores falling and in 0..1.

        Args:
            outputs: Output of [`VisualBertForRegionToPhraseAlignment`], or its logits of shape
                `(batch_size, phrases, regions)`.
            regions: For each sentence the regions of its image, as `post_process_regions` or a feature store gives
                them; boxes come back in the unit they have there, pixels.
            num_phrases: Number of phrases of each sentence.
            top_k: How many regions for each phrase; all for None, or when there are fewer.

        Raises:
            ValueError: Numbers of sentences and images differ, or there are more boxes than scores.
        """
        logits = _logits(outputs).float()
        if not len(logits) == len(regions) == len(num_phrases):
            raise ValueError(f"{len(logits)} sentences, {len(regions)} images, {len(num_phrases)} numbers of phrases")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k {top_k}; expected at least 1, or None for all")
        found = []
        for rows, image, phrases in zip(logits, regions, num_phrases, strict=True):
            boxes = image["boxes"].tolist()
            if len(boxes) > rows.shape[-1]:
                raise ValueError(f"{len(boxes)} boxes for scores of {rows.shape[-1]} regions; expected as many")
            if phrases > len(rows):
                raise ValueError(f"{phrases} phrases, but scores of {len(rows)}; expected as many")
            scores = rows[:phrases, : len(boxes)].softmax(dim=-1)
            best, order = scores.topk(min(top_k or len(boxes), len(boxes)), dim=-1)
            found.append(
                [
                    [{"region": i, "box": boxes[i], "score": score} for i, score in zip(*phrase, strict=True)]
                    for phrase in zip(order.tolist(), best.tolist(), strict=True)
                ]
            )
        return found

    def post_process_pretraining(self, outputs: Any, input_ids: torch.Tensor, top_k: int = 5) -> list[dict[str, Any]]:
        """
        What `[MASK]` stands for and whether text and image belong together, for each text:
        `{"words": [[{"word": "red", "score": 0.9}, ...], ...], "match": 0.97}`.

        Args:
            outputs: Output of [`VisualBertForPreTraining`].
            input_ids: The text that was read, of shape `(batch_size, text_length)`.
            top_k: How many words for each mask.
        """
        match = outputs["seq_relationship_logits"].float().softmax(dim=-1)[:, 1].tolist()
        results = []
        for ids, logits, score in zip(input_ids, outputs["prediction_logits"], match, strict=True):
            places = (ids == self.tokenizer.mask_token_id).nonzero()[:, 0]
            best, order = logits[places].float().softmax(dim=-1).topk(min(top_k, logits.shape[-1]), dim=-1)
            words = [
                [
                    {"word": word, "score": share}
                    for word, share in zip(self.tokenizer.convert_ids_to_tokens(row), shares, strict=True)
                ]
                for row, shares in zip(order.tolist(), best.tolist(), strict=True)
            ]
            results.append({"words": words, "match": score})
        return results

    def post_process_regions(
        self, features: Mapping[str, torch.Tensor], image_sizes: Sequence[Sequence[int]]
    ) -> list[dict[str, torch.Tensor]]:
        """What `model.get_image_features` returned -> one mapping per image, boxes in pixels of the original image."""
        return split_regions(features, image_sizes)


def _check_classification(task: str, num_images: Any, labels: Any, threshold: Any) -> None:
    """
    Raises:
        ValueError: What only texts that are classified have is given for another task, or cannot be.
    """
    for name, value in (("labels", labels), ("threshold", threshold)):
        if value is not None and task != "nlvr2":
            raise ValueError(f"{name} for task {task!r}; expected it for 'nlvr2' only")
    allowed = (1, 2) if task == "nlvr2" else (TASKS[task].num_images,)
    if num_images is not None and num_images not in allowed:
        raise ValueError(f"num_images {num_images!r} for task {task!r}; expected {' or '.join(map(str, allowed))}")
    if labels is not None and (len(labels) < 2 or len(set(labels)) != len(labels)):
        raise ValueError(f"labels {labels!r:.60}; expected at least two different names")
    if threshold is not None and (len(labels or TRUTH) != 2 or not 0 <= threshold <= 1):
        raise ValueError(
            f"threshold {threshold!r} for {len(labels or TRUTH)} labels; expected a number in [0, 1], and two labels"
        )


def _refuse_settings(image_settings: Mapping[str, Any]) -> None:
    if image_settings:
        raise ValueError(f"{next(iter(image_settings))} with precomputed regions; expected images to process")


def _last_word(words: Sequence[str], phrase: Any, where: str) -> int:
    """Index of a phrase's last word; the phrase is given as a string or as this index."""
    if isinstance(phrase, str):
        return find_phrase(words, phrase, where)
    if isinstance(phrase, bool) or not isinstance(phrase, int):
        raise TypeError(f"{where}: phrase {phrase!r}; expected a string or the index of its last word")
    if not 0 <= phrase < len(words):
        raise ValueError(f"{where}: phrase ends at word {phrase}; expected 0 to {len(words) - 1}")
    return phrase


def _lacking(name, **kwargs) -> str | None:
    """What nobody put beside a model that can be reached, with what is expected; None if it lacks nothing, or is not there."""
    options = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
    places = {key: kwargs[key] for key in options if key in kwargs}

    def is_there(*files: str) -> bool:
        try:
            return any(cached_file(name, file, **places, _raise_exceptions_for_missing_entries=False) for file in files)
        except OSError:
            return False

    if is_there(PROCESSOR_NAME, IMAGE_PROCESSOR_NAME):
        return None if is_there(*_TOKENIZER_FILES) else f"tokenizer; expected {' or '.join(_TOKENIZER_FILES)}"
    if not is_there(CONFIG_NAME):
        return None
    return (
        f"processor ({PROCESSOR_NAME}); `visualbert convert {name} FOLDER --tokenizer google-bert/bert-base-uncased "
        "--region_encoder NAME` writes a complete checkpoint (NAME: pythia-x101 for VQA, detectron-r101 for NLVR2, or your own)"
    )


def _to_blame(name: Any) -> str:
    """The file because of which a processor cannot be opened."""
    try:
        AutoTokenizer.from_pretrained(name)
    except Exception:  # of any type: that is what it is asked for
        return tokenizer_file(name)
    return f"{name}/{PROCESSOR_NAME}"


def _logits(outputs: Any) -> torch.Tensor:
    return outputs if isinstance(outputs, torch.Tensor) else outputs["logits"]


__all__ = ["UNKNOWN_ANSWER", "VisualBertProcessor"]
