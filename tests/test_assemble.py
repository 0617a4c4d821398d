"""Published checkpoints are completed: model, answers, the processor of the right task, tokenizer, region encoder."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading

import pytest
import torch
from published_layouts import NUM_ANSWERS, VOCABULARY, write_checkpoint, write_tokenizer
from tiny_checkpoints import PIPELINE_TASKS, save_tiny_checkpoint
from transformers import AutoProcessor, pipeline

from modeling_visualbert import VisualBertConfig
from modeling_visualbert.checkpoints import read_task
from modeling_visualbert.cli import main
from modeling_visualbert.convert.assemble import assemble, complete_checkpoint
from modeling_visualbert.convert.published_detectors import open_region_encoder
from modeling_visualbert.corpus.scenes import render, sample_scene
from modeling_visualbert.downloads import fetch
from modeling_visualbert.hub_code.configuration_region_detector import RegionDetectorConfig
from modeling_visualbert.publish.card import cards_folder, load_facts
from modeling_visualbert.published import PublishedFile, published_checkpoints, published_detectors
from modeling_visualbert.tasks.common import DETECTOR
from modeling_visualbert.tokenizer import open_tokenizer

DIM = 73  # of the region encoder that ships with the package
CALLS = {
    "vqa": {"question": "What is on the table?", "top_k": 2},
    "nlvr2": {"statement": "the left image shows a star"},
    "vcr": {
        "question": "what is [0]?",
        "choices": ["[0] is red", "[0] is blue"],
        "objects": ["star"],
        "boxes": [[5, 9, 40, 44]],
    },
    "flickr30k": {"sentence": "a red star", "phrases": ["a red star"]},
    "pretraining": {"text": "a [MASK] star", "top_k": 2},
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folder with a tokenizer, a checkpoint of each head in the published layout, and an image."""
    folder = tmp_path_factory.mktemp("parts")
    write_tokenizer(folder / "tokenizer")
    for task in PIPELINE_TASKS:
        write_checkpoint(folder / task, task, DIM)
    render(sample_scene(3, "assemble")).save(folder / "image.png")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("task", PIPELINE_TASKS)
def test_convert_writes_a_complete_checkpoint(task, parts, tmp_path, capsys):
    target = tmp_path / "complete"
    flags = ["--tokenizer", str(parts / "tokenizer"), "--region_encoder", str(DETECTOR)]
    assert main(["convert", str(parts / task), str(target), *flags]) == 0
    assert "not in" not in capsys.readouterr().out
    processor = AutoProcessor.from_pretrained(target)
    assert processor.task == task
    assert processor.alignment == ("original" if task == "vcr" else "subword")
    assert (processor.answers is not None) == (task == "vqa")
    found, config = read_task(target)
    assert found.name == task and config.pad_token_id == 0
    if task == "vqa":
        assert len(processor.answers) == NUM_ANSWERS and processor.answers[3117] == config.id2label[3117] == "yes"
    images = (str(parts / "image.png"),) * 2 if task == "nlvr2" else str(parts / "image.png")
    answer = pipeline(PIPELINE_TASKS[task], model=str(target))(images, **CALLS[task])
    assert answer


