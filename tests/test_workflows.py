"""The workflows of GitHub do what `.ci/run` does, through the same targets of `make`."""

import re

import pytest
import yaml
from processes import ROOT

WORKFLOWS = {path.name: yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / ".github/workflows").glob("*.yml")}
ALLOWED = re.compile(r"make [\w-]+( [A-Z]+=\S+)*|sudo apt-get update && sudo apt-get install [-\w ]+")


def commands(workflow):
    """What its steps run, once for each value of a matrix."""
    for name, job in workflow["jobs"].items():
        matrix = job.get("strategy", {}).get("matrix", {})
        for step in job["steps"]:
            if "run" in step:
                yield from ((name, command) for command in _filled(step["run"], matrix))


def _filled(command, matrix):
    names = re.findall(r"\$\{\{ matrix\.(\w+) \}\}", command)
    if not names:
        return [command]
    fills = [re.sub(rf"\$\{{\{{ matrix\.{names[0]} \}}\}}", str(value), command) for value in matrix[names[0]]]
    return [each for fill in fills for each in _filled(fill, matrix)]


def targets(lines):
    return {found for line in lines for found in re.findall(r"\bmake (?:[A-Z_]+=\S+ )*([a-z][\w-]*)", line)}


@pytest.fixture(scope="module")
def makefile():
    return (ROOT / "Makefile").read_text("utf-8")


def test_there_is_a_workflow_for_tests_and_one_for_releases():
    assert set(WORKFLOWS) == {"tests.yml", "release.yml"}
    assert WORKFLOWS["release.yml"][True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads "on" as true
    publish = WORKFLOWS["release.yml"]["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["needs"] == "dist"
    assert "password" not in str(publish) and "secrets" not in str(WORKFLOWS)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_steps_run_targets_of_make_and_nothing_else(name, makefile):
    for job, command in commands(WORKFLOWS[name]):
        plain = re.sub(r"\$\{\{ [\w.]+ \}\}", "x", command)
        assert ALLOWED.fullmatch(plain), f"{name}, {job}: {command!r}; expected a target of make"
        for target in targets([plain]):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"{name}, {job}: no target {target}"


def test_both_run_the_same_targets():
    script = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    here = targets(line for line in script if not line.startswith("#"))
    there = targets(command for _, command in commands(WORKFLOWS["tests.yml"]))
    assert here, "no targets found in .ci/run"
    assert there - here == {"test-matrix"}  # other systems and versions, an hour of many machines
    assert here - there == set()


def test_the_pythons_are_those_of_the_package():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    declared = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    tried = WORKFLOWS["tests.yml"]["jobs"]["versions"]["strategy"]["matrix"]["python"]
    assert tried == declared
    assert f'requires-python = ">={declared[0]}"' in text


def test_forms_for_issues_can_be_read():
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    forms = {path.name: yaml.safe_load(path.read_text("utf-8")) for path in folder.glob("*.yml")}
    assert forms.pop("config.yml")["blank_issues_enabled"] is False
    for name, form in forms.items():
        assert form["name"] and form["description"], name
        assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"]), name
