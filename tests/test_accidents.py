"""What happens around a program: folders that may not be read or written, processes that die, code that is named but not ours."""

import ctypes
import json
import os
import shutil
import signal
import sys

import pytest
from killed_runs import begin, fork
from published_layouts import write_checkpoint, write_tokenizer
from tiny_checkpoints import save_checkpoint_and_image
from torch.utils.data import get_worker_info
from toy_training import toy_args, toy_task
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modeling_visualbert.cli import main
from modeling_visualbert.cli.errors import exit_status
from modeling_visualbert.tasks.batch_errors import one_line_errors
from modeling_visualbert.tasks.common import DETECTOR
from modeling_visualbert.training.loop import train


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A complete checkpoint and an image; a published one, and its tokenizer."""
    folder = save_checkpoint_and_image(tmp_path_factory.mktemp("world"), "accidents")
    write_checkpoint(folder / "published", "vqa", 9)
    write_tokenizer(folder / "tokenizer")
    return folder


def obey_permissions():
    """Make this process heed the permissions of files; that of an administrator is allowed everything."""
    version_3, one_process, of_files = 0x20080522, 0, 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    header = (ctypes.c_uint32 * 2)(version_3, one_process)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, of the first 32 and of the others
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0
    sets[0] &= ~of_files
    assert libc.capset(header, sets) == 0


def train_in(folder, world):
    return exit_status("train", lambda: train(toy_task(), toy_args(folder / "run")))


def convert_in(folder, world):
    return main(["convert", str(world / "published"), f"{folder}/new", "--tokenizer", str(world / "tokenizer")])


READ_ONLY = {
    "train": train_in,
    "corpus": lambda folder, world: main(["corpus"]),
    "convert": convert_in,
    "push": lambda folder, world: main(["push", str(world / "vqa"), "me/a", "--dry_run", "--folder", f"{folder}/new"]),
    "extract": lambda folder, world: main(
        ["extract", str(world), f"{folder}/store", "--region_encoder", str(DETECTOR)]
    ),
}


def work_in(body, folder, world):
    begin(str(folder))
    obey_permissions()
    sys.exit(body(folder, world))


@pytest.mark.skipif(sys.platform != "linux", reason="permissions as Linux has them")
@pytest.mark.parametrize("command", READ_ONLY)
def test_a_folder_that_may_not_be_written_is_named(command, world, tmp_path, monkeypatch):
    folder = tmp_path / "read_only"
    folder.mkdir()
    folder.chmod(0o555)
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(folder / "cache"))
    process = fork(work_in, READ_ONLY[command], folder, world)
    process.join(120)
    said = folder.with_name("read_only.stderr").read_text()
    assert process.exitcode == 2 and "Traceback" not in said, said
    assert f"Permission denied: '{folder}/" in said.splitlines()[-1]
    assert not list(folder.iterdir())


def test_a_process_that_prepares_batches_and_dies_is_explained(tmp_path):
    """As the system kills one when memory runs out."""
    task, collate = toy_task(), toy_task().collate

    def dying(rows):
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return collate(rows)

    task.collate = dying
    with (
        pytest.raises(
            OSError, match=r"^a process that prepares batches died .*: pass --num_workers 0, or smaller ones$"
        ),
        one_line_errors(),
    ):
        train(task, toy_args(tmp_path / "run", num_workers=1))
    train(toy_task(), toy_args(tmp_path / "run", resume=True))


AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForVisualQuestionAnswering", "AutoProcessor", "AutoTokenizer")


@pytest.mark.parametrize("code", ["elsewhere/repository--evil.Evil", "evil.Evil"])
@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_code_that_a_checkpoint_names_is_not_run(file, code, world, tmp_path, capsys):
    """The classes of the package open it, whatever `auto_map` says."""
    folder, trace = tmp_path / "vqa", tmp_path / "code_was_run"
    shutil.copytree(world / "vqa", folder)
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass Evil: pass\n")
    fields = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**fields, "auto_map": dict.fromkeys(AUTO_CLASSES, code)}))
    assert main(["ask", "--model", str(folder), str(world / "image.png"), "Is there a red star?"]) == 0
    assert "%" in capsys.readouterr().out
    assert not trace.exists()
    get_class_from_dynamic_module("evil.Evil", str(folder))
    assert trace.exists(), "the file is not hostile, so this test shows nothing"
