"""A vision tower is trained with the model: whole, its last blocks, or through adapters, which are merged when it is saved."""

import json
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from published_layouts import write_tokenizer
from safetensors.torch import load_file
from table_files import write_photos, write_table
from test_towers import answering, load_as_tower, made, pixels
from torch import nn

from modeling_visualbert import GridRegionEncoder, QueryRegionEncoder
from modeling_visualbert.cli import main
from modeling_visualbert.tasks.common import DETECTOR
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
from modeling_visualbert.training.args import TrainArgs
from modeling_visualbert.training.loop import train
from modeling_visualbert.training.optimizer import make_optimizer, rates_of, set_rates
from modeling_visualbert.training.towers import add_adapters, main_blocks, merged_weights, train_last_layers

BLOCKS = {  # how many, of the towers of the matrix
    "resnet": 4,
    "convnext": 4,
    "swin": 2,
    "pvt_v2": 4,
    "dinov2": 2,
    "dinov3_vit": 2,
    "beit": 2,
    "vit": 2,
    "efficientnet": 2,
    "mobilenet_v1": 26,
    "mobilenet_v2": 16,
    "regnet": 4,
    "mobilevit": 5,
    "segformer": 4,
    "clip": 2,
    "siglip": 2,
    "siglip2": 2,
}


def tower(family):
    return GridRegionEncoder.from_backbone(load_as_tower(made(family)), grid_rows=2, grid_columns=2)


@pytest.mark.parametrize("family", BLOCKS)
def test_only_the_last_block_and_what_follows_it_is_trained(family):
    encoder = tower(family)
    name, blocks = main_blocks(encoder.backbone)
    assert len(blocks) == BLOCKS[family]
    train_last_layers(encoder, 1)
    model = answering(encoder)
    assert model.config.freeze_region_encoder
    model.config.freeze_region_encoder = False
    model.visual_bert.region_encoder = encoder
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    model.train()
    assert not any(module.training for block in blocks[:-1] for module in block.modules())
    assert blocks[-1].training
    inputs = {"input_ids": torch.tensor([[2, 7, 8, 3]] * 2), "pixel_values": pixels(count=2)}
    model(**inputs, labels=torch.rand(2, 3)).loss.backward()
    trained = {key for key, value in encoder.named_parameters() if value.grad is not None and value.grad.any()}
    last = f"backbone.{name}.{len(blocks) - 1}."
    assert any(key.startswith(last) for key in trained)
    names = [key for key, _ in encoder.named_parameters()]
    first = next(number for number, key in enumerate(names) if key.startswith(last))
    assert trained <= set(names[first:])
    frozen = [key for key in before if key not in names[first:] and not key.startswith((last, "feature_"))]
    for key in frozen:  # running means too
        follows = any(key.startswith(later.rpartition(".")[0]) for later in names[first:])
        assert follows or before[key].equal(encoder.state_dict()[key]), key


def test_a_whole_tower_trains_as_before():
    encoder = tower("resnet").train()
    assert all(module.training for module in encoder.modules())
    encoder.requires_grad_(False).train()
    assert not any(module.training for module in encoder.backbone.modules() if [*module.parameters()])


def test_more_layers_than_there_are_and_other_encoders_are_refused():
    with pytest.raises(
        ValueError, match=r"^--train_backbone_layers 3: the tower has 2 blocks or stages; expected at most"
    ):
        train_last_layers(tower("vit"), 3)
    detector = QueryRegionEncoder.from_pretrained(DETECTOR)
    with pytest.raises(ValueError, match=r"^--train_backbone_layers 1: the region encoder is a QueryRegionEncoder"):
        train_last_layers(detector, 1)
    with pytest.raises(ValueError, match=r"^--backbone_lora_rank 4: the region encoder is a QueryRegionEncoder"):
        add_adapters(detector, 4)


def test_without_peft_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ImportError, match=r"^--backbone_lora_rank needs PEFT: pip install \"modeling-visualbert\[lora\]\"$"
    ):
        add_adapters(tower("vit"), 4)


@pytest.mark.parametrize("family", ["clip", "siglip2", "dinov2", "swin", "efficientnet", "regnet"])
def test_adapters_are_merged_under_the_old_names(family):
    pytest.importorskip("peft")
    encoder = tower(family)
    plain = {key: value.clone() for key, value in encoder.state_dict().items()}
    add_adapters(encoder, 2)
    trained = {key for key, value in encoder.named_parameters() if value.requires_grad}
    assert trained and all("lora_" in key for key in trained)
    encoder.train()
    norms = [module for module in encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert not any(module.training for module in norms)
    encoder.eval()
    with torch.no_grad():
        for key, value in encoder.named_parameters():
            if key in trained:
                value.normal_(std=0.2)
    changed = encoder(pixels()).visual_embeds
    weights = merged_weights(encoder, encoder.state_dict())
    assert weights.keys() == plain.keys()
    again = tower(family)
    again.load_state_dict(weights)
    torch.testing.assert_close(again(pixels()).visual_embeds, changed, atol=1e-3, rtol=1e-3)
    rounding = (again(pixels()).visual_embeds - changed).abs().max()
    assert (tower(family)(pixels()).visual_embeds - changed).abs().max() > 100 * rounding
    base = {key.replace("base_layer.", ""): value for key, value in encoder.state_dict().items() if "lora_" not in key}
    assert all(value.equal(plain[key]) for key, value in base.items())  # the model itself was not touched


def test_the_tower_has_a_learning_rate_of_its_own():
    model = answering(tower("vit"))
    model.visual_bert.region_encoder.requires_grad_(True)
    args = TrainArgs("x", learning_rate=1e-3, backbone_learning_rate=1e-5, weight_decay=0.1)
    optimizer = make_optimizer(model, args)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.1, 0.0]
    mine = {id(parameter) for group in optimizer.param_groups[2:] for parameter in group["params"]}
    assert mine == {id(parameter) for parameter in model.visual_bert.region_encoder.parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len([*model.parameters()])
    set_rates(optimizer, args, 0.5)
    assert rates_of(optimizer) == {"learning_rate": 5e-4, "backbone_learning_rate": 5e-6}
    plain = TrainArgs("x", learning_rate=1e-3)
    optimizer = make_optimizer(model, plain)
    set_rates(optimizer, plain, 0.5)
    assert len(optimizer.param_groups) == 2 and rates_of(optimizer) == {"learning_rate": 5e-4}


def test_what_bert_does_not_have_has_a_learning_rate_of_its_own():
    model = answering(tower("vit"))
    args = TrainArgs("x", learning_rate=1e-4, head_learning_rate=1e-3)
    optimizer = make_optimizer(model, args)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    own = {names[id(parameter)] for group in optimizer.param_groups[2:] for parameter in group["params"]}
    projection = "visual_bert.embeddings.visual_projection"
    assert own == {"cls.weight", "cls.bias", f"{projection}.weight", f"{projection}.bias"}
    set_rates(optimizer, args, 0.5)
    assert rates_of(optimizer) == {"learning_rate": 5e-5, "head_learning_rate": 5e-4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Photos, a table of questions about them, a tokenizer, and a CLIP of two layers."""
    folder = tmp_path_factory.mktemp("data")
    write_photos(folder)
    rows = [
        {"image": f"{number}.png", "question": f"what is in photo {number}?", "answer": ("star", "circle")[number % 2]}
        for number in range(4)
    ]
    write_tokenizer(folder / "tokenizer")
    made("clip").save_pretrained(folder / "clip")
    return {
        "train_file": write_table(folder / "a.csv", rows),
        "validation_file": write_table(folder / "b.csv", rows),
        "tokenizer": str(folder / "tokenizer"),
        "grid_backbone": str(folder / "clip"),
        "grid_size": "2",
    }


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
RATES = {"learning_rate": 1e-2, "backbone_learning_rate": 1e-2, "schedule": "constant", "warmup_ratio": 0.0}
PARTS = {
    "whole": ({"train_region_encoder": True}, "embeddings.patch_embedding.weight"),
    "last layer": ({"train_backbone_layers": 1}, "encoder.layers.1.mlp.fc1.weight"),
    "adapters": ({"backbone_lora_rank": 2}, "encoder.layers.0.mlp.fc1.weight"),
    "averaged adapters": ({"backbone_lora_rank": 2, "ema_decay": 0.5}, "encoder.layers.0.mlp.fc1.weight"),
}


def run(folder, data, **changes):
    fields = {"from_pixels": True, "max_steps": 4, "batch_size": 4, "dropout": 0.0, "save_steps": 2, "cpu": True}
    args = VqaArgs(str(folder), **{**SIZES, **RATES, **data, **fields, **changes})
    accelerator = Accelerator(cpu=True)
    train(vqa_task(args, accelerator), args, accelerator)
    return load_file(folder / "best" / "model.safetensors")


@pytest.mark.parametrize("part", PARTS)
def test_a_run_trains_its_part_and_saves_plain_weights(part, data, tmp_path):
    if part.endswith("adapters"):
        pytest.importorskip("peft")
    flags, example = PARTS[part]
    weights = run(tmp_path / "run", data, **flags)
    prefix = "visual_bert.region_encoder.backbone."
    trained = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    original = load_as_tower(made("clip")).state_dict()
    assert trained.keys() == original.keys()
    changed = {key for key, value in trained.items() if not value.equal(original[key])}
    assert example in changed
    if part == "last layer":
        assert all(key.startswith(("encoder.layers.1.", "post_layernorm.")) for key in changed)
    if part.endswith("adapters"):
        assert all(key.startswith("encoder.layers.") and key.endswith("weight") for key in changed)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any(entry.get("backbone_learning_rate") == 1e-2 for entry in log)


def test_small_images_stay_small_where_nothing_is_learned_for_a_size(data, tmp_path):
    """The photos have 24 x 32 pixels; the tower of CLIP has positions for 64 x 64."""
    fields = {**SIZES, **data, "grid_size": None, "cpu": True}
    sizes = {}
    for name in ("small", data["grid_backbone"]):
        task = vqa_task(
            VqaArgs(str(tmp_path), **{**fields, "grid_backbone": name, "from_pixels": True}), Accelerator(cpu=True)
        )
        config = task.model.config.region_encoder_config
        pixels_of = task.collate([task.splits["train"][0]])["pixel_values"]
        sizes[name] = (*pixels_of.shape[2:], config.grid_rows, config.grid_columns)
    assert sizes == {"small": (24, 32, 2, 2), data["grid_backbone"]: (64, 64, 4, 4)}


def test_features_of_images_that_were_prepared_otherwise_are_refused(data, tmp_path):
    photos = str(Path(data["train_file"]).parent)
    encoder = ["--grid_backbone", data["grid_backbone"], "--grid_size", "2"]
    for name, flags in (("same", []), ("other", ["--image_size", "96"])):
        assert main(["extract", photos, str(tmp_path / name), *encoder, *flags, "--cpu"]) == 0
    fields = {**SIZES, **data, "cpu": True}
    task = vqa_task(VqaArgs(str(tmp_path), **fields, features_dir=str(tmp_path / "same")), Accelerator(cpu=True))
    assert isinstance(task.model.visual_bert.region_encoder, GridRegionEncoder)  # it answers from pixels too
    assert task.collate([task.splits["train"][0]])["visual_embeds"].shape == (1, 4, 41)
    with pytest.raises(
        ValueError, match="were prepared in another way .*; expected the --image_size of `visualbert extract`"
    ):
        vqa_task(VqaArgs(str(tmp_path), **fields, features_dir=str(tmp_path / "other")), Accelerator(cpu=True))
    args = VqaArgs(str(tmp_path), **fields, features_dir=str(tmp_path / "other"), image_size="96")
    assert dict(vqa_task(args, Accelerator(cpu=True)).processor.image_processor.size) == {"height": 96, "width": 96}


def test_a_run_with_adapters_is_resumed_to_the_bit(data, tmp_path):
    pytest.importorskip("peft")
    flags = {"backbone_lora_rank": 2, "evals_per_epoch": 0.01}
    whole = run(tmp_path / "whole", data, **flags)
    run(tmp_path / "parts", data, **flags, max_steps=3)
    resumed = run(tmp_path / "parts", data, **flags, resume=True)
    assert resumed.keys() == whole.keys()
    assert all(value.equal(whole[key]) for key, value in resumed.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_backbone_layers": 1}, "--train_backbone_layers needs --from_pixels"),
        ({"backbone_lora_rank": 4}, "--backbone_lora_rank needs --from_pixels"),
        ({"train_backbone_layers": 0, "from_pixels": True}, "--train_backbone_layers 0; expected at least 1"),
        (
            {"train_backbone_layers": 1, "backbone_lora_rank": 4, "from_pixels": True},
            "--train_backbone_layers with --backbone_lora_rank; expected one of them",
        ),
        ({"backbone_learning_rate": 1e-5}, "--backbone_learning_rate without --train_region_encoder; expected both"),
        ({"backbone_learning_rate": -1.0}, "--backbone_learning_rate -1.0; expected a number in"),
        ({"grid_backbone": "small", "backbone_lora_rank": 4}, "--grid_backbone small with --backbone_lora_rank"),
        ({"grid_backbone": None, "grid_size": "3"}, "--grid_size without --grid_backbone; expected both"),
    ],
)
def test_flags_that_do_not_fit_together(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        VqaArgs("run", **{"grid_backbone": "some/tower", **fields})
