"""The `visualbert` command: small commands over the package's functions."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from . import __version__
from .convert import HEADS, convert_original_checkpoint, convert_published_checkpoint, summarise
from .corpus.build import CorpusConfig, ensure_corpus
from .data.vcr import read_metadata
from .image_processing_visualbert import load_picture
from .modeling_visualbert import (
    VisualBertForMultipleChoice,
    VisualBertForPreTraining,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
)
from .pipeline_visualbert import ask
from .processing_visualbert import VisualBertProcessor
from .visualization import answer_attention, captioned, draw_regions, grid


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. What users get wrong ends in one line, not in a traceback."""
    args = _parser().parse_args(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        args.run(args)
    except (ValueError, TypeError, OSError) as error:
        print(f"visualbert {args.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="visualbert", description="VisualBERT: text about pictures.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = _model_command(commands, "ask", _ask, "answer questions about a picture (VQA)")
    command.add_argument("picture", help="image file")
    command.add_argument("question", nargs="+", help="one or more questions; the regions are found once")
    command.add_argument("--top_k", type=int, default=3, help="answers to each question (default: %(default)s)")

    command = _model_command(commands, "reason", _reason, "is a sentence true of two pictures? (NLVR2)")
    command.add_argument("left", help="image file")
    command.add_argument("right", help="image file")
    command.add_argument("sentence", nargs="+", help="one or more sentences")

    command = _model_command(commands, "choose", _choose, "choose an answer to a question about tagged objects (VCR)")
    command.add_argument("picture", help="image file")
    command.add_argument(
        "metadata", help="JSON file with the objects as VCR has it: names, boxes, segms, width, height"
    )
    command.add_argument("question", help='question; "[0]" stands for the first object of the metadata')
    command.add_argument("choice", nargs="+", help="choices, with tags too")

    command = _model_command(commands, "ground", _ground, "find what phrases of a sentence mean (Flickr30k Entities)")
    command.add_argument("picture", help="image file")
    command.add_argument("sentence", help="a sentence about the picture")
    command.add_argument("phrase", nargs="+", help="phrases of the sentence")
    command.add_argument("--top_k", type=int, default=1, help="regions for each phrase (default: %(default)s)")

    command = _model_command(commands, "fill", _fill, "fill [MASK] in a text about a picture (pre-trained checkpoints)")
    command.add_argument("picture", help="image file")
    command.add_argument("text", nargs="+", help="one text or two, as in pre-training")
    command.add_argument("--top_k", type=int, default=3, help="words for each mask (default: %(default)s)")

    command = commands.add_parser("convert", help="convert the authors' .th files or uclanlp/visualbert-* checkpoints")
    command.add_argument("source", help=".th file, or folder or Hub name of a uclanlp/visualbert-* checkpoint")
    command.add_argument("target", help="folder to write; must not exist")
    command.add_argument("--task", choices=sorted(HEADS), help="head of a .th file (default: guessed from its tensors)")
    command.add_argument("--num_attention_heads", type=int, help=".th files do not tell (default: hidden size / 64)")
    command.add_argument("--tokenizer", help="BERT tokenizer to save beside it, so that a processor can be saved too")
    command.set_defaults(run=_convert)

    command = commands.add_parser("corpus", help="build the embedded corpus and print where it is")
    command.set_defaults(run=_corpus)
    return parser


def _model_command(commands: Any, name: str, run: Callable, help_text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help_text, description=help_text)
    command.add_argument("--model", required=True, help="folder or Hub name of a checkpoint for this task")
    command.add_argument("--picture_out", metavar="FILE", help="draw the picture with what was found in it")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)
    return command


def _ask(args: argparse.Namespace) -> None:
    _check_top_k(args)
    picture = load_picture(args.picture)
    model, processor = _load(VisualBertForQuestionAnswering, args.model)
    answers, regions = ask(model, processor, picture, args.question, top_k=args.top_k)
    records = [{"question": q, "answers": best} for q, best in zip(args.question, answers, strict=True)]
    _print(args, records, _answer_lines(records))
    if args.picture_out:
        inputs = processor(images=[{"visual_embeds": regions["visual_embeds"]}], text=args.question[:1])
        weights = answer_attention(model, **inputs)[0].tolist()
        drawn = draw_regions(picture, regions["boxes"].tolist(), weights, [f"{weight:.0%}" for weight in weights])
        lines = [args.question[0], f"{answers[0][0]['answer']} ({answers[0][0]['score']:.0%})"]
        _save(captioned(drawn, lines), args)


def _answer_lines(records: list[dict]) -> list[str]:
    lines = []
    for record in records:
        lines += [record["question"]] if len(records) > 1 else []
        lines += [f"{answer['score']:7.1%}  {answer['answer']}" for answer in record["answers"]]
    return lines


@torch.inference_mode()
def _reason(args: argparse.Namespace) -> None:
    pair = [load_picture(args.left), load_picture(args.right)]
    model, processor = _load(VisualBertForVisualReasoning, args.model)
    pairs = [pair] * len(args.sentence)
    found = processor.post_process_visual_reasoning(model(**processor(images=pairs, text=args.sentence)))
    records = [{"sentence": sentence, **result} for sentence, result in zip(args.sentence, found, strict=True)]
    lines = [f"{record['score']:7.1%}  {record['label']:5}  {record['sentence']}" for record in records]
    _print(args, records, lines)
    if args.picture_out:
        _save(captioned(grid([picture.convert("RGB") for picture in pair], columns=2), lines), args)


@torch.inference_mode()
def _choose(args: argparse.Namespace) -> None:
    picture, metadata = load_picture(args.picture), read_metadata(args.metadata)
    if picture.size != (metadata.width, metadata.height):
        raise ValueError(
            f"{args.metadata}: {metadata.width} x {metadata.height} pixels, but {args.picture} has "
            f"{picture.width} x {picture.height}"
        )
    model, processor = _load(VisualBertForMultipleChoice, args.model)
    inputs = processor(
        images=picture, text=args.question, choices=args.choice, objects=metadata.names, boxes=metadata.boxes
    )
    result = processor.post_process_multiple_choice(model(**inputs))[0]
    lines = [
        f"{score:7.1%}  {choice}{'  <-' * (number == result['choice'])}"
        for number, (choice, score) in enumerate(zip(args.choice, result["scores"], strict=True))
    ]
    _print(args, [{"question": args.question, **result}], lines)
    if args.picture_out:
        labels = [f"[{number}] {name}" for number, name in enumerate(metadata.names)]
        _save(captioned(draw_regions(picture, metadata.boxes, None, labels), [args.question, *lines]), args)


@torch.inference_mode()
def _ground(args: argparse.Namespace) -> None:
    _check_top_k(args)
    picture = load_picture(args.picture)
    model, processor = _load(VisualBertForRegionToPhraseAlignment, args.model)
    pixels = processor(images=picture)
    found = model.get_image_features(pixels["pixel_values"], pixels.get("pixel_mask"))
    inputs = processor(images=found, text=args.sentence, phrases=args.phrase)
    regions = processor.post_process_regions(found, pixels["image_sizes"])
    if not len(regions[0]["boxes"]):
        raise ValueError(f"{args.picture}: no regions were found in this picture")
    (grounded,) = processor.post_process_phrase_grounding(model(**inputs), regions, [len(args.phrase)], args.top_k)
    records = [{"phrase": phrase, "regions": best} for phrase, best in zip(args.phrase, grounded, strict=True)]
    lines = [
        f"{best['score']:7.1%}  {record['phrase']}: {', '.join(f'{side:.0f}' for side in best['box'])}"
        for record in records
        for best in record["regions"]
    ]
    _print(args, records, lines)
    if args.picture_out:
        best = [record["regions"][0] for record in records]
        boxes, scores = [region["box"] for region in best], [region["score"] for region in best]
        _save(captioned(draw_regions(picture, boxes, scores, args.phrase), [args.sentence]), args)


@torch.inference_mode()
def _fill(args: argparse.Namespace) -> None:
    _check_top_k(args)
    if len(args.text) > 2:
        raise ValueError(f"{len(args.text)} texts; expected one or two")
    picture = load_picture(args.picture)
    model, processor = _load(VisualBertForPreTraining, args.model)
    inputs = processor(images=picture, text=args.text[0], text_pair=args.text[1] if len(args.text) > 1 else None)
    (result,) = processor.post_process_pretraining(model(**inputs), inputs["input_ids"], args.top_k)
    lines = [", ".join(f"{word['word']} ({word['score']:.0%})" for word in words) for words in result["words"]]
    if len(args.text) == 2:  # what the match head was trained on
        lines.append(f"texts and picture belong together: {result['match']:.0%}")
    _print(args, [result], lines)
    if args.picture_out:
        _save(captioned(picture, [*args.text, *lines]), args)


def _load(head: type[PreTrainedModel], name: str) -> tuple[PreTrainedModel, VisualBertProcessor]:
    _check_checkpoint(name)
    architecture = (AutoConfig.from_pretrained(name).architectures or ["unknown"])[0]
    if architecture != head.__name__:
        raise ValueError(f"{name} is a {architecture} checkpoint; expected {head.__name__}")
    return head.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)


