"""The embedded corpus as data sets: their tables say the same as its official files, and train."""

import pytest
from accelerate import Accelerator

import modeling_visualbert
from modeling_visualbert import load_corpus
from modeling_visualbert.tasks.classification import ClassificationArgs, label_tables, load_label_data
from modeling_visualbert.tasks.flickr30k import Flickr30kArgs, load_flickr30k_data
from modeling_visualbert.tasks.nlvr2 import Nlvr2Args, load_nlvr2_data
from modeling_visualbert.tasks.pretraining import PretrainingArgs, load_source
from modeling_visualbert.tasks.vcr import VcrArgs, load_vcr_data
from modeling_visualbert.tasks.vqa import VqaArgs, load_vqa_data, vqa_task
from modeling_visualbert.training.loop import train

CPU = Accelerator(cpu=True)


def load_captions(args):
    return load_source(args, None).data


def load_labels(args):
    return load_label_data(args, label_tables(args))


TASKS = {  # task -> arguments, loader, folder of the official files, columns that are the same in both
    "vqa": (VqaArgs, load_vqa_data, "vqa", ["question_id", "question", "answers", "question_type", "answer_type"]),
    "nlvr2": (Nlvr2Args, load_nlvr2_data, "nlvr2", ["identifier", "sentence", "label"]),
    "classification": (ClassificationArgs, load_labels, "snli_ve", ["identifier", "text", "label"]),
    "vcr": (
        VcrArgs,
        load_vcr_data,
        "vcr",
        ["annot_id", "question", "answer_choices", "answer_label", "objects", "boxes"],
    ),
    "flickr30k": (Flickr30kArgs, load_flickr30k_data, "flickr30k", ["sentence", "phrases", "last_words", "boxes"]),
    "pretraining": (PretrainingArgs, load_captions, "coco", ["captions"]),
}
# Of the official files, where they are not those that the scripts read by default.
SPLITS = {
    "nlvr2": {},
    "flickr30k": {"train_split": "shapes_train", "dev_split": "shapes_val", "test_split": "shapes_test"},
}


@pytest.mark.parametrize("task", TASKS)
def test_tables_say_what_the_official_files_say(corpus, tmp_path, monkeypatch, task):
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path / "cache"))
    args, load, folder, columns = TASKS[task]
    data = load_corpus(task, corpus)
    assert list(data) == ["train", "validation", "test"]
    assert not {"images", "image"}.isdisjoint(data["train"].column_names)
    data.save_to_disk(str(tmp_path / "saved"))
    own = load(args("run", dataset_name=str(tmp_path / "saved")))
    official = load(args("run", data_dir=str(corpus / folder), **SPLITS.get(task, {"test_split": "test"})))
    assert list(own.splits) == list(official.splits) == ["train", "dev", "test"]
    for role, split in own.splits.items():
        for column in columns:
            assert split[column][:] == official.splits[role][column][:], (role, column)
    images = own.find_paths(None, wanted=own.wanted())
    keys = {key for split in official.splits.values() for row in official.keys(split) for key in row}
    assert len(images) == len(own.all_keys()) == len(keys)  # a picture that several splits or rows are about is one


def test_a_model_is_trained_on_a_saved_corpus(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path / "cache"))
    data = load_corpus("vqa", corpus)
    data.save_to_disk(str(tmp_path / "saved"))
    args = VqaArgs(
        str(tmp_path / "run"),
        dataset_name=str(tmp_path / "saved"),
        tokenizer="corpus",
        region_encoder="corpus",
        max_train_samples=64,
        max_eval_samples=32,
        max_steps=2,
        cpu=True,
    )
    metrics = train(vqa_task(args, CPU), args, CPU)
    assert {name: scores["num_examples"] for name, scores in metrics["splits"].items()} == {"dev": 32, "test": 32}


def test_what_is_no_corpus_is_refused(tmp_path, corpus):
    with pytest.raises(
        ValueError, match="task 'gqa'; expected one of vqa, vcr, nlvr2, classification, flickr30k, pretraining"
    ):
        load_corpus("gqa", corpus)
    with pytest.raises(FileNotFoundError, match=r"no corpus\.json; expected a corpus that `visualbert corpus` wrote"):
        load_corpus("vqa", tmp_path)
    assert "load_corpus" in dir(modeling_visualbert)