@pytest.mark.slow
@pytest.mark.parametrize("task", PIPELINE_TASKS)
def test_what_convert_wrote_can_be_pushed_from_relative_folders(task, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--tokenizer", str(parts / "tokenizer"), "--region_encoder", str(DETECTOR)]
    assert main(["convert", str(parts / task), "complete", *flags]) == 0
    assert main(["push", "complete", f"tester/{task}", "--dry_run", "--folder", "built"]) == 0
    assert capsys.readouterr().out.endswith("nothing was sent (--dry_run)\n")
    assert PIPELINE_TASKS[task] in (tmp_path / "built" / "README.md").read_text()


def test_a_bare_result_of_convert_is_not_pushed(parts, tmp_path, capsys):
    assert main(["convert", str(parts / "vqa"), str(tmp_path / "bare")]) == 0
    assert main(["push", str(tmp_path / "bare"), "tester/vqa", "--dry_run"]) == 2
    line = "no processor_config.json; expected a folder with a model and its processor, such as `visualbert convert "
    assert f"{line}{tmp_path / 'bare'} FOLDER --tokenizer" in capsys.readouterr().err


def test_what_is_missing_is_said_with_the_argument_that_adds_it(parts, tmp_path, capsys):
    assert main(["convert", str(parts / "vqa"), str(tmp_path / "bare")]) == 0
    out = capsys.readouterr().out
    assert f"not in {tmp_path / 'bare'}: region encoder (add it with --region_encoder; " in out
    assert (
        f"not in {tmp_path / 'bare'}: tokenizer and processor (add them with --tokenizer, such as google-bert/" in out
    )


def test_features_of_another_length_are_refused_before_anything_is_written(parts, tmp_path, capsys):
    write_checkpoint(tmp_path / "other", "vqa", 2048)
    flags = ["--tokenizer", str(parts / "tokenizer"), "--region_encoder", str(DETECTOR)]
    assert main(["convert", str(tmp_path / "other"), str(tmp_path / "target"), *flags]) == 2
    assert "the region encoder makes features of 73 numbers, the model reads 2048" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (
            [*VOCABULARY, "dog"],
            f"a tokenizer of {len(VOCABULARY) + 1} word pieces, but the model has {len(VOCABULARY)}",
        ),
        (
            ["?" if word == "[MASK]" else word for word in VOCABULARY if word != "?"] + ["dog"],
            "word pieces, but the model has",
        ),
        ([word for word in VOCABULARY if word != "?"] + ["dog"], r"the tokenizer has no \?"),
    ],
)
def test_tokenizers_that_do_not_fit_are_refused(vocabulary, message, tmp_path):
    folder = write_tokenizer(tmp_path / "tokenizer", vocabulary)
    with pytest.raises(ValueError, match=message):
        open_tokenizer(folder, len(VOCABULARY), "vqa")


@pytest.mark.parametrize("flag", ["--tokenizer", "--region_encoder"])
def test_what_is_not_there_is_said_before_anything_is_downloaded(flag, tmp_path, cache, capsys):
    (tmp_path / "empty").mkdir()
    absent = str(tmp_path / ("empty" if flag == "--tokenizer" else "nowhere"))
    assert main(["convert", "uclanlp/visualbert-vqa", str(tmp_path / "out"), flag, absent]) == 2
    message = "no tokenizer in this folder" if flag == "--tokenizer" else "no such region encoder folder"
    assert f"{absent}: {message}" in capsys.readouterr().err
    assert main(["ask", "--model", "uclanlp/visualbert-vqa", "image.png", "what?", flag, absent]) == 2
    assert not list(cache.glob("**/*.partial"))


def test_no_tokenizer_is_made_up(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"empty: no tokenizer in this folder; expected tokenizer.json or vocab.txt"
    ):
        open_tokenizer(tmp_path / "empty")


