"""The VCR tasks on the small corpus: inputs, predictions, joint scores, starting points, and what is refused."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers import randomise, shared
from safetensors.torch import load_file
from test_region_detector import processor_for, tiny_detector
from transformers import BertConfig, BertModel

from modeling_visualbert import QueryRegionEncoder, VisualBertForMultipleChoice, VisualBertImageProcessor
from modeling_visualbert.corpus.scenes import SHAPES
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.data.vcr import load_vcr
from modeling_visualbert.features.extract import extract_regions
from modeling_visualbert.features.store import write_store
from modeling_visualbert.metrics.submissions import read_vcr_leaderboard
from modeling_visualbert.metrics.vcr import leaderboard_accuracy, vcr_accuracy
from modeling_visualbert.tasks.common import DETECTOR
from modeling_visualbert.tasks.vcr import VcrArgs, context_of, joint_scores, rationales_of_every_answer, vcr_task
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
from modeling_visualbert.training.args import parse_args
from modeling_visualbert.training.evaluation import evaluate, write_predictions
from modeling_visualbert.training.loop import save_model, train

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CPU = Accelerator(cpu=True)


@pytest.fixture(scope="module")
def make(corpus, tmp_path_factory):
    """Arguments -> the task on the small corpus, given as a data folder, and its arguments."""

    def build(args_class=VcrArgs, task_of=vcr_task, **changes):
        fields = {**SIZES, "data_dir": str(corpus / "vcr"), "dropout": 0.0, "cpu": True, **changes}
        if args_class is VcrArgs:
            fields = {"subtask": "answer", **fields}
        args = args_class(str(tmp_path_factory.mktemp("run") / "run"), **fields)
        return task_of(args, CPU), args

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELING_VISUALBERT_CACHE", str(corpus.parent / "cache"))
        yield build


@pytest.fixture(scope="module")
def tasks(make):
    """Both sub-tasks with default arguments."""
    return {subtask: make(subtask=subtask)[0] for subtask in ("answer", "rationale")}


def first_rows(task, count=12, split="dev"):
    return [task.splits[split][i] for i in range(count)]


def records_of(corpus, split="val"):
    """The lines of the official file."""
    return [json.loads(line) for line in (corpus / "vcr" / f"{split}.jsonl").read_text().splitlines()]


def data_folder(folder, corpus, **files):
    """A data folder with the corpus' images and files, some of them replaced by these lines."""
    folder.mkdir()
    for split in ("train", "val", "test"):
        shutil.copyfile(corpus / "vcr" / f"{split}.jsonl", folder / f"{split}.jsonl")
    for split, lines in files.items():
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return {"data_dir": str(folder), "images_dir": str(corpus / "vcr" / "vcr1images")}


def named(words, objects):
    """The words of a raw text with tags replaced by class names, and which object each word names."""
    pairs = [(objects[i], i) if isinstance(word, list) else (word.lower(), None) for word in words for i in _ids(word)]
    return [word for word, _ in pairs], [place for _, place in pairs]


def _ids(word):
    return word if isinstance(word, list) else [None]


def mentioned(record):
    """Objects that any of the record's texts mentions, ascending."""
    texts = [record["question"], *record["answer_choices"], *record["rationale_choices"]]
    return sorted({i for text in texts for word in text if isinstance(word, list) for i in word})


def expected_regions(corpus, record, kept):
    """The encoder's features of the whole image and of these objects' boxes, as the metadata file has them."""
    folder = corpus / "vcr" / "vcr1images"
    metadata = json.loads((folder / record["metadata_fn"]).read_text())
    boxes = [[0.0, 0.0, metadata["width"], metadata["height"]], *(metadata["boxes"][i][:4] for i in kept)]
    encoder, processor = (
        QueryRegionEncoder.from_pretrained(DETECTOR),
        VisualBertImageProcessor.from_pretrained(DETECTOR),
    )
    images = [(0, folder / record["img_fn"])]
    ((_, found),) = extract_regions(encoder, processor, images, progress=False, boxes={0: boxes})
    return found["visual_embeds"]


