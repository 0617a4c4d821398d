"""What is in an image, according to the questions about it: "what is on the table" says that there is a table."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

_WORD = re.compile(r"[^\W_]+")


def answers_in_questions(
    questions: Iterable[str], image_ids: Iterable[Hashable], answers: Sequence[str]
) -> dict[Hashable, list[int]]:
    """The answers that the questions about each image mention, in singular or plural, in one word or several.

    Only questions are read: a model that learned an image's *answers* would look them up instead of the image.

    Args:
        questions: Those of training.
        image_ids: The image of each.
        answers: The vocabulary. Answers without a letter are no things, so they are not looked for.

    Returns:
        By image, the sorted numbers of its answers; images without any are left out.
    """
    number_of: dict[str, int] = {}
    longest = 1
    for number, answer in enumerate(answers):
        words = _WORD.findall(answer.lower())
        if any(character.isalpha() for character in answer):
            longest = max(longest, len(words))
            for form in _forms(words):
                number_of.setdefault(form, number)
    found: dict[Hashable, set[int]] = defaultdict(set)
    for question, image_id in zip(questions, image_ids, strict=True):
        words = _WORD.findall(question.lower())
        for length in range(1, longest + 1):
            for start in range(len(words) - length + 1):
                forms = _forms(words[start : start + length])
                found[image_id].update(number_of[form] for form in forms if form in number_of)
    return {image_id: sorted(numbers) for image_id, numbers in found.items() if numbers}


def _forms(words: Sequence[str]) -> tuple[str, ...]:
    """`night_stand`, "night stand" and "nightstands" are the same."""
    joined = "".join(words)
    return (joined, joined.removesuffix("s")) if joined.endswith("s") else (joined,)


__all__ = ["answers_in_questions"]
