"""`visualbert convert`, `push`, `export` and `corpus`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..hub_code.tasks_visualbert import TASKS
from .output import add_any_detector


def add_checkpoint_commands(commands: Any) -> None:
    """Add the commands to the parser of `visualbert`."""
    _add_convert(commands)
    _add_push(commands)

    command = commands.add_parser("export", help="write a checkpoint as an ONNX file for onnxruntime")
    command.add_argument("model", help="folder or Hub name of a checkpoint with a head")
    command.add_argument("target", help="the .onnx file to write")
    command.add_argument("--int8", action="store_true", help="8-bit integers in the linear layers")
    command.set_defaults(run=_export)

    command = commands.add_parser("corpus", help="build the embedded corpus and print where it is")
    command.set_defaults(run=_corpus)


def _add_convert(commands: Any) -> None:
    command = commands.add_parser("convert", help="convert the authors' checkpoints and published region detectors")
    command.add_argument(
        "source",
        help=".th file, folder or Hub name of a uclanlp/visualbert-* checkpoint, or a detector: .pth, .pkl, .bin file "
        "(with its .yaml beside it), a folder with pytorch_model.bin and config.yaml, or pythia-x101, frcnn-vg or detectron-r101",
    )
    command.add_argument("target", help="folder to write; must not exist")
    command.add_argument("--task", choices=sorted(TASKS), help="head of a .th file (default: guessed from its tensors)")
    command.add_argument(
        "--num_attention_heads", type=int, help="for .th files, which do not say (default: hidden size / 64)"
    )
    command.add_argument("--tokenizer", help="BERT tokenizer, folder or Hub name; saves the processor beside the model")
    command.add_argument(
        "--region_encoder",
        help="region encoder to put into the checkpoint: a folder, the file or Hub name of a published detector, or pythia-x101, "
        "frcnn-vg or detectron-r101, which are downloaded",
    )
    add_any_detector(command)
    command.add_argument(
        "--classes", help="text file with a detector's class names, one per line in the order of their ids"
    )
    command.add_argument("--attributes", help="text file with its attribute names, likewise")
    command.add_argument(
        "--spatial",
        action="store_true",
        help="let the detector append the six spatial numbers of Flickr30k to its features: corners, width and height of the "
        "box, in units of the image; the source may then be a converted detector too",
    )
    command.set_defaults(run=_convert)


def _add_push(commands: Any) -> None:
    command = commands.add_parser("push", help="publish a checkpoint on the Hugging Face Hub, with card and code")
    command.add_argument("source", nargs="?", help="folder of a checkpoint or of a training run")
    command.add_argument("repo_id", nargs="?", help="user/name")
    command.add_argument(
        "--published",
        nargs="*",
        metavar="NAME",
        help="instead of a folder: complete the published checkpoints and build their repositories, all nine or those named, "
        "such as visualbert-vqa; nothing is sent without --send (the nine take 6 GB of the cache)",
    )
    command.add_argument("--namespace", help="with --published: user or organisation (default: yours)")
    command.add_argument("--send", action="store_true", help="with --published: send the repositories to the Hub")
    command.add_argument(
        "--facts", help="facts for the model card: a YAML file, or a name in hub_cards, such as shapes-vqa"
    )
    command.add_argument("--metrics", help="metrics.json of the run (default: the one beside the checkpoint)")
    command.add_argument("--region_encoder", help="region encoder to put into the checkpoint, see `visualbert convert`")
    add_any_detector(command)
    command.add_argument("--private", action="store_true", help="make the repository private")
    command.add_argument("--revision", help="branch to commit to")
    command.add_argument("--create_pr", action="store_true", help="open a pull request")
    command.add_argument(
        "--dry_run", action="store_true", help="build and try the repository and list its files, but send nothing"
    )
    command.add_argument(
        "--folder",
        help="folder to build the repository in and keep; must not exist (with --published it may: what is built there is not "
        "built again)",
    )
    command.set_defaults(run=_push)


def _convert(args: argparse.Namespace) -> None:
    from ..convert import summarise
    from ..convert.assemble import Assembled, assemble, check_parts, checkpoint_files
    from ..convert.published_detectors import (
        add_spatial_features,
        is_published_detector,
        open_published_detector,
        with_spatial_features,
    )
    from ..convert.region_detector import name_outputs
    from ..published import find_published_checkpoint

    target = Path(args.target)
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another folder or remove it")
    if is_published_detector(args.source):
        _refuse_parts(args)
        model, image_processor, report = open_published_detector(args.source)
        name_outputs(model.config, args.classes, args.attributes)
        if args.spatial:
            add_spatial_features(model, args.source)
        made = Assembled(model, image_processor, report)
        made.save(target)
    elif args.classes or args.attributes:
        raise ValueError(f"{args.source} is not a region detector's file; expected one with --classes and --attributes")
    elif args.spatial and args.region_encoder is None:
        made = Assembled(*with_spatial_features(args.source))
        _refuse_parts(args)
        made.save(target)
    else:
        heads = {} if args.num_attention_heads is None else {"num_attention_heads": args.num_attention_heads}
        check_parts(args.region_encoder, args.tokenizer)
        published = find_published_checkpoint(args.source)
        parts = (args.tokenizer, args.region_encoder, args.spatial, args.any_detector, published)
        with checkpoint_files(args.source) as source:
            made = assemble(source, args.task, *parts, **heads)
            made.save(target)
    print(f"{type(made.model).__name__}: {summarise(made.report)}; every key in {target / 'key_report.txt'}")
    for part in made.missing:
        print(f"not in {target}: {part}")


def _refuse_parts(args: argparse.Namespace) -> None:
    if args.tokenizer or args.region_encoder:
        raise ValueError(f"{args.source} is a region detector; expected no --tokenizer and no --region_encoder for it")


def _push(args: argparse.Namespace) -> None:
    if args.published is not None:
        _push_published(args)
        return
    if args.source is None or args.repo_id is None:
        raise ValueError("nothing to push; expected a folder and user/name, or --published")
    if args.send or args.namespace:
        raise ValueError("--send and --namespace are for --published; expected user/name")
    from ..publish.push import push_checkpoint

    others = ("command", "run", "source", "repo_id", "published", "send", "namespace")
    options = {name: value for name, value in vars(args).items() if name not in others}
    pushed = push_checkpoint(args.source, args.repo_id, **options)
    for name, size in pushed.files.items():
        print(f"{size:>14,}  {name}")
    print(f"{sum(pushed.files.values()):>14,}  bytes in {len(pushed.files)} files")
    print("nothing was sent (--dry_run)" if pushed.url is None else pushed.url)


def _push_published(args: argparse.Namespace) -> None:
    from huggingface_hub import HfApi

    from ..publish.push_published import push_published

    for name in ("source", "facts", "metrics", "region_encoder"):
        if getattr(args, name) is not None:
            raise ValueError(f"{name} is about one checkpoint; expected none with --published")
    if args.send and args.dry_run:
        raise ValueError("--send and --dry_run; expected one of them")
    namespace = args.namespace or (HfApi().whoami()["name"] if args.send else "user")
    options = {name: getattr(args, name) for name in ("send", "folder", "private", "revision", "create_pr")}
    for checkpoint, repo_id, pushed in push_published(namespace, args.published, **options):
        sent = "nothing was sent (no --send)" if pushed.url is None else pushed.url
        print(f"{sum(pushed.files.values()):>14,}  bytes in {len(pushed.files)} files of {repo_id}: {sent}", flush=True)
        if not checkpoint.detector.is_published:
            print(f"{'':>14}  without a region encoder: its {checkpoint.detector.title} was not published alone")


def _export(args: argparse.Namespace) -> None:
    from ..checkpoints import load_model
    from ..publish.export import export_onnx

    inputs = export_onnx(load_model(args.model), args.target, args.int8)
    print(f"{args.target}: inputs {', '.join(inputs)}")


def _corpus(args: argparse.Namespace) -> None:
    from ..corpus.build import CorpusConfig, ensure_corpus

    print(ensure_corpus(CorpusConfig()))
