"""Other operating systems, as far as this one can play them."""

import ast
import importlib
import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from processes import ROOT, environment
from tiny_checkpoints import save_checkpoint_and_image

from modeling_visualbert import system
from modeling_visualbert.tasks.run import report
from modeling_visualbert.training.args import TrainArgs
from modeling_visualbert.training.loaders import num_workers
from modeling_visualbert.training.output_folder import claimed
from modeling_visualbert.training.throughput import peak_memory

CPU = torch.device("cpu")
POSIX_ONLY = ("resource", "fcntl", "pwd", "grp", "termios")
# What Windows has of these modules is less; this is what is used here, which it has.
USED_OF_OS = {"environ", "getpid", "name", "path", "replace", "scandir", "stat", "strerror", "write"}
USED_OF_OS |= {
    "O_CREAT",
    "O_RDONLY",
    "O_RDWR",
    "O_WRONLY",
    "W_OK",
    "access",
    "close",
    "cpu_count",
    "devnull",
    "dup2",
    "fsync",
    "fstat",
    "link",
    "open",
}
USED_OF_SIGNAL = {"SIGINT", "SIGTERM", "Signals", "signal"}
ELSEWHERE = {"sched_getaffinity": "loaders.py", **dict.fromkeys(POSIX_ONLY, "system.py")}
TEXT_METHODS = {"read_text": 0, "write_text": 1}  # the number of the argument that is the encoding
BINARY_OPENERS = ("Image", "archive", "lmdb", "os", "zipfile", "tarfile", "h5py", "partial")  # and a mode in a variable

FILES = [path for folder in ("modeling_visualbert", "examples", "hub_cards") for path in (ROOT / folder).rglob("*.py")]


