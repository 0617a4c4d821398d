"""Dependency trees: those of the embedded corpus, and reading the CoNLL-U of others."""

import re
import sys
import types
from collections import Counter

import conllu
import pytest

from modeling_visualbert.analysis.trees import edges_of, parser_trees, read_trees, trees_in
from modeling_visualbert.data.coco import load_coco_captions
from modeling_visualbert.data.flickr30k import parse_sentence, read_split

RELATIONS = {
    *("root", "nsubj", "obj", "obl", "amod", "nmod", "det", "case", "conj", "cc", "cop", "aux", "nummod", "punct"),
    *("mark", "acl", "expl", "parataxis"),
}
DONT = """# sent_id = 7-0
# text = I don't stop.
1\tI\t_\tPRON\t_\t_\t4\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\t_\tAUX\t_\t_\t4\taux\t_\t_
3\tn't\t_\tPART\t_\t_\t4\tadvmod\t_\t_
3.1\tnever\t_\tADV\t_\t_\t_\t_\t4:advmod\t_
4\tstop\t_\tVERB\t_\t_\t0\troot\t_\tSpaceAfter=No
5\t.\t_\tPUNCT\t_\t_\t4\tpunct\t_\t_

"""


def written(tree):
    """ "relation(head, dependent)" of each edge, with words instead of numbers."""
    forms = {0: "-"} | {token["id"]: token["form"] for token in tree}
    return [f"{token['deprel']}({forms[token['head']]}, {token['form']})" for token in tree]


@pytest.fixture(scope="module")
def flickr30k(corpus):
    """(words of a sentence, its phrases, its tree) of the whole small corpus."""
    folder, found = corpus / "flickr30k", []
    for split in ("train", "val", "test"):
        for image_id in read_split(folder / f"shapes_{split}.txt"):
            trees = conllu.parse((folder / "Trees" / f"{image_id}.conllu").read_text())
            lines = (folder / "Sentences" / f"{image_id}.txt").read_text().splitlines()
            for number, (line, tree) in enumerate(zip(lines, trees, strict=True)):
                assert tree.metadata["sent_id"] == f"{image_id}-{number}"
                found.append((*parse_sentence(line), tree))
    return found


def test_trees_are_of_the_sentences(flickr30k):
    relations = Counter()
    for words, phrases, tree in flickr30k:
        assert [token["form"] for token in tree] == words
        assert tree.metadata["text"] == " ".join(words)
        assert [token["head"] for token in tree].count(0) == 1
        assert tree.to_tree().token["deprel"] == "root"  # all hang together
        relations.update(token["deprel"] for token in tree)
        for phrase in phrases:  # is a subtree, apart from what a predicate adds: one word depends on a word outside
            inside = range(phrase.first_word + 1, phrase.last_word + 2)
            assert sum(tree[place - 1]["head"] not in inside for place in inside) == 1
            assert tree[phrase.last_word]["head"] not in inside
    assert set(relations) <= RELATIONS
    assert all(relations[name] > 20 for name in ("nsubj", "obj", "obl", "amod", "nmod", "conj", "nummod", "cop"))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (
            r"The \w+ is above the \w+ \.",
            "det(1, The) nsubj(5, 1) cop(5, is) case(5, above) det(5, the) root(-, 5) punct(5, .)",
        ),
        (
            r"The \w+ is to the left of the \w+ \.",
            "det(1, The) nsubj(5, 1) cop(5, is) case(5, to) det(5, the) root(-, 5) case(8, of) det(8, the) nmod(5, 8) "
            "punct(5, .)",
        ),
        (
            r"You can see the \w+ , the \w+ and the \w+ in the picture \.",
            "nsubj(2, You) aux(2, can) root(-, 2) det(4, the) obj(2, 4) punct(7, ,) det(7, the) conj(4, 7) cc(10, and) "
            "det(10, the) conj(4, 10) case(13, in) det(13, the) obl(2, 13) punct(2, .)",
        ),
        (
            r"The two \w+ things are in the picture \.",
            "det(3, The) nummod(3, two) amod(3, 2) nsubj(7, 3) cop(7, are) case(7, in) det(7, the) root(-, 7) punct(7, .)",
        ),
        (
            r"The two \w+s are in one picture with the \w+ \.",
            "det(2, The) nummod(2, two) nsubj(6, 2) cop(6, are) case(6, in) nummod(6, one) root(-, 6) case(9, with) "
            "det(9, the) nmod(6, 9) punct(6, .)",
        ),
        (
            r"The \w+ things have nothing to do \.",
            "det(2, The) nummod(2, 1) nsubj(3, 2) root(-, 3) obj(3, nothing) mark(do, to) acl(nothing, do) punct(3, .)",
        ),
    ],
)
def test_trees_by_hand(flickr30k, pattern, expected):
    """In `expected`, a number stands for the word at that place, from 0."""
    trees = [tree for words, _, tree in flickr30k if re.fullmatch(pattern, " ".join(words))]
    assert trees
    for tree in trees:
        words = [token["form"] for token in tree]
        by_hand = [words[int(part)] if part.isdigit() else part for part in re.split(r"\b(\d+)\b", expected)]
        assert " ".join(written(tree)) == "".join(by_hand)


