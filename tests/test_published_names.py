"""Published checkpoints by name, from a Hub and a file server on this machine: what is downloaded, shared and kept."""

import json
import os
import socket

import pytest
import torch
from hub_server import serve, talk_to
from huggingface_hub import constants, hf_hub_download
from published_layouts import write_checkpoint, write_tokenizer
from test_convert_region_detector import write_detectron, write_maskrcnn
from transformers import AutoProcessor, pipeline

from modeling_visualbert import VisualBertProcessor
from modeling_visualbert.cli import main
from modeling_visualbert.convert.region_detector import convert_region_detector
from modeling_visualbert.corpus.scenes import render, sample_scene
from modeling_visualbert.features.store import write_store
from modeling_visualbert.published import published_checkpoints, published_detectors

VQA, VQA_PRE, VCR = "uclanlp/visualbert-vqa", "uclanlp/visualbert-vqa-pre", "uclanlp/visualbert-vcr"
BERT = "google-bert/bert-base-uncased"
MODEL = "pytorch_model.bin"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Repositories and other files as they are published, by name and address, and an image."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "detector").mkdir()
    weights = write_maskrcnn(folder / "detector")
    dim = convert_region_detector(weights)[0].config.region_dim
    repositories = {
        BERT: write_tokenizer(folder / "tokenizer"),
        VQA: write_checkpoint(folder / "vqa", "vqa", dim),
        VQA_PRE: write_checkpoint(folder / "pre", "pretraining", dim),
        VCR: write_checkpoint(folder / "vcr", "vcr", dim),
    }
    server = "https://dl.fbaipublicfiles.com"
    addresses = [file.url.removeprefix(server) for file in published_detectors()["pythia-x101"].files]
    files = dict(zip(addresses, (weights.read_bytes(), weights.with_suffix(".yaml").read_bytes()), strict=True))
    (folder / "tokenizer" / "config.json").write_text('{"model_type": "bert"}')
    render(sample_scene(3, "names")).save(folder / "image.png")
    return {name: contents(path) for name, path in repositories.items()}, files, str(folder / "image.png")


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """A Hub that has them; this process has empty caches, and may ask nobody else."""
    repositories, files, _ = published
    with serve() as running:
        for name, content in repositories.items():
            running.add(name, dict(content))
        running.other_files.update(files)
        talk_to(running, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("VISUALBERT_MIRROR", running.url)
        monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path / "cache"))
        yield running


@pytest.fixture
def ask(published, capsys):
    """`visualbert ask` about the image: its answers, or the error and None."""

    def run(name=VQA):
        status = main(["ask", "--model", name, published[2], "what is on the table?", "--json"])
        printed = capsys.readouterr()
        return printed.err, json.loads(printed.out) if status == 0 else None

    return run


def downloads_of(hub):
    return [
        path.rsplit("/", 1)[1] for path in hub.requests if path.startswith("GET") and path.endswith((MODEL, ".pth"))
    ]


def weights_in(folder):
    """Sizes of the files with weights under a folder, by inode: hard links are one file."""
    kinds = (".safetensors", ".bin", ".pth", ".partial")
    found = [path.stat() for path in folder.rglob("*") if path.suffix in kinds and path.is_file()]
    return {file.st_ino: file.st_size for file in found}


def test_what_is_downloaded_lies_on_the_disk_once(published, hub, ask, tmp_path):
    repositories, files, _ = published
    error, answers = ask()
    assert error.startswith(f"downloading https://huggingface.co/{VQA}/resolve/main/{MODEL} (460 MB)\n")
    assert len(answers[0]["answers"]) == 3
    downloaded = len(repositories[VQA][MODEL]) + max(map(len, files.values()))
    assert sum(weights_in(tmp_path).values()) < 1.3 * downloaded
    number = len(hub.requests)
    assert ask() == ("", answers)
    assert len(hub.requests) == number  # nobody is asked again


def test_checkpoints_share_their_detector(published, hub, ask, tmp_path, capsys):
    assert ask()[1] is not None
    assert main(["fill", "--model", VQA_PRE, published[2], "a [MASK] star"]) == 0
    assert downloads_of(hub) == [MODEL, "detectron_model.pth", MODEL]
    assert len(weights_in(tmp_path)) == 3  # two models and a detector
    kept = tmp_path / "cache" / "detectors" / "pythia-x101" / "model.safetensors"
    assert kept.stat().st_nlink == 3
    assert main(["regions", published[2], "--region_encoder", "pythia-x101"]) == 0
    assert len(downloads_of(hub)) == 3


