"""Dependency trees of sentences: from CoNLL-U files, or from an installed parser.

There is one file per image, `Trees/1016887272.conllu` beside `Sentences/1016887272.txt`, with a tree for each line. Its `sent_id`
is the image and the number of the line, from 0::

    # sent_id = 1016887272-3
    1	A	_	DET	_	_	2	det	_	_
    2	group	_	NOUN	_	_	5	nsubj	_	_

A tree may split a word of the sentence into several tokens ("don't", "circle."), which must spell the word when joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARSERS = ("spacy", "stanza")
_COLUMNS = ("id", "form", "head", "deprel")


@dataclass(frozen=True)
class Token:
    """A token of a tree; `head` is the index of another token, or -1 for the root."""

    form: str
    head: int
    relation: str


@dataclass(frozen=True)
class Edge:
    """A dependency between two words of a sentence, given by their indices."""

    relation: str
    head: int
    dependent: int


@dataclass(frozen=True)
class Tree:
    """Tokens of a sentence, and its spelling in pieces: `(form, number of tokens)`.

    Nearly always, a piece is a token; a multiword token ("don't" for "do" and "n't") is one piece with two tokens.
    """

    tokens: tuple[Token, ...]
    pieces: tuple[tuple[str, int], ...]


Trees = Callable[[int, dict[int, list[str]]], dict[int, Tree]]  # image id, words by sentence number -> trees by number


def read_trees(path: str | Path) -> dict[str, Tree]:
    """The trees of a CoNLL-U file by their `sent_id`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not CoNLL-U, a tree has a missing or repeated `sent_id`, or its heads do not form a tree; the message
            names the file and the sentence.
        ImportError: `conllu` is not installed.
    """
    conllu = _import("conllu")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of dependency trees")
    trees: dict[str, Tree] = {}
    for number, sentence in enumerate(_sentences(path, conllu), start=1):
        name = sentence.metadata.get("sent_id")
        if not name:
            raise ValueError(f"{path}: tree {number} has no `# sent_id`; expected one such as 1016887272-0")
        if name in trees:
            raise ValueError(f"{path}: sentence {name} occurs twice; expected it only once")
        trees[name] = _tree(sentence, f"{path}: sentence {name}")
    return trees


def _sentences(path: Path, conllu: Any) -> Iterator[Any]:
    """The sentences of a file, as `conllu` reads them."""
    number = 1
    try:
        with path.open(encoding="utf-8-sig") as file:
            for sentence in conllu.parse_incr(file):
                yield sentence
                number += 1
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at byte {error.start}") from error
    except (conllu.exceptions.ParseException, ValueError) as error:  # the latter of numbers with thousands of digits
        raise ValueError(f"{path}: tree {number} is not CoNLL-U: {str(error).partition(';')[0]:.200}") from error


def trees_in(folder: str | Path) -> Trees:
    """A function that reads the trees of an image from its file in the folder.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of dependency trees (one CoNLL-U file for each image)")

    def read(image_id: int, sentences: dict[int, list[str]]) -> dict[int, Tree]:
        path = folder / f"{image_id}.conllu"
        trees = read_trees(path)
        for number in sentences:
            if f"{image_id}-{number}" not in trees:
                raise ValueError(f"{path}: no tree for sentence {image_id}-{number}; expected one for each sentence")
        return {number: trees[f"{image_id}-{number}"] for number in sentences}

    return read


def parser_trees(name: str) -> Trees:
    """A function that parses sentences with an installed parser, such as `spacy:en_core_web_sm` or `stanza:en`.

    Parsers receive the sentence as a list of words, so that the trees fit the words. Nothing is downloaded.

    Raises:
        ValueError: The name is malformed, or the parser returns no dependencies.
        ImportError: The parser is not installed.
    """
    kind, _, model = name.partition(":")
    if kind not in PARSERS or not model:
        raise ValueError(f"parser {name!r}; expected spacy:MODEL or stanza:LANGUAGE")
    parse = (_spacy_parser if kind == "spacy" else _stanza_parser)(model)

    def read(image_id: int, sentences: dict[int, list[str]]) -> dict[int, Tree]:
        trees = {}
        for number, words in sentences.items():
            tokens = tuple(parse(words))
            _check_tree(tokens, f"parser {name}: sentence {image_id}-{number}")
            trees[number] = Tree(tokens, tuple((token.form, 1) for token in tokens))
        return trees

    return read


