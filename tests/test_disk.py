"""Files and folders that are whole or not there; a full disk, for which the system refuses in earnest to let files grow."""

import errno
import json
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from datasets import Features, Value
from safetensors.torch import save_file
from tiny_checkpoints import save_tiny_checkpoint
from toy_training import log_of, toy_args, toy_task

from modeling_visualbert.cli import main
from modeling_visualbert.convert.assemble import Assembled
from modeling_visualbert.corpus.build import CorpusConfig, build_corpus
from modeling_visualbert.data import cache
from modeling_visualbert.disk import telling_full_disks, whole_folder
from modeling_visualbert.publish.export import export_onnx
from modeling_visualbert.training.loop import train


@contextmanager
def files_of_at_most(size):
    """Inside the block this process cannot write files of more bytes. (Python ignores the signal, so that writing fails.)"""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "a file": lambda path: path.write_bytes(bytes(100_000)),
    "safetensors": lambda path: save_file({"a": torch.zeros(25_000)}, path),
    "torch": lambda path: torch.save({"a": torch.zeros(25_000)}, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_by_whichever_library(writer, tmp_path):
    with pytest.raises(OSError) as raised, files_of_at_most(10_000), telling_full_disks(tmp_path / "run", "make room"):
        WRITERS[writer](tmp_path / "file")
    assert raised.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert "make room" in str(raised.value)
    assert str(tmp_path / "run") in str(raised.value)


def test_other_errors_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), telling_full_disks(tmp_path):
        (tmp_path / "nowhere").read_bytes()
    with pytest.raises(ValueError, match="os error 2"), telling_full_disks(tmp_path):
        raise ValueError("cannot read (os error 2)")


def test_a_folder_has_its_name_once_it_is_whole(tmp_path):
    with whole_folder(tmp_path / "new") as draft:
        (draft / "a").write_text("1")
        assert [path.name for path in tmp_path.iterdir()] == [".new.tmp"]
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "a"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_block_that_fails_leaves_nothing(exists, tmp_path):
    if exists:
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "a").write_text("old")
    with pytest.raises(ValueError, match="bad"), whole_folder(tmp_path / "new", replace=exists) as draft:
        (draft / "a").write_text("new")
        raise ValueError("bad")
    assert [path.read_text() for path in tmp_path.rglob("a")] == ["old"] * exists
    assert [path.name for path in tmp_path.iterdir()] == ["new"] * exists


def test_what_killed_processes_left_is_in_nobodys_way(tmp_path):
    for name in (".new.tmp", ".new.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "left").touch()
    (tmp_path / "new").mkdir()
    with whole_folder(tmp_path / "new", replace=True) as draft:
        (draft / "a").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "new"]


def test_a_folder_is_replaced_only_when_asked(tmp_path):
    with (
        pytest.raises(FileExistsError, match=f"{tmp_path} exists; choose another folder or remove it"),
        whole_folder(tmp_path),
    ):
        pytest.fail("the block is not to run")


def test_a_training_run_on_a_full_disk_can_go_on(tmp_path):
    with (
        pytest.raises(OSError, match="make room; the same command with --resume goes on from the newest checkpoint"),
        files_of_at_most(20_000),
    ):
        train(toy_task(), toy_args(tmp_path / "run"))
    assert not list((tmp_path / "run").glob(".best*"))
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    train(toy_task(), toy_args(tmp_path / "run", resume=True))
    train(toy_task(), toy_args(tmp_path / "whole"))
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")
    best = [(tmp_path / name / "best" / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert best[0] == best[1]


def test_a_full_disk_leaves_no_converted_model(tmp_path):
    task = toy_task()
    made = Assembled(task.model, task.processor, [])
    with pytest.raises(OSError, match="make room and run the command again"), files_of_at_most(20_000):
        made.save(tmp_path / "converted")
    assert not list(tmp_path.iterdir())
    made.save(tmp_path / "converted")
    assert json.loads((tmp_path / "converted" / "config.json").read_text())["architectures"] == [
        type(task.model).__name__
    ]


def test_a_full_disk_leaves_no_onnx_file(tmp_path, monkeypatch):
    """With a stand-in for the exporter, which takes seconds, where it writes."""
    pytest.importorskip("onnxscript", reason='pip install "modeling-visualbert[onnx]"')
    monkeypatch.setattr(torch.onnx, "export", lambda *arguments, f, **options: Path(f).write_bytes(bytes(100_000)))
    with pytest.raises(OSError, match="make room and run the command again"), files_of_at_most(20_000):
        export_onnx(toy_task().model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_table(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "KEPT", 0)
    features = Features({"number": Value("int64")})

    def rows():
        read = lambda notes: cache.batches(({"number": number} for number in range(9000)), features)  # noqa: E731
        return cache.cached_table("numbers", features, read, 1)[0]

    with pytest.raises(OSError, match="make room and run the command again.*tables/numbers-"), files_of_at_most(20_000):
        rows()
    assert [path.suffix for path in (tmp_path / "tables").iterdir()] == [".lock"]
    assert len(rows()) == 9000


def test_a_full_disk_ends_a_command_in_one_line(tmp_path, capsys):
    """Also one that writes with a library whose errors are no `OSError`."""
    save_tiny_checkpoint("vqa", tmp_path / "vqa")
    capsys.readouterr()
    with files_of_at_most(100_000):
        assert main(["push", str(tmp_path / "vqa"), "me/vqa", "--dry_run", "--folder", str(tmp_path / "new")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "it/s]" not in line]
    assert line.startswith("visualbert push: ")
    assert f"{os.strerror(errno.EFBIG)}; nothing half-written is kept: make room and run the command again" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vqa"]


def test_a_full_disk_leaves_no_corpus(tmp_path):
    config = CorpusConfig(train_scenes=3, val_scenes=2, test_scenes=2)
    with pytest.raises(OSError, match="make room and run the command again"), files_of_at_most(2_000):
        build_corpus(tmp_path / "corpus", config, progress=False)
    assert not list(tmp_path.iterdir())
    build_corpus(tmp_path / "corpus", config, progress=False)
    assert (tmp_path / "corpus" / "corpus.json").is_file()


def test_an_evaluation_that_cannot_write_says_so_at_once(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["evaluate", "--model", "nowhere", "--output_dir", str(tmp_path / "file" / "out")]) == 2
    assert "file" in capsys.readouterr().err
