"""What attention heads ground: counts against plain loops, intervals against resampling, and what is refused."""

import random
import shutil
from collections import defaultdict

import numpy as np
import pytest
import torch
from helpers import tiny_model

from modeling_visualbert.analysis.counts import HeadCounts, wilson
from modeling_visualbert.analysis.grounding import count_grounding
from modeling_visualbert.analysis.report import grounding_report
from modeling_visualbert.analysis.trees import trees_in
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.data.flickr30k import load_flickr30k, read_boxes, read_split
from modeling_visualbert.hub_code.explain_visualbert import attention_weights

DIM = 10


@pytest.fixture(scope="module")
def model():
    """Large unequal weights, so that heads differ."""
    return tiny_model("base", vocab_size=len(corpus_tokenizer()), visual_embedding_dim=DIM)


@pytest.fixture(scope="module")
def data(corpus):
    return corpus / "flickr30k"


@pytest.fixture(scope="module")
def image_ids(data):
    return read_split(data / "shapes_test.txt")


@pytest.fixture(scope="module")
def regions(data, image_ids):
    """Made up regions of each image: most gold boxes, some twice, moved a little, and boxes of nothing."""
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    found = {}
    for image_id in image_ids:
        boxes = [box for gold in read_boxes(data / "Annotations" / f"{image_id}.xml").values() for box in gold]
        boxes = [box for box in boxes if rng.random() < 0.8] + [[0.0, 0.0, 9.0, 9.0], [100.0, 60.0, 159.0, 120.0]]
        boxes = [[side + rng.uniform(-1, 1) for side in box] for box in boxes]
        found[image_id] = {
            "visual_embeds": torch.randn(len(boxes), DIM, generator=generator),
            "boxes": torch.tensor(boxes),
            "scores": torch.rand(len(boxes), generator=generator),
        }
    return found


@pytest.fixture(scope="module")
def regions_of(regions):
    return lambda ids: ((image_id, regions[image_id]) for image_id in ids)


