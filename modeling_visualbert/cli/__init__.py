"""The `visualbert` command: small commands over the package's functions."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, pipeline
from transformers.utils import logging as transformers_logging

from .. import __version__
from ..convert.checkpoint_files import check_checkpoint
from ..convert.region_detector import convert_region_detector, is_region_detector, name_outputs
from ..convert.visualbert import HEADS, convert_original_checkpoint, convert_published_checkpoint, summarise
from ..corpus.build import CorpusConfig, ensure_corpus
from ..data.vcr import read_metadata
from ..features.convert import READERS, convert_features
from ..features.extract import (
    ExtractionOptions,
    extract_regions,
    extract_store,
    launched_processes,
    load_region_encoder,
    region_names,
)
from ..features.format import DTYPES
from ..features.images import IMAGE_IDS, list_dataset_images, list_images
from ..features.sheet import store_sheet
from ..features.store import FeatureStore
from ..hub_code.explain_visualbert import explain_answers
from ..hub_code.image_processing_region_detector import RegionDetectorImageProcessor
from ..hub_code.image_processing_visualbert import load_image
from ..hub_code.modeling_region_detector import RegionDetector
from ..hub_code.pipeline_visualbert import (
    PIPELINES,
    VisualBertGroundingPipeline,
    VisualBertMaskedCaptionPipeline,
    VisualBertMultipleChoicePipeline,
    VisualBertPipeline,
    VisualBertReasoningPipeline,
    VisualBertVQAPipeline,
)
from ..hub_code.processing_visualbert import VisualBertProcessor
from ..publish.export import export_onnx, int8_config, load_head
from ..publish.push import push_checkpoint
from ..visualization import answer_attention, captioned, draw_regions, grid, region_labels
from .analysis import add_analysis_commands, explanation_lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. What users get wrong ends in one line, not in a traceback."""
    args = _parser().parse_args(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        args.run(args)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"visualbert {args.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="visualbert", description="VisualBERT: text about images.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_task_commands(commands)
    _add_region_commands(commands)
    add_analysis_commands(commands)
    _add_checkpoint_commands(commands)
    command = commands.add_parser("corpus", help="build the embedded corpus and print where it is")
    command.set_defaults(run=_corpus)
    return parser


def _add_task_commands(commands: Any) -> None:
    command = _model_command(commands, "ask", _ask, "answer questions about an image (VQA)")
    command.add_argument("image", help="image file")
    command.add_argument("question", nargs="+", help="one or more questions; the regions are found once")
    command.add_argument("--top_k", type=int, default=3, help="answers to each question (default: %(default)s)")
    command.add_argument(
        "--explain",
        action="store_true",
        help="what the answer rests on: attention rollout, gradient x input, and the answer without each region",
    )

    command = _model_command(commands, "reason", _reason, "is a sentence true of two images? (NLVR2)")
    command.add_argument("left", help="image file")
    command.add_argument("right", help="image file")
    command.add_argument("sentence", nargs="+", help="one or more sentences")

    command = _model_command(commands, "choose", _choose, "choose an answer to a question about tagged objects (VCR)")
    command.add_argument("image", help="image file")
    command.add_argument(
        "metadata", help="JSON file with the objects as VCR has it: names, boxes, segms, width, height"
    )
    command.add_argument("question", help='question; "[0]" stands for the first object of the metadata')
    command.add_argument("choice", nargs="+", help="choices, with tags too")

    command = _model_command(commands, "ground", _ground, "find what phrases of a sentence mean (Flickr30k Entities)")
    command.add_argument("image", help="image file")
    command.add_argument("sentence", help="a sentence about the image")
    command.add_argument("phrase", nargs="+", help="phrases of the sentence")
    command.add_argument("--top_k", type=int, default=1, help="regions for each phrase (default: %(default)s)")

    command = _model_command(commands, "fill", _fill, "fill [MASK] in a text about an image (pre-trained checkpoints)")
    command.add_argument("image", help="image file")
    command.add_argument("text", nargs="+", help="one text or two, as in pre-training")
    command.add_argument("--top_k", type=int, default=3, help="words for each mask (default: %(default)s)")

    command = commands.add_parser("demo", help="try models in the browser, a tab for each")
    command.add_argument(
        "--model", required=True, action="append", help="folder or Hub name of a checkpoint; may be given several times"
    )
    command.add_argument("--examples", help="JSON file with your own example images (default: rendered scenes)")
    command.add_argument("--host", help="address to listen on (default: 127.0.0.1; 0.0.0.0 for other machines too)")
    command.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    command.set_defaults(run=_demo)


def _add_checkpoint_commands(commands: Any) -> None:
    command = commands.add_parser("convert", help="convert the authors' checkpoints and published region detectors")
    command.add_argument(
        "source",
        help=".th file, folder or Hub name of a uclanlp/visualbert-* checkpoint, or a detector: .pth, .pkl, .bin file "
        "(with its .yaml beside it) or a folder with pytorch_model.bin and config.yaml",
    )
    command.add_argument("target", help="folder to write; must not exist")
    command.add_argument("--task", choices=sorted(HEADS), help="head of a .th file (default: guessed from its tensors)")
    command.add_argument("--num_attention_heads", type=int, help=".th files do not tell (default: hidden size / 64)")
    command.add_argument("--tokenizer", help="BERT tokenizer to save beside it, so that a processor can be saved too")
    command.add_argument("--classes", help="file with a detector's classes, one a line, in the order of their ids")
    command.add_argument("--attributes", help="the same for its attributes")
    command.set_defaults(run=_convert)

    command = commands.add_parser("push", help="publish a checkpoint on the Hugging Face Hub, with card and code")
    command.add_argument("source", help="folder of a checkpoint or of a training run")
    command.add_argument("repo_id", help="user/name")
    command.add_argument("--facts", help="what the card tells: a YAML file, or a name in hub_cards, such as shapes-vqa")
    command.add_argument("--metrics", help="metrics.json of the run (default: the one beside the checkpoint)")
    command.add_argument("--region_encoder", help="folder or Hub name of a region encoder to put into the checkpoint")
    command.add_argument("--private", action="store_true", help="make the repository private")
    command.add_argument("--revision", help="branch to commit to")
    command.add_argument("--create_pr", action="store_true", help="open a pull request")
    command.add_argument("--dry_run", action="store_true", help="build it, try it out, list the files; send nothing")
    command.add_argument("--folder", help="build the repository here and keep it; must not exist")
    command.set_defaults(run=_push)

    command = commands.add_parser("export", help="write a checkpoint as an ONNX file for onnxruntime")
    command.add_argument("model", help="folder or Hub name of a checkpoint with a head")
    command.add_argument("target", help="the .onnx file to write")
    command.add_argument("--int8", action="store_true", help="8-bit integers in the linear layers")
    command.set_defaults(run=_export)


def _add_region_commands(commands: Any) -> None:
    command = commands.add_parser("regions", help="find the regions of an image and draw them")
    command.add_argument("image", help="image file")
    command.add_argument("--region_encoder", required=True, help="folder or Hub name of a region encoder")
    command.add_argument("--max_regions", type=int, help="only the most confident ones")
    command.add_argument("--picture_out", metavar="FILE", help="draw boxes with attribute, class and confidence")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_regions)

    command = commands.add_parser("extract", help="find the regions of many images and store them")
    command.add_argument("source", help="folder of images, text file with their paths, or a dataset (--image_column)")
    command.add_argument("target", help="the feature store; an interrupted run goes on where it was")
    command.add_argument("--region_encoder", required=True, help="folder or Hub name of a region encoder")
    _add_store_options(command)
    command.add_argument("--max_regions", type=int, help="store only the most confident ones of each image")
    command.add_argument("--batch_size", type=int, default=8, help="images at a time (default: %(default)s)")
    command.add_argument("--num_workers", type=int, default=2, help="threads that read ahead (default: %(default)s)")
    command.add_argument("--image_column", help="the source is a dataset, and this is its column of images")
    command.add_argument("--id_column", help="column of the dataset with image ids (default: the row's number)")
    command.add_argument("--split", default="train", help="split of the dataset (default: %(default)s)")
    command.add_argument("--cpu", action="store_true", help="do not use a GPU")
    command.set_defaults(run=_extract)

    command = commands.add_parser("convert-features", help="convert region features that others published to a store")
    command.add_argument("source", help="TSV, .th or HDF5 file, or folder of .npy or .npz files")
    command.add_argument("target", help="the feature store; an interrupted run goes on where it was")
    command.add_argument("--kind", choices=sorted(READERS), help="what the source is (default: by its suffix)")
    _add_store_options(command)
    command.add_argument("--detector", default="unknown", help="name of the detector, for the index")
    command.add_argument("--classes", help="file with the detector's classes, one a line, in the order of their ids")
    command.add_argument("--attributes", help="the same for its attributes")
    command.set_defaults(run=_convert_features)

    command = commands.add_parser("store", help="what is in a feature store? check it, look at it")
    command.add_argument("folder", help="the feature store")
    command.add_argument("--verify", action="store_true", help="read all of it and compare checksums")
    command.add_argument("--sheet", metavar="FILE", help="draw some images with their regions; needs --images")
    command.add_argument("--images", help="folder of the images, or text file with their paths")
    command.add_argument(
        "--ids", choices=sorted(IMAGE_IDS), default="stem", help="see `extract` (default: %(default)s)"
    )
    command.add_argument("--count", type=int, default=9, help="images on the sheet (default: %(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_store)


def _add_store_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--ids",
        choices=sorted(IMAGE_IDS),
        default="stem",
        help="how the store calls an image: the number at the end of its name (COCO, VQA, Flickr30k), the name without "
        "folder and suffix (NLVR2), or the whole name (default: %(default)s)",
    )
    command.add_argument("--dtype", choices=DTYPES, default="float16", help="of the features (default: %(default)s)")
    command.add_argument(
        "--images_per_shard", type=int, default=1000, help="images in one file of the store (default: %(default)s)"
    )