def test_captions_have_trees_too(corpus):
    for split in ("train", "val", "test"):
        trees = conllu.parse((corpus / "coco" / f"captions_{split}.conllu").read_text())
        data = load_coco_captions(corpus / "coco" / f"captions_{split}.json")
        captions = [caption for row in data for caption in row["captions"]]
        assert [tree.metadata["text"] for tree in trees] == captions
        assert [int(tree.metadata["sent_id"]) for tree in trees] == list(range(1, len(captions) + 1))
        for tree in trees:
            spaced = ["" if (token["misc"] or {}).get("SpaceAfter") == "No" else " " for token in tree]
            text = "".join(token["form"] + space for token, space in zip(tree, spaced, strict=True))
            assert text.strip() == tree.metadata["text"]
            assert tree.to_tree().token["head"] == 0
            assert {token["deprel"] for token in tree} <= RELATIONS
    several = next(tree for tree in trees if tree.metadata["text"].endswith("among them."))
    assert {"parataxis(things, them)", "case(them, among)", "root(-, things)"} <= set(written(several))


@pytest.fixture
def file(tmp_path):
    def write(text, name="7.conllu"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def test_words_that_a_tree_splits(file):
    tree = read_trees(file(DONT))["7-0"]
    for words, expected in (
        (["I", "don't", "stop."], [("nsubj", 2, 0), ("aux", 2, 1), ("advmod", 2, 1)]),
        (["I", "don't", "stop", "."], [("nsubj", 2, 0), ("aux", 2, 1), ("advmod", 2, 1), ("punct", 2, 3)]),
    ):
        assert [(e.relation, e.head, e.dependent) for e in edges_of(tree, words, "here")] == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["I", "don't", "halt."], "here: word 3 is 'halt.', but the tree has 'stop' there"),
        (["I", "do", "n't", "stop", "."], "here: word 2 is 'do', but the tree has \"don't\" there"),
        (["I", "don't", "stop", ".", "now"], "here: the tree ends before word 5, 'now'"),
        (["I", "don't"], "here: the tree continues with 'stop' after the last word of \"I don't\""),
    ],
)
def test_trees_of_other_words(file, words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        edges_of(read_trees(file(DONT))["7-0"], words, "here")


LINE = "1\tI\t_\tPRON\t_\t_\t0\troot\t_\t_\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LINE}\n", "tree 1 has no `# sent_id`"),
        (f"# sent_id = 7-0\n{LINE}\n# sent_id = 7-0\n{LINE}\n", "sentence 7-0 occurs twice"),
        ("# sent_id = 7-0\n1\tI\n\n", "sentence 7-0: a line has no column 'head'"),
        ("# sent_id = 7-0\n1 I PRON\n\n", "tree 1 is not CoNLL-U"),
        (
            f"# sent_id = 7-0\n1\tI\t_\tX\t_\t_\t{'9' * 5000}\troot\t_\t_\n\n",
            "tree 1 is not CoNLL-U: Exceeds the limit",
        ),
        ("# sent_id = 7-0\n1\tI\t_\tX\t_\t_\tzero\troot\t_\t_\n\n", "tree 1 is not CoNLL-U"),
        ("# sent_id = 7-0\n2\tI\t_\tX\t_\t_\t0\troot\t_\t_\n\n", "sentence 7-0: found token 2; expected token 1"),
        ("# sent_id = 7-0\n1\tI\t_\tX\t_\t_\t9\tobj\t_\t_\n\n", "sentence 7-0: the head of 'I' is token 9"),
        ("# sent_id = 7-0\n1\tI\t_\tX\t_\t_\t1\tobj\t_\t_\n\n", "sentence 7-0: the heads of 'I' form a cycle"),
        ("# sent_id = 7-0\n1\tI\t_\tX\t_\t_\t_\tobj\t_\t_\n\n", "sentence 7-0: token 1, 'I', has no head"),
    ],
)
def test_broken_files_are_named(file, text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_trees(file(text))
    assert "7.conllu: " in str(error.value)


def test_missing_trees_are_named(file, tmp_path):
    trees = trees_in(file(DONT).parent)
    assert set(trees(7, {0: ["I"]})) == {0}
    with pytest.raises(ValueError, match=r"7.conllu: no tree for sentence 7-1"):
        trees(7, {0: ["I"], 1: ["you"]})
    with pytest.raises(FileNotFoundError, match=r"8.conllu: no such file"):
        trees(8, {0: ["I"]})
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder of dependency trees"):
        trees_in(tmp_path / "nowhere")
    (tmp_path / "9.conllu").write_bytes(b"# sent_id = \xff\n")
    with pytest.raises(ValueError, match="9.conllu: not UTF-8 text at byte 12"):
        read_trees(tmp_path / "9.conllu")


def test_parsers_are_told_the_words(monkeypatch):
    """With a parser that hangs every word on the first, behind the interface that stanza has."""
    stanza = types.ModuleType("stanza")

    def pipeline(language, tokenize_pretokenized, **options):
        assert (language, tokenize_pretokenized, options["download_method"]) == ("en", True, None)

        def parse(sentences):
            words = [
                types.SimpleNamespace(text=text, head=min(place, 1), deprel="dep" if place else "root")
                for place, text in enumerate(sentences[0])
            ]
            return types.SimpleNamespace(sentences=[types.SimpleNamespace(words=words)])

        return parse

    stanza.Pipeline = pipeline
    monkeypatch.setitem(sys.modules, "stanza", stanza)
    tree = parser_trees("stanza:en")(7, {2: ["a", "red", "star."]})[2]
    edges = edges_of(tree, ["a", "red", "star."], "here")
    assert [(e.relation, e.head, e.dependent) for e in edges] == [("dep", 0, 1), ("dep", 0, 2)]


def test_parsers_that_are_not_there(monkeypatch):
    for name in ("stanza", "spacy"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=f"{name} is not installed: pip install {name}"):
            parser_trees(f"{name}:en")
    for name in ("spacy", "corenlp:en", "stanza:"):
        with pytest.raises(ValueError, match="expected spacy:MODEL or stanza:LANGUAGE"):
            parser_trees(name)
