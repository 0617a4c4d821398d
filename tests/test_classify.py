"""A model that classifies, wherever it answers: pipeline, `visualbert classify`, demo, model card and inference endpoint."""

import base64
import json
import runpy
from pathlib import Path

import pytest
import torch
from helpers import MODELS
from tiny_checkpoints import PIPELINE_TASKS, save_tiny_checkpoint, tiny_checkpoint
from transformers import AutoProcessor, pipeline

from modeling_visualbert.cli import main
from modeling_visualbert.convert.assemble import assemble
from modeling_visualbert.corpus.scenes import render, sample_scene
from modeling_visualbert.corpus.vocabulary import ASSETS
from modeling_visualbert.demo.checkpoint import Checkpoint
from modeling_visualbert.demo.examples import scene_examples
from modeling_visualbert.hub_code.pipeline_visualbert import VisualBertReasoningPipeline
from modeling_visualbert.publish.card import build_card, cards_folder, default_facts
from modeling_visualbert.publish.push import build_repository

TASK = PIPELINE_TASKS["nlvr2"]
LABELS = ["contradiction", "entailment", "neutral"]
TEXTS = ["There is a red star.", "There is a blue circle."]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two scenes as files."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        render(sample_scene(number, f"classify/{number}")).save(path)
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints: three labels with one image and with two, and two labels with a threshold."""
    root = tmp_path_factory.mktemp("classify")
    save_tiny_checkpoint("nlvr2", root / "one", labels=LABELS, num_images=1)
    save_tiny_checkpoint("nlvr2", root / "two", labels=LABELS)
    save_tiny_checkpoint("nlvr2", root / "memes", labels=["ok", "hateful"], num_images=1, threshold=0.0)
    return {name: str(root / name) for name in ("one", "two", "memes")}


def expected(folder, images, text):
    """Scores by label, from processor and model called by hand."""
    model, processor = (part.from_pretrained(folder) for part in (MODELS["nlvr2"], type(tiny_checkpoint("nlvr2")[1])))
    given = images[:1] if processor.num_images == 1 else [images]
    with torch.inference_mode():
        scores = processor.label_scores(model.eval()(**processor(images=given, text=[text])))[0]
    return dict(zip(processor.labels, scores.tolist(), strict=True))


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_pipeline_answers_with_the_labels(folders, images, name):
    pipe = pipeline(TASK, model=folders[name])
    image = images[0] if name == "one" else tuple(images)
    scores = expected(folders[name], images, TEXTS[0])
    (best, *_) = ranked = pipe(image, TEXTS[0], top_k=9)
    assert {found["label"]: found["score"] for found in ranked} == pytest.approx(scores, abs=1e-5)
    assert [found["label"] for found in ranked] == sorted(scores, key=scores.get, reverse=True)
    assert pipe(image, TEXTS)[0] == {**best, "score": pytest.approx(best["score"], abs=1e-5)}
    key = "image" if name == "one" else "images"
    rows = [{key: image, "statement": text, "other": 1} for text in TEXTS]
    assert [found["label"] for found in pipe(rows, batch_size=2)] == [found["label"] for found in pipe(image, TEXTS)]
    with_attention = pipe(image, TEXTS[0], attention=0)
    counts = [len(pipe.find_regions(path)["boxes"]) for path in (images[:1] if name == "one" else images)]
    assert with_attention["result"]["label"] == best["label"] and len(with_attention["attention"]) == sum(counts)


def test_images_by_either_name(folders, images):
    pipe = pipeline(TASK, model=folders["one"])
    assert pipe(image=images[0], statement=TEXTS[0]) == pipe(images=images[0], statement=TEXTS[0])
    assert len(pipe(images, TEXTS[0])) == 2  # two images, one text: a result for each
    with pytest.raises(TypeError, match="image and images; expected one of them"):
        pipe(image=images[0], images=images[0], statement=TEXTS[0])
    with pytest.raises(ValueError, match="no image; expected arguments or dicts with the keys 'image' and 'statement'"):
        pipe({"images": images[0], "statement": TEXTS[0]})


def test_a_threshold_decides_in_the_pipeline(folders, images):
    pipe = pipeline(TASK, model=folders["memes"])
    ranked = pipe(images[0], TEXTS[0], top_k=2)
    assert ranked[0]["label"] == "hateful"  # always, with a threshold of 0
    assert ranked[0] == pipe(images[0], TEXTS[0])


@pytest.mark.parametrize("num_images", [1, 2])
def test_what_a_bare_model_reads_comes_from_its_configuration(tmp_path, num_images):
    model, processor = tiny_checkpoint("nlvr2", labels=LABELS)
    model.config.task_options = {"num_images": num_images}
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    model.save_pretrained(tmp_path / "bare")
    processor.image_processor.save_pretrained(tmp_path / "bare")
    made = VisualBertReasoningPipeline(model=model, **parts).processor
    for found in (made, assemble(tmp_path / "bare", None, ASSETS / "corpus_tokenizer").processor):
        assert (found.labels, found.num_images) == (LABELS, num_images)
    of_nlvr2, processor = tiny_checkpoint("nlvr2")
    found = VisualBertReasoningPipeline(model=of_nlvr2, **parts).processor
    assert (found.labels, found.num_images) == (None, 2)


def test_a_bare_model_that_does_not_say_how_many_images_it_reads_is_refused(tmp_path):
    model, processor = tiny_checkpoint("nlvr2", labels=LABELS)
    message = "has no processor, and labels of its own, which can be about one image or two; expected a processor"
    with pytest.raises(ValueError, match=f"the model {message}"):
        VisualBertReasoningPipeline(model=model, tokenizer=processor.tokenizer, image_processor=object())
    model.save_pretrained(tmp_path / "bare")
    processor.image_processor.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=f"bare {message}"):
        assemble(tmp_path / "bare", None, ASSETS / "corpus_tokenizer")


# --------------------------------------------------------------------------------------------------------------- command


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_command_prints_what_the_model_says(folders, images, name, capsys, tmp_path):
    given = [*(images[:1] if name == "one" else images), *TEXTS]
    assert main(["classify", "--model", folders[name], *given, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["text"] for record in records] == TEXTS
    scores = expected(folders[name], images, TEXTS[1])
    assert {found["label"]: found["score"] for found in records[1]["labels"]} == pytest.approx(scores, abs=1e-3)
    drawn = tmp_path / "drawn.png"
    assert main(["classify", "--model", folders[name], *given[:-1], "--top_k", "1", "--picture_out", str(drawn)]) == 0
    best = records[0]["labels"][0]
    assert capsys.readouterr().out == f"{best['score']:7.1%}  {best['label']}\n" and drawn.stat().st_size > 1000


@pytest.mark.parametrize(
    "command, name, given, message",
    [
        ("classify", "one", "i", "reads one image with a text; expected IMAGE TEXT"),
        ("classify", "one", "iit", "reads one image with a text; expected IMAGE TEXT"),
        ("classify", "one", "ii", "reads one image with a text; expected IMAGE TEXT"),
        ("classify", "two", "ii", "reads two images with a text; expected IMAGE IMAGE TEXT"),
        ("classify", "two", "it", "reads two images with a text; expected IMAGE IMAGE TEXT"),
        ("reason", "one", "iit", "reads one image; expected `visualbert classify`, or a model that reads two"),
    ],
)
def test_other_numbers_of_images_are_refused(folders, images, capsys, command, name, given, message):
    words = [images[0] if kind == "i" else TEXTS[0] for kind in given]
    assert main([command, "--model", folders[name], *words]) == 2
    printed = capsys.readouterr().err
    assert printed == f"visualbert {command}: {folders[name]} {message}\n"


# ------------------------------------------------------------------------------------------------ demo, card and endpoint


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_demo_shows_all_labels(folders, name):
    checkpoint, examples = Checkpoint(folders[name]), scene_examples()
    assert checkpoint.kind == "classification" and checkpoint.num_images == (1 if name == "one" else 2)
    example = examples.of_task["classification"][0]
    shown = [examples.images[example.images[0]], examples.images["suns"]][: checkpoint.num_images]
    answer = checkpoint.answer(shown, example.text)
    (bars,) = answer.bars
    assert sorted(label for label, _ in bars.rows) == LABELS
    assert sum(score for _, score in bars.rows) == pytest.approx(1.0, abs=1e-4)
    assert len(answer.views) == len(shown) and all(len(view.weights) == len(view.boxes) for view in answer.views)


def test_a_tab_for_each_kind_of_checkpoint(folders):
    page = pytest.importorskip("modeling_visualbert.demo.page")
    checkpoints = [Checkpoint(folders[name]) for name in ("one", "two")]
    assert page._keys(checkpoints) == ["classification", "classification_2"]
    built = page.build_page(checkpoints, scene_examples())
    labels = [block.label for block in built.blocks.values() if type(block).__name__ == "Image" and block.visible]
    assert labels.count("Image") == 1 and labels.count("Left image") == labels.count("Right image") == 1


def test_the_card_names_the_labels(folders):
    head, processors = MODELS["nlvr2"].__name__, {n: AutoProcessor.from_pretrained(f) for n, f in folders.items()}
    card = build_card("me/memes", default_facts(head, None, processors["memes"]), None)
    assert "# VisualBERT, classification of an image with a text" in card
    assert 'image=f"{folder}/examples/scene.png"' in card
    assert "| answers | `hateful` where its probability is at least 0, else `ok` |" in card
    card = build_card("me/pair", default_facts(head, None, processors["two"]), None)
    assert "Gives two images with a text one of 3 labels." in card and 'images=(f"{folder}/examples/scene.png"' in card
    assert "| answers | `contradiction`, `entailment`, `neutral` |" in card


@pytest.mark.slow
def test_the_code_of_the_card_runs_without_the_package(folders, tmp_path):
    build_repository(folders["memes"], tmp_path / "built", "me/memes")
    assert "{'label': 'hateful', 'score': 0." in (tmp_path / "built" / "README.md").read_text()


def test_the_endpoint_answers(folders, images):
    handler = runpy.run_path(str(cards_folder() / "handler.py"))["EndpointHandler"](folders["one"])
    encoded = base64.b64encode(Path(images[0]).read_bytes()).decode()
    found = handler({"inputs": {"image": encoded, "statement": TEXTS[0]}, "parameters": {"top_k": 3}})
    scores = expected(folders["one"], images, TEXTS[0])
    assert {label["label"]: label["score"] for label in found} == pytest.approx(scores, abs=1e-3)
    with pytest.raises(ValueError, match="unknown key 'images'; expected image, statement"):
        handler({"inputs": {"images": [encoded, encoded], "statement": TEXTS[0]}})
