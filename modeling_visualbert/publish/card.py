"""Model cards: facts about a checkpoint (YAML), the scores of its run (`metrics.json`) and a template make README.md.

Scores come from `metrics.json` only; what it lacks is "not measured". The facts files are in `hub_cards/`. A file that says
`based_on: OTHER.yaml` inherits the entries of that file and overrides them with its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data.plain_yaml import read_yaml
from ..hub_code.processing_visualbert import VisualBertProcessor
from ..hub_code.tasks_visualbert import HEADS, TASKS
from ..published import published_checkpoints

NOT_MEASURED = "not measured"
_LONGEST_CELL = 200  # characters
_SHOWN_LABELS = 50
# Settings of the run that a card lists, under the names that they have in `metrics.json`.
_SETTINGS = (
    *("batch_size", "learning_rate", "epochs", "schedule", "warmup_ratio", "weight_decay", "max_grad_norm", "dropout"),
    *("init_from", "seed", "mixed_precision"),
)
_DEFAULTS: dict[str, Any] = {
    "license": None,
    "datasets": [],
    "metrics": [],
    "tags": ["visualbert", "vision-language"],
    "base_model": None,
    "source": None,
    "dataset": None,
    "expects": {},
    "intended_use": "Not stated.",
    "out_of_scope": "not stated.",
    "training_data": "Not stated.",
    "recipe": "",
    "evaluation_note": "",
    "scores": [],
    "limits": "Not examined.",
    "summary": "",
    "pipeline_tag": None,
    "widget": [],
    "placeholder_regions": 3,
    "region_encoder": None,
}
_NOT_AS_THEY_ARE = ("license", "tags", "widget", "base_model", "expects", "scores")  # in the template
_REQUIRED = ("title", "head", "example")


def cards_folder() -> Path:
    """`hub_cards`: inside an installed package, beside the package in a checkout."""
    installed = Path(__file__).parents[1] / "hub_cards"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "hub_cards"


def load_facts(name: str | Path) -> dict[str, Any]:
    """
    Facts about a checkpoint.

    Args:
        name: A facts file, or the name of one in `hub_cards/` without its suffix, such as "shapes-vqa".

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no YAML mapping, or a key is unknown or missing.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = cards_folder() / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in cards_folder().glob("*-*.yaml"))
        raise FileNotFoundError(f"{name}: no such facts file; expected a YAML file or one of {', '.join(known)}")
    written = _read_facts(path)
    facts = {**_DEFAULTS, **_of_published(written), **written}
    for key in _REQUIRED:
        if not facts.get(key):
            raise ValueError(f"{path}: key {key!r} is missing; expected {', '.join(_REQUIRED)}")
    unknown = sorted(set(facts) - {*_DEFAULTS, *_REQUIRED})
    if unknown:
        raise ValueError(
            f"{path}: unknown key {unknown[0]!r:.80}; expected {', '.join(sorted({*_DEFAULTS, *_REQUIRED}))}"
        )
    if facts["head"] not in HEADS:
        raise ValueError(f"{path}: head {facts['head']!r:.80}; expected one of {', '.join(HEADS)}")
    return {
        **facts,
        "expects": _with_detector(facts["expects"], facts["source"], path),
        "example": {**_image(HEADS[facts["head"]].num_images, facts["example"]), **facts["example"]},
        "folder": path.parent,
    }


