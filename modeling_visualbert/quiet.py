"""`transformers` imports torchao wherever that is installed, and torchao then warns of GPU kernels that cannot be loaded and of
its own use of torch: four lines before every command, about nothing that a user could change."""

import logging

import torch  # noqa: F401  (it sets up its loggers when it is imported)

for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)
