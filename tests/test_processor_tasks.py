"""Every task from text and image to a decoded result: shapes, equal ways in, refusals, post-processing.

The tokenizer and the detector are those of the embedded corpus; the models are tiny and random.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import MODELS, alone, meaningful, randomise, scores_of, tiny_config, tiny_model
from PIL import Image
from transformers import AutoProcessor

import modeling_visualbert
from modeling_visualbert import VisualBertImageProcessor, VisualBertProcessor
from modeling_visualbert.corpus.scenes import render, sample_scene
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.hub_code.losses_visualbert import check_choices_mask
from modeling_visualbert.hub_code.modeling_region_encoder import QueryRegionEncoder

TOKENIZER = corpus_tokenizer()
DETECTOR = Path(modeling_visualbert.__file__).parent / "assets" / "shapes_detector"
DIM = 5
PERSON = "person"
TASKS = ("vqa", "nlvr2", "vcr", "flickr30k", "pretraining")
close = {"atol": 2e-5, "rtol": 1e-4}
# A batch of two texts, with all that the task has beside images; the second is shorter.
CALLS = {
    "vqa": {"text": ["How many red circles are there?", "Is it red?"]},
    "nlvr2": {"text": ["One image shows two circles above a star.", "Both are red."]},
    "vcr": {
        "text": ["What color is [0] above [1,2]?", ["[0]", "is", "red", "?"]],
        "choices": [["[0] is red.", "[3] is blue.", "[2, 1]"], ["yes", ["no", "[1]"], "it is [0]"]],
        "objects": [["circle", PERSON, "star", PERSON], ["square", PERSON]],
    },
    "flickr30k": {
        "text": ["A red circle is above a cat .", "two stars"],
        "phrases": [["a red circle", "a cat", 3], ["stars"]],
    },
    "pretraining": {"text": ["A red [MASK] above a star.", "[MASK] circle"], "text_pair": ["Two circles.", "red"]},
}
BOXES = [
    [[0, 0, 80, 64], [40.5, 32, 160, 128], [10, 20, 60, 100], [100, 5, 155, 60]],
    [[16, 16, 64, 64], [80, 0, 160, 128]],
]


def processor_for(task, **fields):
    return VisualBertProcessor(tokenizer=TOKENIZER, **{"task": task, "max_length": 64, "region_dim": DIM, **fields})


def regions(count, seed=0, **fields):
    """Regions of a picture of 160 x 128 pixels."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, size=(count, 2))
    return {
        "visual_embeds": rng.normal(size=(count, DIM)).astype(np.float32),
        "boxes": np.concatenate((low, low + 50), axis=1),
        "image_size": [128, 160],
        **fields,
    }


def image(number=0):
    return render(sample_scene(number, f"test/{number}"))


def images_for(task, make):
    """Images of both texts of the task; `make(count, seed)` makes one."""
    if task == "nlvr2":
        return [(make(3, 0), make(2, 1)), (make(1, 2), make(2, 3))]
    return [make(6 if task == "vcr" else 4, 0), make(3, 1)]


def call(task, rows=slice(None)):
    """The arguments of both texts, or of some."""
    return {name: value[rows] for name, value in CALLS[task].items()}


def one_of(task, number):
    """The arguments of one text, not in lists; VCR texts that are words stay in a list."""
    given = {name: value[number] for name, value in CALLS[task].items()}
    return given if isinstance(given["text"], str) else call(task, slice(number, number + 1))


def head_for(task):
    """A tiny model that reads precomputed regions."""
    return tiny_model(task, vocab_size=len(TOKENIZER), visual_embedding_dim=DIM, max_position_embeddings=64)


@pytest.fixture(scope="module")
def eyes():
    """A function that gives the task's model with the shipped detector, and its processor."""
    encoder = QueryRegionEncoder.from_pretrained(DETECTOR).eval()

    def make(task, **fields):
        config = tiny_config(
            task,
            vocab_size=len(TOKENIZER),
            visual_embedding_dim=encoder.config.region_dim,
            max_position_embeddings=64,
            region_encoder_config=encoder.config.to_dict(),
        )
        model = randomise(MODELS[task](config))
        model.visual_bert.region_encoder.load_state_dict(encoder.state_dict())
        image_processor = VisualBertImageProcessor.from_pretrained(DETECTOR)
        return model, processor_for(task, image_processor=image_processor, region_dim=73, **fields)

    return make


# ----------------------------------------------------------------------------------------------- what comes out of it


def test_two_images_have_segments():
    inputs = processor_for("nlvr2")(images=images_for("nlvr2", regions), **CALLS["nlvr2"])
    assert inputs["visual_token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]]
    assert inputs["visual_attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    first, second = (torch.from_numpy(regions(n, seed)["visual_embeds"]) for n, seed in ((1, 2), (2, 3)))
    assert torch.equal(inputs["visual_embeds"][1, :3], torch.cat((first, second)))
    assert not inputs["visual_embeds"][1, 3:].any()
    text = " ".join(TOKENIZER.convert_ids_to_tokens(inputs["input_ids"][1]))
    assert text == "[CLS] both are red . [SEP]" + " [PAD]" * 5


def test_pixels_of_pairs():
    processor = processor_for("nlvr2", image_processor=VisualBertImageProcessor.from_pretrained(DETECTOR))
    images = [image(i) for i in range(4)]
    inputs = processor(images=[images[:2], images[2:]], **CALLS["nlvr2"])
    assert inputs["pixel_values"].shape == (2, 2, 3, 128, 160) and inputs["image_sizes"].shape == (2, 2, 2)
    flat = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"].flatten(0, 1), flat)


def test_choices_have_texts_and_an_alignment_each():
    inputs = processor_for("vcr")(images=images_for("vcr", regions), **CALLS["vcr"])
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == inputs["token_type_ids"].shape
    assert inputs["input_ids"].shape[:2] == (2, 3)
    assert inputs["visual_embeds"].shape == (2, 6, DIM) and inputs["image_text_alignment"].shape[:3] == (2, 3, 6)
    last = TOKENIZER.convert_ids_to_tokens(inputs["input_ids"][1, 2])
    assert last[:10] == ["[CLS]", "square", "is", "red", "?", "[SEP]", "it", "is", "square", "[SEP]"]
    assert inputs["token_type_ids"][1, 2].tolist()[:11] == [0] * 6 + [1] * 4 + [0]
    alignment = inputs["image_text_alignment"][1, 2]
    assert (alignment[[0, 2, 3, 4, 5]] == -1).all()  # region 0 is the whole image
    assert alignment[1].tolist()[:3] == [1, 8, -1]
    for choice in range(3):
        words = TOKENIZER.convert_ids_to_tokens(inputs["input_ids"][0, choice])
        named = [words[place] for place in inputs["image_text_alignment"][0, choice, 1].tolist() if place >= 0]
        assert named == ["circle"] * (2 if choice == 0 else 1)


def test_without_the_whole_image_objects_start_at_region_zero():
    with_whole = processor_for("vcr")(**CALLS["vcr"])["image_text_alignment"]
    without = processor_for("vcr", whole_image=False)(**CALLS["vcr"])["image_text_alignment"]
    assert with_whole.shape[2] == 5 and without.shape[2] == 4
    assert torch.equal(with_whole[:, :, 1:], without) and (with_whole[:, :, 0] == -1).all()


def test_the_alignment_of_the_authors_is_asked_for():
    text = {"text": "who is [0] near [1]", "choices": ["yes"], "objects": [PERSON, "star"]}
    ours = processor_for("vcr")(**text)["image_text_alignment"][0, 0, 2]
    theirs = processor_for("vcr", alignment="original")(**text)["image_text_alignment"][0, 0, 2]
    pieces = TOKENIZER.convert_ids_to_tokens(processor_for("vcr")(**text)["input_ids"][0, 0])
    assert ours.tolist()[0] == pieces.index("star") and theirs.tolist()[0] == 5 != ours[0]


def test_phrases_are_read_at_their_last_piece():
    inputs = processor_for("flickr30k")(**CALLS["flickr30k"])
    first = TOKENIZER.convert_ids_to_tokens(inputs["input_ids"][0])
    assert inputs["region_to_phrase_position"].tolist() == [[3, first.index("##t"), 4], [2, -1, -1]]
    without = processor_for("flickr30k")(text="two stars")
    assert "region_to_phrase_position" not in without
    assert processor_for("flickr30k")(text="two stars", phrases=[])["region_to_phrase_position"].tolist() == [[-1]]


def test_long_choices_and_pairs_are_cut_when_asked_for():
    long = {"text": "red " * 80, "choices": ["blue", "[0] star"], "objects": ["circle"]}
    with pytest.raises(ValueError, match="question 0, choice 0 has 84 tokens .*; expected at most 64"):
        processor_for("vcr")(**long)
    inputs = processor_for("vcr")(**long, truncation=True)
    assert inputs["input_ids"].shape == (1, 2, 64)
    assert inputs["image_text_alignment"][0, :, 1].tolist() == [[-1], [61]]
    for task in ("nlvr2", "pretraining"):
        with pytest.raises(ValueError, match="text 0 has 82 tokens .*; expected at most 64"):
            processor_for(task)(text="red " * 80)
        assert processor_for(task)(text="red " * 80, truncation=True)["input_ids"].shape == (1, 64)


@pytest.mark.parametrize("task", TASKS)
def test_padding_can_be_asked_for(task):
    inputs = processor_for(task)(**CALLS[task], padding="max_length")
    assert inputs["input_ids"].shape[-1] == 64
    assert processor_for(task)(**CALLS[task], pad_to_multiple_of=16)["input_ids"].shape[-1] % 16 == 0


@pytest.mark.parametrize("task", TASKS)
def test_every_input_is_an_argument_of_the_model(task):
    processor = processor_for(task)
    inputs = processor(images=images_for(task, regions), **CALLS[task])
    assert set(inputs) <= set(processor.model_input_names)
    extra = {"nlvr2": "visual_token_type_ids", "vcr": "image_text_alignment", "flickr30k": "region_to_phrase_position"}
    assert set(inputs) - {
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "visual_embeds",
        "visual_attention_mask",
    } == ({extra[task]} if task in extra else set())


# --------------------------------------------------------------------------------------------- through a model


@pytest.mark.parametrize("task", TASKS)
def test_one_example_equals_the_example_in_a_batch(task):
    model, processor, images = head_for(task), processor_for(task), images_for(task, regions)
    both = processor(images=images, **CALLS[task])
    together = model(**both)
    for row in range(2):
        given = one_of(task, row)
        image = images[row] if isinstance(given["text"], str) else [images[row]]
        single = processor(images=image, **given)
        assert len(single["input_ids"]) == 1
        expected = alone(dict(both), row)
        for name in ("input_ids", "attention_mask", "token_type_ids", "visual_embeds", "visual_attention_mask"):
            assert torch.equal(single[name], expected[name]), name
        found, batched = scores_of(task, model(**single)), scores_of(task, together)[row : row + 1]
        if task == "pretraining":  # regions follow the padding of the text
            length = single["input_ids"].shape[1]
            found, batched = found[:, :length], batched[:, :length]
        if task == "flickr30k":
            batched = batched[:, : found.shape[1], : found.shape[2]]
        torch.testing.assert_close(found, batched, **close)


@pytest.mark.parametrize("task", TASKS)
def test_more_padding_changes_nothing(task):
    model, processor, images = head_for(task), processor_for(task), images_for(task, regions)
    short = processor(images=images, **CALLS[task])
    long = processor(images=images, **CALLS[task], padding="max_length")
    torch.testing.assert_close(meaningful(task, model(**long), long), meaningful(task, model(**short), short), **close)


@pytest.mark.parametrize("task", TASKS)
def test_one_image_serves_all_texts(task):
    model, processor = head_for(task), processor_for(task)
    image = images_for(task, regions)[0]
    once = processor(images=[image] if task == "nlvr2" else image, **CALLS[task])
    twice = processor(images=[image, image], **CALLS[task])
    assert len(once["visual_embeds"]) == 1
    torch.testing.assert_close(scores_of(task, model(**once)), scores_of(task, model(**twice)), **close)


def image_or_regions(task, model, processor, images):
    """The images, and the regions the model finds in them, one mapping each."""
    pixels = processor.image_processor(images, return_tensors="pt")
    found = model.get_image_features(pixels["pixel_values"])
    return processor.post_process_regions(found, pixels["image_sizes"])


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "flickr30k", "pretraining"])
def test_pixels_equal_their_regions(task, eyes):
    model, processor = eyes(task)
    images = [image(i) for i in range(4 if task == "nlvr2" else 2)]
    found = image_or_regions(task, model, processor, images)
    assert len({len(item["visual_embeds"]) for item in found}) > 1, "as many regions everywhere: no padding is tested"
    ways = [images, found]
    if task == "nlvr2":
        ways = [[way[:2], way[2:]] for way in ways]
    pixels, precomputed = (processor(images=way, **CALLS[task]) for way in ways)
    assert pixels["pixel_values"].dim() == (5 if task == "nlvr2" else 4)
    from_pixels, from_regions = scores_of(task, model(**pixels)), scores_of(task, model(**precomputed))
    if task == "pretraining":
        length = precomputed["input_ids"].shape[1]
        visible = precomputed["attention_mask"].bool()
        from_pixels, from_regions = from_pixels[:, :length][visible], from_regions[:, :length][visible]
    if task == "flickr30k":
        keep = meaningful_pairs(precomputed)
        from_pixels, from_regions = from_pixels[..., : keep.shape[2]][keep], from_regions[keep]
    torch.testing.assert_close(from_pixels, from_regions, atol=1e-3, rtol=1e-3)
    if task == "nlvr2":  # which image is the first matters
        swapped = processor(images=[pair[::-1] for pair in ways[0]], **CALLS[task])
        assert (model(**swapped).logits - from_pixels).abs().max() > 1e-3