def edges_of(tree: Tree, words: Sequence[str], where: str) -> list[Edge]:
    """The dependencies between the words of a sentence; those between tokens of the same word are left out.

    Raises:
        ValueError: The tokens do not spell the words; the message names `where` and the first word that differs.
    """
    word_of = _align(tree, words, where)
    edges = []
    for token, word in zip(tree.tokens, word_of, strict=True):
        if token.head >= 0 and word_of[token.head] != word:
            edges.append(Edge(token.relation, word_of[token.head], word))
    return edges


def _align(tree: Tree, words: Sequence[str], where: str) -> list[int]:
    """The index of the word that each token belongs to."""
    word_of: list[int] = []
    word, spelled = 0, ""
    for form, count in tree.pieces:
        if word == len(words):
            raise ValueError(
                f"{where}: the tree continues with {form!r:.80} after the last word of {' '.join(words)!r:.80}"
            )
        spelled += form
        if not words[word].startswith(spelled):
            raise ValueError(f"{where}: word {word + 1} is {words[word]!r:.80}, but the tree has {spelled!r:.80} there")
        word_of += [word] * count
        if spelled == words[word]:
            word, spelled = word + 1, ""
    if word < len(words):
        raise ValueError(
            f"{where}: the tree ends before word {word + 1}, {words[word]!r:.80}, of {' '.join(words)!r:.80}"
        )
    return word_of


def _tree(sentence: Any, where: str) -> Tree:
    tokens: list[Token] = []
    pieces: list[tuple[str, int]] = []
    inside = 0  # how many tokens of a multiword token are still to come
    for record in sentence:
        missing = [column for column in _COLUMNS if column not in record]
        if missing:
            raise ValueError(f"{where}: a line has no column {missing[0]!r}; expected the ten columns of CoNLL-U")
        number = record["id"]
        if isinstance(number, tuple):
            if number[1] == "-":
                inside = number[2] - number[0] + 1
                pieces.append((record["form"], inside))
            continue  # an empty node such as 8.1 is not written
        if number != len(tokens) + 1:
            raise ValueError(f"{where}: found token {number}; expected token {len(tokens) + 1}")
        if record["head"] is None or record["deprel"] is None:
            raise ValueError(
                f"{where}: token {number}, {record['form']!r:.80}, has no head or no relation; expected both"
            )
        tokens.append(Token(record["form"], record["head"] - 1, record["deprel"]))
        if inside:
            inside -= 1
        else:
            pieces.append((record["form"], 1))
    _check_tree(tokens, where)
    return Tree(tuple(tokens), tuple(pieces))


def _check_tree(tokens: Sequence[Token], where: str) -> None:
    for start, token in enumerate(tokens):
        place, steps = start, 0
        while place >= 0:
            if tokens[place].head >= len(tokens):
                head = tokens[place].head + 1
                raise ValueError(
                    f"{where}: the head of {tokens[place].form!r:.80} is token {head}; expected at most {len(tokens)}"
                )
            place, steps = tokens[place].head, steps + 1
            if steps > len(tokens):
                raise ValueError(f"{where}: the heads of {token.form!r:.80} form a cycle; expected a tree")


def _spacy_parser(model: str) -> Callable[[Sequence[str]], Iterable[Token]]:
    spacy = _import("spacy")
    try:
        nlp = spacy.load(model)
    except OSError as error:
        raise ValueError(f"parser spacy:{model}: {error}") from error

    def parse(words: Sequence[str]) -> Iterable[Token]:
        doc = nlp(spacy.tokens.Doc(nlp.vocab, words=list(words)))
        if not doc.has_annotation("DEP"):
            raise ValueError(f"parser spacy:{model} returns no dependencies; expected a pipeline with a parser")
        return [Token(token.text, -1 if token.head.i == token.i else token.head.i, token.dep_) for token in doc]

    return parse


def _stanza_parser(language: str) -> Callable[[Sequence[str]], Iterable[Token]]:
    stanza = _import("stanza")
    pipeline = stanza.Pipeline(
        language,
        processors="tokenize,pos,lemma,depparse",
        tokenize_pretokenized=True,
        download_method=None,
        verbose=False,
    )

    def parse(words: Sequence[str]) -> Iterable[Token]:
        (sentence,) = pipeline([list(words)]).sentences
        return [Token(word.text, word.head - 1, word.deprel) for word in sentence.words]

    return parse


def _import(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed: pip install {name}") from error


__all__ = ["Edge", "Token", "Tree", "Trees", "edges_of", "parser_trees", "read_trees", "trees_in"]
