"""Checkpoints of others: the authors' `.th` files, folders as `uclanlp` published them, and files to refuse."""

import io
import json
import math
import pickle
import re

import pytest
import torch
from golden_cases import CHECKPOINTS, GOLDEN, compare, golden
from helpers import SIZES, inputs_for, randomise, scores_of
from published_layouts import write_checkpoint
from safetensors.torch import save_file
from transformers.models.visual_bert import modeling_visual_bert as stock
from transformers.models.visual_bert.configuration_visual_bert import VisualBertConfig as StockConfig

from modeling_visualbert.answers import pythia_answers
from modeling_visualbert.cli import main
from modeling_visualbert.convert.visualbert import (
    convert_original_checkpoint,
    convert_published_checkpoint,
    load_weights,
    rename_original_key,
    summarise,
)

PUBLISHED = {  # the architectures that `uclanlp` published
    "pretraining": stock.VisualBertForPreTraining,
    "vqa": stock.VisualBertForQuestionAnswering,
    "vcr": stock.VisualBertForMultipleChoice,
    "nlvr2": stock.VisualBertForVisualReasoning,
}


def save_as_published(folder, head, **config_fields):
    """What the Hub holds: a pickled state dict with old buffers, and a config without answers."""
    config = StockConfig(**{**SIZES, "num_labels": 2, **config_fields})
    model = randomise(PUBLISHED[head](config))
    weights = dict(model.state_dict())
    weights["visual_bert.embeddings.position_ids"] = torch.arange(config.max_position_embeddings)[None]
    weights["visual_bert.embeddings.token_type_ids"] = torch.zeros(1, config.max_position_embeddings, dtype=torch.long)
    torch.save(weights, folder / "pytorch_model.bin")
    fields = {**config.to_dict(), "architectures": [type(model).__name__]}
    (folder / "config.json").write_text(json.dumps(fields))
    return model


class Hostile:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_original_file_gives_the_recorded_numbers(name):
    case = golden(name)
    model, _ = convert_original_checkpoint(GOLDEN / f"{name}.th", num_attention_heads=4)
    output = model(**case.inputs, **case.labels)
    logits = scores_of(case.task, output)
    recorded = case.outputs["flickr_attention_scores" if name == "flickr" else "logits"].view_as(logits)
    visible = case.visible.view_as(logits)
    assert compare(logits[visible], recorded[visible], "values").of_tolerance <= 1.0
    assert compare(output.loss, case.outputs["loss"], "losses").of_tolerance <= 1.0


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_report_of_an_original_file_is_complete(name):
    weights = load_weights(GOLDEN / f"{name}.th")
    model, report = convert_original_checkpoint(GOLDEN / f"{name}.th", num_attention_heads=4)
    assert [item.original for item in report if item.original] == list(weights)
    assert sorted(item.name for item in report if item.name) == sorted(model.state_dict())
    for item in report:
        expected = "tied" if item.name and ".decoder." in item.name else "loaded"
        assert item.status == expected, item
        if item.original:
            assert item.shape == tuple(weights[item.original].shape)
            assert torch.equal(model.state_dict()[item.name], weights[item.original]), item


def test_report_names_skipped_tensors(tmp_path):
    weights = load_weights(GOLDEN / "multichoice.th")
    weights["detector.conv.weight"] = torch.ones(2, 3)
    torch.save(weights, tmp_path / "vcr.th")
    _, report = convert_original_checkpoint(tmp_path / "vcr.th", num_attention_heads=4)
    odd = {(item.original, item.name): (item.status, item.shape) for item in report if item.status != "loaded"}
    assert odd == {("detector.conv.weight", None): ("skipped", (2, 3))}
    assert summarise(report) == f"{len(weights) - 1} loaded, 1 skipped"


