"""Padding is not computed, nor what no head reads, and nothing changes by it; linear layers in the faster library."""

import importlib.util
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from helpers import HEADS, MODELS, inputs_for, labels_for, loss_of, meaningful, tiny_model
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_visualbert.hub_code import linear_visualbert, packing_visualbert
from modeling_visualbert.hub_code.linear_visualbert import apply_linear, linear
from modeling_visualbert.hub_code.packing_visualbert import Packing, packed_kernel
from modeling_visualbert.hub_code.sequence_visualbert import answer_positions

close = {"atol": 2e-5, "rtol": 1e-5}
ALL = list(MODELS)
MASK = torch.tensor([[1, 1, 1, 0, 1], [0, 1, 0, 0, 1], [1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()


def base_of(model):
    return getattr(model, "visual_bert", model)


def all_positions(model, inputs, **labels):
    """The full computation: every position of a padded batch in every layer."""
    return model(**inputs, **labels, output_hidden_states=True)


def positions_of(labels):
    """Where a batch has labels, padded with -1."""
    places = [row.nonzero()[:, 0] for row in labels != -100]
    return nn.utils.rnn.pad_sequence(places, batch_first=True, padding_value=-1)


def gradients(head, model, inputs, **options):
    model.zero_grad()
    loss_of(head, model, {**inputs, **options}).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --------------------------------------------------------------------------------------------- what is computed, exactly


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("head", ALL)
def test_results_equal_the_full_computation(head, late, attention):
    model, inputs = tiny_model(head, bypass_transformer=late), inputs_for(head, batch=5)
    model.set_attn_implementation(attention)
    expected = meaningful(head, all_positions(model, inputs), inputs)
    torch.testing.assert_close(meaningful(head, model(**inputs), inputs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("head", HEADS)
def test_gradients_equal_those_of_the_full_computation(head, late):
    model, inputs = tiny_model(head, bypass_transformer=late).train(), inputs_for(head, batch=5)
    expected = gradients(head, model, inputs, output_hidden_states=True)
    torch.testing.assert_close(gradients(head, model, inputs), expected, **close)


@pytest.mark.parametrize("head", HEADS)
def test_neither_padding_nor_unread_positions_are_computed(head):
    model, inputs = tiny_model(head).train(), inputs_for(head, batch=5)
    rows = []
    for layer in base_of(model).encoder.layer:
        layer.intermediate.register_forward_hook(lambda _, args, output: rows.append(output[..., 0].numel()))
    labels = labels_for(head, inputs)
    if head == "pretraining":
        labels["masked_positions"] = positions_of(labels["labels"])
    model(**inputs, **labels)
    visible = int(inputs["attention_mask"].sum() + inputs["visual_attention_mask"].sum())
    texts = inputs["attention_mask"].flatten(0, -2).shape[0]
    masked = labels["masked_positions"].shape[1] if head == "pretraining" else 0
    read = {"pretraining": 1 + masked, "flickr30k": 4 + inputs["visual_embeds"].shape[1]}.get(head, 1)
    assert rows == [visible, texts * read]


def test_answers_are_read_at_the_last_token_but_one():
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    for given in (mask, mask.bool(), mask.float()):
        assert answer_positions(given).tolist() == [3, 2, 0, 0]
    model, inputs = tiny_model("vqa"), inputs_for("vqa", batch=5)
    read = []
    base_of(model).register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["read_positions"]), with_kwargs=True
    )
    model(**inputs)
    model(**{name: value for name, value in inputs.items() if name != "attention_mask"})
    lengths = inputs["attention_mask"].sum(dim=1, keepdim=True)
    assert torch.equal(read[0], lengths - 2) and torch.equal(read[1], torch.full_like(lengths, 9 - 2))


def test_positions_may_be_invisible_in_any_pattern():
    model, inputs = tiny_model("base"), inputs_for("base", batch=5, text=9, regions=5)
    inputs["visual_attention_mask"] = MASK.long()
    inputs["attention_mask"][1, 3] = 0
    expected = all_positions(model, inputs).last_hidden_state
    found = model(**inputs, read_positions=torch.arange(14).expand(5, -1)).last_hidden_state
    visible = torch.cat((inputs["attention_mask"].bool(), MASK), dim=1)
    torch.testing.assert_close(found[visible], expected[visible], **close)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_who_takes_all_states_gets_those_of_padding_too(late):
    model, inputs = tiny_model("base", bypass_transformer=late), inputs_for("base", batch=5)
    torch.testing.assert_close(
        model(**inputs).last_hidden_state, all_positions(model, inputs).last_hidden_state, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("all_wanted", [False, True])
def test_read_positions_are_those_of_the_full_states(all_wanted):
    model, inputs = tiny_model("base"), inputs_for("base")
    read = torch.tensor([[3, 0, 9], [1, 1, 0], [0, 2, 9]])
    output = model(**inputs, read_positions=read, output_hidden_states=all_wanted)
    expected = model(**inputs)
    for row in range(3):
        torch.testing.assert_close(output.last_hidden_state[row], expected.last_hidden_state[row, read[row]], **close)
    torch.testing.assert_close(output.pooler_output[2], expected.pooler_output[2], **close)
    if all_wanted:
        assert output.hidden_states[-1].shape == expected.last_hidden_state.shape


def test_rows_without_anything_visible_stay_finite():
    model, inputs = tiny_model("base"), inputs_for("base")
    expected = model(**inputs).last_hidden_state
    inputs["attention_mask"][1] = inputs["visual_attention_mask"][1] = 0
    found = model(**inputs).last_hidden_state
    assert found.isfinite().all()
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], **close)


def test_checkpointed_layers_take_packed_rows():
    model, inputs = tiny_model("vqa").train(), inputs_for("vqa", batch=4)
    expected = gradients("vqa", model, inputs)
    model.activation_checkpointing_enable()
    torch.testing.assert_close(gradients("vqa", model, inputs), expected, **close)


# ------------------------------------------------------------------------------------------------- masked-LM positions


def test_logits_do_not_depend_on_labels_or_training():
    model, inputs = tiny_model("pretraining"), inputs_for("pretraining")
    labels = labels_for("pretraining", inputs)
    expected = model(**inputs).prediction_logits
    assert expected.shape[1] == sum(inputs[name].shape[1] for name in ("input_ids", "visual_embeds"))
    for output in (model(**inputs, **labels), model.train()(**inputs, **labels)):
        assert torch.equal(output.prediction_logits, expected)


@pytest.mark.parametrize("training", [False, True])
def test_masked_positions_choose_what_is_scored(training):
    model, inputs = tiny_model("pretraining"), inputs_for("pretraining")
    labels = labels_for("pretraining", inputs)
    everything = model(**inputs, **labels)
    positions = positions_of(labels["labels"])
    places = [row[row >= 0] for row in positions]
    output = model.train(training)(**inputs, **labels, masked_positions=positions)
    torch.testing.assert_close(output.loss, everything.loss, **close)
    for found, expected, place in zip(output.prediction_logits, everything.prediction_logits, places, strict=True):
        torch.testing.assert_close(found[: len(place)], expected[place], **close)
    without = model(**inputs, masked_positions=positions)
    assert without.loss is None and torch.equal(without.prediction_logits, output.prediction_logits)
    first = model(**inputs, labels=labels["labels"], masked_positions=positions[:, :1])
    some = torch.full_like(labels["labels"], -100)
    for row, place in enumerate(places):
        some[row, place[:1]] = labels["labels"][row, place[:1]]
    torch.testing.assert_close(first.loss, model.eval()(**inputs, labels=some).loss, **close)


# --------------------------------------------------------------------------------------- one image for several texts


@pytest.mark.parametrize("name", ["visual_embeds", "visual_attention_mask", "visual_token_type_ids", None])
def test_each_image_serves_the_texts_that_follow(name):
    model, inputs = tiny_model("vqa"), inputs_for("vqa", batch=6)
    shared = [name] if name else ["visual_embeds", "visual_attention_mask", "visual_token_type_ids"]
    few = {**inputs, **{key: inputs[key][::3] for key in shared}}
    many = {**inputs, **{key: inputs[key][::3].repeat_interleave(3, dim=0) for key in shared}}
    projected = []
    base_of(model).embeddings.visual_projection.register_forward_hook(lambda _, args, out: projected.append(len(out)))
    torch.testing.assert_close(model(**few).logits, model(**many).logits, **close)
    assert projected == [2 if "visual_embeds" in shared else 6, 6]


def test_images_that_do_not_divide_the_texts_are_refused():
    inputs = inputs_for("vqa", batch=6)
    with pytest.raises(ValueError, match="4 images for 6 texts"):
        tiny_model("vqa")(**{**inputs, "visual_embeds": inputs["visual_embeds"][:4]})


# -------------------------------------------------------------------------------------------------------------- packing


def attend_rows(query, key, value, starts_q, starts_k, longest_q, longest_k):
    """Variable-length attention as GPU kernels define it: [N, heads, size], rows begin at `starts`."""
    lengths = starts_k.diff()
    assert starts_q.dtype == starts_k.dtype == torch.int32 and longest_k == lengths.max()
    assert longest_q == starts_q.diff().max() and starts_q[-1] == len(query) and starts_k[-1] == len(key)
    rows = []
    for row in range(len(lengths)):
        q, k, v = (
            tensor[starts[row] : starts[row + 1]].transpose(0, 1)
            for tensor, starts in ((query, starts_q), (key, starts_k), (value, starts_k))
        )
        rows.append(F.scaled_dot_product_attention(q, k, v).transpose(0, 1))
    return torch.cat(rows)


def dense(query, key, value):
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def test_packing_keeps_every_visible_state_in_place():
    packing, states = Packing.from_mask(MASK), torch.randn(5, 5, 3)
    packed = packing.pack(states)
    assert packed.shape == (1, 14, 3) and packing.groups == ((1, 1), (2, 2), (4, 1), (5, 1))
    kept = MASK.clone()
    kept[4, 0] = True  # a row without anything visible keeps its first position
    assert torch.equal(packing.unpack(packed), states * kept[..., None])
    read = torch.tensor([[4, 0], [1, 4], [2, 3], [2, 0], [0, 3]])
    found = packing.restore_rows(packed[0][packing.places_of(read)])
    for row in range(4):
        assert torch.equal(found[row], states[row, read[row]])


@pytest.mark.parametrize("reads", [None, 1, 3])
@pytest.mark.parametrize("kernel", ["varlen", "rows"])
def test_kernels_attend_within_rows(kernel, reads, monkeypatch):
    monkeypatch.setattr(packing_visualbert, "varlen_attn", attend_rows)
    packing = Packing.from_mask(MASK, kernel)
    query, key, value = torch.randn(3, 1, 14, 2, 8)
    if reads:
        query = torch.randn(5, reads, 2, 8)
    found = packing.attend(dense, query, key, value)
    starts = F.pad(packing.row_lengths.cumsum(0), (1, 0))
    queries = starts if reads is None else reads * torch.arange(6)
    expected = torch.cat(
        [
            dense(*(t[None].transpose(1, 2) for t in (q, k, v)))[0]
            for q, k, v in zip(
                *(
                    t.flatten(0, 1).split(s.diff().tolist())
                    for t, s in ((query, queries), (key, starts), (value, starts))
                ),
                strict=True,
            )
        ]
    )
    assert found.shape == query.shape
    torch.testing.assert_close(found.flatten(0, 1), expected, **close)


def what_is_read(head, model, inputs):
    """Scores or states at some positions; the five heads but that of pre-training always read only some."""
    if head == "base":
        return model(**inputs, read_positions=torch.tensor([[0, 2]] * 5)).last_hidden_state
    if head == "pretraining":
        return model(**inputs, masked_positions=torch.tensor([[1, 2]] * 5)).prediction_logits
    return meaningful(head, model(**inputs), inputs)


@pytest.mark.parametrize("head", ALL)
def test_the_gpu_kernel_of_torch_gives_the_same(head, monkeypatch):
    """The path of a GPU, with its kernel replaced by a loop over rows."""
    model, inputs = tiny_model(head), inputs_for(head, batch=5)
    expected = what_is_read(head, model, inputs)
    calls = []
    monkeypatch.setattr(packing_visualbert, "varlen_attn", lambda *args: (calls.append(1), attend_rows(*args))[1])
    monkeypatch.setattr(packing_visualbert, "packed_kernel", lambda *_: "varlen")
    torch.testing.assert_close(what_is_read(head, model, inputs), expected, **close)
    assert len(calls) == 2


@pytest.mark.parametrize("head", ALL)
def test_flash_attention_is_told_the_lengths(head, monkeypatch):
    """The call that `transformers` hands on to flash-attention, answered by a loop over rows."""

    def flash(module, query, key, value, attention_mask, dropout, scaling, **kwargs):
        assert attention_mask is None and query.shape[0] == 1
        names = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
        heads = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        calls.append(dropout)
        return attend_rows(*heads, *(kwargs[name] for name in names))[None], None

    model, inputs = tiny_model(head), inputs_for(head, batch=5)
    expected = what_is_read(head, model, inputs)
    calls = []
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash)
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    for module in model.modules():
        if hasattr(module, "config"):
            monkeypatch.setattr(module.config, "_attn_implementation_internal", "flash_attention_2")
    torch.testing.assert_close(what_is_read(head, model, inputs), expected, **close)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("device", "dtype", "head_size", "implementation", "dropout", "kernel"),
    [
        ("cpu", torch.float32, 64, "sdpa", 0.1, "rows"),
        ("cpu", torch.float32, 64, "eager", 0.0, "rows"),
        ("cpu", torch.float32, 64, "flex_attention", 0.0, None),
        ("cuda 8.0", torch.bfloat16, 64, "sdpa", 0.0, "varlen"),
        ("cuda 7.5", torch.float16, 64, "sdpa", 0.0, None),
        ("cuda 9.0", torch.bfloat16, 12, "sdpa", 0.0, None),
        ("cuda 9.0", torch.bfloat16, 64, "sdpa", 0.1, None),
        ("cuda 9.0", torch.bfloat16, 64, "eager", 0.0, None),
        ("cuda 9.0", torch.float32, 64, "sdpa", 0.0, None),
        ("cuda 9.0", torch.bfloat16, 64, "flash_attention_2", 0.1, "flash"),
        ("cuda 9.0", torch.bfloat16, 64, "kernels-community/flash-attn2", 0.1, "flash"),
        ("meta", torch.float32, 64, "sdpa", 0.0, None),
    ],
)
def test_which_kernel(device, dtype, head_size, implementation, dropout, kernel, monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    device, _, capability = device.partition(" ")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: tuple(map(int, capability.split("."))))
    with FakeTensorMode() if device == "cuda" else nullcontext():  # a tensor that says it lies on a GPU
        states = torch.empty(1, device=device, dtype=dtype)
        assert packed_kernel(states, head_size, implementation, dropout) == kernel


