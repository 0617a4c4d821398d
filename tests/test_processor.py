"""The processor: exact text format, regions in every accepted form, refusals, and logits -> answers."""

import json
import re

import numpy as np
import pytest
import torch
from helpers import tiny_model
from PIL import Image
from transformers import AutoProcessor, BertTokenizer

from modeling_visualbert import RegionEncoderOutput, VisualBertImageProcessor, VisualBertProcessor
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "where",
    "is",
    "the",
    "cat",
    "##s",
    "a",
    "?",
    ",",
    "[",
    "]",
    "mask",
]
ANSWERS = ["<unk>", "blue", "red", "yes"]
DIM = 5


@pytest.fixture(scope="module")
def bert_tokenizer(tmp_path_factory):
    """A BERT tokenizer read from a `vocab.txt`, as BERT checkpoints have it."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return BertTokenizer.from_pretrained(folder)


@pytest.fixture
def processor(bert_tokenizer):
    return VisualBertProcessor(tokenizer=bert_tokenizer, answers=ANSWERS, max_length=16, region_dim=DIM)


def tokens_of(processor, text):
    """The tokens of one question, in one string."""
    (ids,) = processor(text=text)["input_ids"].tolist()
    return " ".join(processor.tokenizer.convert_ids_to_tokens(ids))


def regions_of(count, seed=0, **fields):
    """Regions of one image of 40 x 30 pixels."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 15, size=(count, 2))
    return {
        "visual_embeds": rng.normal(size=(count, DIM)).astype(np.float32),
        "boxes": np.concatenate((low, low + 10), axis=1),
        "image_size": [30, 40],
        **fields,
    }


