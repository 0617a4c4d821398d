"""Small files in the layouts in which checkpoints and tokenizers are published; weights are random."""

import json

import torch
from helpers import MODELS, randomise

from modeling_visualbert import VisualBertConfig

WORDS = [
    "what",
    "is",
    "on",
    "the",
    "table",
    "?",
    ",",
    "a",
    "red",
    "blue",
    "star",
    "where",
    "cat",
    "person",
    "are",
    "true",
    "it",
    "left",
    "image",
    "shows",
    "[",
    "]",
    "0",
    "1",
    ".",
    "in",
    "and",
    "of",
    "to",
    "two",
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
NUM_ANSWERS = 3129  # as many as Pythia's


def write_tokenizer(folder, vocabulary=VOCABULARY):
    """A folder as BERT checkpoints have it: `vocab.txt` and little else."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": True, "tokenizer_class": "BertTokenizer"})
    )
    return folder


def write_checkpoint(folder, task, region_dim, **fields):
    """A folder like `uclanlp/visualbert-*`: config with `pad_token_id` 1 and `LABEL_n` names, weights as `pytorch_model.bin`."""
    labels = {"vqa": NUM_ANSWERS, "nlvr2": 2, "vcr": 1}.get(task, 2)
    config = VisualBertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        visual_embedding_dim=region_dim,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        num_labels=labels,
        **fields,
    )
    model = randomise(MODELS[task](config))
    folder.mkdir(parents=True)
    told = config.to_dict() | {"architectures": [type(model).__name__], "model_type": "visual_bert", "pad_token_id": 1}
    for key in ("region_encoder_config", "freeze_region_encoder", "auto_map", "transformers_version"):
        told.pop(key, None)
    (folder / "config.json").write_text(json.dumps(told))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder
