"""Text in the form that the authors trained on: the words of each task -> word pieces, segments and, for words that name
objects, their positions.

A VCR text is a list of words; a word such as "[0]" or "[0,2]" is a *tag* and stands for objects. In a string tags may be written
the same way, as in "What color is [0]?".
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain

import numpy as np
import torch

# The authors' names for people, in order of first mention; the list holds "Peyton" twice, as theirs does.
NAMES = (
    *("Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton", "Kerry", "Jody", "Kendall"),
    *("Peyton", "Skyler", "Frankie", "Pat", "Quinn"),
)
MIN_CONTEXT = 32  # pieces of the context that stay when a pair is too long
_TAG = re.compile(r"\[\d+(?:,\s*\d+)*\]")


@dataclass
class EncodedText:
    """Word pieces of one text with special tokens; `alignment` maps a region to the positions of the pieces that name it."""

    input_ids: list[int]
    token_type_ids: list[int]
    alignment: dict[int, list[int]] = field(default_factory=dict)


def check_tokenizer(tokenizer, vocab_size: int, task: str | None = None, name: str = "tokenizer") -> None:
    """
    Refuse a tokenizer that does not fit a model.

    Args:
        tokenizer: A BERT tokenizer.
        vocab_size: Number of word pieces of the model.
        task: Task of the processor; VQA needs `?` as a word piece.
        name: What to call the tokenizer in an error.

    Raises:
        ValueError: It has another size, or lacks a special token.
    """
    if len(tokenizer) != vocab_size:
        raise ValueError(
            f"{name}: a tokenizer of {len(tokenizer)} word pieces, but the model has {vocab_size}; expected the tokenizer that "
            "the model was trained with"
        )
    ids = tokenizer.get_vocab().values()
    if len(set(ids)) != vocab_size or max(ids) >= vocab_size:
        raise ValueError(f"{name}: the tokenizer's word pieces are not numbered from 0 to {vocab_size - 1}, each once")
    check_special_tokens(tokenizer, task, name)


def check_special_tokens(tokenizer, task: str | None = None, name: str = "tokenizer") -> None:
    """
    Refuse a tokenizer without the tokens that every text has; see [`check_tokenizer`].

    Raises:
        ValueError: It lacks one of them.
    """
    tokens = ("cls_token", "sep_token", "mask_token", "pad_token", "unk_token")
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, (int, float)) or not longest > 0:
        raise ValueError(f"{name}: the tokenizer has model_max_length {longest!r:.60}; expected a number of tokens")
    named = {token: getattr(tokenizer, token, None) for token in tokens}
    wanted = [*named.values(), *(["?"] if task == "vqa" else [])]
    vocabulary = tokenizer.get_vocab()
    if not set(vocabulary) - set(tokenizer.all_special_tokens):  # what `AutoTokenizer` makes up where there is none
        raise ValueError(
            f"{name}: the tokenizer has no word pieces; expected a BERT tokenizer, tokenizer.json or vocab.txt"
        )
    for text, token in zip(wanted, [*named, "the question mark"], strict=False):
        if text is None or text not in vocabulary:
            raise ValueError(
                f"{name}: the tokenizer has no {text or token}; expected a BERT tokenizer with [CLS], [SEP], "
                "[MASK], [PAD], [UNK]" + (" and ?" if task == "vqa" else "")
            )


def read_texts(tokenizer, texts: Iterable[str]) -> dict[str, list[int]]:
    """Word pieces of texts, by text: one call of the tokenizer for all is several times as fast as one for each."""
    control = _control_tokens(tokenizer)
    listed = list(dict.fromkeys(texts))
    plain = [text for text in listed if not control.search(text)]
    pieces = {text: _pieces(tokenizer, text) for text in listed if control.search(text)}
    if plain:
        pieces |= zip(
            plain, tokenizer(plain, add_special_tokens=False, split_special_tokens=False)["input_ids"], strict=True
        )
    return pieces


def read_questions(tokenizer, questions: Iterable[object]) -> dict[str, list[int]]:
    """Word pieces of what [`encode_question`] reads of questions, by question."""
    words = {question: _question_words(tokenizer, question) for question in questions if isinstance(question, str)}
    pieces = read_texts(tokenizer, words.values())
    return {question: pieces[text] for question, text in words.items()}


def read_masked_texts(tokenizer, texts: Iterable[object]) -> dict[str, list[int]]:
    """Word pieces of the parts between masks that [`encode_pair`] reads."""
    parts = (text.split(tokenizer.mask_token) for text in texts if isinstance(text, str))
    return read_texts(tokenizer, (part for listed in parts for part in listed))


def read_choices(tokenizer, texts: Iterable[object], objects: Iterable[object]) -> dict[str, list[int]]:
    """Word pieces of the words that [`encode_choice`] reads: those of the texts, and names of objects and people."""
    listed = (split_tags(text) for text in texts if isinstance(text, (str, list, tuple)))
    words = (word for text in listed for word in text if isinstance(word, str) and not tag_objects(word))
    return read_texts(tokenizer, chain(words, NAMES, (name for name in objects if isinstance(name, str))))


def encode_question(
    tokenizer,
    question: str,
    max_length: int,
    name: str = "question",
    truncation: bool = False,
    known: Mapping[str, list[int]] | None = None,
) -> EncodedText:
    """VQA: `[CLS] where is the cat ? [MASK] [SEP]`, without commas and other question marks, and lower-cased unless the
    tokenizer is for cased text. Truncation keeps `?` and `[MASK]`, from which the answer is read. `known` is what
    [`read_questions`] returned.

    Raises:
        TypeError: The question is not a string.
        ValueError: It is empty, or it is too long and `truncation` is off.
    """
    text = _string(question, name)
    pieces = _pieces(tokenizer, _question_words(tokenizer, text)) if known is None else known[text]
    if not pieces:
        raise ValueError(f"{name} is empty ({question!r}); expected at least one word")
    marks = [tokenizer.convert_tokens_to_ids("?"), tokenizer.mask_token_id]
    if truncation:
        pieces = cut(pieces, max_length - len(marks) - 2, tokenizer.truncation_side, max_length, name)
    return _assemble(tokenizer, [*pieces, *marks], None, max_length, name, question)


def encode_pair(
    tokenizer,
    first: str,
    second: str | None,
    max_length: int,
    truncation: bool = False,
    name: str = "text",
    truncation_side: str = "left",
    known: Mapping[str, list[int]] | None = None,
) -> EncodedText:
    """`[CLS] first [SEP]` or `[CLS] first [SEP] second [SEP]` with segments 0 and 1. "[MASK]" in the text is a mask.

    Texts that are too long together lose their front, see [`encode_choice`]; a single one loses `truncation_side`. `known` is
    what [`read_masked_texts`] returned.

    Raises:
        TypeError: A text is not a string.
        ValueError: A text is empty, or it is too long and `truncation` is off.
    """
    texts = (first,) if second is None else (first, second)
    parts = [_masked_pieces(tokenizer, _string(text, name), known) for text in texts]
    for text, part in zip(texts, parts, strict=True):
        if not part:
            raise ValueError(f"{name} is empty ({text!r}); expected at least one word")
    if truncation and second is None:
        parts = [cut(parts[0], max_length - 2, truncation_side, max_length, name)]
    elif truncation:
        parts = list(_cut_front(parts[0], parts[1], max_length, name))
    return _assemble(tokenizer, parts[0], parts[1] if len(parts) > 1 else None, max_length, name, first)


def encode_words(
    tokenizer,
    words: Sequence[str],
    max_length: int,
    name: str = "sentence",
    truncation: bool = False,
    known: Mapping[str, list[int]] | None = None,
) -> tuple[EncodedText, list[int]]:
    """`[CLS] words [SEP]`, and the position of the last piece of each word (paper, section 4.4); -1 for one that was cut off.
    `known` is what [`read_texts`] returned for words.

    Raises:
        ValueError: There are no words, or they are too long and `truncation` is off.
    """
    pieces: list[int] = []
    last = []
    for word in words:
        pieces += _pieces(tokenizer, word, known)
        last.append(len(pieces))  # the leading [CLS] makes up for counting from 0
    if not pieces:
        raise ValueError(f"{name} is empty ({' '.join(words)!r}); expected at least one word")
    if truncation:
        side, count = tokenizer.truncation_side, len(pieces)
        pieces = cut(pieces, max_length - 2, side, max_length, name)
        shift = count - len(pieces) if side == "left" else 0
        last = [place - shift if 0 < place - shift <= len(pieces) else -1 for place in last]
    return _assemble(tokenizer, pieces, None, max_length, name, " ".join(words)), last


def encode_choice(
    tokenizer,
    context: str | Sequence[str],
    choice: str | Sequence[str],
    objects: Sequence[str],
    max_length: int,
    alignment: str = "subword",
    truncation: bool = True,
    name: str = "choice",
    known: Mapping[str, list[int]] | None = None,
) -> EncodedText:
    """VCR: `[CLS] context [SEP] choice [SEP]` with object tags replaced by names.

    People get gender-neutral names in the order of their first mention, everything else its class word. The result's
    `alignment` maps object numbers to positions.

    Args:
        tokenizer: A BERT tokenizer.
        context, choice: Strings or lists of words, with tags.
        objects: Class name of each object.
        max_length: Longest text in pieces.
        alignment: `"subword"`: the positions of all pieces of a name. `"original"`: the authors' code, which adds the
            index of the *word* to the offset of its part where that of the piece was meant.
        truncation: Whether a pair that is too long loses pieces from the front, of the context down to 32 pieces and
            then of the choice, as the authors do. Otherwise it is an error.
        name: What to call the text in an error.
        known: What [`read_choices`] returned.

    Raises:
        TypeError: A text is neither a string nor a list of words.
        ValueError: A tag has no object, a part is empty, or the text is too long.
    """
    names: dict[int, str] = {}
    parts, mentions = [], []
    for text in (context, choice):
        if not (isinstance(text, str) or (isinstance(text, Sequence) and all(isinstance(word, str) for word in text))):
            raise TypeError(f"{name}: {text!r:.60}; expected a string or a list of words")
        pieces, mentioned = _named_pieces(tokenizer, split_tags(text), objects, names, alignment, name, known)
        if not pieces:
            raise ValueError(f"{name}: an empty text; expected at least one word")
        parts.append(pieces)
        mentions.append(mentioned)
    kept = _cut_front(parts[0], parts[1], max_length, name) if truncation else (parts[0], parts[1])
    encoded = _assemble(tokenizer, kept[0], kept[1], max_length, name, " ".join(split_tags(choice)))
    offset = 1  # [CLS]
    for mentioned, before, after in zip(mentions, parts, kept, strict=True):
        cut = len(before) - len(after)
        for region, place in mentioned:
            if place >= cut:
                encoded.alignment.setdefault(region, []).append(place - cut + offset)
        offset += len(after) + 1
    return encoded


def mask_pieces(
    input_ids: Sequence[int], tokenizer, generator: torch.Generator, probability: float = 0.15
) -> tuple[list[int], list[int]]:
    """Masked-LM input and labels: each piece is chosen with this probability, special tokens never; of those chosen 80% become
    `[MASK]`, 10% a random piece, 10% stay. Labels are -100 where nothing is to be predicted (paper, section 3.3, after BERT).
    """
    special = set(tokenizer.all_special_ids)
    draws = torch.rand(len(input_ids), 2, generator=generator).tolist()
    random_ids = torch.randint(len(tokenizer), (len(input_ids),), generator=generator).tolist()
    masked, labels = list(input_ids), [-100] * len(input_ids)
    for place, (piece, (choice, kind)) in enumerate(zip(input_ids, draws, strict=True)):
        if piece in special or choice >= probability:
            continue
        labels[place] = piece
        if kind < 0.8:
            masked[place] = tokenizer.mask_token_id
        elif kind < 0.9:
            masked[place] = random_ids[place]
    return masked, labels


def pad_texts(
    encoded: Sequence[EncodedText],
    tokenizer,
    padding=True,
    max_length: int | None = None,
    pad_to_multiple_of=None,
    padding_side: str | None = None,
) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `token_type_ids` [B, T], padded on the right: answers are read at positions counted
    from the left.

    Raises:
        ValueError: `padding_side`, or that of the tokenizer, is "left"; or texts of different lengths are not to be padded.
    """
    if (padding_side or tokenizer.padding_side) != "right":
        raise ValueError(
            "padding_side 'left'; expected 'right': VisualBERT counts the positions of words from the left"
        )
    lengths = sorted({len(text.input_ids) for text in encoded})
    if padding in (False, None, "do_not_pad") and len(lengths) > 1:
        raise ValueError(
            f"texts of {lengths[0]} to {lengths[-1]} tokens with padding={padding!r}; expected padding=True or 'max_length'"
        )
    width = lengths[-1]
    if padding == "max_length":
        width = max(width, max_length or tokenizer.model_max_length)
    if pad_to_multiple_of and padding not in (False, None, "do_not_pad"):
        width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
    # `tokenizer.pad` does the same in ten times the time.
    ids = np.full((len(encoded), width), tokenizer.pad_token_id)
    segments = np.full(ids.shape, tokenizer.pad_token_type_id)
    mask = np.zeros_like(ids)
    for row, text in enumerate(encoded):
        length = len(text.input_ids)
        ids[row, :length], segments[row, :length], mask[row, :length] = text.input_ids, text.token_type_ids, 1
    padded = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    return {name: torch.from_numpy(array) for name, array in padded.items()}


