"""Weights that are not those of the model are refused by name, through every door; half precision gives the same answers."""

import importlib.util
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from published_layouts import write_checkpoint, write_tokenizer
from safetensors.torch import load_file, save_file
from tiny_checkpoints import save_tiny_checkpoint
from transformers import (
    AutoModel,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    pipeline,
)

from modeling_visualbert import (
    QueryRegionEncoder,
    VisualBertForPreTraining,
    VisualBertForQuestionAnswering,
    VisualBertForVisualReasoning,
    VisualBertModel,
)
from modeling_visualbert.checkpoints import load_inner_region_encoder, load_model
from modeling_visualbert.cli import main
from modeling_visualbert.convert.visualbert import convert_published_checkpoint
from modeling_visualbert.corpus.scenes import render, sample_scene
from modeling_visualbert.demo.checkpoint import Checkpoint
from modeling_visualbert.features.extract import load_region_encoder
from modeling_visualbert.publish.export import export_onnx
from modeling_visualbert.tasks.common import DETECTOR
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task

TEXT = "visual_bert.encoder.layer.0.output.dense.weight"  # one tensor of the text model, and one of the region encoder
REGION = "visual_bert.region_encoder.detector.model.backbone.model.embedder.embedder.0.convolution.weight"
QUESTION = "Is there a red star?"


def lack(weights, key):
    del weights[key]
    return rf"the weights lack {key.replace('.', '[.]')}; expected every tensor of"


def rename(weights, key):
    weights[f"{key}_v2"] = weights.pop(key)
    return rf"the weights lack {key.replace('.', '[.]')}; expected every tensor of"


def cut(weights, key):
    shape = tuple(weights[key].shape)
    weights[key] = weights[key][:-1].clone()
    return rf"'{key}' has shape \({shape[0] - 1}, .*\), expected \({shape[0]}, .*\)"


def poison(weights, key):
    weights[key] = weights[key].clone()
    weights[key].view(-1)[7] = float("nan")
    return rf"'{key}' holds NaN or infinity; expected finite weights"


def overflow(weights, key):
    weights[key] = weights[key].clone()
    weights[key].view(-1)[7] = float("-inf")
    return rf"'{key}' holds NaN or infinity; expected finite weights"


def empty(weights, key):
    weights.clear()
    return r"0 of the \d+ tensors of \w+ are in it; expected its checkpoint"


DAMAGES = (lack, rename, cut, poison, overflow, empty)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A complete checkpoint and a bare one with their tokenizer, and an image."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny_checkpoint("vqa", folder / "vqa")
    write_tokenizer(folder / "tokenizer")
    write_checkpoint(folder / "bare", "vqa", QueryRegionEncoder.from_pretrained(DETECTOR).config.region_dim)
    render(sample_scene(3, "loading")).save(folder / "image.png")
    return folder


@pytest.fixture
def damaged(world, tmp_path):
    """A copy of the complete checkpoint with damaged weights, and what should be said about it."""

    def make(damage, key):
        shutil.copytree(world / "vqa", tmp_path / "damaged")
        weights = load_file(world / "vqa" / "model.safetensors")
        said = damage(weights, key)
        save_file(weights, tmp_path / "damaged" / "model.safetensors", {"format": "pt"})
        return tmp_path / "damaged", said

    return make


# ------------------------------------------------------------------------------------------------------------ doors


def by_command(*argv):
    def run(folder, world, tmp_path, capsys):
        values = {"folder": folder, "image": world / "image.png", "out": tmp_path / "out"}
        status = main([argument.format(**values) for argument in argv])
        if status:
            raise ValueError(capsys.readouterr().err.splitlines()[-1])

    return run


def by_init_from(folder, world, tmp_path, capsys):
    sizes = {"train_scenes": 4, "val_scenes": 2, "test_scenes": 2}
    vqa_task(VqaArgs(str(tmp_path / "run"), init_from=str(folder), cpu=True, **sizes), Accelerator(cpu=True))


