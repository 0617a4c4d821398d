"""Answer vocabularies: that of the published VQA checkpoints, and one of one's own data.

The published checkpoints use the 3129 answers of Pythia's `answers_vqa.txt` (BSD-3-Clause, see `assets/NOTICE`): `<unk>` at
index 0, then the answers in code-point order. LXMERT's list has the same answers in a different order.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files

USUAL_MIN_COUNT = 9  # of VQA v2


@lru_cache
def pythia_answers() -> tuple[str, ...]:
    """The 3129 answers of the published VQA checkpoints, in the order of their logits."""
    text = (files("modeling_visualbert") / "assets" / "pythia_answers_vqa.txt").read_text(encoding="utf-8")
    return tuple(text.removesuffix("\n").split("\n"))


def build_answer_vocabulary(
    answers_per_question: Iterable[list[str]], min_count: int | None = USUAL_MIN_COUNT
) -> list[str]:
    """`<unk>`, then, in code-point order, the answers that are the most common answer of at least `min_count` questions.

    Answers are normalised like in the official evaluation before they are counted; empty ones are left out. The usual 3129
    answers of VQA v2 train + val were built this way (`min_count` 9). If several answers of a question are equally common, the
    first one counts.

    With `min_count` None it is 9 too, or, where that would give up the answers of more than a tenth of the questions, the largest
    number that does not.
    """
    import pyarrow as pa

    from .data.given_answers import GivenAnswers  # not imported by those who only answer

    return GivenAnswers(pa.chunked_array([pa.array(answers_per_question, pa.list_(pa.string()))])).vocabulary(min_count)


__all__ = ["build_answer_vocabulary", "pythia_answers"]