def meaningful_pairs(inputs):
    """[B, E, R]: pairs of a phrase and a region that are there."""
    return (inputs["region_to_phrase_position"] >= 0)[..., None] & inputs["visual_attention_mask"].bool()[:, None]


@pytest.mark.parametrize("whole_image", [True, False])
def test_given_boxes_from_pixels_equal_their_features(whole_image, eyes):
    model, processor = eyes("vcr", whole_image=whole_image)
    images = [image(0), image(1)]
    pixels = processor(images=images, **CALLS["vcr"], boxes=BOXES)
    offset = int(whole_image)
    assert pixels["boxes_unit"].shape == (2, 4 + offset, 4)
    assert pixels["visual_attention_mask"].tolist() == [[1] * (4 + offset), [1] * (2 + offset) + [0] * 2]
    if whole_image:
        assert pixels["boxes_unit"][:, 0].tolist() == [[0, 0, 1, 1]] * 2
    torch.testing.assert_close(pixels["boxes_unit"][0, offset + 1], torch.tensor([40.5 / 160, 0.25, 1, 1]))
    assert not pixels["boxes_unit"][1, offset + 2 :].any()
    found = model.get_image_features(
        pixels["pixel_values"], boxes_unit=pixels["boxes_unit"], boxes_mask=pixels["visual_attention_mask"]
    )
    batch = processor(images=found, **CALLS["vcr"])
    listed = processor(images=processor.post_process_regions(found, pixels["image_sizes"]), **CALLS["vcr"])
    from_pixels = model(**pixels).logits
    assert from_pixels.shape == (2, 3)
    for inputs in (batch, listed):
        assert torch.equal(inputs["image_text_alignment"], pixels["image_text_alignment"])
        torch.testing.assert_close(model(**inputs).logits, from_pixels, **close)
    single = processor(images=images[1], **one_of("vcr", 0) | {"objects": CALLS["vcr"]["objects"][0]}, boxes=BOXES[0])
    assert single["boxes_unit"].shape == (1, 4 + offset, 4) and model(**single).logits.shape == (1, 3)
    moved = processor(images=images, **CALLS["vcr"], boxes=[BOXES[0][::-1], BOXES[1]])
    assert (model(**moved).logits[0] - from_pixels[0]).abs().max() > 1e-3


