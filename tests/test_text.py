"""The words of each task as word pieces: exact sequences, names for tags with their positions, cutting, masking."""

import pytest
import torch

from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.hub_code.text_visualbert import (
    NAMES,
    EncodedText,
    check_special_tokens,
    check_tokenizer,
    encode_choice,
    encode_pair,
    encode_question,
    encode_words,
    find_phrase,
    mask_pieces,
    pad_alignment,
    pad_texts,
    split_tags,
    tag_objects,
)

TOKENIZER = corpus_tokenizer()
PERSON = "person"


def spelled(word):
    """Pieces of a word that is not in the vocabulary: its letters."""
    return [word[0], *(f"##{letter}" for letter in word[1:])]


def written(*parts):
    """A sequence of pieces from text; words that start with ~ are spelled."""
    words = " ".join(parts).split()
    return [piece for word in words for piece in (spelled(word[1:]) if word[0] == "~" else [word])]


def pieces_of(encoded):
    return TOKENIZER.convert_ids_to_tokens(encoded.input_ids)


def choice_of(context, choice, objects, max_length=64, **kwargs):
    return encode_choice(TOKENIZER, context, choice, objects, max_length, **kwargs)


def named(encoded):
    """What stands at the aligned positions of each object."""
    pieces = pieces_of(encoded)
    return {region: [pieces[place] for place in places] for region, places in encoded.alignment.items()}


# ------------------------------------------------------------------------------------------------------- questions


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is the circle red?", "[CLS] is the circle red ? [MASK] [SEP]"),
        ("IS, the circle? red ??", "[CLS] is the circle red ? [MASK] [SEP]"),
        ("is the cat red", "[CLS] is the ~cat red ? [MASK] [SEP]"),
        ("is [SEP] red", "[CLS] is [ ~sep ] red ? [MASK] [SEP]"),
        ("is [MASK] red", "[CLS] is [ ~mask ] red ? [MASK] [SEP]"),
        ("[PAD][CLS]red", "[CLS] [ ~pad ] [ ~cls ] red ? [MASK] [SEP]"),
    ],
)
def test_question(question, expected):
    encoded = encode_question(TOKENIZER, question, 32)
    assert pieces_of(encoded) == written(expected)
    assert encoded.token_type_ids == [0] * len(encoded.input_ids) and encoded.alignment == {}


def test_questions_that_cannot_be():
    assert len(encode_question(TOKENIZER, "red " * 28, 32).input_ids) == 32
    with pytest.raises(ValueError, match=r"item 7 has 33 tokens \('red red .*\); expected at most 32"):
        encode_question(TOKENIZER, "red " * 29, 32, "item 7")
    with pytest.raises(ValueError, match=r"item 7 is empty \('\?,'\); expected at least one word"):
        encode_question(TOKENIZER, "?,", 32, "item 7")
    with pytest.raises(TypeError, match="item 7 is NoneType; expected a string"):
        encode_question(TOKENIZER, None, 32, "item 7")


# ----------------------------------------------------------------------------------------------------------- pairs


def test_one_text_and_two():
    one, two = encode_pair(TOKENIZER, "A red circle.", None, 32), encode_pair(TOKENIZER, "a red circle", "two, big", 32)
    assert pieces_of(one) == written("[CLS] a red circle . [SEP]")
    assert one.token_type_ids == [0] * 6
    assert pieces_of(two) == written("[CLS] a red circle [SEP] two , big [SEP]")
    assert two.token_type_ids == [0] * 5 + [1] * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a [MASK] circle", "[CLS] a [MASK] circle [SEP]"),
        ("[MASK][MASK]", "[CLS] [MASK] [MASK] [SEP]"),
        ("a [MASK]", "[CLS] a [MASK] [SEP]"),
        ("a [mask] circle", "[CLS] a [ ~mask ] circle [SEP]"),
        ("a [SEP] [CLS] [PAD]", "[CLS] a [ ~sep ] [ ~cls ] [ ~pad ] [SEP]"),
    ],
)
def test_only_the_mask_can_be_written(text, expected):
    assert pieces_of(encode_pair(TOKENIZER, text, None, 32)) == written(expected)
    assert pieces_of(encode_pair(TOKENIZER, "red", text, 32)) == written("[CLS] red [SEP]", expected[6:])