def _model_command(commands: Any, name: str, run: Callable, help_text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help_text, description=help_text)
    command.add_argument("--model", required=True, help="folder or Hub name of a checkpoint for this task")
    command.add_argument("--int8", action="store_true", help="8-bit integers in the encoder, for speed on a CPU")
    command.add_argument("--picture_out", metavar="FILE", help="draw the image with what was found in it")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)
    return command


def _ask(args: argparse.Namespace) -> None:
    _check_top_k(args)
    image = load_image(args.image)
    pipe = _load_pipeline(VisualBertVQAPipeline, args)
    regions = pipe.find_regions(image)
    answers = pipe(regions, args.question, top_k=args.top_k)
    records: list[dict] = [{"question": q, "answers": best} for q, best in zip(args.question, answers, strict=True)]
    inputs = pipe.processor(images=[{"visual_embeds": regions["visual_embeds"]}], text=args.question).to(pipe.device)
    boxes = regions["boxes"].tolist()
    if args.explain:
        names = region_labels(regions, region_names(pipe.model.visual_bert.region_encoder)["classes"])
        for record, explained in zip(records, explain_answers(pipe.model, pipe.processor, inputs), strict=True):
            regions_of = zip(boxes, names, explained["regions"], strict=True)
            told = [{"box": box, "label": name, **region} for box, name, region in regions_of]
            record["explanation"] = {"words": explained["words"], "regions": told}
            record["lines"] = explanation_lines(explained, boxes, names)
    lines = _answer_lines(records)
    _print(args, [{key: record[key] for key in record if key != "lines"} for record in records], lines)
    if args.picture_out:
        weights, labels = _region_weights(pipe.model, inputs, records[0])
        drawn = draw_regions(image, boxes, weights, labels)
        lines = [args.question[0], f"{answers[0][0]['answer']} ({answers[0][0]['score']:.0%})"]
        _save(captioned(drawn, lines), args)