def test_boxes_are_pixels_of_the_original_image(eyes):
    model, processor = eyes("vcr")
    small, large = image(), image().resize((640, 512), Image.Resampling.NEAREST)
    text = {"text": "is [0] red", "choices": ["yes", "no"], "objects": ["circle"]}
    one = processor(images=small, **text, boxes=[[10, 20, 60, 100]])
    four = processor(images=large, **text, boxes=[[40, 80, 240, 400]])
    assert torch.equal(one["boxes_unit"], four["boxes_unit"])


def test_boxes_without_text_describe_images(eyes):
    _, processor = eyes("vcr")
    inputs = processor(images=[image(), image(1)], boxes=BOXES)
    assert sorted(inputs) == ["boxes_unit", "image_sizes", "pixel_values", "visual_attention_mask"]
    none = processor(images=image(), text="is it red", choices=["yes"], boxes=[])
    assert none["boxes_unit"].tolist() == [[[0, 0, 1, 1]]]
    over = processor(images=image(), text="is it red", choices=["yes"], boxes=[[-0.9, 0, 160.9, 128]])
    assert over["boxes_unit"][0, 1].tolist() == [0, 0, 1, 1]  # cut at the border


# ------------------------------------------------------------------------------------------------- saved and loaded


@pytest.mark.parametrize("task", TASKS)
def test_saved_and_loaded(task, tmp_path):
    fields = {"alignment": "original", "whole_image": False, "max_length": 50} if task == "vcr" else {"max_length": 50}
    processor = processor_for(task, **fields)
    head_for(task).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is VisualBertProcessor
    for name in ("task", "alignment", "whole_image", "max_length", "region_dim", "answers"):
        assert getattr(loaded, name) == getattr(processor, name), name
    images = images_for(task, regions)
    before, after = (p(images=images, **CALLS[task]) for p in (processor, loaded))
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name