@pytest.mark.parametrize(("first", "second"), [("", None), (" ", "red"), ("red", ""), ("\u200b", None), ("red", "\n")])
def test_an_empty_text_of_a_pair_is_named(first, second):
    empty = first if first != "red" else second
    with pytest.raises(ValueError) as error:
        encode_pair(TOKENIZER, first, second, 32, name="text 4")
    assert str(error.value) == f"text 4 is empty ({empty!r}); expected at least one word"


@pytest.mark.parametrize(("first", "second"), [(None, None), (5, None), ("red", ["blue"])])
def test_a_pair_of_something_else(first, second):
    with pytest.raises(TypeError, match=r"text 4 is \w+; expected a string"):
        encode_pair(TOKENIZER, first, second, 32, name="text 4")


def test_long_pairs_lose_their_front():
    context, choice = " ".join(["red"] + ["blue"] * 39), "one two three four"
    with pytest.raises(ValueError, match="text has 47 tokens .*; expected at most 44"):
        encode_pair(TOKENIZER, context, choice, 44)
    whole = encode_pair(TOKENIZER, context, choice, 47, truncation=True)
    assert pieces_of(whole)[1] == "red" and len(whole.input_ids) == 47
    a_bit = encode_pair(TOKENIZER, context, choice, 44, truncation=True)
    assert pieces_of(a_bit) == ["[CLS]", *["blue"] * 37, "[SEP]", *choice.split(), "[SEP]"]
    assert a_bit.token_type_ids == [0] * 39 + [1] * 5
    at_the_limit = encode_pair(TOKENIZER, context, choice, 39, truncation=True)
    assert pieces_of(at_the_limit) == ["[CLS]", *["blue"] * 32, "[SEP]", *choice.split(), "[SEP]"]
    further = encode_pair(TOKENIZER, context, choice, 37, truncation=True)
    assert pieces_of(further) == ["[CLS]", *["blue"] * 32, "[SEP]", "three", "four", "[SEP]"]
    at_last = encode_pair(TOKENIZER, context, choice, 30, truncation=True)  # the choice keeps one piece
    assert pieces_of(at_last) == ["[CLS]", *["blue"] * 26, "[SEP]", "four", "[SEP]"]
    with pytest.raises(ValueError, match="^text: max_length 4; expected at least 5 for two texts$"):
        encode_pair(TOKENIZER, context, choice, 4, truncation=True)


def test_a_short_context_is_not_cut_and_one_text_is():
    assert pieces_of(encode_pair(TOKENIZER, "red blue", "one " * 3 + "two", 8, truncation=True)) == written(
        "[CLS] red blue [SEP] one one two [SEP]"
    )
    assert pieces_of(encode_pair(TOKENIZER, "red blue green", None, 4, truncation=True)) == written(
        "[CLS] blue green [SEP]"
    )


# ------------------------------------------------------------------------------------------------------- sentences


def test_last_piece_of_each_word():
    encoded, last = encode_words(TOKENIZER, ["A", "cat", "is", "red,", "you", "zz"], 32)
    assert pieces_of(encoded) == written("[CLS] a ~cat is red , you ~zz [SEP]")
    assert last == [1, 4, 5, 7, 8, 10]
    assert encoded.token_type_ids == [0] * 12


@pytest.mark.parametrize("words", [[], ["\u200b"]])
def test_a_sentence_without_a_piece_is_refused(words):
    with pytest.raises(ValueError, match=r"sentence 2 is empty \(.*\); expected at least one word"):
        encode_words(TOKENIZER, words, 32, "sentence 2")


def test_a_long_sentence_is_refused():
    with pytest.raises(ValueError, match=r"sentence 2 has 11 tokens \('red red .*; expected at most 10"):
        encode_words(TOKENIZER, ["red"] * 9, 10, "sentence 2")


@pytest.mark.parametrize(
    ("phrase", "place"),
    [("A", 0), ("red circle", 2), ("The  RED circle", 9), ("a red", 1), ("circle is above", 4), ("circle .", 10)],
)
def test_find_phrase(phrase, place):
    sentence = "A red circle is above the big the red circle ."
    assert find_phrase(sentence.split(), phrase, "sentence 0") == place


@pytest.mark.parametrize("phrase", ["", " ", "blue", "circle red", "re", "circle is above it it it"])
def test_a_phrase_that_is_not_there(phrase):
    with pytest.raises(ValueError) as error:
        find_phrase(["red", "circle", "is", "above"], phrase, "sentence 3")
    assert str(error.value) == f"sentence 3: phrase {phrase!r} is not in the sentence 'red circle is above'"


# ------------------------------------------------------------------------------------------------------------ tags


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What color is [0]?", ["What", "color", "is", "[0]", "?"]),
        ("[0,2] and [10]'s", ["[0,2]", "and", "[10]", "'s"]),
        ("[0, 2] left", ["[0,2]", "left"]),
        ("[0, 1,  22].", ["[0,1,22]", "."]),
        ("is[0]red", ["is", "[0]", "red"]),
        ("[x] [] [0,] [-1] [0 1] 3, 4] [ 0]", ["[x]", "[]", "[0,]", "[-1]", "[0", "1]", "3,", "4]", "[", "0]"]),
        (["is", "[0,2]", "red ?"], ["is", "[0,2]", "red ?"]),
    ],
)
def test_split_tags(text, words):
    assert split_tags(text) == words


@pytest.mark.parametrize(
    ("word", "objects"),
    [("[0]", [0]), ("[2,0,11]", [2, 0, 11]), ("[0, 2]", [0, 2]), ("red", []), ("[0]?", []), ("[a]", []), ("[]", [])],
)
def test_tag_objects(word, objects):
    assert tag_objects(word) == objects


@pytest.mark.parametrize(
    ("context", "choice"),
    [
        ("What color is [1]?", "[0,2] is red."),
        ("What color is [1]?", "[0, 2] is red."),
        (["What", "color", "is", "[1]", "?"], ["[0,2]", "is", "red", "."]),
        (["What", "color", "is", "[1]", "?"], ["[0, 2]", "is", "red", "."]),
        (("What", "color", "is", "[1]", "?"), "[0,2] is red."),
    ],
)
def test_tags_become_class_words(context, choice):
    encoded = choice_of(context, choice, ["star", "circle", "square"])
    assert pieces_of(encoded) == written("[CLS] what color is circle ? [SEP] star square is red . [SEP]")
    assert encoded.token_type_ids == [0] * 7 + [1] * 6
    assert encoded.alignment == {1: [4], 0: [7], 2: [8]}


def test_people_get_names_in_the_order_of_their_first_mention():
    encoded = choice_of("is [2] above [1] or [2]?", "[0] and [1]", [PERSON] * 3)
    assert pieces_of(encoded) == written("[CLS] is ~casey above ~riley or ~casey ? [SEP] ~jessie and ~riley [SEP]")
    assert encoded.alignment == {
        2: [2, 3, 4, 5, 6, 14, 15, 16, 17, 18],
        1: [8, 9, 10, 11, 12, *range(28, 33)],
        0: [*range(21, 27)],
    }
    assert named(encoded) == {2: spelled("casey") * 2, 1: spelled("riley") * 2, 0: spelled("jessie")}


def test_a_person_of_the_answer_counts_on_from_the_question():
    for choice, second in (("[1]", 1), ("[0]", 0), ("[2]", 2)):
        encoded = choice_of("who is [0]", choice, [PERSON, PERSON, "circle"])
        expected = {1: "~riley", 0: "~casey", 2: "circle"}[second]
        assert pieces_of(encoded) == written("[CLS] who is ~casey [SEP]", expected, "[SEP]")
    # Each choice starts from the question: no choice knows the names of another.
    assert named(choice_of("who", "[1]", [PERSON] * 2)) == {1: spelled("casey")}


def test_several_people_in_one_tag():
    encoded = choice_of("who are [2,0]", "[0,1,2]", [PERSON, "star", PERSON])
    assert pieces_of(encoded) == written("[CLS] who are ~casey ~riley [SEP] ~riley star ~casey [SEP]")
    assert named(encoded) == {2: spelled("casey") * 2, 0: spelled("riley") * 2, 1: ["star"]}


def test_names_begin_again_after_the_last():
    assert NAMES[6] == NAMES[10] == "Peyton" and len(NAMES) == 15
    encoded = choice_of("".join(f"[{i}]" for i in range(16)), "red", [PERSON] * 16, max_length=128)
    found = named(encoded)
    assert [found[i] for i in range(16)] == [spelled(name.lower()) for name in [*NAMES, "Casey"]]


def test_a_class_of_two_words_is_aligned_with_both():
    encoded = choice_of("is [1] under [0]", "[1]", ["circle", "cell phone"])
    assert pieces_of(encoded) == written("[CLS] is ~cell ~phone under circle [SEP] ~cell ~phone [SEP]")
    assert named(encoded) == {1: [*spelled("cell"), *spelled("phone")] * 2, 0: ["circle"]}


def test_the_authors_alignment_adds_word_indices():
    objects = [PERSON, "circle", "cell phone"]
    texts = ("[0] and [1] see [2,0] [1]", "is [1] [2] red [1]")
    by_piece, by_word = choice_of(*texts, objects), choice_of(*texts, objects, alignment="original")
    assert pieces_of(by_piece) == pieces_of(by_word)
    second = pieces_of(by_word).index("[SEP]") + 1
    assert by_word.alignment == {
        0: [1 + 0, 1 + 5],
        1: [1 + 2, 1 + 6, second + 1, second + 4],
        2: [1 + 4, second + 2],
    }
    assert named(by_piece)[1] == ["circle"] * 4


def test_both_alignments_agree_where_every_word_is_one_piece():
    texts = ("is [0] above [1]", "[1] is red")
    assert (
        choice_of(*texts, ["circle", "star"]).alignment
        == choice_of(*texts, ["circle", "star"], alignment="original").alignment
        == {0: [2], 1: [4, 6]}
    )


@pytest.mark.parametrize("text", [["is", "[0]?", "[x]"], "is [x] [-1]", "[SEP] [MASK] [CLS]"])
def test_what_is_no_tag_is_text(text):
    encoded = choice_of(text, "red", ["circle"])
    assert encoded.alignment == {}
    control = [piece for piece in pieces_of(encoded) if piece in TOKENIZER.all_special_tokens]
    assert control == ["[CLS]", "[SEP]", "[SEP]"]


@pytest.mark.parametrize(
    ("context", "choice", "message"),
    [
        ("is [3] red", "red", r"question 5: tag \[3\], but there are 2 objects; expected 0 to 1"),
        ("is [0] red", "[0,2]", r"question 5: tag \[2\], but there are 2 objects; expected 0 to 1"),
        ("", "red", "question 5: an empty text; expected at least one word"),
        ("is [0] red", [], "question 5: an empty text; expected at least one word"),
        ("is [0] red", " ", "question 5: an empty text; expected at least one word"),
    ],
)
def test_choices_that_cannot_be(context, choice, message):
    with pytest.raises(ValueError, match=message):
        choice_of(context, choice, ["circle", PERSON], name="question 5")


@pytest.mark.parametrize("text", [None, 5, ["is", [0], "red"], [1, 2], b"red"])
@pytest.mark.parametrize("place", [0, 1])
def test_choices_of_something_else(text, place):
    texts = ["red", "red"]
    texts[place] = text
    with pytest.raises(TypeError, match=r"question 5: .*; expected a string or a list of words"):
        choice_of(*texts, ["circle"], name="question 5")


# --------------------------------------------------------------------------------------------------- cutting choices

OBJECTS = ["circle", "square", "star"]
LONG = ["[0]", *["red"] * 39, "[1]"]
CHOICE = [*["blue"] * 10, "[2]"]