def calls(path):
    tree = ast.parse(path.read_text("utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def lacks_encoding(call):
    """Whether a call reads or writes text in whatever encoding the system has."""
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in TEXT_METHODS:
        return len(call.args) <= TEXT_METHODS[name]
    if name == "open":
        owner = ast.unparse(call.func).partition(".open")[0]
        modes = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        is_binary = any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)
        return not is_binary and owner not in BINARY_OPENERS
    is_text = any(keyword.arg in ("text", "universal_newlines") for keyword in call.keywords)
    return is_text and ast.unparse(call.func).startswith("subprocess.")


def test_the_search_for_encodings_finds_what_it_looks_for():
    found = [lacks_encoding(call) for call in calls(Path(__file__).with_name("processes.py"))]
    assert not any(found)
    for code in ("p.read_text()", "p.write_text(x)", "open(p)", "p.open('a')", "subprocess.run(x, text=True)"):
        assert lacks_encoding(ast.parse(code).body[0].value), code
    for code in ("p.read_text('utf-8')", "p.write_text(x, encoding='utf-8')", "p.open('rb')", "Image.open(p)"):
        assert not lacks_encoding(ast.parse(code).body[0].value), code


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_is_read_and_written_in_a_named_encoding(path):
    assert [call.lineno for call in calls(path) if lacks_encoding(call)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_asks_for_what_windows_lacks(path):
    """But in `system.py`, and behind Linux' own folder of shared memory."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    used = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    of_os = {name.removeprefix("os.") for name in used if name.startswith("os.") and name.count(".") == 1}
    of_signal = {name.removeprefix("signal.") for name in used if name.startswith("signal.") and name.count(".") == 1}
    imported = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    strange = (of_os - USED_OF_OS) | (of_signal - USED_OF_SIGNAL) | (imported & set(POSIX_ONLY))
    assert {name for name in strange if ELSEWHERE.get(name) != path.name} == set()


@pytest.fixture
def windows(monkeypatch):
    """A process in which the modules, signals and forks of POSIX are missing."""
    for name in POSIX_ONLY:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])


def test_memory_is_told_in_the_unit_of_the_system(monkeypatch):
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=3 * 2**20))
    monkeypatch.setitem(sys.modules, "resource", usage)
    for platform, mebibytes in (("linux", 3 * 2**10), ("darwin", 3)):
        monkeypatch.setattr(sys, "platform", platform)
        assert peak_memory(CPU) == {"peak_memory_mib": mebibytes}


def test_memory_of_this_process_is_that_of_the_system():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("only Linux has this file")
    told = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert system.peak_memory_bytes() == pytest.approx(1024 * int(told.split()[1]), rel=0.05)


def test_memory_on_windows(windows, monkeypatch):
    import psutil

    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=1, peak_wset=5 << 20))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert peak_memory(CPU) == {"peak_memory_mib": 5}
    process.memory_info = lambda: SimpleNamespace(rss=1)
    assert peak_memory(CPU) == {}


def test_a_report_without_memory(tmp_path, capsys, monkeypatch):
    from modeling_visualbert.tasks import run

    monkeypatch.setattr(run, "plot_curves", lambda *_: None)
    monkeypatch.setattr(run, "summary", lambda *_: "")
    task = SimpleNamespace(name="toy", splits={"dev": []}, write_results=None, draw=None)
    for told, expected in (({}, "3 steps, 2 s\n"), ({"peak_memory_mib": 7}, "3 steps, 2 s, peak memory 7 MiB\n")):
        report(task, TrainArgs(str(tmp_path)), {"splits": {}, "run": {"steps": 3, "seconds": 2.2, **told}}, CPU)
        assert expected in capsys.readouterr().out


def test_a_folder_is_locked_on_windows(windows, monkeypatch, tmp_path):
    """`msvcrt` refuses a byte of a file that another process has with EACCES."""
    held = []

    def locking(file, mode, length):
        if held:
            raise PermissionError(13, "Permission denied")
        held.append((mode, length))

    msvcrt = ModuleType("msvcrt")
    msvcrt.LK_NBLCK, msvcrt.locking = 2, locking
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    accelerator = Accelerator(cpu=True)
    with claimed(tmp_path / "run", False, accelerator):
        assert held == [(2, 1)]
        with (
            pytest.raises(FileExistsError, match="another run is at work in"),
            claimed(tmp_path / "run", True, accelerator),
        ):
            pass


def test_processes_that_prepare_batches_are_refused_where_there_are_no_forks(windows, tmp_path):
    accelerator = Accelerator(cpu=True)
    assert num_workers(TrainArgs(str(tmp_path)), accelerator) == 0
    assert num_workers(TrainArgs(str(tmp_path), num_workers=0), accelerator) == 0
    with pytest.raises(ValueError, match="^--num_workers 2: what prepares batches is a fork.*; expected 0$"):
        num_workers(TrainArgs(str(tmp_path), num_workers=2), accelerator)


def test_signals_that_the_system_lacks_are_not_waited_for(monkeypatch):
    assert set(system.STOP_SIGNALS) == {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT}
    monkeypatch.delattr(signal, "SIGUSR1")
    try:
        assert set(importlib.reload(system).STOP_SIGNALS) == {signal.SIGTERM, signal.SIGINT}
    finally:
        monkeypatch.undo()
        importlib.reload(system)


WITHOUT_POSIX = f"""
import builtins
importing = builtins.__import__

def as_on_windows(name, globals=None, *rest, **named):
    if name in {POSIX_ONLY} and globals is not None and globals["__name__"].startswith("modeling_visualbert"):
        raise ImportError(f"{{globals['__name__']}} needs {{name}}")
    return importing(name, globals, *rest, **named)

builtins.__import__ = as_on_windows
import modeling_visualbert.tasks.run, modeling_visualbert.tasks.evaluate, modeling_visualbert.cli, modeling_visualbert.demo.page
import modeling_visualbert.features.extract, modeling_visualbert.publish.push
print("imported")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows shows it by itself")
def test_everything_is_imported_without_the_modules_of_posix():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX], env=environment(), capture_output=True, encoding="utf-8"
    )
    assert (done.stdout, done.returncode) == ("imported\n", 0), done.stderr


def test_a_console_without_the_letters_of_an_answer(tmp_path):
    """Windows writes cp1252 where the output goes to a file."""
    save_checkpoint_and_image(tmp_path, "console")
    command = [sys.executable, "-m", "modeling_visualbert.cli", "ask", "--model", "vqa", "image.png"]
    done = subprocess.run(
        [*command, "Это что?", "日本"],
        cwd=tmp_path,
        env=environment(PYTHONIOENCODING="cp1252", PYTHONUTF8="0"),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode("cp1252")
    assert "\\u042d\\u0442\\u043e" in lines and "\\u65e5\\u672c" in lines