def image(seed=0, size=(40, 30)):
    """A picture of noise, width x height."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "question",
    ["where is the cat", "Where is the cat?", " WHERE  is,the\tcat ??\n", "where, is the cat ?", "where? is the cat"],
)
def test_text_is_what_the_authors_trained_on(processor, question):
    encoded = processor(text=question)
    assert tokens_of(processor, question) == "[CLS] where is the cat ? [MASK] [SEP]"
    assert encoded["token_type_ids"].tolist() == [[0] * 8]
    assert encoded["attention_mask"].tolist() == [[1] * 8]


def test_words_are_split_into_pieces(processor):
    assert tokens_of(processor, "the cats") == "[CLS] the cat ##s ? [MASK] [SEP]"


def test_text_with_the_shipped_tokenizer():
    processor = VisualBertProcessor(tokenizer=corpus_tokenizer())
    text = tokens_of(processor, "How many red circles are there?")
    assert text == "[CLS] how many red circles are there ? [MASK] [SEP]"


@pytest.mark.parametrize("word", ["[SEP]", "[MASK]", "[CLS]", "[PAD]", "[sep]", "[mask]"])
@pytest.mark.parametrize("shipped", [False, True])
def test_a_user_cannot_write_control_tokens(processor, word, shipped):
    if shipped:
        processor = VisualBertProcessor(tokenizer=corpus_tokenizer())
    tokens = tokens_of(processor, f"is {word} a {word}").split()
    control = [token for token in tokens if token in ("[PAD]", "[CLS]", "[SEP]", "[MASK]")]
    assert control == ["[CLS]", "[MASK]", "[SEP]"]
    assert tokens[:3] == ["[CLS]", "is", "["]


def test_control_tokens_of_another_spelling_are_text_too():
    control = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), control, strict=True))
    vocabulary = {piece: i for i, piece in enumerate([*control, "is", "mask", "<", ">", "/", "s", "?"])}
    processor = VisualBertProcessor(tokenizer=BertTokenizer(vocab=vocabulary, **names))
    assert tokens_of(processor, "is <mask> </s>") == "<s> is < mask > < / s > ? <mask> </s>"


def test_batches_are_padded_on_the_right(processor):
    encoded = processor(text=["the cats", "is the cat a cat"])
    lengths = encoded["attention_mask"].sum(dim=1)
    assert lengths.tolist() == [7, 9]
    assert encoded["attention_mask"][0].tolist() == [1] * 7 + [0] * 2
    assert encoded["input_ids"][0, 7:].tolist() == [processor.tokenizer.pad_token_id] * 2
    assert encoded["input_ids"][[0, 1], lengths - 2].tolist() == [processor.tokenizer.mask_token_id] * 2
    assert not encoded["token_type_ids"].any()


@pytest.mark.parametrize(("kwargs", "length"), [({"padding": "max_length"}, 16), ({"pad_to_multiple_of": 5}, 10)])
def test_padding_can_be_asked_for(processor, kwargs, length):
    plain, longer = processor(text=["the cats"]), processor(text=["the cats"], **kwargs)
    assert longer["input_ids"].shape == (1, length)
    assert torch.equal(longer["input_ids"][:, :7], plain["input_ids"])
    assert longer["attention_mask"].sum() == 7


@pytest.mark.parametrize("question", ["", "   ", "?", " ,? ,\n"])
def test_an_empty_question_is_refused(processor, question):
    with pytest.raises(ValueError, match=r"question 1 is empty \(.*\); expected at least one word"):
        processor(text=["the cat", question])


@pytest.mark.parametrize("question", ["\u200b", "\x00"], ids=["zero-width", "control"])
def test_a_question_without_a_token_is_refused(processor, question):
    with pytest.raises(ValueError, match=r"question 0 is empty \(.*\); expected at least one word"):
        processor(text=question)


@pytest.mark.parametrize(("value", "kind"), [(None, "NoneType"), (5, "int"), (b"the cat", "bytes"), (["a"], "list")])
def test_a_question_that_is_no_string_is_refused(processor, value, kind):
    with pytest.raises(TypeError, match=rf"question 1 is {kind}; expected a string"):
        processor(text=["the cat", value])


def test_text_that_is_neither_string_nor_list_is_refused(processor):
    with pytest.raises(TypeError, match=r"int.*expected a (string|question)"):
        processor(text=5)


def test_the_longest_question_fits_and_a_longer_one_is_refused(processor):
    assert processor(text="cat " * 12)["input_ids"].shape == (1, 16)
    with pytest.raises(ValueError, match=r"question 1 has 17 tokens \('cat cat .*\); expected at most 16"):
        processor(text=["cat", "cat " * 13])


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"text": "a cat", "language": "en"}, TypeError, "unknown argument 'language' for task 'vqa'"),
        ({"text": "a cat", "return_tensors": "tf"}, ValueError, "^return_tensors 'tf'; expected 'pt', 'np' or None$"),
        ({"text": []}, ValueError, "no texts; expected at least one question"),
        ({"images": []}, ValueError, "no images; expected at least one"),
        ({}, ValueError, "nothing to process; expected `images`, `text` or both"),
    ],
    ids=["keyword", "tensors", "no-text", "no-image", "nothing"],
)
def test_calls_that_make_no_sense_are_refused(processor, kwargs, error, message):
    with pytest.raises(error, match=message):
        processor(**kwargs)


@pytest.mark.parametrize("kind", ["image", "regions"])
def test_one_image_serves_many_questions(processor, kind):
    one = image() if kind == "image" else regions_of(3)
    inputs = processor(images=one, text=["a cat", "the cat", "where is the cat"])
    assert len(inputs["input_ids"]) == 3
    assert len(inputs["pixel_values" if kind == "image" else "visual_embeds"]) == 1


@pytest.mark.parametrize("kind", ["image", "regions"])
@pytest.mark.parametrize("num_texts", [1, 3])
def test_numbers_of_images_and_texts_must_fit(processor, kind, num_texts):
    pair = [image(), image(1)] if kind == "image" else [regions_of(3), regions_of(2)]
    with pytest.raises(ValueError, match=rf"2 images for {num_texts} texts; expected one image for all or one for"):
        processor(images=pair, text=["the cat"] * num_texts)


def test_images_become_pixels_beside_the_text(processor):
    images = [image(), image(1)]
    inputs = processor(images=images, text=["the cat", "a cat"])
    assert sorted(inputs) == ["attention_mask", "image_sizes", "input_ids", "pixel_values", "token_type_ids"]
    assert set(inputs) <= set(processor.model_input_names)
    assert torch.equal(inputs["pixel_values"], VisualBertImageProcessor()(images)["pixel_values"])
    assert inputs["image_sizes"].tolist() == [[30, 40], [30, 40]]


def test_regions_of_several_images_are_padded_with_zeros(processor):
    items = [regions_of(2), regions_of(4, seed=1), regions_of(0)]
    inputs = processor(images=items)
    assert inputs["visual_attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    for row, item in enumerate(items):
        count = len(item["visual_embeds"])
        assert torch.equal(inputs["visual_embeds"][row, :count], torch.from_numpy(item["visual_embeds"]))
        assert not inputs["visual_embeds"][row, count:].any()


@pytest.mark.parametrize("form", [list, np.asarray, torch.tensor])
def test_one_image_s_regions_in_every_form(processor, form):
    features = regions_of(3)["visual_embeds"]
    inputs = processor(images={"visual_embeds": form(features.tolist())})
    assert inputs["visual_embeds"].dtype == torch.float32
    assert torch.equal(inputs["visual_embeds"], torch.from_numpy(features)[None])
    assert inputs["visual_attention_mask"].tolist() == [[1, 1, 1]]


def test_what_a_region_encoder_returned_is_taken_as_it_is(processor):
    found = RegionEncoderOutput(
        visual_embeds=torch.randn(2, 4, DIM),
        visual_attention_mask=torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
        boxes_unit=torch.rand(2, 4, 4),
        scores=torch.rand(2, 4),
        class_ids=torch.zeros(2, 4, dtype=torch.long),
    )
    inputs = processor(images=found, text=["the cat", "a cat"])
    assert inputs["visual_embeds"] is found.visual_embeds
    assert inputs["visual_attention_mask"] is found.visual_attention_mask


def test_a_batch_of_regions_without_a_mask_is_all_regions(processor):
    inputs = processor(images={"visual_embeds": torch.randn(2, 4, DIM)})
    assert inputs["visual_attention_mask"].tolist() == [[1] * 4] * 2


def nan_in_row_1():
    features = np.zeros((3, DIM))
    features[1, 2] = np.nan
    return features


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"visual_embeds": np.zeros((3, 7))}, "features have dim 7, this model expects 5"),
        ({"visual_embeds": np.zeros(5)}, r"'visual_embeds' has shape \(5,\); expected \(regions, dim\)"),
        ({"visual_embeds": np.zeros((1, 3, 5))}, r"'visual_embeds' has shape \(1, 3, 5\); expected \(regions, dim\)"),
        ({"visual_embeds": None}, r"key 'visual_embeds' is missing; expected an array of shape \(regions, dim\)"),
        ({"visual_embeds": [["a"] * 5] * 3}, "'visual_embeds' holds <U1; expected numbers"),
        ({"visual_embeds": nan_in_row_1()}, "'visual_embeds': row 1 holds NaN or infinity; expected finite numbers"),
        (
            {"boxes": [[0, 0, 5, 5]] * 2 + [[9, 0, 5, 5]]},
            r"row 2 is inverted, \[9.0, 0.0, 5.0, 5.0\]; expected x1 <= x2",
        ),
        ({"boxes": [[0, 0, 5, 5], [0, 9, 5, 5], [0, 0, 5, 5]]}, "'boxes': row 1 is inverted.*expected x1 <= x2 and y1"),
        (
            {"boxes": [[0, 0, 5, 5]] * 2 + [[0, 0, 50, 5]]},
            "row 2 .* is outside the image of 40 x 30 pixels; expected x1",
        ),
        ({"boxes": [[-9, 0, 5, 5], *[[0, 0, 5, 5]] * 2]}, r"row 0 \[-9.0, .* is outside the image of 40 x 30 pixels"),
        ({"boxes": [[0, 0, 5, 35]] + [[0, 0, 5, 5]] * 2}, "'boxes': row 0 .* is outside the image of 40 x 30 pixels"),
        ({"boxes": [[0, 0, np.inf, 5]] * 3}, "'boxes': row 0 holds NaN or infinity"),
        ({"boxes": np.zeros((2, 4))}, r"'boxes' has shape \(2, 4\); expected \(3, 4\)"),
        ({"boxes": np.zeros((3, 5))}, r"'boxes' has shape \(3, 5\); expected \(3, 4\)"),
        ({"scores": [0.5]}, r"'scores' has shape \(1,\); expected \(3,\)"),
        ({"class_ids": [[1, 2, 3]]}, r"'class_ids' has shape \(1, 3\); expected \(3,\)"),
        ({"image_size": [3, 30, 40]}, r"'image_size' has shape \(3,\); expected \(2,\)"),
        ({"features": [1]}, "unknown key 'features'; expected visual_embeds, boxes, scores, class_ids, image_size"),
    ],
)
def test_malformed_regions_are_refused(processor, fields, message):
    with pytest.raises(ValueError, match=rf"regions 1: .*{message}"):
        processor(images=[regions_of(2), regions_of(3, **fields)])


def test_boxes_may_overshoot_the_border_by_rounding(processor):
    item = regions_of(1, boxes=[[-0.9, 0, 40.9, 30.5]])
    assert processor(images=item)["visual_attention_mask"].tolist() == [[1]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"visual_embeds": torch.zeros(2, 3, 7)}, "features have dim 7, this model expects 5"),
        ({"visual_embeds": torch.full((2, 3, 5), torch.inf)}, "'visual_embeds' holds NaN or infinity; expected finite"),
        ({"visual_attention_mask": torch.ones(2, 4)}, r"'visual_attention_mask' has shape \(2, 4\); expected \(2, 3\)"),
        ({"visual_attention_mask": torch.ones(6)}, r"'visual_attention_mask' has shape \(6,\); expected \(2, 3\)"),
    ],
)
def test_malformed_batches_of_regions_are_refused(processor, fields, message):
    with pytest.raises(ValueError, match=rf"regions: {message}"):
        processor(images={"visual_embeds": torch.zeros(2, 3, DIM), **fields})


@pytest.mark.parametrize("fields", [{"visual_mask": torch.ones(2, 3)}, {"visual_attention_mask": [[1]]}])
def test_a_batch_of_regions_is_checked_like_one_image(processor, fields):
    with pytest.raises(ValueError, match=r"regions: .*(visual_mask|visual_attention_mask).*expected"):
        processor(images={"visual_embeds": torch.zeros(2, 3, DIM), **fields})


@pytest.mark.parametrize("features", [np.zeros((3, 7)), [[1.0, 2.0], [3.0]]], ids=["other-dim", "ragged"])
def test_features_of_unequal_length_are_refused_without_a_known_dim(bert_tokenizer, features):
    processor = VisualBertProcessor(tokenizer=bert_tokenizer)
    with pytest.raises(ValueError, match=r"regions 1: .*expected"):
        processor(images=[regions_of(2), {"visual_embeds": features}])


def test_images_and_regions_do_not_mix(processor):
    with pytest.raises(ValueError, match="images and precomputed regions in one batch; expected one kind"):
        processor(images=[image(), regions_of(2)])


def test_answers_fall_in_probability_and_skip_unk(processor):
    logits = torch.tensor([[9.0, 1.0, 3.0, 2.0], [-5.0, 0.0, -1.0, 4.0]])
    best, other = processor.post_process_question_answering(logits, top_k=2)
    known = logits[0, 1:].softmax(dim=-1).tolist()
    assert [answer["answer"] for answer in best] == ["red", "yes"]
    assert [answer["score"] for answer in best] == pytest.approx([known[1], known[2]])
    assert [answer["answer"] for answer in other] == ["yes", "blue"]


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (3, 3), (4, 3), (100, 3)])
def test_all_scores_sum_to_one_over_known_answers(processor, top_k, count):
    outputs = {"logits": torch.tensor([[50.0, 1.0, 3.0, 2.0]], dtype=torch.bfloat16)}
    (best,) = processor.post_process_question_answering(outputs, top_k=top_k)
    assert len(best) == count
    assert "<unk>" not in [answer["answer"] for answer in best]
    total = sum(answer["score"] for answer in best)
    assert total == pytest.approx(1.0) if count == 3 else total < 1.0


def test_without_an_unknown_answer_all_count(bert_tokenizer):
    processor = VisualBertProcessor(tokenizer=bert_tokenizer, answers=["no", "yes"])
    (best,) = processor.post_process_question_answering(torch.tensor([[1.0, 0.0]]))
    assert [answer["answer"] for answer in best] == ["no", "yes"]
    assert sum(answer["score"] for answer in best) == pytest.approx(1.0)


def test_another_number_of_logits_than_answers_is_refused(processor, bert_tokenizer):
    with pytest.raises(ValueError, match="7 logits for a vocabulary of 4 answers; expected as many"):
        processor.post_process_question_answering(torch.zeros(1, 7))
    with pytest.raises(ValueError, match="no answer vocabulary; pass `answers`"):
        VisualBertProcessor(tokenizer=bert_tokenizer).post_process_question_answering(torch.zeros(1, 4))


def test_an_answer_that_occurs_twice_is_refused(bert_tokenizer):
    with pytest.raises(ValueError, match="answer 'red' is in the vocabulary twice"):
        VisualBertProcessor(tokenizer=bert_tokenizer, answers=["<unk>", "blue", "red", "yes", "red"])


def test_unknown_task_is_refused(bert_tokenizer):
    with pytest.raises(ValueError, match="unknown task 'captioning'; expected one of vqa, nlvr2, vcr, flickr30k, pre"):
        VisualBertProcessor(tokenizer=bert_tokenizer, task="captioning")


def test_regions_found_come_back_in_pixels(processor):
    found = RegionEncoderOutput(
        visual_embeds=torch.randn(2, 3, DIM),
        visual_attention_mask=torch.tensor([[1, 1, 0], [0, 0, 0]]),
        boxes_unit=torch.tensor([[[0.0, 0.25, 0.5, 1.0]] * 3] * 2),
        scores=torch.rand(2, 3),
        class_ids=torch.arange(6).view(2, 3),
    )
    first, second = processor.post_process_regions(found, torch.tensor([[100, 200], [10, 10]]))
    assert first["boxes"].tolist() == [[0.0, 25.0, 100.0, 100.0]] * 2
    assert first["class_ids"].tolist() == [0, 1]
    assert first["image_size"].tolist() == [100, 200]
    assert second["visual_embeds"].shape == (0, DIM)
    again = processor(images=[first, second])  # what comes out can go in
    assert torch.equal(again["visual_embeds"][0], found.visual_embeds[0, :2])
    with pytest.raises(ValueError, match="1 image sizes for regions of 2 images"):
        processor.post_process_regions(found, [[100, 200]])


def test_saved_beside_a_model_and_loaded_by_autoprocessor(bert_tokenizer, tmp_path):
    image_processor = VisualBertImageProcessor(
        size={"shortest_edge": 20, "longest_edge": 40}, image_mean=[0.1, 0.2, 0.3]
    )
    processor = VisualBertProcessor(image_processor, bert_tokenizer, answers=ANSWERS, max_length=20, region_dim=DIM)
    tiny_model("vqa", num_labels=len(ANSWERS)).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is VisualBertProcessor
    for name in ("answers", "max_length", "region_dim", "task"):
        assert getattr(loaded, name) == getattr(processor, name)
    call = {"images": [image(), image(1, (50, 30))], "text": ["where is the cat", "[SEP], cats"]}
    before, after = processor(**call), loaded(**call)
    assert "pixel_mask" in before
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name


def test_answers_are_saved_in_their_order(bert_tokenizer, tmp_path):
    VisualBertProcessor(tokenizer=bert_tokenizer, answers=["z", "é", "<unk>", "a"]).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text("utf-8"))
    assert saved["answers"] == ["z", "é", "<unk>", "a"]
    assert AutoProcessor.from_pretrained(tmp_path).answers == ["z", "é", "<unk>", "a"]


# --------------------------------------------------------------------------------------------- tokenizers that are refused


@pytest.mark.parametrize("opener", [AutoProcessor, VisualBertProcessor])
def test_no_tokenizer_is_made_up(opener, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(OSError, match=f"{tmp_path} has no tokenizer; expected tokenizer.json or vocab.txt"):
        opener.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "visual_bert"}')  # with which `AutoTokenizer` makes one up
    with pytest.raises(ValueError, match=f"{tmp_path}: the tokenizer has no word pieces; expected a BERT tokenizer"):
        opener.from_pretrained(tmp_path)


@pytest.mark.parametrize(("task", "missing"), [("vqa", "?"), ("nlvr2", "mask_token")])
def test_a_tokenizer_without_a_token_that_texts_need_is_refused(task, missing, bert_tokenizer, tmp_path):
    VisualBertProcessor(tokenizer=bert_tokenizer, task=task).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = [word for word in saved["model"]["vocab"] if word != missing]
    saved["model"]["vocab"] = {word: number for number, word in enumerate(vocabulary)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "VisualBertProcessor"}
    tokens = {
        name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    }
    tokens.pop(missing, None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, **tokens}))
    with pytest.raises(
        ValueError, match=rf"{tmp_path}: the tokenizer has no {re.escape(missing)}; expected a BERT tokenizer"
    ):
        VisualBertProcessor.from_pretrained(tmp_path)
