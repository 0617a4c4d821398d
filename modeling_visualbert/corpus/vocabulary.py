"""The WordPiece vocabulary of the embedded corpus: every word of its texts is one piece, other words are spelled out.

It ships in `assets/corpus_tokenizer`, so that nothing has to be downloaded. `python -m modeling_visualbert.corpus.vocabulary`
rewrites it; a test checks that it covers the texts.
"""

from __future__ import annotations

import string
from pathlib import Path

from transformers import BertTokenizer

from .questions import PLURALS
from .scenes import COLORS, SHAPES, SIZES

ASSETS = Path(__file__).resolve().parent.parent / "assets"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = """
a above an and are below big bigger by can color do does each every everything have how in is it large larger left less
little many more number object objects of on or picture right same scene see shape shapes side size small smaller than that
top bottom half or fewer the there they you thing things this to two under which with what whose where who
among at both contains does exactly fewer how image images it least like look neither nothing only other show shows them together
no yes zero one two three four five six seven eight nine ten
"""


def corpus_vocabulary() -> list[str]:
    """Special tokens, characters (alone and as continuations), then words in alphabetical order."""
    characters = string.punctuation + string.digits + string.ascii_lowercase
    pieces = [*characters, *(f"##{c}" for c in string.digits + string.ascii_lowercase)]
    words = {*_WORDS.split(), *COLORS, *SHAPES, *PLURALS.values(), *SIZES} - set(pieces)
    return [*_SPECIAL, *pieces, *sorted(words)]


def corpus_tokenizer() -> BertTokenizer:
    """The BERT tokenizer with the corpus vocabulary."""
    return BertTokenizer.from_pretrained(ASSETS / "corpus_tokenizer")


if __name__ == "__main__":
    BertTokenizer(
        vocab={piece: i for i, piece in enumerate(corpus_vocabulary())}, model_max_length=128
    ).save_pretrained(ASSETS / "corpus_tokenizer")
