"""A toy task that trains in a second: questions whose answer is to be read from the first number of a region."""

import json

import pytest
import torch
from datasets import Dataset

from modeling_visualbert import VisualBertConfig, VisualBertForQuestionAnswering, VisualBertProcessor
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.tasks.vqa import make_task
from modeling_visualbert.training.args import TrainArgs
from modeling_visualbert.training.loop import train

ANSWERS = ["<unk>", "no", "yes"]


def questions(count, first_id=0):
    """Rows whose answer is to be read from the first number of the image's only region."""
    rows = [
        {
            "question_id": first_id + i,
            "image_id": first_id + i,
            "question": "Is there a star?" if i % 3 else "Is there a star in the picture?",
            "answers": [ANSWERS[1 + i % 2]] * 10,
            "question_type": "exist",
            "answer_type": "yes/no",
        }
        for i in range(count)
    ]
    return Dataset.from_list(rows)


def regions_of(image_id):
    generator = torch.Generator().manual_seed(image_id)
    features = torch.randn(1, 4, generator=generator)
    features[0, 0] = 3.0 if image_id % 2 else -3.0
    return {"visual_embeds": features}


def toy_task(dropout=0.2):
    """26 training and 9 dev questions, a model of one small layer."""
    torch.manual_seed(0)
    tokenizer = corpus_tokenizer()
    config = VisualBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        visual_embedding_dim=4,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        id2label=dict(enumerate(ANSWERS)),
        label2id={answer: i for i, answer in enumerate(ANSWERS)},
    )
    processor = VisualBertProcessor(tokenizer=tokenizer, answers=ANSWERS, region_dim=4)
    data = {"train": questions(26), "dev": questions(9, first_id=100)}
    return make_task(VisualBertForQuestionAnswering(config), processor, data, regions_of, "visualbert")


def toy_args(output_dir, **changes):
    """Twelve steps, a little less than four epochs."""
    values = {
        "max_steps": 12,
        "batch_size": 8,
        "learning_rate": 2e-2,
        "log_steps": 3,
        "save_steps": 4,
        "evals_per_epoch": 2,
        "cpu": True,
    }
    return TrainArgs(str(output_dir), **{**values, **changes})


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class PowerCutError(Exception):
    """Ends a run as a killed process would: nothing is tidied up."""


def interrupted_run(folder, calls, **changes):
    """A run that ends abruptly when the batch number `calls` is made."""
    task, made = toy_task(), []
    whole = task.collate

    def collate(rows):
        made.append(rows)
        if len(made) == calls:
            raise PowerCutError
        return whole(rows)

    task.collate = collate
    with pytest.raises(PowerCutError):
        train(task, toy_args(folder, **changes))