def pad_alignment(encoded: Sequence[EncodedText], num_regions: int, offset: int = 0) -> torch.Tensor:
    """[B, R, A] text positions of each region, -1 where there is none; object 0 is region `offset`.

    Raises:
        ValueError: An object has no region.
    """
    longest = max((len(places) for text in encoded for places in text.alignment.values()), default=1)
    tensor = torch.full((len(encoded), num_regions, longest), -1)
    for row, text in zip(tensor, encoded, strict=True):
        for region, places in text.alignment.items():
            if region + offset >= num_regions:
                raise ValueError(f"object {region} has no region; there are {num_regions - offset} for objects")
            row[region + offset, : len(places)] = torch.tensor(places)
    return tensor


def split_tags(text: str | Sequence[str]) -> list[str]:
    """Words and tags of a text; punctuation after a tag becomes a word of its own."""
    if not isinstance(text, str):
        return list(text)
    return _TAG.sub(lambda match: " " + "".join(match[0].split()) + " ", text).split()


def tag_objects(word: str) -> list[int]:
    """Object numbers of a tag; empty for an ordinary word."""
    return [int(number) for number in word[1:-1].split(",")] if _TAG.fullmatch(word) else []


def find_phrase(words: Sequence[str], phrase: str, where: str) -> int:
    """Index of the last word of the first place where a phrase stands in the sentence, whatever the case.

    Raises:
        ValueError: It does not stand there.
    """
    sought, lowered = phrase.lower().split(), [word.lower() for word in words]
    for start in range(len(words) - len(sought) + 1):
        if sought and lowered[start : start + len(sought)] == sought:
            return start + len(sought) - 1
    raise ValueError(f"{where}: phrase {phrase!r} is not in the sentence {' '.join(words)!r}")


