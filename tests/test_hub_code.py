"""The code that checkpoints carry: what it is, and that region encoders of every kind open with it, alone and inside a model."""

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from clean_process import run_clean
from helpers import MODELS, SIZES, randomise
from test_grid_encoder import grid_encoder
from test_pipelines import close
from test_region_detector import KINDS, processor_for, tiny_detector
from test_towers import made
from tiny_checkpoints import ANSWERS, PIPELINE_TASKS, save_tiny_checkpoint, tiny_checkpoint
from transformers import AutoConfig, pipeline

import modeling_visualbert
from modeling_visualbert import (
    GridRegionEncoder,
    QueryRegionEncoder,
    VisualBertConfig,
    VisualBertImageProcessor,
    VisualBertModel,
    VisualBertProcessor,
)
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.features.extract import describe_detector
from modeling_visualbert.hub_code.tasks_visualbert import AUTO_MAP
from modeling_visualbert.publish.card import cards_folder
from modeling_visualbert.tasks.common import DETECTOR

PACKAGE = Path(modeling_visualbert.__file__).parent
IMAGE = str(cards_folder() / "examples" / "scene.png")
ENCODERS = ("query", "grid", "tower", *KINDS)
TASKS = {
    "query": "vqa",
    "grid": "vqa",
    "tower": "vqa",
    "c4": "vqa",
    "fpn": "flickr30k",
    "given": "vcr",
}  # of a model that owns it
OBJECTS = {"objects": ["LABEL_1", "LABEL_4"], "boxes": [[6.0, 19.0, 40.0, 51.0], [133.0, 59.0, 151.0, 77.0]]}
CALLS = {
    "vqa": {"question": "Is it red?"},
    "flickr30k": {"sentence": "a star", "phrases": ["star"], "top_k": 3},
    "vcr": {"question": "What is [0]?", "choices": ["[0] is a star", "[1] is red"], **OBJECTS},
}
# All that a file may import that travels with a checkpoint: `transformers`, what it depends on itself, and Python's own.
ALLOWED = {"torch", "transformers", "numpy", "PIL", "huggingface_hub", "safetensors", *sys.stdlib_module_names}


def encoder_and_processor(kind):
    if kind == "query":
        return QueryRegionEncoder.from_pretrained(DETECTOR), VisualBertImageProcessor.from_pretrained(DETECTOR)
    if kind == "grid":
        return grid_encoder(), VisualBertImageProcessor()
    if kind == "tower":  # of CLIP
        return GridRegionEncoder.from_backbone(made("clip")), VisualBertImageProcessor()
    return tiny_detector(kind), processor_for(kind)


