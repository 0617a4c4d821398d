"""Tiny checkpoints of all five heads around the shipped region encoder, as training leaves them; weights are random."""

from helpers import MODELS, randomise

from modeling_visualbert import QueryRegionEncoder, VisualBertConfig, VisualBertImageProcessor, VisualBertProcessor
from modeling_visualbert.corpus.scenes import render, sample_scene
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.tasks.common import DETECTOR

ANSWERS = ["<unk>", "2", "no", "red", "yes"]
PIPELINE_TASKS = {
    "vqa": "visual-question-answering",
    "vcr": "visual-multiple-choice",
    "nlvr2": "visual-reasoning",
    "flickr30k": "phrase-grounding",
    "pretraining": "visual-fill-mask",
}
_FIELDS = {
    "vqa": {"id2label": dict(enumerate(ANSWERS)), "label2id": {answer: i for i, answer in enumerate(ANSWERS)}},
    "nlvr2": {"id2label": {0: "False", 1: "True"}, "label2id": {"False": 0, "True": 1}},
    "vcr": {"num_labels": 1},
}


def tiny_checkpoint(task, seed=0, std=0.2, num_hidden_layers=1, labels=None, **of_processor):
    """Model and processor of a task; with `labels`, of a classification."""
    encoder, tokenizer = QueryRegionEncoder.from_pretrained(DETECTOR), corpus_tokenizer()
    config = VisualBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        intermediate_size=40,
        region_encoder_config=encoder.config.to_dict(),
        **({"id2label": dict(enumerate(labels))} if labels else _FIELDS.get(task, {})),
    )
    model = randomise(MODELS[task](config), seed, std)
    model.visual_bert.region_encoder.load_state_dict(encoder.state_dict())
    processor = VisualBertProcessor(
        VisualBertImageProcessor.from_pretrained(DETECTOR),
        tokenizer,
        task=task,
        answers=ANSWERS if task == "vqa" else None,
        region_dim=config.visual_embedding_dim,
        labels=labels,
        **of_processor,
    )
    return model, processor


def save_checkpoint_and_image(folder, seed):
    """A complete VQA checkpoint `vqa` and a picture `image.png`."""
    save_tiny_checkpoint("vqa", folder / "vqa")
    render(sample_scene(0, seed)).save(folder / "image.png")
    return folder


def save_tiny_checkpoint(task, folder, **options):
    """Model and processor of a task, saved to a folder."""
    model, processor = tiny_checkpoint(task, **options)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor
