"""Where the package keeps what it makes or downloads once."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """`$MODELING_VISUALBERT_CACHE`, else `~/.cache/modeling_visualbert`."""
    root = os.environ.get("MODELING_VISUALBERT_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "modeling_visualbert"


__all__ = ["default_cache_dir"]
