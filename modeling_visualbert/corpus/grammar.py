"""Sentences of the embedded corpus as dependency trees (Universal Dependencies 2), from which text and CoNLL-U files are written.

Sentences are built from their parts, so their trees are exact and need no parser: `stands(one, "above", other)` is "<one> is
above <other>" with `one` as the subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

_DETERMINERS = {"a", "an", "the", "no"}
_NUMBERS = {"zero", "one", "two", "three", "four", "five", "six"}


@dataclass
class Node:
    """A word and its dependents: (relation, node) pairs before and after it, in text order."""

    form: str
    tag: str  # universal part of speech
    before: list[tuple[str, Node]] = field(default_factory=list)
    after: list[tuple[str, Node]] = field(default_factory=list)
    opens: str = ""  # markup before the word
    closes: str = ""  # markup after the word
    glued: bool = False  # no blank before the word

    def in_order(self) -> list[Node]:
        """The words of this subtree in text order."""
        words = [word for _, node in self.before for word in node.in_order()]
        return [*words, self, *(word for _, node in self.after for word in node.in_order())]

    def text(self) -> str:
        """The words with their markup."""
        words = [("" if word.glued else " ") + word.opens + word.form + word.closes for word in self.in_order()]
        return "".join(words).lstrip(" ")

    def capitalised(self) -> Node:
        """The node itself, after capitalising its first word."""
        first = self.in_order()[0]
        first.form = first.form[0].upper() + first.form[1:]
        return self


def noun_phrase(words: str) -> Node:
    """ "the small red circle", "two stars", "a blue cross in the left half"."""
    words, _, place = words.partition(" in ")
    *modifiers, noun = words.split(" ")
    node = Node(noun, "NOUN", before=[_modifier(word) for word in modifiers])
    if place:
        node.after.append(("nmod", with_case("in", noun_phrase(place))))
    return node


def with_case(preposition: str, phrase: Node) -> Node:
    """The phrase after a preposition."""
    phrase.before.insert(0, ("case", Node(preposition, "ADP")))
    return phrase


def with_subject(subject: Node, predicate: Node, copula: str = "is") -> Node:
    """ "<subject> is <predicate>": the predicate is the head."""
    predicate.before[:0] = [("nsubj", subject), ("cop", Node(copula, "AUX"))]
    return predicate


def stands(subject: Node, relation: str, other: Node) -> Node:
    """ "<subject> is above <other>", "<subject> is to the left of <other>"."""
    *place, last = relation.split(" ")
    if not place:
        return with_subject(subject, with_case(relation, other))
    side = with_case(place[0], noun_phrase(" ".join(place[1:])))  # "to the left", "of"
    side.after.append(("nmod", with_case(last, other)))
    return with_subject(subject, side)


def conjunction(phrases: Sequence[Node], comma_glued: bool = False) -> Node:
    """ "<first> , <second> and <last>": the first is the head of all others."""
    first, *others = phrases
    for number, other in enumerate(others):
        is_last = number == len(others) - 1
        link = ("cc", Node("and", "CCONJ")) if is_last else ("punct", Node(",", "PUNCT", glued=comma_glued))
        other.before.insert(0, link)
        first.after.append(("conj", other))
    return first


def you_can_see(seen: Node) -> Node:
    """ "You can see <seen>"."""
    before = [("nsubj", Node("You", "PRON")), ("aux", Node("can", "AUX"))]
    return Node("see", "VERB", before=before, after=[("obj", seen)])


def full_stop(sentence: Node, glued: bool = False) -> Node:
    """The sentence with its full stop."""
    sentence.after.append(("punct", Node(".", "PUNCT", glued=glued)))
    return sentence


def conllu(sentence: Node, sent_id: str) -> str:
    """The sentence in the ten columns of CoNLL-U (https://universaldependencies.org/format.html), without its markup."""
    words = sentence.in_order()
    place = {id(word): number for number, word in enumerate(words, start=1)}
    head_of = {id(sentence): (0, "root")}
    for word in words:
        for relation, dependent in (*word.before, *word.after):
            head_of[id(dependent)] = place[id(word)], relation
    text = "".join(("" if word.glued else " ") + word.form for word in words).lstrip(" ")
    lines = [f"# sent_id = {sent_id}", f"# text = {text}"]
    for number, word in enumerate(words, start=1):
        head, relation = head_of[id(word)]
        glued = number < len(words) and words[number].glued
        columns = [number, word.form, "_", word.tag, "_", "_", head, relation, "_", "SpaceAfter=No" if glued else "_"]
        lines.append("\t".join(str(column) for column in columns))
    return "\n".join(lines) + "\n\n"


def _modifier(word: str) -> tuple[str, Node]:
    lowered = word.lower()
    if lowered in _DETERMINERS:
        return "det", Node(word, "DET")
    if lowered in _NUMBERS:
        return "nummod", Node(word, "NUM")
    return "amod", Node(word, "ADJ")
