"""Two predictions files of the same split -> the difference of their metrics, with its interval: `visualbert compare`.

The files say what each example counts for (`metrics`) and which examples belong together (`group`). Files without that, such as
those of earlier versions, are scored with the labels of the split.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from ..data.vcr import load_vcr
from ..metrics.compare import paired_bootstrap
from ..training.evaluation import read_predictions
from ..training.report import table
from ..training.task import Predictions
from . import flickr30k, nlvr2, pretraining, vcr, vqa


def compare_predictions(
    first: str | Path,
    second: str | Path,
    data_dir: str | None = None,
    split: str | None = None,
    subtask: str | None = None,
    samples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Compare two models on the same examples.

    Args:
        first, second: Their predictions files.
        data_dir, split: Official files, and the split that was predicted: its labels are used instead of the scores in the files.
        subtask: VCR, with `data_dir`: what was predicted by itself, "answer" or "rationale".
        samples, seed: See [`paired_bootstrap`].

    Returns:
        `num_examples`, `num_groups`, and by metric what [`paired_bootstrap`] returns.

    Raises:
        FileNotFoundError: There is no such file or split.
        ValueError: The files hold other examples, or have no scores; the message names the file and the id.
    """
    if (data_dir is None) != (split is None):
        raise ValueError("--data_dir and --split belong together; expected both or none")
    files = [Path(first), Path(second)]
    scored = [_scores(file, data_dir, split, subtask) for file in files]
    _check_same_examples(files, scored)
    groups = sorted({str(record["group"]) for record in scored[0].values()})
    return {
        "files": [str(file) for file in files],
        "num_examples": len(scored[0]),
        "num_groups": len(groups),
        "metrics": {
            name: paired_bootstrap(*_sums(name, groups, scored), samples=samples, seed=seed)
            for name in dict.fromkeys(name for record in scored[0].values() for name in record["metrics"])
        },
    }


def comparison_table(compared: dict[str, Any]) -> str:
    """What [`compare_predictions`] returned, as text."""
    rows = [["", "first", "second", "difference", "95% interval", "p"]]
    for name, found in compared["metrics"].items():
        means = [f"{found[side]:.2f}" for side in ("first", "second")]
        interval = f"{found['low']:+.2f} to {found['high']:+.2f}"
        rows.append([name, *means, f"{found['difference']:+.2f}", interval, f"{found['p']:.4f}"])
    examples = f"{compared['num_examples']} examples in {compared['num_groups']} groups, which are drawn as a whole"
    return "\n".join(
        [*(f"{n}: {f}" for n, f in zip(("first", "second"), compared["files"], strict=True)), table(rows), examples]
    )


def _scores(file: Path, data_dir: str | None, split: str | None, subtask: str | None) -> dict[Any, dict[str, Any]]:
    """What each example counts for and its group, by id."""
    predictions = read_predictions(file)
    if not predictions:
        raise ValueError(f"{file}: no predictions; expected a file of `visualbert evaluate`")
    by_id = {record.get("id"): record for record in predictions}
    if None in by_id or len(by_id) < len(predictions):
        raise ValueError(f"{file}: {len(predictions)} records with {len(by_id)} ids; expected an id of its own in each")
    if data_dir is None or split is None:
        lacking = [key for key, record in by_id.items() if "metrics" not in record or "group" not in record]
        if lacking:
            raise ValueError(
                f"{file}: no scores of example {lacking[0]} (the split has no labels, or an earlier version wrote it); "
                "expected --data_dir and --split with its labels"
            )
        return by_id
    own = _score_again(predictions, data_dir, split, subtask, str(file))
    if not own:
        raise ValueError(f"{data_dir}: split {split!r} has no labels; expected one with labels")
    return dict(zip(by_id, own, strict=True))


def _score_again(predictions: Predictions, data_dir: str, split: str, subtask: str | None, where: str) -> Predictions:
    """The scores of predictions according to the labels; their keys tell the task."""
    keys = predictions[0].keys()
    one_split: dict[str, Any] = {"data_dir": data_dir, "train_split": "", "dev_split": "", "test_split": split}
    if "pieces" in keys:  # pre-training: what was masked is in the file
        return pretraining.own_accuracies(predictions)
    if "answer" in keys:
        data = vqa.load_vqa_data(vqa.VqaArgs("", **one_split)).splits["test"]
        _check_known(predictions, data["question_id"], where, data_dir, split)
        return vqa.own_accuracies({record["id"]: record["answer"] for record in predictions}, data)
    if "label" in keys:
        data = nlvr2.load_nlvr2_data(nlvr2.Nlvr2Args("", **one_split)).splits["test"]
        _check_known(predictions, data["identifier"], where, data_dir, split)
        return nlvr2.own_accuracies({record["id"]: record["label"] for record in predictions}, data)
    if "phrases" in keys:
        data = flickr30k.load_flickr30k_data(flickr30k.Flickr30kArgs("", **one_split)).splits["test"]
        _check_known(predictions, [flickr30k.sentence_id(row) for row in data], where, data_dir, split)
        return flickr30k.own_recalls(predictions, data)
    if "choice" not in keys:
        raise ValueError(f"{where}: records with {', '.join(keys)}; expected predictions of `visualbert evaluate`")
    data = load_vcr(Path(data_dir) / f"{split}.jsonl")
    _check_known(predictions, data["annot_id"], where, data_dir, split)
    if "rationales" in keys:
        return vcr.own_joint_accuracies(predictions, data)
    if subtask is None:
        raise ValueError(f"{where}: choices of VCR; expected --subtask answer or --subtask rationale")
    return vcr.own_accuracies(predictions, data, subtask)


def _check_known(predictions: Predictions, ids: Any, where: str, data_dir: str, split: str) -> None:
    known = set(ids)
    unknown = [record["id"] for record in predictions if record["id"] not in known]
    if unknown:
        raise ValueError(
            f"{where}: example {unknown[0]} is not in split {split!r} of {data_dir} ({len(unknown)} are not)"
        )


def _check_same_examples(files: list[Path], scored: list[dict[Any, dict[str, Any]]]) -> None:
    for here, there in ((0, 1), (1, 0)):
        missing = [key for key in scored[here] if key not in scored[there]]
        if missing:
            raise ValueError(
                f"{files[there]} lacks example {missing[0]} of {files[here]} ({len(missing)} in all); expected the same examples"
            )
    for key, record in scored[0].items():
        other = scored[1][key]
        if _shape(record) != _shape(other):
            raise ValueError(
                f"{files[0]} and {files[1]}: example {key} has other labels in each; expected the same data"
            )


def _shape(record: dict[str, Any]) -> tuple[str, dict[str, int]]:
    return str(record["group"]), {name: len(_values(value)) for name, value in record["metrics"].items()}


def _values(value: float | list[float]) -> list[float]:
    """A score, or those of the parts of an example (its phrases, its masked pieces)."""
    return value if isinstance(value, list) else [value]


def _sums(
    name: str, groups: list[str], scored: list[dict[Any, dict[str, Any]]]
) -> tuple[list[float], list[float], list[int]]:
    """Of each group the sums of both models and the number of scores."""
    sums: list[dict[str, float]] = [defaultdict(float), defaultdict(float)]
    counts: dict[str, int] = defaultdict(int)
    for side, records in enumerate(scored):
        for record in records.values():
            values = _values(record["metrics"].get(name, []))
            sums[side][str(record["group"])] += sum(values)
            counts[str(record["group"])] += len(values) if side == 0 else 0
    return [sums[0][key] for key in groups], [sums[1][key] for key in groups], [counts[key] for key in groups]


__all__ = ["compare_predictions", "comparison_table"]
