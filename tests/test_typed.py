"""A user's program sees the types of the package: checked strictly, as if the package were installed."""

import os
import shutil
import subprocess
import sys

import pytest
from processes import ROOT

PROGRAM = ROOT / "tests" / "typed" / "user_program.py"
# A mistake, and what stands there in the program.
MISTAKES = {
    "load_image(image), question, top_k=1)": "load_image(image), [question], top_k=1)",
    "load_vqa(files.questions, 3)": "load_vqa(files.questions, files.annotations)",
    'convert_original_checkpoint(path, "vqa", "fast")': 'convert_original_checkpoint(path, task="vqa", num_attention_heads=12)',
}


def checked(tool, program, tmp_path):
    """What a checker says of a program that lies elsewhere."""
    if tool == "mypy":
        command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
        command += ["--cache-dir", str(tmp_path / "cache")]
        variables = {**os.environ, "MYPYPATH": str(ROOT)}
    else:
        (tmp_path / "pyrightconfig.json").write_text(
            f'{{"include": ["{program.name}"], "extraPaths": ["{ROOT.as_posix()}"]}}', encoding="utf-8"
        )
        command, variables = ["pyright", "--pythonpath", sys.executable, "-p", str(tmp_path)], dict(os.environ)
    command += [str(program)] if tool == "mypy" else []
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, encoding="utf-8", check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["mypy", "pyright"])
def test_a_user_s_program_is_right_and_its_mistakes_are_found(tool, tmp_path):
    if tool == "pyright" and not shutil.which("pyright"):
        pytest.skip("pyright is not installed")
    if tool == "mypy":
        pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    text = PROGRAM.read_text("utf-8")
    program.write_text(text, encoding="utf-8")
    assert checked(tool, program, tmp_path)[0] == 0, checked(tool, program, tmp_path)[1]
    for wrong, right in MISTAKES.items():
        assert right in text
        program.write_text(text.replace(right, wrong), encoding="utf-8")
        status, said = checked(tool, program, tmp_path)
        assert status == 1 and said.count("error:") == 1, said
