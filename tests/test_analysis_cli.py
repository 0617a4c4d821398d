"""`visualbert analyze`, `check-explanations` and `ask --explain` as users run them, and the figures they draw."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import environment, launcher
from tiny_checkpoints import tiny_checkpoint

from modeling_visualbert import (
    VisualBertForQuestionAnswering,
    VisualBertProcessor,
)
from modeling_visualbert.analysis.figures import Example, draw_entities, draw_example
from modeling_visualbert.cli import main
from modeling_visualbert.data.flickr30k import load_flickr30k, read_split
from modeling_visualbert.features.extract import extract_store, load_region_encoder
from modeling_visualbert.features.images import list_images
from modeling_visualbert.tasks.common import DETECTOR

ROOT = Path(__file__).parents[1]


def save(task, folder):
    """A small checkpoint whose regions count beside its words."""
    model, processor = tiny_checkpoint(task, seed=1, std=0.3, num_hidden_layers=2)  # with seed 0 one answer fits all
    with torch.no_grad():
        model.visual_bert.embeddings.visual_projection.weight.mul_(4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return save("pretraining", tmp_path_factory.mktemp("models") / "pretrained")


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    return save("vqa", tmp_path_factory.mktemp("models") / "vqa")


def arguments(pretrained, corpus, out, *flags):
    data = ["--data", str(corpus / "flickr30k"), "--images", str(corpus / "images")]
    splits = ["--split", "shapes_test", "--dev_split", "shapes_val"]
    return ["analyze", "--model", str(pretrained), "--out", str(out), *data, *splits, "--cpu", *flags]


@pytest.fixture(scope="module")
def analysed(pretrained, corpus, tmp_path_factory):
    """The folder of an analysis of the small corpus."""
    out = tmp_path_factory.mktemp("analysis") / "out"
    assert main(arguments(pretrained, corpus, out, "--pictures", "2")) == 0
    return out


def test_numbers_figures_and_tables_are_written(analysed, corpus):
    report = json.loads((analysed / "analysis.json").read_text())
    ids = read_split(corpus / "flickr30k" / "shapes_test.txt")
    rows = load_flickr30k(corpus / "flickr30k", ids)
    assert report["sentences"] == len(rows)
    assert report["entities"]["all"]["probes"] == sum(len(row["phrases"]) for row in rows)
    assert report["entities"]["all"]["upper_bound"] > 98  # the shipped detector finds everything
    assert (report["split"], report["heads_chosen_on"]) == ("shapes_test", "shapes_val")
    best = report["entities"]["all"]["best"]
    assert best["interval"][0] < best["accuracy"] < best["interval"][1]
    text = (analysed / "analysis.txt").read_text()
    assert re.search(rf"layer {best['layer']} +{best['head']} +{best['accuracy']:.1f}", text)
    assert {"nsubj", "amod", "obj", "nmod"} <= set(report["syntax"])
    for relation, directions in report["syntax"].items():
        assert f"\n{relation} " in text
        assert set(directions) <= {"at dependent", "at head"}
    stems = {"entities", "relations"} | {path.stem for path in analysed.glob("picture_*.png")}
    assert len(stems) == 4
    for stem in stems:
        with Image.open(analysed / f"{stem}.png") as image:
            assert min(image.size) > 300
            assert np.asarray(image.convert("L")).std() > 10


def svg_text(path):
    """The words of a figure, in order."""
    return " ".join(" ".join(re.findall(r">([^<]+)</(?:text|tspan)>", path.read_text())).split())


def test_captions_state_the_numbers(analysed):
    report = json.loads((analysed / "analysis.json").read_text())
    found = report["entities"]["all"]
    best, text = found["best"], svg_text(analysed / "entities.svg")
    low, high = best["interval"]
    assert f"layer {best['layer']}, head {best['head']}, {best['accuracy']:.1f}%" in text
    assert f"(95% interval {low:.1f} to {high:.1f})" in text
    assert f"most confident region ({found['baseline']:.1f}%)" in text
    relations = svg_text(analysed / "relations.svg")
    for name in ("nmod", "amod", "nsubj", "obj"):
        assert re.search(rf"{name} \(\d+ words\): head \d-\d at (dependent|head) \d", relations), name
    image = svg_text(next(analysed.glob("picture_*.svg")))
    assert re.search(r"Strongest region right: layer 1, head \d: \d of \d; layer 2, head \d: \d of \d", image)


def test_a_baseline_that_is_never_right_is_drawn_too(analysed, tmp_path):
    report = json.loads((analysed / "analysis.json").read_text())
    report["entities"]["all"]["baseline"] = 0.0
    draw_entities(report, tmp_path / "entities")
    assert "), beside the most confident region (0.0%)" in svg_text(tmp_path / "entities.svg")


def test_the_command_says_the_same_every_time(pretrained, corpus, analysed, tmp_path):
    assert main(arguments(pretrained, corpus, tmp_path / "again", "--pictures", "0")) == 0
    for name in ("analysis.json", "analysis.txt", "entities.png", "relations.png"):
        assert (tmp_path / "again" / name).read_bytes() == (analysed / name).read_bytes(), name


def test_stored_regions_give_the_same_numbers(pretrained, corpus, analysed, tmp_path, capsys):
    encoder, image_processor = load_region_encoder(DETECTOR)
    images = [p for split in ("val", "test") for p in list_images(corpus / "images" / split, "number")]
    extract_store(tmp_path / "store", images, encoder, image_processor, progress=False)
    data = ["--data", str(corpus / "flickr30k"), "--split", "shapes_test", "--dev_split", "shapes_val"]
    flags = ["--features", str(tmp_path / "store"), "--cpu"]
    assert main(["analyze", "--model", str(pretrained), "--out", str(tmp_path / "out"), *data, *flags]) == 0
    assert "no images are drawn" in capsys.readouterr().err
    mine, theirs = (json.loads((out / "analysis.json").read_text()) for out in (tmp_path / "out", analysed))
    accuracies = [[head["accuracy"] for head in report["entities"]["all"]["heads"]] for report in (mine, theirs)]
    np.testing.assert_allclose(*accuracies, atol=1.0)  # features are stored in half precision


def test_without_trees_and_dev_split(pretrained, corpus, tmp_path, capsys):
    shutil.copytree(corpus / "flickr30k", tmp_path / "data", ignore=shutil.ignore_patterns("Trees"))
    flags = ["--data", str(tmp_path / "data"), "--dev_split", "", "--pictures", "0"]
    assert main([*arguments(pretrained, corpus, tmp_path / "out"), *flags]) == 0
    report = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert report["syntax"] == {} and report["trees"] == "none"
    assert report["entities"]["all"]["confidence"] == pytest.approx(1 - 0.05 / 8)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("analysis.json", "analysis.txt", "entities.png", "entities.svg"),
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split", "nowhere"], "nowhere.txt: no such split file"),
        (["--trees", "nowhere"], "nowhere: no such folder of dependency trees"),
        (["--trees", "here", "--parser", "stanza:en"], "--trees and --parser were both given"),
        (["--parser", "corenlp"], "expected spacy:MODEL or stanza:LANGUAGE"),
        (["--batch_size", "0"], "0 images per batch; expected at least 1"),
        (["--pictures", "-1"], "--pictures -1; expected at least 0"),
        (["--features", "nowhere"], "nowhere"),
        (["--images", "tests"], "no file for image 20000"),
        (["--model", "./nowhere"], "nowhere: no such checkpoint folder"),
        (["--model", str(DETECTOR)], "expected VisualBERT"),
    ],
)
def test_bad_arguments_end_in_one_line(pretrained, corpus, tmp_path, capsys, flags, message):
    assert main(arguments(pretrained, corpus, tmp_path / "out", *flags)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("visualbert analyze: ") and message in error
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_left_alone(pretrained, corpus, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("keep me")
    assert main(arguments(pretrained, corpus, tmp_path)) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_two_processes_say_what_one_says(pretrained, corpus, analysed, tmp_path):
    command = [*launcher(processes=2), "-m", "modeling_visualbert.cli"]
    done = subprocess.run(
        [*command, *arguments(pretrained, corpus, tmp_path / "out", "--pictures", "0")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("entities") == 1
    assert (tmp_path / "out" / "analysis.json").read_text() == (analysed / "analysis.json").read_text()


def example(num_regions, right):
    generator = np.random.default_rng(0)
    return Example(
        image=Image.new("RGB", (200, 100), "white"),
        boxes=[[4.0 * i, 10.0, 4.0 * i + 20.0, 40.0] for i in range(num_regions)],
        labels=["thing"] * num_regions,
        words=["the", "red", "thing"],
        heads=[f"layer {i}, head 1" for i in range(6)],
        weights=generator.random((6, 3, num_regions)),
        right=right,
    )


def test_more_regions_than_fit_are_counted_in_the_caption(tmp_path):
    drawn = draw_example(example(40, {2: [17, 31]}), tmp_path / "many")
    assert [path.suffix for path in drawn] == [".png", ".svg"]
    text = svg_text(tmp_path / "many.svg")
    assert "12 of 40 regions are shown" in text
    assert {"18 thing", "32 thing"} <= set(re.findall(r"\d+ thing", text)), "the right ones are always shown"
    assert len(set(re.findall(r"\d+ thing", text))) == 12
    draw_example(example(12, {2: [3]}), tmp_path / "few")
    assert "regions are shown" not in svg_text(tmp_path / "few.svg")
    with Image.open(tmp_path / "many.png") as image:
        assert max(image.size) < 2500


def test_examples_that_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match=r"weights of shape \(6, 3, 0\); expected .* at least one region"):
        draw_example(example(0, {}), tmp_path / "none")


def test_ask_explains(answering, corpus, tmp_path, capsys):
    image = next((corpus / "images" / "test").iterdir())
    asked = ["ask", "--model", str(answering), str(image), "Is there a red star?", "How many things are there?"]
    assert main([*asked, "--explain", "--json", "--picture_out", str(tmp_path / "out.png")]) == 0
    records = json.loads(capsys.readouterr().out)
    for record in records:
        regions = record["explanation"]["regions"]
        assert len(regions) >= 3 and record["explanation"]["words"][0]["piece"] == "[CLS]"
        assert set(regions[0]) == {"box", "label", "rollout", "gradient", "drop", "answer_without"}
    assert main([*asked, "--explain"]) == 0
    text = capsys.readouterr().out
    for word in ("[MASK]", "star", "rollout", "gradient x input", "without it"):
        assert word in text
    assert main([*asked, "--json"]) == 0
    assert "explanation" not in json.loads(capsys.readouterr().out)[0]
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.width == 480


def test_explanations_are_checked_against_the_answer_without_a_region(answering, corpus, capsys):
    from modeling_visualbert import ask

    flags = ["--data", str(corpus / "vqa"), "--images", str(corpus / "images"), "--split", "test", "--cpu", "--json"]
    assert main(["check-explanations", "--model", str(answering), *flags, "--max_images", "3"]) == 0
    report = json.loads(capsys.readouterr().out)
    model = VisualBertForQuestionAnswering.from_pretrained(answering).eval()
    processor = VisualBertProcessor.from_pretrained(answering)
    questions = json.loads((corpus / "vqa" / "v2_OpenEnded_shapes_test_questions.json").read_text())["questions"]
    changes, randoms = [], []
    for image_id in sorted({question["image_id"] for question in questions})[:3]:
        image = corpus / "images" / "test" / f"shapes_test_{image_id:012d}.jpg"
        for question in (q["question"] for q in questions if q["image_id"] == image_id):
            ((whole,),), regions = ask(model, processor, image, [question], top_k=1)
            embeds, answers = regions["visual_embeds"], []
            for left_out in range(len(embeds)):
                kept = {"visual_embeds": embeds[[i for i in range(len(embeds)) if i != left_out]]}
                with torch.no_grad():
                    logits = model(**processor(images=kept, text=question)).logits
                answers.append(processor.post_process_question_answering(logits, top_k=1)[0][0]["answer"])
            changed = [answer != whole["answer"] for answer in answers]
            changes.append(any(changed))
            randoms.append(np.mean(changed))
    found = report["all questions"]
    assert found["questions"] == len(changes) == 24
    assert found["changeable"] == pytest.approx(100 * np.mean(changes), abs=0.1)
    assert found["random"] == pytest.approx(100 * np.mean(randoms), abs=0.1)
    assert 0 < found["changeable"] < 100
    for method in found["methods"].values():
        assert method["interval"][0] <= method["changes"] <= method["interval"][1]
        assert method["changes"] <= found["changeable"]
    assert sum(kind["questions"] for name, kind in report.items() if name != "all questions") == 24


def test_other_heads_cannot_be_checked(pretrained, corpus, capsys):
    assert main(["check-explanations", "--model", str(pretrained), "--data", str(corpus / "vqa")]) == 2
    assert (
        "is a VisualBertForPreTraining checkpoint; expected VisualBertForQuestionAnswering" in capsys.readouterr().err
    )
