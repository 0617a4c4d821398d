"""The Flickr30k Entities task on the small corpus: inputs, targets, recalls, starting points, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers import randomise, shared
from transformers import BertConfig, BertModel

from modeling_visualbert import VisualBertForRegionToPhraseAlignment
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.data.files import index_images
from modeling_visualbert.data.flickr30k import load_flickr30k
from modeling_visualbert.features.extract import extract_regions
from modeling_visualbert.features.store import write_store
from modeling_visualbert.metrics.grounding import grounding_recall
from modeling_visualbert.tasks.common import DETECTOR
from modeling_visualbert.tasks.flickr30k import Flickr30kArgs, confidence_baseline, flickr30k_task, region_targets
from modeling_visualbert.training.evaluation import evaluate
from modeling_visualbert.training.loop import train

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CPU = Accelerator(cpu=True)


@pytest.fixture(scope="module")
def make(corpus, tmp_path_factory):
    """Arguments -> the task on the small corpus, given as a data folder, and its arguments."""

    def build(**changes):
        data = {"data_dir": str(corpus / "flickr30k"), "images_dir": str(corpus / "images")}
        splits = {"train_split": "shapes_train", "dev_split": "shapes_val", "test_split": ""}
        fields = {**SIZES, **data, **splits, "dropout": 0.0, "cpu": True, **changes}
        args = Flickr30kArgs(str(tmp_path_factory.mktemp("run") / "run"), **fields)
        return flickr30k_task(args, CPU), args

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELING_VISUALBERT_CACHE", str(corpus.parent / "cache"))
        yield build


@pytest.fixture(scope="module")
def task(make):
    """The task with default arguments."""
    return make()[0]


@pytest.fixture(scope="module")
def regions(corpus, task):
    """Regions of the images of the first dev sentences."""
    paths = index_images(corpus / "images" / "val")
    keys = sorted({row["image_id"] for row in first_rows(task, 20)})
    return dict(extract_regions(*finder(task), [(key, paths[key]) for key in keys], progress=False))


def finder(task):
    return task.model.visual_bert.region_encoder, task.processor.image_processor


def first_rows(task, count=20, split="dev"):
    return [task.splits[split][i] for i in range(count)]


def iou(first, second):
    """Intersection over union, by hand."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    inside = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return inside / (sum(areas) - inside)


def data_folder(folder, corpus):
    """A copy of the corpus' files that can be changed."""
    shutil.copytree(corpus / "flickr30k", folder)
    return {"data_dir": str(folder)}


def test_a_batch_holds_the_regions_and_where_phrases_end(task, regions):
    rows = first_rows(task)
    batch = task.collate(rows)
    tokenizer = corpus_tokenizer()
    for number, row in enumerate(rows):
        found = regions[row["image_id"]]["visual_embeds"]
        torch.testing.assert_close(
            batch["visual_embeds"][number][: len(found)], found, atol=1e-4, rtol=2**-11, check_dtype=False
        )
        assert batch["visual_attention_mask"][number].sum() == len(found)
        words = row["sentence"].lower().split()
        ids = batch["input_ids"][number][batch["attention_mask"][number].bool()].tolist()
        assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", *words, "[SEP]"]  # words of the corpus are one piece
        positions = batch["region_to_phrase_position"][number].tolist()
        for position, phrase in zip(positions, row["phrases"], strict=False):
            spoken = phrase.lower().split()
            assert words[position - len(spoken) : position] == spoken
        assert positions[len(row["phrases"]) :] == [-1] * (len(positions) - len(row["phrases"]))
    assert len({len(row["phrases"]) for row in rows}) > 1


def test_targets_are_uniform_over_the_regions_that_match(task, regions):
    rows = first_rows(task)
    labels = task.collate(rows)["labels"]
    counts = set()
    for number, row in enumerate(rows):
        boxes = regions[row["image_id"]]["boxes"].tolist()
        for phrase, gold in enumerate(row["boxes"]):
            matched = [max(iou(box, one) for one in gold) >= 0.5 for box in boxes]
            expected = torch.zeros(labels.shape[-1])
            expected[: len(boxes)] = torch.tensor(matched) / max(1, sum(matched))
            torch.testing.assert_close(labels[number, phrase], expected)
            counts.add(sum(matched))
        assert not labels[number, len(row["phrases"]) :].any()
    assert {1, 2} <= counts