def test_ask_completes_a_bare_checkpoint_once(parts, cache, capsys):
    argv = ["ask", "--model", str(parts / "vqa"), str(parts / "image.png"), "What is on the table?", "--json"]
    assert main(argv) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "expected --region_encoder and --tokenizer" in line and "pythia-x101" in line
    flags = ["--tokenizer", str(parts / "tokenizer"), "--region_encoder", str(DETECTOR)]
    assert main([*argv, *flags]) == 0
    first = json.loads(capsys.readouterr().out)
    (made,) = (path for path in (cache / "checkpoints").iterdir() if path.is_dir())  # and a lock
    changed = (made / "model.safetensors").stat().st_mtime_ns
    assert main([*argv, *flags]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert (made / "model.safetensors").stat().st_mtime_ns == changed
    assert main([*argv[:2], str(made), *argv[3:], *flags]) == 2
    assert "is complete; expected no --region_encoder" in capsys.readouterr().err


def test_a_changed_part_is_assembled_again(parts, tmp_path, cache):
    source = write_checkpoint(tmp_path / "mine", "nlvr2", DIM)
    arguments = {"region_encoder": DETECTOR, "tokenizer": parts / "tokenizer"}
    first = complete_checkpoint(source, **arguments)
    assert complete_checkpoint(source, **arguments) == first
    weights = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save({name: value + 1 for name, value in weights.items()}, source / "pytorch_model.bin")
    assert complete_checkpoint(source, **arguments) != first


def test_a_complete_checkpoint_is_not_converted(tmp_path, capsys):
    save_tiny_checkpoint("vqa", tmp_path / "own")
    assert main(["convert", str(tmp_path / "own"), str(tmp_path / "out"), "--tokenizer", str(tmp_path / "own")]) == 2
    assert "own is a complete checkpoint of this package; expected one that others published" in capsys.readouterr().err
    (tmp_path / "own" / "processor_config.json").rename(tmp_path / "own" / "preprocessor_config.json")
    assert main(["convert", str(tmp_path / "own"), str(tmp_path / "out"), "--tokenizer", str(tmp_path / "own")]) == 0


@pytest.mark.parametrize("model", ["vqa", "uclanlp/visualbert-vqa"])
def test_the_task_is_checked_before_anything_is_made(model, parts, cache, capsys):
    name = str(parts / model) if model == "vqa" else model
    flags = ["--tokenizer", str(parts / "tokenizer"), "--region_encoder", str(DETECTOR)]
    image = str(parts / "image.png")
    assert main(["reason", "--model", name, *flags, image, image, "a star"]) == 2
    error = f"{name} is a VisualBertForQuestionAnswering checkpoint; expected VisualBertForVisualReasoning"
    assert error in capsys.readouterr().err
    assert not cache.exists()


def test_a_file_is_not_a_model(parts, capsys):
    file = parts / "vqa" / "pytorch_model.bin"
    assert main(["ask", "--model", str(file), str(parts / "image.png"), "what is it"]) == 2
    assert f"{file} is a file; expected a folder or Hub name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "pytorch_model.bin: not downloaded yet, and HF_HUB_OFFLINE is set; expected it at "),
        ({"HF_HUB_OFFLINE": "0"}, "pytorch_model.bin: cannot be downloaded ("),
    ],
)
def test_no_hub_is_one_line(environment, message, parts, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", **environment}
    argv = ["ask", "--model", "uclanlp/visualbert-vqa", str(parts / "image.png"), "what is it"]
    command = [sys.executable, "-m", "modeling_visualbert.cli", *argv]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("visualbert ask: https://huggingface.co/uclanlp/visualbert-vqa/") and message in last


@pytest.mark.parametrize("encoder", ["frcnn-vg", "unc-nlp/frcnn-vg-finetuned"])
def test_another_published_detector_is_refused_before_anything_is_downloaded(encoder, parts, cache, capsys):
    argv = ["ask", "--model", "uclanlp/visualbert-vqa", str(parts / "image.png"), "what is it", "--region_encoder"]
    assert main([*argv, encoder]) == 2
    message = (
        f"{encoder}: features of frcnn-vg, but uclanlp/visualbert-vqa expects those of pythia-x101; expected the same"
    )
    assert message in capsys.readouterr().err and not cache.exists()


def test_the_detector_of_the_features_is_written_and_compared(parts, tmp_path, capsys):
    made = assemble(parts / "vqa", tokenizer=parts / "tokenizer", region_encoder=DETECTOR)
    made.save(tmp_path / "known")
    encoder, _ = open_region_encoder(DETECTOR)
    assert VisualBertConfig.from_pretrained(tmp_path / "known").feature_detector == encoder.identity()
    bare = assemble(
        parts / "vqa", tokenizer=parts / "tokenizer", published=published_checkpoints()["uclanlp/visualbert-vqa"]
    )
    assert bare.model.config.feature_detector == {"name": "pythia-x101", "fingerprint": None}
    bare.save(tmp_path / "bare")
    flags = ["tester/x", "--dry_run", "--region_encoder", str(DETECTOR)]
    assert main(["push", str(tmp_path / "bare"), *flags]) == 2
    message = rf"features of QueryRegionEncoder \({encoder.fingerprint()}\), but .*bare expects those of pythia-x101; "
    assert re.search(message, capsys.readouterr().err)
    assert main(["push", str(tmp_path / "bare"), *flags, "--any_detector"]) == 0


def test_published_detectors_are_known_by_their_design():
    for name, preset in {
        "frcnn-vg": RegionDetectorConfig.bottom_up_attention_vg,
        "pythia-x101": RegionDetectorConfig.pythia_x101,
        "detectron-r101": RegionDetectorConfig.detectron_r101_coco,
        "vcr-r50": RegionDetectorConfig.vcr_resnet50,
        None: RegionDetectorConfig.pythia_x152,
    }.items():
        assert preset().published_name == name
        assert name is None or name in published_detectors()


def test_vcr_says_where_its_detector_is():
    with pytest.raises(
        ValueError, match=r"not published alone. Download the authors' .th file.*github.com/uclanlp/visualbert"
    ):
        complete_checkpoint("uclanlp/visualbert-vcr")


def test_the_cards_say_what_the_table_says():
    cards = {
        facts["source"]: facts for facts in (load_facts(path) for path in cards_folder().glob("visualbert-*.yaml"))
    }
    assert set(cards) == set(published_checkpoints())
    for name, checkpoint in published_checkpoints().items():
        regions = cards[name]["expects"]["regions"]
        assert checkpoint.detector.title in regions and f"{checkpoint.region_dim} numbers each" in regions
        assert cards[name]["placeholder_regions"] == (checkpoint.detector.num_regions or 3)
    assert {detector.name for detector in published_detectors().values() if not detector.is_published} == {"vcr-r50"}


class _Files(http.server.BaseHTTPRequestHandler):
    """Serves one file with ranges; `server.cut` breaks the first answers off after so many bytes."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        content, server = self.server.content, self.server
        server.ranges.append(self.headers.get("Range"))
        if self.path.endswith("page"):
            return self._send(200, b"<html>", {"Content-Type": "text/html"})
        if self.path.endswith("gone"):
            return self._send(404, b"")
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        rest = content[start:]
        cut = server.cuts.pop(0) if server.cuts else len(rest)
        self._send(206 if start else 200, rest[:cut], {"Content-Length": str(len(rest))})

    def _send(self, status, content, headers=()):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": "x/y", **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True


@pytest.fixture
def files(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    server.content, server.cuts, server.ranges = bytes(range(256)) * 500, [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()


def test_a_download_that_breaks_off_is_continued(files, cache, capsys):
    files.cuts = [1000, 2000]
    path = fetch(PublishedFile(f"{files.url}/weights.pth", 670))
    assert path.read_bytes() == files.content and path.is_relative_to(cache)
    assert files.ranges == [None, "bytes=1000-", "bytes=3000-"]
    assert capsys.readouterr().err == f"downloading {files.url}/weights.pth (670 MB)\n"
    assert fetch(PublishedFile(f"{files.url}/weights.pth", 670)) == path
    assert len(files.ranges) == 3


def test_a_partial_file_of_another_version_is_dropped(files, cache):
    files.cuts = [5000, 5000, 5000]
    with pytest.raises(ConnectionError):
        fetch(PublishedFile(f"{files.url}/weights.pth", 1))
    files.content = b"shorter"
    assert fetch(PublishedFile(f"{files.url}/weights.pth", 1)).read_bytes() == b"shorter"


def test_a_partial_file_that_is_whole_is_taken(files, cache):
    path = fetch(PublishedFile(f"{files.url}/weights.pth", 1))
    path.rename(path.with_name("weights.pth.partial"))
    assert fetch(PublishedFile(f"{files.url}/weights.pth", 1)).read_bytes() == files.content


def test_what_has_arrived_is_kept_for_the_next_call(files):
    files.cuts = [10, 10, 10]
    with pytest.raises(
        ConnectionError, match=r"weights.pth: cannot be downloaded \(broke off after 30 of 128,000 bytes\); run"
    ):
        fetch(PublishedFile(f"{files.url}/weights.pth", 1))
    assert fetch(PublishedFile(f"{files.url}/weights.pth", 1)).read_bytes() == files.content
    assert files.ranges[-1] == "bytes=30-"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("page", ValueError, "page: the server sent an HTML page; expected the file"),
        ("gone", ConnectionError, r"gone: cannot be downloaded \(Not Found\)"),
    ],
)
def test_other_answers_are_named(files, name, error, message):
    with pytest.raises(error, match=message):
        fetch(PublishedFile(f"{files.url}/{name}", 1))


def test_no_server_is_one_line_and_offline_asks_nobody(files, monkeypatch):
    files.shutdown()
    files.server_close()
    with pytest.raises(ConnectionError, match=r"cannot be downloaded \(.*refused"):
        fetch(PublishedFile(f"{files.url}/weights.pth", 1))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=r"not downloaded yet, and HF_HUB_OFFLINE is set; expected it at .*weights.pth"
    ):
        fetch(PublishedFile(f"{files.url}/weights.pth", 1))


def test_a_full_disk_is_found_before_it_is_full(files, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="128,000 bytes to download, but 1,000 bytes of free space"):
        fetch(PublishedFile(f"{files.url}/weights.pth", 1))