def test_without_hard_links_a_checkpoint_gets_a_copy(hub, ask, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("this file system has no hard links")

    monkeypatch.setattr(os, "link", refuse)
    assert ask()[1] is not None
    assert len(weights_in(tmp_path)) == 3


def test_a_download_that_broke_off_is_continued_by_the_next_command(published, hub, ask, tmp_path):
    hub.cuts = [1000, 1000, 1000]
    error, answers = ask()
    assert answers is None and "cannot be downloaded (broke off after 3,000 of" in error.splitlines()[-1]
    assert sum(weights_in(tmp_path).values()) == 3000
    hub.cuts = [10]
    assert ask()[1] is not None
    assert downloads_of(hub) == [MODEL] * 5 + ["detectron_model.pth"]


def test_what_cannot_be_converted_is_kept(hub, ask, tmp_path):
    address = next(path for path in hub.other_files if path.endswith(".pth"))
    hub.other_files[address] = b"no detector"
    error, answers = ask()
    assert answers is None and "detectron_model.pth: not a checkpoint that can be read safely" in error
    assert {
        path.name for path in (tmp_path / "cache" / "downloads").rglob("*.*") if path.suffix in (".bin", ".pth")
    } == {
        MODEL,
        "detectron_model.pth",
    }


def test_files_in_the_cache_of_the_hub_are_used_and_stay_there(published, hub, ask, monkeypatch):
    assert ask()[1] is not None  # the tokenizer and the detector are here now
    found = [hf_hub_download(VQA_PRE, name) for name in ("config.json", MODEL)]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    number = len(hub.requests)
    assert main(["fill", "--model", VQA_PRE, published[2], "a [MASK] star"]) == 0
    assert len(hub.requests) == number and all(map(os.path.isfile, found))


def test_convert_takes_names_and_leaves_nothing_behind(hub, tmp_path, capsys):
    flags = ["--tokenizer", BERT, "--region_encoder", "pythia-x101"]
    assert main(["convert", VQA, str(tmp_path / "mine"), *flags]) == 0
    assert (tmp_path / "mine" / "model.safetensors").is_file()
    assert not list((tmp_path / "cache" / "downloads").rglob("*.bin"))


def test_a_pipeline_takes_the_name(published, hub, ask):
    found = pipeline("visual-question-answering", model=VQA)(published[2], "what is on the table?", top_k=3)
    assert ask()[1][0]["answers"] == found
    assert downloads_of(hub) == [MODEL, "detectron_model.pth"]


def test_a_pipeline_of_another_task_is_refused_before_anything_is_downloaded(hub):
    with pytest.raises(
        LookupError,
        match=f"{VQA} is a VisualBertForQuestionAnswering checkpoint; expected VisualBertForVisualReasoning",
    ):
        pipeline("visual-reasoning", model=VQA)
    assert not downloads_of(hub)


def test_a_pipeline_without_a_published_detector_takes_regions(published, hub):
    choose = pipeline("visual-multiple-choice", model=VCR)
    question = {"question": "what is [0]?", "choices": ["[0] is red", "[0] is blue"], "objects": ["star"]}
    regions = {"visual_embeds": torch.zeros(2, choose.model.config.visual_embedding_dim)}
    assert len(choose(regions, **question)) == 2
    with pytest.raises(ValueError, match="this model has no region encoder"):
        choose(published[2], boxes=[[5, 9, 40, 44]], **question)


def test_the_demo_takes_the_name(hub, capsys):
    pytest.importorskip("gradio")
    with socket.socket() as taken:  # the models are loaded before the page is served
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["demo", "--model", VQA, "--port", str(taken.getsockname()[1])]) == 2
    assert "port" in capsys.readouterr().err.splitlines()[-1]
    assert downloads_of(hub) == [MODEL, "detectron_model.pth"]


@pytest.mark.parametrize("opener", [AutoProcessor, VisualBertProcessor])
def test_a_bare_checkpoint_says_that_it_has_no_processor(opener, hub):
    line = rf"{VQA} has no processor \(processor_config.json\); `visualbert convert {VQA} FOLDER --tokenizer .* --region_encoder"
    with pytest.raises(OSError, match=line):
        opener.from_pretrained(VQA)
    assert not downloads_of(hub)


def test_a_processor_that_cannot_be_reached_is_not_called_bare(hub, monkeypatch):
    hub.failures["HEAD config"] = hub.failures["GET config"] = (403, "no entry")
    with pytest.raises(OSError) as caught:
        VisualBertProcessor.from_pretrained(VQA)
    assert "has no processor" not in str(caught.value)