def _region_weights(model: PreTrainedModel, inputs: Mapping, record: dict) -> tuple[list[float], list[str]]:
    """Of the first question: the attention of the answer to each region; or, explained, what happens without the region."""
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


def _answer_lines(records: list[dict]) -> list[str]:
    lines = []
    for record in records:
        lines += [record["question"]] if len(records) > 1 else []
        lines += [f"{answer['score']:7.1%}  {answer['answer']}" for answer in record["answers"]]
        lines += ["", *record["lines"], ""] if "lines" in record else []
    return lines


def _reason(args: argparse.Namespace) -> None:
    pair = [load_image(args.left), load_image(args.right)]
    found = _load_pipeline(VisualBertReasoningPipeline, args)(pair, args.sentence)
    records = [{"sentence": sentence, **result} for sentence, result in zip(args.sentence, found, strict=True)]
    lines = [f"{record['score']:7.1%}  {record['label']:5}  {record['sentence']}" for record in records]
    _print(args, records, lines)
    if args.picture_out:
        _save(captioned(grid(pair, columns=2), lines), args)


def _choose(args: argparse.Namespace) -> None:
    image, metadata = load_image(args.image), read_metadata(args.metadata)
    if image.size != (metadata.width, metadata.height):
        raise ValueError(
            f"{args.metadata}: {metadata.width} x {metadata.height} pixels, but {args.image} has "
            f"{image.width} x {image.height}"
        )
    choose = _load_pipeline(VisualBertMultipleChoicePipeline, args)
    chosen = choose(
        *(image, args.question, args.choice, metadata.names),
        boxes=metadata.boxes,
        polygons=metadata.segms,
    )
    lines = [
        f"{row['score']:7.1%}  {row['text']}{'  <-' * (row is chosen[0])}"
        for row in sorted(chosen, key=lambda row: row["index"])
    ]
    _print(args, [{"question": args.question, "choices": chosen}], lines)
    if args.picture_out:
        labels = [f"[{number}] {name}" for number, name in enumerate(metadata.names)]
        _save(captioned(draw_regions(image, metadata.boxes, None, labels), [args.question, *lines]), args)


def _ground(args: argparse.Namespace) -> None:
    _check_top_k(args)
    image = load_image(args.image)
    ground = _load_pipeline(VisualBertGroundingPipeline, args)
    records = ground(image, args.sentence, args.phrase, top_k=args.top_k)
    if not records[0]["regions"]:
        raise ValueError(f"{args.image}: no regions were found in this image")
    lines = [
        f"{best['score']:7.1%}  {record['phrase']}: {', '.join(f'{side:.0f}' for side in best['box'].values())}"
        for record in records
        for best in record["regions"]
    ]
    _print(args, records, lines)
    if args.picture_out:
        best = [record["regions"][0] for record in records]
        boxes, scores = [list(region["box"].values()) for region in best], [region["score"] for region in best]
        _save(captioned(draw_regions(image, boxes, scores, args.phrase), [args.sentence]), args)


def _fill(args: argparse.Namespace) -> None:
    _check_top_k(args)
    if len(args.text) > 2:
        raise ValueError(f"{len(args.text)} texts; expected one or two")
    image = load_image(args.image)
    fill = _load_pipeline(VisualBertMaskedCaptionPipeline, args)
    result = fill(image, *args.text, top_k=args.top_k)
    lines = [", ".join(f"{word['word']} ({word['score']:.0%})" for word in words) for words in result["words"]]
    if len(args.text) == 2:  # what the match head was trained on
        lines.append(f"texts and image belong together: {result['match']:.0%}")
    _print(args, [result], lines)
    if args.picture_out:
        _save(captioned(image, [*args.text, *lines]), args)


