"""What is special to the tasks: which inputs a VQA run makes of which arguments, and COCO boxes for detectors."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import tiny_config
from PIL import Image
from published_layouts import write_checkpoint, write_tokenizer
from tiny_checkpoints import tiny_checkpoint
from tiny_detectors import tiny_detector
from transformers import BertConfig, BertModel

from modeling_visualbert import QueryRegionEncoder, VisualBertImageProcessor, VisualBertModel
from modeling_visualbert.answers import pythia_answers
from modeling_visualbert.checkpoints import load_inner_region_encoder
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.features import extract
from modeling_visualbert.features.store import write_store
from modeling_visualbert.metrics.vqa import soft_targets
from modeling_visualbert.tasks.common import DETECTOR
from modeling_visualbert.tasks.detection import (
    CocoDetection,
    DetectionArgs,
    coco_scores,
    detection_task,
    detections,
    mirror,
    region_scores,
)
from modeling_visualbert.tasks.run import draw_sheet
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
from modeling_visualbert.training.loop import save_model, train


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def args(corpus, cache, tmp_path, monkeypatch):
    """Makes the arguments of a run on the small corpus, given as a data folder."""
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(cache))
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    fields |= {
        "data_dir": str(corpus / "vqa"),
        "images_dir": str(corpus / "images"),
        "min_answer_count": 3,
        "cpu": True,
    }
    return lambda **changes: VqaArgs(str(tmp_path / "run"), **{**fields, **changes})


def first_batch(task, count=3):
    return task.collate([task.splits["train"][i] for i in range(count)])


def test_regions_are_found_once_and_kept(args, monkeypatch):
    first = first_batch(vqa_task(args(), Accelerator(cpu=True)))
    monkeypatch.setattr(extract, "extract_regions", lambda *args, **kwargs: pytest.fail("found again"))
    again = first_batch(vqa_task(args(), Accelerator(cpu=True)))
    assert first["visual_attention_mask"].sum() >= 3
    assert torch.equal(first["visual_embeds"], again["visual_embeds"])


def test_stored_regions_give_the_logits_of_the_pixels(args):
    stored, live = (vqa_task(args(from_pixels=flag), Accelerator(cpu=True)) for flag in (False, True))
    batches = first_batch(stored), first_batch(live)
    assert "visual_embeds" in batches[0] and "pixel_values" not in batches[0]
    assert "pixel_values" in batches[1] and "visual_embeds" not in batches[1]
    with torch.inference_mode():
        logits = [task.model.eval()(**batch).logits for task, batch in zip((stored, live), batches, strict=True)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)


def test_text_only_sees_no_image(args):
    task = vqa_task(args(text_only=True), Accelerator(cpu=True))
    assert sorted(first_batch(task)) == ["attention_mask", "input_ids", "labels", "token_type_ids"]
    # The model itself is the same, so that a later stage can go on with it.
    other = vqa_task(args(), Accelerator(cpu=True)).model
    assert task.model.config.region_encoder_config == other.config.region_encoder_config
    assert task.model.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in task.model.state_dict().items())


@pytest.mark.parametrize("rule", ["visualbert", "uniform", "mmf"])
def test_labels_are_the_soft_targets(args, rule):
    task = vqa_task(args(text_only=True, target_rule=rule), Accelerator(cpu=True))
    answer_to_index = {answer: i for i, answer in enumerate(task.processor.answers)}
    for label, row in zip(first_batch(task, 20)["labels"], task.splits["train"], strict=False):
        expected = soft_targets(row["answers"], answer_to_index, rule=rule)
        assert {i: value for i, value in enumerate(label.tolist()) if value} == pytest.approx(expected)


def test_answers_come_from_the_training_data_or_a_list(args, tmp_path):
    (tmp_path / "answers.txt").write_text("<unk>\nno\nred\nyes\n")
    built = vqa_task(args(text_only=True), Accelerator(cpu=True)).processor.answers
    assert built[0] == "<unk>"
    assert {"yes", "no", "red", "circle"} <= set(built)
    given = vqa_task(args(text_only=True, answers=str(tmp_path / "answers.txt")), Accelerator(cpu=True))
    assert given.processor.answers == list(given.model.config.id2label.values()) == ["<unk>", "no", "red", "yes"]
    pythia = vqa_task(args(text_only=True, answers="pythia"), Accelerator(cpu=True))
    assert pythia.model.config.num_labels == 3129
    assert pythia.processor.answers == list(pythia_answers())


@pytest.mark.parametrize("role", ["train", "dev"])
def test_training_on_a_split_without_answers_is_refused(args, corpus, tmp_path, role):
    shutil.copytree(corpus / "vqa", tmp_path / "vqa")
    (tmp_path / "vqa" / "v2_shapes_test_annotations.json").unlink()
    why = rf"because {tmp_path}/vqa has no file like \*_test_annotations.json; expected"
    changes = {"data_dir": str(tmp_path / "vqa"), f"{role}_split": "test"}
    with pytest.raises(ValueError, match=f"--{role}_split test: no answers, {why} labels"):
        vqa_task(args(**changes), Accelerator(cpu=True))
    with pytest.raises(ValueError, match=rf"split val\+test: no answers for test, {why} annotations of all parts"):
        vqa_task(args(**{**changes, f"{role}_split": "val+test"}), Accelerator(cpu=True))


def test_a_question_of_two_joined_splits_is_refused(args):
    with pytest.raises(ValueError, match=r"split val\+val: val: question id \d+ occurs twice; expected it only once"):
        vqa_task(args(train_split="val+val"), Accelerator(cpu=True))


def features_of(task, folder, dim, detector="mine"):
    """A store with random features of all images of a task."""
    generator = torch.Generator().manual_seed(0)
    ids = {image_id for rows in task.splits.values() for image_id in rows["image_id"]}
    regions = {
        "boxes": torch.zeros(2, 4),
        "scores": torch.ones(2),
        "class_ids": torch.zeros(2),
        "image_size": torch.tensor([128, 160]),
    }
    made = ((i, {**regions, "visual_embeds": torch.randn(2, dim, generator=generator)}) for i in ids)
    write_store(folder, made, dim, detector)
    return str(folder)


def test_features_of_a_detector_that_is_not_at_hand(args, tmp_path):
    folder = features_of(vqa_task(args(text_only=True), Accelerator(cpu=True)), tmp_path / "store", dim=7)
    task = vqa_task(args(features_dir=folder), Accelerator(cpu=True))
    assert task.model.config.region_encoder_config is None
    assert first_batch(task)["visual_embeds"].shape == (3, 2, 7)
    with pytest.raises(ValueError, match=r"store: features of dim 7, this model expects \d+"):
        vqa_task(args(features_dir=folder, region_encoder=str(DETECTOR)), Accelerator(cpu=True))


def test_a_trained_model_is_a_starting_point(args, tmp_path):
    task = vqa_task(args(seed=1), Accelerator(cpu=True))
    save_model(task.model, task, tmp_path / "first")
    start = {"init_from": str(tmp_path / "first")}
    same = vqa_task(args(**start), Accelerator(cpu=True))
    assert same.processor.answers == task.processor.answers
    for name, value in same.model.state_dict().items():
        assert torch.equal(value, task.model.state_dict()[name]), name
    own = vqa_task(args(**start, answers="train", min_answer_count=1), Accelerator(cpu=True))
    assert own.processor.answers != task.processor.answers and set(task.processor.answers) < set(own.processor.answers)
    other = vqa_task(args(**start, answers="pythia"), Accelerator(cpu=True))
    assert other.model.cls.weight.shape == (3129, 16)
    words = "visual_bert.embeddings.word_embeddings.weight"
    assert torch.equal(other.model.state_dict()[words], task.model.state_dict()[words])


def test_trained_answers_are_kept_or_given_up_in_words(args, tmp_path, caplog):
    task = vqa_task(args(), Accelerator(cpu=True))
    save_model(task.model, task, tmp_path / "first")
    answers, start = task.processor.answers, {"init_from": str(tmp_path / "first")}
    kept = vqa_task(args(**start, answers="checkpoint"), Accelerator(cpu=True))
    assert kept.processor.answers == answers and torch.equal(kept.model.cls.weight, task.model.cls.weight)
    assert "given up" not in caplog.text
    (tmp_path / "answers.txt").write_text("\n".join(reversed(answers)) + "\n")  # as many, in another order
    other = vqa_task(args(**start, answers=str(tmp_path / "answers.txt")), Accelerator(cpu=True))
    assert f"the {len(answers)} answers of {tmp_path / 'first'} are given up for {len(answers)} others" in caplog.text
    assert not torch.isclose(other.model.cls.weight, task.model.cls.weight).any()
    assert torch.equal(other.model.visual_bert.pooler.dense.weight, task.model.visual_bert.pooler.dense.weight)
    with pytest.raises(ValueError, match="--answers checkpoint: expected an --init_from that answers questions"):
        vqa_task(args(answers="checkpoint"), Accelerator(cpu=True))


def test_answers_without_names_have_to_be_named(args, tmp_path):
    """A fine-tuned copy of a published checkpoint, under another name."""
    dim = QueryRegionEncoder.from_pretrained(DETECTOR).config.region_dim
    bare = write_checkpoint(tmp_path / "bare", "vqa", dim)
    write_tokenizer(tmp_path / "tokenizer")
    start = {"init_from": str(bare), "tokenizer": str(tmp_path / "tokenizer")}
    with pytest.raises(ValueError, match=r"bare: 3129 trained answers without names; expected --answers pythia if"):
        vqa_task(args(**start), Accelerator(cpu=True))
    weights = torch.load(bare / "pytorch_model.bin", weights_only=True)
    kept = vqa_task(args(**start, answers="pythia"), Accelerator(cpu=True))
    assert kept.processor.answers == list(pythia_answers())
    assert torch.equal(kept.model.cls.weight, weights["cls.weight"])
    assert kept.model.config.feature_detector["name"] == "QueryRegionEncoder"


def test_answers_that_fit_other_data_are_noticed(args, tmp_path, caplog):
    (tmp_path / "answers.txt").write_text("<unk>\nred\n")
    task = vqa_task(args(answers=str(tmp_path / "answers.txt")), Accelerator(cpu=True))
    share = 100 * sum("red" in row["answers"] for row in task.splits["train"]) / len(task.splits["train"])
    assert 0 < share < 50
    assert f"2 answers, which {share:.1f}% of the training questions have (see --answers)" in caplog.text


def test_a_starting_point_of_another_detector_is_refused(args, tmp_path):
    text = vqa_task(args(text_only=True), Accelerator(cpu=True))
    for dim in (7, 9):
        features_of(text, tmp_path / f"{dim}", dim)
    task = vqa_task(args(features_dir=str(tmp_path / "7")), Accelerator(cpu=True))
    save_model(task.model, task, tmp_path / "first")
    other = args(features_dir=str(tmp_path / "9"), init_from=str(tmp_path / "first"))
    with pytest.raises(ValueError, match=r"9: features of dim 9, this model expects 7 \(.*first\)"):
        vqa_task(other, Accelerator(cpu=True))


def test_features_of_another_detector_are_refused_although_they_are_as_long(args, tmp_path, caplog):
    text = vqa_task(args(text_only=True), Accelerator(cpu=True))
    stores = {name: features_of(text, tmp_path / name, 7, name) for name in ("pythia-x101", "frcnn-vg", "unknown")}
    task = vqa_task(args(features_dir=str(tmp_path / "pythia-x101")), Accelerator(cpu=True))
    save_model(task.model, task, tmp_path / "first")
    assert task.model.config.feature_detector == {"name": "pythia-x101", "fingerprint": None}
    start = {"init_from": str(tmp_path / "first")}
    vqa_task(args(**start, features_dir=stores["pythia-x101"]), Accelerator(cpu=True))
    for name, said in (("frcnn-vg", "frcnn-vg"), ("unknown", "an unknown detector")):
        with pytest.raises(
            ValueError, match=rf"{name}: features of {said}, but .*first expects those of pythia-x101; "
        ):
            vqa_task(args(**start, features_dir=stores[name]), Accelerator(cpu=True))
    forced = vqa_task(args(**start, features_dir=stores["frcnn-vg"], any_detector=True), Accelerator(cpu=True))
    assert forced.model.config.feature_detector["name"] == "frcnn-vg"
    config = json.loads((tmp_path / "first" / "config.json").read_text())
    del config["feature_detector"]  # as earlier versions wrote it
    (tmp_path / "first" / "config.json").write_text(json.dumps(config))
    vqa_task(args(**start, features_dir=stores["frcnn-vg"]), Accelerator(cpu=True))
    assert "first does not say which detector its features came from; those of" in caplog.text


def test_the_detector_of_the_corpus_is_not_let_loose_on_other_images(args, corpus, tmp_path):
    data = tmp_path / "photos"
    shutil.copytree(corpus / "images", data / "images")
    shutil.copytree(corpus / "vqa", data / "vqa")
    fields = {"data_dir": str(data / "vqa"), "images_dir": str(data / "images")}
    with pytest.raises(
        ValueError, match="images: these images are not the embedded corpus; pass --region_encoder or --feat"
    ):
        vqa_task(args(**fields), Accelerator(cpu=True))
    assert vqa_task(args(**fields, region_encoder=str(DETECTOR)), Accelerator(cpu=True)).images


def test_a_starting_point_without_a_region_encoder_gets_one(args, tmp_path):
    dim = QueryRegionEncoder.from_pretrained(DETECTOR).config.region_dim
    folder = features_of(vqa_task(args(text_only=True), Accelerator(cpu=True)), tmp_path / "store", dim)
    task = vqa_task(args(features_dir=folder), Accelerator(cpu=True))  # as published checkpoints: no detector in it
    save_model(task.model, task, tmp_path / "first")
    start = {"init_from": str(tmp_path / "first"), "region_encoder": str(DETECTOR)}
    with pytest.raises(
        ValueError, match=r"features of QueryRegionEncoder \(.{16}\), but .*first expects those of mine; "
    ):
        vqa_task(args(**start), Accelerator(cpu=True))
    again = vqa_task(args(**start, any_detector=True), Accelerator(cpu=True))
    assert again.model.config.region_encoder_config is not None
    assert torch.equal(again.model.cls.weight, task.model.cls.weight)


@pytest.mark.parametrize("text_only", [False, True])
def test_bert_is_a_starting_point(args, tmp_path, text_only):
    tokenizer = corpus_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes))
    bert.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    task = vqa_task(args(init_from=str(tmp_path / "bert"), text_only=text_only), Accelerator(cpu=True))
    embeddings = task.model.visual_bert.embeddings
    assert torch.equal(embeddings.word_embeddings.weight, bert.embeddings.word_embeddings.weight)
    assert torch.equal(embeddings.visual_token_type_embeddings.weight, bert.embeddings.token_type_embeddings.weight)
    dim = QueryRegionEncoder.from_pretrained(DETECTOR).config.region_dim
    assert embeddings.visual_projection.in_features == dim
    assert sorted(first_batch(task))[-1] == ("token_type_ids" if text_only else "visual_embeds")


def test_a_region_encoder_of_the_starting_point_is_kept(args, tmp_path):
    task = vqa_task(args(), Accelerator(cpu=True))
    weight = next(p for p in task.model.visual_bert.region_encoder.parameters() if p.dim() > 1)
    with torch.no_grad():
        weight.add_(0.01)  # as if it had been trained along
    save_model(task.model, task, tmp_path / "first")
    again = vqa_task(args(init_from=str(tmp_path / "first")), Accelerator(cpu=True))
    assert any(torch.equal(weight, other) for other in again.model.visual_bert.region_encoder.parameters())


@pytest.mark.parametrize("kind", ["vqa", "flickr30k", "pretraining", "base"])
def test_the_region_encoder_inside_a_checkpoint_is_loaded_alone(kind, tmp_path, capfd):
    model, _ = tiny_checkpoint("vqa" if kind == "base" else kind)
    (model.visual_bert if kind == "base" else model).save_pretrained(tmp_path)
    capfd.readouterr()
    encoder = load_inner_region_encoder(tmp_path)
    assert "UNEXPECTED" not in capfd.readouterr().err
    expected = model.visual_bert.region_encoder
    assert type(encoder) is type(expected) and not encoder.training
    assert encoder.fingerprint() == expected.fingerprint()
    assert encoder.state_dict().keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], weight), name


def test_no_region_encoder_inside_a_checkpoint(tmp_path):
    VisualBertModel(tiny_config()).save_pretrained(tmp_path)
    assert load_inner_region_encoder(tmp_path) is None


def test_features_of_too_few_images_are_refused(args, tmp_path):
    task = vqa_task(args(text_only=True), Accelerator(cpu=True))
    task.splits = {"train": task.splits["train"]}
    folder = features_of(task, tmp_path / "store", dim=7)
    with pytest.raises(ValueError, match=r"store: no regions of image 1000001 \(20 are missing\)"):
        vqa_task(args(features_dir=folder), Accelerator(cpu=True))


@pytest.mark.parametrize("trained", [False, True])
def test_the_region_encoder_is_trained_only_on_request(args, trained):
    run = args(from_pixels=True, train_region_encoder=trained, max_steps=1, batch_size=4, learning_rate=1e-2)
    task = vqa_task(run, Accelerator(cpu=True))
    before = {k: v.clone() for k, v in task.model.visual_bert.region_encoder.state_dict().items()}
    task.splits = {name: rows.select(range(8)) for name, rows in task.splits.items()}
    task.score = lambda predictions, split: {"accuracy": 0.0}
    train(task, run)
    after = task.model.visual_bert.region_encoder.state_dict()
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert bool(changed) == trained


def test_training_the_region_encoder_needs_pixels(args):
    with pytest.raises(ValueError, match="--train_region_encoder needs --from_pixels: stored features do not change"):
        vqa_task(args(train_region_encoder=True), Accelerator(cpu=True))


@pytest.mark.parametrize("from_pixels", [False, True])
def test_a_missing_image_is_named_before_training(args, tmp_path, from_pixels):
    Image.new("RGB", (160, 128)).save(tmp_path / "000000000001.png")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}: no file of image 2 \(79 are missing\)"):
        vqa_task(args(images_dir=str(tmp_path), from_pixels=from_pixels), Accelerator(cpu=True))


@pytest.fixture
def photos(args, corpus, tmp_path):
    """The small corpus as data of one's own, with pictures that may be changed, and makes its arguments."""
    shutil.copytree(corpus / "images", tmp_path / "photos")
    fields = {"images_dir": str(tmp_path / "photos"), "region_encoder": str(DETECTOR)}
    return tmp_path / "photos", lambda **changes: args(**fields, **changes)


