"""The NLVR2 task on the small corpus: inputs, predictions, scores, starting points, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers import randomise, shared
from transformers import BertConfig, BertModel

from modeling_visualbert import QueryRegionEncoder, VisualBertForVisualReasoning, VisualBertImageProcessor
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.data.files import index_images_by_name
from modeling_visualbert.features.extract import extract_regions
from modeling_visualbert.features.store import write_store
from modeling_visualbert.metrics.nlvr2 import nlvr2_accuracy
from modeling_visualbert.tasks.common import DETECTOR
from modeling_visualbert.tasks.nlvr2 import Nlvr2Args, nlvr2_task
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
from modeling_visualbert.training.evaluation import evaluate
from modeling_visualbert.training.loop import save_model, train

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CPU = Accelerator(cpu=True)


@pytest.fixture(scope="module")
def make(corpus, tmp_path_factory):
    """Arguments -> the task on the small corpus, given as a data folder, and its arguments."""

    def build(args_class=Nlvr2Args, task_of=nlvr2_task, **changes):
        fields = {**SIZES, "data_dir": str(corpus / "nlvr2"), "dropout": 0.0, "cpu": True, **changes}
        args = args_class(str(tmp_path_factory.mktemp("run") / "run"), **fields)
        return task_of(args, CPU), args

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELING_VISUALBERT_CACHE", str(corpus.parent / "cache"))
        yield build


@pytest.fixture(scope="module")
def task(make):
    """The task with default arguments."""
    return make()[0]


@pytest.fixture(scope="module")
def regions(corpus, task):
    """Regions of the images of the first dev examples, found in the files of the release's layout."""
    paths = index_images_by_name(corpus / "nlvr2")
    names = sorted({name for row in first_rows(task, 9) for name in row["images"]})
    encoder, processor = (
        QueryRegionEncoder.from_pretrained(DETECTOR),
        VisualBertImageProcessor.from_pretrained(DETECTOR),
    )
    return dict(extract_regions(encoder, processor, [(name, paths[name]) for name in names], progress=False))


def first_rows(task, count=6, split="dev"):
    return [task.splits[split][i] for i in range(count)]


def records_of(corpus, split="dev"):
    """The lines of the official file."""
    return [json.loads(line) for line in (corpus / "nlvr2" / "data" / f"{split}.json").read_text().splitlines()]


def data_folder(folder, corpus, **files):
    """A data folder with the corpus' images and files, some of them replaced by these lines."""
    shutil.copytree(corpus / "nlvr2" / "data", folder / "data")
    for split, lines in files.items():
        (folder / "data" / f"{split}.json").write_text("".join(f"{line}\n" for line in lines))
    return {"data_dir": str(folder), "images_dir": str(corpus / "nlvr2" / "images")}


@pytest.fixture
def undecided(make):
    """A task, and its arguments, whose model says "True" of about half of the dev examples."""
    task, args = make()
    randomise(task.model.visual_bert.encoder)
    batch = task.collate(first_rows(task, 32))
    with torch.no_grad():
        logits = task.model.eval()(**batch).logits
        task.model.cls.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    return task, args


def test_a_batch_holds_the_sentence_and_the_regions_of_both_images(task, regions, corpus):
    rows = first_rows(task)
    batch = task.collate(rows)
    assert len({tuple(row["images"]) for row in rows}) == 4
    for number, (row, record) in enumerate(zip(rows, records_of(corpus), strict=False)):
        pair = record["identifier"].rsplit("-", 1)[0]
        left, right = (regions[f"{pair}-img{side}"]["visual_embeds"] for side in (0, 1))
        count = len(left) + len(right)
        found = batch["visual_embeds"][number]
        torch.testing.assert_close(found[:count].float(), torch.cat((left, right)), atol=1e-4, rtol=2**-11)
        assert not found[count:].any()
        segments = batch["visual_token_type_ids"][number]
        assert segments[:count].tolist() == [0] * len(left) + [1] * len(right)
        assert batch["visual_attention_mask"][number].tolist() == [1] * count + [0] * (len(found) - count)
        ids = batch["input_ids"][number][batch["attention_mask"][number].bool()].tolist()
        assert ids == corpus_tokenizer()(record["sentence"])["input_ids"]
        assert batch["labels"][number] == ["False", "True"].index(record["label"])
        assert row["identifier"] == record["identifier"]
    assert task.count_items(batch) == {"num_items_in_batch": 6}


