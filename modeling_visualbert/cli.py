"""The `visualbert` command: small commands over the package's functions."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from . import __version__
from .convert import HEADS, convert_original_checkpoint, convert_published_checkpoint, summarise
from .corpus.build import CorpusConfig, ensure_corpus
from .image_processing_visualbert import load_picture
from .pipeline_visualbert import ask
from .processing_visualbert import VisualBertProcessor
from .visualization import answer_attention, captioned, draw_regions


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
    parser = argparse.ArgumentParser(prog="visualbert", description="VisualBERT: questions about pictures.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("ask", help="answer questions about a picture")
    command.add_argument("--model", required=True, help="folder or Hub name of a question-answering checkpoint")
    command.add_argument("picture", help="image file")
    command.add_argument("question", nargs="+", help="one or more questions; the regions are found once")
    command.add_argument("--top_k", type=int, default=3, help="answers to each question (default: %(default)s)")
    command.add_argument(
        "--picture_out", metavar="FILE", help="draw the regions, weighted by the attention of the answer"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_ask)

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


def _ask(args: argparse.Namespace) -> None:
    if args.top_k < 1:
        raise ValueError(f"--top_k {args.top_k}; expected at least 1")
    picture = load_picture(args.picture)
    _check_checkpoint(args.model)
    processor = AutoProcessor.from_pretrained(args.model)
    model = AutoModelForVisualQuestionAnswering.from_pretrained(args.model).eval()
    answers, regions = ask(model, processor, picture, args.question, top_k=args.top_k)
    if args.json:
        records = [{"question": q, "answers": best} for q, best in zip(args.question, answers, strict=True)]
        print(json.dumps(records, indent=2))
    else:
        for question, best in zip(args.question, answers, strict=True):
            if len(args.question) > 1:
                print(question)
            for answer in best:
                print(f"{answer['score']:7.1%}  {answer['answer']}")
    if args.picture_out:
        inputs = processor(images=[{"visual_embeds": regions["visual_embeds"]}], text=args.question[:1])
        weights = answer_attention(model, **inputs)[0].tolist()
        drawn = draw_regions(picture, regions["boxes"].tolist(), weights, [f"{weight:.0%}" for weight in weights])
        lines = [args.question[0], f"{answers[0][0]['answer']} ({answers[0][0]['score']:.0%})"]
        captioned(drawn, lines).save(args.picture_out)
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
