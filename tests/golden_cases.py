"""Our model against numbers recorded from the authors' code (`fixtures/golden/visualbert/README.md`).

`worst_differences(case, attention)` runs one case; the tests read how far each number is within its tolerance, and
`benchmarks/golden_table.py` prints the differences themselves.
"""

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from helpers import FIXTURES, scores_of
from safetensors import safe_open

from modeling_visualbert.convert import HEADS, rename_original_key
from modeling_visualbert.hub_code.configuration_visualbert import VisualBertConfig

GOLDEN = FIXTURES / "golden" / "visualbert"
CASES = (
    "pretraining",
    "pretraining_mlm_only",
    "multichoice",
    "vqa",
    "nlvr",
    "flickr",
    "bypass",
    "text_only",
    "attention_weights",
    "embeddings",
)
CHECKPOINTS = ("pretraining", "multichoice", "vqa", "nlvr", "flickr")
TOLERANCES = {  # atol, rtol; those of the README
    "values": (5e-5, 1e-5),
    "losses": (5e-6, 2e-6),
    "gradients": (2e-5, 1e-4),
}
_TASKS = {"pretraining": "pretraining", "multichoice": "vcr", "vqa": "vqa", "nlvr": "nlvr2", "flickr": "flickr30k"}
_ARGUMENTS = {
    "input_ids": "input_ids",
    "input_mask": "attention_mask",
    "token_type_ids": "token_type_ids",
    "visual_embeddings": "visual_embeds",
    "image_mask": "visual_attention_mask",
    "visual_embeddings_type": "visual_token_type_ids",
    "image_text_alignment": "image_text_alignment",
    "flickr_position": "region_to_phrase_position",
}


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference, and the largest one in units of its tolerance (1 is the limit)."""

    worst: float
    of_tolerance: float


@dataclass(frozen=True)
class Golden:
    """One recorded case, in our names: `inputs`, `labels`, `weights`, `outputs`, `gradients`."""

    name: str
    task: str
    config: dict
    weights: dict
    inputs: dict
    labels: dict
    outputs: dict
    gradients: dict
    without_gradient: set

    @cached_property
    def visible(self):
        """Which of the logits mean something."""
        if self.task == "flickr30k":
            return (
                self.inputs["visual_attention_mask"].bool()[:, None].expand_as(self.outputs["flickr_attention_scores"])
            )
        return torch.ones_like(self.outputs["logits"], dtype=torch.bool)

    def model(self, attention="sdpa"):
        """Our model with the recorded weights."""
        model = HEADS[self.task](VisualBertConfig(**self.config))
        model.set_attn_implementation(attention)
        missing, unexpected = model.load_state_dict(self.weights, strict=False)
        model.tie_weights()
        assert not unexpected and set(missing) <= {"cls.predictions.decoder.bias"}, (missing, unexpected)
        return model.eval()


@lru_cache
def golden(name):
    """Read one case; treat it as read-only."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)

    def part(prefix, rename=str):
        return {rename(key[len(prefix) :]): value for key, value in tensors.items() if key.startswith(prefix)}

    config, inputs = json.loads(metadata["config"]), part("inputs/")
    task = _TASKS[config.pop("training_head_type")]
    for field in ("embedding_strategy", "output_attention_weights"):
        del config[field]
    config["num_labels"] = 3129 if task == "vqa" else 2
    without_gradient = json.loads(metadata.get("parameters_without_grad", "[]"))
    return Golden(
        name=name,
        task=task,
        config=config,
        weights=part("state_dict/", rename_original_key),
        inputs={ours: inputs[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in inputs},
        labels=_labels(inputs),
        outputs=part("outputs/"),
        gradients=part("grads/", rename_original_key),
        without_gradient=set(map(rename_original_key, without_gradient)),
    )


def _labels(inputs):
    labels = {"labels": inputs["label"]} if "label" in inputs else {}
    if "masked_lm_labels" in inputs:  # the authors ignore -1, we ignore -100
        labels["labels"] = inputs["masked_lm_labels"].masked_fill(inputs["masked_lm_labels"] == -1, -100)
    if "is_random_next" in inputs:
        labels["sentence_image_labels"] = inputs["is_random_next"]
    return labels


def compare(ours, theirs, kind):
    """The `Difference` of two tensors of equal shape under the tolerance of `kind`."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    atol, rtol = TOLERANCES[kind]
    distance = (ours.detach() - theirs).abs().double()
    return Difference(distance.max().item(), (distance / (atol + rtol * theirs.abs())).max().item())


def worst_of(differences):
    """The worst of several, entry by entry; NaN is the worst of all."""
    pairs = torch.tensor([(d.worst, d.of_tolerance) for d in differences], dtype=torch.double)
    return Difference(*pairs.max(dim=0).values.tolist())


@lru_cache
def run(name, attention, all_states=True):
    """Forward and backward of one case: the model, its output, and what the parts inside it returned. Without `all_states`
    neither padding is computed nor what no head reads."""
    case, seen = golden(name), {}
    model = case.model(attention)
    model.visual_bert.embeddings.register_forward_hook(lambda _, args, output: seen.update(embeddings=output))
    if hasattr(model, "dropout"):
        model.dropout.register_forward_hook(lambda _, args, output: seen.update(classifier_input=output))
    options = {"output_hidden_states": True, "output_attentions": attention == "eager"} if all_states else {}
    output = model(**case.inputs, **case.labels, **options)
    if output.loss is not None:
        output.loss.backward()
    return model, output, seen


def worst_differences(name, attention, all_states=True):
    """All recorded numbers of one case against ours: a dict of `Difference` by what was compared."""
    if name == "embeddings":
        return _embedding_differences(golden(name))
    case, (model, output, seen) = golden(name), run(name, attention, all_states)
    recorded = case.outputs
    ours = {
        "embedding_output": seen["embeddings"],
        "seq_relationship_score": getattr(output, "seq_relationship_logits", None),
        **{f"encoded_layers.{i}": state for i, state in enumerate((output.hidden_states or ())[1:])},
        **{f"attention_weights.{i}": weights for i, weights in enumerate(output.attentions or ())},
    }
    if all_states:
        last = output.hidden_states[-1]
        ours |= {"sequence_output": last, "additional_layer": last, "pooled_output": model.visual_bert.pooler(last)}
    found = {key: compare(ours[key], recorded[key], "values") for key in ours if key in recorded}
    if "classifier_input" in recorded:
        found["classifier_input"] = compare(
            seen["classifier_input"], recorded["classifier_input"].flatten(0, -2), "values"
        )
    if name != "attention_weights":
        logits = scores_of(case.task, output)
        theirs = recorded["flickr_attention_scores"] if case.task == "flickr30k" else recorded["logits"].view_as(logits)
        visible = case.visible.view_as(logits)
        found["logits"] = compare(logits[visible], theirs[visible], "values")
        found["loss"] = compare(output.loss, recorded["loss"], "losses")
        parameters = dict(model.named_parameters())
        found["gradients"] = worst_of(
            compare(parameters[key].grad, gradient, "gradients") for key, gradient in case.gradients.items()
        )
    return found


def embedding_module(case):
    """The embedding module alone, with the recorded weights."""
    model = HEADS["pretraining"](VisualBertConfig(**case.config)).visual_bert.embeddings.eval()
    prefix = "visual_bert.embeddings."
    model.load_state_dict({key.removeprefix(prefix): value for key, value in case.weights.items()})
    return model


def _embedding_differences(case):
    module, inputs, recorded = embedding_module(case), dict(case.inputs), case.outputs
    with safe_open(GOLDEN / "embeddings.safetensors", "pt") as file:
        probe, long = file.get_tensor("inputs/probe"), file.get_tensor("inputs/image_text_alignment_long")
    text = {key: inputs[key] for key in ("input_ids", "token_type_ids")}
    variants = {
        "with_alignment": inputs,
        "with_alignment_long": {**inputs, "image_text_alignment": long},
        "no_alignment": {**inputs, "image_text_alignment": None},
        "token_type_ids_none": {**inputs, "token_type_ids": None, "image_text_alignment": None},
        "text_only": text,
    }
    found = {key: compare(module(**given), recorded[key], "values") for key, given in variants.items()}
    loss = (module(**inputs) * probe).sum()
    loss.backward()
    found["loss"] = compare(loss, recorded["loss"], "losses")
    parameters = {f"visual_bert.embeddings.{key}": value for key, value in module.named_parameters()}
    assert parameters.keys() == case.gradients.keys()
    found["gradients"] = worst_of(
        compare(parameters[key].grad, gradient, "gradients") for key, gradient in case.gradients.items()
    )
    return found