# ---------------------------------------------------------------------------------------------------- reading outputs


def test_truth_values():
    logits = torch.tensor([[1.0, 3.0], [2.0, -1.0], [0.5, 0.5]], dtype=torch.bfloat16)
    found = processor_for("nlvr2").post_process_visual_reasoning({"logits": logits})
    assert [item["label"] for item in found] == ["True", "False", "False"]
    assert [item["score"] for item in found] == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-3)), 0.5])
    assert processor_for("nlvr2").post_process_visual_reasoning(logits) == found


def test_choices_and_their_scores():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, -1.0, 0.0]])
    found = processor_for("vcr").post_process_multiple_choice(logits)
    assert [item["choice"] for item in found] == [1, 0]  # of equals the first
    for item, row in zip(found, logits, strict=True):
        assert item["scores"] == pytest.approx(row.softmax(-1).tolist()) and sum(item["scores"]) == pytest.approx(1)


def test_what_fills_up_the_number_of_choices_is_masked():
    processor, call = processor_for("vcr"), CALLS["vcr"]
    same = processor(text=call["text"], choices=call["choices"], objects=call["objects"])
    assert "choices_mask" not in same
    fewer = [call["choices"][0], call["choices"][1][:2]]
    found = processor(text=call["text"], choices=fewer, objects=call["objects"])
    assert found.pop("choices_mask").tolist() == [[1, 1, 1], [1, 1, 0]]
    assert found["attention_mask"][1, 2].tolist() == [1] + [0] * (found["attention_mask"].shape[2] - 1)
    assert (found["image_text_alignment"][1, 2] == -1).all()
    for name, tensor in found.items():
        width = tensor.shape[-1]
        assert torch.equal(tensor[0], same[name][0][..., :width]) and torch.equal(
            tensor[1, :2], same[name][1, :2, ..., :width]
        )
    scored = processor.post_process_multiple_choice(torch.tensor([[1.0, 2.0, 3.0], [-5.0, -4.0, -torch.inf]]))
    assert [item["choice"] for item in scored] == [2, 1] and len(scored[1]["scores"]) == 2


@pytest.mark.parametrize(
    ("mask", "labels", "message"),
    [
        ([[1, 1]], [0], r"`choices_mask` of shape \(1, 2\); expected \(batch_size, num_choices\), here \(2, 3\)"),
        ([[1, 1, 1], [0, 0, 0]], [0, -100], "`choices_mask`: question 1 has no choice; expected at least one"),
        (
            [[1, 1, 1], [1, 1, 0]],
            [2, 2],
            "`labels`: question 1 has 2 choices, and 2 is masked; expected one of its own",
        ),
    ],
)
def test_masks_of_choices_that_do_not_fit_are_refused(mask, labels, message):
    with pytest.raises(ValueError, match=message):
        check_choices_mask(torch.tensor(mask), torch.zeros(2, 3), torch.tensor(labels))
    check_choices_mask(torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.zeros(2, 3), torch.tensor([2, -100]))


