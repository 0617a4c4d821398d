"""`visualbert ask`, `reason`, `classify`, `choose`, `ground` and `fill`: a command for each task."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from .analysis import explanation_lines
from .output import add_any_detector, add_bf16, check_picture_out, print_records, save_image, tell_slow_bf16

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_task_commands(commands: Any) -> None:
    """Add the commands to the parser of `visualbert`."""
    command = _model_command(commands, "ask", _ask, "answer questions about an image (VQA)")
    command.add_argument("image", help="image file, or its http(s) address")
    command.add_argument("question", nargs="+", help="one or more questions about the image")
    command.add_argument("--top_k", type=int, default=3, help="answers to each question (default: %(default)s)")
    command.add_argument(
        "--explain",
        action="store_true",
        help="explain the first answer to each question: attention rollout, gradient x input, and the answer without each region",
    )

    command = _model_command(commands, "reason", _reason, "is a sentence true of two images? (NLVR2)")
    command.add_argument("left", help="image file, or its http(s) address")
    command.add_argument("right", help="image file, or its http(s) address")
    command.add_argument("sentence", nargs="+", help="one or more sentences")

    command = _model_command(
        commands, "classify", _classify, "give an image, or two, with a text one of a model's labels"
    )
    command.usage = "%(prog)s --model MODEL [options] IMAGE [IMAGE2] TEXT [TEXT ...]"
    command.add_argument(
        "inputs",
        nargs="+",
        metavar="IMAGE [IMAGE2] TEXT",
        help="image file, or its http(s) address; a second one for a model that reads two; one or more texts",
    )
    command.add_argument("--top_k", type=int, default=3, help="labels for each text (default: %(default)s)")

    command = _model_command(commands, "choose", _choose, "choose an answer to a question about tagged objects (VCR)")
    command.add_argument("image", help="image file, or its http(s) address")
    command.add_argument(
        "metadata",
        help="JSON file with the objects as VCR has it: names, boxes, segms, width, height; - for no objects",
    )
    command.add_argument("question", help='question; "[0]" stands for the first object of the metadata')
    command.add_argument("choice", nargs="+", help="choices, with tags too")

    command = _model_command(
        commands, "ground", _ground, "find the regions that phrases of a sentence refer to (Flickr30k Entities)"
    )
    command.add_argument("image", help="image file, or its http(s) address")
    command.add_argument("sentence", help="a sentence about the image")
    command.add_argument("phrase", nargs="+", help="phrases of the sentence")
    command.add_argument("--top_k", type=int, default=1, help="regions for each phrase (default: %(default)s)")

    command = _model_command(commands, "fill", _fill, "fill [MASK] in a text about an image (pre-trained checkpoints)")
    command.add_argument("image", help="image file, or its http(s) address")
    command.add_argument("text", nargs="+", help="one text or two, as in pre-training")
    command.add_argument("--top_k", type=int, default=3, help="words for each mask (default: %(default)s)")


def _model_command(commands: Any, name: str, run: Callable, help_text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help_text, description=help_text)
    command.add_argument(
        "--model",
        required=True,
        help="folder or Hub name of a checkpoint for this task; published ones such as uclanlp/visualbert-vqa are completed",
    )
    command.add_argument("--region_encoder", help="for a bare checkpoint: region encoder, see `visualbert convert`")
    command.add_argument("--tokenizer", help="for a bare checkpoint: BERT tokenizer, folder or Hub name")
    add_any_detector(command)
    command.add_argument(
        "--int8", action="store_true", help="run the encoder in 8-bit integers, which is faster on a CPU"
    )
    add_bf16(command)
    command.add_argument("--picture_out", metavar="FILE", help="save the image with the result drawn on it")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=partial(_run_checked, run))
    return command


def _run_checked(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """What is wrong with the arguments of these commands is said before anything is opened."""
    if getattr(args, "top_k", 1) < 1:
        raise ValueError(f"--top_k {args.top_k}; expected at least 1")
    check_picture_out(args)
    run(args)


def _ask(args: argparse.Namespace) -> None:
    from ..hub_code.image_processing_visualbert import load_image
    from ..visualization import captioned, draw_regions, region_labels

    _tell_unquoted(args.question)
    image = load_image(args.image, download=True)
    pipe = _load_pipeline("vqa", args)
    regions = pipe.find_regions(image)
    found = pipe(regions, args.question, top_k=args.top_k, explain=args.explain)
    records: list[dict] = [
        {"question": question, **(answer if args.explain else {"answers": answer})}
        for question, answer in zip(args.question, found, strict=True)
    ]
    boxes = regions["boxes"].tolist()
    lines = [] if args.explain else _answer_lines(records)
    if args.explain:
        from ..features.extract import region_names

        names = region_labels(regions, region_names(pipe.model.visual_bert.region_encoder)["classes"])
        records = [_with_explanation(record, names) for record in records]
        lines = _answer_lines(records, boxes, names)
    print_records(args, records, lines)
    if args.picture_out:
        inputs = pipe.processor(images=[{"visual_embeds": regions["visual_embeds"]}], text=args.question[:1])
        weights, labels = _region_weights(pipe.model, inputs.to(pipe.device), records[0])
        drawn = draw_regions(image, boxes, weights, labels)
        best = records[0]["answers"][0]
        save_image(captioned(drawn, [args.question[0], f"{best['answer']} ({best['score']:.0%})"]), args)


def _tell_unquoted(questions: list[str]) -> None:
    """Say how to quote, if a question was given as its words, each of which would be answered."""
    if len(questions) > 1 and not any(" " in question.strip() for question in questions):
        print(
            f"visualbert ask: {len(questions)} questions of one word each; one question is given in quotes: "
            f'"{" ".join(questions):.200}"',
            file=sys.stderr,
        )


def _with_explanation(record: dict, names: list[str]) -> dict:
    """The record of an explained answer as it is printed: what is said of words and regions together, regions with names."""
    regions = [
        {"box": region["box"], "label": name, **{k: v for k, v in region.items() if k != "box"}}
        for region, name in zip(record["regions"], names, strict=True)
    ]
    explanation = {"words": record["words"], "regions": regions}
    return {"question": record["question"], "answers": record["answers"], "explanation": explanation}


def _region_weights(model: PreTrainedModel, inputs: Mapping, record: dict) -> tuple[list[float], list[str]]:
    """Of the first question: the attention of the answer to each region; or, explained, what happens without the region."""
    from ..visualization import answer_attention

    if "explanation" not in record:
        weights = answer_attention(model, **inputs)[0].tolist()
        return weights, [f"{weight:.0%}" for weight in weights]
    best, regions = record["answers"][0], record["explanation"]["regions"]
    labels = [
        f"without: {best['score'] - region['drop']:.0%}"
        if region["answer_without"] == best["answer"]
        else f"without: {region['answer_without']}"
        for region in regions
    ]
    return [max(0.0, region["drop"]) for region in regions], labels


def _answer_lines(records: list[dict], boxes: list | None = None, names: list[str] | None = None) -> list[str]:
    """A line for each answer; with boxes and names of the regions, the explanations too."""
    lines = []
    for record in records:
        lines += [record["question"]] if len(records) > 1 else []
        lines += [f"{answer['score']:7.1%}  {answer['answer']}" for answer in record["answers"]]
        if boxes is not None and names is not None:
            lines += ["", *explanation_lines({**record["answers"][0], **record["explanation"]}, boxes, names), ""]
    return lines


def _reason(args: argparse.Namespace) -> None:
    from ..hub_code.image_processing_visualbert import load_image
    from ..visualization import captioned, grid

    pair = [load_image(args.left, download=True), load_image(args.right, download=True)]
    reason = _load_pipeline("nlvr2", args)
    if reason.processor.num_images != 2:
        raise ValueError(f"{args.model} reads one image; expected `visualbert classify`, or a model that reads two")
    found = reason(pair, args.sentence)
    records = [{"sentence": sentence, **result} for sentence, result in zip(args.sentence, found, strict=True)]
    lines = [f"{record['score']:7.1%}  {record['label']:5}  {record['sentence']}" for record in records]
    print_records(args, records, lines)
    if args.picture_out:
        save_image(captioned(grid(pair, columns=2), lines), args)


def _classify(args: argparse.Namespace) -> None:
    from ..hub_code.image_processing_visualbert import load_image
    from ..visualization import captioned, grid

    classify = _load_pipeline("nlvr2", args)
    count = classify.processor.num_images
    texts = args.inputs[count:]
    if not texts or os.path.isfile(texts[0]):  # an image too few, or too many
        what = "one image" if count == 1 else "two images"
        raise ValueError(f"{args.model} reads {what} with a text; expected {'IMAGE ' * count}TEXT")
    images = [load_image(name, download=True) for name in args.inputs[:count]]
    found = classify(images if count == 2 else images[0], texts, top_k=args.top_k)
    records = [{"text": text, "labels": labels} for text, labels in zip(texts, found, strict=True)]
    lines = []
    for record in records:
        lines += [record["text"]] if len(records) > 1 else []
        lines += [f"{label['score']:7.1%}  {label['label']}" for label in record["labels"]]
    print_records(args, records, lines)
    if args.picture_out:
        best = [f"{record['text']}: {record['labels'][0]['label']}" for record in records]
        save_image(captioned(grid(images, columns=count), best), args)


def _choose(args: argparse.Namespace) -> None:
    from ..data.vcr import VcrMetadata, read_metadata
    from ..hub_code.image_processing_visualbert import load_image
    from ..visualization import captioned, draw_regions

    image = load_image(args.image, download=True)
    metadata = VcrMetadata([], [], [], [], *image.size) if args.metadata == "-" else read_metadata(args.metadata)
    if image.size != (metadata.width, metadata.height):
        raise ValueError(
            f"{args.metadata}: {metadata.width} x {metadata.height} pixels, but {args.image} has "
            f"{image.width} x {image.height}"
        )
    choose = _load_pipeline("vcr", args)
    chosen = choose(
        *(image, args.question, args.choice, metadata.names),
        boxes=metadata.boxes,
        polygons=metadata.segms,
    )
    lines = [
        f"{row['score']:7.1%}  {row['text']}{'  <-' * (row is chosen[0])}"
        for row in sorted(chosen, key=lambda row: row["index"])
    ]
    print_records(args, [{"question": args.question, "choices": chosen}], lines)
    if args.picture_out:
        labels = [f"[{number}] {name}" for number, name in enumerate(metadata.names)]
        save_image(captioned(draw_regions(image, metadata.boxes, None, labels), [args.question, *lines]), args)


def _ground(args: argparse.Namespace) -> None:
    from ..hub_code.image_processing_visualbert import load_image
    from ..visualization import captioned, draw_regions

    image = load_image(args.image, download=True)
    ground = _load_pipeline("flickr30k", args)
    records = ground(image, args.sentence, args.phrase, top_k=args.top_k)
    if not records[0]["regions"]:
        raise ValueError(f"{args.image}: no regions were found in this image")
    lines = [
        f"{best['score']:7.1%}  {record['phrase']}: {', '.join(f'{side:.0f}' for side in best['box'].values())}"
        for record in records
        for best in record["regions"]
    ]
    print_records(args, records, lines)
    if args.picture_out:
        best = [record["regions"][0] for record in records]
        boxes, scores = [list(region["box"].values()) for region in best], [region["score"] for region in best]
        save_image(captioned(draw_regions(image, boxes, scores, args.phrase), [args.sentence]), args)


def _fill(args: argparse.Namespace) -> None:
    from ..hub_code.image_processing_visualbert import load_image
    from ..visualization import captioned

    if len(args.text) > 2:
        raise ValueError(f"{len(args.text)} texts; expected one or two")
    image = load_image(args.image, download=True)
    fill = _load_pipeline("pretraining", args)
    result = fill(image, *args.text, top_k=args.top_k)
    if not result["words"] and len(args.text) == 1:
        raise ValueError(
            f"no [MASK] in {args.text[0]!r:.60}; expected one or more, or two texts to match with the image"
        )
    lines = [", ".join(f"{word['word']} ({word['score']:.0%})" for word in words) for words in result["words"]]
    if len(args.text) == 2:  # what the match head was trained on
        lines.append(f"texts and image belong together: {result['match']:.0%}")
    print_records(args, [result], lines)
    if args.picture_out:
        save_image(captioned(image, [*args.text, *lines]), args)


def _load_pipeline(task_name: str, args: argparse.Namespace) -> Any:
    import torch

    from ..checkpoints import HEAD_CLASSES, read_task
    from ..convert.assemble import complete_checkpoint
    from ..hub_code import pipeline_visualbert
    from ..hub_code.processing_visualbert import VisualBertProcessor

    name = complete_checkpoint(
        args.model, args.region_encoder, args.tokenizer, task_name, any_detector=args.any_detector
    )
    task, config = read_task(name, task_name)
    saved = getattr(config, "quantization_config", None) or {}
    is_int8 = saved.get("quant_method") == "torchao"
    if saved and args.int8 and not is_int8:
        raise ValueError(f"{args.model} was quantised by {saved.get('quant_method')}; --int8 needs single precision")
    if args.bf16:
        tell_slow_bf16()
        if config.region_encoder_config is None:
            raise ValueError(f"{name} has no region encoder inside; --bf16 is for finding regions")
    options = {}
    if args.int8 and not is_int8:
        from ..publish.export import int8_config

        options["quantization_config"] = int8_config()
    # As `pipeline(...)` does, which reads the configuration and its thousands of answers four times.
    model = HEAD_CLASSES[task_name].from_pretrained(name, config=config, dtype="auto", **options)
    if args.bf16:
        model.base_model.region_encoder.to(torch.bfloat16)
    processor = VisualBertProcessor.from_pretrained(name)
    return getattr(pipeline_visualbert, task.pipeline_class)(model=model, processor=processor, task=task.pipeline)