@pytest.mark.parametrize("source", ["cached", "pixels"])
def test_rows_of_missing_and_broken_images_are_left_out_and_listed(photos, source, capsys):
    folder, args = photos
    flags = {"from_pixels": source == "pixels", "max_steps": 1, "batch_size": 4}
    gone, empty, cut, text = (sorted((folder / "train").iterdir())[i] for i in (0, 3, 4, 7))
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file of image 1 \(1 are missing\)"):
        vqa_task(args(**flags), Accelerator(cpu=True))
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:700])
    text.write_text("no image")
    if source == "cached":
        shutil.copy(empty, gone)
        with pytest.raises(ValueError, match=f"{gone}: not an image"):
            vqa_task(args(**flags), Accelerator(cpu=True))
        gone.unlink()
    run = args(skip_bad_records=True, **flags)
    task = vqa_task(run, Accelerator(cpu=True))
    left = {1, 4, 5, 8}
    whole = vqa_task(args(text_only=True), Accelerator(cpu=True)).splits
    expected = [row["question_id"] for row in whole["train"] if row["image_id"] not in left]
    assert task.splits["train"]["question_id"] == expected and len(task.splits["dev"]) == len(whole["dev"])
    assert len(task.skipped) == len(whole["train"]) - len(expected)
    told = {1: f"{folder}: no file of image 1"} | {4: str(empty), 5: str(cut), 8: str(text)}
    rows = [number for number, row in enumerate(whole["train"]) if row["image_id"] in left]
    for number, line in zip(rows, task.skipped, strict=True):
        assert line.startswith(f"train: row {number}: {told[whole['train'][number]['image_id']]}") and "\n" not in line
    assert train(task, run)["run"]["skipped_records"] == len(rows)
    assert len((Path(run.output_dir) / "skipped.txt").read_text().splitlines()) == len(rows)
    again = vqa_task(args(skip_bad_records=True, **flags), Accelerator(cpu=True))  # the same from the cache
    assert again.skipped == task.skipped and again.splits["train"]["question_id"] == expected


def test_rows_without_stored_regions_are_left_out_and_listed(args, tmp_path):
    task = vqa_task(args(text_only=True), Accelerator(cpu=True))
    whole = {name: rows["image_id"] for name, rows in task.splits.items()}
    task.splits = {name: rows.filter(lambda row: row["image_id"] != 3) for name, rows in task.splits.items()}
    folder = features_of(task, tmp_path / "store", dim=7)
    found = vqa_task(args(features_dir=folder, skip_bad_records=True), Accelerator(cpu=True))
    assert found.splits["train"]["image_id"] == [key for key in whole["train"] if key != 3]
    assert set(line.partition(": row ")[2].partition(": ")[2] for line in found.skipped) == {
        f"{folder}: no regions of image 3"
    }
    task.splits = {"train": task.splits["train"]}
    shutil.rmtree(folder)
    features_of(task, folder, dim=7)
    with pytest.raises(
        ValueError, match=r"^dev: all \d+ rows are left out, the last because of dev: row .* no regions of"
    ):
        vqa_task(args(features_dir=folder, skip_bad_records=True), Accelerator(cpu=True))


def test_regions_of_changed_pictures_are_found_anew(photos):
    folder, args = photos
    before = first_batch(vqa_task(args(), Accelerator(cpu=True)))
    first, second, *_ = sorted((folder / "train").iterdir())
    status, blank = first.stat(), folder.parent / "blank.jpg"
    Image.new("RGB", (160, 128), "green").save(blank)
    first.write_bytes(second.read_bytes())
    after = first_batch(vqa_task(args(), Accelerator(cpu=True)))
    assert not torch.equal(before["visual_embeds"], after["visual_embeds"])
    first.write_bytes(blank.read_bytes().ljust(first.stat().st_size, b"\0"))  # of the same size, and later
    os.utime(first, ns=(status.st_atime_ns, first.stat().st_mtime_ns + 1))
    assert not torch.equal(
        after["visual_embeds"], first_batch(vqa_task(args(), Accelerator(cpu=True)))["visual_embeds"]
    )