def _named_pieces(
    tokenizer,
    words: Sequence[str],
    objects: Sequence[str],
    names: dict[int, str],
    alignment: str,
    where: str,
    known: Mapping[str, list[int]] | None,
) -> tuple[list[int], list[tuple[int, int]]]:
    """Word pieces with tags replaced, and (object, place of a piece or word) for each piece or word that names one."""
    pieces: list[int] = []
    mentioned: list[tuple[int, int]] = []
    number_of_words = 0
    for word in words:
        for region in tag_objects(word) or (None,):
            new = _pieces(tokenizer, word if region is None else _object_name(region, objects, names, where), known)
            if region is not None and alignment == "original":
                mentioned.append((region, number_of_words))
            elif region is not None:
                mentioned += [(region, len(pieces) + i) for i in range(len(new))]
            pieces += new
            number_of_words += 1
    return pieces, mentioned


def _object_name(region: int, objects: Sequence[str], names: dict[int, str], where: str) -> str:
    if region >= len(objects):
        expected = f"0 to {len(objects) - 1}" if objects else "no tag"
        raise ValueError(f"{where}: tag [{region}], but there are {len(objects)} objects; expected {expected}")
    if objects[region] != "person":
        return objects[region]
    return names.setdefault(region, NAMES[len(names) % len(NAMES)])


