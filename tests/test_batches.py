"""Batches from a store: what the processor makes of the same regions one by one, in the store's precision; and who makes them."""

import os

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.features.batches import StoredRegions, processor_arguments
from modeling_visualbert.features.store import FeatureStore, write_store
from modeling_visualbert.hub_code.processing_visualbert import VisualBertProcessor
from modeling_visualbert.hub_code.text_visualbert import (
    encode_choice,
    encode_pair,
    encode_question,
    encode_words,
    read_choices,
    read_masked_texts,
    read_questions,
    read_texts,
)
from modeling_visualbert.training import loaders
from modeling_visualbert.training.args import TrainArgs

DIM = 6
COUNTS = (3, 0, 5, 1)  # regions of each image
TOKENIZER = corpus_tokenizer()

pytestmark = pytest.mark.filterwarnings("error:The given NumPy array is not writable")


@pytest.fixture(scope="module", params=["float16", "float32"])
def store(request, tmp_path_factory):
    """Four images, one without regions, in two shards."""
    generator = np.random.default_rng(0)
    found = [(i, {"visual_embeds": generator.normal(size=(count, DIM))}) for i, count in enumerate(COUNTS)]
    folder = tmp_path_factory.mktemp("stores") / request.param
    write_store(folder, found, DIM, "tiny", request.param, images_per_shard=3)
    return FeatureStore(folder)


def make_processor(task, **fields):
    return VisualBertProcessor(tokenizer=TOKENIZER, task=task, region_dim=DIM, **fields)


QUESTIONS = ["is it red ?", "How many [SEP] are, there?", "what is [MASK]", "is it red ?"]
CHOICES = [["a [0] circle", "it is red", "[1] and [0,1]", "yes"], ["no", "blue [1]", "[SEP] red", "a red circle"]]


@pytest.mark.parametrize(
    ("task", "fields", "images", "texts"),
    [
        ("vqa", {"answers": ["yes", "no"]}, [0, 1, 2, 3], {"text": QUESTIONS}),
        ("vqa", {"answers": ["yes", "no"]}, [1, 1], {"text": QUESTIONS[:2]}),
        ("nlvr2", {}, [[0, 1], [2, 3], [1, 1], [3, 0]], {"text": QUESTIONS}),
        ("nlvr2", {"num_images": 1}, [[0], [2], [1], [3]], {"text": QUESTIONS}),
        ("flickr30k", {}, [0, 2], {"text": ["a red circle", "the [SEP] square"], "phrases": [["red circle"], [0, 2]]}),
        ("pretraining", {}, [0, 2], {"text": ["a red [MASK]", "it is"], "text_pair": ["a [SEP] circle", "blue"]}),
        (
            "vcr",
            {},
            [0, 2],
            {"text": ["what is [0]?", "is [1] red"], "choices": CHOICES, "objects": [["person", "circle"]] * 2},
        ),
        ("vcr", {"whole_image": False}, [3, 2], {"text": ["what is it?", "is it red"], "choices": [["a", "b"]] * 2}),
    ],
)
def test_a_batch_from_a_store_is_what_the_processor_makes_of_its_regions(store, task, fields, images, texts):
    processor = make_processor(task, **fields)
    nested = [keys if isinstance(keys, list) else [keys] for keys in images]
    pairs = isinstance(images[0], list)
    slow = [[{"visual_embeds": store[key]["visual_embeds"]} for key in keys] for keys in nested]
    expected = processor(images=slow if processor.num_images == 2 else [one for (one,) in slow], **texts)
    stored = [[store.arrays(key) for key in keys] for keys in nested]
    batch = processor(**processor_arguments(stored if pairs else [one for (one,) in stored]), **texts)
    assert batch.keys() == expected.keys()
    assert batch["visual_embeds"].dtype == (torch.float16 if store.dtype == "float16" else torch.float32)
    for name, value in expected.items():
        assert torch.equal(batch[name].to(value.dtype), value), name


def test_a_batch_does_not_share_memory_with_the_store(store):
    batch = processor_arguments([store.arrays(0), store.arrays(2)])["regions"]
    batch["visual_embeds"].zero_()
    assert store[0]["visual_embeds"].any()