def by_endpoint(folder, world, tmp_path, capsys):
    path = Path(__file__).parents[1] / "hub_cards" / "handler.py"
    spec = importlib.util.spec_from_file_location("handler", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.EndpointHandler(str(folder))


SCENES = ("--train_scenes", "4", "--val_scenes", "2", "--test_scenes", "2")
DOORS = {
    "from_pretrained": lambda folder, *_: VisualBertForQuestionAnswering.from_pretrained(folder),
    "the base model": lambda folder, *_: VisualBertModel.from_pretrained(folder),
    "AutoModel": lambda folder, *_: AutoModelForVisualQuestionAnswering.from_pretrained(folder),
    "pipeline": lambda folder, *_: pipeline("visual-question-answering", model=str(folder)),
    "load_model": lambda folder, *_: load_model(folder),
    "demo": lambda folder, *_: Checkpoint(folder),
    "endpoint": by_endpoint,
    "ask": by_command("ask", "--model", "{folder}", "{image}", QUESTION),
    "push": by_command("push", "{folder}", "me/model", "--dry_run"),
    "export": by_command("export", "{folder}", "{out}"),
    "evaluate": by_command("evaluate", "--model", "{folder}", "--output_dir", "{out}", "--cpu", *SCENES),
    "--init_from": by_init_from,
}


# What is not in the names of tensors: those of the base model have no prefix, and the region encoder is read by itself first.
PREFIXES = defaultdict(tuple)
PREFIXES["the base model", TEXT] = ("visual_bert.",)
PREFIXES["--init_from", REGION] = ("visual_bert.region_encoder.",)


@pytest.fixture
def small_corpus(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path_factory.getbasetemp() / "loading"))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("door", DOORS)
def test_damaged_weights_are_refused_through_every_door(door, damage, damaged, world, small_corpus, tmp_path, capsys):
    keys = (TEXT, REGION) if door in ("from_pretrained", "--init_from") else (TEXT,)
    for key in keys:
        folder, said = damaged(damage, key)
        for prefix in PREFIXES[door, key]:
            said = said.replace(prefix, "").replace(prefix.replace(".", "[.]"), "")
        with pytest.raises(ValueError, match=rf"damaged.*: {said}"):
            DOORS[door](folder, world, tmp_path, capsys)
        shutil.rmtree(folder)


@pytest.mark.parametrize("door", DOORS)
def test_whole_weights_pass_through_every_door(door, world, small_corpus, tmp_path, capsys):
    DOORS[door](world / "vqa", world, tmp_path, capsys)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_of_a_published_layout_are_refused(damage, world, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(world / "bare", folder)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    said = damage(weights, TEXT)
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=said):
        convert_published_checkpoint(folder)
    flags = ["--tokenizer", str(world / "tokenizer"), "--region_encoder", str(DETECTOR)]
    assert main(["convert", str(folder), str(tmp_path / "out"), *flags]) == 2
    assert not (tmp_path / "out").exists() and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_region_encoders_are_refused(damage, tmp_path):
    shutil.copytree(DETECTOR, tmp_path / "damaged")
    weights = load_file(DETECTOR / "model.safetensors")
    said = damage(weights, REGION.removeprefix("visual_bert.region_encoder."))
    save_file(weights, tmp_path / "damaged" / "model.safetensors", {"format": "pt"})
    for load in (load_region_encoder, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=rf"damaged.*: {said}"):
            load(tmp_path / "damaged")


# ---------------------------------------------------------------------------------------------- what may be missing


def changed_config(world, folder, **fields):
    shutil.copytree(world / "vqa", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


def test_configurations_of_another_model_are_refused(world, tmp_path):
    deeper = changed_config(world, tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"the weights lack visual_bert.encoder.layer.1.* and 27 more; expected every"):
        VisualBertForQuestionAnswering.from_pretrained(deeper)
    dim = QueryRegionEncoder.from_pretrained(DETECTOR).config.region_dim
    fields = {"region_encoder_config": None, "visual_embedding_dim": dim}
    blind = changed_config(world, tmp_path / "blind", **fields)
    with pytest.raises(ValueError, match=r"has no place for the weights visual_bert.region_encoder\..* and \d+ more"):
        VisualBertForQuestionAnswering.from_pretrained(blind)


def test_fewer_layers_are_refused_unless_they_are_asked_for(tmp_path):
    model = VisualBertForPreTraining(VisualBertForPreTraining.config_class(**SMALL, num_hidden_layers=3))
    model.save_pretrained(tmp_path)
    assert len(VisualBertModel.from_pretrained(tmp_path, num_hidden_layers=2).encoder.layer) == 2
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(ValueError, match=r"no place for the weights visual_bert.encoder.layer.2"):
        VisualBertForPreTraining.from_pretrained(tmp_path)


# Tensors that no part of the model has, whose names another part's files may leave to others.
LEFT_OVER = (
    "visual_bert.encoder.layer.1.output.dense.weight",
    "visual_bert.encoder.layer.0.adapter.weight",
    "visual_bert.embeddings.task_embeddings.weight",
    "cls.2.weight",
    "more.weight",
)


@pytest.mark.parametrize("key", LEFT_OVER)
def test_left_over_tensors_are_refused_beside_a_region_encoder(key, damaged):
    def add(weights, key):
        weights[key] = torch.ones(2)
        return f"no place for the weights {key}; expected the configuration"

    folder, said = damaged(add, key)
    with pytest.raises(ValueError, match=said):
        VisualBertForQuestionAnswering.from_pretrained(folder)
    if key.startswith("visual_bert."):
        with pytest.raises(ValueError, match=said):
            VisualBertModel.from_pretrained(folder)
    assert load_inner_region_encoder(folder) is not None  # the rest is none of its business


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool])
def test_integers_are_no_weights(dtype, damaged):
    def round_off(weights, key):
        weights[key] = weights[key].to(dtype)
        return f"model.safetensors: '{key}' holds .* numbers; expected floating point"

    folder, said = damaged(round_off, TEXT)
    with pytest.raises(ValueError, match=said):
        VisualBertForQuestionAnswering.from_pretrained(folder)