def _of_published(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What `assets/published.yaml` says about the published checkpoint that the facts name as their source, if it is one."""
    checkpoint = published_checkpoints().get(facts.get("source") or "")
    if checkpoint is None:
        return {}
    count = checkpoint.detector.num_regions
    return {"head": TASKS[checkpoint.task].head, **({} if count is None else {"placeholder_regions": count})}


def _with_detector(expects: Mapping[str, str], source: str | None, path: Path) -> dict[str, str]:
    """The regions that are expected, with what the table says about the detector of the source in place of {fields}."""
    checkpoint = published_checkpoints().get(source or "")
    if checkpoint is None or "regions" not in expects:
        return dict(expects)
    fields = asdict(checkpoint.detector)
    try:
        return {**expects, "regions": expects["regions"].format(**fields)}
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{path}: regions of 'expects' have field {error}; expected some of {', '.join(fields)}"
        ) from error


def _read_facts(path: Path, others: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a facts file, on top of that of the file beside it that it is based on, and so on."""
    content = read_yaml(path)
    base = content.pop("based_on", None)
    expects = content.get("expects", {})
    if not isinstance(expects, dict):
        raise ValueError(f"{path}: 'expects' is {expects!r:.60}; expected a mapping")
    if base is None:
        return content
    if not isinstance(base, str) or Path(base).name != base:
        raise ValueError(f"{path}: based_on is {base!r:.60}; expected the name of a file beside it")
    if not os.path.isfile(path.parent / base):  # which takes a name of any length
        raise ValueError(f"{path}: based_on is {base!r:.60}, which is not there; expected the name of a file beside it")
    if path.parent / base in (path, *others):
        raise ValueError(f"{path}: based_on {base} leads back to itself; expected a file that is not based on this one")
    shared = _read_facts(path.parent / base, (path, *others))
    return {**shared, **content, "expects": {**shared.get("expects", {}), **expects}}


def default_facts(
    head: str, metrics: Mapping[str, Any] | None = None, processor: VisualBertProcessor | None = None
) -> dict[str, Any]:
    """Facts for a checkpoint without a facts file, from the `metrics.json` of its run and its processor."""
    examples: dict[str, dict[str, Any]] = {
        "visual-question-answering": {"question": "What color is the star?", "top_k": 2},
        "visual-multiple-choice": {"question": "What is this?", "choices": ["A star.", "A cat."]},
        "visual-reasoning": {"statement": "Both images show a star."},
        "phrase-grounding": {"sentence": "a blue star", "phrases": ["a blue star"]},
        "visual-fill-mask": {"text": "a [MASK] star", "top_k": 2},
    }
    num_images = HEADS[head].num_images if processor is None else processor.num_images
    if num_images != HEADS[head].num_images:
        examples["visual-reasoning"] = {"statement": "There is a star."}
    return {
        **_DEFAULTS,
        "title": f"VisualBERT, {HEADS[head].pipeline.replace('-', ' ')}",
        "head": head,
        "summary": f"A VisualBERT checkpoint, `{head}`.",
        "example": {**_image(num_images), **examples[HEADS[head].pipeline]},
        "folder": cards_folder(),
        **_last_split(metrics or {}),
        **({} if processor is None or processor.labels is None else _of_labels(processor)),
    }


def _of_labels(processor: VisualBertProcessor) -> dict[str, Any]:
    """What a checkpoint with labels of its own is and answers."""
    images = "an image" if processor.num_images == 1 else "two images"
    labels = [_cell(label).replace("`", "'") for label in processor.labels or ()]
    more = f" and {len(labels) - _SHOWN_LABELS} more" if len(labels) > _SHOWN_LABELS else ""
    answers = ", ".join(f"`{label}`" for label in labels[:_SHOWN_LABELS]) + more
    if processor.threshold is not None:
        first, second = labels or ("", "")
        answers = f"`{second}` where its probability is at least {processor.threshold:.4g}, else `{first}`"
    return {
        "title": f"VisualBERT, classification of {images} with a text",
        "summary": f"Gives {images} with a text one of {len(processor.labels or ())} labels.",
        "expects": {"images": f"{images} with each text", "answers": answers},
    }


def _last_split(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of the last split in `metrics.json`."""
    splits = metrics.get("splits")
    if not splits:
        return {}
    name, measured = list(splits.items())[-1]
    numbers = [key for key, value in measured.items() if isinstance(value, float)]
    return {
        "dataset": {"name": "The data of the run", "type": None, "split": name},
        "scores": [{"key": key, "name": key.replace("_", " "), "type": key} for key in numbers],
    }


def _image(num_images: int, example: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The example images of a card whose example names none."""
    if {"image", "images"} & (example or {}).keys():
        return {}
    if num_images == 2:
        return {"images": ["scene.png", "other_scene.png"]}
    return {"image": "scene.png"}


def build_card(
    repo_id: str,
    facts: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    region_dim: int | None = None,
    printed: str | None = None,
) -> str:
    """
    The text of a card.

    Args:
        repo_id: Where the checkpoint will be, "user/name".
        facts: From [`load_facts`] or [`default_facts`].
        metrics: Content of the run's `metrics.json`, if there is one.
        region_dim: Length of a region feature, for a checkpoint without a region encoder whose facts do not name one
            either; None otherwise.
        printed: Output of the card's code when it was run.

    Raises:
        ValueError: `metrics` has no scores of the split that the facts name.
    """
    scores, num_examples, baselines = _scores(facts, metrics)
    arguments, placeholder = _call(facts, region_dim)
    data = ModelCardData(
        language="en",
        license=facts["license"],
        library_name="transformers",
        pipeline_tag=facts["pipeline_tag"],
        tags=facts["tags"],
        datasets=facts["datasets"] or None,
        metrics=facts["metrics"] or None,
        base_model=facts["source"] or facts["base_model"],
        model_name=facts["title"],
        eval_results=_eval_results(facts, scores) or None,
        widget=_widget(repo_id, facts) if region_dim is None else None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(cards_folder() / "template.md"),
        **{key: facts[key] for key in _DEFAULTS if key not in _NOT_AS_THEY_ARE},
        title=_line(facts["title"]),
        expects={_line(name): _line(value) for name, value in facts["expects"].items()},
        repo_id=repo_id,
        task=HEADS[facts["head"]].pipeline,
        arguments=arguments,
        placeholder=placeholder,
        printed=printed,
        settings=_settings(metrics),
        scores=[
            {
                **row,
                "name": _line(row["name"]),
                "value": _shown(row["value"]),
                "baselines": [_shown(value) for value in row["baselines"]],
            }
            for row in scores
        ],
        num_examples=num_examples,
        baselines=baselines,
        cost=_cost(metrics),
    )
    return str(card)


def _call(facts: Mapping[str, Any], region_dim: int | None) -> tuple[dict[str, str], str | None]:
    """Arguments of the pipeline in the card's code, and placeholder regions for those of the user, both as Python source."""
    task, example = HEADS[facts["head"]].pipeline, dict(facts["example"])
    is_pair, placeholder = "images" in example, None
    names = example.pop("images") if is_pair else [example.pop("image")]
    if region_dim is None:
        images = [f'f"{{folder}}/examples/{name}"' for name in names]
    else:
        example.pop("boxes", None)
        count = facts["placeholder_regions"]
        entries = [f'"visual_embeds": numpy.zeros(({count}, {region_dim}), dtype="float32")']
        entries += [f'"boxes": numpy.zeros(({count}, 4))'] * (task == "phrase-grounding")
        placeholder, images = f"{{{', '.join(entries)}}}", ["regions"] * len(names)
    given = {"images": f"({', '.join(images)})"} if is_pair else {"image": images[0]}
    return given | {key: repr(value) for key, value in example.items()}, placeholder


def _scores(
    facts: Mapping[str, Any], metrics: Mapping[str, Any] | None
) -> tuple[list[dict[str, Any]], int | None, list[str]]:
    """Rows of the table, the number of examples, and the names of the baselines."""
    if metrics is None or not facts["scores"]:
        return [], None, []
    split = facts["dataset"]["split"]
    measured = metrics.get("splits", {}).get(split)
    if measured is None:
        raise ValueError(
            f"metrics.json has no scores of split {split!r}; it has {', '.join(metrics.get('splits', {}))}"
        )
    baselines = metrics.get("baselines", {})
    rows = [
        {
            **row,
            "value": measured.get(row["key"], NOT_MEASURED),
            "baselines": [baseline.get(row["key"], NOT_MEASURED) for baseline in baselines.values()],
        }
        for row in facts["scores"]
    ]
    return rows, measured.get("num_examples"), [_cell(name) for name in baselines]


def _eval_results(facts: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[EvalResult]:
    """The scores as metadata; none when the facts do not say which data set they belong to."""
    dataset = facts["dataset"]
    if not rows or dataset["type"] is None:
        return []
    return [
        EvalResult(
            task_type=facts["pipeline_tag"],
            dataset_type=dataset["type"],
            dataset_name=dataset["name"],
            dataset_split=dataset["split"],
            metric_type=row["type"],
            metric_name=row["name"],
            metric_value=row["value"],
        )
        for row in rows
        if row["value"] != NOT_MEASURED
    ]


def _widget(repo_id: str, facts: Mapping[str, Any]) -> list[dict[str, str]] | None:
    files = f"https://huggingface.co/{repo_id}/resolve/main/examples"
    return [{"src": f"{files}/{item['image']}", "text": item["text"]} for item in facts["widget"]] or None


def _settings(metrics: Mapping[str, Any] | None) -> dict[str, str]:
    if metrics is None or "run" not in metrics:
        return {}
    run = metrics["run"]
    args = {**run.get("args", {}), **{key: run[key] for key in ("steps", "best_step", "train_examples") if key in run}}
    named = ("steps", "best_step", "train_examples", *_SETTINGS)
    return {key.replace("_", " "): _cell(args[key]) for key in named if args.get(key) is not None}


def _cost(metrics: Mapping[str, Any] | None) -> dict[str, str]:
    """Hardware, time and memory that the run recorded; energy is not measured."""
    run = (metrics or {}).get("run", {})
    units = {"device": "{}", "processes": "{}", "seconds": "{} s", "peak_memory_mib": "{} MiB", "torch": "{}"}
    names = {
        "device": "hardware",
        "processes": "processes",
        "seconds": "training and scoring, wall time",
        "peak_memory_mib": "peak memory",
        "torch": "PyTorch",
    }
    costs = {names[key]: _cell(unit.format(run[key])) if key in run else NOT_MEASURED for key, unit in units.items()}
    if run.get("args", {}).get("init_from"):
        costs["not included"] = "the training of the checkpoint that it starts from"
    return {**costs, "energy": NOT_MEASURED, "emissions": NOT_MEASURED}


def _cell(value: Any) -> str:
    """A text from a run or a checkpoint as one cell of a table: no line, column or tag of its own."""
    text = " ".join(str(value).split())[:_LONGEST_CELL]
    return text.replace("|", "\\|").replace("<", "&lt;")


def _line(text: Any) -> str:
    """A text from facts, which is Markdown, as a heading or a cell of a table: it ends neither."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(str(text).split()))


def _shown(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


__all__ = ["NOT_MEASURED", "build_card", "cards_folder", "default_facts", "load_facts"]