def cut(pieces: list[int], room: int, side: str, max_length: int, name: str) -> list[int]:
    """The pieces that fit, without those on the `side` ("left" or "right") that do not.

    Raises:
        ValueError: There is no room at all beside the special tokens of `max_length`, or no such side.
    """
    if side not in ("left", "right"):
        raise ValueError(f"truncation_side {side!r}; expected 'left' or 'right'")
    if room < 1:
        raise ValueError(f"{name}: max_length {max_length}; expected at least {max_length - room + 1}")
    return pieces[-room:] if side == "left" else pieces[:room]


def _cut_front(context: list[int], choice: list[int], max_length: int, name: str) -> tuple[list[int], list[int]]:
    """Cut the front of a pair that is too long: the context down to `MIN_CONTEXT` pieces, then the choice, and when one piece
    of it is left the context again."""
    room = max_length - 3
    if room < 2:
        raise ValueError(f"{name}: max_length {max_length}; expected at least 5 for two texts")
    of_context = min(len(context), max(room - len(choice), min(MIN_CONTEXT, room - 1)))
    return context[-of_context:], choice[-(room - of_context) :]


def _assemble(
    tokenizer, first: list[int], second: list[int] | None, max_length: int, name: str, text: str
) -> EncodedText:
    ids = [tokenizer.cls_token_id, *first, tokenizer.sep_token_id]
    segments = [0] * len(ids)
    if second is not None:
        ids += [*second, tokenizer.sep_token_id]
        segments += [1] * (len(second) + 1)
    if len(ids) > max_length:
        raise ValueError(f"{name} has {len(ids)} tokens ({text[:40]!r}...); expected at most {max_length}")
    return EncodedText(ids, segments)