@pytest.mark.parametrize("subtask", ["answer", "rationale"])
def test_a_batch_holds_the_choices_and_the_regions_that_they_name(tasks, corpus, subtask):
    task, tokenizer = tasks[subtask], corpus_tokenizer()
    rows, records = first_rows(task), records_of(corpus)[:12]
    batch = task.collate(rows)
    assert batch["input_ids"].shape[:2] == (12, 4)
    assert len({len(mentioned(record)) for record in records}) > 1
    for number, record in enumerate(records):
        kept = mentioned(record)
        features = batch["visual_embeds"][number]
        if number % 4 == 0:
            expected = expected_regions(corpus, record, kept)
            torch.testing.assert_close(features[: len(expected)].float(), expected, atol=1e-4, rtol=2**-11)
        assert batch["visual_attention_mask"][number].sum() == len(kept) + 1
        assert not features[len(kept) + 1 :].any()
        assert batch["labels"][number] == record[f"{subtask}_label"]
        context = list(record["question"])
        if subtask == "rationale":
            context += record["answer_choices"][record["answer_label"]]
        for choice, words in enumerate(record[f"{subtask}_choices"]):
            first, naming = named(context, record["objects"])
            second, more = named(words, record["objects"])
            mask = batch["attention_mask"][number, choice].bool()
            pieces = tokenizer.convert_ids_to_tokens(batch["input_ids"][number, choice][mask].tolist())
            assert pieces == ["[CLS]", *first, "[SEP]", *second, "[SEP]"]
            segments = batch["token_type_ids"][number, choice][mask].tolist()
            assert segments == [0] * (len(first) + 2) + [1] * (len(second) + 1)
            places = [None, *naming, None, *more, None]
            alignment = batch["image_text_alignment"][number, choice]
            for region, row in enumerate([None, *kept]):
                expected = [] if row is None else [place for place, i in enumerate(places) if i == row]
                assert [place for place in alignment[region].tolist() if place >= 0] == expected
            assert (alignment[len(kept) + 1 :] == -1).all()


def test_a_given_answer_takes_the_place_of_the_right_one(tasks):
    row = next(row for row in first_rows(tasks["rationale"]) if row["answer_label"] != 2)
    assert context_of({**row, "given_answer": 2}, "rationale") == [*row["question"], *row["answer_choices"][2]]
    given = tasks["rationale"].collate([{**row, "given_answer": 2}])["input_ids"]
    assert given.shape != (right := tasks["rationale"].collate([row])["input_ids"]).shape or not torch.equal(
        given, right
    )
    assert context_of(row, "answer") == row["question"]


def test_all_objects_and_no_whole_image_on_request(make, corpus):
    record = records_of(corpus)[0]
    count = len(record["objects"])
    features = expected_regions(corpus, record, range(count))
    assert len(mentioned(record)) < count
    for whole, expected in ((True, features), (False, features[1:])):
        batch = make(objects="all", whole_image=whole)[0]
        batch = batch.collate(first_rows(batch, 1))
        torch.testing.assert_close(batch["visual_embeds"][0].float(), expected, atol=1e-4, rtol=2**-11)
        named_regions = (batch["image_text_alignment"][0, 0] >= 0).any(dim=-1)
        used = {i for word in record["question"] + record["answer_choices"][0] if isinstance(word, list) for i in word}
        assert named_regions.nonzero()[:, 0].tolist() == [i + whole for i in sorted(used)]


def test_alignment_as_the_authors_have_it(make):
    task, _ = make(alignment="original")
    assert task.processor.alignment == "original"
    assert (task.collate(first_rows(task))["image_text_alignment"] >= 0).any()


@pytest.fixture
def scored(make, tmp_path):
    """Folders of both sub-tasks with predictions of random models, and the tasks."""
    found = {}
    for seed, subtask in enumerate(("answer", "rationale")):
        task, args = make(subtask=subtask)
        args.output_dir = str(tmp_path / subtask)
        randomise(task.model.visual_bert.encoder, seed=seed)
        save_model(task.model, task, tmp_path / subtask / "best")
        metrics, predictions = evaluate(task, task.model, "dev", args, CPU)
        write_predictions(tmp_path / subtask / "predictions_dev.jsonl", predictions)
        found[subtask] = (task, args, metrics, {record["id"]: record for record in predictions})
    rationales_of_every_answer(*found["rationale"][:2], CPU)
    return found


def test_predictions_are_scored(scored, corpus):
    records = records_of(corpus)
    for subtask, (_, _, metrics, predictions) in scored.items():
        assert predictions.keys() == {record["annot_id"] for record in records}
        chosen = [predictions[record["annot_id"]] for record in records]
        assert all(sum(one["scores"]) == pytest.approx(1) for one in chosen)
        assert [one["choice"] for one in chosen] == [one["scores"].index(max(one["scores"])) for one in chosen]
        assert len({one["choice"] for one in chosen}) > 1
        right = [one["choice"] == record[f"{subtask}_label"] for one, record in zip(chosen, records, strict=True)]
        assert metrics == {"accuracy": pytest.approx(100 * sum(right) / len(right)), "num_examples": len(records)}


