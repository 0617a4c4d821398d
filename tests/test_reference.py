"""The reference: every public name is on a page, with a docstring that gives shapes and errors."""

import inspect
import re
import subprocess
import sys

import pytest
import torch
from documents import PAGES, ROOT
from transformers import PretrainedConfig, ProcessorMixin

import modeling_visualbert
from modeling_visualbert.hub_code.pipeline_visualbert import VisualBertPipeline

REFERENCE = "\n".join(text for name, text in PAGES.items() if name.startswith("docs/reference/"))
IN_WORDS = {"__version__", "load_picture"}  # a text, and the older name of `load_image`
NAMES = sorted({*modeling_visualbert.__all__} - IN_WORDS)
NEVER_FAIL = {"register_auto_classes"}
WITHOUT_FORWARD = {"VisualBertPreTrainedModel", "RegionEncoder"}  # bases


def called(name):
    """What a user calls of a public name."""
    value = getattr(modeling_visualbert, name)
    if not inspect.isclass(value):
        return value
    if issubclass(value, torch.nn.Module):
        return None if name in WITHOUT_FORWARD else value.forward
    if issubclass(value, (VisualBertPipeline, ProcessorMixin)):
        return value.__call__
    return getattr(value, "preprocess", None)


def test_every_public_name_is_on_one_page():
    on_pages = re.findall(r"^::: modeling_visualbert\.(\w+)$", REFERENCE, flags=re.MULTILINE)
    assert sorted(on_pages) == NAMES
    assert all(f"`{name}`" in REFERENCE for name in IN_WORDS)


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_documented(name):
    value = getattr(modeling_visualbert, name)
    assert len(inspect.cleandoc(value.__doc__ or "")) > 40


@pytest.mark.parametrize("name", [name for name in NAMES if called(name) is not None])
def test_what_is_called_says_its_arguments_and_errors(name):
    function = called(name)
    text = inspect.getdoc(function)
    assert name in NEVER_FAIL or "Raises" in text
    documented = " ".join((text, inspect.getdoc(getattr(modeling_visualbert, name)), SHARED[kind_of(name)]))
    arguments = {*inspect.signature(function).parameters} - {"self", "args", "kwargs", "options", "num_workers"}
    missing = [argument for argument in arguments if not re.search(rf"\b{argument}\b", documented)]
    assert not missing


def kind_of(name):
    value = getattr(modeling_visualbert, name)
    if inspect.isclass(value) and issubclass(value, torch.nn.Module):
        return "module"
    return "pipeline" if name.endswith("Pipeline") else "other"


# What the docstrings of a kind refer to for the rest.
SHARED = {
    "module": inspect.getdoc(modeling_visualbert.VisualBertModel.forward),
    "pipeline": inspect.getdoc(VisualBertPipeline),
    "other": "",
}


@pytest.mark.parametrize("name", [name for name in NAMES if kind_of(name) == "module" and name not in WITHOUT_FORWARD])
def test_tensors_have_shapes(name):
    """Each argument that is a tensor says its shape where it is documented."""
    text = inspect.getdoc(called(name))
    described = re.findall(r"^ *([\w, ]+) \(`torch\.\w*Tensor`( of shape `\([^)]*\)`)?", text, flags=re.MULTILINE)
    assert described
    without = {argument for argument, shape in described if not shape}
    assert without <= {"picture_windows, object_masks, object_classes", "pixel_mask"}  # shapes are in the text


OF_THE_CLASS = {"model_type", "sub_configs", "wrapped_field"}  # no settings


def test_settings_are_documented():
    configurations = [name for name in NAMES if name.endswith("Config")]
    assert len(configurations) == 4
    for name in configurations:
        value = getattr(modeling_visualbert, name)
        assert issubclass(value, PretrainedConfig)
        fields = {field for field in value.__annotations__ if not field.startswith("_")} - OF_THE_CLASS
        assert [field for field in fields if field not in value.__doc__] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """Broken links, missing anchors, pages outside the navigation and names that cannot be documented are warnings."""
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    built = "".join(path.read_text("utf-8") for path in (tmp_path / "site" / "reference").rglob("index.html"))
    missing = [name for name in NAMES if f'id="modeling_visualbert.{name}"' not in built]
    assert not missing
    assert len(list((tmp_path / "site").rglob("index.html"))) == len(PAGES) - 1
    assert 'id="visualbert-ask"' in built and "--explain" in built
