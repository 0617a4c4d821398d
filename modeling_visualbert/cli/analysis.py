"""`visualbert analyze` and `visualbert check-explanations`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .output import add_any_detector


def add_analysis_commands(commands: Any) -> None:
    """Add the commands to the parser of `visualbert`."""
    command = commands.add_parser(
        "analyze", help="which attention heads ground words in regions? (Flickr30k Entities, dependency trees)"
    )
    command.add_argument("--model", required=True, help="folder or Hub name of a checkpoint with any head")
    command.add_argument("--out", required=True, help="folder for numbers and figures; must be new or empty")
    command.add_argument(
        "--data", help="folder with Sentences/, Annotations/ and <split>.txt (default: the embedded corpus)"
    )
    _add_image_options(command)
    command.add_argument("--trees", help="folder with a CoNLL-U file for each image (default: Trees/ in --data)")
    command.add_argument("--parser", help="parser to use instead of files: spacy:MODEL or stanza:LANGUAGE")
    command.add_argument("--split", default="test", help="split that is reported (default: %(default)s)")
    command.add_argument(
        "--dev_split",
        default="val",
        help="split that heads are chosen on; '' for none, which makes intervals wider (default: %(default)s)",
    )
    command.add_argument("--tokenizer", help="folder or Hub name (default: that of the model)")
    command.add_argument("--pictures", type=int, default=3, help="images to draw (default: %(default)s)")
    command.add_argument("--batch_size", type=int, default=8, help="images at a time (default: %(default)s)")
    command.add_argument("--skip_bad_records", action="store_true", help="leave bad records out and list them")
    command.set_defaults(run=_analyze)

    command = commands.add_parser(
        "check-explanations", help="how often does the answer change without the region that an explanation puts first?"
    )
    command.add_argument("--model", required=True, help="folder or Hub name of a VQA checkpoint")
    command.add_argument("--data", help="folder with VQA v2 files (default: the embedded corpus)")
    _add_image_options(command)
    command.add_argument("--split", default="test", help="split to ask (default: %(default)s)")
    command.add_argument("--max_images", type=int, help="ask only about the first images")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_check_explanations)


def _add_image_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--images", help="folder of the images (default: --data)")
    command.add_argument("--features", help="feature store with the regions (default: found in the images)")
    add_any_detector(command)
    command.add_argument("--cpu", action="store_true", help="do not use a GPU")


def _analyze(args: argparse.Namespace) -> None:
    from ..analysis.examples import make_examples
    from ..analysis.figures import draw_entities, draw_example, draw_relations
    from ..analysis.run import AnalysisOptions, analyse_grounding, grounding_tables, load_material, write_report
    from ..features.extract import launched_processes

    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; choose another folder or remove it")
    if args.pictures < 0:
        raise ValueError(f"--pictures {args.pictures}; expected at least 0")
    options = AnalysisOptions(
        args.model,
        args.data,
        args.images,
        args.features,
        args.trees,
        args.parser,
        args.split,
        args.dev_split,
        args.tokenizer,
        args.batch_size,
        args.skip_bad_records,
        args.any_detector,
    )
    processes = launched_processes(args.cpu)
    if not processes.is_main:  # the first process builds the corpus, if it is that
        processes.wait()
    material = load_material(options, processes)
    if processes.is_main:
        processes.wait()
    report = analyse_grounding(material, options, processes)
    if not processes.is_main:
        return
    print(grounding_tables(report))
    out.mkdir(parents=True, exist_ok=True)
    write_report(out, report)
    files = [*draw_entities(report, out / "entities"), *draw_relations(report, out / "relations")]
    if material.paths:
        for name, example in make_examples(material, report, args.pictures):
            files += draw_example(example, out / f"picture_{name}")
    elif args.pictures:
        print("no images are drawn: --images does not say where they are", file=sys.stderr)
    print(f"written to {out}: analysis.json, analysis.txt, {', '.join(file.name for file in files)}", file=sys.stderr)


def _check_explanations(args: argparse.Namespace) -> None:
    from ..analysis.faithfulness import count_faithfulness, faithfulness_report, faithfulness_table
    from ..analysis.run import regions_from
    from ..checkpoints import load_model, read_task
    from ..corpus.build import CorpusConfig, ensure_corpus
    from ..data.vqa2 import find_vqa_files, load_vqa
    from ..features.extract import launched_processes
    from ..hub_code.processing_visualbert import VisualBertProcessor

    if args.max_images is not None and args.max_images < 1:
        raise ValueError(f"--max_images {args.max_images}; expected at least 1")
    read_task(args.model, "vqa")  # before the corpus is built
    processes = launched_processes(args.cpu)
    if not processes.is_main:
        processes.wait()
    corpus = ensure_corpus(CorpusConfig()) if args.data is None else None
    if processes.is_main:
        processes.wait()
    files = find_vqa_files(corpus / "vqa" if corpus is not None else args.data, args.split)
    rows = load_vqa(files.questions, files.annotations)
    image_ids = sorted(set(rows["image_id"]))[: args.max_images]
    kept = set(image_ids)
    rows = sorted((row for row in rows if row["image_id"] in kept), key=lambda row: row["image_id"])
    model = load_model(args.model, "vqa").to(processes.device)
    images_dir = corpus / "images" if corpus is not None else Path(args.images or args.data)
    regions_of, _ = regions_from(
        model.visual_bert, args.model, args.features, images_dir, image_ids, any_detector=args.any_detector
    )
    processor = VisualBertProcessor.from_pretrained(args.model)
    found = count_faithfulness(model, processor, rows, regions_of, processes, progress=processes.is_main)
    if processes.is_main:
        report = faithfulness_report(found)
        print(json.dumps(report, indent=2) if args.json else faithfulness_table(report))


def explanation_lines(
    explained: Mapping[str, Any], boxes: Sequence[Sequence[float]], names: Sequence[str]
) -> list[str]:
    """An explanation as text: word pieces and regions, each with what every method says of it.

    Args:
        explained: One of what [`explain_answers`] returns.
        boxes: The regions' boxes in pixels.
        names: What is known of each region.
    """
    from ..training.report import table

    words = [["word", "rollout", "gradient x input"]]
    words += [[word["piece"], f"{word['rollout']:.1%}", f"{word['gradient']:+.3f}"] for word in explained["words"]]
    regions = [["region", "box", "rollout", "gradient x input", "without it"]]
    for number, (region, box, name) in enumerate(zip(explained["regions"], boxes, names, strict=True), start=1):
        changed = region["answer_without"] != explained["answer"]
        effect = f"{explained['score'] - region['drop']:.1%}" + (
            f", answer: {region['answer_without']}" if changed else ""
        )
        corners = ", ".join(f"{side:.0f}" for side in box)
        ways = [f"{region['rollout']:.1%}", f"{region['gradient']:+.3f}", effect]
        regions.append([f"{number} {name}".strip(), corners, *ways])
    return [*table(words).splitlines(), "", *table(regions).splitlines()]


__all__ = ["add_analysis_commands", "explanation_lines"]
