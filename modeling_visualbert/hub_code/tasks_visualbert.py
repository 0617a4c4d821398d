"""The tasks of the paper: which processor task, head, Auto class and pipeline belong together, one row for each.

Models (`auto_map`, `custom_pipelines`), processor, pipelines, registration, conversion, command line, cards and demo read it. It
holds names, not classes, so that reading it imports nothing.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VisualBertTask:
    """
    What belongs to a task.

    Args:
        name: The task of [`VisualBertProcessor`].
        head: Name of the model class.
        auto_class: Auto class of `transformers` that opens its checkpoints. There is none for visual reasoning and phrase
            grounding, so theirs are the nearest ones.
        pipeline: Task name for `pipeline(...)`.
        pipeline_class: Name of the pipeline class.
        text_key: What the pipeline calls the text.
        processor_arguments: Keyword arguments of the processor that only this task has.
        num_images: Images that each text is about, unless the processor says otherwise.
    """

    name: str
    head: str
    auto_class: str
    pipeline: str
    pipeline_class: str
    text_key: str
    processor_arguments: tuple[str, ...] = ()
    num_images: int = 1


TASKS: dict[str, VisualBertTask] = {
    task.name: task
    for task in (
        VisualBertTask(
            name="vqa",
            head="VisualBertForQuestionAnswering",
            auto_class="AutoModelForVisualQuestionAnswering",
            pipeline="visual-question-answering",
            pipeline_class="VisualBertVQAPipeline",
            text_key="question",
        ),
        VisualBertTask(
            name="nlvr2",
            head="VisualBertForVisualReasoning",
            auto_class="AutoModelForSequenceClassification",
            pipeline="visual-reasoning",
            pipeline_class="VisualBertReasoningPipeline",
            text_key="statement",
            num_images=2,
        ),
        VisualBertTask(
            name="vcr",
            head="VisualBertForMultipleChoice",
            auto_class="AutoModelForMultipleChoice",
            pipeline="visual-multiple-choice",
            pipeline_class="VisualBertMultipleChoicePipeline",
            text_key="question",
            processor_arguments=("choices", "objects", "boxes", "polygons"),
        ),
        VisualBertTask(
            name="flickr30k",
            head="VisualBertForRegionToPhraseAlignment",
            auto_class="AutoModelForZeroShotObjectDetection",
            pipeline="phrase-grounding",
            pipeline_class="VisualBertGroundingPipeline",
            text_key="sentence",
            processor_arguments=("phrases",),
        ),
        VisualBertTask(
            name="pretraining",
            head="VisualBertForPreTraining",
            auto_class="AutoModelForPreTraining",
            pipeline="visual-fill-mask",
            pipeline_class="VisualBertMaskedCaptionPipeline",
            text_key="text",
            processor_arguments=("text_pair",),
        ),
    )
}
HEADS: dict[str, VisualBertTask] = {task.head: task for task in TASKS.values()}

# What checkpoints say to `trust_remote_code`. Each names every class: `transformers` has models of its own for this model
# type, and an Auto class would silently build that one where ours is not named.
AUTO_MAP: dict[str, str] = {
    "AutoConfig": "configuration_visualbert.VisualBertConfig",
    "AutoModel": "modeling_visualbert.VisualBertModel",
    **{task.auto_class: f"modeling_visualbert.{task.head}" for task in TASKS.values()},
}


TRUTH = ("False", "True")  # the labels of NLVR2


def own_labels(id2label: dict[int, str]) -> list[str] | None:
    """The names of labels in a configuration; None if they are those of NLVR2, or numbered ones that say nothing."""
    names = [name for _, name in sorted(id2label.items())]
    is_numbered = names == [f"LABEL_{index}" for index in range(len(names))]
    return None if names == [*TRUTH] or (is_numbered and len(names) == 2) else names


def own_num_images(config: Any, name: str) -> int | None:
    """How many images the texts of a model for visual reasoning are about, from its configuration; None: as in NLVR2.

    Raises:
        ValueError: It has labels of its own, which may be about one image or two, and does not say.
    """
    num_images = (config.task_options or {}).get("num_images")
    if num_images is None and own_labels(config.id2label) is not None:
        raise ValueError(
            f"{name} has no processor, and labels of its own, which can be about one image or two; expected a processor beside "
            'it, or "num_images": 1 (or 2) in "task_options" of its config.json'
        )
    return num_images


def custom_pipelines(head: str) -> dict[str, dict]:
    """What the configuration of a checkpoint says about its pipeline; nothing for a model without a head."""
    if head not in HEADS:
        return {}
    task = HEADS[head]
    impl = f"pipeline_visualbert.{task.pipeline_class}"
    return {task.pipeline: {"impl": impl, "pt": [task.auto_class], "type": "multimodal"}}


__all__ = ["AUTO_MAP", "HEADS", "TASKS", "TRUTH", "VisualBertTask", "custom_pipelines", "own_labels", "own_num_images"]