def test_other_regions_and_images_go_through_the_checks_of_the_processor(store):
    bad = {"visual_embeds": np.full((2, DIM), np.nan)}
    assert list(processor_arguments([store.arrays(0), bad])) == ["images"]
    with pytest.raises(ValueError, match="regions 0: 'visual_embeds': row 0 holds NaN"):
        make_processor("vqa")(text=["is it red"], **processor_arguments([bad]))
    assert processor_arguments(None) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual_embeds": torch.zeros(2, 3, DIM + 1)}, r"shape \(2, 3, 7\); expected \(batch_size, regions, 6\)"),
        ({"visual_attention_mask": torch.ones(2, 4)}, r"'visual_attention_mask' has shape \(2, 4\); expected \(2, 3\)"),
        ({"boxes": torch.zeros(2, 3, 4)}, "expected a mapping with visual_embeds, visual_attention_mask$"),
    ],
)
def test_padded_regions_that_do_not_fit_are_refused(change, message):
    regions = {"visual_embeds": torch.zeros(2, 3, DIM), "visual_attention_mask": torch.ones(2, 3), **change}
    with pytest.raises(ValueError, match=message):
        make_processor("vqa")(regions=regions, text=["is it red"] * 2)


def test_padded_regions_replace_images():
    regions = {"visual_embeds": torch.zeros(2, 3, DIM), "visual_attention_mask": torch.ones(2, 3)}
    with pytest.raises(ValueError, match="`regions` with `images`"):
        make_processor("vqa")(images=regions, regions=regions, text=["is it red"] * 2)
    with pytest.raises(ValueError, match="2 images for 3 texts"):
        make_processor("vqa")(regions=regions, text=["is it red"] * 3)
    with pytest.raises(ValueError, match="regions: list; expected a mapping"):
        make_processor("vqa")(regions=[regions], text=["is it red"] * 3)


def test_texts_that_are_read_together_are_read_as_alone():
    questions = [*QUESTIONS, "", "[CLS][SEP] red"]
    for question, pieces in read_questions(TOKENIZER, [*questions, None]).items():
        alone = encode_question(TOKENIZER, f"{question} red", 32).input_ids[1:-4]
        assert pieces == alone, question
    known = read_masked_texts(TOKENIZER, questions)
    for first in QUESTIONS:
        alone = encode_pair(TOKENIZER, first, "[MASK] red", 32)
        assert encode_pair(TOKENIZER, first, "[MASK] red", 32, known=known) == alone
    words = ["a", "[SEP]", "red", "circles"]
    assert encode_words(TOKENIZER, words, 32, known=read_texts(TOKENIZER, words)) == encode_words(TOKENIZER, words, 32)
    objects = ["person", "circle"]
    known = read_choices(TOKENIZER, [text for row in CHOICES for text in row], objects)
    for text in CHOICES[0]:
        alone = encode_choice(TOKENIZER, "is [1] red", text, objects, 32)
        assert encode_choice(TOKENIZER, "is [1] red", text, objects, 32, known=known) == alone


def test_what_a_store_returns_is_marked_as_checked(store):
    assert type(store.arrays(2)) is StoredRegions
    assert not store.arrays(2)["visual_embeds"].flags.writeable


def test_processes_that_prepare_batches(monkeypatch, tmp_path):
    class Gpu:
        device, num_processes = torch.device("cuda"), 2

    def count(accelerator, **fields):
        return loaders.num_workers(TrainArgs(str(tmp_path), **fields), accelerator)

    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(24), raising=False)
    monkeypatch.setattr(loaders.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 64 << 30}))
    assert count(Accelerator(cpu=True)) == 0
    assert count(Accelerator(cpu=True), num_workers=3) == 3
    assert count(Gpu(), num_workers=0) == 0
    if os.path.isdir("/dev/shm"):
        assert count(Gpu()) == 6
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # the other process is on another machine
        assert count(Gpu()) == 8
        monkeypatch.setattr(loaders.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 64 << 20}))
        assert count(Gpu()) == 0
    with pytest.raises(ValueError, match="--num_workers -1; expected at least 0"):
        TrainArgs(str(tmp_path), num_workers=-1)
