"""What the tests of pipelines share: comparing results, and counting what the detector is given."""

import pytest


def close(value):
    """Nested results, floats with a tolerance."""
    if isinstance(value, dict):
        return {key: close(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [close(item) for item in value]
    return pytest.approx(value, abs=2e-4) if isinstance(value, float) else value


def looks(pipe):
    """Batch sizes of the detector's calls."""
    calls = []
    detector = pipe.model.visual_bert.region_encoder.detector
    handle = detector.register_forward_hook(
        lambda module, args, kwargs, output: calls.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return calls, handle
