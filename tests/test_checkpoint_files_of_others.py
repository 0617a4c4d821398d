"""Checkpoints with files that are damaged, lie or mean harm: each is refused in one line that names the file."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import save_checkpoint_and_image
from transformers import AutoConfig

from modeling_visualbert import VisualBertConfig, VisualBertForQuestionAnswering, VisualBertProcessor
from modeling_visualbert.checkpoints import load_inner_region_encoder
from modeling_visualbert.cli import main
from modeling_visualbert.convert.visualbert import convert_original_checkpoint
from modeling_visualbert.tokenizer import open_tokenizer

QUESTION = "Is there a red star?"
DIGITS = "9" * 5000


def test_a_missing_package_stays_one_that_is_missing(world, tmp_path):
    """The files are not to blame, but which ones need it is said."""
    shutil.copytree(world / "vqa", tmp_path / "vqa")
    fields = json.loads((tmp_path / "vqa" / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "vqa" / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ImportError, match=f"^{tmp_path}/vqa: .*pip install"):
        VisualBertForQuestionAnswering.from_pretrained(tmp_path / "vqa")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A complete checkpoint and an image."""
    return save_checkpoint_and_image(tmp_path_factory.mktemp("world"), "files")


@pytest.fixture
def copied(world, tmp_path):
    """A copy of the checkpoint, one of whose files may be written anew."""
    folder = tmp_path / "copied"
    shutil.copytree(world / "vqa", folder, copy_function=os.link)
    for file in (*folder.glob("*.json"), folder / "model.safetensors"):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    return folder


def change(path, **fields):
    """Fields of a JSON file; a name with dots leads inside."""
    content = json.loads(path.read_text())
    for name, value in fields.items():
        *outer, last = name.split("__")
        inside = content
        for key in outer:
            inside = inside[key]
        inside[last] = value
    path.write_text(json.dumps(content))