@pytest.mark.parametrize(
    "value, message",
    [
        (None, "the weights lack visual_bert.pooler.dense.bias; expected every tensor of VisualBertForMultipleChoice"),
        (math.nan, "'visual_bert.pooler.dense.bias' holds NaN or infinity; expected finite weights"),
    ],
)
def test_weights_that_are_missing_or_not_finite_are_refused(tmp_path, value, message):
    weights = load_weights(GOLDEN / "multichoice.th")
    if value is None:
        del weights["bert.bert.pooler.dense.bias"]
    else:
        weights["bert.bert.pooler.dense.bias"][3] = value
    torch.save(weights, tmp_path / "vcr.th")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'vcr.th'}: {message}")):
        convert_original_checkpoint(tmp_path / "vcr.th", num_attention_heads=4)


def test_another_head_than_that_of_the_file_is_refused():
    with pytest.raises(ValueError, match="lack attention.key.bias, .*; expected every tensor of VisualBertForRegion"):
        convert_original_checkpoint(GOLDEN / "multichoice.th", "flickr30k", num_attention_heads=4)
    with pytest.raises(ValueError, match=r"'cls.weight' is missing; this is not a VisualBERT checkpoint for vqa"):
        convert_original_checkpoint(GOLDEN / "pretraining.th", "vqa", num_attention_heads=4)


def test_names_of_2018_and_of_the_wrapper():
    renamed = {
        "bert.bert.embeddings.LayerNorm.gamma": "visual_bert.embeddings.LayerNorm.weight",
        "bert.bert.encoder.layer.3.output.LayerNorm.beta": "visual_bert.encoder.layer.3.output.LayerNorm.bias",
        "bert.encoder.layer.0.output.dense.bias": "visual_bert.encoder.layer.0.output.dense.bias",
        "bert.bert.embeddings.projection.bias": "visual_bert.embeddings.visual_projection.bias",
        "bert.bert.embeddings.position_embeddings_visual.weight": (
            "visual_bert.embeddings.visual_position_embeddings.weight"
        ),
        "bert.classifier.weight": "cls.weight",
        "bert.flickr_attention.key.bias": "attention.key.bias",
        "bert.cls.predictions.bias": "cls.predictions.bias",
    }
    assert {key: rename_original_key(key) for key in renamed} == renamed


def test_late_fusion_is_recognised(tmp_path):
    case = golden("bypass")
    torch.save(case.weights, tmp_path / "bypass.th")
    model, _ = convert_original_checkpoint(tmp_path / "bypass.th", num_attention_heads=4)
    assert model.config.bypass_transformer
    logits = model(**case.inputs).prediction_logits
    assert compare(logits, case.outputs["logits"], "values").of_tolerance <= 1.0


@pytest.mark.parametrize("head", PUBLISHED)
def test_published_folder_gives_the_numbers_of_transformers(head, tmp_path):
    theirs = save_as_published(tmp_path, head)
    ours, report = convert_published_checkpoint(tmp_path)
    inputs = inputs_for(head)
    inputs.pop("image_text_alignment", None)  # not flattened over choices there
    torch.testing.assert_close(scores_of(head, ours(**inputs)), scores_of(head, theirs(**inputs)), atol=1e-5, rtol=1e-5)
    assert ours.config.pad_token_id == 0 and not ours.training
    assert {item.name for item in report if item.name} == ours.state_dict().keys()
    skipped = [item.original for item in report if item.status == "skipped"]
    assert skipped == ["visual_bert.embeddings.position_ids", "visual_bert.embeddings.token_type_ids"]


def test_published_answers_get_their_names(tmp_path):
    save_as_published(tmp_path, "vqa", num_labels=3129)
    labels = json.loads((tmp_path / "config.json").read_text())["id2label"]
    assert labels["0"] == "LABEL_0" and len(labels) == 3129
    model, _ = convert_published_checkpoint(tmp_path)
    assert tuple(model.config.id2label[index] for index in range(3129)) == pythia_answers()
    assert model.config.label2id[pythia_answers()[7]] == 7