@torch.inference_mode()
def _regions(args: argparse.Namespace) -> None:
    if args.max_regions is not None and args.max_regions < 1:
        raise ValueError(f"--max_regions {args.max_regions}; expected at least 1")
    image = load_image(args.image)
    encoder, image_processor = load_region_encoder(args.region_encoder)
    ((_, found),) = extract_regions(encoder, image_processor, [(args.image, image)], progress=False)
    found = {name: value if name == "image_size" else value[: args.max_regions] for name, value in found.items()}
    names = region_names(encoder)
    labels, boxes = region_labels(found, names["classes"], names["attributes"]), found["boxes"].tolist()
    records = [
        {"label": label, "box": box, **{name: found[name][i].item() for name in _TOLD if name in found}}
        for i, (label, box) in enumerate(zip(labels, boxes, strict=True))
    ]
    lines = [
        f"{', '.join(f'{side:.0f}' for side in box):>24}  {label}" for box, label in zip(boxes, labels, strict=True)
    ]
    _print(args, records, [f"{len(records)} regions", *lines])
    if args.picture_out:
        weights = found["scores"].tolist() if "scores" in found else None
        _save(draw_regions(image, boxes, weights, labels), args)


_TOLD = ("scores", "class_ids", "attribute_ids", "attribute_scores")


def _extract(args: argparse.Namespace) -> None:
    for name in ("batch_size", "images_per_shard"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}; expected at least 1")
    if args.image_column:
        images = list_dataset_images(args.source, args.image_column, args.id_column, args.split)
    else:
        images = list_images(args.source, args.ids)
    encoder, image_processor = load_region_encoder(args.region_encoder)
    processes = launched_processes(args.cpu)
    options = ExtractionOptions(args.dtype, args.images_per_shard, args.max_regions, args.batch_size, args.num_workers)
    result = extract_store(args.target, images, encoder, image_processor, options, processes)
    if not processes.is_main:
        return
    rate = result["images"] / max(result["seconds"], 1e-9)
    print(f"{args.target}: regions of {result['num_images']} images ({rate:.1f} images/s in this run)")
    if result["failed"]:
        print(
            f"{result['failed']} images could not be read, see {Path(args.target) / 'failed.jsonl'}; "
            "they are tried again when the command is run again",
            file=sys.stderr,
        )


def _convert_features(args: argparse.Namespace) -> None:
    store = convert_features(
        args.source,
        args.target,
        args.kind,
        args.ids,
        args.dtype,
        args.detector,
        args.images_per_shard,
        args.classes,
        args.attributes,
    )
    print(f"{args.target}: regions of {len(store)} images, dim {store.dim}, {store.dtype}")


def _store(args: argparse.Namespace) -> None:
    store = FeatureStore(args.folder)
    if args.verify:
        store.verify()
    about = {key: value for key, value in store.info.items() if key not in ("shards", "ids", "classes", "attributes")}
    about |= {"shards": len(store.info["shards"]), "bytes": sum(shard["bytes"] for shard in store.info["shards"])}
    about |= {key: len(store.info[key] or []) for key in ("classes", "attributes")}
    if args.json:
        print(json.dumps(about, indent=2))
    else:
        print("\n".join(f"{key:18}{json.dumps(value)}" for key, value in about.items()))
    if args.verify:
        print("checksums and places of all images are right", file=sys.stderr)
    if args.sheet:
        if not args.images:
            raise ValueError("--sheet needs --images: a store holds no images")
        store_sheet(store, dict(list_images(args.images, args.ids)), args.count).save(args.sheet)
        print(f"drawn: {args.sheet}", file=sys.stderr)


def _demo(args: argparse.Namespace) -> None:
    try:
        from ..demo.page import serve
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "starlette"):
            raise
        raise ValueError('gradio is not installed; expected `pip install "modeling-visualbert[demo]"`') from error
    for name in args.model:
        check_checkpoint(name)
    serve(args.model, args.examples, args.host, args.port)