# ---------------------------------------------------------------------------------------- positions that are not visible


def hide_the_text(inputs, rows):
    """Texts of the rows end where others' begin: padded on the left, or nothing but padding."""
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for row, hidden in rows.items():
        inputs["attention_mask"][row, :hidden] = 0
    return inputs


@pytest.mark.parametrize("bypass", [False, True])
@pytest.mark.parametrize("hidden", [4, 9])
@pytest.mark.parametrize("head", HEADS)
def test_who_reads_padding_gets_what_the_full_computation_has(head, hidden, bypass, monkeypatch):
    model = tiny_model(head, bypass_transformer=bypass)
    inputs = hide_the_text(inputs_for(head, batch=4), {1: hidden, 2: 1})
    found = what_is_read_in(head, model, inputs)
    monkeypatch.setattr(packing_visualbert, "packed_kernel", lambda *_: None)
    torch.testing.assert_close(found, what_is_read_in(head, model, inputs), **close)


def what_is_read_in(head, model, inputs):
    if head == "pretraining":
        return model(**inputs, masked_positions=torch.tensor([[0, 2]] * len(inputs["input_ids"]))).prediction_logits
    return meaningful(head, model(**inputs), inputs)


@pytest.mark.parametrize("head", HEADS)
def test_no_step_asks_a_device_for_numbers(head):
    """On the meta device, where there are none: a padded training step of a GPU reads nothing back."""
    model, inputs = tiny_model(head).train().to("meta"), inputs_for(head, batch=4)
    if head == "pretraining":
        inputs["masked_positions"] = torch.tensor([[1, 2]] * 4)
    outputs = model(**{name: value.to("meta") for name, value in inputs.items()})
    sum(value.sum() for value in outputs.values() if torch.is_tensor(value)).backward()


