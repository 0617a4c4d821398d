"""Makes the Auto classes and `pipeline(...)` of `transformers` use this package for model type "visual_bert".

`transformers` imports its parts when they are first used, and so does this package: importing it costs next to nothing. What
must happen when a part of `transformers` has been imported (registering our classes with it) is in one table here, `_STEPS`.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

_HUB_CODE = f"{__package__}.hub_code"


def register_auto_classes() -> None:
    """
    Register everything now. Not needed after `import modeling_visualbert`, which registers our classes with each part of
    `transformers` once both are imported; calling it again changes nothing.

    `transformers` has classes of its own for "visual_bert"; its Auto classes resolve to ours instead. It removed the task name
    "visual-question-answering" in version 5; `pipeline(...)` knows it again.
    """
    for theirs, ours, register in _STEPS:
        importlib.import_module(theirs)
        importlib.import_module(ours)
        register()


def register_when_imported() -> None:
    """Arrange that our classes are registered with each part of `transformers` as soon as that part is imported."""
    _quieten_torchao()
    finder = _AfterImport({"torch": _quieten_torchao, **{ours: register for _, ours, register in _STEPS}})
    sys.meta_path.insert(0, finder)
    for theirs, ours, _ in _STEPS:
        if theirs in sys.modules:
            importlib.import_module(ours)
        else:
            finder.calls[theirs] = partial(finder.import_ours, ours)


class _AfterImport(MetaPathFinder):
    """
    Calls functions once modules have been imported.

    Args:
        calls: By module name, what is called after that module.
    """

    def __init__(self, calls: dict[str, Callable[[], None]]):
        self.calls = calls
        self.being_imported = 0  # how many of our modules
        self.waiting: list[str] = []

    def import_ours(self, name: str) -> None:
        """Import one of our modules; later, when another one is being imported, which it may need whole."""
        self.waiting.append(name)
        while self.waiting and not self.being_imported:
            importlib.import_module(self.waiting.pop())

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's ordinary spec with the call added; None, which leaves it to the other finders, for most modules."""
        is_ours = fullname.startswith(f"{_HUB_CODE}.")
        if not is_ours and fullname not in self.calls:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            self.being_imported += is_ours
            try:
                execute(module)
            finally:
                self.being_imported -= is_ours
            self.calls.pop(fullname, lambda: None)()
            if self.waiting:
                self.import_ours(self.waiting.pop())

        spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]
        return spec


