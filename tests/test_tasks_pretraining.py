"""Pre-training on the small corpus: what each stage reads and masks, negatives, probes, scores, and the stages after it."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers import randomise, shared
from transformers import BertConfig, BertModel

from modeling_visualbert import VisualBertForPreTraining
from modeling_visualbert.corpus.build import CorpusConfig, ensure_corpus
from modeling_visualbert.corpus.scenes import COLORS, SHAPES
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.features.store import write_store
from modeling_visualbert.tasks import pretraining
from modeling_visualbert.tasks.flickr30k import Flickr30kArgs, flickr30k_task
from modeling_visualbert.tasks.nlvr2 import Nlvr2Args, nlvr2_task
from modeling_visualbert.tasks.pretraining import PretrainingArgs, pretraining_task, score_masks
from modeling_visualbert.tasks.vcr import VcrArgs, vcr_task
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
from modeling_visualbert.training.evaluation import evaluate
from modeling_visualbert.training.loop import save_model, train

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SCENES = {"train_scenes": 24, "val_scenes": 16, "test_scenes": 16}
CPU = Accelerator(cpu=True)
TOKENIZER = corpus_tokenizer()
STAGES = ["coco", "vqa", "nlvr2", "vcr", "flickr30k"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An embedded corpus in a cache of its own, so that runs without a data folder find it."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELING_VISUALBERT_CACHE", str(cache))
        yield ensure_corpus(CorpusConfig(*SCENES.values()), progress=False)


@pytest.fixture(scope="module")
def make(small, tmp_path_factory):
    """Arguments -> the task on the embedded corpus, and its arguments."""

    def build(args_class=PretrainingArgs, task_of=pretraining_task, **changes):
        fields = {**SIZES, **SCENES, "dropout": 0.0, "cpu": True, **changes}
        args = args_class(str(tmp_path_factory.mktemp("run") / "run"), **fields)
        return task_of(args, CPU), args

    return build


@pytest.fixture(scope="module")
def tasks(make):
    """The task of each stage, with more masks than usual."""
    return {stage: make(stage=stage, mlm_probability=0.3)[0] for stage in STAGES}


def drawn(task, number, seed=0):
    """A training row, masked."""
    return task.augment(task.splits["train"][number], torch.Generator().manual_seed(seed))


def unmasked(row):
    """Segments of the text as it was before masking, each as a string of lower-cased pieces."""
    ids = [piece if label == -100 else label for piece, label in zip(row.text.input_ids, row.labels, strict=True)]
    pieces = TOKENIZER.convert_ids_to_tokens(ids)
    assert pieces[0] == "[CLS]"
    assert pieces[-1] == "[SEP]"
    ends = [place for place, piece in enumerate(pieces) if piece == "[SEP]"]
    expected = [0] * (ends[0] + 1) + [1] * (len(ids) - ends[0] - 1)
    assert row.text.token_type_ids == expected
    return [" ".join(pieces[start + 1 : end]) for start, end in zip([0, *ends], ends, strict=False)]


def pieces_of(text):
    return " ".join(TOKENIZER.tokenize(text))


def captions_of(small, split="train"):
    """Captions by image, of the official file."""
    record = json.loads((small / "coco" / f"captions_{split}.json").read_text())
    found = {image["id"]: [] for image in record["images"]}
    for one in record["annotations"]:
        found[one["image_id"]].append(one["caption"])
    return found


def test_a_pair_is_two_captions_of_one_image_or_one_of_another(tasks, small):
    task, captions = tasks["coco"], captions_of(small)
    matches = []
    for number in range(24):
        for seed in range(30):
            row = drawn(task, number, 100 * number + seed)
            (image,) = row.images
            first, second = unmasked(row)
            own = list(map(pieces_of, captions[image]))
            assert first in own
            others = {pieces_of(text) for key, texts in captions.items() if key != image for text in texts}
            if row.match:
                assert second in own
                assert first != second or own.count(first) > 1
            else:
                assert second in others
            matches.append(row.match)
    assert 0.44 < sum(matches) / len(matches) < 0.56


def test_negatives_never_come_from_the_same_image(make, small, tmp_path):
    """Two images, so that a draw that does not look would be caught at once."""
    record = json.loads((small / "coco" / "captions_train.json").read_text())
    names = [image["id"] for image in record["images"]][:2]
    texts = {names[0]: ["a red star", "the red star"], names[1]: ["a blue square", "the blue square", "blue squares"]}
    ids = iter(range(10))
    annotations = [{"image_id": k, "id": next(ids), "caption": text} for k, v in texts.items() for text in v]
    (tmp_path / "coco").mkdir()
    for split in ("train", "val"):
        content = {"images": record["images"][:2], "annotations": annotations}
        (tmp_path / "coco" / f"captions_{split}.json").write_text(json.dumps(content))
    fields = {"data_dir": str(tmp_path / "coco"), "images_dir": str(small / "images")}
    task, _ = make(**fields)
    rows = [drawn(task, number, seed) for number in (0, 1) for seed in range(40)]
    for row in rows:
        first, second = unmasked(row)
        assert first in texts[row.images[0]]
        assert (second in texts[row.images[0]]) == bool(row.match)
    assert {unmasked(row)[1] for row in rows if not row.match} == {text for some in texts.values() for text in some}
    with pytest.raises(ValueError, match="the split holds one image only; expected others to draw captions of"):
        one = {"images": record["images"][:1], "annotations": annotations[:2]}
        (tmp_path / "coco" / "captions_val.json").write_text(json.dumps(one))
        make(**fields, seed=1)


def test_both_captions_are_masked(tasks):
    masked, kinds = Counter(), Counter()
    for number in range(24):
        for seed in range(20):
            row = drawn(tasks["coco"], number, 100 * number + seed)
            for piece, label, segment in zip(row.text.input_ids, row.labels, row.text.token_type_ids, strict=True):
                masked[segment, label != -100] += 1
                if label != -100:
                    kinds["mask" if piece == TOKENIZER.mask_token_id else "kept" if piece == label else "random"] += 1
                    assert label not in TOKENIZER.all_special_ids
    for segment in (0, 1):  # 30% of all pieces but [CLS] and [SEP]
        assert 0.22 < masked[segment, True] / (masked[segment, True] + masked[segment, False]) < 0.3
    shares = {kind: count / sum(kinds.values()) for kind, count in kinds.items()}
    assert shares == pytest.approx({"mask": 0.8, "random": 0.1, "kept": 0.1}, abs=0.03)


def test_the_share_of_masks_is_an_argument(make):
    rare, often = (make(mlm_probability=p)[0] for p in (0.05, 0.6))
    counts = [sum(label != -100 for i in range(24) for label in drawn(task, i, i).labels) for task in (rare, often)]
    assert counts[1] > 6 * counts[0] > 0


def test_vqa_reads_question_and_most_common_answer(tasks):
    task = tasks["vqa"]
    for number in range(20):
        row, source = drawn(task, number), task.splits["train"][number]
        answer = Counter(source["answers"]).most_common(1)[0][0]
        assert unmasked(row) == [pieces_of(f"{source['question']} {answer}")]
        assert row.match is None
        assert row.images == [source["image_id"]]


def test_nlvr2_reads_sentence_and_truth_with_both_images(tasks):
    task = tasks["nlvr2"]
    for number in range(20):
        row, source = drawn(task, number), task.splits["train"][number]
        assert unmasked(row) == [pieces_of(source["sentence"])]
        assert row.match == source["label"]
        assert row.images == source["images"]
    rows = [drawn(task, number) for number in range(8)]
    batch = task.collate(rows)
    assert batch["sentence_image_labels"].tolist() == [row.match for row in rows]
    get = nlvr2_regions(task, rows)
    for number, (left, right) in enumerate(get):
        count = len(left) + len(right)
        assert torch.equal(batch["visual_embeds"][number][:count], torch.cat((left, right)))
        segments = batch["visual_token_type_ids"][number][:count].tolist()
        assert segments == [0] * len(left) + [1] * len(right)
        assert batch["visual_attention_mask"][number].sum() == count


def nlvr2_regions(task, rows):
    """Regions of each image by itself, from rows that show it twice."""
    pairs = []
    for row in rows:
        sides = []
        for name in row.images:
            twice = type(row)(**{**vars(row), "images": [name, name]})
            both = task.collate([twice])["visual_embeds"][0]
            assert torch.equal(both[: len(both) // 2], both[len(both) // 2 :])
            sides.append(both[: len(both) // 2])
        pairs.append(sides)
    return pairs


def test_vcr_reads_both_sub_tasks_with_their_right_choices(tasks):
    task = tasks["vcr"]
    rows = list(task.splits["train"])
    assert Counter(row["subtask"] for row in rows) == {"answer": len(rows) // 2, "rationale": len(rows) // 2}
    for number in (0, 5, 9, len(rows) // 2, len(rows) - 1):
        source, row = rows[number], drawn(task, number)
        answer = source["answer_choices"][source["answer_label"]]
        if source["subtask"] == "answer":
            context, choice = source["question"], answer
        else:
            context = [*source["question"], *answer]
            choice = source["rationale_choices"][source["rationale_label"]]
        assert unmasked(row) == [with_names(words, source["objects"]) for words in (context, choice)]
        assert row.match is None
        assert row.object_ids == source["object_ids"]
        places = [None, *tags(context), None, *tags(choice), None]
        batch = task.collate([row])
        assert batch["visual_embeds"].shape[1] == 1 + len(source["objects"])
        named = {i: [p for p, tag in enumerate(places) if tag == i] for i in range(len(source["objects"]))}
        aligned = [[p for p in region.tolist() if p >= 0] for region in batch["image_text_alignment"][0]]
        assert aligned == [[], *named.values()]  # region 0 is the whole image


def tags(words):
    return [int(word[1:-1]) if word.startswith("[") else None for word in words]


def with_names(words, objects):
    return " ".join(objects[int(word[1:-1])] if word.startswith("[") else word.lower() for word in words)


def test_vcr_regions_are_those_of_the_fine_tuning_task(tasks, make):
    task, other = tasks["vcr"], make(VcrArgs, vcr_task, subtask="answer")[0]
    assert tasks["vcr"].splits["train"]["annot_id"][:6] == other.splits["train"]["annot_id"][:6]
    batch = task.collate([drawn(task, number) for number in range(6)])
    expected = other.collate([other.splits["train"][number] for number in range(6)])
    assert torch.equal(batch["visual_embeds"], expected["visual_embeds"])
    assert torch.equal(batch["visual_attention_mask"], expected["visual_attention_mask"])


def test_flickr30k_reads_the_sentence(tasks):
    task = tasks["flickr30k"]
    for number in range(20):
        row, source = drawn(task, number), task.splits["train"][number]
        assert unmasked(row) == [pieces_of(source["sentence"])]
        assert (row.match, row.images) == (None, [source["image_id"]])


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_holds_what_the_rows_say(tasks, stage):
    task = tasks[stage]
    rows = [drawn(task, number) for number in range(8)]
    batch = task.collate(rows)
    assert batch["labels"].shape == batch["input_ids"].shape
    for number, row in enumerate(rows):
        length = len(row.labels)
        assert batch["input_ids"][number, :length].tolist() == row.text.input_ids
        assert batch["labels"][number].tolist() == row.labels + [-100] * (batch["labels"].shape[1] - length)
        assert batch["attention_mask"][number].sum() == length
        assert batch["token_type_ids"][number, :length].tolist() == row.text.token_type_ids
    matched = [-100 if row.match is None else row.match for row in rows]
    assert batch["sentence_image_labels"].tolist() == matched
    assert ("image_text_alignment" in batch) == (stage == "vcr")
    assert ("visual_token_type_ids" in batch) == (stage == "nlvr2")
    assert task.count_items(batch) == {
        "num_items_in_batch": sum(label != -100 for row in rows for label in row.labels),
        "num_pairs_in_batch": 8 if stage in ("coco", "nlvr2") else 0,
    }
    assert task.model(**batch).loss.isfinite()


def test_training_rows_are_masked_anew_and_dev_rows_are_not(tasks, make):
    task = tasks["coco"]
    assert drawn(task, 0, seed=1) == drawn(task, 0, seed=1)
    assert drawn(task, 0, seed=1) != drawn(task, 0, seed=2)
    again, _ = make(mlm_probability=0.3, seed=5, batch_size=4)
    assert list(again.splits["dev"]) == list(task.splits["dev"])
    assert list(again.splits["test"]) == list(task.splits["test"])


@pytest.mark.parametrize("stage", STAGES)
def test_dev_rows_are_masked_texts_pairs_and_probes(tasks, stage):
    task = tasks[stage]
    rows = {row.id: row for row in task.splits["dev"]}
    assert len(rows) == len(task.splits["dev"])
    kinds = Counter(name.split("-")[0] for name in rows)
    assert kinds["masked"] > 10
    assert kinds["pair"] == (kinds["masked"] if stage in ("coco", "nlvr2") else 0)
    assert kinds["probe"] > 0
    for name, row in rows.items():
        if name.startswith("masked"):
            assert row.match is None
        if name.startswith("pair"):
            masked = rows[name.replace("pair", "masked")]
            assert set(row.labels) == {-100}
            assert unmasked(row) == unmasked(masked)
            assert row.match in (0, 1)
            assert row.images == masked.images
            assert TOKENIZER.mask_token_id not in row.text.input_ids
    if kinds["pair"]:
        assert {row.match for row in rows.values()} == {None, 0, 1}


@pytest.mark.parametrize("stage", STAGES)
def test_a_probe_hides_one_colour_or_shape(tasks, stage):
    words = {*COLORS, *SHAPES}
    found = Counter()
    for row in tasks[stage].splits["dev"]:
        if not row.id.startswith("probe"):
            continue
        hidden = [place for place, label in enumerate(row.labels) if label != -100]
        masks = [place for place, piece in enumerate(row.text.input_ids) if piece == TOKENIZER.mask_token_id]
        assert hidden == masks
        assert len(hidden) == 1
        assert TOKENIZER.convert_ids_to_tokens(row.labels[hidden[0]]) in words
        assert row.match is None
        text = " [SEP] ".join(unmasked(row))
        found[row.id.split("-")[1], text] += 1
    for (_, text), count in found.items():  # each of them once
        assert count == sum(word in words for word in text.split())
    assert len(found) > 5
    assert len({number for number, _ in found}) == len(found)


def test_coco_probes_read_the_first_caption_of_the_image(tasks, small):
    captions = captions_of(small, "val")
    probes = [row for row in tasks["coco"].splits["dev"] if row.id.startswith("probe")]
    for row in probes:
        assert unmasked(row) == [pieces_of(captions[row.images[0]][0])]


def test_probe_words_come_from_a_file(make, small, tmp_path):
    (tmp_path / "words.txt").write_text("red\nblue\n")
    fields = {"data_dir": str(small / "coco"), "images_dir": str(small / "images")}
    task, _ = make(**fields, probe_words=str(tmp_path / "words.txt"))
    probes = [row for row in task.splits["dev"] if row.id.startswith("probe")]
    found = {TOKENIZER.convert_ids_to_tokens(max(row.labels)) for row in probes}
    assert found == {"red", "blue"}
    assert not [row for row in make(**fields)[0].splits["dev"] if row.id.startswith("probe")]
    (tmp_path / "words.txt").write_text("red\nturquoise\n")
    with pytest.raises(ValueError, match="probe word 'turquoise' is not one word piece of this tokenizer"):
        make(**fields, probe_words=str(tmp_path / "words.txt"))


def test_without_the_match_objective_nothing_is_matched(make):
    task, _ = make(no_match=True)
    assert {drawn(task, number).match for number in range(24)} == {None}
    batch = task.collate([drawn(task, number) for number in range(4)])
    assert batch["sentence_image_labels"].tolist() == [-100] * 4
    assert task.count_items(batch)["num_pairs_in_batch"] == 0
    assert not [row for row in task.splits["dev"] if row.id.startswith("pair")]
    task.model(**batch, **task.count_items(batch)).loss.backward()
    assert not task.model.cls.seq_relationship.weight.grad.any()


def test_accuracies_are_those_of_the_logits(make):
    task, args = make(stage="nlvr2", mlm_probability=0.3)
    randomise(task.model.visual_bert.encoder)
    rows = task.splits["dev"]
    with torch.inference_mode():
        batch = task.collate(rows)
        batch = {k: v for k, v in batch.items() if "labels" not in k and k != "masked_positions"}  # all logits
        outputs = task.model.eval()(**batch)
        logits = outputs.seq_relationship_logits
        task.model.cls.seq_relationship.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
        outputs = task.model(**batch)
    right = {"masked": [], "probe": [], "pair": []}
    for number, row in enumerate(rows):
        kind = row.id.split("-")[0]
        if kind == "pair":
            right[kind].append(int(outputs.seq_relationship_logits[number].argmax()) == row.match)
            continue
        best = outputs.prediction_logits[number].argmax(dim=-1).tolist()
        right[kind] += [best[place] == label for place, label in enumerate(row.labels) if label != -100]
    metrics, predictions = evaluate(task, task.model, "dev", args, CPU)
    share = {kind: 100 * sum(hits) / len(hits) for kind, hits in right.items()}
    assert metrics == {
        "mlm_accuracy": pytest.approx(share["masked"]),
        "probe_accuracy": pytest.approx(share["probe"]),
        "match_accuracy": pytest.approx(share["pair"]),
        "num_examples": len(rows),
    }
    assert 0 < sum(right["pair"]) < len(right["pair"])
    assert {record["id"] for record in predictions} == {row.id for row in rows}


def test_scores_by_hand():
    predictions = [
        {"id": "masked-0", "pieces": [[5, 5], [6, 7], [8, 8], [9, 9]]},
        {"id": "pair-0", "pieces": [], "match": 0.9, "match_label": 1},
        {"id": "pair-1", "pieces": [], "match": 0.6, "match_label": 0},
        {"id": "pair-2", "pieces": [], "match": 0.2, "match_label": 0},
        {"id": "probe-0-3", "pieces": [[5, 6]]},
        {"id": "probe-1-3", "pieces": [[6, 6]]},
    ]
    scores = score_masks(predictions)
    expected = {"mlm_accuracy": 75.0, "probe_accuracy": 50.0, "match_accuracy": 200 / 3, "num_examples": 6}
    assert scores == pytest.approx(expected)
    assert score_masks(predictions[:1]) == {"mlm_accuracy": 75.0, "num_examples": 1}


def test_images_can_be_left_out_of_training_and_splits_joined(make, small, tmp_path):
    train, val = captions_of(small), captions_of(small, "val")
    (tmp_path / "minival.txt").write_text("".join(f"{key}\n" for key in [*list(train)[:2], *list(val)[:3]]))
    fields = {"data_dir": str(small / "coco"), "images_dir": str(small / "images"), "text_only": True}
    task, _ = make(**fields, train_split="train+val", dev_split="val", exclude_images=str(tmp_path / "minival.txt"))
    assert task.splits["train"]["image_id"] == [*list(train)[2:], *list(val)[3:]]
    assert sum(row.id.startswith("masked") for row in task.splits["dev"]) == len(val)


def test_text_only_sees_no_image(make):
    for stage in ("coco", "vcr"):
        task, _ = make(stage=stage, text_only=True)
        names = ["attention_mask", "input_ids", "labels", "masked_positions", "sentence_image_labels", "token_type_ids"]
        assert sorted(task.collate([drawn(task, number) for number in range(4)])) == names
        assert task.draw is None


def test_late_fusion_is_one_flag(make):
    task, _ = make(late_fusion=True)
    assert task.model.config.bypass_transformer
    assert task.model(**task.collate([drawn(task, number) for number in range(4)])).loss.isfinite()


def test_the_most_confident_regions_are_kept(make, tasks):
    task, _ = make(num_regions=1)
    rows = [drawn(task, number) for number in range(6)]
    few, all_of_them = task.collate(rows)["visual_embeds"], tasks["coco"].collate(rows)["visual_embeds"]
    assert few.shape[1] == 1
    assert torch.equal(few, all_of_them[:, :1])


def test_pixels_are_refused(make):
    with pytest.raises(ValueError, match="--from_pixels: "):
        make(from_pixels=True)


def test_bert_is_a_starting_point(make, tmp_path):
    bert = BertModel(BertConfig(vocab_size=len(TOKENIZER), **SIZES))
    bert.save_pretrained(tmp_path / "bert")
    TOKENIZER.save_pretrained(tmp_path / "bert")
    task, _ = make(init_from=str(tmp_path / "bert"))
    assert type(task.model) is VisualBertForPreTraining
    embeddings = task.model.visual_bert.embeddings
    assert torch.equal(embeddings.word_embeddings.weight, bert.embeddings.word_embeddings.weight)
    assert torch.equal(embeddings.visual_token_type_embeddings.weight, bert.embeddings.token_type_embeddings.weight)
    assert task.model.cls.predictions.decoder.weight is embeddings.word_embeddings.weight


NEXT = {
    "vqa": (VqaArgs, vqa_task, {"min_answer_count": 3}),
    "nlvr2": (Nlvr2Args, nlvr2_task, {}),
    "vcr": (VcrArgs, vcr_task, {"subtask": "rationale"}),
    "flickr30k": (Flickr30kArgs, flickr30k_task, {}),
    "pretraining": (PretrainingArgs, pretraining_task, {"stage": "vcr"}),
}


@pytest.fixture(scope="module", params=["coco", "text-only"])
def pretrained(request, make, tmp_path_factory):
    """A pre-trained model and its folder."""
    task, _ = make(text_only=request.param == "text-only", seed=3)
    randomise(task.model.visual_bert.encoder)
    folder = tmp_path_factory.mktemp("pretrained") / "best"
    save_model(task.model, task, folder)
    return task.model, folder


@pytest.mark.parametrize("task_name", NEXT)
def test_every_task_goes_on_from_a_pretrained_model(make, pretrained, task_name):
    model, folder = pretrained
    args_class, task_of, changes = NEXT[task_name]
    task, _ = make(args_class, task_of, init_from=str(folder), **changes)
    theirs = model.visual_bert.state_dict()
    ours = task.model.visual_bert.state_dict()
    # Not every head has the pooler.
    assert {name for name in theirs.keys() ^ ours.keys() if not name.startswith("pooler.")} == set()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items() if name in theirs)
    row = drawn(task, 0) if task.augment else task.splits["train"][0]
    assert task.model(**task.collate([row])).loss.isfinite()


def test_a_bad_record_stops_the_run_or_is_listed(make, small, tmp_path):
    shutil.copytree(small / "coco", tmp_path / "coco")
    record = json.loads((tmp_path / "coco" / "captions_train.json").read_text())
    record["annotations"][3]["caption"] = "  "
    (tmp_path / "coco" / "captions_train.json").write_text(json.dumps(record))
    fields = {"data_dir": str(tmp_path / "coco"), "images_dir": str(small / "images")}
    with pytest.raises(ValueError, match=r"captions_train.json: caption 3: the caption is empty"):
        make(**fields)
    task, args = make(**fields, skip_bad_records=True, max_steps=1, batch_size=4)
    metrics = train(task, args, CPU)
    assert metrics["run"]["skipped_records"] == 1
    assert "caption 3: the caption is empty" in (Path(args.output_dir) / "skipped.txt").read_text()


def test_bad_records_of_the_stages_after_coco_are_listed_too(make, small, tmp_path):
    shutil.copytree(small / "nlvr2" / "data", tmp_path / "data")
    with (tmp_path / "data" / "train.json").open("a") as file:
        file.write("no json\n")
    images = str(small / "nlvr2" / "images")
    task, _ = make(
        stage="nlvr2", data_dir=str(tmp_path / "data"), images_dir=images, skip_bad_records=True, test_split=""
    )
    (line,) = task.skipped
    assert "malformed JSON" in line


def test_an_unlabelled_split_has_no_pairs(make, small, tmp_path):
    shutil.copytree(small / "nlvr2" / "data", tmp_path / "data")
    lines = (tmp_path / "data" / "test1.json").read_text().splitlines()
    hidden = [{k: v for k, v in json.loads(line).items() if k != "label"} for line in lines]
    (tmp_path / "data" / "test1.json").write_text("".join(json.dumps(record) + "\n" for record in hidden))
    images = str(small / "nlvr2" / "images")
    task, args = make(stage="nlvr2", data_dir=str(tmp_path / "data"), images_dir=images)
    metrics, _ = evaluate(task, task.model, "test", args, CPU)
    assert "match_accuracy" not in metrics
    assert 0 <= metrics["mlm_accuracy"] <= 100


def test_pairs_are_trained_on_labelled_splits_only(make, small, tmp_path):
    shutil.copytree(small / "nlvr2" / "data", tmp_path / "data")
    records = map(json.loads, (tmp_path / "data" / "dev.json").read_text().splitlines())
    hidden = [{name: value for name, value in record.items() if name != "label"} for record in records]
    (tmp_path / "data" / "dev.json").write_text("".join(json.dumps(record) + "\n" for record in hidden))
    fields = {"data_dir": str(tmp_path / "data"), "images_dir": str(small / "nlvr2" / "images"), "text_only": True}
    with pytest.raises(ValueError, match="--dev_split dev: no 'label' in .*data/dev.json; expected labels"):
        make(stage="nlvr2", **fields)
    assert all(row.match is None for row in make(stage="nlvr2", no_match=True, **fields)[0].splits["dev"])


@pytest.mark.parametrize("stage", ["vqa", "vcr"])
def test_a_split_without_answers_is_named(make, small, tmp_path, stage):
    data = tmp_path / stage
    shutil.copytree(small / stage, data)
    fields = {"data_dir": str(data), "images_dir": str(small / "images"), "dev_split": "val", "test_split": "test"}
    if stage == "vqa":
        (data / "v2_shapes_test_annotations.json").unlink()
    else:
        fields["images_dir"] = str(small / "vcr" / "vcr1images")
        told = ("answer_label", "rationale_label")
        records = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
        hidden = [{k: v for k, v in record.items() if k not in told} for record in records]
        (data / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in hidden))
    with pytest.raises(ValueError, match="split 'test' has no answers; expected"):
        make(stage=stage, text_only=True, **fields)


def test_real_captions_reach_the_loss(make, tmp_path):
    source = shared("real/coco_captions")
    for split, name in (("train", "train2017_mini"), ("val", "val2017_mini")):
        shutil.copyfile(source / f"captions_{name}.json", tmp_path / f"captions_{split}.json")
    keys = [
        image["id"]
        for split in ("train", "val")
        for image in json.loads((tmp_path / f"captions_{split}.json").read_text())["images"]
    ]
    generator = torch.Generator().manual_seed(0)
    found = {"boxes": torch.zeros(4, 4), "scores": torch.ones(4), "class_ids": torch.zeros(4)}
    found |= {"image_size": torch.tensor([480, 640])}
    rows = ((key, {**found, "visual_embeds": torch.randn(4, 2048, generator=generator)}) for key in sorted(keys))
    write_store(tmp_path / "store", rows, 2048, "mine")
    task, args = make(data_dir=str(tmp_path), features_dir=str(tmp_path / "store"))
    assert len(task.splits["train"]) == 80
    batch = task.collate([drawn(task, number) for number in range(16)])
    assert batch["visual_embeds"].shape == (16, 4, 2048)
    loss = task.model(**batch).loss
    loss.backward()
    assert 3 < loss < 9
    metrics, _ = evaluate(task, task.model, "dev", args, CPU)
    assert metrics["num_examples"] == 2 * 79


def test_texts_of_the_dev_split_are_tokenised_when_they_are_read(small, make, monkeypatch):
    (small / "no_probes.txt").write_text("")
    read = []
    real = pretraining.encode_pair
    monkeypatch.setattr(pretraining, "encode_pair", lambda *args, **more: read.append(args) or real(*args, **more))
    task, _ = make(probe_words=str(small / "no_probes.txt"))
    dev = task.splits["dev"]
    assert len(dev) == 32 and len(read) <= 6  # one row of each split says how many examples
    assert [row.id for row in dev[4:7]] == ["masked-2", "pair-2", "masked-3"]
    assert dev[-1].id == "pair-15" and len(read) <= 20
    assert [row.id for row in dev.select([0, 31])] == ["masked-0", "pair-15"]
    with pytest.raises(IndexError, match="example 32 of 32"):
        dev[32]


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_rows_of_official_files(tasks, make, stage):
    task, _ = make(stage=stage, max_train_samples=5, max_eval_samples=3)
    twice = 2 if stage == "vcr" else 1  # answers and rationales
    assert len(task.splits["train"]) == 5 * twice
    assert task.splits["train"][:5] == tasks[stage].splits["train"][:5]
    assert {row.id.split("-")[1] for row in task.splits["test"]} == set(map(str, range(3 * twice)))