def test_regions_of_images_with_other_content_are_found_anew_on_request(photos):
    folder, args = photos
    before = first_batch(vqa_task(args(hash_images=True), Accelerator(cpu=True)))
    first, second, *_ = sorted((folder / "train").iterdir())
    status = first.stat()
    size = max(status.st_size, second.stat().st_size)
    for content, is_same in ((first.read_bytes(), True), (second.read_bytes(), False)):
        first.write_bytes(content.ljust(size, b"\0"))  # as long and as old as the other
        os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
        after = first_batch(vqa_task(args(hash_images=True), Accelerator(cpu=True)))
        assert torch.equal(before["visual_embeds"], after["visual_embeds"]) == is_same


def test_images_of_other_splits_and_hidden_files_are_no_duplicates(photos, tmp_path):
    folder, args = photos
    train, val = sorted((folder / "train").iterdir()), sorted((folder / "val").iterdir())
    shutil.copy(val[0], folder / "val" / train[0].name)  # the name of a training image, in the folder of another split
    (folder / "train" / f"._{train[1].name}").write_bytes(b"of macOS")
    (tmp_path / "elsewhere").mkdir()
    (folder / "val").rename(tmp_path / "elsewhere" / "val")
    (folder / "val").symlink_to(tmp_path / "elsewhere" / "val")
    task = vqa_task(args(), Accelerator(cpu=True))
    assert task.images[1] == train[0] and task.images[2] == train[1]
    assert task.images[task.splits["dev"][0]["image_id"]].parent == folder / "val"
    shutil.copy(train[0], folder / "train" / "other_1.png")
    with pytest.raises(
        ValueError, match=r"image id 1 of split 'train' occurs twice: train/other_1.png and train/\S+; exp"
    ):
        vqa_task(args(), Accelerator(cpu=True))