# -------------------------------------------------------------------------------------------------------- linear layers


@pytest.fixture
def onednn(monkeypatch):
    """The faster library is taken wherever it exists, also on machines where it is not the faster one."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(linear_visualbert, "_PREFERS_ONEDNN", True)
    monkeypatch.setattr(linear_visualbert, "_WORTHWHILE", 1)


@pytest.mark.parametrize("shape", [(3, 7), (2, 4, 7), (7,), (2, 0, 7)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_that_of_torch(onednn, shape, bias):
    layer, found = nn.Linear(7, 5, bias=bias), []
    for product in (partial(apply_linear, layer), layer):
        states = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        output = product(states)
        found.append([output, *torch.autograd.grad(output.sin().sum(), [states, *layer.parameters()])])
        with torch.no_grad():
            found[-1].append(product(states))
    torch.testing.assert_close(*found, **close)


def test_linear_takes_the_faster_library(onednn):
    states, weight = torch.randn(4, 7, requires_grad=True), torch.randn(5, 7)
    assert type(linear(states, weight).grad_fn).__name__ == "_OneDnnLinearBackward"
    assert "OneDnn" not in type(linear(states[:0], weight).grad_fn).__name__
    for other in (states.double(), states.bfloat16()):
        assert "OneDnn" not in type(linear(other, weight.to(other.dtype)).grad_fn).__name__
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(states, weight).dtype == torch.bfloat16


def test_linear_differentiates_twice(onednn):
    states, weight = torch.randn(4, 7, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    found = []
    for product in (linear, F.linear):
        (gradient,) = torch.autograd.grad(product(states, weight).sin().sum(), states, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), weight)[0])
    torch.testing.assert_close(*found, **close)


def test_linear_compiles_in_one_graph(onednn):
    layer = nn.Linear(7, 5)
    torch.compiler.reset()
    compiled = torch.compile(partial(apply_linear, layer), fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (3, 5):
        states = torch.randn(rows, 7, requires_grad=True)
        output = compiled(states)
        torch.testing.assert_close(output, layer(states), **close)
        (found,) = torch.autograd.grad(output.sum(), states)
        torch.testing.assert_close(found, layer.weight.sum(0).expand(rows, -1), **close)


def test_the_file_of_the_linear_layer_loads_twice():
    """Code from the Hub lies in a folder of its own, and may be loaded beside the package."""
    spec = importlib.util.spec_from_file_location("another_linear", linear_visualbert.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    states, weight = torch.randn(4, 7), torch.randn(5, 7)
    torch.testing.assert_close(module.linear(states, weight), linear(states, weight))
    torch.compiler.reset()
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(states, weight), F.linear(states, weight), **close)


@pytest.mark.parametrize("head", ALL)
def test_all_layers_are_plain_ones(head):
    """Tools such as bitsandbytes replace modules of exactly this type."""
    assert {type(module) for module in tiny_model(head).modules() if isinstance(module, nn.Linear)} == {nn.Linear}


class Doubling(nn.Module):
    """In place of a linear layer."""

    def forward(self, states):
        return 2 * states


def _hook(layer):
    layer.register_forward_hook(lambda module, args, output: 2 * args[0])


def _pre_hook(layer):
    layer.register_forward_pre_hook(lambda module, args: (0 * args[0],))
    nn.init.zeros_(layer.bias)


def _own_forward(layer):
    layer.forward = lambda states: 2 * states


def _other_class(layer):
    layer.__class__ = Doubling


@pytest.mark.parametrize(("change", "factor"), [(_hook, 2), (_pre_hook, 0), (_own_forward, 2), (_other_class, 2)])
def test_a_layer_that_was_changed_is_called(onednn, change, factor):
    layer, states = nn.Linear(5, 5), torch.randn(4, 5)
    change(layer)
    torch.testing.assert_close(apply_linear(layer, states), factor * states)


def test_hooks_of_all_modules_see_linear_layers(onednn):
    seen, layer = [], nn.Linear(5, 5)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    apply_linear(layer, torch.randn(4, 5))
    handle.remove()
    apply_linear(layer, torch.randn(4, 5))
    assert seen == [layer]


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning")  # torch 2.13, by its own code
@pytest.mark.parametrize("head", ALL)
def test_quantize_dynamic_reaches_every_linear_layer(head):
    model, inputs = tiny_model(head), inputs_for(head)
    expected = meaningful(head, model(**inputs), inputs)
    count = sum(isinstance(module, nn.Linear) for module in model.modules())
    found = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert sum(type(module) is torch.ao.nn.quantized.dynamic.Linear for module in found.modules()) == count > 12
    error = (meaningful(head, found(**inputs), inputs) - expected).norm() / expected.norm()
    assert 1e-5 < error < 0.1
