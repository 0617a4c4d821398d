"""`visualbert train` runs the scripts of examples/, and finds recipes by name; both end mistakes in one line."""

import re
import runpy
import subprocess
import sys

import processes
import pytest
from documents import ARGS, ROOT
from table_files import write_photos, write_table

from modeling_visualbert.cli import main
from modeling_visualbert.cli.training import SCRIPTS
from modeling_visualbert.training.recipes import examples_folder, recipe_path


def test_every_training_script_has_a_command():
    assert {f"examples/{script}" for script in SCRIPTS.values()} == set(ARGS)


@pytest.mark.parametrize("task", SCRIPTS)
def test_help_is_that_of_the_script(task, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", task, "--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert (
        printed.startswith(f"usage: visualbert train {task} --output_dir DIR [options]") and "--batch_size" in printed
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (["--train_file", "none.csv"], "none.csv: no such file"),
        (["--train_file", "."], ".: a folder; expected a file, .csv, "),
        (
            ["--recipe", "vqa_finetun"],
            "vqa_finetun: no such recipe; expected a file, or one of classification_corpus, ",
        ),
        (["--recipe", "none/vqa_finetune"], "none/vqa_finetune: no such recipe; expected a file, or one of "),
        (["--batch_size", "0"], "--batch_size 0; expected more than 0"),
    ],
)
def test_mistakes_are_one_line(options, message, tmp_path, capsys):
    assert main(["train", "vqa", "--output_dir", str(tmp_path / "run"), "--cpu", *options]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"visualbert train: {message}") and printed.count("\n") == 1


@pytest.mark.parametrize("name", ["vqa_finetune", "vqa_finetune.yaml", "examples/recipes/vqa_finetune.yaml"])
def test_recipes_of_the_package_are_found_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert examples_folder() == ROOT / "examples"
    assert recipe_path(name) == ROOT / "examples" / "recipes" / "vqa_finetune.yaml"
    own = tmp_path / "vqa_finetune.yaml"
    own.write_text("epochs: 1")
    assert recipe_path(own) == own


@pytest.mark.parametrize("script", SCRIPTS.values())
def test_scripts_end_mistakes_in_one_line_too(script, tmp_path, monkeypatch, capsys):
    path = str(ROOT / "examples" / script)
    monkeypatch.setattr(sys, "argv", [path, "--output_dir", str(tmp_path / "run"), "--batch_size", "0"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(path, run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{script}: --batch_size 0; expected more than 0\n"


def test_the_traceback_is_there_for_those_who_ask_for_it(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "run_vqa.py"), "--train_file", "none.csv", "--init_from", "x"]
    command += ["--output_dir", str(tmp_path / "run"), "--cpu"]
    env = processes.environment(MODELING_VISUALBERT_DEBUG="1")
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    lines = done.stderr.splitlines()
    assert done.returncode == 2
    assert lines[-1] == "run_vqa.py: none.csv: no such file"
    assert "Traceback (most recent call last):" in lines


def test_an_error_of_a_batch_names_its_example_whoever_makes_it(tmp_path):
    photos = write_photos(tmp_path / "photos")
    rows = [{"image": f"{number}.png", "question": "what is it", "answer": "a wall"} for number in range(4)]
    rows[2]["image"] = "broken.png"
    content = (photos / "2.png").read_bytes()
    (photos / "broken.png").write_bytes(content[: len(content) // 2])
    command = [sys.executable, str(ROOT / "examples" / "run_vqa.py"), "--output_dir", str(tmp_path / "run"), "--cpu"]
    command += ["--train_file", write_table(photos / "rows.csv", rows), "--tokenizer", "corpus", "--num_workers", "1"]
    command += ["--grid_backbone", "small", "--batch_size", "4", "--train_val_split", "0.2", "--epochs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=processes.environment(), timeout=300)
    assert done.returncode == 2
    assert re.match(r"run_vqa.py: example 2: .*broken.png", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
