"""Inference endpoints: JSON in, JSON out, the same as the Hub's widget for the task of the checkpoint.

{"inputs": {"image": "<base64>", "question": "What color is the star?"}, "parameters": {"top_k": 3}}
    -> [{"answer": "red", "score": 0.98}, ...]

Other tasks take the keys of their pipeline in `inputs`: `images` (two images) and `statement`, or `image` and `statement` where
texts are about one image; `question`, `choices`, `objects` and `boxes`; `sentence` and `phrases`; `text`. Inputs that are too
large are refused with a message before they take up memory.
"""

import base64
import json
from pathlib import Path
from typing import Any

from transformers import pipeline

MAX_IMAGE_BYTES = 10_000_000
MAX_PIXELS = 25_000_000  # 200 MB while it is decoded
MAX_CHARACTERS = 2_000  # of one text
MAX_ITEMS = 100  # of one list: questions, choices, objects, phrases, corners of an outline


class EndpointHandler:
    """Answers requests with the pipeline of the checkpoint in `path`."""

    def __init__(self, path: str = ""):
        # Where the package is imported, `pipeline` would ask the Hub for the task.
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        (task,) = config["custom_pipelines"]
        self.pipeline = pipeline(task, model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> Any:
        """
        Args:
            data: `inputs`, a dict with the keys that the pipeline takes, images as base64 (or as a `data:` URL), and
                optionally `parameters` with `top_k`.

        Returns:
            The result of the pipeline, which is plain JSON data.

        Raises:
            ValueError, TypeError: An input is missing, unknown, too large or not an image; the message says which.
        """
        inputs = data.get("inputs") if isinstance(data, dict) else None
        if not isinstance(inputs, dict):
            raise ValueError("no inputs; expected {'inputs': {'image': '<base64>', ...}, 'parameters': {...}}")
        parameters = data.get("parameters") or {}
        if not isinstance(parameters, dict) or set(parameters) - {"top_k"}:
            raise ValueError(f"parameters {parameters!r:.80}; expected {{'top_k': number}} or none")
        checked = {key: self._checked(key, value) for key, value in inputs.items()}
        known = (*self.pipeline.keys, *self.pipeline.optional_keys)
        for key in checked:
            if key not in known:  # the pipeline leaves other keys alone, as in the rows of a data set
                raise ValueError(f"unknown key {key!r:.80}; expected {', '.join(known)}")
        return self.pipeline(checked, **parameters)

    def _checked(self, key: str, value: Any) -> Any:
        """Decode images; check only the size of all other inputs, since the pipeline checks the rest."""
        if key == "image":
            return self._image(value)
        if key == "images":
            if not isinstance(value, list) or len(value) != 2:
                raise ValueError("images: expected a list of two images")
            return [self._image(image) for image in value]
        _check_size(key, value)
        return value

    def _image(self, encoded: Any) -> Any:
        content = _decode(encoded)
        try:
            return self.pipeline.load_image(content, "image", max_pixels=MAX_PIXELS)
        except ValueError as error:
            raise ValueError(f"an image cannot be read ({error})") from error


def _decode(encoded: Any) -> bytes:
    if not isinstance(encoded, str):
        raise ValueError(f"an image is {type(encoded).__name__}; expected base64")
    if encoded.startswith("data:"):
        encoded = encoded.partition(",")[2]
    encoded = "".join(encoded.split())  # many programs write base64 in lines
    if len(encoded) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise ValueError(f"an image has more than {MAX_IMAGE_BYTES // 1_000_000} MB; expected a smaller one")
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise ValueError(f"an image is {encoded[:20]!r}...; expected base64 (paths and URLs are not opened)") from error


def _check_size(key: str, value: Any, depth: int = 0) -> None:
    if isinstance(value, str):
        if len(value) > MAX_CHARACTERS:
            raise ValueError(f"{key}: a text of {len(value):,} characters; expected at most {MAX_CHARACTERS:,}")
    elif isinstance(value, list):
        if len(value) > MAX_ITEMS:
            raise ValueError(f"{key}: a list of {len(value):,} items; expected at most {MAX_ITEMS}")
        if depth == 4:  # objects, their polygons, points, x and y
            raise ValueError(f"{key}: more than four nested lists; expected at most four")
        for item in value:
            _check_size(key, item, depth + 1)
    elif not (value is None or isinstance(value, (int, float))):
        raise ValueError(f"{key}: {type(value).__name__}; expected text, numbers, or lists of them")