def test_joint_scores_are_the_official_ones(scored, corpus, tmp_path):
    records = records_of(corpus)
    ids = [record["annot_id"] for record in records]
    labels = [[record[f"{kind}_label"] for record in records] for kind in ("answer", "rationale")]
    rows = {kind: [scored[kind][3][key]["scores"] for key in ids] for kind in scored}
    data = scored["answer"][0].splits["dev"]
    joint = joint_scores(tmp_path / "answer", tmp_path / "rationale", data, "dev", tmp_path)
    # The rationale's own predictions were made given the correct answer.
    expected = vcr_accuracy(rows["answer"], rows["rationale"], *labels)
    assert {name: joint[name] for name in ("answer", "rationale", "joint")} == pytest.approx(
        {name: 100 * expected[name] for name in ("answer", "rationale", "joint")}
    )
    board = read_vcr_leaderboard(tmp_path / "leaderboard_dev.csv")
    assert list(board) == ids
    again = leaderboard_accuracy(list(board.values()), *labels)
    assert 100 * again["joint"] == pytest.approx(joint["joint"])
    for key, truth in zip(ids, labels[0], strict=True):
        assert board[key][:4] == pytest.approx(scored["answer"][3][key]["scores"])
        start = 4 + 4 * truth
        assert board[key][start : start + 4] == pytest.approx(scored["rationale"][3][key]["scores"], abs=1e-5)
    right = 0
    for key, answer, rationale in zip(ids, *labels, strict=True):
        chosen = board[key][:4].index(max(board[key][:4]))
        given = board[key][4 + 4 * chosen : 8 + 4 * chosen]
        right += chosen == answer and given.index(max(given)) == rationale
    assert joint["joint_predicted"] == pytest.approx(100 * right / len(ids))