def test_published_checkpoints_are_pushed_with_their_cards(published, hub, tmp_path, capsys, monkeypatch):
    """Nothing is sent unless it is said; a run that broke off goes on; what has not changed is not committed again."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_tester")
    monkeypatch.chdir(tmp_path)
    command = ["push", "--published", "visualbert-vqa", "visualbert-vcr", "--folder", "built"]
    assert main([*command, "--namespace", "tester"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" of ")[1] for line in lines[:2]] == [
        "tester/visualbert-vqa: nothing was sent (no --send)",
        "tester/visualbert-vcr: nothing was sent (no --send)",
    ]
    assert lines[2].strip() == (
        "without a region encoder: its ResNet-50 on the given boxes, trained with the model (VCR) was not published alone"
    )
    assert "tester/visualbert-vqa" not in hub.repositories
    for name, encoder in (("visualbert-vqa", "region_detector"), ("visualbert-vcr", None)):
        built = tmp_path / "built" / "tester" / name
        config = json.loads((built / "config.json").read_text())
        assert (config["region_encoder_config"] or {}).get("model_type") == encoder
        assert f"base_model: uclanlp/{name}" in (built / "README.md").read_text()
    downloads = downloads_of(hub)
    hub.failures["POST visualbert-vcr/commit"] = (500, "try later")
    assert main([*command, "--send"]) == 2
    assert "visualbert push: tester/visualbert-vcr: the Hub refused the push with status 500" in capsys.readouterr().err
    hub.failures.clear()
    assert main([*command, "--send"]) == 0
    assert downloads_of(hub) == downloads
    vqa, vcr = (hub.repositories[f"tester/{name}"] for name in ("visualbert-vqa", "visualbert-vcr"))
    assert vqa.titles == vcr.titles == ["initial commit", "Upload VisualBERT"]
    assert "examples/scene.png" in hub.files("tester/visualbert-vqa")


@pytest.mark.slow
def test_all_published_checkpoints_are_built(hub, tmp_path, capsys):
    """The nine, each detector downloaded once."""
    (tmp_path / "r101").mkdir()
    pickled = write_detectron(tmp_path / "r101")
    dims = {"vcr": 9, "nlvr2": convert_region_detector(pickled)[0].config.region_dim}
    for name, checkpoint in published_checkpoints().items():
        of_task = name.split("-")[1]
        if of_task in dims:
            hub.add(name, contents(write_checkpoint(tmp_path / name, checkpoint.task, dims[of_task])))
        else:
            hub.add(name, hub.files(VQA if checkpoint.task == "vqa" else VQA_PRE))
    address = published_detectors()["detectron-r101"].files[0].url.removeprefix("https://dl.fbaipublicfiles.com")
    hub.other_files[address] = pickled.read_bytes()
    assert main(["push", "--published"]) == 0
    out = capsys.readouterr().out
    assert [line.split(" of ")[1] for line in out.splitlines() if " files of " in line] == [
        f"user/{name.split('/')[1]}: nothing was sent (no --send)" for name in published_checkpoints()
    ]
    assert out.count("without a region encoder: its ResNet-50") == 3
    fetched = [path for path in hub.requests if path.startswith("GET") and path.endswith((".pth", ".pkl"))]
    assert len(fetched) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to push; expected a folder and user/name, or --published"),
        (["a", "b/c", "--send"], "--send and --namespace are for --published; expected user/name"),
        (
            ["--published", "bert"],
            "bert: no such published checkpoint; expected some of visualbert-vqa, visualbert-vqa-pre",
        ),
        (["a", "--published"], "source is about one checkpoint; expected none with --published"),
        (["--published", "--send", "--dry_run"], "--send and --dry_run; expected one of them"),
        (["--published", "--namespace", "a/b"], "'a/b/visualbert' is not a repository name; expected user/name"),
    ],
)
def test_wrong_turns_of_push_end_in_one_line(arguments, message, capsys):
    assert main(["push", *arguments]) == 2
    assert f"visualbert push: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("name", [VQA, VCR])
def test_features_need_no_detector(name, published, hub, tmp_path, capsys):
    """`visualbert evaluate` downloads the model and the tokenizer only; the detector of VCR could not be downloaded at all."""
    dim = json.loads(published[0][name]["config.json"])["visual_embedding_dim"]
    data, key = tmp_path / "data", "a.jpg" if name == VCR else 7
    (data / "vcr1images").mkdir(parents=True)
    question = {"question_id": 7000, "image_id": 7, "question": "what is on the table?"}
    (data / "v2_OpenEnded_mscoco_test2015_questions.json").write_text(json.dumps({"questions": [question]}))
    (data / "vcr1images" / "a.json").write_text(json.dumps(OBJECTS))
    (data / "test2015.jsonl").write_text(json.dumps(QUESTION) + "\n")
    features = {"visual_embeds": torch.rand(2, dim).numpy()}
    write_store(tmp_path / "features", [(key, features)], dim, published_checkpoints()[name].detector.name)
    argv = ["--data_dir", str(data), "--split", "test2015", "--features_dir", str(tmp_path / "features"), "--cpu"]
    argv += ["--subtask", "answer"] if name == VCR else []
    assert main(["evaluate", "--model", name, "--output_dir", str(tmp_path / "out"), *argv]) == 0
    assert downloads_of(hub) == [MODEL]
    assert "split 'test2015' has no labels" in capsys.readouterr().out
    (record,) = map(json.loads, (tmp_path / "out" / "predictions_test2015.jsonl").read_text().splitlines())
    assert record["id"] == ("test-0" if name == VCR else 7000)


OBJECTS = {
    "names": ["person"],
    "boxes": [[1, 2, 30, 40, 0.9]],
    "segms": [[[[1, 2], [30, 2], [30, 40]]]],
    "width": 64,
    "height": 48,
}
QUESTION = {
    "annot_id": "test-0",
    "img_fn": "a.jpg",
    "metadata_fn": "a.json",
    "objects": ["person"],
    "question": ["Where", "is", [0], "?"],
    "answer_choices": [["on", "the", "table"], ["in", "the", "image"], ["it", "is", "red"], [[0], "is", "blue"]],
    "rationale_choices": [["a"], ["red"], ["blue"], ["star"]],
}
