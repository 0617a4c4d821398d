"""`visualbert train` runs the scripts of examples/, and finds recipes by name."""

import pytest
from documents import ARGS, ROOT

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