def test_examples_are_drawn(args, tmp_path):
    task = vqa_task(args(), Accelerator(cpu=True))
    save_model(task.model, task, tmp_path / "best")
    drawn = draw_sheet(task, "dev", tmp_path, torch.device("cpu"), count=4)
    assert drawn == tmp_path / "examples.png"
    with Image.open(drawn) as sheet:
        assert sheet.width > 3 * 480
        assert sheet.height > 2 * 384


def coco_file(folder, **changes):
    """A COCO-format file of two images with category ids 7 and 3, and the images."""
    for i, size in ((1, (40, 30)), (2, (60, 20))):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
    record = {
        "images": [
            {"id": 1, "file_name": "1.png", "width": 40, "height": 30},
            {"id": 2, "file_name": "2.png", "width": 60, "height": 20},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 6, 20, 12], "area": 240, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [0, 0, 8, 8], "area": 64, "iscrowd": 0},
            {"id": 3, "image_id": 1, "category_id": 3, "bbox": [0, 0, 40, 30], "area": 1200, "iscrowd": 1},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "ant"}],
    }
    for key, value in changes.items():
        kind, number, field = key.split("__")
        record[kind][int(number)][field] = value
        if value is None:
            del record[kind][int(number)][field]
    (folder / "boxes.json").write_text(json.dumps(record))
    return folder / "boxes.json"


