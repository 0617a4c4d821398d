"""Set up before anything imports `transformers`: no network, an empty cache of its own, one thread."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="modeling_visualbert_tests_")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two spinning threads on a busy machine are up to 100 times slower

import torch

torch.set_num_threads(1)
