"""Exactly the files that travel with a checkpoint: `save_pretrained` copies them, flat, beside the weights, and
`trust_remote_code` runs them where this package is not installed.

The rule, which `tests/test_hub_code.py` enforces: a file here imports Python's standard library, torch, transformers,
huggingface_hub, safetensors, numpy, PIL and its siblings (`from .sibling import name`, never `from . import sibling` and
nothing from the rest of the package). The names of these files are part of every saved checkpoint (`auto_map`).
"""