def test_regions_of_phrases():
    logits = torch.tensor([[[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]], [[2.0, 1.0, 7.0], [9.0, 9.0, 9.0]]])
    images = [
        {"boxes": torch.tensor([[0.0, 0, 80, 64], [5, 6, 7, 8], [1, 2, 3, 4]])},
        {"boxes": torch.tensor([[10.0, 20, 30, 40], [50, 60, 70, 80]])},
    ]
    processor = processor_for("flickr30k")
    best = processor.post_process_phrase_grounding(logits, images, [2, 1])
    assert [[phrase[0]["region"] for phrase in sentence] for sentence in best] == [[1, 2], [0]]
    assert best[0][0][0]["box"] == [5, 6, 7, 8] and best[1][0][0]["box"] == [10, 20, 30, 40]
    assert best[1][0][0]["score"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert len(best[0][0]) == 1
    every = processor.post_process_phrase_grounding({"logits": logits}, images, [2, 1], top_k=None)
    assert [[len(phrase) for phrase in sentence] for sentence in every] == [[3, 3], [2]]
    for phrase in (*every[0], *every[1]):
        scores = [item["score"] for item in phrase]
        assert sum(scores) == pytest.approx(1) and scores == sorted(scores, reverse=True)
    assert [item["region"] for item in every[0][0]] == [1, 2, 0]
    assert processor.post_process_phrase_grounding(logits, images, [2, 0], top_k=10)[1] == []
    with pytest.raises(ValueError, match="2 sentences, 1 images, 2 numbers of phrases"):
        processor.post_process_phrase_grounding(logits, images[:1], [2, 1])
    with pytest.raises(ValueError, match="4 boxes for scores of 3 regions; expected as many"):
        processor.post_process_phrase_grounding(logits, [{"boxes": torch.zeros(4, 4)}, images[1]], [2, 1])


def test_phrases_from_pixels_have_boxes_in_pixels(eyes):
    model, processor = eyes("flickr30k")
    images = [image(0).resize((320, 384)), image(1)]
    found = image_or_regions("flickr30k", model, processor, images)
    inputs = processor(images=images, **CALLS["flickr30k"])
    grounded = processor.post_process_phrase_grounding(model(**inputs), found, [3, 1], top_k=2)
    assert [len(sentence) for sentence in grounded] == [3, 1]
    for sentence, item in zip(grounded, found, strict=True):
        height, width = item["image_size"].tolist()
        for phrase in sentence:
            for region in phrase:
                assert region["box"] == item["boxes"][region["region"]].tolist()
                assert 0 <= region["box"][0] < region["box"][2] <= width
                assert 0 <= region["box"][1] < region["box"][3] <= height
    assert max(found[0]["boxes"][:, 3]) > 128  # not the size the detector sees


def test_masks_and_the_match():
    processor = processor_for("pretraining")
    inputs = processor(text=["[MASK] is [MASK]", "red"])
    red, circle = TOKENIZER.convert_tokens_to_ids(["red", "circle"])
    logits = torch.zeros(2, 8, len(TOKENIZER))  # five positions of text, then regions
    logits[0, 1, red], logits[0, 1, circle], logits[0, 3, circle], logits[0, 7, red] = 9.0, 8.0, 9.0, 50.0
    outputs = {"prediction_logits": logits, "seq_relationship_logits": torch.tensor([[0.0, 1.0], [3.0, 0.0]])}
    first, second = processor.post_process_pretraining(outputs, inputs["input_ids"], top_k=2)
    assert [[word["word"] for word in words] for words in first["words"]][0] == ["red", "circle"]
    assert first["words"][1][0]["word"] == "circle" and len(first["words"][1]) == 2
    shares = logits[0, 1].softmax(-1)
    assert [word["score"] for word in first["words"][0]] == pytest.approx([shares[red].item(), shares[circle].item()])
    assert second["words"] == []
    assert [first["match"], second["match"]] == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(3))])


@pytest.mark.parametrize("task", ["nlvr2", "vcr", "pretraining"])
def test_from_pixels_to_a_result(task, eyes):
    model, processor = eyes(task)
    images, extra = [image(0), image(1)], {"boxes": BOXES} if task == "vcr" else {}
    inputs = processor(images=[images, images] if task == "nlvr2" else images, **CALLS[task], **extra)
    outputs = model(**inputs)
    if task == "pretraining":
        found = processor.post_process_pretraining(outputs, inputs["input_ids"], top_k=3)
        assert [len(item["words"]) for item in found] == [1, 1] and all(0 <= item["match"] <= 1 for item in found)
        assert all(len(words) == 3 for item in found for words in item["words"])
    else:
        found = getattr(processor, "post_process_" + {"nlvr2": "visual_reasoning", "vcr": "multiple_choice"}[task])(
            outputs
        )
        assert len(found) == 2


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "vpr"}, "unknown task 'vpr'; expected one of vqa, nlvr2, vcr, flickr30k, pretraining"),
        ({"task": "vcr", "alignment": "word"}, "alignment 'word'; expected 'subword' or 'original'"),
    ],
)
def test_processors_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        processor_for(**fields)


OWN = {"vcr": ["choices", "objects", "boxes"], "flickr30k": ["phrases"], "pretraining": ["text_pair"]}
ALIEN = [
    (task, name)
    for task in TASKS
    for name in (*(name for names in OWN.values() for name in names), "question")
    if name not in OWN.get(task, ())
]


@pytest.mark.parametrize(("task", "name"), ALIEN)
def test_arguments_of_another_task_are_refused(task, name):
    with pytest.raises(TypeError, match=f"unknown argument '{name}' for task '{task}'"):
        processor_for(task)(text="red", **{name: ["red"]})