def model_with(kind, encoder, image_processor):
    """A model of a fitting task that owns the encoder, and its processor."""
    task, tokenizer = TASKS[kind], corpus_tokenizer()
    sizes = {
        key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    labels = {"id2label": dict(enumerate(ANSWERS))} if task == "vqa" else {}
    config = VisualBertConfig(
        vocab_size=len(tokenizer), region_encoder_config=encoder.config.to_dict(), **sizes, **labels
    )
    model = randomise(MODELS[task](config))
    model.visual_bert.region_encoder.load_state_dict(encoder.state_dict())
    processor = VisualBertProcessor(
        image_processor,
        tokenizer,
        task=task,
        answers=ANSWERS if task == "vqa" else None,
        region_dim=encoder.config.region_dim,
    )
    return model, processor


OPEN = """
from pathlib import Path
import torch
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, pipeline

def regions(folder):
    encoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    objects = {"boxes": [VARIABLES["objects"]["boxes"]], "classes": [[1, 4]]} if "given" in folder else {}
    inputs = image_processor([VARIABLES["image"]], **objects)
    names = ("pixel_values", "pixel_mask", "boxes_unit", "boxes_mask", *encoder.region_inputs)
    with torch.no_grad():
        found = encoder(**{name: value for name, value in inputs.items() if name in names})
    return encoder, image_processor, [found["visual_embeds"].tolist(), found["boxes_unit"].tolist()]

found = {}
for kind, (alone, inside, call) in VARIABLES["folders"].items():
    encoder, image_processor, first = regions(alone)
    encoder.save_pretrained(alone + "-again")
    image_processor.save_pretrained(alone + "-again")
    pipe = pipeline(model=inside, trust_remote_code=True)
    pipe.model.save_pretrained(inside + "-again")
    pipe.processor.save_pretrained(inside + "-again")
    again = pipeline(model=inside + "-again", trust_remote_code=True)
    found[kind] = {
        "classes": [type(encoder).__name__, type(image_processor).__name__, type(pipe.processor.image_processor).__name__],
        "regions": first,
        "again": regions(alone + "-again")[2] == first,
        "answer": pipe(image=VARIABLES["image"], **call),
        "answer again": again(image=VARIABLES["image"], **call),
        "ours": [type(m).__module__.split(".")[0] for m in (encoder, pipe.model, pipe.model.visual_bert.region_encoder)],
    }
print(json.dumps(found))
"""


@pytest.mark.slow
def test_region_encoders_open_without_the_package_alone_and_inside_a_model(tmp_path):
    folders, expected = {}, {}
    for kind in ENCODERS:
        encoder, image_processor = encoder_and_processor(kind)
        alone, inside, call = tmp_path / f"{kind}-alone", tmp_path / f"{kind}-inside", CALLS[TASKS[kind]]
        encoder.save_pretrained(alone)
        image_processor.save_pretrained(alone)
        model, processor = model_with(kind, encoder, image_processor)
        model.save_pretrained(inside)
        processor.save_pretrained(inside)
        folders[kind] = (str(alone), str(inside), call)
        objects = {"boxes": [OBJECTS["boxes"]], "classes": [[1, 4]]} if kind == "given" else {}
        inputs = image_processor([IMAGE], **objects)
        read = ("pixel_values", "pixel_mask", "boxes_unit", "boxes_mask", *encoder.region_inputs)
        with torch.no_grad():
            found = encoder(**{name: value for name, value in inputs.items() if name in read})
        answer = pipeline(PIPELINE_TASKS[TASKS[kind]], model=model, processor=processor)(image=IMAGE, **call)
        names = [type(encoder).__name__, type(image_processor).__name__, type(image_processor).__name__]
        regions = [found["visual_embeds"].tolist(), found["boxes_unit"].tolist()]
        expected[kind] = {"classes": names, "regions": regions, "answer": answer, "answer again": answer}
    told = json.loads(run_clean(OPEN, tmp_path / "home", folders=folders, image=IMAGE, objects=OBJECTS))
    for kind in ENCODERS:
        assert {key: told[kind][key] for key in expected[kind]} == close(json.loads(json.dumps(expected[kind]))), kind
        assert told[kind]["again"] and set(told[kind]["ours"]) == {"transformers_modules"}
        for folder in folders[kind][:2]:
            first, again = (
                {path.name: path.read_bytes() for path in Path(f).iterdir()} for f in (folder, f"{folder}-again")
            )
            assert set(first) == set(again)
            assert all(first[name] == again[name] for name in first if name.endswith((".py", ".safetensors"))), folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of each head's checkpoint."""
    folder = tmp_path_factory.mktemp("code")
    for task in PIPELINE_TASKS:
        model, processor = tiny_checkpoint(task)
        model.save_pretrained(folder / task)
        processor.save_pretrained(folder / task)
    return folder


@pytest.mark.parametrize("task", PIPELINE_TASKS)
def test_a_checkpoint_names_every_class_and_its_own_pipeline(saved, task):
    config = json.loads((saved / task / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    ((name, told),) = config["custom_pipelines"].items()
    assert name == PIPELINE_TASKS[task]
    for reference in (*AUTO_MAP.values(), told["impl"]):
        file, class_name = reference.split(".")
        tree = ast.parse((saved / task / f"{file}.py").read_text())
        assert class_name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    processor = json.loads((saved / task / "processor_config.json").read_text())
    assert processor["auto_map"] == {"AutoProcessor": "processing_visualbert.VisualBertProcessor"}
    assert processor["image_processor"]["auto_map"]["AutoImageProcessor"].startswith("image_processing_visualbert.")
    assert str(PACKAGE) not in json.dumps(config) + json.dumps(processor)


def test_files_of_a_checkpoint_import_nothing_else(saved):
    files = sorted((saved / "vqa").glob("*.py"))
    assert {path.name for path in files} == {path.name for path in (PACKAGE / "hub_code").glob("*.py")} - {
        "__init__.py"
    }
    for path in files:
        assert path.read_bytes() == (PACKAGE / "hub_code" / path.name).read_bytes()
        tree = ast.parse(path.read_text())
        optional = {part for node in tree.body if isinstance(node, ast.Try) for part in node.body}  # not demanded
        for node in (node for node in ast.walk(tree) if node not in optional):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED, ast.unparse(node)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] in ALLOWED, ast.unparse(node)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 and (saved / "vqa" / f"{node.module}.py").is_file(), ast.unparse(node)


def test_the_base_model_has_no_pipeline(tmp_path):
    VisualBertModel(
        VisualBertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP and "custom_pipelines" not in config


def test_where_the_package_is_imported_nobody_has_to_trust_the_copy(saved):
    config = AutoConfig.from_pretrained(saved / "vqa")
    assert type(config) is VisualBertConfig
    assert not hasattr(config, "auto_map") and not hasattr(config, "custom_pipelines")
    pipe = pipeline("visual-question-answering", model=str(saved / "vqa"))
    assert type(pipe.model).__module__ == "modeling_visualbert.hub_code.modeling_visualbert"


def test_saving_changes_neither_the_model_nor_what_its_detector_is(tmp_path):
    encoder, image_processor = (
        QueryRegionEncoder.from_pretrained(DETECTOR),
        VisualBertImageProcessor.from_pretrained(DETECTOR),
    )
    before = describe_detector(encoder, image_processor)
    encoder.save_pretrained(tmp_path)
    image_processor.save_pretrained(tmp_path)
    assert describe_detector(encoder, image_processor) == before
    loaded = QueryRegionEncoder.from_pretrained(tmp_path), VisualBertImageProcessor.from_pretrained(tmp_path)
    assert describe_detector(*loaded) == before


OPEN_FOLDERS = """
import torch
from transformers import AutoModel, AutoModelForVisualQuestionAnswering, AutoProcessor

told = {}
for folder in VARIABLES["folders"]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    head = AutoModelForVisualQuestionAnswering.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = head(**processor(images=[VARIABLES["image"]], text=["Is it red?"]))["logits"]
    told[folder] = [type(model).__module__.split(".")[0], logits[0].tolist()]
print(json.dumps(told))
"""
STARTS = {
    "not installed": "",
    "installed": "del sys.modules['modeling_visualbert']\n",
    "imported": "del sys.modules['modeling_visualbert']\nimport modeling_visualbert\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
def test_the_folder_of_a_checkpoint_may_have_any_name(tmp_path, start):
    """Spaces, dots, letters that are not ASCII, and what is no name in Python; two of them differ in such letters only."""
    names = ("my model", "v1.2", "modèle", "视觉", "模型", "über den Wolken (2).final", "1st", "import")
    saved = tmp_path / "saved"
    model, processor = save_tiny_checkpoint("vqa", saved)
    for name in names:
        shutil.copytree(saved, tmp_path / name)
    with torch.no_grad():
        expected = model.eval()(**processor(images=[IMAGE], text=["Is it red?"]))["logits"][0].tolist()
    folders = [str(tmp_path / name) for name in names]
    told = json.loads(run_clean(STARTS[start] + OPEN_FOLDERS, tmp_path / "home", folders=folders, image=IMAGE))
    whose = "modeling_visualbert" if start == "imported" else "transformers_modules"
    assert told == {folder: [whose, pytest.approx(expected, abs=1e-5)] for folder in folders}