def test_published_folder_without_a_tensor_is_refused(tmp_path):
    save_as_published(tmp_path, "nlvr2")
    weights = torch.load(tmp_path / "pytorch_model.bin")
    del weights["cls.bias"]
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"the weights lack cls\.bias; expected every tensor of VisualBertForVisualR"):
        convert_published_checkpoint(tmp_path)


def test_weights_of_something_else_are_refused(tmp_path):
    """Not a random model, whatever the folder holds."""
    save_as_published(tmp_path, "nlvr2")
    others = {f"backbone.{i}.weight": torch.ones(2, 3) for i in range(5)}
    save_file(others, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"0 of the \d+ tensors of VisualBertForVisualReasoning .*'backbone\.0\.weight'"
    ):
        convert_published_checkpoint(tmp_path)
    assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 2
    (tmp_path / "config.json").write_text("{}")
    assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 2
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json; expected one beside the weights"):
        convert_published_checkpoint(tmp_path)
    assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_hardly_any_tensor_of_an_original_file(tmp_path):
    weights = load_weights(GOLDEN / "nlvr.th")
    few = {key: value for key, value in weights.items() if re.search(r"classifier|embeddings\.|0\.intermediate", key)}
    torch.save({**few, "bert.bert.encoder.layer.3.output.dense.bias": torch.zeros(48)}, tmp_path / "few.th")
    with pytest.raises(ValueError, match=r"few\.th: \d+ of the \d+ tensors of VisualBertForVisualReasoning are in it"):
        convert_original_checkpoint(tmp_path / "few.th", num_attention_heads=4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"nonsense", r"model\.safetensors: damaged weights, expected safetensors"),
        ("pytorch_model.bin", b"nonsense", r"pytorch_model\.bin: cannot be used"),
        ("config.json", b'{"hidden_size": "large"}', r"config\.json: cannot be used: .*hidden_size"),
        ("config.json", b'{"hidden_size": 52, "num_attention_heads": 4}', r"pytorch_model\.bin: cannot be used"),
    ],
)
def test_bad_files_of_a_published_folder_are_one_line(tmp_path, capsys, name, content, message):
    save_as_published(tmp_path, "nlvr2")
    if name == "config.json":
        fields = json.loads((tmp_path / name).read_text())
        content = json.dumps({**fields, **json.loads(content)}).encode()
    (tmp_path / name).write_bytes(content)
    assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_unknown_architecture_is_refused(tmp_path):
    save_as_published(tmp_path, "nlvr2")
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(ValueError, match="BertForMaskedLM"):
        convert_published_checkpoint(tmp_path)


