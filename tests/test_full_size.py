"""The walk from a photo to an answer with files of published size: what it takes of disk and memory, and what it says."""

import json
import multiprocessing

import pytest
from bench_published import PICKLE, PTH, measure, write_files
from hub_server import serve, talk_to
from huggingface_hub import constants
from test_published_names import BERT, MODEL, VQA, contents, downloads_of, weights_in

from modeling_visualbert.answers import pythia_answers
from modeling_visualbert.cli import main
from modeling_visualbert.published import published_detectors

SERVER = "https://dl.fbaipublicfiles.com"
SETTINGS = b"MODEL: {META_ARCHITECTURE: GeneralizedRCNN}\n"  # what the detector's yaml says beside the published values

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a checkpoint, a tokenizer, Pythia's detector in both of its formats, and an image."""
    folder = tmp_path_factory.mktemp("full_size")
    # In a process of its own: children inherit the peak memory of this one.
    writer = multiprocessing.get_context("spawn").Process(target=write_files, args=(folder,))
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    return folder


def test_the_pickle_is_converted_in_twice_its_size(files):
    found = measure(files, "convert", PICKLE, "converted")
    assert found["memory"] * 1e6 < 2 * (files / PICKLE).stat().st_size
    assert (files / "converted" / "config.json").is_file()


def test_two_commands_from_nothing_to_an_answer(files, tmp_path, monkeypatch, capsys):
    addresses = [file.url.removeprefix(SERVER) for file in published_detectors()["pythia-x101"].files]
    (files / "tokenizer" / "config.json").write_text('{"model_type": "bert"}')
    command = ["ask", "--model", VQA, str(files / "image.png"), "what is this", "is this word7", "--json"]
    with serve() as hub:
        hub.add(VQA, contents(files / "vqa"))
        hub.add(BERT, contents(files / "tokenizer"))
        hub.other_files.update(zip(addresses, ((files / PTH).read_bytes(), SETTINGS), strict=True))
        talk_to(hub, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("VISUALBERT_MIRROR", hub.url)
        monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path / "cache"))
        assert main(command) == 0
        printed = capsys.readouterr()
        downloaded = sum(path.stat().st_size for path in (files / "vqa" / MODEL, files / PTH))
        assert downloads_of(hub) == [MODEL, PTH]
        assert f"{VQA}/resolve/main/{MODEL} (460 MB)" in printed.err and "(670 MB)" in printed.err
        assert sum(weights_in(tmp_path).values()) < 1.3 * downloaded
        requests = len(hub.requests)
        assert main(command) == 0
        assert (capsys.readouterr().out, len(hub.requests)) == (printed.out, requests)
    answers = json.loads(printed.out)
    assert [found["question"] for found in answers] == ["what is this", "is this word7"]
    assert all(answer["answer"] in pythia_answers() for found in answers for answer in found["answers"])