def test_predictions_are_scored_and_written_as_the_official_script_has_it(undecided, corpus, tmp_path):
    task, args = undecided
    metrics, predictions = evaluate(task, task.model, "dev", args, CPU)
    labels = {record["identifier"]: record["label"] for record in records_of(corpus)}
    told = {record["id"]: record["label"] for record in predictions}
    assert {"True", "False"} == set(told.values())
    assert all(0.5 <= record["score"] <= 1 for record in predictions)
    expected = nlvr2_accuracy(told, labels)
    assert metrics == {
        "accuracy": pytest.approx(100 * expected["accuracy"]),
        "consistency": pytest.approx(100 * expected["consistency"]),
        "num_examples": len(labels),
    }
    task.write_results(predictions, tmp_path / "results_dev")
    lines = dict(line.split(",") for line in (tmp_path / "results_dev.csv").read_text().splitlines())
    assert lines == told
    assert nlvr2_accuracy(lines, labels) == expected


def test_predictions_are_those_of_the_logits(undecided):
    task, args = undecided
    rows = first_rows(task, 20)
    batch = {name: value for name, value in task.collate(rows).items() if name != "labels"}
    with torch.inference_mode():
        best = task.model.eval()(**batch).logits.argmax(dim=-1).tolist()
    found = {record["id"]: record["label"] for record in evaluate(task, task.model, "dev", args, CPU)[1]}
    assert [found[row["identifier"]] for row in rows] == [str(bool(label)) for label in best]
    assert len(set(best)) == 2


def test_a_split_without_labels_is_predicted_and_not_scored(make, corpus, tmp_path):
    hidden = [{k: v for k, v in record.items() if k != "label"} for record in records_of(corpus, "test1")]
    folder = data_folder(tmp_path / "data", corpus, test2=map(json.dumps, hidden))
    task, args = make(**folder, test_split="test2")
    assert "labels" not in task.collate(first_rows(task, split="test"))
    metrics, predictions = evaluate(task, task.model, "test", args, CPU)
    assert metrics == {"num_examples": len(hidden)}
    assert [record["id"] for record in predictions] == sorted(record["identifier"] for record in hidden)
    task.write_results(predictions, tmp_path / "results_test")
    assert len((tmp_path / "results_test.csv").read_text().splitlines()) == len(hidden)


@pytest.mark.parametrize("role", ["train", "dev"])
def test_training_on_a_split_without_labels_is_refused(make, corpus, tmp_path, role):
    hidden = [{k: v for k, v in record.items() if k != "label"} for record in records_of(corpus, "test1")]
    folder = data_folder(tmp_path / "data", corpus, test2=map(json.dumps, hidden))
    with pytest.raises(ValueError, match=rf"--{role}_split test2: no 'label' in .*/data/test2.json; expected labels"):
        make(**folder, **{f"{role}_split": "test2"})
    empty = data_folder(tmp_path / "empty", corpus, test2=[])
    with pytest.raises(ValueError, match=f"--{role}_split test2: no examples; expected at least one"):
        make(**empty, **{f"{role}_split": "test2"})


def test_a_bad_record_stops_the_run_or_is_listed(make, corpus, tmp_path):
    lines = [json.dumps(record) for record in records_of(corpus, "train")]
    lines[2] = json.dumps({**json.loads(lines[2]), "label": "maybe"})
    folder = data_folder(tmp_path / "data", corpus, train=[*lines[:5], "{", *lines[6:]])
    with pytest.raises(ValueError, match=r"data/train.json: line 3: 'label' is 'maybe'; expected 'True' or 'False'"):
        make(**folder)
    task, args = make(**folder, skip_bad_records=True, max_steps=1, batch_size=4)
    metrics = train(task, args, CPU)
    assert metrics["run"]["skipped_records"] == 2
    assert metrics["run"]["train_examples"] == len(lines) - 2
    first, second = (Path(args.output_dir) / "skipped.txt").read_text().splitlines()
    assert "train.json: line 3: 'label' is 'maybe'" in first
    assert "train.json: line 6: malformed JSON" in second


@pytest.mark.parametrize("from_pixels", [False, True])
def test_one_missing_image_of_a_pair_is_named(make, corpus, tmp_path, from_pixels):
    shutil.copytree(corpus / "nlvr2" / "images", tmp_path / "images")
    (gone,) = (tmp_path / "images").rglob("shapes_dev-1-2-img1.png")
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file of image shapes_dev-1-2-img1 \(1 are missing\)"):
        make(images_dir=str(tmp_path / "images"), from_pixels=from_pixels)
    whole, _ = make(text_only=True)
    fields = {"from_pixels": from_pixels, "region_encoder": str(DETECTOR)}
    task, _ = make(images_dir=str(tmp_path / "images"), skip_bad_records=True, **fields)
    expected = [row["identifier"] for row in whole.splits["dev"] if gone.stem not in row["images"]]
    assert task.splits["dev"]["identifier"] == expected and len(expected) < len(whole.splits["dev"])
    assert len(task.skipped) == len(whole.splits["dev"]) - len(expected)
    assert all(line.startswith("dev: row ") and line.endswith(f"no file of image {gone.stem}") for line in task.skipped)


def test_the_most_confident_regions_are_kept(make, regions):
    task, _ = make(num_regions=2)
    rows = first_rows(task)
    batch = task.collate(rows)
    for number, row in enumerate(rows):
        best = [regions[name]["scores"].topk(min(2, len(regions[name]["scores"]))).indices for name in row["images"]]
        expected = [regions[name]["visual_embeds"][places] for name, places in zip(row["images"], best, strict=True)]
        count = sum(map(len, expected))
        assert batch["visual_attention_mask"][number].sum() == count
        torch.testing.assert_close(
            batch["visual_embeds"][number][:count], torch.cat(expected), atol=1e-4, rtol=2**-11, check_dtype=False
        )
    assert any(len(found["scores"]) > 2 for found in regions.values())


@pytest.mark.parametrize("num_regions", [None, 2])
def test_pixels_give_the_logits_of_the_stored_regions(make, num_regions):
    stored, live = (make(from_pixels=flag, num_regions=num_regions)[0] for flag in (False, True))
    batches = [task.collate(first_rows(task)) for task in (stored, live)]
    assert batches[1]["pixel_values"].shape[:2] == (6, 2)
    with torch.inference_mode():
        logits = [task.model.eval()(**batch).logits for task, batch in zip((stored, live), batches, strict=True)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("trained", [False, True])
def test_the_region_encoder_is_trained_only_on_request(make, trained):
    task, args = make(from_pixels=True, train_region_encoder=trained, max_steps=1, batch_size=2, learning_rate=1e-2)
    task.splits = {name: rows.select(range(4)) for name, rows in task.splits.items() if name != "test"}
    task.score = lambda predictions, split: {"accuracy": 0.0}
    before = {k: v.clone() for k, v in task.model.visual_bert.region_encoder.state_dict().items()}
    train(task, args, CPU)
    after = task.model.visual_bert.region_encoder.state_dict()
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert bool(changed) == trained


def test_text_only_sees_no_images(make, task):
    blind, _ = make(text_only=True)
    assert sorted(blind.collate(first_rows(blind))) == ["attention_mask", "input_ids", "labels", "token_type_ids"]
    assert blind.draw is None
    states = task.model.state_dict()
    assert all(torch.equal(value, states[name]) for name, value in blind.model.state_dict().items())


def test_late_fusion_reads_the_sentence_without_the_images_first(make):
    task, _ = make(late_fusion=True, num_hidden_layers=2)
    batch = task.collate(first_rows(task))
    batch.pop("labels")
    length = batch["input_ids"].shape[1]
    with torch.inference_mode():
        task.model.eval()
        seeing = task.model(**batch, output_hidden_states=True)
        blind = task.model(**{**batch, "visual_embeds": -batch["visual_embeds"]}, output_hidden_states=True)
    for number in (0, 1, 2):
        assert torch.equal(seeing.hidden_states[number][:, :length], blind.hidden_states[number][:, :length])
    assert not torch.allclose(seeing.logits, blind.logits)


def test_bert_is_a_starting_point(make, tmp_path):
    bert = BertModel(BertConfig(vocab_size=len(corpus_tokenizer()), **SIZES))
    bert.save_pretrained(tmp_path / "bert")
    corpus_tokenizer().save_pretrained(tmp_path / "bert")
    task, _ = make(init_from=str(tmp_path / "bert"))
    assert type(task.model) is VisualBertForVisualReasoning
    embeddings = task.model.visual_bert.embeddings
    assert torch.equal(embeddings.word_embeddings.weight, bert.embeddings.word_embeddings.weight)
    assert torch.equal(embeddings.visual_token_type_embeddings.weight, bert.embeddings.token_type_embeddings.weight)
    assert task.model.config.id2label == {0: "False", 1: "True"}
    assert task.model(**task.collate(first_rows(task))).loss.isfinite()


def test_a_vqa_model_is_a_starting_point(make, corpus, tmp_path):
    vqa = {"data_dir": str(corpus / "vqa"), "images_dir": str(corpus / "images"), "min_answer_count": 3, "seed": 1}
    first, _ = make(VqaArgs, vqa_task, **vqa, hidden_size=24)
    with torch.no_grad():
        first.model.visual_bert.region_encoder.feature_mean.add_(0.5)  # as if it were another one
    save_model(first.model, first, tmp_path / "vqa")
    task, _ = make(init_from=str(tmp_path / "vqa"))
    assert task.model.cls.weight.shape == (2, 24)
    assert task.model.config.id2label == {0: "False", 1: "True"}
    theirs = first.model.visual_bert.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in task.model.visual_bert.state_dict().items())
    assert task.processor.task == "nlvr2"
    assert task.processor.answers is None


def test_the_second_segment_can_be_drawn_anew(make, task):
    (wide, _), (again, _) = make(second_segment_std=3.0), make(second_segment_std=3.0)
    segments, others, old = (
        t.model.visual_bert.embeddings.visual_token_type_embeddings.weight for t in (wide, again, task)
    )
    assert torch.equal(segments, others)
    assert torch.equal(segments[0], old[0])
    assert 1.5 < segments[1].std() < 4.5
    changed = [n for n, v in wide.model.state_dict().items() if not torch.equal(v, task.model.state_dict()[n])]
    assert changed == ["visual_bert.embeddings.visual_token_type_embeddings.weight"]


def test_real_records_reach_the_loss(make, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    lines = shared("real/nlvr2/dev_850.jsonl").read_text()
    for split in ("train", "dev"):
        (folder / f"{split}.json").write_text(lines)
    names = {f"dev-850-{pair}-img{side}" for pair in range(4) for side in (0, 1)}
    generator = torch.Generator().manual_seed(0)
    found = {"boxes": torch.zeros(5, 4), "scores": torch.ones(5), "class_ids": torch.zeros(5)}
    found["image_size"] = torch.tensor([400, 600])
    rows = ((name, {**found, "visual_embeds": torch.randn(5, 1024, generator=generator)}) for name in sorted(names))
    write_store(tmp_path / "store", rows, 1024, "mine")
    task, args = make(data_dir=str(folder), features_dir=str(tmp_path / "store"), test_split="")
    assert task.model.config.visual_embedding_dim == 1024
    batch = task.collate(first_rows(task, 8))
    assert batch["visual_embeds"].shape == (8, 10, 1024)
    truth = [json.loads(line)["label"] == "True" for line in lines.splitlines()]
    assert batch["labels"].tolist() == list(map(int, truth))
    loss = task.model(**batch).loss
    loss.backward()
    assert 0.3 < loss < 1.5
    metrics, predictions = evaluate(task, task.model, "dev", args, CPU)
    assert metrics["num_examples"] == 8
    assert {record["id"] for record in predictions} == {json.loads(line)["identifier"] for line in lines.splitlines()}