def test_coco_boxes_become_detector_targets(tmp_path):
    data = CocoDetection(coco_file(tmp_path), tmp_path)
    assert list(data.names.values()) == ["ant", "cat"]  # labels in the order of the category ids
    row = data[0]
    assert row["class_labels"].tolist() == [1, 0]  # without the crowd
    torch.testing.assert_close(row["boxes"], torch.tensor([[0.5, 0.4, 0.5, 0.4], [0.1, 4 / 30, 0.2, 8 / 30]]))
    assert row["image"].size == (40, 30)
    assert data[1]["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations__1__bbox": [0, 0, 0, 8]},
            r"annotation 1: bbox \[0, 0, 0, 8\] in an image of \(40, 30\); expected",
        ),
        ({"annotations__0__bbox": [30, 6, 20, 12]}, r"annotation 0: bbox \[30, 6, 20, 12\] in an image of \(40, 30\)"),
        ({"annotations__0__bbox": [-5, 6, 20, 12]}, "annotation 0: bbox .*; expected x, y, width, height inside it"),
        ({"annotations__1__image_id": 9}, "annotation 1: image 9 is not listed"),
        ({"annotations__1__category_id": 9}, "annotation 1: category 9 is not listed"),
        ({"annotations__0__bbox": None}, "annotation 0: key 'bbox' is missing; expected a record with it"),
        ({"images__1__id": 1}, "an image id occurs twice"),
        ({"categories__0__name": None}, "key 'name' is missing"),
    ],
    ids=["no-area", "outside", "negative", "image", "category", "no-box", "image-twice", "no-name"],
)
def test_wrong_coco_files_are_refused(tmp_path, changes, message):
    file = coco_file(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"boxes.json: {message}"):
        CocoDetection(file, tmp_path)