def test_a_phrase_without_a_region_has_no_target():
    boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 4.9], [0.0, 0.0, 5.0, 10.0], [50.0, 50.0, 60.0, 60.0]]
    assert region_targets([[0, 0, 10, 10]], boxes, 5).tolist() == [0.5, 0.0, 0.5, 0.0, 0.0]
    assert region_targets([[0, 0, 10, 10], [50, 50, 60, 60]], boxes, 4).tolist() == pytest.approx(
        [1 / 3, 0, 1 / 3, 1 / 3]
    )
    assert not region_targets([[20, 20, 30, 30]], boxes, 4).any()


@pytest.fixture
def scored(make):
    """Task, metrics and predictions of a random model."""
    task, args = make()
    randomise(task.model.visual_bert.encoder)
    return task, *evaluate(task, task.model, "dev", args, CPU)


def test_predictions_are_scored_by_the_official_metric(scored, corpus):
    task, metrics, predictions = scored
    ids = [int(line) for line in (corpus / "flickr30k" / "shapes_val.txt").read_text().split()]
    rows = load_flickr30k(corpus / "flickr30k", ids)
    found = {record["id"]: record["phrases"] for record in predictions}
    assert found.keys() == {f"{row['image_id']}-{row['sentence_number']}" for row in rows}
    sentences, best = [], []
    for row in rows:
        phrases = found[f"{row['image_id']}-{row['sentence_number']}"]
        assert len(phrases) == len(row["phrases"])
        by_region = [sorted(ranked, key=lambda one: one["region"]) for ranked in phrases]
        assert all(sum(one["score"] for one in ranked) == pytest.approx(1) for ranked in phrases)
        assert all(one["score"] >= other["score"] for r in phrases for one, other in zip(r, r[1:], strict=False))
        entities = [
            {"gold": gold, "scores": [one["score"] for one in ranked]}
            for gold, ranked in zip(row["boxes"], by_region, strict=True)
        ]
        sentences.append({"proposals": [one["box"] for one in by_region[0]], "entities": entities})
        best += [
            max(iou(ranked[0]["box"], box) for box in gold) >= 0.5
            for gold, ranked in zip(row["boxes"], phrases, strict=True)
        ]
    expected = grounding_recall(sentences)
    assert metrics.pop("num_examples") == expected.pop("num_examples") == len(best)
    assert metrics == pytest.approx({name: 100 * value for name, value in expected.items()})
    assert metrics["recall_at_1"] == pytest.approx(100 * sum(best) / len(best))
    assert metrics["recall_at_1"] < metrics["recall_at_5"] <= metrics["upper_bound"]


def test_boxes_of_predictions_are_those_of_the_regions(scored, regions):
    _, _, predictions = scored
    for record in predictions[:20]:
        boxes = regions[int(record["id"].split("-")[0])]["boxes"]
        for found in record["phrases"][0]:
            assert found["box"] == pytest.approx(boxes[found["region"]].tolist(), abs=1e-2)


def test_the_baseline_takes_the_most_confident_region(scored, corpus, regions):
    task, _, predictions = scored
    few = predictions[:20]
    rows = {f"{row['image_id']}-{row['sentence_number']}": row for row in task.splits["dev"]}
    hits = [
        max(iou(found["boxes"][found["scores"].argmax()].tolist(), box) for box in gold) >= 0.5
        for record in few
        for found in [regions[rows[record["id"]]["image_id"]]]
        for gold in rows[record["id"]]["boxes"]
    ]
    data = task.splits["dev"].filter(
        lambda row: f"{row['image_id']}-{row['sentence_number']}" in {r["id"] for r in few}
    )
    scores = confidence_baseline(few, data)
    assert scores["recall_at_1"] == pytest.approx(100 * sum(hits) / len(hits))
    assert 0 < sum(hits) < len(hits)