def old_file(content, **options):
    """As older versions of torch wrote it."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("old_format", [False, True])
def test_hostile_pickle_is_refused_and_not_run(tmp_path, old_format):
    path, trace = tmp_path / "hostile.th", tmp_path / "code_was_run"
    weights = {"bert.classifier.weight": torch.ones(2, 2), "bert.classifier.bias": Hostile(trace)}
    torch.save(weights, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(ValueError, match=r"hostile\.th.*safely"):
        convert_original_checkpoint(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)["bert.classifier.bias"].close()
    assert trace.exists(), "the file is not hostile, so this test shows nothing"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": 1.0}, protocol=4), "not written by torch.save"),
        (old_file({"a": torch.zeros(2)})[:15] + b"\x80\x02\x82\x01.", "Unsupported operand 130"),
        (old_file({"a": torch.zeros(2)}, pickle_protocol=4), "Unsupported operand 149"),
        (old_file({1: torch.zeros(2)}), "expected a dict of tensors by name, found the name 1"),
    ],
)
def test_what_is_no_file_of_tensors_by_name_is_one_line(tmp_path, content, message, capsys, recwarn):
    (tmp_path / "a.th").write_bytes(content)
    assert main(["convert", str(tmp_path / "a.th"), str(tmp_path / "new")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"visualbert convert: {tmp_path / 'a.th'}: ") and re.search(message, line)
    assert not list(recwarn)


def test_a_number_as_a_name_in_published_weights_is_told(tmp_path):
    folder = write_checkpoint(tmp_path / "a", "nlvr2", 9)
    (folder / "pytorch_model.bin").write_bytes(old_file({1: torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: has the key 1; expected tensors by name"):
        convert_published_checkpoint(folder)


def test_hostile_published_weights_are_refused_and_not_run(tmp_path):
    save_as_published(tmp_path, "nlvr2")
    torch.save({"cls.bias": Hostile(tmp_path / "code_was_run")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="[Ww]eights.?only"):
        convert_published_checkpoint(tmp_path)
    assert not (tmp_path / "code_was_run").exists()


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_pickle_under_the_name_of_safetensors(tmp_path, suffix):
    save_as_published(tmp_path, "nlvr2")
    torch.save({"cls.bias": Hostile(tmp_path / "code_was_run")}, tmp_path / f"model.{suffix}")
    (tmp_path / f"model.{suffix}").rename(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_weights(tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(Exception, match="(?i)header|safetensors"):
        convert_published_checkpoint(tmp_path)
    assert not (tmp_path / "code_was_run").exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 2000, 150_000, -1])
def test_truncated_original_file(tmp_path, kept):
    path = tmp_path / "cut.th"
    path.write_bytes((GOLDEN / "flickr.th").read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cut\.th"):
        load_weights(path)


@pytest.mark.parametrize("kept", [0, 7, 300, -1])
def test_truncated_safetensors_file(tmp_path, kept):
    path = tmp_path / "cut.safetensors"
    path.write_bytes((GOLDEN / "nlvr.safetensors").read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cut\.safetensors"):
        load_weights(path)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("bert.bert.pooler.dense.weight", (48, 47)),
        ("bert.bert.embeddings.token_type_embeddings_visual.weight", (3, 48)),
        ("bert.bert.encoder.layer.2.output.dense.weight", (48, 95)),
    ],
)
def test_wrong_shape_names_the_tensor(tmp_path, key, shape):
    weights = load_weights(GOLDEN / "nlvr.th")
    torch.save({**weights, key: torch.zeros(shape)}, tmp_path / "shapes.th")
    with pytest.raises(ValueError, match=rf"{key}.*{shape[0]}, {shape[1]}"):
        convert_original_checkpoint(tmp_path / "shapes.th", num_attention_heads=4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bert.bert.embeddings.word_embeddings.weight", torch.zeros(3)),
        ("bert.bert.embeddings.position_embeddings.weight", torch.zeros(())),
        ("bert.classifier.weight", torch.zeros(())),
        ("bert.bert.embeddings.projection.weight", torch.zeros(0, 0)),
    ],
)
def test_odd_shapes_are_one_line(tmp_path, capsys, key, value):
    torch.save({**load_weights(GOLDEN / "nlvr.th"), key: value}, tmp_path / "odd.th")
    assert main(["convert", str(tmp_path / "odd.th"), str(tmp_path / "out"), "--num_attention_heads", "4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"visualbert convert: {tmp_path / 'odd.th'}: ") and error.count("\n") == 1


def test_things_that_are_not_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.th"):
        load_weights(tmp_path / "nothing.th")
    torch.save([torch.ones(2)], tmp_path / "list.th")
    with pytest.raises(ValueError, match="found list"):
        load_weights(tmp_path / "list.th")
    torch.save({"some.weight": torch.ones(2)}, tmp_path / "other.th")
    with pytest.raises(ValueError, match="no known head"):
        convert_original_checkpoint(tmp_path / "other.th")
    with pytest.raises(ValueError, match="unknown task 'gqa'"):
        convert_original_checkpoint(GOLDEN / "nlvr.th", task="gqa")
    twice = {**load_weights(GOLDEN / "nlvr.th"), "classifier.weight": torch.zeros(2, 48)}
    torch.save(twice, tmp_path / "twice.th")
    with pytest.raises(ValueError, match=r"both become 'cls\.weight'"):
        convert_original_checkpoint(tmp_path / "twice.th")