def refused(folder, world, capsys):
    """What `visualbert ask` says, in one line, behind its name."""
    assert main(["ask", "--model", str(folder), str(world / "image.png"), QUESTION]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("visualbert ask: ")


TEXTS = {
    "cut off": (lambda text: text[:200], "malformed JSON at line "),
    "empty": (lambda text: b"", "malformed JSON at line 1, column 1: "),
    "another encoding": (lambda text: text.decode().encode("utf-16"), "not UTF-8 text at byte 0"),
    "a list": (lambda text: b"[" + text + b"]", "holds a list; expected a JSON object"),
    "nested": (lambda text: b'{"a":' * 20_000, "malformed JSON: maximum recursion depth exceeded"),
    "digits": (lambda text: b'{"a": %s}' % DIGITS.encode(), "malformed JSON: Exceeds the limit (4300 digits)"),
    "not a number": (lambda text: b'{"a": NaN}', "malformed JSON: NaN is no number of JSON"),
    "zeros": (lambda text: text.replace(b"1", b"\0"), "malformed JSON at line "),
    "large": (lambda text: text + b" " * (11 << 20), "bytes; expected at most 10,485,760"),
}


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("case", TEXTS)
def test_json_that_cannot_be_read_is_named_with_the_place(case, file, copied, world, capsys):
    damage, said = TEXTS[case]
    path = copied / file
    path.write_bytes(damage(path.read_bytes()))
    line = refused(copied, world, capsys)
    assert line.startswith(f"{path}: ") and said in line
    own = VisualBertConfig if file == "config.json" else VisualBertProcessor
    with pytest.raises(ValueError) as error:
        own.from_pretrained(copied)
    assert str(error.value) == line


FIELDS = {
    "config.json": [
        ({"hidden_size": 10**12}, "cannot be used: hidden_size is 1000000000000; expected at most 1,000,000,000"),
        ({"num_hidden_layers": 10**6}, "cannot be used: num_hidden_layers is 1000000; expected at most 256"),
        (
            {"region_encoder_config__detector_config__backbone_config__depths": [1, 1, 10**5]},
            "cannot be used: region_encoder_config.detector_config.backbone_config.depths is 100000; expected at most 256",
        ),
        ({"num_labels": 10**7}, "cannot be used: num_labels is 10000000; expected at most 100,000"),
        (
            {"region_encoder_config__detector_config__dropout": 7},
            "detector_config.dropout is 7; expected a probability",
        ),
        (
            {"region_encoder_config__detector_config__matcher_bbox_cost": "5.0"},
            "'matcher_bbox_cost' expected float, got str",
        ),
        (
            {"region_encoder_config": True},
            "cannot be used: AttributeError: 'bool' object has no attribute 'region_dim'",
        ),
        ({"layer_norm_eps": [1]}, "cannot be used: Field 'layer_norm_eps' expected float, got list"),
        ({"eos_token_id": 1e400}, "malformed JSON: Infinity is no number of JSON"),
        ({"architectures": 3}, "architectures is 3; expected a list of names"),
        (
            {"vocab_size": 10**7},
            "word_embeddings.weight would have shape (10000000, 32); expected sizes that fit the weights",
        ),
    ],
    "processor_config.json": [
        ({"answers": "yes"}, "cannot be used: answers 'yes'; expected a list of texts"),
        ({"answers": [1, 2, 3, 4, 5]}, "cannot be used: answers [1, 2, 3, 4, 5]; expected a list of texts"),
        ({"region_dim": "73"}, "cannot be used: region_dim '73'; expected the length of a region feature"),
        ({"whole_image": 1}, "cannot be used: whole_image 1; expected true or false"),
        ({"max_length": "long"}, "cannot be used: max_length 'long'; expected a number of tokens"),
        ({"image_processor": []}, "cannot be used: "),
        ({"image_processor__auto_map": 3}, "cannot be used: TypeError: argument of type 'int' is not iterable"),
        ({"image_processor__size": {"height": 10**6, "width": 10**6}}, "expected sides of 1 to 4,096 pixels"),
        (
            {"image_processor__size": {"height": True, "width": 9}},
            "cannot be used: size {'height': True, 'width': 9}: ",
        ),
        ({"image_processor__size": None}, "`size` and `resample` must be specified"),
        (
            {"image_processor__image_mean": ["a", 0, 0]},
            "image_mean ['a', 0, 0]; expected a number for each of 3 channels",
        ),
        ({"image_processor__image_std": [1e9, 1, 1]}, "expected a positive number for each of 3 channels"),
        ({"image_processor__rescale_factor": 0.0}, "rescale_factor 0.0; expected a number other than 0"),
        ({"image_processor__resample": 100}, "resample 100; expected one of PIL.Image.Resampling"),
    ],
    "tokenizer_config.json": [
        ({"auto_map": ["evil.Evil"]}, "cannot be used: "),
        ({"unk_token": -1}, "cannot be used: TypeError: Special token unk_token has to be either str or AddedToken"),
    ],
    "tokenizer.json": [
        ({"post_processor": 3}, "cannot be used: "),
        ({"model__vocab__star": "x"}, "cannot be used: TypeError: "),
        ({"model__vocab__star": 10**12}, "cannot be used: TypeError: "),
    ],
}


@pytest.mark.parametrize(
    ("file", "fields", "said"), [(file, *case) for file, cases in FIELDS.items() for case in cases]
)
def test_fields_that_cannot_be_are_named_with_their_file(file, fields, said, copied, world, capsys):
    change(copied / file, **fields)
    line = refused(copied, world, capsys)
    assert line.startswith(f"{copied / file}: ") and said in line, line


@pytest.mark.parametrize("value", [3, True, {"a": 1}])
def test_architectures_that_are_no_list_are_named_by_the_model_too(value, copied):
    change(copied / "config.json", architectures=value)
    with pytest.raises(ValueError, match=r"config.json: architectures is .*; expected a list of names"):
        VisualBertForQuestionAnswering.from_pretrained(copied)


def test_a_long_model_type_makes_no_long_message(copied, world, capsys):
    change(copied / "config.json", model_type=["visual_bert"] * 1000)
    line = refused(copied, world, capsys)
    assert "config.json has model_type ['visual_bert', 'visual_bert'" in line and len(line) < 300


NAMED_BY_FOLDER = [  # each file is right by itself
    ("tokenizer.json", {"model__vocab": {}}, "the tokenizer has no word pieces; expected a BERT tokenizer"),
    (
        "tokenizer_config.json",
        {"model_max_length": "x"},
        "the tokenizer has model_max_length 'x'; expected a number of tokens",
    ),
    (
        "tokenizer.json",
        {"model__vocab__star": 3},
        "the tokenizer's word pieces are not numbered from 0 to 224, each once",
    ),
    (
        "processor_config.json",
        {"answers": ["a", "b"]},
        "2 answers, but the model has 5; expected those of its id2label",
    ),
    (
        "processor_config.json",
        {"answers": ["<unk>", "2", "yes", "red", "no"]},
        "answers[2] is 'yes', but the model's is 'no'; expected those of its id2label",
    ),
    ("processor_config.json", {"region_dim": 3}, "region_dim 3, but the model reads features of 73 numbers"),
    (
        "processor_config.json",
        {"image_processor__size": {"height": 1, "width": 160}},
        "fails on images that were made 1 x 160 pixels (RuntimeError: ",
    ),
]


@pytest.mark.parametrize(("file", "fields", "said"), NAMED_BY_FOLDER)
def test_files_that_do_not_fit_together_are_named_with_the_folder(file, fields, said, copied, world, capsys):
    change(copied / file, **fields)
    line = refused(copied, world, capsys)
    assert str(copied) in line and said in line, line


@pytest.mark.parametrize("load", [AutoConfig.from_pretrained, VisualBertForQuestionAnswering.from_pretrained])
def test_fields_are_named_through_the_classes_of_transformers(load, copied):
    change(copied / "config.json", num_hidden_layers="one")
    with pytest.raises(
        ValueError, match=rf"{copied}/config.json: cannot be used: Field 'num_hidden_layers' expected int"
    ):
        load(copied)


def test_a_region_encoder_inside_is_not_larger_than_its_weights(copied):
    change(copied / "config.json", region_encoder_config__detector_config__encoder_ffn_dim=10**7)
    with pytest.raises(ValueError, match=r"config.json: .* would have shape \(10000000, 64\); expected sizes that fit"):
        load_inner_region_encoder(copied)


def test_a_header_of_a_hundred_megabytes_is_refused(copied, world, capsys):
    path = copied / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    padding = 11 << 20
    header = (length + padding).to_bytes(8, "little") + content[8 : 8 + length] + b" " * padding
    path.write_bytes(header + content[8 + length :])
    line = refused(copied, world, capsys)
    assert line == f"{path}: a header of {length + padding:,} bytes; expected at most 10,485,760"


def test_an_index_names_files_beside_it_only(copied, world, tmp_path, capsys):
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    save_file(weights, tmp_path / "elsewhere.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "../elsewhere.safetensors")}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    line = refused(copied, world, capsys)
    assert line.startswith(
        f"{copied}/model.safetensors.index.json: names the file '../elsewhere.safetensors'; expected"
    )


def test_the_tokenizer_of_a_training_run_is_named_too(copied):
    (copied / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match=rf"^{copied}/tokenizer.json: cannot be used: "):
        open_tokenizer(copied)


@pytest.mark.parametrize("is_archive", [True, False])
def test_a_small_file_with_large_tensors_is_refused(is_archive, copied, world, tmp_path, capsys):
    weights = load_file(copied / "model.safetensors")
    weights["visual_bert.embeddings.word_embeddings.weight"] = torch.zeros(1).expand(3_000_000, 32)
    (copied / "model.safetensors").unlink()
    path = copied / "pytorch_model.bin"
    torch.save(weights, path, _use_new_zipfile_serialization=is_archive)
    assert refused(copied, world, capsys).startswith(f"{path}: tensors of 38")
    with pytest.raises(
        ValueError, match=rf"^{path}: tensors of 38.* bytes in a file of 2.*; expected one that holds its"
    ):
        convert_original_checkpoint(path, "vqa")