@pytest.mark.parametrize("task", TASKS)
def test_empty_texts_are_named(task):
    what = {"vqa": "question 1", "vcr": "question 1, choice 0", "flickr30k": "sentence 1"}.get(task, "text 1")
    given = {name: value for name, value in CALLS[task].items() if name != "phrases"}
    for empty in ("", " ", "\u200b"):
        with pytest.raises(ValueError, match=rf"{what}(:| is).* empty.*; expected at least one word"):
            processor_for(task)(**{**given, "text": [given["text"][0], empty]})
    with pytest.raises(ValueError, match="no texts; expected at least one"):
        processor_for(task)(text=[])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("value", [None, 5, b"red"])
def test_texts_that_are_no_strings_are_named(task, value):
    what = {"vqa": "question 1", "vcr": "question 1, choice 0", "flickr30k": "sentence 1"}.get(task, "text 1")
    with pytest.raises(TypeError, match=rf"{what}(:| is) .*; expected a string"):
        processor_for(task)(**{**CALLS[task], "text": [CALLS[task]["text"][0], value]})
    with pytest.raises(TypeError, match="text is int; expected a"):
        processor_for(task)(text=5)


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("vcr", {"choices": None}, "no choices; expected `choices`, a list for each question"),
        ("vcr", {"choices": [["yes", "no"]]}, "1 choices for 2 texts; expected as many"),
        ("vcr", {"objects": [["circle"]] * 3}, "3 objects for 2 texts; expected as many"),
        ("vcr", {"choices": [["yes", "no"], []]}, r"question 1: choices \[\]; expected a list of some"),
        ("vcr", {"choices": [["yes"], "no"]}, "question 1: choices 'no'; expected a list of some"),
        ("vcr", {"choices": ["yes", "no"]}, "question 0: choices 'yes'; expected a list of some"),
        ("vcr", {"choices": [[], []]}, r"question 0: choices \[\]; expected a list of some"),
        ("vcr", {"choices": [None, None]}, "question 0: choices None; expected a list of some"),
        ("vcr", {"choices": [["yes"], ["no [2]"]]}, r"question 1, choice 0: tag \[2\], but there are 2 objects"),
        ("vcr", {"choices": [["yes", ""], ["no", "no"]]}, "question 0, choice 1: an empty text"),
        ("vcr", {"objects": None}, r"question 0, choice 0: tag \[0\], but there are 0 objects; expected no tag"),
        ("vcr", {"objects": [["circle"] * 4, PERSON]}, "question 1: objects 'person'; expected a list of class names"),
        ("flickr30k", {"phrases": [["a red circle"]]}, "1 phrases for 2 texts; expected as many"),
        ("flickr30k", {"phrases": [["a"], ["star"]]}, "sentence 1: phrase 'star' is not in the sentence 'two stars'"),
        ("flickr30k", {"phrases": [["a"], [2]]}, "sentence 1: phrase ends at word 2; expected 0 to 1"),
        ("flickr30k", {"phrases": [["a"], [-1]]}, "sentence 1: phrase ends at word -1; expected 0 to 1"),
        ("pretraining", {"text_pair": ["red"]}, "1 text_pair for 2 texts; expected as many"),
        ("pretraining", {"text_pair": ["red", ""]}, r"text 1 is empty \(''\); expected at least one word"),
    ],
)
def test_what_belongs_to_a_text_is_checked(task, change, message):
    with pytest.raises(ValueError, match=message):
        processor_for(task)(**{**CALLS[task], **change})


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images; expected a pair of images for each text"),
        (regions(3), "no images; expected a pair of images"),
        ([regions(3), regions(2)], "images 0: dict; expected a pair of images"),
        ([(regions(3), regions(2)), (regions(3),)], "images 1: a list of 1; expected a pair of images"),
        ([[regions(1)] * 2, [regions(1)] * 3], "images 1: a list of 3; expected a pair of images"),
        ([[regions(1)] * 2] * 3, "3 images for 2 texts; expected one image for all or one for each"),
        ([[regions(1), regions(1, scores=[0.5, 0.5])]] * 2, r"regions 1: 'scores' has shape \(2,\); expected \(1,\)"),
    ],
)
def test_pairs_that_are_none(images, message):
    with pytest.raises(ValueError, match=message):
        processor_for("nlvr2")(images=images, **CALLS["nlvr2"])