@pytest.mark.parametrize(
    ("max_length", "context", "choice", "alignment"),
    [
        (55, ["circle", *["red"] * 39, "square"], ["blue"] * 10, {0: [1], 1: [41], 2: [53]}),
        (54, [*["red"] * 39, "square"], ["blue"] * 10, {1: [40], 2: [52]}),
        (50, [*["red"] * 35, "square"], ["blue"] * 10, {1: [36], 2: [48]}),
        (46, [*["red"] * 31, "square"], ["blue"] * 10, {1: [32], 2: [44]}),
        (40, [*["red"] * 31, "square"], ["blue"] * 4, {1: [32], 2: [38]}),
        (36, [*["red"] * 31, "square"], [], {1: [32], 2: [34]}),
    ],
)
@pytest.mark.parametrize("alignment_kind", ["subword", "original"])
def test_cutting_moves_the_alignment(max_length, context, choice, alignment, alignment_kind):
    encoded = choice_of(LONG, CHOICE, OBJECTS, max_length, alignment=alignment_kind)
    assert pieces_of(encoded) == ["[CLS]", *context, "[SEP]", *choice, "star", "[SEP]"]
    assert encoded.token_type_ids == [0] * (len(context) + 2) + [1] * (len(choice) + 2)
    assert encoded.alignment == alignment


def test_a_name_that_is_cut_in_two_keeps_the_rest():
    encoded = choice_of(["[0]", *["red"] * 35], "[0]", [PERSON], 46)
    assert pieces_of(encoded)[1:5] == ["##s", "##e", "##y", "red"]
    assert named(encoded) == {0: ["##s", "##e", "##y", *spelled("casey")]}
    assert named(choice_of(["[0]", *["red"] * 35], "blue", [PERSON], 38)) == {}


def test_the_authors_alignment_is_cut_by_pieces():
    # The last word is number 31 of the context and its piece number 35; 4 pieces go.
    encoded = choice_of(["[0]", *["red"] * 30, "[1]"], "[1]", [PERSON, "circle"], 36, alignment="original")
    assert len(encoded.input_ids) == 36
    assert encoded.alignment == {1: [31 - 4 + 1, 34]}


def test_long_choices_are_an_error_when_nothing_may_be_cut():
    with pytest.raises(ValueError, match="question 5 has 55 tokens .*; expected at most 54"):
        choice_of(LONG, CHOICE, OBJECTS, 54, truncation=False, name="question 5")
    assert choice_of(LONG, CHOICE, OBJECTS, 55, truncation=False).alignment == {0: [1], 1: [41], 2: [53]}


# --------------------------------------------------------------------------------------------------------- tensors


def test_texts_are_padded_on_the_right():
    encoded = [encode_pair(TOKENIZER, "red", "big star", 32), encode_pair(TOKENIZER, "red", None, 32)]
    padded = pad_texts(encoded, TOKENIZER)
    assert padded["attention_mask"].tolist() == [[1] * 6, [1] * 3 + [0] * 3]
    assert padded["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0] * 6]
    assert padded["input_ids"][1].tolist() == [*encoded[1].input_ids, *[TOKENIZER.pad_token_id] * 3]
    assert pad_texts(encoded, TOKENIZER, "max_length", 9)["input_ids"].shape == (2, 9)
    assert pad_texts(encoded, TOKENIZER, pad_to_multiple_of=4)["input_ids"].shape == (2, 8)


def test_alignment_as_a_tensor():
    encoded = [EncodedText([], [], {0: [4, 5], 2: [1]}), EncodedText([], []), EncodedText([], [], {1: [3]})]
    assert pad_alignment(encoded, 3).tolist() == [
        [[4, 5], [-1, -1], [1, -1]],
        [[-1, -1]] * 3,
        [[-1, -1], [3, -1], [-1, -1]],
    ]
    assert pad_alignment(encoded, 4, offset=1)[0].tolist() == [[-1, -1], [4, 5], [-1, -1], [1, -1]]
    assert pad_alignment(encoded[1:2], 2).tolist() == [[[-1], [-1]]]
    with pytest.raises(ValueError, match="object 2 has no region; there are 2 for objects"):
        pad_alignment(encoded, 3, offset=1)


# --------------------------------------------------------------------------------------------------------- masking


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_masking_chooses_fifteen_percent_and_hides_eighty_of_them():
    words = TOKENIZER.convert_tokens_to_ids(["red", "circle", "above", "two"])
    text = [TOKENIZER.cls_token_id, *words * 10_000, TOKENIZER.sep_token_id]
    masked, labels = (torch.tensor(ids) for ids in mask_pieces(text, TOKENIZER, generator()))
    text, chosen = torch.tensor(text), labels != -100
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.006)  # 3 standard deviations
    assert torch.equal(labels[chosen], text[chosen]) and torch.equal(masked[~chosen], text[~chosen])
    hidden, kept = masked[chosen] == TOKENIZER.mask_token_id, masked[chosen] == text[chosen]
    assert hidden.float().mean().item() == pytest.approx(0.8, abs=0.016)
    assert kept.float().mean().item() == pytest.approx(0.1, abs=0.012)
    random = masked[chosen][~hidden & ~kept]
    assert len(random.unique()) > 150 and random.max() < len(TOKENIZER)  # from the whole vocabulary


