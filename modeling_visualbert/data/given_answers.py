"""What the annotators of a VQA data set answered, counted without walking through millions of answers: the answer vocabulary, and
how many questions a vocabulary covers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features, Value

from ..answers import USUAL_MIN_COUNT
from ..hub_code.processing_visualbert import UNKNOWN_ANSWER
from ..metrics import vqa as rules
from ..metrics.vqa import normalise_answer
from .cache import Notes, batches, cached_table, content_of
from .columns import column_of

_BLOCK = 1 << 16  # questions that are counted at once
_NORMALISED = Features({"answer": Value("string")})


class GivenAnswers:
    """The answers to all questions of a split, of which only the different ones are looked at in Python.

    Args:
        answers: Those of each question, as a column of lists.
    """

    def __init__(self, answers: pa.ChunkedArray):
        self._answers = answers
        self._texts = pc.unique(pc.list_flatten(answers))
        self._normalised = _normalise(self._texts)

    def vocabulary(self, min_count: int | None = USUAL_MIN_COUNT) -> list[str]:
        """The answer vocabulary, see [`~modeling_visualbert.answers.build_answer_vocabulary`]."""
        counts = self._most_common()
        if min_count is None:
            enough = 0.9 * sum(counts.values())
            kept = {limit: sum(n for n in counts.values() if n >= limit) for limit in range(USUAL_MIN_COUNT, 0, -1)}
            min_count = next(limit for limit, questions in kept.items() if questions >= enough)
        return [UNKNOWN_ANSWER, *sorted(answer for answer, count in counts.items() if count >= min_count and answer)]

    def count_covered(self, vocabulary: Iterable[str]) -> int:
        """Questions of which an answer is in the vocabulary."""
        known = set(vocabulary)
        is_known = np.array([answer in known for answer in self._normalised], dtype=bool)
        return sum(len(np.unique(question[is_known[answer]])) for question, answer in self._blocks())

    def _most_common(self) -> dict[str, int]:
        """For each normalised answer the number of questions whose most common answer it is."""
        different = {answer: number for number, answer in enumerate(dict.fromkeys(self._normalised))}
        number_of = np.array([different[answer] for answer in self._normalised], dtype=np.int64)
        counts = np.zeros(len(different), dtype=np.int64)
        for question, answer in self._blocks():
            pairs = question * len(different) + number_of[answer]
            pairs, first, times = np.unique(pairs, return_index=True, return_counts=True)
            question = pairs // len(different)
            best = np.lexsort((first, -times, question))
            best = best[np.flatnonzero(np.diff(question[best], prepend=-1))]  # the first place of each question
            counts += np.bincount(pairs[best] % len(different), minlength=len(different))
        return {answer: int(counts[number]) for answer, number in different.items() if counts[number]}

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each answer to some questions the number of the question and of the text."""
        for start in range(0, len(self._answers), _BLOCK):
            block = pa.concat_arrays(self._answers.slice(start, _BLOCK).chunks)
            lengths = pc.fill_null(pc.list_value_length(block), 0).to_numpy()
            numbers = pc.index_in(block.flatten(), self._texts).to_numpy()
            yield np.repeat(np.arange(len(block)), lengths), numbers


def _normalise(texts: pa.Array) -> list[str]:
    """The texts as in the official evaluation. Hundreds of thousands take seconds, and are kept."""

    def read(notes: Notes) -> Iterator[pa.Table]:
        return batches(({"answer": normalise_answer(text)} for text in texts.to_pylist()), _NORMALISED)

    digest = hashlib.sha256()
    for buffer in filter(None, texts.buffers()):
        digest.update(buffer)
    depends_on = [content_of(path)[1] for path in (rules.__file__, str(rules.TABLES_FILE))]
    rows, _ = cached_table("answers", _NORMALISED, read, texts.nbytes, digest.hexdigest(), depends_on)
    return column_of(rows, "answer").to_pylist()


__all__ = ["GivenAnswers"]