def test_phrases_are_read_where_they_stand_or_where_they_first_occur(make, corpus, tmp_path):
    folder = data_folder(tmp_path / "data", corpus)
    number = (corpus / "flickr30k" / "shapes_val.txt").read_text().split()[0]
    entity = load_flickr30k(corpus / "flickr30k", [int(number)])[0]["entity_ids"][0]
    line = f"a star is above [/EN#{entity}/other a star] .\n"
    (tmp_path / "data" / "Sentences" / f"{number}.txt").write_text(line)
    for positions, expected in (("marked", 6), ("original", 2)):
        task, _ = make(**folder, positions=positions)
        assert task.collate(first_rows(task, 1))["region_to_phrase_position"].tolist() == [[expected]]


def test_other_white_space_does_not_shift_the_targets(make, task, corpus, tmp_path):
    folder = data_folder(tmp_path / "data", corpus)
    for path in (tmp_path / "data" / "Sentences").iterdir():
        path.write_text(path.read_text().replace(" ", " \t\u00a0"))
    spaced = make(**folder)[0]
    for name, value in task.collate(first_rows(task)).items():
        assert torch.equal(spaced.collate(first_rows(spaced))[name], value), name


def test_a_bad_record_stops_the_run_or_is_listed(make, corpus, tmp_path):
    folder = data_folder(tmp_path / "data", corpus)
    ids = (corpus / "flickr30k" / "shapes_train.txt").read_text().split()
    sentences = tmp_path / "data" / "Sentences" / f"{ids[0]}.txt"
    lines = sentences.read_text().splitlines()
    sentences.write_text("\n".join([lines[0], "[/EN#5/other not closed", *lines[2:]]) + "\n")
    (tmp_path / "data" / "Annotations" / f"{ids[2]}.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=rf"Sentences/{ids[0]}\.txt: line 2"):
        make(**folder)
    task, args = make(**folder, skip_bad_records=True, max_steps=1, batch_size=4)
    metrics = train(task, args, CPU)
    skipped = (Path(args.output_dir) / "skipped.txt").read_text().splitlines()
    assert metrics["run"]["skipped_records"] == len(skipped) == 2
    assert f"{ids[0]}.txt: line 2" in skipped[0]
    assert f"{ids[2]}.xml: malformed XML" in skipped[1]
    assert int(ids[2]) not in task.splits["train"]["image_id"]


def test_a_missing_image_is_named(make, corpus, tmp_path):
    shutil.copytree(corpus / "images", tmp_path / "images")
    (gone,) = (tmp_path / "images").rglob("*1000003.jpg")
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file of image 1000003 \(1 are missing\)"):
        make(images_dir=str(tmp_path / "images"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_only": True}, "--text_only: phrases cannot be grounded without regions"),
        ({"from_pixels": True}, "--from_pixels: targets are matched against stored boxes; train on stored regions"),
    ],
    ids=["text-only", "from-pixels"],
)
def test_what_has_no_meaning_here_is_refused(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_the_most_confident_regions_are_kept(make, regions):
    task, args = make(num_regions=2)
    rows = first_rows(task)
    batch = task.collate(rows)
    assert batch["labels"].shape[-1] == 2
    for number, row in enumerate(rows):
        found = regions[row["image_id"]]
        best = found["scores"].topk(min(2, len(found["scores"]))).indices
        expected = found["visual_embeds"][best]
        torch.testing.assert_close(
            batch["visual_embeds"][number][: len(best)], expected, atol=1e-4, rtol=2**-11, check_dtype=False
        )
        targets = torch.stack([region_targets(gold, found["boxes"][best].tolist(), 2) for gold in row["boxes"]])
        torch.testing.assert_close(batch["labels"][number][: len(targets)], targets)
    metrics, predictions = evaluate(task, task.model, "dev", args, CPU)
    assert {len(ranked) for record in predictions for ranked in record["phrases"]} <= {1, 2}
    assert metrics["recall_at_5"] == metrics["upper_bound"]


def test_late_fusion_reads_the_sentence_without_the_image_first(make):
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


def test_bert_is_a_starting_point(make, tmp_path):
    bert = BertModel(BertConfig(vocab_size=len(corpus_tokenizer()), **SIZES))
    bert.save_pretrained(tmp_path / "bert")
    corpus_tokenizer().save_pretrained(tmp_path / "bert")
    task, _ = make(init_from=str(tmp_path / "bert"))
    assert type(task.model) is VisualBertForRegionToPhraseAlignment
    theirs = bert.encoder.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in task.model.visual_bert.encoder.state_dict().items())
    assert task.model(**task.collate(first_rows(task))).loss.isfinite()


def image_store(folder, counts, dim=2054):
    """A store with random features and boxes."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for key, count in counts.items():
        corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([500.0, 375.0])
        found = {"boxes": corners.flatten(1), "scores": torch.ones(count), "class_ids": torch.zeros(count)}
        found |= {"image_size": torch.tensor([375, 500])}
        rows.append((key, {**found, "visual_embeds": torch.randn(count, dim, generator=generator)}))
    write_store(folder, rows, dim, "mine")
    return str(folder)


def test_an_image_without_regions_is_a_miss(make, corpus, tmp_path):
    ids = [row["image_id"] for split in ("train", "dev") for row in make()[0].splits[split]]
    store = image_store(tmp_path / "store", {key: 0 if key == 1000001 else 4 for key in sorted(set(ids))}, dim=6)
    task, args = make(features_dir=store)
    batch = task.collate(first_rows(task, 12))
    assert batch["visual_attention_mask"][0].sum() == 0
    assert task.model(**batch).loss.isfinite()
    metrics, predictions = evaluate(task, task.model, "dev", args, CPU)
    empty = [record for record in predictions if record["id"].startswith("1000001-")]
    assert all(ranked == [] for record in empty for ranked in record["phrases"])
    assert metrics["num_examples"] == sum(len(row["phrases"]) for row in task.splits["dev"])


def test_an_example_of_an_image_without_regions_is_drawn(task):
    row = first_rows(task, 1)[0]
    drawn = task.draw(task.model, row, {"id": "x", "phrases": [[] for _ in row["phrases"]]})
    assert drawn.width >= 480


def test_real_sentences_reach_the_loss(make, tmp_path):
    folder = shared("real/flickr30k_entities")
    shutil.copytree(folder, tmp_path / "data", ignore=shutil.ignore_patterns("images"))
    ids = [1016887272, 3359636318, 1000092795]
    for split in ("train", "mine"):
        (tmp_path / "data" / f"{split}.txt").write_text("".join(f"{number}\n" for number in ids))
    store = image_store(tmp_path / "store", dict(zip(ids, (12, 7, 5), strict=True)))
    fields = {"data_dir": str(tmp_path / "data"), "features_dir": store, "train_split": "train", "dev_split": "mine"}
    task, args = make(**fields)
    count = len(task.splits["train"])
    assert count >= 7
    batch = task.collate(first_rows(task, count, "train"))
    assert batch["visual_embeds"].shape[2] == 2054
    loss = task.model(**batch).loss
    loss.backward()
    assert loss.isfinite()
    metrics, _ = evaluate(task, task.model, "dev", args, CPU)
    assert metrics["num_examples"] == sum(len(row["phrases"]) for row in task.splits["dev"]) > 20


@pytest.mark.parametrize("image_id", [1016887272, 3359636318])
def test_real_images_reach_the_loss(make, tmp_path, image_id):
    folder = shared("real/flickr30k_entities")
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "one.txt").write_text(f"{image_id}\n")
    images = str(tmp_path / "data" / "images")
    splits = {"train_split": "one", "dev_split": "one"}
    task, _ = make(data_dir=str(tmp_path / "data"), images_dir=images, region_encoder=str(DETECTOR), **splits)
    batch = task.collate(first_rows(task, 2))
    assert task.model(**batch).loss.isfinite()