INDEX = "model.safetensors.index.json"
BROKEN_INDEXES = {
    "{": "malformed JSON at line 1, column 2",
    "[]": "holds a list; expected a JSON object",
    "{}": "no index of weights files; expected `metadata`",
    '{"metadata": {}, "weight_map": {"a": 3}}': "no index of weights files; expected `metadata`",
    '{"metadata": {}, "weight_map": {"a": "b.safetensors"}}': "b.safetensors: no such file; expected it because",
}


@pytest.mark.parametrize("content", BROKEN_INDEXES)
def test_broken_indexes_are_named(content, world, tmp_path):
    folder = changed_config(world, tmp_path / "parts")
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"parts/.*{BROKEN_INDEXES[content]}"):
        VisualBertForQuestionAnswering.from_pretrained(folder)


BROKEN_PICKLES = {
    "a list": ([1.0], "holds a list; expected tensors by name"),
    "a number": ({TEXT: 3.0}, f"'{TEXT}' is a float; expected a tensor"),
    "a model": (
        torch.nn.Linear(2, 2),
        "cannot be used: it holds Python objects, but weights only are read; expected tensors by name",
    ),
    "nothing": (None, "cannot be used: it is damaged; expected tensors by name"),
}


@pytest.mark.parametrize("case", BROKEN_PICKLES)
def test_pickles_of_something_else_are_named(case, world, tmp_path, capsys):
    content, said = BROKEN_PICKLES[case]
    folder = changed_config(world, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").touch()
    if content is not None:
        torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=rf"pytorch_model.bin: {said}"):
        VisualBertForQuestionAnswering.from_pretrained(folder)
    if case in ("a model", "nothing"):  # the class of `transformers`, which a pipeline tries next, fails without a name
        with pytest.raises(Exception, match=rf"pytorch_model.bin: {said}"):
            pipeline("visual-question-answering", model=str(folder))
    assert main(["ask", "--model", str(folder), str(world / "image.png"), QUESTION]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers 0; expected at least 1"),
        ({"hidden_size": "32"}, "'hidden_size' expected int, got str"),
        ({"hidden_act": "gelo"}, "hidden_act 'gelo'; expected one of"),
        ({"model_type": "bert"}, "model_type 'bert'; expected 'visual_bert'"),
    ],
)
def test_configurations_that_cannot_be_end_a_command_in_one_line(fields, said, world, tmp_path, capsys):
    folder = changed_config(world, tmp_path / "changed", **fields)
    assert main(["ask", "--model", str(folder), str(world / "image.png"), QUESTION]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


SMALL = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "visual_embedding_dim": 5,
}


def test_another_head_may_be_new_as_a_whole(tmp_path):
    model = VisualBertForPreTraining(VisualBertForPreTraining.config_class(**SMALL, num_hidden_layers=1))
    model.save_pretrained(tmp_path)
    other, info = VisualBertForVisualReasoning.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"cls.weight", "cls.bias"} and not info["mismatched_keys"]
    assert torch.equal(
        other.visual_bert.embeddings.word_embeddings.weight, model.visual_bert.embeddings.word_embeddings.weight
    )
    weights = load_file(tmp_path / "model.safetensors")
    for key in [key for key in weights if key.startswith("cls.seq_relationship")]:
        del weights[key]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"the weights lack cls.seq_relationship.bias, cls.seq_relationship.weight; "):
        VisualBertForPreTraining.from_pretrained(tmp_path)