def _load_pipeline(pipeline_class: type[VisualBertPipeline], args: argparse.Namespace) -> Any:
    name = args.model
    check_checkpoint(name)
    config = AutoConfig.from_pretrained(name)
    architecture = (config.architectures or ["unknown"])[0]
    if architecture != pipeline_class.head:
        raise ValueError(f"{name} is a {architecture} checkpoint; expected {pipeline_class.head}")
    task = next(task for task, (found, _) in PIPELINES.items() if found is pipeline_class)
    saved = getattr(config, "quantization_config", None) or {}
    is_int8 = saved.get("quant_method") == "torchao"
    if saved and args.int8 and not is_int8:
        raise ValueError(f"{name} was quantised by {saved.get('quant_method')}; --int8 needs single precision")
    options = {"quantization_config": int8_config()} if args.int8 and not is_int8 else {}
    return pipeline(task, model=name, model_kwargs=options)


def _check_top_k(args: argparse.Namespace) -> None:
    if args.top_k < 1:
        raise ValueError(f"--top_k {args.top_k}; expected at least 1")


def _print(args: argparse.Namespace, records: list[dict], lines: list[str]) -> None:
    print(json.dumps(records, indent=2) if args.json else "\n".join(lines))


def _save(image: Image.Image, args: argparse.Namespace) -> None:
    image.save(args.picture_out)
    print(f"drawn: {args.picture_out}", file=sys.stderr)


@torch.no_grad()
def _convert(args: argparse.Namespace) -> None:
    target, processor = Path(args.target), None
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another folder or remove it")
    if is_region_detector(args.source):
        model, processor, report = convert_region_detector(args.source)
        name_outputs(model.config, args.classes, args.attributes)
    elif args.classes or args.attributes:
        raise ValueError(f"{args.source} is not a region detector's file; expected one with --classes and --attributes")
    elif Path(args.source).is_file():
        heads = {} if args.num_attention_heads is None else {"num_attention_heads": args.num_attention_heads}
        model, report = convert_original_checkpoint(args.source, args.task, **heads)
    else:
        check_checkpoint(args.source)
        model, report = convert_published_checkpoint(args.source)
    if args.tokenizer and not isinstance(model, RegionDetector):
        processor = _processor_of(model, args.tokenizer)
    model.save_pretrained(target)
    if processor is not None:
        processor.save_pretrained(target)
    (target / "key_report.txt").write_text("".join(f"{line}\n" for line in report), encoding="utf-8")
    print(f"{type(model).__name__}: {summarise(report)}; every key in {target / 'key_report.txt'}")


def _processor_of(model: PreTrainedModel, tokenizer: str) -> VisualBertProcessor:
    names, detector = model.config.id2label, model.config.region_encoder_config
    return VisualBertProcessor(
        image_processor=None if detector is None else RegionDetectorImageProcessor.for_config(detector),
        tokenizer=AutoTokenizer.from_pretrained(tokenizer),
        answers=[names[i] for i in sorted(names)] if isinstance(model, HEADS["vqa"]) else None,
        region_dim=model.config.visual_embedding_dim,
    )


def _push(args: argparse.Namespace) -> None:
    options = {name: value for name, value in vars(args).items() if name not in ("command", "run", "source", "repo_id")}
    pushed = push_checkpoint(args.source, args.repo_id, **options)
    for name, size in pushed.files.items():
        print(f"{size:>14,}  {name}")
    print(f"{sum(pushed.files.values()):>14,}  bytes in {len(pushed.files)} files")
    print("nothing was sent (--dry_run)" if pushed.url is None else pushed.url)


def _export(args: argparse.Namespace) -> None:
    inputs = export_onnx(load_head(args.model), args.target, args.int8)
    print(f"{args.target}: inputs {', '.join(inputs)}")


def _corpus(args: argparse.Namespace) -> None:
    print(ensure_corpus(CorpusConfig()))
