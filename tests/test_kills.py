"""Processes that are killed, or interrupted, at their first, second, ... change of a file: nothing half-written counts, and the
next one ends as if nothing had been."""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from datasets import Features, Value
from killed_runs import begin, fork
from test_store import contents, pairs, write
from toy_training import toy_args, toy_task

from modeling_visualbert.cli.errors import exit_status
from modeling_visualbert.convert.assemble import Assembled
from modeling_visualbert.corpus.build import CorpusConfig, build_corpus
from modeling_visualbert.data import cache
from modeling_visualbert.publish import push
from modeling_visualbert.publish.export import export_onnx
from modeling_visualbert.training.loop import train

FEATURES = Features({"number": Value("int64")})
ROWS = [{"number": number} for number in range(3000)]

STATUSES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")


def is_change(event, arguments):
    """Whether an audit event of Python is about to change a file or folder."""
    return event in _CHANGES or (event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & _WRITES)


def train_toy(folder):
    train(toy_task(), toy_args(folder / "run", max_steps=5, save_steps=2, resume=True, report_to="none"))
    names = ("log.jsonl", "predictions_dev.jsonl", "best/model.safetensors", "best/config.json")
    return {name: (folder / "run" / name).read_bytes() for name in names}


def draw_corpus(folder):
    config = CorpusConfig(train_scenes=2, val_scenes=1, test_scenes=1)
    build_corpus(folder / "corpus", config, progress=False)
    return contents(folder / "corpus")


def make_table(folder):
    cache.KEPT = 0
    os.environ["MODELING_VISUALBERT_CACHE"] = str(folder)
    rows, _ = cache.cached_table("numbers", FEATURES, lambda notes: cache.batches(ROWS, FEATURES), 1, "key")
    return rows.to_list()


def write_regions(folder):
    return contents(write(folder / "store", pairs(20), images_per_shard=7, resume=True))


def once(folder, make):
    """What a command that refuses to overwrite makes, now or before."""
    if not folder.exists():
        make()
    return contents(folder) if folder.is_dir() else folder.read_bytes()


def convert(folder):
    task = toy_task()
    return once(folder / "converted", lambda: Assembled(task.model, task.processor, []).save(folder / "converted"))


def build_repository(folder):
    """Without the process that tries it, which takes seconds."""
    if not (folder / "toy").exists():
        task = toy_task()
        task.model.save_pretrained(folder / "toy.new")
        task.processor.save_pretrained(folder / "toy.new")
        (folder / "toy.new").rename(folder / "toy")
    push.try_repository = lambda *arguments, **options: ""
    return once(folder / "repository", lambda: push.build_repository(folder / "toy", folder / "repository", "me/toy"))


def export(folder):
    """With a stand-in for the exporter, which takes seconds, where it writes."""
    torch.onnx.export = lambda *arguments, f, **options: Path(f).write_bytes(b"a model")
    sys.modules["modeling_visualbert.publish.export"]._check_axes = lambda *arguments: None
    return once(folder / "model.onnx", lambda: export_onnx(toy_task().model, folder / "model.onnx"))


WORKS = (train_toy, draw_corpus, make_table, write_regions, convert, build_repository, export)


def stderr_of(folder):
    return folder.with_name(f"{folder.name}.stderr")


def work(make, folder, deadly, number):
    """The body of a process: does its work and counts the changes of files; before the one called `deadly` it sends itself the
    signal of this number."""
    stderr_of(folder).unlink(missing_ok=True)
    begin(str(folder))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which processes in the background ignore
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if is_change(event, arguments) and str(arguments[0]).startswith(str(folder)):
            if seen == deadly:
                seen += 1
                return os.kill(os.getpid(), number)
            seen += 1

    def make_and_tell():
        made = make(folder)
        if deadly is None:
            summary = {"changes": seen, "made": repr(made)}
            folder.with_name(f"{folder.name}.json").write_text(json.dumps(summary))

    sys.addaudithook(hook)
    sys.exit(exit_status("work", make_and_tell))


def run(make, folder, deadly=None, number=signal.SIGKILL):
    """Do a work in another process. What it made and how many changes it took; None if it was to be killed, and was."""
    process = fork(work, make, folder, deadly, number)
    process.join(120)
    assert process.exitcode == (0 if deadly is None else STATUSES[number]), stderr_of(folder).read_text()
    return json.loads(folder.with_name(f"{folder.name}.json").read_text()) if deadly is None else None


def try_kills(make, folder, count, number=signal.SIGKILL):
    """Kill a work at so many of its changes of files, chosen by lot, and do it again each time."""
    folder.mkdir()
    whole = run(make, folder)
    for deadly in random.Random(make.__name__).sample(range(whole["changes"]), min(count, whole["changes"])):
        shutil.rmtree(folder)  # the same place each time: some files hold their paths
        folder.mkdir()
        assert run(make, folder, deadly, number) is None
        if number == signal.SIGINT:
            *_, last = stderr_of(folder).read_text().splitlines()  # behind bars of progress
            assert "Traceback" not in stderr_of(folder).read_text()
            assert last in (
                "work: interrupted; run the same command again",
                f"work: interrupted; the same command goes on with the complete shards in {folder}/store.partial",
            )
        assert run(make, folder)["made"] == whole["made"], deadly
        drafts = [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".old", ".partial"))]
        assert not [path for path in drafts if path.is_dir() and any(path.iterdir())], deadly


@pytest.mark.parametrize("make", WORKS)
def test_killed_at_some_changes_of_files(make, tmp_path):
    try_kills(make, tmp_path / "work", 4)


@pytest.mark.parametrize("make", WORKS[1:])  # training stops after its step and saves: tests/test_preemption.py
def test_interrupted_at_some_changes_of_files(make, tmp_path):
    try_kills(make, tmp_path / "work", 3, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("make", WORKS)
def test_killed_at_many_changes_of_files(make, tmp_path):
    try_kills(make, tmp_path / "work", 40)
