"""What the package uses of other libraries that they promise nobody: one table, so that a new version that lacks it says so here.

Routes of gradio, which the demo lets through one by one, have a list of their own: `tests/fixtures/gradio_routes.json`.
"""

import argparse
import ast
import importlib
import inspect

import pytest
import torch
from processes import ROOT
from tiny_checkpoints import tiny_checkpoint
from torch import nn

# A private name, and what has it. Where it is used, a comment says what for.
ATTRIBUTES = {
    "a layer": ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_parameters"),
    "a convolution": ("_conv_forward",),
    "torch": ("_int_mm",),
    "a model": ("_check_and_adjust_attn_implementation", "_from_config"),
    "a pipeline": (
        *("_batch_size", "_num_workers", "_preprocess_params", "_forward_params", "_postprocess_params"),
        "_ensure_tensor_on_device",
    ),
    "a processor": ("_merge_kwargs",),
    "an accelerator": ("_models", "_optimizers", "_custom_objects"),
    "a parser": ("_actions", "_option_string_actions"),
    "argparse": ("_ActionsContainer", "_SubParsersAction"),
}
# oneDNN's products are looked for before they are used, and are missing in builds without oneDNN.
LOOKED_FOR = {"_linear_pointwise", "_convolution_pointwise"}
# Modules that no documentation names, or that it calls internal, and what is imported from them.
MODULES = {
    "accelerate.checkpointing": ("save_accelerator_state", "save_custom_state"),
    "datasets.packaged_modules.parquet.parquet": ("ParquetConfig",),
    "huggingface_hub.dataclasses": ("strict", "validate_typed_dict"),
    "torch._dynamo.exc": ("BackendCompilerFailed",),
    "torch.nn.attention.varlen": ("varlen_attn",),
    "torch.nn.modules.module": ("_has_any_global_hook",),
    "torch.utils._triton": ("has_triton",),
    "transformers.dynamic_module_utils": ("custom_object_save",),
    "transformers.image_processing_backends": ("PilBackend",),
    "transformers.modeling_layers": ("GradientCheckpointingLayer",),
    "transformers.models.auto.image_processing_auto": ("AutoImageProcessor", "IMAGE_PROCESSOR_MAPPING"),
    "transformers.models.auto.modeling_auto": (
        *("MODEL_FOR_BACKBONE_MAPPING", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", "MODEL_FOR_OBJECT_DETECTION_MAPPING"),
        "MODEL_MAPPING",
    ),
    "transformers.pipelines": ("PIPELINE_REGISTRY", "REMOVED_TASKS", "TASK_ALIASES"),
    "transformers.utils.generic": ("can_return_tuple", "is_flash_attention_requested", "merge_with_config_defaults"),
    "transformers.utils.output_capturing": ("capture_outputs", "maybe_install_capturing_hooks"),
}
ARGUMENTS = {
    ("accelerate.checkpointing", "save_accelerator_state"): ("output_dir", "model_states", "optimizers", "schedulers"),
    ("transformers.dynamic_module_utils", "custom_object_save"): ("obj", "folder", "config"),
}
FILES = [path for folder in ("modeling_visualbert", "examples", "hub_cards") for path in (ROOT / folder).rglob("*.py")]


@pytest.fixture(scope="module")
def owners():
    """Of each kind that has private names one."""
    from accelerate import Accelerator

    from modeling_visualbert import VisualBertVQAPipeline

    model, processor = tiny_checkpoint("vqa")
    return {
        "a layer": nn.Linear(1, 1),
        "a convolution": nn.Conv2d(1, 1, 1),
        "torch": torch,
        "a model": model,
        "a pipeline": VisualBertVQAPipeline(model=model, processor=processor),
        "a processor": processor,
        "an accelerator": Accelerator(cpu=True),
        "a parser": argparse.ArgumentParser(),
        "argparse": argparse,
    }


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in ATTRIBUTES.items() for name in names])
def test_private_names_are_there(owner, name, owners):
    assert hasattr(owners[owner], name), f"{owner} has no {name} any more: see where modeling_visualbert uses it"


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in MODULES.items() for name in names])
def test_what_internal_modules_have_is_there(module, name):
    assert hasattr(importlib.import_module(module), name), f"{module} has no {name} any more"


@pytest.mark.parametrize(("module", "name"), ARGUMENTS)
def test_their_arguments_are_those_that_are_passed(module, name):
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    assert list(parameters)[: len(ARGUMENTS[module, name])] == list(ARGUMENTS[module, name])


def test_the_table_is_complete():
    trees = [ast.parse(path.read_text("utf-8")) for path in FILES]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    ours = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    ours |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    ours |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    private = {name for name in used - ours if not name.startswith("__")} - LOOKED_FOR
    listed = {name for names in ATTRIBUTES.values() for name in names}
    assert private - listed == set(), "private names of other libraries: add them to ATTRIBUTES, or do without"
    assert listed - used == set(), "no longer used: remove them from ATTRIBUTES"


def test_imports_from_internal_modules_are_listed():
    imports = [
        (node.module, name.name)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level == 0
        for name in node.names
    ]
    internal = {(module, name) for module, name in imports if module in MODULES or "._" in module or name[0] == "_"}
    internal -= {pair for pair in internal if pair[0] == "__future__"}
    assert internal == {(module, name) for module, names in MODULES.items() for name in names}
