"""Inference endpoints: JSON in, JSON out. Pictures are base64 strings; everything else is as the checkpoint's pipeline takes it.

{"inputs": {"image": "<base64>", "question": "What color is the star?"}, "parameters": {"top_k": 3}}
"""

import base64
import io
from typing import Any

from PIL import Image
from transformers import pipeline


class EndpointHandler:
    """Answers requests with the pipeline of the checkpoint in `path`."""

    def __init__(self, path: str = ""):
        self.pipeline = pipeline(model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> Any:
        """
        Args:
            data: `inputs`, a dict with the keys that the pipeline takes, and optionally `parameters`.

        Raises:
            ValueError: A picture is no base64 or no image, or what the pipeline refuses.
        """
        inputs = dict(data["inputs"])
        if "image" in inputs:
            inputs["image"] = _picture(inputs["image"])
        if "images" in inputs:
            inputs["images"] = [_picture(encoded) for encoded in inputs["images"]]
        return self.pipeline(inputs, **data.get("parameters") or {})


def _picture(encoded: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))
    except (TypeError, ValueError, OSError) as error:
        raise ValueError(f"not a picture in base64 ({error})") from error