def _quieten_torchao() -> None:
    """`transformers` imports torchao wherever that is installed, and torchao then logs four lines about GPU kernels and its own
    use of torch that a user can do nothing about. Torch sets the levels of its loggers when it is imported."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _register_configs() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .hub_code.configuration_visualbert import REGION_ENCODER_CONFIGS, VisualBertConfig

    for config_class in (VisualBertConfig, *REGION_ENCODER_CONFIGS.values()):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def _register_models() -> None:
    from transformers.models.auto import modeling_auto

    from .hub_code import modeling_visualbert as models
    from .hub_code.configuration_visualbert import VisualBertConfig
    from .hub_code.pixels_visualbert import REGION_ENCODERS
    from .hub_code.tasks_visualbert import TASKS

    modeling_auto.AutoModel.register(VisualBertConfig, models.VisualBertModel, exist_ok=True)
    for encoder in REGION_ENCODERS.values():
        modeling_auto.AutoModel.register(encoder.config_class, encoder, exist_ok=True)
    for task in TASKS.values():
        auto_class = getattr(modeling_auto, task.auto_class)
        auto_class.register(VisualBertConfig, getattr(models, task.head), exist_ok=True)


def _register_image_processors() -> None:
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from .hub_code.configuration_region_detector import RegionDetectorConfig
    from .hub_code.configuration_visualbert import REGION_ENCODER_CONFIGS, VisualBertConfig
    from .hub_code.image_processing_region_detector import RegionDetectorImageProcessor
    from .hub_code.image_processing_visualbert import VisualBertImageProcessor

    for config_class in (VisualBertConfig, *REGION_ENCODER_CONFIGS.values()):
        is_detector = config_class is RegionDetectorConfig
        processor = RegionDetectorImageProcessor if is_detector else VisualBertImageProcessor
        AutoImageProcessor.register(config_class, image_processor_classes={"pil": processor}, exist_ok=True)


def _register_processor() -> None:
    from transformers.models.auto.processing_auto import AutoProcessor

    from .hub_code.configuration_visualbert import VisualBertConfig
    from .hub_code.processing_visualbert import VisualBertProcessor

    AutoProcessor.register(VisualBertConfig, VisualBertProcessor, exist_ok=True)


def _register_pipelines() -> None:
    import transformers
    from transformers import pipelines as pipelines_of_transformers
    from transformers.pipelines import PIPELINE_REGISTRY, REMOVED_TASKS, TASK_ALIASES

    from .hub_code import pipeline_visualbert as pipelines
    from .hub_code.tasks_visualbert import TASKS

    if pipelines_of_transformers.get_task.__module__ != __name__:
        pipelines_of_transformers.get_task = _knowing_ours(pipelines_of_transformers.get_task)
    REMOVED_TASKS.pop("vqa", None)
    TASK_ALIASES["vqa"] = TASKS["vqa"].pipeline
    for task in TASKS.values():
        REMOVED_TASKS.pop(task.pipeline, None)
        if task.pipeline not in PIPELINE_REGISTRY.supported_tasks:  # registering again would warn
            PIPELINE_REGISTRY.register_pipeline(
                task.pipeline,
                pipeline_class=getattr(pipelines, task.pipeline_class),
                pt_model=_completing(getattr(transformers, task.auto_class), task.name),
                default={"model": _NoDefault(task.name, task.pipeline)},
                type="multimodal",
            )


def _knowing_ours(get_task: Callable[..., str]) -> Callable[..., str]:
    """What `pipeline(model=...)` asks for the task when none is named. `transformers` asks the Hub, also about a folder."""

    def task_of(model: str, *args: Any, **kwargs: Any) -> str:
        from .hub_code.tasks_visualbert import TASKS

        if (Path(model) / "config.json").is_file() and _is_ours(model):
            from .checkpoints import check_task

            return check_task(model).pipeline
        try:
            return get_task(model, *args, **kwargs)
        except RuntimeError as error:
            example = TASKS["vqa"].pipeline
            raise RuntimeError(f"{model}: {error}; name the task, as in pipeline({example!r}, model=...)") from error

    return task_of


def _is_ours(folder: str) -> bool:
    from transformers import PretrainedConfig

    fields, _ = PretrainedConfig.get_config_dict(folder)
    return isinstance(fields, dict) and fields.get("model_type") == "visual_bert"


class _NoDefault:
    """Stands for the name and the revision of the model that `pipeline(task)` would open; taking them apart says that a model has
    to be named. (What could be opened is downloaded with its detector, 2 GB for VQA.)"""

    def __init__(self, task: str, pipeline: str):
        self.task, self.pipeline = task, pipeline

    def __iter__(self) -> Any:
        from .published import published_checkpoints

        published = [name for name, one in published_checkpoints().items() if one.task == self.task]
        raise ValueError(
            f"pipeline({self.pipeline!r}) without a model; expected model=..., a folder such as runs/{self.task}/best"
            + (f" or the Hub name of a checkpoint, such as {published[0]}" if published else "")
        )


def _completing(auto_class: Any, task: str) -> type:
    """What `pipeline(...)` opens the models of a task with: the Auto class, once a published checkpoint has been completed."""

    class Completing(auto_class):
        @classmethod
        def from_pretrained(cls, pretrained_model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
            from safetensors import SafetensorError

            from .convert.assemble import complete_checkpoint
            from .published import find_published_checkpoint

            name: str | Path = pretrained_model_name_or_path
            if find_published_checkpoint(name) is not None:
                kwargs.pop("revision", None)  # of the repository, which is not what is opened
                try:
                    name = complete_checkpoint(name, task=task, needs_images=False)
                # For these, `pipeline` would go on to the class of `transformers`.
                except (OSError, ValueError) as error:
                    raise LookupError(str(error)) from error
            try:
                return auto_class.from_pretrained(name, *args, **kwargs)
            except ValueError as error:
                # What the class of `transformers`, which is tried next, fails on too, but without the name of the file.
                unreadable = (SafetensorError, UnpicklingError, EOFError)
                if isinstance(error.__cause__, unreadable):
                    raise type(error.__cause__)(str(error)) from error
                raise

    return Completing


# A part of `transformers`, our module whose classes it has to know, and what registers them. Our module is imported after theirs.
_STEPS: tuple[tuple[str, str, Callable[[], None]], ...] = (
    ("transformers.models.auto.configuration_auto", f"{_HUB_CODE}.configuration_visualbert", _register_configs),
    ("transformers.models.auto.modeling_auto", f"{_HUB_CODE}.modeling_visualbert", _register_models),
    (
        "transformers.models.auto.image_processing_auto",
        f"{_HUB_CODE}.image_processing_region_detector",
        _register_image_processors,
    ),
    ("transformers.models.auto.processing_auto", f"{_HUB_CODE}.processing_visualbert", _register_processor),
    ("transformers.pipelines", f"{_HUB_CODE}.pipeline_visualbert", _register_pipelines),
)


__all__ = ["register_auto_classes", "register_when_imported"]
