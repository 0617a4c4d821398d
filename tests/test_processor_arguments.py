"""Keyword arguments as users of `transformers` write them: flat, in groups, from the tokenizer; honoured, or refused by name."""

import numpy as np
import pytest
import torch
from test_processor_tasks import (
    BOXES,
    CALLS,
    DETECTOR,
    DIM,
    TASKS,
    TOKENIZER,
    image,
    images_for,
    processor_for,
    regions,
)
from transformers import AutoProcessor, BertTokenizer

from modeling_visualbert import VisualBertImageProcessor, VisualBertProcessor
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer

LONG = "Is the red circle above the blue star and the green square below the cyan diamond ?"
# The same long text for every task, with what the task needs beside it.
LONG_CALLS = {
    "vqa": {"text": LONG},
    "nlvr2": {"text": LONG},
    "vcr": {"text": LONG, "choices": ["yes", "no"]},
    "flickr30k": {"text": LONG, "phrases": ["the red circle"]},
    "pretraining": {"text": LONG, "text_pair": "two small red circles"},
}
GROUPS = {
    "flat": lambda text, images: {**text, **images},
    "nested": lambda text, images: {"text_kwargs": text, "images_kwargs": images},
    "mixed": lambda text, images: {**text, "images_kwargs": images, "common_kwargs": {"return_tensors": "pt"}},
}


def pieces(processor, inputs, row=0):
    """Word pieces of one text, without padding."""
    ids = np.asarray(inputs["input_ids"]).reshape(-1, np.asarray(inputs["input_ids"]).shape[-1])[row]
    return [piece for piece in processor.tokenizer.convert_ids_to_tokens(ids.tolist()) if piece != "[PAD]"]


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", GROUPS)
def test_the_groups_of_transformers_mean_the_same_flat_and_nested(task, form):
    processor = processor_for(task)
    images = images_for(task, lambda count, seed: image(seed))
    extra = {"boxes": BOXES} if task == "vcr" else {}
    call = {name: value for name, value in CALLS[task].items() if name != "text_pair"}
    settings = GROUPS[form]({"padding": "max_length", "max_length": 40}, {"do_normalize": False})
    inputs = processor(images=images, **call, **extra, **settings)
    assert inputs["input_ids"].shape[-1] == 40
    assert inputs["pixel_values"].min() >= 0  # not normalised
    plain = processor(images=images, **call, **extra)
    torch.testing.assert_close(inputs["pixel_values"], plain["pixel_values"] * 0.25 + 0.5)


def test_the_second_texts_may_be_in_a_group():
    processor, call = processor_for("pretraining"), CALLS["pretraining"]
    same(processor(**call), processor(text=call["text"], text_kwargs={"text_pair": call["text_pair"]}))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("max_length", [12, 16])
def test_every_task_pads_and_cuts_to_one_length(task, max_length):
    call = LONG_CALLS[task]
    inputs = processor_for(task)(**call, padding="max_length", max_length=max_length, truncation=True)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert inputs[name].shape[-1] == max_length
    assert inputs["attention_mask"].all()
    with pytest.raises(ValueError, match=rf"^\w+ 0.* has \d+ tokens .*; expected at most {max_length}$"):
        processor_for(task)(**call, max_length=max_length)


def test_a_cut_question_keeps_its_question_mark_and_its_mask():
    processor = processor_for("vqa")
    inputs = processor(text=[LONG, "is it red"], padding="max_length", max_length=9, truncation=True)
    assert pieces(processor, inputs) == ["[CLS]", "is", "the", "red", "circle", "above", "?", "[MASK]", "[SEP]"]
    assert pieces(processor, inputs, 1) == ["[CLS]", "is", "it", "red", "?", "[MASK]", "[SEP]"]
    with pytest.raises(ValueError, match="^question 0: max_length 4; expected at least 5$"):
        processor(text=LONG, max_length=4, truncation=True)


def test_the_side_of_the_cut_is_that_of_the_tokenizer():
    tokenizer = corpus_tokenizer()
    tokenizer.truncation_side = "left"
    words = {"vqa": ["the", "cyan", "diamond", "?", "[MASK]"], "nlvr2": ["the", "cyan", "diamond", "?"]}
    for task, end in (*words.items(), ("flickr30k", words["nlvr2"])):
        processor = VisualBertProcessor(tokenizer=tokenizer, task=task)
        inputs = processor(text=LONG, max_length=len(end) + 2, truncation=True)
        assert pieces(processor, inputs) == ["[CLS]", *end, "[SEP]"]


@pytest.mark.parametrize("task", ["vcr", "pretraining"])
def test_tasks_that_were_trained_without_the_front_are_cut_there(task, tmp_path):
    processor = processor_for(task)
    inputs = processor(**LONG_CALLS[task], max_length=12, truncation=True)
    assert pieces(processor, inputs)[1] != "is" and pieces(processor, inputs).count("[SEP]") == 2
    processor.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(tmp_path, truncation_side="left")
    with pytest.raises(ValueError, match=f"^truncation_side 'right'; expected 'left': task '{task}' "):
        AutoProcessor.from_pretrained(tmp_path, truncation_side="right")


@pytest.mark.parametrize(("side", "kept", "lost"), [("right", "the red circle", "diamond"), ("left", "diamond", "red")])
def test_a_phrase_that_was_cut_off_is_named(side, kept, lost):
    tokenizer = corpus_tokenizer()
    tokenizer.truncation_side = side
    processor = VisualBertProcessor(tokenizer=tokenizer, task="flickr30k")
    inputs = processor(text=LONG, phrases=[kept], max_length=10, truncation=True)
    (place,) = inputs["region_to_phrase_position"][0].tolist()
    assert tokenizer.convert_ids_to_tokens(inputs["input_ids"][0, place].item()) == kept.split()[-1]
    with pytest.raises(ValueError, match=f"^sentence 0: phrase '{lost}' is cut off; expected a larger max_length$"):
        processor(text=LONG, phrases=[lost], max_length=10, truncation=True)


@pytest.mark.parametrize("strategy", ["longest_first", "only_first"])
def test_strategies_of_truncation_have_a_meaning_for_one_text_only(strategy):
    vqa = processor_for("vqa")
    same(
        vqa(text=LONG, max_length=9, truncation=strategy),
        vqa(text=LONG, max_length=9, truncation=True),
    )
    for task, name in (("vcr", "question 0"), ("pretraining", "text 0")):
        with pytest.raises(ValueError, match=f"^{name}: truncation '{strategy}'; expected True, which cuts the front"):
            processor_for(task)(**LONG_CALLS[task], truncation=strategy)
    with pytest.raises(ValueError, match="^question 0: truncation 'only_second'; expected True$"):
        vqa(text=LONG, truncation="only_second")


@pytest.mark.parametrize("task", TASKS)
def test_numpy_arrays_and_lists_hold_what_the_tensors_hold(task):
    processor, images = processor_for(task), images_for(task, regions)
    tensors = processor(images=images, **CALLS[task])
    arrays = processor(images=images, **CALLS[task], return_tensors="np")
    lists = processor(images=images, **CALLS[task], return_tensors=None)
    assert tensors.keys() == arrays.keys() == lists.keys()
    for name, tensor in tensors.items():
        assert isinstance(arrays[name], np.ndarray) and isinstance(lists[name], list)
        np.testing.assert_array_equal(arrays[name], tensor.numpy())
        np.testing.assert_array_equal(np.asarray(lists[name]), tensor.numpy())


def test_texts_and_images_may_come_in_different_forms():
    inputs = processor_for("vqa")(images=image(), text="is it red", text_kwargs={"return_tensors": "np"})
    assert isinstance(inputs["input_ids"], np.ndarray) and isinstance(inputs["pixel_values"], torch.Tensor)


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "flickr30k"])
def test_outputs_can_be_left_out(task):
    inputs = processor_for(task)(text="is it red", return_token_type_ids=False, return_attention_mask=False)
    assert "input_ids" in inputs and not {"token_type_ids", "attention_mask"} & inputs.keys()


@pytest.mark.parametrize(
    ("task", "name"), [("vqa", "attention_mask"), ("pretraining", "token_type_ids"), ("vcr", "token_type_ids")]
)
def test_outputs_that_the_model_needs_cannot_be_left_out(task, name):
    with pytest.raises(ValueError, match=f"^{name} left out; expected return_{name}=True: not all of it is [01]$"):
        processor_for(task)(**CALLS[task], **{f"return_{name}": False})


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"foo": 1}, TypeError, "unknown argument 'foo' for task '{task}'"),
        ({"videos": []}, TypeError, "unknown argument 'videos' for task '{task}'"),
        ({"videos_kwargs": {}}, TypeError, "unknown argument 'videos_kwargs' for task '{task}'"),
        ({"sampling_rate": 16000}, TypeError, "unknown argument 'sampling_rate' for task '{task}'"),
        ({"text_kwargs": {"foo": 1}}, TypeError, "unknown argument 'foo' in text_kwargs"),
        ({"images_kwargs": {"padding": True}}, TypeError, "unknown argument 'padding' in images_kwargs"),
        ({"common_kwargs": {"padding": True}}, TypeError, "unknown argument 'padding' in common_kwargs"),
        ({"text_kwargs": True}, TypeError, "text_kwargs is bool; expected a dict"),
        ({"padding": True, "text_kwargs": {"padding": False}}, ValueError, "Keyword argument padding was passed two"),
        ({"max_length": "40"}, ValueError, "Validation error for field 'max_length': .*"),
        ({"max_length": -1}, ValueError, "max_length -1; expected at least 1"),
        ({"pad_to_multiple_of": -2}, ValueError, "pad_to_multiple_of -2; expected at least 1"),
        ({"pad_to_multiple_of": 200}, ValueError, "pad_to_multiple_of 200 makes 200 tokens; expected at most 128"),
        ({"padding": "maximal"}, ValueError, "maximal is not a valid PaddingStrategy, please select one of"),
        ({"truncation": "front"}, ValueError, "front is not a valid TruncationStrategy, please select one of"),
        ({"return_tensors": "jax"}, ValueError, ".*'?return_tensors'?.*"),
        ({"size": "large"}, ValueError, "Validation error for field 'size': .*"),
        ({"max_length": 129}, ValueError, "max_length 129; expected at most 128, the tokenizer's model_max_length"),
        ({"padding_side": "left"}, ValueError, "padding_side 'left'; expected 'right'"),
        ({"add_special_tokens": False}, ValueError, "add_special_tokens False; expected True"),
        ({"stride": 2}, ValueError, "stride 2; expected none"),
        ({"is_split_into_words": True}, ValueError, "is_split_into_words True; expected none"),
        ({"return_offsets_mapping": True}, ValueError, "return_offsets_mapping True; expected none"),
        ({"return_mm_token_type_ids": True}, (TypeError, ValueError), ".*return_mm_token_type_ids.*"),
        ({"do_center_crop": True, "crop_size": 64}, ValueError, "do_center_crop; expected False"),
        ({"data_format": "channels_last"}, ValueError, "data_format 'channels_last'; expected 'channels_first'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_has_no_meaning_is_refused_in_one_line(task, settings, error, message):
    images = images_for(task, lambda count, seed: image(seed))
    extra = {"boxes": BOXES} if task == "vcr" else {}
    with pytest.raises(error, match="^" + message.format(task=task)) as caught:
        processor_for(task)(images=images, **CALLS[task], **extra, **settings)
    assert "\n" not in str(caught.value)


def test_settings_of_images_are_refused_beside_regions():
    with pytest.raises(ValueError, match="^size with precomputed regions; expected images to process$"):
        processor_for("vqa")(images=regions(3), text="is it red", size={"height": 64, "width": 64})


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("empty", [[], (), np.zeros(0, dtype=object)], ids=["list", "tuple", "array"])
def test_empty_batches_are_refused_in_words(task, empty):
    processor = processor_for(task)
    with pytest.raises(ValueError, match="^no texts; expected at least one question$"):
        processor(text=empty)
    if not isinstance(empty, np.ndarray):
        with pytest.raises(ValueError, match="^no images; expected "):
            processor(images=empty, **CALLS[task])
        with pytest.raises(ValueError, match="^no (images|texts); expected "):
            processor(images=empty, text=empty)


def test_texts_of_different_lengths_need_padding():
    message = "^texts of 5 to 10 tokens with padding=False; expected padding=True or 'max_length'$"
    for padding in (False, "do_not_pad"):
        with pytest.raises(ValueError, match=message):
            processor_for("vqa")(text=["red", "Is the red circle above it?"], padding=padding)
    assert processor_for("vqa")(text=["is it red", "is it blue"], padding=False)["input_ids"].shape == (2, 7)


@pytest.mark.parametrize("column", [tuple, np.array], ids=["tuple", "array"])
def test_texts_in_every_form_of_a_column(column):
    texts = ["is it red", "is it blue"]
    same(processor_for("vqa")(text=column(texts)), processor_for("vqa")(text=texts))


def test_texts_and_images_of_a_table():
    from datasets import Dataset, Image

    table = Dataset.from_dict({"image": [image(0), image(1)], "question": ["is it red", "is it blue"]})
    table = table.cast_column("image", Image())
    undecoded = table.cast_column("image", Image(decode=False))
    expected = processor_for("vqa")(images=[image(0), image(1)], text=["is it red", "is it blue"])
    for rows in (table, undecoded, undecoded[:]):
        same(processor_for("vqa")(images=rows["image"], text=rows["question"]), expected)


# ------------------------------------------------------------------------------------- settings of the tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    VisualBertProcessor(VisualBertImageProcessor.from_pretrained(DETECTOR), TOKENIZER, task="vqa").save_pretrained(
        folder
    )
    return folder


def test_the_longest_text_is_that_of_the_tokenizer(saved):
    processor = AutoProcessor.from_pretrained(saved, model_max_length=8)
    assert processor(text="is it red", padding="max_length")["input_ids"].shape == (1, 8)
    with pytest.raises(ValueError, match="question 0 has 20 tokens .*; expected at most 8"):
        processor(text=LONG)
    with pytest.raises(ValueError, match="max_length 9; expected at most 8, the tokenizer's model_max_length"):
        processor(text=LONG, max_length=9)


def test_the_tokenizer_s_own_length_and_padding_are_defaults(saved):
    tokenizer = BertTokenizer.from_pretrained(saved, max_length=20, padding="max_length", truncation=True)
    processor = VisualBertProcessor(tokenizer=tokenizer)
    assert processor.max_length == 20
    assert processor(text="is it red")["input_ids"].shape == (1, 20)
    assert processor(text="is it red " * 20)["input_ids"].shape == (1, 20)
    assert processor(text="is it red", padding=True)["input_ids"].shape == (1, 7)
    assert VisualBertProcessor(tokenizer=tokenizer, max_length=30)(text="is it red")["input_ids"].shape == (1, 30)


@pytest.mark.parametrize("length", [0, -1, "64", 8.0, True])
def test_a_length_that_is_none_is_refused(length):
    with pytest.raises(ValueError, match=f"^max_length {length!r}; expected a number of tokens, at least 1$"):
        VisualBertProcessor(tokenizer=TOKENIZER, max_length=length)


def test_a_side_that_is_none_is_refused(saved):
    processor = AutoProcessor.from_pretrained(saved)
    processor.tokenizer.truncation_side = "middle"
    with pytest.raises(ValueError, match="^truncation_side 'middle'; expected 'left' or 'right'$"):
        processor(text=LONG, max_length=9, truncation=True)


@pytest.mark.parametrize("kind", ["loaded", "assigned"])
def test_padding_on_the_left_is_refused(saved, kind):
    processor = AutoProcessor.from_pretrained(saved, **({"padding_side": "left"} if kind == "loaded" else {}))
    processor.tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match="^padding_side 'left'; expected 'right': VisualBERT counts the positions"):
        processor(text=["is it red", "is it"])
    assert processor(text=["is it red", "is it"], padding_side="right")["attention_mask"].tolist()[1][-1] == 0


def test_a_tokenizer_of_cased_text_gets_cased_questions():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", "Is", "is", "Paris", "paris", "here"]
    vocabulary = {word: i for i, word in enumerate(words)}
    cased, uncased = (BertTokenizer(vocab=vocabulary, do_lower_case=lower) for lower in (False, True))
    expected = {cased: ["Is", "Paris", "here"], uncased: ["is", "paris", "here"]}
    for tokenizer, found in expected.items():
        processor = VisualBertProcessor(tokenizer=tokenizer)
        assert pieces(processor, processor(text="Is Paris here?")) == ["[CLS]", *found, "?", "[MASK]", "[SEP]"]


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("task", TASKS)
def test_tokens_that_were_added_are_tokens(task, special):
    tokenizer = corpus_tokenizer()
    added = ["<Obj,1>", "what?"]
    tokenizer.add_tokens(added, special_tokens=special)
    processor = VisualBertProcessor(tokenizer=tokenizer, task=task)
    extra = {"choices": ["yes", "no"]} if task == "vcr" else {}
    inputs = processor(text="is <Obj,1> what? red [SEP] ", **extra)
    ids = inputs["input_ids"].flatten().tolist()
    numbers = tokenizer.convert_tokens_to_ids(added)
    assert [number for number in ids if number in numbers] == numbers * (2 if task == "vcr" else 1)
    assert pieces(processor, inputs).count("[SEP]") == (
        2 if task == "vcr" else 1
    )  # what a user writes is no control token


def test_the_tokenizer_says_which_outputs_there_are(saved):
    processor = AutoProcessor.from_pretrained(saved, model_input_names=["input_ids", "attention_mask"])
    assert processor(text="is it red").keys() == {"input_ids", "attention_mask"}
    assert "token_type_ids" in processor(text="is it red", return_token_type_ids=True)


def test_other_names_of_control_tokens_are_used(saved):
    processor = AutoProcessor.from_pretrained(saved, cls_token="(CLS)", sep_token="(SEP)")
    assert pieces(processor, processor(text="is it red")) == ["(CLS)", "is", "it", "red", "?", "[MASK]", "(SEP)"]


# --------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("form", ["nested", "array", "tensor", "tuple"])
def test_batches_of_images_in_every_form(form):
    images = [image(0), image(1)]
    arrays = np.stack([np.asarray(picture) for picture in images])
    forms = {
        "nested": [[picture] for picture in images],
        "array": arrays,
        "tensor": torch.from_numpy(arrays).permute(0, 3, 1, 2),
        "tuple": tuple(images),
    }
    texts = ["is it red", "is it blue"]
    same(processor_for("vqa")(images=forms[form], text=texts), processor_for("vqa")(images=images, text=texts))


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, lambda arrays: list(map(tuple, arrays))])
def test_pairs_of_images_in_every_form(form):
    pictures = [image(number) for number in range(4)]
    arrays = np.stack([np.asarray(picture) for picture in pictures]).reshape(2, 2, *np.asarray(pictures[0]).shape)
    processor, texts = processor_for("nlvr2"), CALLS["nlvr2"]["text"]
    expected = processor(images=[pictures[:2], pictures[2:]], text=texts)
    same(processor(images=form(arrays), text=texts), expected)
    same(processor(images=form(arrays)[0], text=texts[0]), processor(images=pictures[:2], text=texts[0]))
    with pytest.raises(ValueError, match="^images 0: a list of 3; expected a pair of images$"):
        processor(images=pictures[:3], text=texts[0])


@pytest.mark.parametrize(
    ("task", "argument"),
    [
        ("pretraining", {"text_pair": "ab"}),
        ("flickr30k", {"phrases": "ab"}),
        ("flickr30k", {"phrases": ["a red circle", "stars"]}),
        ("vcr", {"choices": "ab"}),
        ("vcr", {"choices": ["yes", "no"]}),
        ("vcr", {"choices": CALLS["vcr"]["choices"], "objects": "ab"}),
        ("vcr", {"choices": CALLS["vcr"]["choices"], "objects": ["circle", "star"]}),
    ],
)
def test_a_string_is_not_taken_for_a_list_of_letters(task, argument):
    with pytest.raises(
        (TypeError, ValueError), match=r"(for a list of texts|(sentence|question) 0: .*); expected a list"
    ):
        processor_for(task)(text=CALLS[task]["text"], **argument)


@pytest.mark.parametrize("inner", [[], ["one", "two"]], ids=["none", "two"])
def test_a_text_has_one_image(inner):
    nested = [inner and [image(), image()], [image()]]
    with pytest.raises(ValueError, match=f"^images 0: a list of {len(inner)}; expected one image$"):
        processor_for("vqa")(images=nested, text=["is it red", "is it blue"])


def test_saving_leaves_the_processor_as_it_was(tmp_path):
    processor = VisualBertProcessor(tokenizer=TOKENIZER, region_dim=DIM)
    before = processor.to_dict()
    processor.save_pretrained(tmp_path)
    assert processor.to_dict() == before