def overlap(first, second):
    """Intersection over union, by hand."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    inside = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return inside / (sum(areas) - inside)


def dependencies(data, sentence_id):
    """(relation, head, dependent) by index of word, read from the columns of the file."""
    image_id, _, number = sentence_id.partition("-")
    blocks = (data / "Trees" / f"{image_id}.conllu").read_text().split("\n\n")
    columns = [line.split("\t") for line in blocks[int(number)].splitlines() if not line.startswith("#")]
    return [(c[7], int(c[6]) - 1, int(c[0]) - 1) for c in columns if c[6] != "0"]


@torch.no_grad()
def plain_counts(model, data, image_ids, regions):
    """The whole analysis once more, one sentence, layer and head at a time:
    group -> layer, head -> image -> list of (hit, share of regions, hit of the most confident, share of right regions)."""
    tokenizer, found = corpus_tokenizer(), defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    model.set_attn_implementation("eager")
    for row in load_flickr30k(data, image_ids):
        mine = regions[row["image_id"]]
        boxes = mine["boxes"].tolist()
        right = [
            {i for i, box in enumerate(boxes) if any(overlap(box, g) >= 0.5 for g in gold)} for gold in row["boxes"]
        ]
        asked = []
        for word, fits, kinds in zip(row["last_words"], right, row["entity_types"], strict=True):
            asked += [(("entities", kind), word, fits) for kind in ("all", *kinds)]
        edges = dependencies(data, f"{row['image_id']}-{row['sentence_number']}")
        head_of = {dependent: head for _, head, dependent in edges}
        grounded = {}
        for phrase, last, fits in zip(row["phrases"], row["last_words"], right, strict=True):
            inside = set(range(last - len(phrase.split()) + 1, last + 1))
            (head,) = [word for word in inside if head_of.get(word) not in inside]
            grounded[head] = fits
        for relation, head, dependent in edges:
            if head in grounded:
                asked.append((("syntax", relation, "at dependent"), dependent, grounded[head]))
            if dependent in grounded:
                asked.append((("syntax", relation, "at head"), head, grounded[dependent]))
        ids = tokenizer(row["sentence"])["input_ids"]  # each word of the corpus is one piece
        output = model(input_ids=torch.tensor([ids]), visual_embeds=mine["visual_embeds"][None], output_attentions=True)
        confident = max(range(len(boxes)), key=lambda i: float(mine["scores"][i]))
        for group, word, fits in asked:
            for layer, weights in enumerate(output.attentions):
                for head in range(weights.shape[1]):
                    to_regions = weights[0, head, word + 1, len(ids) :].tolist()
                    best = max(range(len(boxes)), key=lambda i: to_regions[i])
                    entry = (best in fits, sum(to_regions), confident in fits, len(fits) / len(boxes))
                    found[group][layer, head][row["image_id"]].append(entry)
    return found


@pytest.fixture(scope="module")
def plain(model, data, image_ids, regions):
    return plain_counts(model, data, image_ids, regions)


def count(model, data, image_ids, regions_of, **options):
    return count_grounding(
        model,
        corpus_tokenizer(),
        data,
        image_ids,
        regions_of,
        **{"trees": trees_in(data / "Trees"), "progress": False, **options},
    )


@pytest.mark.parametrize("images_per_batch", [1, 7])
def test_counts_are_those_of_plain_loops(model, data, image_ids, regions_of, plain, images_per_batch):
    model.set_attn_implementation("sdpa")
    found = count(model, data, image_ids, regions_of, images_per_batch=images_per_batch)
    assert model.config._attn_implementation == "sdpa"
    assert set(found.counts) == set(plain)
    assert len({group[1] for group in plain if group[0] == "syntax"}) > 8
    assert found.layers == [0, 1]
    for group, heads in plain.items():
        counts = found.counts[group]
        for (layer, head), by_image in heads.items():
            entries = [entry for image in by_image.values() for entry in image]
            assert counts.probes == len(entries)
            assert counts.images == len(by_image)
            assert int(counts.h[layer, head]) == sum(entry[0] for entry in entries)
            assert counts.region_share(layer, head) == pytest.approx(np.mean([entry[1] for entry in entries]), abs=1e-6)
            assert counts.baseline == sum(entry[2] for entry in entries)
            assert counts.mean_chance() == pytest.approx(np.mean([entry[3] for entry in entries]), abs=1e-6)
            assert counts.matchable == sum(entry[3] > 0 for entry in entries)
    entities = plain["entities", "all"]
    accuracies = {place: np.mean([e[0] for image in by.values() for e in image]) for place, by in entities.items()}
    assert len(set(accuracies.values())) > 4, "heads that do not differ prove nothing"


def variance_by_hand(pairs):
    """Of sum(x) / sum(n) over clusters (x, n)."""
    x, n = (sum(values) for values in zip(*pairs, strict=True))
    spread = sum((xc - x / n * nc) ** 2 for xc, nc in pairs)
    return len(pairs) / (len(pairs) - 1) * spread / n**2


def test_intervals_are_those_of_plain_loops(model, data, image_ids, regions_of, plain):
    found = count(model, data, image_ids, regions_of)
    for group in (("entities", "all"), ("syntax", "amod", "at dependent"), ("syntax", "nsubj", "at head")):
        counts = found.counts[group]
        for (layer, head), by_image in plain[group].items():
            hits = [(sum(e[0] for e in image), len(image)) for image in by_image.values()]
            gains = [(sum(e[0] - e[2] for e in image), len(image)) for image in by_image.values()]
            share, gain = (sum(x for x, _ in pairs) / counts.probes for pairs in (hits, gains))
            tries = min(counts.probes, share * (1 - share) / variance_by_hand(hits))
            assert counts.interval(layer, head) == pytest.approx(wilson(share, tries), abs=1e-9)
            reach = 1.959964 * variance_by_hand(gains) ** 0.5
            assert counts.gain(layer, head) == pytest.approx((gain, gain - reach, gain + reach), abs=1e-6)


def test_intervals_agree_with_resampled_images():
    """The bootstrap over images, which needs all of them in memory, gives the same intervals."""
    rng = np.random.default_rng(0)
    counts, images = HeadCounts(), []
    for _ in range(400):
        easy = rng.random()  # probes of one image are alike
        size = int(rng.integers(1, 12))
        hits, base = rng.random(size) < easy, rng.random(size) < 0.3
        images.append((hits.sum(), base.sum(), size))
        one = torch.from_numpy(hits)[:, None, None]
        shares = torch.zeros(one.shape)
        base = torch.from_numpy(base)
        counts.add_image(one, shares, base, torch.zeros(size), base)
    table = np.array(images)
    sums = table[rng.integers(0, len(table), size=(4000, len(table)))].sum(axis=1)
    accuracy, gain = sums[:, 0] / sums[:, 2], (sums[:, 0] - sums[:, 1]) / sums[:, 2]
    assert counts.interval(0, 0) == pytest.approx(np.quantile(accuracy, (0.025, 0.975)), abs=0.004)
    assert counts.gain(0, 0)[1:] == pytest.approx(np.quantile(gain, (0.025, 0.975)), abs=0.004)
    low, high = counts.interval(0, 0)
    naive = wilson(counts.accuracy(0, 0), counts.probes)
    assert high - low > 1.4 * (naive[1] - naive[0]), "words of one image are no independent tries"


def test_wilson_at_the_ends():
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0.5, 100, 0.99)[0] < wilson(0.5, 100)[0]


def test_one_image_says_next_to_nothing():
    counts, yes = HeadCounts(), torch.ones(50, dtype=torch.bool)
    counts.add_image(yes[:, None, None], torch.ones(50, 1, 1), ~yes, torch.zeros(50), yes)
    assert counts.accuracy(0, 0) == 1.0
    low, high = counts.interval(0, 0)
    assert low < 0.25 and high == 1.0
    assert counts.gain(0, 0) == (1.0, -1.0, 1.0)


def test_parts_add_up_to_the_whole(model, data, image_ids, regions_of):
    """As processes do that share the images."""
    whole, merged = count(model, data, image_ids, regions_of, images_per_batch=1), None
    for rank in range(3):
        part = count(model, data, image_ids[rank::3], regions_of, images_per_batch=1)
        if merged is None:
            merged = part
        else:
            merged.add(part)
    assert grounding_report(merged, None) == grounding_report(whole, None)


def test_heads_are_chosen_on_dev(model, data, image_ids, regions_of):
    test, dev = (count(model, data, ids, regions_of) for ids in (image_ids[:12], image_ids[12:]))
    chosen, own = grounding_report(test, dev), grounding_report(test, None)
    counts = dev.counts["entities", "all"]
    places = [(layer, head) for layer in range(2) for head in range(4)]
    layer, head = max(places, key=lambda place: counts.accuracy(*place))
    best = chosen["entities"]["all"]["best"]
    assert (best["layer"], best["head"]) == (layer + 1, head + 1)
    assert best["chosen_by_accuracy"] == pytest.approx(100 * counts.accuracy(layer, head), abs=1e-3)
    assert best["accuracy"] == pytest.approx(100 * test.counts["entities", "all"].accuracy(layer, head), abs=1e-3)
    assert own["entities"]["all"]["best"]["accuracy"] == max(h["accuracy"] for h in own["entities"]["all"]["heads"])
    assert chosen["entities"]["all"]["confidence"] == 0.95
    assert own["entities"]["all"]["confidence"] == pytest.approx(1 - 0.05 / 8)
    widths = [np.ptp(report["entities"]["all"]["heads"][0]["interval"]) for report in (chosen, own)]
    assert widths[0] < widths[1]


def test_layers_that_read_only_text_are_left_out(data, image_ids, regions_of):
    late = tiny_model("base", vocab_size=len(corpus_tokenizer()), visual_embedding_dim=DIM, bypass_transformer=True)
    found = count(late, data, image_ids[:4], regions_of)
    assert found.layers == [2]
    assert found.counts["entities", "all"].h.shape == (1, 4)


def test_images_without_regions_are_missed(model, data, image_ids, regions):
    empty = {"visual_embeds": torch.zeros(0, DIM), "boxes": torch.zeros(0, 4)}
    found = count(model, data, image_ids[:4], lambda ids: ((i, empty) for i in ids), images_per_batch=2)
    counts = found.counts["entities", "all"]
    assert counts.probes > 10
    assert (counts.matchable, counts.baseline, counts.chance, int(counts.h.sum())) == (0, 0, 0, 0)
    some = count(model, data, image_ids[:4], lambda ids: ((i, empty if i % 2 else regions[i]) for i in ids))
    only = count(model, data, [i for i in image_ids[:4] if not i % 2], lambda ids: ((i, regions[i]) for i in ids))
    assert torch.equal(some.counts["entities", "all"].h, only.counts["entities", "all"].h)


def test_a_model_without_weights_is_named(model, monkeypatch):
    inputs = {"input_ids": torch.tensor([[2, 7, 3]]), "visual_embeds": torch.randn(1, 2, DIM)}
    forward = type(model).forward
    without = {"output_attentions": False}  # what those of others do that were not loaded with "eager"
    monkeypatch.setattr(type(model), "forward", lambda self, **inputs: forward(self, **{**inputs, **without}))
    with pytest.raises(ValueError, match=r"VisualBertModel returns no attention weights; .*'eager'"):
        attention_weights(model, **inputs)


@pytest.fixture
def copied(data, tmp_path):
    """The data's files, to be spoilt."""
    shutil.copytree(data, tmp_path / "data")
    return tmp_path / "data"