def test_mirrored_boxes_frame_the_mirrored_pixels(tmp_path):
    row = CocoDetection(coco_file(tmp_path), tmp_path)[0]
    seeds = {mirror(row, torch.Generator().manual_seed(seed))["image"] is row["image"]: seed for seed in range(20)}
    assert mirror(row, torch.Generator().manual_seed(seeds[True])) is row
    flipped = mirror(row, torch.Generator().manual_seed(seeds[False]))
    before, after = np.asarray(row["image"]), np.asarray(flipped["image"])
    assert flipped["boxes"][1].tolist() == pytest.approx([0.9, 4 / 30, 0.2, 8 / 30])
    assert np.array_equal(after[0:8, 32:40], before[0:8, 0:8][:, ::-1])
    assert row["boxes"][1, 0] == pytest.approx(0.1)  # the row itself is left as it was


def test_perfect_boxes_score_one_and_wrong_ones_zero(corpus):
    data = CocoDetection(corpus / "detection" / "instances_val.json", corpus / "images" / "val")
    perfect = []
    for i in range(len(data)):
        row = data[i]
        center, half = row["boxes"][:, :2], row["boxes"][:, 2:] / 2
        boxes = torch.cat((center - half, center + half), dim=1)
        perfect.append({"id": row["id"], "boxes": boxes.tolist(), "labels": row["class_labels"].tolist()})
    perfect = [{**record, "scores": [0.9] * len(record["labels"])} for record in perfect]
    shifted = [{**r, "labels": [(label + 1) % 48 for label in r["labels"]]} for r in perfect]
    scores = coco_scores(perfect, data)
    assert (scores["map"], scores["map50"], scores["recall_100"]) == (1.0, 1.0, 1.0)
    assert scores["num_examples"] == 20
    assert coco_scores(shifted, data)["map50"] < 0.1