def test_pairs_of_one_kind():
    with pytest.raises(ValueError, match="images 0: dict; expected a pair of images"):
        processor_for("nlvr2")(images=regions(3), text="red")
    with pytest.raises(ValueError, match="images and precomputed regions in one batch; expected one kind"):
        processor_for("nlvr2")(images=[image(), regions(3)], text="red")
    other = {"visual_embeds": np.zeros((2, 7))}
    with pytest.raises(ValueError, match=r"features of dims \[5, 7\] in one pair; expected the same"):
        processor_for("nlvr2", region_dim=None)(images=[regions(3), other], text="red")


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([BOXES[0], [[0, 0, 170, 10], [0, 0, 5, 5]]], r"boxes 1: 'boxes': row 0 .* is outside the image of 160 x 128"),
        ([BOXES[0], [[0, 0, 163, 5]]], r"boxes 1: 'boxes': row 0 .* is outside the image of 160 x 128"),
        ([BOXES[0], [[0, 0, 5, 5], [0, -9, 5, 5]]], r"boxes 1: 'boxes': row 1 .* is outside the image of 160 x 128"),
        ([[[50, 0, 5, 5], *BOXES[0][1:]], BOXES[1]], r"boxes 0: 'boxes': row 0 is inverted"),
        ([BOXES[0], [[0, 0, 5, 5], [0, 0, 5, np.nan]]], "boxes 1: 'boxes': row 1 holds NaN or infinity"),
        ([BOXES[0], [[0, 0, 5, 5, 0.9]] * 2], r"boxes 1: 'boxes' has shape \(2, 5\); expected \(2, 4\)"),
        ([BOXES[0], [0, 0, 5, 5]], r"boxes 1: 'boxes' has shape \(4,\); expected \(4, 4\)"),
        ([BOXES[0], np.zeros((4, 2))], r"boxes 1: 'boxes' has shape \(4, 2\); expected \(4, 4\)"),
        ([BOXES[0], [[0, 0, 5, 5], [0, 0, 5]]], "boxes 1: 'boxes' has rows of unequal length"),
        ([BOXES[0]], "1 boxes for 2 texts; expected as many"),
        ([BOXES[0], BOXES[1][:1]], "question 1: 2 objects, but regions for 1"),
        (None, "images without boxes; expected `boxes`"),
    ],
)
def test_boxes_that_do_not_fit(boxes, message):
    with pytest.raises(ValueError, match=message):
        processor_for("vcr")(images=[image(), image(1)], **CALLS["vcr"], boxes=boxes)


def test_boxes_need_images():
    for images in (None, images_for("vcr", regions)):
        with pytest.raises(ValueError, match="boxes without images; expected images, or regions that were made of"):
            processor_for("vcr")(images=images, **CALLS["vcr"], boxes=BOXES)
    with pytest.raises(ValueError, match="boxes for 2 images, but 1 images; expected as many"):
        processor_for("vcr")(images=image(), **CALLS["vcr"], boxes=BOXES)


@pytest.mark.parametrize("counts", [(5, 2), (4, 6)])
def test_every_object_needs_a_region_of_its_own_image(counts):
    """Also when another image of the batch has enough."""
    short = 0 if counts[0] < 5 else 1
    with pytest.raises(
        ValueError, match=rf"question {short}: {(4, 2)[short]} objects, but regions for {counts[short] - 1}"
    ):
        processor_for("vcr")(images=[regions(count) for count in counts], **CALLS["vcr"])
    with pytest.raises(ValueError, match="question 0: 4 objects, but regions for 3"):
        processor_for("vcr")(images=regions(4), **CALLS["vcr"])
    fitting = processor_for("vcr")(images=[regions(5), regions(3)], **CALLS["vcr"])
    assert fitting["visual_attention_mask"].sum(dim=1).tolist() == [5, 3]


@pytest.mark.parametrize("task", TASKS)
def test_all_that_comes_out_is_a_model_input(eyes, task):
    """Of regions and of pixels; `generate` and trainers of others drop what is not in the list."""
    _, processor = eyes(task)
    plain = processor_for(task)
    texts = call(task)
    from_regions = plain(images=images_for(task, regions), **texts)
    pixels = images_for(task, lambda count, seed: image(seed))
    from_pixels = processor(images=pixels, **texts, **({"boxes": BOXES} if task == "vcr" else {}))
    named = set(processor.model_input_names)
    assert from_regions.keys() | from_pixels.keys() <= named
    assert {"input_ids", "attention_mask", "token_type_ids"} <= from_regions.keys() & from_pixels.keys()


@pytest.mark.parametrize("top_k", [0, -1])
def test_no_region_at_all_cannot_be_asked_for(top_k):
    with pytest.raises(ValueError, match=f"^top_k {top_k}; expected at least 1, or None for all"):
        processor_for("flickr30k").post_process_phrase_grounding(
            torch.zeros(1, 1, 2), [{"boxes": torch.zeros(2, 4)}], [1], top_k=top_k
        )