def test_data_without_grounded_words_is_refused(model, copied, image_ids, regions_of):
    for image_id in image_ids[:3]:
        (copied / "Sentences" / f"{image_id}.txt").write_text("There is nothing to see .\n")
    with pytest.raises(ValueError, match="none of the sentences of 3 images has a phrase with a box"):
        count(model, copied, image_ids[:3], regions_of)
    found = count(model, copied, image_ids[:4], regions_of)
    assert found.seen["images"] == 4 and found.counts["entities", "all"].images == 1


def test_regions_without_boxes_are_refused(model, data, image_ids, regions):
    bare = {"visual_embeds": regions[image_ids[0]]["visual_embeds"]}
    with pytest.raises(ValueError, match=f"image {image_ids[0]}: its regions have no boxes"):
        count(model, data, image_ids[:1], lambda ids: ((i, bare) for i in ids))


def test_trees_that_do_not_fit_are_named_or_left_out(model, copied, image_ids, regions_of):
    path = copied / "Trees" / f"{image_ids[1]}.conllu"
    trees = path.read_text().split("\n\n")
    first = next(line for line in trees[2].splitlines() if line.startswith("1\t"))
    trees[2] = trees[2].replace(first, first.replace(first.split("\t")[1], "Zebras"))
    path.write_text("\n\n".join(trees))
    with pytest.raises(ValueError, match=rf"{image_ids[1]}.txt: line 3: word 1 is '\w+', but the tree has 'Zebras'"):
        count(model, copied, image_ids, regions_of, trees=trees_in(copied / "Trees"))
    found = count(model, copied, image_ids, regions_of, trees=trees_in(copied / "Trees"), skip_bad_records=True)
    assert len(found.skipped) == 1 and "Zebras" in found.skipped[0]
    assert found.seen["sentences"] == count(model, copied, image_ids, regions_of, trees=None).seen["sentences"] - 1
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{image_ids[1]}.conllu: no such file of dependency trees"):
        count(model, copied, image_ids, regions_of, trees=trees_in(copied / "Trees"))


def test_sentences_that_are_too_long_are_named(model, data, image_ids, regions_of):
    with pytest.raises(ValueError, match=rf"{image_ids[0]}.txt: line \d has \d+ tokens .*expected at most 8"):
        count(model, data, image_ids, regions_of, max_length=8)