def _check_top_k(args: argparse.Namespace) -> None:
    if args.top_k < 1:
        raise ValueError(f"--top_k {args.top_k}; expected at least 1")


def _print(args: argparse.Namespace, records: list[dict], lines: list[str]) -> None:
    print(json.dumps(records, indent=2) if args.json else "\n".join(lines))


def _save(picture: Image.Image, args: argparse.Namespace) -> None:
    picture.save(args.picture_out)
    print(f"drawn: {args.picture_out}", file=sys.stderr)


def _check_checkpoint(name: str) -> None:
    # A Hub name is "model" or "user/model"; anything else that is not there is a mistyped path.
    if not Path(name).exists() and (Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise FileNotFoundError(f"{name}: no such checkpoint folder")


@torch.no_grad()
def _convert(args: argparse.Namespace) -> None:
    target = Path(args.target)
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another folder or remove it")
    if Path(args.source).is_file():
        heads = {} if args.num_attention_heads is None else {"num_attention_heads": args.num_attention_heads}
        model, report = convert_original_checkpoint(args.source, args.task, **heads)
    else:
        _check_checkpoint(args.source)
        model, report = convert_published_checkpoint(args.source)
    processor = _processor_of(model, args.tokenizer) if args.tokenizer else None
    model.save_pretrained(target)
    if processor is not None:
        processor.save_pretrained(target)
    (target / "key_report.txt").write_text("".join(f"{line}\n" for line in report), encoding="utf-8")
    print(f"{type(model).__name__}: {summarise(report)}; every key in {target / 'key_report.txt'}")


def _processor_of(model: PreTrainedModel, tokenizer: str) -> VisualBertProcessor:
    names = model.config.id2label
    return VisualBertProcessor(
        tokenizer=AutoTokenizer.from_pretrained(tokenizer),
        answers=[names[i] for i in sorted(names)] if isinstance(model, HEADS["vqa"]) else None,
        region_dim=model.config.visual_embedding_dim,
    )


def _corpus(args: argparse.Namespace) -> None:
    print(ensure_corpus(CorpusConfig()))


if __name__ == "__main__":
    sys.exit(main())