def test_missing_predictions_of_the_other_sub_task_are_named(scored, tmp_path):
    data = scored["answer"][0].splits["dev"]
    lines = (tmp_path / "rationale" / "rationales_dev.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rationale" / "rationales_dev.jsonl").write_text("".join(lines[3:]))
    with pytest.raises(ValueError, match=r"no predictions for shapes_val-\d+ \(3 are missing\)"):
        joint_scores(tmp_path / "answer", tmp_path / "rationale", data, "dev", tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        joint_scores(tmp_path / "nowhere", tmp_path / "rationale", data, "dev", tmp_path)


@pytest.fixture
def hidden(corpus, tmp_path):
    """A data folder whose test split has no labels, as released."""
    told = ("answer_label", "rationale_label")
    lines = [json.dumps({k: v for k, v in record.items() if k not in told}) for record in records_of(corpus, "test")]
    return data_folder(tmp_path / "data", corpus, test=lines[:12])


def test_a_split_without_labels_is_predicted_and_not_scored(make, hidden):
    task, args = make(**hidden, test_split="test")
    assert "labels" not in task.collate(first_rows(task, split="test"))
    metrics, predictions = evaluate(task, task.model, "test", args, CPU)
    assert metrics == {"num_examples": 12}
    assert sorted(record["id"] for record in predictions) == sorted(task.splits["test"]["annot_id"])


def test_both_sub_tasks_end_with_a_leaderboard_of_a_split_without_labels(make, hidden, tmp_path):
    for subtask in ("answer", "rationale"):
        task, args = make(**hidden, subtask=subtask, test_split="test", max_steps=1, batch_size=4)
        args.output_dir = str(tmp_path / subtask)
        record = train(task, args, CPU)
        assert record["splits"]["test"] == {"num_examples": 12}
    rationales_of_every_answer(task, args, CPU)
    assert joint_scores(tmp_path / "answer", tmp_path / "rationale", task.splits["test"], "test", tmp_path) == {}
    board = read_vcr_leaderboard(tmp_path / "leaderboard_test.csv")
    assert list(board) == task.splits["test"]["annot_id"]


@pytest.mark.parametrize("role", ["train", "dev"])
def test_training_on_a_split_without_labels_is_refused(make, hidden, role):
    for subtask in ("answer", "rationale"):
        with pytest.raises(
            ValueError, match=rf"--{role}_split test: no 'answer_label' in .*/test.jsonl; expected labels"
        ):
            make(**hidden, subtask=subtask, **{f"{role}_split": "test"})


def test_choosing_answers_needs_no_labels_of_rationales(make, corpus, tmp_path):
    lines = [json.dumps(record | {"rationale_label": None}) for record in records_of(corpus, "val")]
    folder = data_folder(tmp_path / "data", corpus, val=lines)
    task, _ = make(**folder, subtask="answer")
    assert "labels" in task.collate(first_rows(task))
    for subtask, task_of in (("rationale", vcr_task), ("answer", partial(vcr_task, labels_of="both"))):
        with pytest.raises(ValueError, match="--dev_split val: no 'rationale_label' in"):
            make(**folder, subtask=subtask, task_of=task_of)


def test_a_bad_record_stops_the_run_or_is_listed(make, corpus, tmp_path):
    lines = [json.dumps(record) for record in records_of(corpus, "train")]
    lines[1] = json.dumps({**json.loads(lines[1]), "answer_label": 4})
    folder = data_folder(tmp_path / "data", corpus, train=lines)
    with pytest.raises(ValueError, match=r"train.jsonl: line 2: 'answer_label' is 4; expected 0 to 3"):
        make(**folder)
    task, args = make(**folder, skip_bad_records=True, max_steps=1, batch_size=4)
    metrics = train(task, args, CPU)
    assert metrics["run"]["skipped_records"] == 1
    assert metrics["run"]["train_examples"] == len(lines) - 1
    (line,) = (Path(args.output_dir) / "skipped.txt").read_text().splitlines()
    assert "train.jsonl: line 2: 'answer_label' is 4" in line


@pytest.mark.parametrize("from_pixels", [False, True])
def test_a_missing_image_is_named(make, corpus, tmp_path, from_pixels):
    shutil.copytree(corpus / "vcr" / "vcr1images", tmp_path / "images")
    (tmp_path / "images" / "shapes_val" / "shapes_val_000001000003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"shapes_val_000001000003\.jpg"):
        make(images_dir=str(tmp_path / "images"), from_pixels=from_pixels)
    fields = {"images_dir": str(tmp_path / "images"), "from_pixels": from_pixels, "region_encoder": str(DETECTOR)}
    (tmp_path / "images" / "shapes_val" / "shapes_val_000001000005.jpg").write_bytes(b"no image")
    task, _ = make(skip_bad_records=True, **fields)
    left = {f"shapes_val/shapes_val_00000100000{number}.jpg" for number in (3, 5)}
    whole, _ = make(text_only=True)
    expected = [row["annot_id"] for row in whole.splits["dev"] if row["image"] not in left]
    assert task.splits["dev"]["annot_id"] == expected and task.collate(list(task.splits["dev"]))
    assert len(task.skipped) == len(whole.splits["dev"]) - len(expected) > 0


def test_missing_metadata_is_named(make, corpus, tmp_path):
    shutil.copytree(corpus / "vcr" / "vcr1images", tmp_path / "images")
    (tmp_path / "images" / "shapes_val" / "shapes_val_000001000003.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"val.jsonl: line \d+: .*shapes_val_000001000003\.json: no such file"):
        make(images_dir=str(tmp_path / "images"))


@pytest.mark.parametrize("whole", [True, False])
def test_pixels_give_the_logits_of_the_stored_regions(make, whole):
    stored, live = (make(from_pixels=flag, whole_image=whole)[0] for flag in (False, True))
    batches = [task.collate(first_rows(task)) for task in (stored, live)]
    assert "visual_embeds" not in batches[1]
    assert batches[1]["boxes_unit"].shape[:2] == batches[0]["visual_embeds"].shape[:2]
    with torch.inference_mode():
        logits = [task.model.eval()(**batch).logits for task, batch in zip((stored, live), batches, strict=True)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("trained", [False, True])
def test_the_region_encoder_is_trained_only_on_request(make, trained):
    task, args = make(from_pixels=True, train_region_encoder=trained, max_steps=1, batch_size=2, learning_rate=1e-2)
    task.splits = {name: rows.select(range(4)) for name, rows in task.splits.items()}
    task.score = lambda predictions, split: {"accuracy": 0.0}
    before = {k: v.clone() for k, v in task.model.visual_bert.region_encoder.state_dict().items()}
    train(task, args, CPU)
    after = task.model.visual_bert.region_encoder.state_dict()
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert bool(changed) == trained
    saved = VisualBertForMultipleChoice.from_pretrained(Path(args.output_dir) / "best")
    assert all(torch.equal(v, after[k]) for k, v in saved.visual_bert.region_encoder.state_dict().items())


@pytest.fixture(scope="module")
def vcr_detector(tmp_path_factory):
    """A small one of the kind that the published VCR checkpoints have, for the classes of the corpus."""
    folder = tmp_path_factory.mktemp("vcr_detector")
    names = ["whole image", *SHAPES]
    detector = tiny_detector("given", num_classes=len(names), id2label=dict(enumerate(names)))
    detector.save_pretrained(folder)
    processor_for("given", class_names=names, size={"height": 128, "width": 160}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("trained", [False, True])
def test_the_detector_of_vcr_is_told_the_objects_and_trains_along(make, vcr_detector, corpus, trained):
    task, args = make(
        **{"region_encoder": str(vcr_detector), "from_pixels": True, "train_region_encoder": trained},
        **{"max_steps": 2, "batch_size": 4, "learning_rate": 1e-2},
    )
    rows, record = first_rows(task, 3), records_of(corpus)[0]
    batch = task.collate(rows)
    metadata = json.loads((corpus / "vcr" / "vcr1images" / record["metadata_fn"]).read_text())
    kept = mentioned(record)
    expected = task.processor.image_processor.encode_objects(
        [(metadata["height"], metadata["width"])],
        boxes=[[metadata["boxes"][i] for i in kept]],
        classes=[[metadata["names"][i] for i in kept]],
        polygons=[[metadata["segms"][i] for i in kept]],
    )
    for name in ("object_classes", "object_masks"):
        torch.testing.assert_close(batch[name][0, : len(kept) + 1], expected[name][0])
    assert not batch["object_masks"][0, 1 : len(kept) + 1].all()  # outlines, not boxes

    task.splits = {name: split.select(range(8)) for name, split in task.splits.items()}
    before = {k: v.clone() for k, v in task.model.visual_bert.region_encoder.state_dict().items()}
    train(task, args, CPU)
    after = task.model.visual_bert.region_encoder.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any("class" in name for name in changed) == trained  # the class loss reaches its classifier
    assert bool(changed) == trained


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_the_backbone_of_the_detector_is_frozen_on_request(make, vcr_detector, statistics):
    task, _ = make(
        **{"region_encoder": str(vcr_detector), "from_pixels": True, "train_region_encoder": True},
        freeze_detector=statistics,
    )
    detector = task.model.visual_bert.region_encoder.train()
    assert (detector.config.freeze_backbone, detector.config.norm_statistics) == (True, statistics)
    assert not any(parameter.requires_grad for parameter in detector.backbone.parameters())
    assert all(parameter.requires_grad for parameter in detector.head.parameters())
    assert detector.backbone.stem.conv.statistics == statistics and not detector.backbone.training
    saved = load_file(vcr_detector / "model.safetensors")
    assert all(torch.equal(detector.state_dict()[name], value) for name, value in saved.items())


def test_a_frozen_backbone_needs_the_detector_of_vcr_and_its_training(make, capsys):
    with pytest.raises(ValueError, match="--freeze_detector needs --train_region_encoder"):
        VcrArgs(output_dir="runs", freeze_detector="batch")
    with pytest.raises(ValueError, match="this run has QueryRegionEncoder; expected the detector of VCR"):
        make(from_pixels=True, train_region_encoder=True, freeze_detector="running")
    with pytest.raises(SystemExit):
        parse_args(VcrArgs, "VCR", ["--output_dir", "runs", "--freeze_detector", "none"])
    assert "invalid choice: 'none'" in capsys.readouterr().err


def test_the_detector_of_vcr_describes_nothing_that_is_stored(make, vcr_detector):
    with pytest.raises(ValueError, match="vcr_detector.*class and outline.*expected --from_pixels"):
        make(region_encoder=str(vcr_detector))


def test_the_number_of_regions_is_that_of_the_objects():
    with pytest.raises(ValueError, match="--num_regions: the regions of VCR are the objects of its metadata"):
        VcrArgs("run", num_regions=3)


@pytest.mark.parametrize("subtask", ["answer", "rationale"])
def test_text_only_sees_no_image(make, subtask):
    task, _ = make(subtask=subtask, text_only=True)
    batch = task.collate(first_rows(task))
    assert sorted(batch) == ["attention_mask", "input_ids", "labels", "token_type_ids"]
    assert task.model(**batch).loss.isfinite()
    assert task.draw is None


def test_late_fusion_reads_the_text_without_the_image_first(make):
    task, _ = make(late_fusion=True)
    batch = task.collate(first_rows(task))
    batch.pop("labels")
    length = batch["input_ids"].shape[-1]
    with torch.inference_mode():
        task.model.eval()
        seeing = task.model(**batch, output_hidden_states=True)
        blind = task.model(**{**batch, "visual_embeds": -batch["visual_embeds"]}, output_hidden_states=True)
    assert torch.equal(seeing.hidden_states[1][:, :length], blind.hidden_states[1][:, :length])
    assert not torch.allclose(seeing.logits, blind.logits)


@pytest.mark.parametrize("start", ["bert", "vqa"])
def test_an_earlier_stage_is_a_starting_point(make, corpus, tmp_path, start):
    if start == "bert":
        bert = BertModel(BertConfig(vocab_size=len(corpus_tokenizer()), **SIZES))
        bert.save_pretrained(tmp_path / start)
        corpus_tokenizer().save_pretrained(tmp_path / start)
        theirs, ours = bert.encoder.state_dict(), lambda model: model.visual_bert.encoder.state_dict()
    else:
        vqa = {"data_dir": str(corpus / "vqa"), "images_dir": str(corpus / "images"), "min_answer_count": 3, "seed": 1}
        first, _ = make(VqaArgs, vqa_task, **vqa)
        save_model(first.model, first, tmp_path / start)
        theirs, ours = first.model.visual_bert.state_dict(), lambda model: model.visual_bert.state_dict()
    task, _ = make(init_from=str(tmp_path / start))
    assert type(task.model) is VisualBertForMultipleChoice
    assert task.model.config.num_labels == 1
    assert list(ours(task.model)) == list(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours(task.model).items())
    assert task.model(**task.collate(first_rows(task))).loss.isfinite()


def test_a_long_text_loses_its_front(make):
    task, _ = make(subtask="rationale", max_length=60)
    row = first_rows(task, 1)[0]
    long = {**row, "question": ["many", *row["question"]] * 9}
    batch = task.collate([long])
    assert batch["input_ids"].shape[-1] == 60
    assert task.model(**batch).loss.isfinite()


def real_store(folder, keys, counts, dim):
    """A store with random features; of the first key, whose count is given, and so on."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for key, count in zip(keys, counts, strict=True):
        found = {"boxes": torch.zeros(count, 4), "scores": torch.ones(count), "class_ids": torch.zeros(count)}
        found |= {"image_size": torch.tensor([797, 1920])}
        rows.append((key, {**found, "visual_embeds": torch.randn(count, dim, generator=generator)}))
    write_store(folder, rows, dim, "mine")
    return {key: row["visual_embeds"] for key, row in rows}


@pytest.mark.parametrize("subtask", ["answer", "rationale"])
def test_the_real_record_reaches_the_loss(make, tmp_path, subtask):
    source = shared("real/vcr/val_sample.jsonl")
    record = json.loads(source.read_text())
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text(source.read_text())
    features = real_store(tmp_path / "store", [record["img_fn"]], [1 + len(record["objects"])], 512)[record["img_fn"]]
    fields = {"data_dir": str(tmp_path), "images_dir": str(shared("real/vcr/vcr1images"))}
    task, args = make(subtask=subtask, **fields, features_dir=str(tmp_path / "store"))
    batch = task.collate(first_rows(task, 1))
    kept = mentioned(record)
    assert torch.equal(batch["visual_embeds"][0], features[[0, *(i + 1 for i in kept)]])
    assert batch["labels"].tolist() == [record[f"{subtask}_label"]]
    loss = task.model(**batch).loss
    loss.backward()
    assert 0.5 < loss < 3
    metrics, predictions = evaluate(task, task.model, "dev", args, CPU)
    assert [one["id"] for one in predictions] == [record["annot_id"]]
    assert metrics["num_examples"] == 1


def test_the_loader_gives_what_the_task_reads(corpus, tasks):
    data = load_vcr(corpus / "vcr" / "val.jsonl", corpus / "vcr" / "vcr1images")
    assert first_rows(tasks["answer"], len(data)) == list(data)
    assert replace(tasks["answer"], name="x").splits["dev"][0] == data[0]