def test_special_pieces_are_never_chosen():
    special = [t for t in TOKENIZER.all_special_ids if t != TOKENIZER.mask_token_id]
    text = special * 500
    masked, labels = mask_pieces(text, TOKENIZER, generator(), probability=1.0)
    assert masked == text and set(labels) == {-100}


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5)])
def test_another_share_of_masks(probability, share):
    text = TOKENIZER.convert_tokens_to_ids(["red"] * 2000)
    masked, labels = mask_pieces(text, TOKENIZER, generator(), probability)
    assert sum(label != -100 for label in labels) / 2000 == pytest.approx(share, abs=0.04 if share == 0.5 else 0)
    if not probability:
        assert masked == text


def test_masking_depends_on_the_generator_alone():
    text = encode_pair(TOKENIZER, "a red circle is above a blue square " * 3, None, 64).input_ids
    before = list(text)
    torch.manual_seed(1)
    first = mask_pieces(text, TOKENIZER, generator(3), 0.5)
    torch.manual_seed(2)
    assert first == mask_pieces(text, TOKENIZER, generator(3), 0.5) and text == before
    assert first != mask_pieces(text, TOKENIZER, generator(4), 0.5)
    one_after_another = generator(3)
    assert mask_pieces(text, TOKENIZER, one_after_another, 0.5) == first
    assert mask_pieces(text, TOKENIZER, one_after_another, 0.5) != first


def test_a_mask_of_the_text_is_not_predicted():
    text = encode_pair(TOKENIZER, "a [MASK] circle", None, 32).input_ids
    _, labels = mask_pieces(text, TOKENIZER, generator(), probability=1.0)
    assert labels == [-100, text[1], -100, text[3], -100]


# -------------------------------------------------------------------------------------------------------- tokenizers


class WithoutToken:
    """The tokenizer of the corpus, less a piece of its vocabulary or the name of a special token."""

    def __init__(self, piece=None, name=None):
        self.piece, self.name = piece, name

    def __getattr__(self, attribute):
        return None if attribute == self.name else getattr(TOKENIZER, attribute)

    def get_vocab(self):
        return {piece: number for piece, number in TOKENIZER.get_vocab().items() if piece != self.piece}


@pytest.mark.parametrize("token", ["cls", "sep", "mask", "pad", "unk"])
def test_a_tokenizer_without_a_special_token_is_refused(token):
    for task in (None, "vqa", "vcr"):
        check_special_tokens(TOKENIZER, task)
    with pytest.raises(ValueError, match=rf"^mine: the tokenizer has no {token}_token; expected .*\[UNK\]"):
        check_special_tokens(WithoutToken(name=f"{token}_token"), name="mine")
    with pytest.raises(ValueError, match=rf"^tokenizer: the tokenizer has no \[{token.upper()}\]; expected"):
        check_special_tokens(WithoutToken(piece=f"[{token.upper()}]"))


def test_only_questions_need_a_question_mark():
    for task in (None, "vcr", "nlvr2"):
        check_special_tokens(WithoutToken(piece="?"), task)
    with pytest.raises(ValueError, match=r"the tokenizer has no \?; expected .*\[UNK\] and \?$"):
        check_special_tokens(WithoutToken(piece="?"), "vqa")


def test_a_tokenizer_of_another_size_is_refused():
    check_tokenizer(TOKENIZER, len(TOKENIZER), "vqa")
    for size in (len(TOKENIZER) - 1, len(TOKENIZER) + 1):
        message = f"^mine: a tokenizer of {len(TOKENIZER)} word pieces, but the model has {size}; expected"
        with pytest.raises(ValueError, match=message):
            check_tokenizer(TOKENIZER, size, "vqa", "mine")
