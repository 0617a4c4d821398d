"""Keyword arguments of the processor, in the groups of `transformers` -> settings of a call. What has no meaning here is refused
by name instead of ignored.

A setting is looked for in this order: a keyword of the call or of `text_kwargs` and `images_kwargs`, `common_kwargs`, what the
tokenizer was loaded with, the processor's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from transformers import ProcessorMixin
from transformers.processing_utils import ImagesKwargs, TextKwargs
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import PaddingStrategy

from .image_processing_visualbert import check_return_tensors

# What a tokenizer can do, but not beside regions or with the texts of this model.
_REFUSED = (
    *("text_target", "text_pair_target", "stride", "is_split_into_words", "return_overflowing_tokens"),
    *("return_special_tokens_mask", "return_offsets_mapping", "return_length", "return_mm_token_type_ids"),
    *("return_text_replacement_offsets", "sanitize_control_tokens"),
)
_GROUPS = ("text_kwargs", "images_kwargs", "common_kwargs")


@dataclass(frozen=True)
class CallSettings:
    """
    What a call of the processor says beside images and texts.

    Args:
        padding: As in tokenizers.
        max_length: Longest text in tokens.
        truncation: Whether longer texts are cut; True, or the strategy by name for a single text.
        pad_to_multiple_of, padding_side: As in tokenizers.
        text_outputs: Names of the text's own tensors that are wanted.
        text_pair: Second texts.
        text_tensors, image_tensors: `return_tensors` of both.
        images: Arguments of the image processor.
    """

    padding: bool | str
    max_length: int
    truncation: bool | str
    pad_to_multiple_of: int | None
    padding_side: str | None
    text_outputs: tuple[str, ...]
    text_pair: Any
    text_tensors: str | None
    image_tensors: str | None
    images: dict[str, Any]

    @property
    def pad(self) -> dict[str, Any]:
        """Arguments of [`pad_texts`]."""
        names = ("padding", "max_length", "pad_to_multiple_of", "padding_side")
        return {name: getattr(self, name) for name in names}

    def cut(self, num_texts: int, name: str) -> bool:
        """Whether texts that are too long are cut.

        Raises:
            ValueError: A strategy is named that has no meaning for this number of texts.
        """
        fits = num_texts == 1 and self.truncation in ("longest_first", "only_first")
        if isinstance(self.truncation, str) and not fits:
            rule = ", which cuts the front of the first text down to 32 word pieces, then that of the second"
            raise ValueError(f"{name}: truncation {self.truncation!r}; expected True{rule if num_texts == 2 else ''}")
        return bool(self.truncation)


def read_arguments(processor: ProcessorMixin, kwargs: Mapping[str, Any]) -> CallSettings:
    """The settings of a call with these keyword arguments.

    Raises:
        TypeError: A keyword is unknown.
        ValueError: A value is not possible, or is given twice.
    """
    _check_names(processor, kwargs)
    # A tokenizer's own `max_length` is what the processor's is made of.
    of_tokenizer = {name: value for name, value in processor.tokenizer.init_kwargs.items() if name != "max_length"}
    try:
        merged = processor._merge_kwargs(tokenizer_init_kwargs=of_tokenizer, **kwargs)
        text, images = merged["text_kwargs"], merged["images_kwargs"]
        text_pair = text.pop("text_pair", None)
        validate_typed_dict(TextKwargs, text)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(" ".join(str(error).split())) from error  # their messages have several lines
    text |= {name: merged[name] for name in _REFUSED if name in merged}
    for name in _REFUSED:
        if text.get(name):
            raise ValueError(f"{name} {text[name]!r:.60}; expected none: this processor does not do that")
    for name in ("max_length", "pad_to_multiple_of"):
        if text.get(name) is not None and text[name] < 1:
            raise ValueError(f"{name} {text[name]}; expected at least 1")
    if text.get("add_special_tokens") is False:
        raise ValueError("add_special_tokens False; expected True: the model reads [CLS], [SEP] and [MASK]")
    named = processor.tokenizer.init_kwargs.get("model_input_names", ("attention_mask", "token_type_ids"))
    wanted = {name: text.get(f"return_{name}", name in named) for name in ("attention_mask", "token_type_ids")}
    padding = _plain(text.get("padding"), PaddingStrategy)
    truncation = _plain(text.get("truncation"), TruncationStrategy)
    return CallSettings(
        padding=False if padding in (None, "do_not_pad") else padding,
        max_length=_longest(processor, text.get("max_length")),
        truncation=False if truncation in (None, "do_not_truncate") else truncation,
        pad_to_multiple_of=text.get("pad_to_multiple_of"),
        padding_side=text.get("padding_side"),
        text_outputs=("input_ids", *(name for name, is_wanted in wanted.items() if is_wanted is not False)),
        text_pair=text_pair,
        text_tensors=check_return_tensors(text.get("return_tensors")),
        image_tensors=check_return_tensors(images.pop("return_tensors", None)),
        images=images,
    )


def _check_names(processor: ProcessorMixin, kwargs: Mapping[str, Any]) -> None:
    """Refuse keywords that `transformers` would drop with a warning."""
    of_images = {*ImagesKwargs.__annotations__, *processor.image_processor.valid_kwargs.__annotations__}
    known = {"text_kwargs": {*TextKwargs.__annotations__}, "images_kwargs": of_images}
    known["common_kwargs"] = known["text_kwargs"] & of_images
    for name, value in kwargs.items():
        if name in _GROUPS:
            if not isinstance(value, Mapping):
                raise TypeError(f"{name} is {type(value).__name__}; expected a dict")
            if unknown := sorted(set(value) - known[name]):
                raise TypeError(f"unknown argument {unknown[0]!r} in {name}")
        elif name not in known["text_kwargs"] | of_images:
            raise TypeError(f"unknown argument {name!r} for task {processor.task!r}")


def _plain(value: Any, strategies: Any) -> Any:
    """A strategy by its name; booleans and None as they are."""
    return strategies(value).value if isinstance(value, str) else value


def _longest(processor: ProcessorMixin, asked: int | None) -> int:
    limit = processor.tokenizer.model_max_length
    if asked is not None and asked > limit:
        raise ValueError(f"max_length {asked}; expected at most {limit}, the tokenizer's model_max_length")
    return min(processor.max_length, limit) if asked is None else asked


__all__ = ["CallSettings", "read_arguments"]
