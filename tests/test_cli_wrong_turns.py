"""Likely mistakes at the command line: each ends in one line that names the thing, before anything is computed."""

import shutil

import pytest
from tiny_checkpoints import save_tiny_checkpoint

from modeling_visualbert.cli import main
from modeling_visualbert.corpus.scenes import render, sample_scene


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints, an image and an empty folder."""
    folder = tmp_path_factory.mktemp("wrong_turns")
    for task in ("vqa", "pretraining"):
        save_tiny_checkpoint(task, folder / task)
    render(sample_scene(0, "wrong turns")).save(folder / "image.png")
    (folder / "empty").mkdir()
    (folder / "run").mkdir()
    shutil.copytree(folder / "vqa", folder / "run" / "best")
    (folder / "list").mkdir()
    (folder / "list" / "config.json").write_text("[1]")
    return folder


TRAINED = "the model of this training run is in"
ASK = ["ask", "image.png", "Is it red?", "--model"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*ASK, "nofolder"], "nofolder: no folder of this name is here, and the Hub's cannot be opened: "),
        ([*ASK, "user/none"], "user/none: no folder of this name is here, and the Hub's cannot be opened: "),
        ([*ASK, "model.th"], "model.th: no such file"),
        ([*ASK, ""], "no name is given; expected a checkpoint"),
        ([*ASK, "empty"], "empty: no config.json; expected the folder of a checkpoint"),
        ([*ASK, "run"], f"run: no config.json; expected the folder of a checkpoint; {TRAINED} run/best"),
        ([*ASK, "list"], "list/config.json: holds a list; expected a JSON object"),
        (["ask", "empty", "Is it red?", "--model", "vqa"], "empty: no such image file, but a folder"),
        (["convert", "model.th", "new"], "model.th: no such file"),
        (["demo", "--model", "nofolder"], "nofolder: no folder of this name is here"),
        (["export", "nofolder", "new.onnx"], "nofolder: no folder of this name is here"),
        ([*ASK, "vqa", "--picture_out", "nowhere/x.png"], "--picture_out nowhere/x.png: there is no folder nowhere"),
        ([*ASK, "vqa", "--picture_out", "x"], "--picture_out x; expected the name of an image file, such as picture.png"),
        ([*ASK, "vqa", "--picture_out", "x.xyz"], "--picture_out x.xyz; expected the name of an image file"),
        (
            ["regions", "image.png", "--region_encoder", "x", "--picture_out", "x"],
            "--picture_out x; expected the name of an image file",
        ),
        (
            ["fill", "--model", "pretraining", "image.png", "a red star"],
            "no [MASK] in 'a red star'; expected one or more, or two texts to match with the image",
        ),
        (["demo", "--model", "vqa", "--port", "99999"], "--port 99999; expected 1 to 65535"),
        (["demo", "--model", "vqa", "--host", "192.0.2.1"], "--host '192.0.2.1' is no address of this machine"),
    ],
)  # fmt: skip
def test_one_line_names_the_mistake(folder, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(folder)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith(f"visualbert {argv[0]}: {message}")


def test_ctrl_c_ends_without_a_traceback(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_visualbert.cli.checkpoints._corpus", interrupt)
    assert main(["corpus"]) == 130
    assert capsys.readouterr() == ("", "visualbert corpus: interrupted; run the same command again\n")


@pytest.mark.parametrize(("flag", "meant"), [("--explian", "; did you mean --explain?"), ("--zzz", "")])
def test_a_misspelt_flag_is_answered_with_the_one_that_was_meant(capsys, flag, meant):
    with pytest.raises(SystemExit, match="^2$"):
        main([*ASK, "vqa", flag])
    printed = capsys.readouterr().err
    assert printed.startswith("usage: visualbert ask ")
    assert printed.endswith(f"visualbert ask: error: unrecognized arguments: {flag}{meant}\n")