def test_a_bert_without_a_layer_is_refused(tmp_path):
    fields = {key: value for key, value in SMALL.items() if key != "visual_embedding_dim"}
    BertModel(BertConfig(**fields, num_hidden_layers=2), add_pooling_layer=False).save_pretrained(tmp_path)
    VisualBertForPreTraining.from_bert(tmp_path, visual_embedding_dim=5)
    VisualBertForPreTraining.from_bert(tmp_path, visual_embedding_dim=5, num_hidden_layers=1)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.attention.self.query.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"the weights lack visual_bert.encoder.layer.1.attention.self.query.weight; "):
        VisualBertForPreTraining.from_bert(tmp_path, visual_embedding_dim=5)


# -------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_same_answers(dtype, world, tmp_path):
    image, whole = str(world / "image.png"), pipeline("visual-question-answering", model=str(world / "vqa"))
    expected = {answer["answer"]: answer["score"] for answer in whole(image, QUESTION, top_k=5)}
    half = VisualBertForQuestionAnswering.from_pretrained(world / "vqa", dtype=dtype)
    assert set(Counter(value.dtype for value in half.parameters())) == {dtype}
    half.save_pretrained(tmp_path / "half")
    AutoProcessor.from_pretrained(world / "vqa").save_pretrained(tmp_path / "half")
    for name, options in (
        (tmp_path / "half", {}),
        (tmp_path / "half", {"dtype": "float32"}),
        (world / "vqa", {"dtype": dtype}),
    ):
        pipe = pipeline("visual-question-answering", model=str(name), **options)
        found = {answer["answer"]: answer["score"] for answer in pipe(image, QUESTION, top_k=5)}
        assert found == pytest.approx(expected, abs=0.02)
    again = VisualBertForQuestionAnswering.from_pretrained(tmp_path / "half")
    encoders = [model.visual_bert.region_encoder for model in (half, again)]
    assert encoders[0].fingerprint() == encoders[1].fingerprint()


def test_half_precision_trains(world):
    model = VisualBertForQuestionAnswering.from_pretrained(world / "vqa", dtype=torch.bfloat16).train()
    model.visual_bert.region_encoder.requires_grad_(True)
    model.config.freeze_region_encoder = False
    processor = AutoProcessor.from_pretrained(world / "vqa")
    batch = processor(images=[render(sample_scene(1, "half"))], text=[QUESTION])
    labels = torch.zeros(1, model.config.num_labels)
    labels[0, 1] = 1.0
    loss = model(**batch, labels=labels).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)
    assert model.visual_bert.embeddings.word_embeddings.weight.grad is not None


def test_half_precision_is_exported(world, tmp_path):
    model = VisualBertForQuestionAnswering.from_pretrained(world / "vqa", dtype=torch.bfloat16)
    export_onnx(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size > 10_000


# ------------------------------------------------------------------------------------------------------------ saving


def test_names_that_were_changed_in_reading_are_not_changed_back(world, tmp_path):
    fields = {key: value for key, value in SMALL.items() if key != "visual_embedding_dim"}
    BertForMaskedLM(BertConfig(**fields, num_hidden_layers=1)).save_pretrained(
        tmp_path / "bert"
    )  # with the prefix "bert."
    weights = load_file(tmp_path / "bert" / "model.safetensors")
    old = {key.replace("LayerNorm.weight", "LayerNorm.gamma"): value for key, value in weights.items()}  # as in 2018
    save_file(old, tmp_path / "bert" / "model.safetensors", {"format": "pt"})
    model = VisualBertForPreTraining.from_bert(tmp_path / "bert", visual_embedding_dim=5)
    encoder = load_inner_region_encoder(world / "vqa")
    for name, saved, others in (("model", model, "bert."), ("encoder", encoder, "visual_bert.")):
        saved.save_pretrained(tmp_path / name)
        assert not any(key.startswith(others) for key in load_file(tmp_path / name / "model.safetensors"))
        again = type(saved).from_pretrained(tmp_path / name)
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in saved.state_dict().items())
