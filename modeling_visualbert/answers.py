"""The answer vocabulary of the published VQA checkpoints. One of one's own data: `data/given_answers.py`.

The published checkpoints use the 3129 answers of Pythia's `answers_vqa.txt` (BSD-3-Clause, see `assets/NOTICE`): `<unk>` at
index 0, then the answers in code-point order. LXMERT's list has the same answers in a different order.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files


@lru_cache
def pythia_answers() -> tuple[str, ...]:
    """The 3129 answers of the published VQA checkpoints, in the order of their logits."""
    text = (files("modeling_visualbert") / "assets" / "pythia_answers_vqa.txt").read_text(encoding="utf-8")
    return tuple(text.removesuffix("\n").split("\n"))


__all__ = ["pythia_answers"]