def test_detections_are_the_best_class_of_each_query():
    logits = torch.tensor([[[0.0, 2.0], [3.0, -1.0]]])
    outputs = SimpleNamespace(logits=logits, pred_boxes=torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.1, 0.5, 0.4, 1.0]]]))
    (record,) = detections(outputs, 2, [{"id": 5}])
    assert record["id"] == 5
    assert record["labels"] == [1, 0]
    assert record["scores"] == pytest.approx(torch.tensor([2.0, 3.0]).sigmoid().tolist())
    assert record["boxes"][0] == pytest.approx([0.4, 0.3, 0.6, 0.7])
    assert record["boxes"][1] == pytest.approx([0.0, 0.0, 0.3, 1.0])  # cut at the border


def test_the_shipped_detector_finds_the_objects_of_the_corpus(corpus):
    encoder = QueryRegionEncoder.from_pretrained(DETECTOR).eval()
    data = CocoDetection(corpus / "detection" / "instances_test.json", corpus / "images" / "test")
    scores = region_scores(encoder, VisualBertImageProcessor.from_pretrained(DETECTOR), data)
    assert scores["recall50"] > 0.95
    assert scores["class_accuracy"] > 0.95
    assert scores["exact_count"] > 0.8


def test_a_detector_trains_on_a_folder_of_boxes(tmp_path):
    file, start = str(coco_file(tmp_path)), tmp_path / "start"
    tiny_detector("d_fine").save_pretrained(start)
    VisualBertImageProcessor(size={"height": 64, "width": 96}).save_pretrained(start)
    run = DetectionArgs(
        str(tmp_path / "run"),
        train_annotations=file,
        train_images=str(tmp_path),
        dev_annotations=file,
        dev_images=str(tmp_path),
        detector=str(start),
        max_steps=2,
        batch_size=2,
        log_steps=1,
        cpu=True,
    )
    task = detection_task(run, Accelerator(cpu=True))
    assert list(task.model.config.id2label.values()) == ["ant", "cat"]
    batch = task.collate([task.splits["train"][i] for i in range(2)])
    assert batch["pixel_values"].shape == (2, 3, 64, 96)
    record = train(task, run)
    assert set(record["splits"]["dev"]) == {"map", "map50", "recall_100", "num_examples"}
    assert (tmp_path / "run" / "best" / "preprocessor_config.json").is_file()


@pytest.mark.parametrize("role", ["train", "dev"])
def test_a_detector_does_not_train_without_boxes(tmp_path, role):
    whole, none = tmp_path / "whole", tmp_path / "none"
    whole.mkdir()
    none.mkdir()
    files = {"train": coco_file(whole), "dev": coco_file(whole), role: coco_file(none)}
    files[role].write_text(json.dumps({**json.loads(files[role].read_text()), "annotations": []}))
    fields = {f"{name}_annotations": str(path) for name, path in files.items()}
    run = DetectionArgs(str(tmp_path / "run"), **fields, train_images=str(whole), dev_images=str(whole))
    with pytest.raises(ValueError, match=f"--{role}_annotations .*none/boxes.json: no boxes; expected at least one"):
        detection_task(run, Accelerator(cpu=True))


def test_annotations_need_images_and_a_dev_set(tmp_path):
    run = DetectionArgs(str(tmp_path), train_annotations="boxes.json")
    with pytest.raises(
        ValueError, match="--train_annotations needs --train_images, --dev_annotations and --dev_images"
    ):
        detection_task(run, Accelerator(cpu=True))
