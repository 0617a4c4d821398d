"""Conversion of VisualBERT checkpoints and region detectors that others published. Nothing in their files is executed."""

from ..checkpoints import HEAD_CLASSES as HEADS
from .checkpoint_files import KeyReport, load_weights, summarise
from .region_detector import convert_region_detector
from .visualbert import convert_original_checkpoint, convert_published_checkpoint, rename_original_key

__all__ = [
    "HEADS",
    "KeyReport",
    "convert_original_checkpoint",
    "convert_published_checkpoint",
    "convert_region_detector",
    "load_weights",
    "rename_original_key",
    "summarise",
]
