"""What the test files share: paths, tiny models with unequal weights, ragged inputs with junk in the padding.

Letters as in the model: B batch, T text tokens, R regions, V region feature, C choices, A aligned words, E phrases.
"""

from pathlib import Path

import pytest
import torch

from modeling_visualbert.hub_code.configuration_visualbert import VisualBertConfig
from modeling_visualbert.hub_code.modeling_visualbert import (
    VisualBertForMultipleChoice,
    VisualBertForPreTraining,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
    VisualBertModel,
)

FIXTURES = Path(__file__).parent / "fixtures"
SHARED = Path(__file__).parents[2] / "shared"

MODELS = {
    "base": VisualBertModel,
    "pretraining": VisualBertForPreTraining,
    "vqa": VisualBertForQuestionAnswering,
    "vcr": VisualBertForMultipleChoice,
    "nlvr2": VisualBertForVisualReasoning,
    "flickr30k": VisualBertForRegionToPhraseAlignment,
}
HEADS = [name for name in MODELS if name != "base"]

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "visual_embedding_dim": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
NUM_LABELS = {"vqa": 11, "nlvr2": 2}
NUM_CHOICES = 3
TEXT_AXIS = {"input_ids": -1, "attention_mask": -1, "token_type_ids": -1}
REGION_AXIS = {
    "visual_embeds": -2,
    "visual_attention_mask": -1,
    "visual_token_type_ids": -1,
    "image_text_alignment": -2,
}


def shared(path):
    """A file or folder of the third-party data that lies beside the checkout; without it the test is skipped."""
    if not (SHARED / path).exists():
        pytest.skip(f"third-party data is not here: {SHARED / path}")
    return SHARED / path


def randomise(model, seed=0, std=0.2):
    """Large unequal weights everywhere, biases and LayerNorm scales too, so that a wrong term cannot hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, std, generator=generator)
            if name.endswith(("LayerNorm.weight", "layer_norm.weight", "norm.weight")):
                parameter.add_(1.0)
    return model.eval()


def tiny_config(head="base", **fields):
    """Two layers of 32; no dropout."""
    if "num_labels" not in fields and head in NUM_LABELS:
        fields["num_labels"] = NUM_LABELS[head]
    return VisualBertConfig(**{**SIZES, **fields})


def tiny_model(head, seed=0, **config_fields):
    """The model of a head in evaluation mode, with random weights."""
    return randomise(MODELS[head](tiny_config(head, **config_fields)), seed)


def inputs_for(head, batch=3, text=9, regions=6, seed=0):
    """Inputs of a head: row i is i tokens and i regions shorter than the first, padding features are junk."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    rows = (batch, NUM_CHOICES) if head == "vcr" else (batch,)
    shorter = torch.arange(batch * (NUM_CHOICES if head == "vcr" else 1)).view(*rows, 1) % 5
    attention_mask = (torch.arange(text) < text - shorter).long()
    inputs = {
        "input_ids": integers(2, SIZES["vocab_size"], *rows, text) * attention_mask,
        "attention_mask": attention_mask,
        "token_type_ids": integers(0, 2, *rows, text),
        "visual_embeds": torch.randn(batch, regions, SIZES["visual_embedding_dim"], generator=generator),
        "visual_attention_mask": (torch.arange(regions) < regions - torch.arange(batch)[:, None] % regions).long(),
        "visual_token_type_ids": integers(0, 2, batch, regions),
    }
    if head == "vcr":
        inputs["image_text_alignment"] = integers(-1, text, *rows, regions, 3)
        for name in ("visual_embeds", "visual_attention_mask", "visual_token_type_ids"):
            inputs[name] = inputs[name].repeat_interleave(NUM_CHOICES, dim=0).unflatten(0, rows)
    if head == "flickr30k":
        positions = integers(1, text - min(batch, 5), batch, 4)
        inputs["region_to_phrase_position"] = torch.where(torch.arange(4) < 4 - shorter % 3, positions, -1)
    return inputs


def labels_for(head, inputs, seed=1):
    """Label arguments of a head that fit `inputs`."""
    generator = torch.Generator().manual_seed(seed)
    batch, text = inputs["input_ids"].shape[0], inputs["input_ids"].shape[-1]
    if head == "pretraining":
        chosen = (torch.rand(batch, text, generator=generator) < 0.4) & inputs["attention_mask"].bool()
        return {
            "labels": torch.where(chosen, inputs["input_ids"], -100),
            "sentence_image_labels": torch.arange(batch) % 2,
        }
    if head == "vqa":
        return {"labels": torch.rand(batch, NUM_LABELS["vqa"], generator=generator)}
    if head == "flickr30k":
        scores = torch.rand(batch, 4, inputs["visual_embeds"].shape[1], generator=generator)
        scores = (
            scores * inputs["visual_attention_mask"][:, None] * (inputs["region_to_phrase_position"] >= 0)[..., None]
        )
        return {"labels": scores / scores.sum(-1, keepdim=True).clamp(min=1.0)}
    return {"labels": torch.arange(batch) % (NUM_CHOICES if head == "vcr" else 2)}


def pad(inputs, text=0, regions=0):
    """The same inputs with more padding behind: masks 0, text ids 0, junk elsewhere."""
    padded = dict(inputs)
    for axes, extra in ((TEXT_AXIS, text), (REGION_AXIS, regions)):
        for name in axes.keys() & inputs.keys():
            shape = list(inputs[name].shape)
            shape[axes[name]] = extra
            is_zero = name in ("input_ids", "attention_mask", "visual_attention_mask")
            junk = torch.zeros(shape) if is_zero else torch.ones(shape)
            padded[name] = torch.cat((inputs[name], junk.to(inputs[name].dtype)), dim=axes[name])
    return padded


def alone(inputs, row):
    """One row of the inputs as a batch of its own, with as little padding as it needs."""
    lengths = {
        axis: int(inputs[mask][row].sum(-1).max())
        for axis, mask in (("text", "attention_mask"), ("regions", "visual_attention_mask"))
    }
    cut = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
    for axes, length in ((TEXT_AXIS, lengths["text"]), (REGION_AXIS, lengths["regions"])):
        for name in axes.keys() & cut.keys():
            cut[name] = cut[name].narrow(axes[name], 0, length)
    return cut


def scores_of(head, output):
    """The logits that a head is for."""
    return output.prediction_logits if head == "pretraining" else output.logits


def meaningful(head, output, inputs):
    """All numbers of an output that mean something, in one flat tensor: padding positions are left out."""
    regions = inputs["visual_attention_mask"].bool()
    if head == "flickr30k":
        phrases = inputs["region_to_phrase_position"] >= 0
        return output.logits[phrases[:, :, None] & regions[:, None, :]]
    if head in ("base", "pretraining"):
        states = output.last_hidden_state if head == "base" else output.prediction_logits
        pooled = output.pooler_output if head == "base" else output.seq_relationship_logits
        visible = torch.cat((inputs["attention_mask"].bool(), regions), dim=1)
        return torch.cat([torch.cat((s[v].flatten(), p)) for s, v, p in zip(states, visible, pooled, strict=True)])
    return output.logits.flatten()


def loss_of(head, model, inputs):
    """A loss that reads all that a head computes."""
    if head == "base":
        output = model(**inputs)
        return output.last_hidden_state.sin().sum() + output.pooler_output.sum()
    return model(**inputs, **labels_for(head, inputs)).loss
