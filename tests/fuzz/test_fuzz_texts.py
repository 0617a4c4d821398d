"""Recipes, facts, vocabularies, splits, annotations and trees: damaged text is refused with the file and the place."""

import shutil

import pytest
from campaign import attempt, examples, judge
from hypothesis import given, strategies
from mutations import DEPTH, DIGITS, mutate_json, mutate_text
from test_text_files import FILES, JSON_FILES, JSON_LISTS

from modeling_visualbert.publish.card import build_card, cards_folder, load_facts

FACTS = (cards_folder() / "shapes-vqa.yaml").read_bytes()
NESTED = b"a: &a [x]\n" + b"".join(
    b"%c: &%c [*%c, *%c, *%c, *%c]\n" % (n + 1, n + 1, n, n, n, n) for n in range(97, 120)
)
YAML = (
    *(
        b"based_on: a.yaml\n",
        b"a: &a [*a]\n",
        b"a: " + b"[" * DEPTH,
        b"a: " + DIGITS.encode(),
        b"a: !!python/name:os.system\n",
    ),
    *(
        NESTED,
        b"title: " + NESTED,
        b"a: 2026-13-45\n",
        b"? [a]\n: b\n",
        b"<<: {a: 1}\n",
        b"a: .nan\n",
        b"\xff",
        b"a: \x00\n",
    ),
)


@pytest.mark.parametrize("kind", sorted(FILES))
@examples(6)
@given(random=strategies.randoms(use_true_random=False))
def test_files_of_text(kind, random, tmp_path_factory):
    name, content, read = FILES[kind]
    folder = tmp_path_factory.mktemp("text")
    path = folder / name
    path.write_text(content, encoding="utf-8")
    usual = attempt(lambda: len(repr(read(path))))
    mutate = mutate_json if kind in {**JSON_FILES, **JSON_LISTS} and content != "[]" else mutate_text
    (shutil.rmtree(folder), folder.mkdir())  # what reading left there
    path.write_bytes(mutate(content.encode(), random))
    judge("text files", attempt(lambda: len(repr(read(path)))), [str(folder)], usual)


@examples(40)
@given(random=strategies.randoms(use_true_random=False))
def test_facts_of_cards(random, tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts")
    for shared in cards_folder().glob("*.yaml"):
        shutil.copy(shared, folder)
    path = folder / "a.yaml"

    def card():
        return len(build_card("me/model", load_facts(path), None, region_dim=9))

    path.write_bytes(FACTS)
    usual = attempt(card)
    path.write_bytes(random.choice([mutate_text(FACTS, random), random.choice(YAML), FACTS + random.choice(YAML)]))
    judge("facts", attempt(card), [str(path)], usual)