def _masked_pieces(tokenizer, text: str, known: Mapping[str, list[int]] | None) -> list[int]:
    """Pieces of a text in which "[MASK]" is the mask token."""
    pieces: list[int] = []
    for number, part in enumerate(text.split(tokenizer.mask_token)):
        pieces += [tokenizer.mask_token_id] * (number > 0) + _pieces(tokenizer, part, known)
    return pieces


def _question_words(tokenizer, question: str) -> str:
    """The words of a question as the authors wrote them, tokens that were added to the vocabulary as they are."""

    def plain(text: str) -> str:
        lowered = text if getattr(tokenizer, "do_lower_case", True) is False else text.lower()
        return lowered.replace(",", " ").replace("?", " ")

    added = _any_of(tuple(token.content for token in tokenizer.added_tokens_decoder.values()))
    parts = added.split(question)  # every second one is an added token
    return " ".join("".join(part if i % 2 else plain(part) for i, part in enumerate(parts)).split())


def _pieces(tokenizer, text: str, known: Mapping[str, list[int]] | None = None) -> list[int]:
    """Word pieces, those that are `known` without reading the text again. A user who writes "[SEP]" gets a bracket, letters and a
    bracket, not the control token; tokens that were added to the vocabulary are tokens."""
    if known is not None and text in known:
        return known[text]
    pieces: list[int] = []
    for i, part in enumerate(_control_tokens(tokenizer).split(text)):
        if part:
            pieces += tokenizer(part, add_special_tokens=False, split_special_tokens=i % 2 == 1)["input_ids"]
    return pieces


def _control_tokens(tokenizer) -> re.Pattern:
    return _any_of(tuple(token for token in tokenizer.special_tokens_map.values() if isinstance(token, str)))


@lru_cache(maxsize=64)
def _any_of(tokens: tuple[str, ...]) -> re.Pattern:
    """A pattern that splits a text at any of the tokens, the longest first, and keeps them."""
    escaped = [re.escape(token) for token in sorted(tokens, key=len, reverse=True)]
    return re.compile(f"({'|'.join(escaped)})" if escaped else "(?!)")


def _string(text: object, name: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{name} is {type(text).__name__}; expected a string")
    return text


__all__ = [
    "EncodedText",
    "check_special_tokens",
    "check_tokenizer",
    "encode_choice",
    "encode_pair",
    "encode_question",
    "encode_words",
    "find_phrase",
    "mask_pieces",
    "pad_alignment",
    "pad_texts",
    "read_choices",
    "read_masked_texts",
    "read_questions",
    "read_texts",
    "split_tags",
    "tag_objects",
]
